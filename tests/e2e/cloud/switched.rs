//! A key of the cloud profile, switched off and on by an admin while its cloud comes and goes.

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
