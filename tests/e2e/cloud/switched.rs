//! A key of the cloud profile, switched off and on by an admin while its cloud comes and goes; and its store, put back from
//! before the cloud revoked it.

use keystead_wire::admin::v1::GetStatusResponse;
use tonic::Code;

use super::rig::CloudSite;
use crate::clients::kms_code;
use crate::daemon::{Finished, decrypt, encrypt};

#[tokio::test]
async fn key_disabled_here_stays_so_while_the_cloud_renews_and_is_enabled_without_the_cloud() {
    let site = CloudSite::initialized("");
    let daemon = site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    site.site.keystead(["key", "disable", "--yes", "--reason", "INC-7"]).expect_success();
    assert_eq!(kms_code(&site.site).await, Code::FailedPrecondition);
    // Renewed, and not brought back by it.
    let before = daemon.status().await.upstream.unwrap().calls_today;
    let asked = |status: &GetStatusResponse| status.upstream.as_ref().is_some_and(|up| up.calls_today > before + 2);
    let status = daemon.until("asked on", asked).await;
    assert_eq!(status.availability, "disabled");
    let upstream = status.upstream.unwrap();
    assert!(
        upstream.up && upstream.lease_remaining_seconds > 72 * 3600 - 60 && upstream.copies_complete,
        "{upstream:?}"
    );

    site.cloud.fault("refuse");
    assert!(daemon.stop().success());
    let daemon = site.site.spawn(&[]);
    let status = daemon.until("disabled, and the cloud away", |status| {
        status.availability == "disabled" && status.upstream.as_ref().is_some_and(|upstream| !upstream.up)
    });
    assert!(status.await.upstream.unwrap().consequence.contains("the lease runs down"));
    let enabled = site.site.keystead(["key", "enable", "--yes", "--output", "json"]).expect_success();
    assert!(enabled.contains("\"degraded\""), "{enabled}");
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");

    // Revoked while it is disabled: enabling lifts nothing.
    site.site.keystead(["key", "disable", "--yes"]).expect_success();
    site.cloud.act("clear");
    site.cloud.act("disable-key");
    daemon.until("revoked", |status| status.availability == "revoked" && status.disabled.is_some()).await;
    let output = site.site.keystead(["key", "enable", "--yes"]);
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("lifts no revocation"), "{output:?}");
    assert_eq!(kms_code(&site.site).await, Code::FailedPrecondition);
    site.cloud.act("enable-key");
    daemon.until("given back", |status| status.availability == "online").await;
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
}

#[tokio::test]
async fn store_from_before_a_revocation_is_taken_over_only_with_the_word_of_the_cloud() {
    let site = CloudSite::initialized("");
    let daemon = site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    let backup = std::fs::read(site.site.store_file()).unwrap();
    site.cloud.act("disable-key");
    let shredded = |status: &GetStatusResponse| status.availability == "revoked" && status.epoch > 2;
    daemon.until("revoked, and the record says so", shredded).await;
    assert!(daemon.stop().success());
    std::fs::write(site.site.store_file(), &backup).unwrap();
    // Not even the marker is left.
    let _ = std::fs::remove_file(site.site.path().join("store/revoked"));

    let restore = || site.site.keystead(["store", "restore", "--accept-rollback", "--yes"]);
    let daemon = site.site.spawn(&[]);
    daemon.until("stale", |status| status.reason.contains("stale")).await;
    let error = restore().expect_failure(4);
    assert!(error.contains("Without its word nothing is restored"), "{error}");
    site.cloud.fault("refuse");
    restore().expect_failure(4);
    assert_eq!(std::fs::read(site.site.store_file()).unwrap(), backup);
    site.cloud.act("clear");
    site.cloud.act("enable-key");
    restore().expect_success();
    assert_eq!(kms_code(&site.site).await, Code::FailedPrecondition);
    site.site.keystead(["key", "enable", "--yes"]).expect_success();
    daemon.until("online", |status| status.availability == "online").await;
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
    assert!(daemon.stop().success());
    // The copies are of the new epoch: a start without the cloud finds every key.
    site.cloud.fault("refuse");
    let mut daemon = site.site.spawn(&[]);
    daemon.until_serving().await;
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
}
