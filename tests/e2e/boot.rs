//! What a machine looks like after a power cut or a mistake: folders missing, two daemons on one store.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use crate::daemon::{DEADLINE, Finished, Site, decrypt, encrypt};

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

/// A service manager and a person, say: whoever has the sockets has the store.
#[tokio::test]
async fn of_two_daemons_started_at_once_one_serves_and_the_other_ends() {
    let site = Site::initialized("");
    for _ in 0..5 {
        let mut daemons = [site.spawn(&[]), site.spawn(&[])];
        let started = Instant::now();
        let loser = loop {
            let ended: Vec<usize> = (0..2).filter(|index| daemons[*index].has_ended()).collect();
            match ended[..] {
                [] => assert!(started.elapsed() < DEADLINE, "neither gives way"),
                [loser] => break loser,
                _ => panic!("both ended: {}", daemons[0].log()),
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        };
        let winner = &mut daemons[1 - loser];
        winner.until_serving().await;
        encrypt(&mut winner.kms().await, b"seed").await;
        assert_eq!(daemons[loser].wait().code(), Some(1));
        let [first, second] = daemons;
        assert!(if loser == 0 { second } else { first }.stop().success());
    }
    let log = fs::read_to_string(site.path().join("log")).unwrap();
    assert!(!log.contains("ended unexpectedly"), "{log}");
}
