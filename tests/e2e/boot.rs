//! What a machine looks like after a power cut or a mistake: folders missing, two daemons on one store.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::daemon::{Finished, Site, decrypt, encrypt};

#[tokio::test]
async fn socket_folder_missing_at_boot_is_made() {
    let site = Site::initialized("");
    let folder = site.path().join("run");
    // As /run is after each boot.
    fs::remove_dir_all(&folder).unwrap();
    let daemon = site.serve().await;
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o022, 0, "others may write to it");
    encrypt(&mut daemon.kms().await, b"seed").await;
}

#[tokio::test]
async fn socket_folder_that_cannot_be_made_is_an_error_that_names_it() {
    let site = Site::initialized("");
    let folder = site.path().join("run");
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, "a file in its place").unwrap();
    let error = site.keystead(["serve"]).expect_failure(1);
    assert!(error.contains(&folder.display().to_string()), "{error}");
}

#[tokio::test]
async fn second_daemon_on_one_store_ends_and_disturbs_nobody() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let encrypted = encrypt(&mut daemon.kms().await, b"seed").await;
    let record = fs::read(site.store_file()).unwrap();

    // Its own sockets, the same store and token: only the store's lock can tell.
    let run = site.path().join("run").display().to_string();
    let other = site.path().join("other.toml");
    let config = fs::read_to_string(site.config()).unwrap();
    fs::write(&other, config.replace(&run, &site.path().join("run-2").display().to_string())).unwrap();
    let error = site.keystead(["serve", "--config", other.to_str().unwrap()]).expect_failure(1);
    assert!(error.contains("in use by another keystead process"), "{error}");

    assert_eq!(fs::read(site.store_file()).unwrap(), record);
    assert_eq!(decrypt(&mut daemon.kms().await, &encrypted).await.unwrap(), b"seed");
    site.rotate().expect_success();
    assert_eq!(daemon.status().await.availability, "online");
}
