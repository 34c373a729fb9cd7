//! `keystead upstream check` against the stub: which step fails, the exit code, what to do.

use serde_json::{Value, json};

use super::rig::{Cloud, CloudSite};
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

#[test]
fn each_fault_is_told_by_its_step_and_exit_code() {
    let site = CloudSite::bare("");
    let (failed, code, found) = check(&site.site);
    assert_eq!((failed, code), (None, Some(0)), "{found:#}");
    assert!(found["steps"].as_array().unwrap().iter().all(|step| step["outcome"] == "passed"), "{found:#}");
    type Order = fn(&Cloud);
    let cases: &[(&str, Order, &str, i32)] = &[
        ("refused", |cloud| cloud.fault("refuse"), "connection", 3),
        ("black hole", |cloud| cloud.fault("black-hole"), "tls", 3),
        ("captive TLS", |cloud| cloud.fault("captive-tls"), "tls", 3),
        ("captive HTML", |cloud| cloud.fault("captive-html"), "tls", 3),
        ("credential", |cloud| cloud.act("revoke-credential"), "credentials", 4),
        ("debt", |cloud| cloud.act("debt"), "credentials", 4),
        ("disabled", |cloud| cloud.act("disable-key"), "key", 4),
        ("deleted", |cloud| cloud.act("delete-key"), "key", 4),
        (
            "may not encrypt",
            |cloud| cloud.order(&json!({ "action": "deny", "operations": ["GenerateDataKey"] })),
            "encrypt",
            4,
        ),
        ("may not decrypt", |cloud| cloud.order(&json!({ "action": "deny", "operations": ["Decrypt"] })), "decrypt", 4),
    ];
    for (what, inflict, step, exit) in cases {
        inflict(&site.cloud);
        let (failed, code, found) = check(&site.site);
        assert_eq!((failed.as_deref(), code), (Some(*step), Some(*exit)), "{what}: {found:#}");
        site.cloud.act("reset");
    }
    site.cloud.order(&json!({ "action": "skew", "seconds": 600 }));
    let (failed, code, found) = check(&site.site);
    assert_eq!((failed, code), (None, Some(0)), "{found:#}");
    assert_eq!(found["steps"][3]["outcome"], "warning", "{found:#}");

    site.configure("endpoint = \"https://kms.invalid\"");
    assert_eq!(check(&site.site).0.as_deref(), Some("name"));
}

#[test]
fn site_without_a_cloud_is_told_so() {
    let output = Site::bare("").keystead(["upstream", "check"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no [upstream]"));
}
