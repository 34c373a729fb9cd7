//! Records that must not be believed: from yesterday, of another node, changed at any byte.

use std::fs;

use crate::daemon::{Finished, Site, decrypt, encrypt};

#[tokio::test]
async fn a_store_from_before_a_rotation_is_refused_and_the_newest_one_serves_again() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let yesterday = fs::read(site.store_file()).unwrap();
    site.rotate().expect_success();
    let encrypted = encrypt(&mut daemon.kms().await, b"today").await;
    assert!(daemon.stop().success());
    let today = fs::read(site.store_file()).unwrap();

    fs::write(site.store_file(), &yesterday).unwrap();
    let daemon = site.spawn(&[]);
    let status = daemon.until("stale", |status| status.reason.contains("stale")).await;
    assert_eq!(status.availability, "sealed");
    assert_eq!(crate::clients::kms_code(&site).await, tonic::Code::Unavailable);
    assert!(daemon.stop().success());

    fs::write(site.store_file(), &today).unwrap();
    let daemon = site.serve().await;
    assert_eq!(decrypt(&mut daemon.kms().await, &encrypted).await.unwrap(), b"today");
}

#[tokio::test]
async fn a_store_of_another_node_is_refused() {
    let (here, there) = (Site::initialized(""), Site::initialized(""));
    let elsewhere = fs::read_to_string(there.config()).unwrap().replace("node-1", "node-2");
    fs::write(there.config(), elsewhere).unwrap();
    fs::remove_dir_all(there.path().join("store")).unwrap();
    there.keystead(["init", "--no-recovery"]).expect_success();

    // Its record says another node.
    fs::copy(there.store_file(), here.store_file()).unwrap();
    let daemon = here.spawn(&[]);
    daemon.until("foreign", |status| status.reason.contains("belongs to node node-2")).await;
    assert!(daemon.stop().success());

    // A liar that names this node has no epoch secret on this token.
    let renamed = fs::read_to_string(there.store_file()).unwrap().replace("node-2", "node-1");
    fs::write(here.store_file(), renamed).unwrap();
    let daemon = here.spawn(&[]);
    daemon.until("not authentic", |status| status.reason.contains("not authentic")).await;
}

#[tokio::test]
async fn a_token_initialised_anew_is_told_from_a_stale_store() {
    let site = Site::initialized("");
    fs::remove_dir_all(site.token.folder.join("tokens")).unwrap();
    crate::token::Token::new(&site.token.folder, "keystead");
    let daemon = site.spawn(&[]);
    daemon.until("another token", |status| status.reason.contains("no epoch secret")).await;
}

#[tokio::test]
async fn init_refuses_to_replace_a_key() {
    let site = Site::initialized("");
    let before = fs::read(site.store_file()).unwrap();
    let error = site.keystead(["init", "--no-recovery"]).expect_failure(1);
    assert!(error.contains("already holds"), "{error}");
    site.keystead(["init", "--no-recovery", "--if-needed"]).expect_success();
    assert_eq!(fs::read(site.store_file()).unwrap(), before);

    let pem = site.path().join("recovery.pem");
    fs::write(&pem, crate::recovery::new_public_key()).unwrap();
    let error = site.keystead(["init", "--recovery", pem.to_str().unwrap(), "--if-needed"]).expect_failure(1);
    assert!(error.contains("another recovery root"), "{error}");

    fs::remove_file(site.store_file()).unwrap();
    let error = site.keystead(["init", "--no-recovery", "--if-needed"]).expect_failure(1);
    assert!(error.contains("a store was lost"), "{error}");
    site.keystead(["init", "--no-recovery", "--abandon-lost-store"]).expect_success();
    // What was lost does not come back to life beside the new key.
    fs::write(site.store_file(), before).unwrap();
    let daemon = site.spawn(&[]);
    daemon.until("stale", |status| status.reason.contains("stale")).await;
}

#[test]
fn init_demands_a_word_about_recovery() {
    let site = Site::bare("");
    let error = site.keystead(["init"]).expect_failure(2);
    assert!(error.contains("--recovery") && error.contains("--no-recovery"), "{error}");
    assert!(!site.store_file().exists());
}
