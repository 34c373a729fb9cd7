//! Rotation on a schedule, by the whole daemon: a clock a hundred days ahead makes a key old.

use std::fs;

use keystead_wire::admin::v1::{RecordScanRequest, ScanSource, ScannedKeyId};
use serde_json::Value;

use crate::clients::metrics;
use crate::clock::libfaketime;
use crate::daemon::{Daemon, Finished, Site, decrypt, encrypt};

const SCHEDULE: &str = "\n[rotation]\nevery = \"90d\"\njitter = \"0s\"\n";

/// Each process that is told so lives so many days ahead. A clock is believed at once, or a test would take an hour.
async fn serve_ahead(site: &Site, days: u32) -> Daemon {
    let library = libfaketime().display().to_string();
    let ahead = format!("+{days}d");
    let mut daemon = site.spawn(&[
        ("LD_PRELOAD", &library),
        ("FAKETIME", &ahead),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("FAILPOINTS", "schedule.steady=return"),
    ]);
    daemon.until_serving().await;
    daemon
}

fn status(site: &Site) -> Value {
    serde_json::from_str(&site.keystead(["status", "--output", "json"]).expect_success()).unwrap()
}

async fn until_generation(daemon: &Daemon, number: u64) {
    daemon.until("rotated", |status| status.active_generation == number && status.availability == "online").await;
}

#[tokio::test]
async fn old_key_is_rotated_by_itself_recorded_and_the_next_time_waits_for_rewrite_and_scan() {
    let site = Site::initialized(SCHEDULE);
    let daemon = serve_ahead(&site, 30).await;
    let first = encrypt(&mut daemon.kms().await, b"first").await;
    let shown = &status(&site)["rotation"];
    assert_eq!((shown["key_age_seconds"].as_u64().unwrap() / 86_400, &shown["waits"]), (30, &Value::Null), "{shown}");
    assert_eq!(shown["every_seconds"], 90 * 86_400);
    assert!(daemon.stop().success());

    let daemon = serve_ahead(&site, 91).await;
    until_generation(&daemon, 2).await;
    assert_eq!(decrypt(&mut daemon.kms().await, &first).await.unwrap(), b"first");
    let trail = site.keystead(["audit", "query", "--action", "rotate", "--output", "json"]).expect_success();
    let lines: Vec<Value> = serde_json::from_str(&trail).unwrap();
    let told: Vec<_> =
        lines.iter().map(|line| (line["phase"].as_str().unwrap(), line["who"].as_str().unwrap())).collect();
    assert_eq!(told, [("intent", "schedule"), ("done", "schedule")], "{trail}");
    assert_eq!(lines[1]["details"]["generation"], 2);
    assert!(site.keystead(["audit", "query", "--action", "rotate"]).expect_success().contains("schedule"));
    assert!(daemon.stop().success());

    let daemon = serve_ahead(&site, 200).await;
    let late = daemon
        .until("it waits", |status| status.rotation.as_ref().is_some_and(|rotation| !rotation.waits.is_empty()))
        .await;
    let rotation = late.rotation.unwrap();
    assert!(rotation.waits.contains("keystead etcd scan") && rotation.overdue_seconds > 10 * 86_400, "{rotation:?}");
    assert_eq!(rotation.needed.iter().map(|each| (each.number, each.objects)).collect::<Vec<_>>(), [(1, None)]);
    let text = site.keystead(["status"]).expect_success();
    for part in
        ["OVERDUE by 1", "Still needed", "generation 1 (objects unknown)", "a scheduled rotation is due and waits"]
    {
        assert!(text.contains(part), "{text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    let page = metrics(&daemon).await;
    for name in
        ["keystead_key_age_seconds", "keystead_rotation_overdue_seconds", "keystead_rotation_next_timestamp_seconds"]
    {
        assert!(page.contains(&format!("\n{name} ")), "{page}");
    }
    let scan = RecordScanRequest {
        source: Some(ScanSource { revision: 9, cluster_id: 7, member_id: 8, ..ScanSource::default() }),
        restricted: false,
        objects: vec![ScannedKeyId { key_id: late.active_key_id, objects: 3 }],
        unknown: 0,
    };
    daemon.admin().await.record_scan(scan).await.unwrap();
    until_generation(&daemon, 3).await;
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn schedule_is_switched_on_by_a_reload_and_a_bad_window_is_refused() {
    let site = Site::initialized("");
    let daemon = serve_ahead(&site, 100).await;
    assert_eq!(status(&site)["rotation"]["every_seconds"], Value::Null);
    assert!(site.keystead(["status"]).expect_success().contains("by hand"));
    let text = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), format!("{text}{SCHEDULE}window = \"at night\"\n")).unwrap();
    assert!(site.keystead(["reload"]).expect_failure(2).contains("mon-fri 22:00-04:00"));
    fs::write(site.config(), format!("{text}{SCHEDULE}")).unwrap();
    assert!(site.keystead(["reload"]).expect_success().contains("rotation.every"));
    until_generation(&daemon, 2).await;
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn clock_that_has_just_been_seen_is_not_believed_yet() {
    let site = Site::initialized(SCHEDULE);
    let library = libfaketime().display().to_string();
    let mut daemon =
        site.spawn(&[("LD_PRELOAD", &library), ("FAKETIME", "+400d"), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")]);
    daemon.until_serving().await;
    let waits = |status: &keystead_wire::admin::v1::GetStatusResponse| {
        status.rotation.as_ref().is_some_and(|rotation| rotation.waits.contains("run steadily"))
    };
    daemon.until("it waits for the clock", waits).await;
    assert_eq!(daemon.status().await.active_generation, 1);
    assert!(daemon.stop().success());
}
