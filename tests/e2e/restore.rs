//! A store that was put back from a backup, and the way out: what is taken over, what is lost, and that nothing is given back.

use std::fs;

use keystead::failpoint;
use keystead_wire::kms::v2::EncryptResponse;
use serde_json::{Value, json};
use tonic::Code;

use crate::clients::kms_code;
use crate::cluster::{keygen, shown, text};
use crate::daemon::{Daemon, Finished, Site, decrypt, encrypt, until_gone};
use crate::etcd::Etcd;
use crate::roles::{own_uid, with_roles};

fn restore(site: &Site, arguments: &[&str]) -> std::process::Output {
    let mut command = site.command(["store", "restore", "--accept-rollback", "--yes", "--output", "json"]);
    command.args(arguments).output().unwrap()
}

fn numbers(lost: &Value) -> Vec<u64> {
    lost.as_array().unwrap().iter().map(|each| each["number"].as_u64().unwrap()).collect()
}

async fn until_stale(daemon: &Daemon) {
    daemon.until("stale", |status| status.reason.contains("stale")).await;
}

/// Generations 1 to 3, a Secret under each, and the store as it was with two of them put back.
struct RolledBack {
    site: Site,
    sealed: Vec<EncryptResponse>,
    newest: Vec<u8>,
}

impl RolledBack {
    async fn of(site: Site) -> Self {
        let daemon = site.serve().await;
        let mut kms = daemon.kms().await;
        let mut sealed = vec![encrypt(&mut kms, b"1").await];
        site.rotate().expect_success();
        sealed.push(encrypt(&mut kms, b"2").await);
        let backup = fs::read(site.store_file()).unwrap();
        site.rotate().expect_success();
        sealed.push(encrypt(&mut kms, b"3").await);
        drop(kms);
        assert!(daemon.stop().success());
        let newest = fs::read(site.store_file()).unwrap();
        fs::write(site.store_file(), backup).unwrap();
        Self { site, sealed, newest }
    }
}

#[tokio::test]
async fn a_store_put_back_is_taken_over_disabled_with_a_number_above_all_that_were_seen() {
    let RolledBack { site, sealed, .. } = RolledBack::of(Site::initialized("")).await;
    let etcd = Etcd::start();
    for (name, encrypted) in ["a", "b", "c"].iter().zip(&sealed) {
        etcd.put_secret(name, "edge", encrypted);
    }
    let snapshot = text(&etcd.snapshot(&site.path().join("snapshot.db")));
    let daemon = site.spawn(&[]);
    let status = daemon.until("stale", |status| status.reason.contains("stale")).await;
    assert!(status.reason.contains("keystead store restore --accept-rollback"), "{}", status.reason);

    let report = shown(&restore(&site, &["--snapshot", &snapshot]), 1);
    assert_eq!(report["lost"], json!([{ "number": 3, "key_id": sealed[2].key_id, "objects": 1 }]), "{report}");
    assert_eq!((report["generation"].as_u64(), report["unopened"].as_array().unwrap().len()), (Some(4), 0));
    let opened = report["opened"].as_array().unwrap();
    assert!(opened.len() == 2 && opened.iter().all(|each| each["origin"] == "proven"), "{report}");
    assert!(fs::exists(report["set_aside"].as_str().unwrap()).unwrap());
    // It comes back switched off: nobody can tell what happened after the backup.
    assert_eq!(kms_code(&site).await, Code::FailedPrecondition);
    let status = daemon.status().await;
    let disabled = status.disabled.unwrap();
    assert_eq!((disabled.uid, disabled.reason.as_str()), (Some(own_uid()), "store restored from a backup"));
    let error = restore(&site, &[]).expect_failure(4);
    assert!(error.contains("nothing is to be restored"), "{error}");

    site.keystead(["key", "enable", "--yes"]).expect_success();
    let mut kms = daemon.kms().await;
    for (plaintext, encrypted) in [b"1", b"2"].into_iter().zip(&sealed) {
        assert_eq!(decrypt(&mut kms, encrypted).await.unwrap(), plaintext);
    }
    assert_eq!(decrypt(&mut kms, &sealed[2]).await.unwrap_err().code(), Code::NotFound);
    let fresh = encrypt(&mut kms, b"4").await;
    assert_eq!(fresh.key_id, report["key_id"]);
    // Another rotation is refused until it is known what stands under the older ones.
    site.keystead(["key", "rotate", "--yes"]).expect_failure(4);
    site.rotate().expect_success();
    assert_eq!(daemon.status().await.active_generation, 5);
    let trail = site.keystead(["audit", "query", "--action", "restore-store", "--output", "json"]).expect_success();
    assert!(trail.contains("\"intent\"") && trail.contains("\"done\"") && trail.contains("\"lost\""), "{trail}");
    drop(kms);
    assert!(daemon.stop().success());

    // What is lost comes back from etcd, and the numbers go on.
    let output = site.command(["recover", "--no-recovery", "--replace-store", "--snapshot", &snapshot]).output();
    output.unwrap().expect_success();
    let daemon = site.serve().await;
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed[2]).await.unwrap(), b"3");
}

#[tokio::test]
async fn without_an_etcd_the_token_tells_which_numbers_are_taken() {
    let RolledBack { site, newest, sealed } = RolledBack::of(Site::initialized("")).await;
    let daemon = site.spawn(&[]);
    until_stale(&daemon).await;
    let output = site.keystead(["store", "restore", "--accept-rollback", "--yes"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    for part in ["DISABLED", "generation 3: its CMK is on the token", "keystead recover", "keystead key enable"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    assert!(said.lines().all(|line| line.chars().count() <= 80), "{said}");
    assert!(daemon.stop().success());
    // From now on the newest record is as stale as any other.
    let taken_over = fs::read(site.store_file()).unwrap();
    fs::write(site.store_file(), &newest).unwrap();
    let daemon = site.spawn(&[]);
    until_stale(&daemon).await;
    // And is taken over in its turn, from a file; nothing is lost with it but the number in between.
    assert!(daemon.stop().success());
    fs::write(site.store_file(), &taken_over).unwrap();
    let daemon = site.spawn(&[]);
    daemon.until("disabled", |status| status.availability == "disabled" && !status.active_key_id.is_empty()).await;
    assert!(daemon.stop().success());
    fs::remove_file(site.store_file()).unwrap();
    let file = site.path().join("newest.store");
    fs::write(&file, &newest).unwrap();
    let daemon = site.spawn(&[]);
    daemon.until("empty", |status| status.reason.contains("keystead init")).await;
    let report = shown(&restore(&site, &[file.to_str().unwrap()]), 1);
    assert_eq!((numbers(&report["lost"]), report["generation"].as_u64()), (vec![4], Some(5)), "{report}");
    site.keystead(["key", "enable", "--yes"]).expect_success();
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed[2]).await.unwrap(), b"3");
}

#[tokio::test]
async fn a_disable_after_the_backup_is_not_lifted() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    let backup = fs::read(site.store_file()).unwrap();
    site.keystead(["key", "disable", "--yes", "--reason", "INC-7"]).expect_success();
    assert!(daemon.stop().success());
    fs::write(site.store_file(), backup).unwrap();
    let me = own_uid().to_string();
    let table = "[roles]\ncrypto-admin = { uids = [UID] }\n[[roles.deny]]\nactions = [\"enable\"]\nuids = [UID]";
    with_roles(&site, &table.replace("UID", &me));
    let daemon = site.spawn(&[]);
    until_stale(&daemon).await;
    assert_eq!(shown(&restore(&site, &[]), 0)["lost"], json!([]));
    // Who may restore and may not enable has brought nothing back.
    site.keystead(["key", "enable", "--yes"]).expect_failure(4);
    assert_eq!(kms_code(&site).await, Code::FailedPrecondition);
    assert!(daemon.stop().success());
    // Nor does a recovery over it.
    with_roles(&site, "");
    let object = Etcd::start();
    object.put_secret("a", "edge", &sealed);
    let snapshot = text(&object.snapshot(&site.path().join("snapshot.db")));
    let recover = ["recover", "--no-recovery", "--replace-store", "--snapshot", &snapshot];
    site.command([]).args(recover).output().unwrap().expect_success();
    let daemon = site.spawn(&[]);
    daemon.until("disabled", |status| status.availability == "disabled" && status.disabled.is_some()).await;
    site.keystead(["key", "enable", "--yes"]).expect_success();
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
}

#[tokio::test]
async fn what_was_not_rolled_back_is_not_taken_over() {
    let site = Site::initialized("");
    site.keystead(["store", "restore", "--accept-rollback", "--yes"]).expect_failure(3);
    site.keystead(["store", "restore", "--yes"]).expect_failure(2);
    let daemon = site.serve().await;
    let backup = fs::read(site.store_file()).unwrap();
    let error = site.keystead(["store", "restore", "--accept-rollback"]).expect_failure(2);
    assert!(error.contains("--yes"), "{error}");
    let error = restore(&site, &[]).expect_failure(4);
    assert!(error.contains("authentic"), "{error}");
    assert!(daemon.stop().success());

    // Changed, of another node, no record at all: each is refused for what it is.
    let text = String::from_utf8(backup.clone()).unwrap();
    let changed = text.replace("\"revision\": ", "\"revision\": 1");
    let elsewhere = text.replace("node-1", "node-2");
    let (file, garbage) = (site.path().join("file"), site.path().join("garbage"));
    fs::write(&garbage, "no record").unwrap();
    for (content, told) in [(changed, "not authentic"), (elsewhere, "belongs to node")] {
        fs::write(site.store_file(), &content).unwrap();
        fs::write(&file, &content).unwrap();
        let daemon = site.spawn(&[]);
        daemon.until(told, |status| status.reason.contains(told)).await;
        for arguments in [&[][..], &[file.to_str().unwrap()]] {
            let error = restore(&site, arguments).expect_failure(4);
            assert!(error.contains(told), "{error}");
        }
        let error = restore(&site, &[garbage.to_str().unwrap()]).expect_failure(4);
        assert!(error.contains("no record"), "{error}");
        // One that is in force has nothing to be accepted.
        fs::write(&file, &backup).unwrap();
        let error = restore(&site, &[file.to_str().unwrap()]).expect_failure(4);
        assert!(error.contains("in force"), "{error}");
        assert!(daemon.stop().success());
    }
    fs::write(site.store_file(), &backup).unwrap();
    assert!(site.serve().await.stop().success());
}

#[tokio::test]
async fn a_token_older_than_the_store_is_another_matter_and_said_to_be() {
    let site = Site::initialized("");
    let (tokens, old) = (site.token.folder.join("tokens"), site.token.folder.join("old"));
    let oldest = site.path().join("oldest.store");
    fs::copy(site.store_file(), &oldest).unwrap();
    let daemon = site.serve().await;
    site.rotate().expect_success();
    assert!(daemon.stop().success());
    let copied = std::process::Command::new("cp").arg("-a").arg(&tokens).arg(&old).status().unwrap();
    assert!(copied.success());
    let daemon = site.serve().await;
    site.rotate().expect_success();
    assert!(daemon.stop().success());
    fs::remove_dir_all(&tokens).unwrap();
    fs::rename(&old, &tokens).unwrap();
    let daemon = site.spawn(&[]);
    daemon.until("older", |status| status.reason.contains("older than the store")).await;
    // Not even with a record that is older than both.
    for arguments in [&[][..], &[oldest.to_str().unwrap()]] {
        let error = restore(&site, arguments).expect_failure(4);
        assert!(error.contains("older than the store") && error.contains("not what `store restore` is for"), "{error}");
    }
}

/// Whoever can write the folder could put a recovery key of his own into an old record.
#[tokio::test]
async fn a_recovery_key_is_taken_from_a_person_and_not_from_the_old_record() {
    let site = Site::bare("");
    let ((_, mine), (_, other)) = (keygen(&site, "mine"), keygen(&site, "other"));
    site.keystead(["init", "--recovery", &mine]).expect_success();
    let RolledBack { site, sealed, .. } = RolledBack::of(site).await;
    let daemon = site.spawn(&[]);
    until_stale(&daemon).await;
    let error = restore(&site, &[]).expect_failure(4);
    assert!(error.contains("--no-recovery"), "{error}");
    let error = restore(&site, &["--recovery", &other]).expect_failure(4);
    assert!(error.contains("another recovery key"), "{error}");
    shown(&restore(&site, &["--recovery", &mine]), 1);
    assert_eq!(daemon.status().await.durable_roots, ["pkcs11", "recovery"]);
    site.keystead(["key", "enable", "--yes"]).expect_success();
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed[1]).await.unwrap(), b"2");
}

#[tokio::test]
async fn roles_and_their_denials_hold_for_it() {
    let RolledBack { site, .. } = RolledBack::of(Site::initialized("")).await;
    let table = "[roles]\ncrypto-admin = { uids = [UID] }\n[[roles.deny]]\nactions = [\"restore-store\"]\nuids = [UID]";
    with_roles(&site, &table.replace("UID", &own_uid().to_string()));
    let before = fs::read(site.store_file()).unwrap();
    let daemon = site.spawn(&[]);
    until_stale(&daemon).await;
    let error = restore(&site, &[]).expect_failure(4);
    assert!(error.contains("a rule denies it"), "{error}");
    assert_eq!(fs::read(site.store_file()).unwrap(), before);
}

#[tokio::test]
async fn killed_at_every_failpoint_it_is_done_again_or_done_and_never_serves_unasked() {
    let store = failpoint::NAMES.iter().filter(|name| name.starts_with("store."));
    for name in failpoint::RESTORE.iter().chain(store) {
        let RolledBack { site, sealed, .. } = RolledBack::of(Site::initialized("")).await;
        let daemon = site.spawn(&[("KEYSTEAD_KILL_AT", name)]);
        until_stale(&daemon).await;
        let server = daemon.role("server").expect("a server runs");
        assert!(!restore(&site, &[]).status.success());
        until_gone(server);
        daemon.kill();

        let daemon = site.spawn(&[]);
        let settled = daemon.until("read again", |status| {
            status.reason.contains("stale") || (status.availability == "disabled" && !status.active_key_id.is_empty())
        });
        if settled.await.availability != "disabled" {
            shown(&restore(&site, &[]), 1);
        }
        let status = daemon.status().await;
        assert_eq!((status.availability.as_str(), status.active_generation >= 4), ("disabled", true), "{name}");
        assert_eq!(kms_code(&site).await, Code::FailedPrecondition, "{name}");
        site.keystead(["key", "enable", "--yes"]).expect_success();
        assert_eq!(decrypt(&mut daemon.kms().await, &sealed[1]).await.unwrap(), b"2", "{name}");
    }
}
