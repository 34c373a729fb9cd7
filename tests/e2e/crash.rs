//! SIGKILL at every named point of a rotation, and what the next start makes of it.

use std::collections::HashSet;
use std::fs;

use keystead::failpoint;
use keystead_wire::kms::v2::StatusRequest;
use rustix::process::Signal;

use crate::daemon::{Finished, Site, decrypt, encrypt, until_gone};
use crate::memory::wait_until;

#[tokio::test]
async fn rotation_killed_at_every_failpoint_resumes_or_rolls_back() {
    rotation_survives_every_kill(&Site::initialized("")).await;
}

/// On a site with a key.
pub async fn rotation_survives_every_kill(site: &Site) {
    let mut sealed = Vec::new();
    let mut key_ids = HashSet::new();
    for name in failpoint::NAMES {
        let mut daemon = site.spawn(&[("KEYSTEAD_KILL_AT", name)]);
        daemon.until_serving().await;
        let server = daemon.role("server").expect("a server runs");
        let before = encrypt(&mut daemon.kms().await, name.as_bytes()).await;
        // The server is killed in the middle of it: the command fails, and that shows that the point was reached.
        let output = site.rotate();
        assert!(!output.status.success(), "{name} was never reached");
        until_gone(server);
        daemon.kill();

        let daemon = site.serve().await;
        let mut kms = daemon.kms().await;
        assert_eq!(decrypt(&mut kms, &before).await.unwrap(), name.as_bytes(), "{name}");
        let after = kms.status(StatusRequest {}).await.unwrap().into_inner().key_id;
        sealed.push(before);
        key_ids.insert(after.clone());
        // And the next rotation goes through.
        site.rotate().expect_success();
        let rotated = kms.status(StatusRequest {}).await.unwrap().into_inner().key_id;
        assert!(key_ids.insert(rotated), "{name}: a key ID was used twice");
        for encrypted in &sealed {
            decrypt(&mut kms, encrypted).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        // No CMK is left on the token that no generation names.
        let keys = daemon.admin().await.list_generations(keystead_wire::admin::v1::ListGenerationsRequest {}).await;
        let keys = keys.unwrap().into_inner().generations;
        assert!(keys.iter().all(|generation| generation.state != "prepared"), "{name}");
        drop(kms);
        assert!(daemon.stop().success(), "{name}");
    }
}

#[tokio::test]
async fn init_killed_at_every_failpoint_can_be_run_again() {
    for name in of_init() {
        init_survives_a_kill(&Site::bare(""), name).await;
    }
}

/// Failpoints that `init` meets; the others belong to a rotation of the daemon.
pub fn of_init() -> impl Iterator<Item = &'static str> {
    let of_rotation = ["rotation.intent-written", "rotation.verified", "rotation.before-publish"];
    failpoint::NAMES.iter().copied().filter(move |name| !of_rotation.contains(name))
}

/// On a site without a key.
pub async fn init_survives_a_kill(site: &Site, name: &str) {
    let mut init = site.command(["init", "--no-recovery"]);
    let status = init.env("KEYSTEAD_KILL_AT", name).status().unwrap();
    assert!(!status.success(), "{name} was never reached");
    // Somebody may start the daemon first: it says what to do, and spoils nothing.
    let finished = matches!(name, "epoch.record-written" | "epoch.old-destroyed");
    if !finished {
        let daemon = site.spawn(&[]);
        daemon.until("told to init", |status| status.reason.contains("keystead init")).await;
        assert!(daemon.stop().success(), "{name}");
    }
    site.keystead(["init", "--no-recovery", "--if-needed"]).expect_success();
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    let encrypted = encrypt(&mut kms, b"seed").await;
    assert_eq!(decrypt(&mut kms, &encrypted).await.unwrap(), b"seed", "{name}");
}

/// Copies of the store from the middle of `init` and of a rotation are worthless once it is through: nothing that they
/// say, least of all which CMK may be destroyed, is acted upon.
#[tokio::test]
async fn a_record_from_the_middle_of_a_change_is_refused_afterwards() {
    for name in ["rotation.cmk-created", "rotation.prepared", "epoch.created"] {
        let site = Site::bare("");
        site.command(["init", "--no-recovery"]).env("KEYSTEAD_KILL_AT", name).status().unwrap();
        let mut copies = vec![fs::read(site.store_file()).unwrap()];
        site.keystead(["init", "--no-recovery"]).expect_success();

        let mut daemon = site.spawn(&[("KEYSTEAD_KILL_AT", name)]);
        daemon.until_serving().await;
        let before = encrypt(&mut daemon.kms().await, b"before").await;
        site.rotate();
        daemon.kill();
        copies.push(fs::read(site.store_file()).unwrap());
        let daemon = site.serve().await;
        site.rotate().expect_success();
        let after = encrypt(&mut daemon.kms().await, b"after").await;
        assert!(daemon.stop().success());

        let whole = fs::read(site.store_file()).unwrap();
        for copy in copies {
            fs::write(site.store_file(), &copy).unwrap();
            let daemon = site.spawn(&[]);
            daemon.until("stale", |status| status.reason.contains("stale")).await;
            assert!(daemon.stop().success());
        }
        fs::write(site.store_file(), &whole).unwrap();
        let daemon = site.serve().await;
        let mut kms = daemon.kms().await;
        assert_eq!(decrypt(&mut kms, &before).await.unwrap(), b"before", "{name}");
        assert_eq!(decrypt(&mut kms, &after).await.unwrap(), b"after", "{name}");
    }
}

#[tokio::test]
async fn custodian_and_supervisor_killed_in_the_middle_of_a_rotation_lose_nothing() {
    for victim in ["custodian", "supervisor"] {
        let site = Site::initialized("");
        // Between intent and CMK, so that the kill comes in the middle.
        let (mut daemon, rotating) = site.spawn_held_at("rotation.intent-written");
        daemon.until_serving().await;
        let before = encrypt(&mut daemon.kms().await, b"before").await;
        let mut rotate = site
            .command(["key", "rotate", "--yes", "--force", "for a test"])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let file = site.store_file();
        wait_until("the intent is written", || {
            std::fs::read_to_string(&file).is_ok_and(|text| !text.contains("\"rotation\": null"))
        });
        if victim == "custodian" {
            daemon.kill_role("custodian", Signal::KILL);
            rotating.let_go();
            let _ = rotate.wait().unwrap();
            assert_eq!(decrypt(&mut daemon.kms().await, &before).await.unwrap(), b"before");
            assert!(daemon.stop().success());
        } else {
            daemon.kill();
            let _ = rotate.wait().unwrap();
        }
        let daemon = site.serve().await;
        assert_eq!(decrypt(&mut daemon.kms().await, &before).await.unwrap(), b"before", "{victim}");
        site.rotate().expect_success();
    }
}

/// The disk fills before the first, second or third write of a rotation, and stays full over a restart.
#[tokio::test]
async fn a_full_disk_at_any_write_refuses_the_rotation_and_serves_on() {
    for write in 0..3 {
        let site = Site::initialized("");
        let fault = format!("store.before-write={write}*off->return");
        let mut daemon = site.spawn(&[("FAILPOINTS", &fault)]);
        daemon.until_serving().await;
        let mut kms = daemon.kms().await;
        let before = encrypt(&mut kms, b"seed").await;
        let error = site.rotate().expect_failure(4);
        assert!(error.contains("No space left"), "{error}");
        // What is not on disk is not shown.
        assert_eq!(decrypt(&mut kms, &before).await.unwrap(), b"seed");
        assert_eq!(encrypt(&mut kms, b"seed").await.key_id, before.key_id, "write {write}");
        let status = daemon.status().await;
        assert_eq!(status.active_key_id, before.key_id);
        drop(kms);
        assert!(daemon.stop().success());

        let mut daemon = site.spawn(&[("FAILPOINTS", "store.before-write=return")]);
        daemon.until_serving().await;
        let mut kms = daemon.kms().await;
        assert_eq!(encrypt(&mut kms, b"seed").await.key_id, before.key_id, "write {write}");
        drop(kms);
        assert!(daemon.stop().success());

        let daemon = site.serve().await;
        site.rotate().expect_success();
        let mut kms = daemon.kms().await;
        assert_ne!(encrypt(&mut kms, b"seed").await.key_id, before.key_id);
        assert_eq!(decrypt(&mut kms, &before).await.unwrap(), b"seed");
    }
}

#[tokio::test]
async fn rotations_asked_for_at_once_are_one_rotation() {
    let site = Site::initialized("");
    let (mut daemon, rotating) = site.spawn_held_at("rotation.intent-written");
    daemon.until_serving().await;
    let mut impatient: Vec<_> =
        (0..4).map(|_| site.command(["key", "rotate", "--yes", "--force", "for a test"]).spawn().unwrap()).collect();
    wait_until("three are refused", || {
        impatient.retain_mut(|child| child.try_wait().unwrap().is_none_or(|status| status.success()));
        impatient.len() == 1
    });
    rotating.let_go();
    assert!(impatient[0].wait().unwrap().success());
    assert_eq!(daemon.status().await.active_generation, 2);
}
