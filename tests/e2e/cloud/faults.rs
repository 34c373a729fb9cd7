//! What the cloud can do to a site, one line each, with the state that it leads to. Printed as a table when it ran.

use keystead_wire::admin::v1::GetStatusResponse;
use serde_json::json;
use tonic::Code;

use super::rig::{Cloud, CloudSite, Vendor};
use crate::clients::kms_code;
use crate::daemon::{Daemon, Finished, decrypt, encrypt};

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

/// Of the way there and of what answers: the same whoever is asked, so tried on one.
const WAY: &[Row] = &[
    row!("black hole", "black-hole", degraded("unreachable")),
    row!("slow-loris answer", "slow-loris", degraded("unreachable")),
    row!("slow-loris head of an answer", "slow-head", degraded("unreachable")),
    row!("500 without a word", "http-500", degraded("unreachable")),
    row!("captive portal, its own TLS", "captive-tls", degraded("unreachable")),
    row!("captive portal, HTML with 200", "captive-html", degraded("unreachable")),
    row!("redirect", "redirect", degraded("unreachable")),
    row!("answer cut off", "cut", degraded("unreachable")),
    row!("answer of 10 GB", "ten-gigabytes", degraded("unreachable")),
    row!("answer without an end", "endless", degraded("unreachable")),
];

/// What each service says in words of its own.
const SAID: &[Row] = &[
    row!("connection refused", "refuse", degraded("unreachable")),
    row!("5xx burst", "http-503", degraded("unreachable")),
    row!("throttling", "throttle", degraded("unreachable")),
    row!("foreign JSON", "foreign-json", degraded("unreachable")),
    row!("answer for another key", "other-key", degraded("corrupt")),
    row!("ciphertext truncated", "truncate", degraded("corrupt")),
    row!("key of 16 bytes in the answer", "short-key", degraded("corrupt")),
    row!("skew of 20 min", |cloud| skew(cloud, 1200), |cloud| skew(cloud, 0), UNHARMED),
    row!(
        "credential unknown",
        |cloud| cloud.act("revoke-credential"),
        |cloud| cloud.act("restore-credential"),
        degraded("credential-fault")
    ),
    row!("wrong signature", wrong_credential, |cloud| cloud.use_credential("main"), degraded("credential-fault")),
    row!("permission withdrawn", |cloud| cloud.act("deny"), |cloud| cloud.act("allow"), degraded("denied")),
    row!("key disabled", |cloud| cloud.act("disable-key"), |cloud| cloud.act("enable-key"), revoked("key-disabled")),
];

/// A session that stands in the file: nobody here can get another one.
const SESSION_EXPIRED: Row =
    row!("session expired", expired_session, |cloud| cloud.use_credential("main"), degraded("credential-fault"));

const DELETION_PENDING: Row =
    row!("key pending deletion", |cloud| cloud.act("schedule-deletion"), deletion_cancelled, revoked("key-disabled"));

const ALIBABA: &[Row] = &[
    SESSION_EXPIRED,
    row!("account in debt", |cloud| cloud.act("debt"), |cloud| cloud.act("settle"), degraded("billing")),
    DELETION_PENDING,
];

const IBM: &[Row] = &[
    row!("IAM away, token valid", |cloud| iam(cloud, "refuse"), |cloud| cloud.act("clear"), UNHARMED),
    row!("IAM throttles, token valid", |cloud| iam(cloud, "throttle"), |cloud| cloud.act("clear"), UNHARMED),
    row!(
        "IAM away, token given up",
        |cloud| {
            iam(cloud, "refuse");
            cloud.act("expire-tokens");
        },
        |cloud| cloud.act("clear"),
        degraded("unreachable")
    ),
    row!("token given up, IAM there", |cloud| cloud.act("expire-tokens"), |_| (), UNHARMED),
    // No waiting period: it can be brought back for 30 days, and serves nobody meanwhile.
    row!("key deleted, restorable", |cloud| cloud.act("schedule-deletion"), deletion_cancelled, revoked("key-gone")),
];

const AWS: &[Row] = &[
    SESSION_EXPIRED,
    DELETION_PENDING,
    row!(
        "key store away",
        |cloud| cloud.act("key-store-away"),
        |cloud| cloud.act("enable-key"),
        degraded("unreachable")
    ),
    row!(
        "pending deletion, may not be described",
        |cloud| {
            cloud.order(&json!({ "action": "deny", "operations": ["DescribeKey"] }));
            cloud.act("schedule-deletion");
        },
        |cloud| {
            cloud.act("allow");
            deletion_cancelled(cloud);
        },
        degraded("unclassified")
    ),
];

fn skew(cloud: &Cloud, seconds: i64) {
    cloud.order(&json!({ "action": "skew", "seconds": seconds }));
}

fn iam(cloud: &Cloud, fault: &str) {
    cloud.order(&json!({ "action": "fault", "fault": fault, "service": "iam" }));
}

fn wrong_credential(cloud: &Cloud) {
    cloud.use_credential("wrong");
    // What the right one was exchanged for would do to its end.
    cloud.act("expire-tokens");
}

fn expired_session(cloud: &Cloud) {
    cloud.use_credential("session");
    cloud.act("expire-tokens");
}

fn deletion_cancelled(cloud: &Cloud) {
    cloud.act("cancel-deletion");
    // By AWS's rules it is disabled then.
    cloud.act("enable-key");
}

fn found(status: &GetStatusResponse) -> (String, String) {
    let class = status.upstream.as_ref().map(|upstream| match upstream.up {
        true => String::new(),
        false => upstream.fault_class.clone(),
    });
    (status.availability.clone(), class.unwrap_or_default())
}

/// On one daemon, one after the other: what is left behind by one would show in the next.
async fn try_each(vendor: Vendor, rows: &[&[Row]]) {
    let site = CloudSite::initialized_at(vendor, "renew_every = \"200ms\"\nprobe_interval = \"200ms\"");
    let daemon = site.serve().await;
    let key_id = daemon.status().await.active_key_id;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    let memory = resident(&daemon);
    println!("{:<8} {:<38} {:<10} {:<17} {:<20} back", "cloud", "fault", "state", "class", "Status");
    for row in rows.iter().copied().flatten() {
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
        let status = format!("{status:?}");
        println!("{:<8} {:<38} {availability:<10} {class:<17} {status:<20} online", vendor.name(), row.fault);
    }
    // Whatever was answered, and however much of it.
    let more = resident(&daemon).saturating_sub(memory);
    assert!(more < 8 << 10, "the server came to hold {more} KiB more");
}

/// The most that the server ever held, in KiB.
fn resident(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.role("server").unwrap())).unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    most.split_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn each_fault_of_the_way_leads_to_its_state_and_back() {
    try_each(Vendor::Alibaba, &[WAY]).await;
}

#[tokio::test]
async fn each_word_of_alibaba_leads_to_its_state_and_back() {
    try_each(Vendor::Alibaba, &[SAID, ALIBABA]).await;
}

#[tokio::test]
async fn each_word_of_ibm_leads_to_its_state_and_back() {
    try_each(Vendor::Ibm, &[SAID, IBM]).await;
}

#[tokio::test]
async fn each_word_of_aws_leads_to_its_state_and_back() {
    try_each(Vendor::Aws, &[SAID, AWS]).await;
}

#[tokio::test]
async fn deleted_key_ends_the_service_and_a_restart_gives_nothing_back() {
    for vendor in Vendor::ALL {
        let site = CloudSite::initialized_at(vendor, "");
        let daemon = site.serve().await;
        // On IBM's, without a trace of it.
        site.cloud.order(&json!({ "action": "delete-key", "purge": true }));
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
        println!("{:<8} {:<38} revoked    key-gone          FailedPrecondition   never", vendor.name(), "key deleted");
    }
}

/// Of each kind of fault that is served through: told to survive a new start is what does.
#[tokio::test]
async fn what_status_says_of_a_reboot_is_what_a_restart_does() {
    let site = CloudSite::initialized("");
    let mut daemon = site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    for row in WAY.iter().chain(SAID).chain(ALIBABA) {
        let served_through = row.expected.availability == "degraded";
        let of_its_kind = [WAY, SAID, ALIBABA].iter().copied().flatten();
        let first = of_its_kind.filter(|each| each.expected == row.expected).map(|each| each.fault).next();
        if !served_through || first != Some(row.fault) {
            continue;
        }
        (row.inflict)(&site.cloud);
        let wanted = (row.expected.availability.to_owned(), row.expected.class.to_owned());
        let status = daemon.until(row.fault, |status| found(status) == wanted).await;
        let (apiserver, reboot) = (status.apiserver_restart.unwrap(), status.reboot.unwrap());
        assert!(apiserver.survives, "{apiserver:?}");
        assert!(daemon.stop().success());
        daemon = site.site.spawn(&[]);
        let settled = |status: &GetStatusResponse| match status.availability.as_str() {
            "degraded" => true,
            "sealed" => status.reason != "starting",
            _ => false,
        };
        let status = daemon.until(row.fault, settled).await;
        assert_eq!(status.availability == "degraded", reboot.survives, "{}: {reboot:?} {status:?}", row.fault);
        let opened = decrypt(&mut daemon.kms().await, &sealed).await;
        assert_eq!(opened.is_ok(), reboot.survives, "{}: {opened:?}", row.fault);
        println!("{:<32} {:<17} restart: {}", row.fault, row.expected.class, status.availability);
        (row.mend)(&site.cloud);
        daemon.until("online again", |status| status.availability == "online").await;
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
        // Nobody is told to make another key.
        let told = site.site.keystead(["init", "--no-recovery", "--if-needed"]).expect_failure(1);
        assert!(told.contains("revoked") && !told.contains("keystead init"), "{told}");
        daemon.kill();
    }
    site.cloud.act("enable-key");
    let daemon = site.site.spawn(&[]);
    daemon.until("revoked still", |status| status.availability == "revoked").await;
    site.cloud.act("clear");
    daemon.until("online", |status| status.availability == "online").await;
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
}

/// Serves on by the offline copy while `[upstream]` is as in `extra`, and is online when it is right again.
async fn mistaken(site: &CloudSite, elsewhere: &Cloud, fault: &str, extra: &str, class: &str) {
    let daemon = site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    assert!(daemon.stop().success());
    let right = std::fs::read_to_string(site.site.config()).unwrap();
    site.site.configure(&site.custody(), &elsewhere.table(extra));
    let daemon = site.site.spawn(&[]);
    let status = daemon.until(fault, |status| found(status) == ("degraded".into(), class.into())).await;
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
    if matches!(class, "denied" | "key-gone" | "key-disabled") {
        assert!(status.reason.contains("a mistake in [upstream]"), "{}", status.reason);
    }
    assert!(daemon.stop().success());

    std::fs::write(site.site.config(), right).unwrap();
    let daemon = site.serve().await;
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
    assert!(daemon.stop().success());
    let vendor = site.cloud.vendor.name();
    println!("{vendor:<8} {fault:<38} degraded   {class:<17} Ok                   online");
}

/// Another region's KMS does not know the key. That is a mistake in the file, and must shred nothing.
#[tokio::test]
async fn mistake_in_the_configuration_is_no_revocation() {
    for vendor in Vendor::ALL {
        let site = CloudSite::initialized_at(vendor, "");
        let elsewhere = Cloud::of(vendor, &site.site.path().join("elsewhere"));
        let key = format!("key = {:?}", site.cloud.key());
        match vendor {
            Vendor::Alibaba => {
                let extra = format!("{key}\nregion = \"cn-elsewhere\"");
                mistaken(&site, &elsewhere, "wrong region", &extra, "key-gone").await;
            }
            Vendor::Ibm => {
                mistaken(&site, &elsewhere, "wrong region", &key, "key-gone").await;
                let instance = format!("instance = {:?}", site.cloud.fact("/instances/foreign"));
                mistaken(&site, &site.cloud, "wrong instance", &instance, "denied").await;
            }
            Vendor::Aws => {
                mistaken(&site, &elsewhere, "wrong region", &key, "key-gone").await;
                // Before anybody looks for the key, the signature is of the wrong place.
                let region = "region = \"us-east-1\"";
                mistaken(&site, &site.cloud, "region is not the endpoint's", region, "credential-fault").await;
            }
        }
    }
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
