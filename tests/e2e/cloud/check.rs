//! `keystead upstream check` against each cloud's stub: which step fails, the exit code, what to do.

use serde_json::{Value, json};

use super::rig::{Cloud, CloudSite, Vendor};
use crate::daemon::Site;

/// First step that failed, and the exit code.
fn check(site: &Site) -> (Option<String>, Option<i32>, Value) {
    let output = site.keystead(["upstream", "check", "--output", "json"]);
    let found: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let steps = found["steps"].as_array().unwrap();
    let failed = steps.iter().find(|step| step["outcome"] == "failed");
    if let Some(step) = failed {
        assert!(!step["next"].as_str().unwrap_or_default().is_empty(), "{step}");
    }
    (failed.map(|step| step["name"].as_str().unwrap().to_owned()), output.status.code(), found)
}

type Order = fn(&Cloud);

/// What happened; the step that tells of it, the exit code, and a word of what is to be done.
type Row = (&'static str, Order, &'static str, i32, &'static str);

const ROWS: &[Row] = &[
    ("nobody listens", |cloud| cloud.fault("refuse"), "connection", 3, "CIDR"),
    ("black hole", |cloud| cloud.fault("black-hole"), "tls", 3, "firewalls"),
    ("captive portal, its own TLS", |cloud| cloud.fault("captive-tls"), "tls", 3, "captive portal"),
    ("captive portal, HTML", |cloud| cloud.fault("captive-html"), "tls", 3, "captive portal"),
    ("answer cut off", |cloud| cloud.fault("cut"), "tls", 3, "MTU"),
    ("throttling", |cloud| cloud.fault("throttle"), "tls", 3, "throttling"),
    ("5xx", |cloud| cloud.fault("http-503"), "tls", 3, "does not serve now"),
    ("credential unknown", |cloud| cloud.act("revoke-credential"), "credentials", 4, "credentials file"),
    ("wrong signature", |cloud| cloud.use_credential("wrong"), "credentials", 4, "credentials file"),
    ("key disabled", |cloud| cloud.act("disable-key"), "key", 4, "Enable the key"),
    ("key pending deletion", |cloud| cloud.act("schedule-deletion"), "key", 4, "Cancel the deletion"),
    ("may not encrypt", |cloud| deny(cloud, &["GenerateDataKey", "wrap"]), "encrypt", 4, "CIDR"),
    ("may not decrypt", |cloud| deny(cloud, &["Decrypt", "unwrap"]), "decrypt", 4, ""),
];

/// Works, and is worth a word. What is slow still answers within the time-out.
const WARNINGS: &[(&str, Order, &str, &str)] = &[
    ("skew of 10 min", |cloud| cloud.order(&json!({ "action": "skew", "seconds": 600 })), "clock", "set the clock"),
    ("may not describe", |cloud| deny(cloud, &["DescribeKey", "metadata"]), "key", "G"),
    ("slow", slow, "latency", "nearer"),
];

fn deny(cloud: &Cloud, operations: &[&str]) {
    cloud.order(&json!({ "action": "deny", "operations": operations }));
}

fn slow(cloud: &Cloud) {
    cloud.order(&json!({ "action": "fault", "fault": "latency", "seconds": 1.1, "service": "kms" }));
}

fn step<'a>(found: &'a Value, name: &str) -> &'a Value {
    found["steps"].as_array().unwrap().iter().find(|step| step["name"] == name).unwrap()
}

fn told(vendor: Vendor, what: &str, name: &str, outcome: &str, found: &Value) {
    let next = step(found, name)["next"].as_str().unwrap_or_default();
    println!("{:<8} {what:<28} {name:<12} {outcome:<8} {next}", vendor.name());
}

fn each_is_told_at(vendor: Vendor) {
    let site = CloudSite::bare_at(vendor, "");
    let config = std::fs::read_to_string(site.site.config()).unwrap();
    let (failed, code, found) = check(&site.site);
    assert_eq!((failed, code), (None, Some(0)), "{found:#}");
    assert!(found["steps"].as_array().unwrap().iter().all(|step| step["outcome"] == "passed"), "{found:#}");
    for (what, inflict, name, word) in WARNINGS {
        inflict(&site.cloud);
        let (failed, code, found) = check(&site.site);
        assert_eq!((failed, code), (None, Some(0)), "{what}: {found:#}");
        assert_eq!(step(&found, name)["outcome"], "warning", "{what}: {found:#}");
        assert!(step(&found, name)["next"].as_str().unwrap().contains(word), "{what}: {found:#}");
        told(vendor, what, name, "warning", &found);
        site.cloud.act("reset");
    }
    for (what, inflict, name, exit, word) in ROWS {
        inflict(&site.cloud);
        let (failed, code, found) = check(&site.site);
        assert_eq!((failed.as_deref(), code), (Some(*name), Some(*exit)), "{what}: {found:#}");
        assert!(step(&found, name)["next"].as_str().unwrap().contains(word), "{what}: {found:#}");
        told(vendor, what, name, "failed", &found);
        site.cloud.act("reset");
        site.cloud.use_credential("main");
    }
    site.cloud.order(&json!({ "action": "delete-key", "purge": true }));
    let (failed, code, found) = check(&site.site);
    assert_eq!((failed.as_deref(), code), (Some("key"), Some(4)), "{found:#}");
    told(vendor, "key deleted", "key", "failed", &found);
    site.cloud.act("reset");

    for (what, extra, name, word) in [
        ("name unknown", "endpoint = \"https://kms.invalid\"".to_owned(), "name", "resolv.conf"),
        ("foreign CA pinned", format!("ca_file = {:?}", site.cloud.fact("/next_ca_file")), "tls", "ca_file"),
        ("token service away", "token_endpoint = \"https://127.0.0.1:1\"".to_owned(), "tls", "CIDR"),
    ] {
        if what == "token service away" && vendor != Vendor::Ibm {
            // A file of static credentials asks nobody.
            continue;
        }
        site.configure(&extra);
        let (failed, code, found) = check(&site.site);
        assert_eq!((failed.as_deref(), code), (Some(name), Some(3)), "{what}: {found:#}");
        assert!(step(&found, name)["next"].as_str().unwrap().contains(word), "{what}: {found:#}");
        told(vendor, what, name, "failed", &found);
    }
    site.cloud.act("proxy-refuses");
    std::fs::write(site.site.config(), format!("{config}proxy = {:?}\n", site.cloud.fact("/proxy"))).unwrap();
    let (failed, code, found) = check(&site.site);
    assert_eq!((failed.as_deref(), code), (Some("tls"), Some(3)), "{found:#}");
    assert!(step(&found, "tls")["next"].as_str().unwrap().contains("proxy"), "{found:#}");
    told(vendor, "proxy refuses", "tls", "failed", &found);
}

#[test]
fn each_fault_of_alibaba_is_told_by_its_step_and_exit_code() {
    each_is_told_at(Vendor::Alibaba);
}

#[test]
fn each_fault_of_ibm_is_told_by_its_step_and_exit_code() {
    each_is_told_at(Vendor::Ibm);
}

#[test]
fn each_fault_of_aws_is_told_by_its_step_and_exit_code() {
    each_is_told_at(Vendor::Aws);
}

#[test]
fn site_without_a_cloud_is_told_so() {
    let output = Site::bare("").keystead(["upstream", "check"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no [upstream]"));
}
