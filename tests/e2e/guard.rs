//! A rotation is refused while an older generation may still be needed, and what proves that it is not.

use serde_json::{Value, json};

use crate::cluster::{Cluster, text};
use crate::daemon::{Finished, Site, encrypt};
use crate::scan::{json, scan};

fn refused(site: &Site) -> String {
    site.keystead(["key", "rotate", "--yes"]).expect_failure(4)
}

fn generations(site: &Site) -> Value {
    json(site.keystead(["key", "list", "--output", "json"]))["generations"].clone()
}

#[tokio::test]
async fn second_rotation_waits_for_a_scan_that_proves_the_rewrite() {
    let cluster = Cluster::new().await;
    let (site, etcd) = (&cluster.site, &cluster.etcd);
    let source = etcd.arguments();
    let half_way = ["--snapshot".to_owned(), text(&cluster.snapshot())];
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;

    assert!(refused(site).contains("no scan of etcd was recorded since generation 2"), "{}", refused(site));
    assert_eq!(scan(site, &source)["rewritten"], false);
    assert!(refused(site).contains("objects under generation 1: 2"), "{}", refused(site));

    // Rewritten; but an object that cannot be read may be one of the old generation's.
    let fresh = encrypt(&mut kms, &[1; 32]).await;
    for name in ["a", "b"] {
        etcd.put_secret(name, "edge", &fresh);
    }
    scan(site, &source);
    assert!(refused(site).contains("which generation they need: 1"), "{}", refused(site));
    etcd.delete("garbled");
    let part = scan(site, &[&source[..], &["--prefix".to_owned(), "/registry/secrets/".to_owned()]].concat());
    assert_eq!((&part["rewritten"], &part["unknown"]["objects"]), (&json!(false), &json!(0)), "{part}");
    assert!(refused(site).contains("did not look at every key"), "{}", refused(site));
    let whole = scan(site, &source);
    assert_eq!((&whole["rewritten"], &whole["detail"]), (&json!(true), &Value::Null), "{whole}");
    let told = site.command(["etcd", "scan"]).args(&source).output().unwrap().expect_success();
    assert!(told.contains("no older one is needed") && told.lines().all(|line| line.chars().count() <= 80), "{told}");
    // The proof outlives the daemon, and a rotation that is allowed keeps no reason.
    drop(kms);
    assert!(daemon.stop().success());
    let daemon = site.serve().await;
    site.rotate().expect_success();
    assert_eq!(generations(site)[2]["forced"], Value::Null);

    let all = generations(site);
    let objects: Vec<&Value> = all.as_array().unwrap().iter().map(|each| &each["objects"]).collect();
    assert_eq!(objects, [&json!(0), &json!(4), &Value::Null]);

    // It proves nothing of generation 2. Nor does what was saved before generation 3, however late it is read.
    assert!(refused(site).contains("no scan of etcd was recorded since generation 3"), "{}", refused(site));
    assert_eq!(scan(site, &half_way)["rewritten"], false);
    let emptied = ["configmaps/default/a", "secrets/default/a"].map(|name| format!("/registry/{name}"));
    let other = crate::etcd::Etcd::start();
    for name in &emptied {
        other.put(name, b"{}");
    }
    assert_eq!(scan(site, &other.arguments())["rewritten"], false);
    assert!(refused(site).contains("saw no object under generation 3"), "{}", refused(site));
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn forced_rotation_keeps_its_reason_even_if_it_is_killed_half_way() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    site.keystead(["key", "rotate", "--yes"]).expect_success();
    let reason = "CMK may be known, INC-42";
    site.keystead(["key", "rotate", "--yes", "--force", reason]).expect_success();
    let all = generations(&site);
    assert_eq!(all[0]["objects"], Value::Null);
    let forced: Vec<&Value> = all.as_array().unwrap().iter().map(|each| &each["forced"]).collect();
    assert_eq!(forced, [&Value::Null, &Value::Null, &json!(reason)]);
    assert!(daemon.log().contains(reason), "{}", daemon.log());
    for bad in ["", " a", "a\nb", "a\u{1b}[2J", &"a".repeat(201)] {
        site.keystead(["key", "rotate", "--yes", "--force", bad]).expect_failure(2);
    }
    let mut admin = daemon.admin().await;
    let bad = keystead_wire::admin::v1::RotateRequest { force: "a\nb".into() };
    assert_eq!(admin.rotate(bad).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    drop(admin);
    assert!(daemon.stop().success());

    let mut killed = site.spawn(&[("KEYSTEAD_KILL_AT", "rotation.prepared")]);
    killed.until_serving().await;
    let _ = site.keystead(["key", "rotate", "--yes", "--force", "killed half-way"]);
    killed.kill();
    let daemon = site.serve().await;
    assert_eq!(generations(&site)[3]["forced"], "killed half-way");
    assert!(daemon.stop().success());
}
