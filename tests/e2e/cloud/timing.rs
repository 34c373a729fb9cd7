//! How soon the cloud's return is seen, and how soon its refusal.

use std::time::{Duration, Instant};

use super::rig::CloudSite;
use crate::clients::kms_code;

/// What a loaded machine may add to any of it.
const SLACK: Duration = Duration::from_secs(3);
const INTERVAL: Duration = Duration::from_secs(2);

#[tokio::test]
async fn return_is_seen_within_a_probe_and_a_disabled_key_within_a_renewal() {
    let site = CloudSite::initialized("renew_every = \"2s\"\nprobe_interval = \"2s\"");
    let daemon = site.serve().await;
    site.cloud.fault("refuse");
    daemon.until("down", |status| status.availability == "degraded").await;
    let started = Instant::now();
    site.cloud.act("clear");
    daemon.until("back", |status| status.availability == "online").await;
    let back = started.elapsed();

    let started = Instant::now();
    site.cloud.act("disable-key");
    while kms_code(&site.site).await != tonic::Code::FailedPrecondition {
        assert!(started.elapsed() < crate::daemon::DEADLINE, "{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let closed = started.elapsed();

    let started = Instant::now();
    site.cloud.act("enable-key");
    daemon.until("enabled", |status| status.availability == "online").await;
    let enabled = started.elapsed();
    println!("interval {INTERVAL:?} ± 20 %: back {back:?}, closed {closed:?}, enabled {enabled:?}");
    for took in [back, closed, enabled] {
        assert!(took <= INTERVAL.mul_f64(1.2) + SLACK, "{took:?}");
    }
}
