//! Who causes calls to the cloud: the renewal of the lease, and nothing that the apiserver does.

use keystead_wire::kms::v2::StatusRequest;

use super::rig::CloudSite;
use crate::clients::{metrics, sample};
use crate::daemon::{decrypt, encrypt};

#[tokio::test]
async fn thousand_requests_of_each_kind_cause_no_call() {
    let site = CloudSite::initialized("renew_every = \"1h\"");
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    let sealed = encrypt(&mut kms, b"seed").await;
    let counted = |page: &str| sample(page, "keystead_upstream_calls_total", "");
    let before = (site.cloud.requests().len(), counted(&metrics(&daemon).await));
    for _ in 0..1000 {
        kms.status(StatusRequest {}).await.unwrap();
        encrypt(&mut kms, b"seed").await;
        assert_eq!(decrypt(&mut kms, &sealed).await.unwrap(), b"seed");
    }
    assert_eq!((site.cloud.requests().len(), counted(&metrics(&daemon).await)), before);
    assert!(before.1 >= 1.0, "the start made one");
}

#[tokio::test]
async fn calls_lease_and_ends_are_shown() {
    let site = CloudSite::initialized("");
    let daemon = site.serve().await;
    let page = metrics(&daemon).await;
    assert_eq!(sample(&page, "keystead_upstream_up", ""), 1.0, "{page}");
    assert_eq!(sample(&page, "keystead_availability", "state=\"online\""), 1.0, "{page}");
    assert_eq!(sample(&page, "keystead_lease_seconds", ""), 259_200.0, "{page}");
    assert!(sample(&page, "keystead_lease_remaining_seconds", "") > 259_100.0, "{page}");
    assert!(sample(&page, "keystead_upstream_calls_today", "") >= 1.0, "{page}");
    assert!(sample(&page, "keystead_upstream_cost_today", "currency=\"USD\"") > 0.0, "{page}");
    assert!(sample(&page, "keystead_not_after_timestamp_seconds", "certificate of") > 1.7e9, "{page}");
    assert_eq!(sample(&page, "keystead_reboot_survives", ""), 1.0, "{page}");

    site.cloud.fault("black-hole");
    let status = daemon.until("down", |status| status.availability == "degraded").await;
    let upstream = status.upstream.unwrap();
    assert!(upstream.down_since > 0 && upstream.last_contact > 0 && !upstream.fault_detail.is_empty(), "{upstream:?}");
    assert!(upstream.consequence.contains("the lease ends"), "{upstream:?}");
    assert!(status.apiserver_restart.unwrap().survives && status.reboot.unwrap().survives);
    assert!(status.actions.iter().any(|action| action.contains("upstream check")), "{:?}", status.actions);
    let page = metrics(&daemon).await;
    assert_eq!(sample(&page, "keystead_upstream_up", ""), 0.0, "{page}");
    assert_eq!(sample(&page, "keystead_upstream_fault", "class=\"unreachable\""), 1.0, "{page}");
    let text = site.site.keystead(["status"]);
    assert_eq!(text.status.code(), Some(5));
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert!(text.contains("DOWN since") && text.contains("To do:"), "{text}");
}
