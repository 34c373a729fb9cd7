//! A machine whose clock has lost the time: an edge box without a battery starts in 1970, and is set right minutes later.
//!
//! Only what a process is told changes (libfaketime); the machine's clock is never set.

use std::path::PathBuf;

use crate::clients::metrics;
use crate::daemon::{Daemon, Finished, Site, decrypt, encrypt};

/// From the first second of 1970 on, in each process anew. Timers run on another clock, which goes on as it is.
fn in_1970() -> Vec<(&'static str, String)> {
    vec![
        ("LD_PRELOAD", libfaketime().display().to_string()),
        ("FAKETIME", "@1970-01-01 00:00:00".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ("TZ", "UTC".into()),
    ]
}

pub fn libfaketime() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    let candidates = folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1"));
    candidates.into_iter().find(|path| path.exists()).expect("install the package faketime (scripts/test does)")
}

async fn serve_in_1970(site: &Site) -> Daemon {
    let environment = in_1970();
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut daemon = site.spawn(&environment);
    daemon.until_serving().await;
    daemon
}

/// Status, generations and metrics are all there, and say nothing that no clock could.
async fn says_nothing_odd(site: &Site, daemon: &Daemon) {
    let status = daemon.status().await;
    assert_eq!(status.availability, "online", "{}", status.reason);
    assert!(status.uptime_seconds < 3600, "{}", status.uptime_seconds);
    for command in [["status", "--output=text"], ["status", "--output=json"], ["key", "list"], ["roots", "list"]] {
        site.command(command).envs(in_1970()).output().unwrap().expect_success();
    }
    let page = metrics(daemon).await;
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    let values: Vec<f64> = samples.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert!(!values.is_empty() && values.iter().all(|value| value.is_finite() && *value >= 0.0), "{page}");
}

fn created(site: &Site) -> Vec<String> {
    let listed = site.keystead(["key", "list", "--output", "json"]).expect_success();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let of = |generation: &serde_json::Value| generation["created"].as_str().unwrap()[..4].to_owned();
    listed["generations"].as_array().unwrap().iter().map(of).collect()
}

#[tokio::test]
async fn daemon_made_and_started_in_1970_serves_rotates_and_goes_on_when_the_clock_is_right() {
    let site = Site::bare("");
    site.command(["init", "--no-recovery"]).envs(in_1970()).output().unwrap().expect_success();
    let daemon = serve_in_1970(&site).await;
    let first = encrypt(&mut daemon.kms().await, b"first").await;
    site.rotate().expect_success();
    let second = encrypt(&mut daemon.kms().await, b"second").await;
    assert_ne!(first.key_id, second.key_id);
    says_nothing_odd(&site, &daemon).await;
    assert_eq!(created(&site), ["1970", "1970"]);
    let log = daemon.log();
    assert!(log.lines().all(|line| !line.contains("timestamp") || line.contains("\"1970-01-01T00:0")), "{log}");
    assert!(daemon.stop().success());

    let daemon = site.serve().await;
    site.rotate().expect_success();
    for (encrypted, plaintext) in [(&first, b"first".as_slice()), (&second, b"second")] {
        assert_eq!(decrypt(&mut daemon.kms().await, encrypted).await.unwrap(), plaintext);
    }
    says_nothing_odd(&site, &daemon).await;
}

#[tokio::test]
async fn daemon_whose_key_is_of_the_future_serves_and_rotates_in_1970() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let before = encrypt(&mut daemon.kms().await, b"before").await;
    site.rotate().expect_success();
    assert!(daemon.stop().success());

    // The battery is dead: everything in the store is from half a century later.
    let daemon = serve_in_1970(&site).await;
    assert_eq!(decrypt(&mut daemon.kms().await, &before).await.unwrap(), b"before");
    says_nothing_odd(&site, &daemon).await;
    site.rotate().expect_success();
    // A custodian and a server that start now see the same time.
    site.keystead(["custodian", "restart"]).expect_success();
    daemon.kill_role("server", rustix::process::Signal::KILL);
    daemon.until("online again", |status| status.availability == "online").await;
    assert_eq!(decrypt(&mut daemon.kms().await, &before).await.unwrap(), b"before");
    says_nothing_odd(&site, &daemon).await;
    let created = created(&site);
    assert_eq!(created.iter().filter(|year| *year == "1970").count(), 1, "{created:?}");
    assert_eq!(created.len(), 3);
}
