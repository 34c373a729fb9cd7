//! What the cloud can do to a site, one line each, with the state that it leads to. Printed as a table when it ran.

use keystead_wire::admin::v1::GetStatusResponse;
use serde_json::json;
use tonic::Code;

use super::rig::{Cloud, CloudSite};
use crate::clients::kms_code;
use crate::daemon::{decrypt, encrypt};

/// One fault and what it must lead to.
struct Row {
    fault: &'static str,
    inflict: fn(&Cloud),
    /// Takes it back.
    mend: fn(&Cloud),
    expected: Expected,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Expected {
    availability: &'static str,
    class: &'static str,
    /// Of KMS v2's Status: what the apiserver goes by.
    status: Code,
}

/// Serves on under the same key ID; the lease runs.
const fn degraded(class: &'static str) -> Expected {
    Expected { availability: "degraded", class, status: Code::Ok }
}

const fn revoked(class: &'static str) -> Expected {
    Expected { availability: "revoked", class, status: Code::FailedPrecondition }
}

/// Nothing to see: it was dealt with inside a call.
const UNHARMED: Expected = Expected { availability: "online", class: "", status: Code::Ok };

macro_rules! row {
    ($fault:literal, $inflict:expr, $mend:expr, $expected:expr) => {
        Row { fault: $fault, inflict: $inflict, mend: $mend, expected: $expected }
    };
    ($fault:literal, $name:literal, $expected:expr) => {
        Row {
            fault: $fault,
            inflict: |cloud| cloud.fault($name),
            mend: |cloud| cloud.act("clear"),
            expected: $expected,
        }
    };
}

const FAULTS: &[Row] = &[
    row!("connection refused", "refuse", degraded("unreachable")),
    row!("black hole", "black-hole", degraded("unreachable")),
    row!("slow-loris answer", "slow-loris", degraded("unreachable")),
    row!("5xx burst", "http-503", degraded("unreachable")),
    row!("500 without a word", "http-500", degraded("unreachable")),
    row!("throttling", "throttle", degraded("unreachable")),
    row!("captive portal, its own TLS", "captive-tls", degraded("unreachable")),
    row!("captive portal, HTML with 200", "captive-html", degraded("unreachable")),
    row!("redirect", "redirect", degraded("unreachable")),
    row!("foreign JSON", "foreign-json", degraded("unreachable")),
    row!("answer cut off", "cut", degraded("unreachable")),
    row!("answer without an end", "too-long", degraded("unreachable")),
    row!("answer for another key", "other-key", degraded("corrupt")),
    row!(
        "skew of 20 min",
        |cloud| cloud.order(&json!({ "action": "skew", "seconds": 1200 })),
        |cloud| cloud.order(&json!({ "action": "skew", "seconds": 0 })),
        UNHARMED
    ),
    row!(
        "credential unknown or expired",
        |cloud| cloud.act("revoke-credential"),
        |cloud| cloud.act("restore-credential"),
        degraded("credential-fault")
    ),
    row!("wrong signature", wrong_secret, right_secret, degraded("credential-fault")),
    row!("account in debt", |cloud| cloud.act("debt"), |cloud| cloud.act("settle"), degraded("billing")),
    row!("permission withdrawn", |cloud| cloud.act("deny"), |cloud| cloud.act("allow"), degraded("denied")),
    row!("key disabled", |cloud| cloud.act("disable-key"), |cloud| cloud.act("enable-key"), revoked("key-disabled")),
    row!(
        "key pending deletion",
        |cloud| cloud.act("schedule-deletion"),
        |cloud| {
            cloud.act("cancel-deletion");
            // By the vendor's rules it is disabled then.
            cloud.act("enable-key");
        },
        revoked("key-disabled")
    ),
];

fn wrong_secret(cloud: &Cloud) {
    let right = std::fs::read_to_string(cloud.credentials()).unwrap();
    std::fs::write(cloud.credentials().with_extension("right"), &right).unwrap();
    let wrong: Vec<_> = right
        .lines()
        .map(|line| match line.split_once('=') {
            Some((name, _)) if name.contains("secret") => format!("{name}= \"wrong-secret-of-some-length\""),
            _ => line.to_owned(),
        })
        .collect();
    assert_ne!(wrong.join("\n").trim(), right.trim(), "the file has a secret");
    replace(cloud, &wrong.join("\n"));
}

fn right_secret(cloud: &Cloud) {
    let right = std::fs::read_to_string(cloud.credentials().with_extension("right")).unwrap();
    replace(cloud, &right);
}

/// As tools do it: a new file in the old one's place.
fn replace(cloud: &Cloud, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    let new = cloud.credentials().with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(new, cloud.credentials()).unwrap();
}

fn found(status: &GetStatusResponse) -> (String, String) {
    let class = status.upstream.as_ref().map(|upstream| match upstream.up {
        true => String::new(),
        false => upstream.fault_class.clone(),
    });
    (status.availability.clone(), class.unwrap_or_default())
}

/// On one daemon, one after the other: what is left behind by one would show in the next.
#[tokio::test]
async fn each_fault_of_the_cloud_leads_to_its_state_and_back() {
    let site = CloudSite::initialized("");
    let daemon = site.serve().await;
    let key_id = daemon.status().await.active_key_id;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    println!("{:<32} {:<10} {:<17} {:<20} back", "fault of the cloud", "state", "class", "Status");
    for row in FAULTS {
        let contacts = site.cloud.requests().len();
        (row.inflict)(&site.cloud);
        let expected = row.expected;
        if expected == UNHARMED {
            // Two renewals that it has come through.
            let contact = daemon.status().await.upstream.unwrap().last_contact;
            daemon
                .until(row.fault, |status| {
                    assert_eq!(status.availability, "online", "{}: {status:?}", row.fault);
                    status.upstream.as_ref().unwrap().last_contact > contact + 1
                })
                .await;
            assert!(site.cloud.requests().len() > contacts);
        } else {
            let wanted = (expected.availability.to_owned(), expected.class.to_owned());
            daemon.until(row.fault, |status| found(status) == wanted).await;
        }
        assert_eq!(kms_code(&site.site).await, expected.status, "{}", row.fault);
        let opened = decrypt(&mut daemon.kms().await, &sealed).await;
        match expected.status {
            Code::Ok => assert_eq!(opened.unwrap(), b"seed", "{}", row.fault),
            code => assert_eq!(opened.unwrap_err().code(), code, "{}", row.fault),
        }
        (row.mend)(&site.cloud);
        let status = daemon.until("online again", |status| status.availability == "online").await;
        assert_eq!(status.active_key_id, key_id, "an outage never changes the key ID");
        assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed", "{}", row.fault);
        let Expected { availability, class, status } = expected;
        println!("{:<32} {availability:<10} {class:<17} {:<20} online", row.fault, format!("{status:?}"));
    }
}

#[tokio::test]
async fn deleted_key_ends_the_service_and_a_restart_gives_nothing_back() {
    let site = CloudSite::initialized("");
    let daemon = site.serve().await;
    site.cloud.act("delete-key");
    daemon.until("revoked", |status| found(status) == ("revoked".into(), "key-gone".into())).await;
    assert!(daemon.stop().success());
    // Whether the cloud answers or not.
    for fault in ["", "black-hole"] {
        if !fault.is_empty() {
            site.cloud.fault(fault);
        }
        let daemon = site.site.spawn(&[]);
        daemon.until("revoked at once", |status| status.availability == "revoked").await;
        assert_eq!(kms_code(&site.site).await, Code::FailedPrecondition);
        assert!(daemon.stop().success());
    }
}

#[tokio::test]
async fn revocation_outlasts_restarts_without_the_cloud_and_ends_by_it_only() {
    let site = CloudSite::initialized("");
    let daemon = site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    site.cloud.act("disable-key");
    daemon.until("revoked", |status| status.availability == "revoked").await;
    site.cloud.fault("refuse");
    assert!(daemon.stop().success());
    for _ in 0..3 {
        let daemon = site.site.spawn(&[]);
        daemon.until("revoked", |status| status.availability == "revoked").await;
        daemon.kill();
    }
    site.cloud.act("enable-key");
    let daemon = site.site.spawn(&[]);
    daemon.until("revoked still", |status| status.availability == "revoked").await;
    site.cloud.act("clear");
    daemon.until("online", |status| status.availability == "online").await;
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
}

/// Another region's KMS does not know the key. That is a mistake in the file, and must shred nothing.
#[tokio::test]
async fn wrong_region_in_the_configuration_is_no_revocation() {
    let site = CloudSite::initialized("");
    let daemon = site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    assert!(daemon.stop().success());

    let elsewhere = Cloud::start(&site.site.path().join("elsewhere"));
    let right = std::fs::read_to_string(site.site.config()).unwrap();
    let key = format!("key = {:?}\nregion = \"cn-elsewhere\"", site.cloud.key());
    site.site.configure(&site.custody(), &elsewhere.table(&key));
    let daemon = site.site.spawn(&[]);
    daemon.until("key-gone, and serving", |status| found(status) == ("degraded".into(), "key-gone".into())).await;
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
    assert!(daemon.stop().success());

    std::fs::write(site.site.config(), right).unwrap();
    let daemon = site.serve().await;
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
}

#[tokio::test]
async fn name_that_resolves_no_more_is_served_through() {
    let site = CloudSite::initialized("");
    let daemon = site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    assert!(daemon.stop().success());
    site.configure("endpoint = \"https://kms.invalid\"");
    let mut daemon = site.site.spawn(&[]);
    daemon.until_serving().await;
    let status =
        daemon.until("down by name", |status| found(status) == ("degraded".into(), "unreachable".into())).await;
    assert_eq!(status.upstream.unwrap().fault_code, "dns");
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
}
