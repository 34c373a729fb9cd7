//! `keystead etcd scan`: what etcd's bytes say of the generations, and what the daemon keeps of it.

use keystead_wire::admin::v1::{RecordScanRequest, ScanSource};
use serde_json::{Value, json};

use crate::cluster::{Cluster, text};
use crate::daemon::{Daemon, Finished, Site, decrypt, encrypt};
use crate::etcd::Etcd;

pub fn json(output: std::process::Output) -> Value {
    serde_json::from_str(&output.expect_success()).unwrap()
}

/// Scans, and has the daemon keep it.
pub fn scan(site: &Site, source: &[String]) -> Value {
    json(site.command(["etcd", "scan", "--output", "json"]).args(source).output().unwrap())
}

/// Number and objects of each generation.
fn counts(generations: &Value) -> Vec<(u64, u64)> {
    let each = generations.as_array().unwrap().iter();
    each.map(|each| (each["number"].as_u64().unwrap(), each["objects"].as_u64().unwrap())).collect()
}

#[tokio::test]
async fn objects_are_counted_by_generation_and_kept_over_a_restart() {
    let cluster = Cluster::on(Etcd::with_client_certificates()).await;
    let (site, etcd) = (&cluster.site, &cluster.etcd);
    etcd.put("/registry/secrets/default/plain", b"k8s\0\x0a");
    let daemon = site.serve().await;
    let before = json(site.keystead(["key", "list", "--output", "json"]));
    assert_eq!((&before["scan"], &before["generations"][0]["objects"]), (&Value::Null, &Value::Null));

    let report = scan(site, &etcd.arguments());
    assert_eq!(counts(&report["generations"]), [(1, 2), (2, 2)], "{report}");
    assert_eq!(report["generations"][0]["samples"], json!(["secrets/default/a", "secrets/default/b"]));
    assert_eq!(report["generations"][1]["kinds"], json!({ "secrets": 2 }));
    assert_eq!(report["providers"]["aescbc:v1"]["objects"], 1);
    assert_eq!(report["providers"]["kms:v2:vault"]["samples"], json!(["secrets/default/other-kms"]));
    assert_eq!(report["plain_secrets"]["samples"], json!(["secrets/default/plain"]));
    assert_eq!(report["unknown"]["samples"], json!(["secrets/default/garbled"]));
    assert_eq!((&report["recorded"], &report["rewritten"]), (&json!(true), &json!(false)));
    assert!(report["detail"].as_str().unwrap().contains("objects under generation 1: 2"), "{report}");
    assert_eq!(report["source"]["snapshot_sha256"], Value::Null);
    assert!(report["source"]["cluster_id"].as_str().unwrap().len() > 8, "{report}");

    let list = json(site.keystead(["key", "list", "--output", "json"]));
    assert_eq!(counts(&list["generations"]), [(1, 2), (2, 2)]);
    assert_eq!(list["scan"]["source"], report["source"]);
    assert!(daemon.stop().success());
    let daemon = site.serve().await;
    assert_eq!(json(site.keystead(["key", "list", "--output", "json"]))["scan"], list["scan"]);
    let status = site.keystead(["status"]).expect_success();
    assert!(status.contains("older generations may be needed: objects"), "{status}");

    // The same bytes from a file: the daemon need not run, unless it is to keep the outcome.
    let snapshot = ["--snapshot".to_owned(), text(&cluster.snapshot())];
    assert_eq!(scan(site, &snapshot)["generations"], report["generations"]);
    let kept = json(site.keystead(["status", "--output", "json"]));
    assert_eq!(kept["scan"]["source"]["snapshot_sha256"].as_str().unwrap().len(), 64);
    assert!(daemon.stop().success());
    let unkept = scan(site, &[&snapshot[..], &["--no-record".to_owned()]].concat());
    assert_eq!((&unkept["generations"], &unkept["recorded"]), (&report["generations"], &json!(false)));
    site.command(["etcd", "scan"]).args(&snapshot).output().unwrap().expect_failure(3);
}

#[tokio::test]
async fn scan_is_told_to_people_in_eighty_columns() {
    let cluster = Cluster::new().await;
    cluster.etcd.put(&format!("/registry/secrets/default/{}", "n".repeat(250)), b"k8s:enc:kms:v2:edge:\xff\x1b[2J");
    cluster.etcd.put("/registry/secrets/default/\u{1b}[2J", b"k8s:enc:aesgcm:v1:key:x");
    let daemon = cluster.site.serve().await;
    let output = cluster.site.command(["etcd", "scan"]).args(cluster.etcd.arguments()).output().unwrap();
    let shown = output.expect_success();
    for part in
        ["GEN  OBJECTS", "Not under the active generation", "secrets/default/a", "objects under generation 1: 2"]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(!shown.contains('\u{1b}'), "{shown}");
    let long = |line: &&str| line.chars().count() > 80 && !line.contains("nnnn");
    assert_eq!(shown.lines().find(long), None, "{shown}");
    assert!(daemon.stop().success());
}

/// Has the daemon keep a scan of another revision.
async fn keep(daemon: &Daemon, revision: u64) -> Result<(), tonic::Status> {
    let source = ScanSource { revision, cluster_id: 7, member_id: 8, ..ScanSource::default() };
    let request = RecordScanRequest { source: Some(source), ..RecordScanRequest::default() };
    daemon.admin().await.record_scan(request).await.map(drop)
}

/// The revision of the scan that is kept; 0 for none.
async fn kept(daemon: &Daemon) -> u64 {
    daemon.status().await.scan.and_then(|scan| scan.source).map_or(0, |source| source.revision)
}

#[tokio::test]
async fn scan_that_cannot_be_written_is_refused_and_the_one_before_stays() {
    let site = Site::initialized("");
    let mut daemon = site.spawn(&[("FAILPOINTS", "store.before-write=1*off->1*return->off")]);
    daemon.until_serving().await;
    keep(&daemon, 1).await.unwrap();
    let refused = keep(&daemon, 2).await.unwrap_err();
    assert!(refused.message().contains("No space left"), "{refused}");
    assert_eq!(kept(&daemon).await, 1);
    keep(&daemon, 3).await.unwrap();
    assert_eq!(kept(&daemon).await, 3);
    // The key of the record in force is in memory: it takes no token, and what is served is not touched.
    let seed = encrypt(&mut daemon.kms().await, b"seed").await;
    let (tokens, away) = (site.token.folder.join("tokens"), site.token.folder.join("away"));
    std::fs::rename(&tokens, &away).unwrap();
    daemon.kill_role("custodian", rustix::process::Signal::KILL);
    daemon.until("degraded", |status| status.availability == "degraded").await;
    keep(&daemon, 4).await.unwrap();
    assert_eq!(kept(&daemon).await, 4);
    assert_eq!(decrypt(&mut daemon.kms().await, &seed).await.unwrap(), b"seed");
    std::fs::rename(&away, &tokens).unwrap();
    daemon.until("online", |status| status.availability == "online").await;
    keep(&daemon, 5).await.unwrap();
    assert!(daemon.stop().success());
    let daemon = site.serve().await;
    assert_eq!(kept(&daemon).await, 5);
    site.rotate().expect_success();
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn daemon_killed_while_it_keeps_a_scan_serves_with_one_or_the_other() {
    let site = Site::initialized("");
    for name in ["store.half-written", "store.before-sync", "store.before-rename", "store.before-folder-sync"] {
        let mut daemon = site.spawn(&[("KEYSTEAD_KILL_AT", name)]);
        daemon.until_serving().await;
        let before = kept(&daemon).await;
        assert!(keep(&daemon, before + 1).await.is_err(), "{name} was never reached");
        daemon.kill();
        let daemon = site.serve().await;
        let after = kept(&daemon).await;
        assert!(after == before || after == before + 1, "{name}: {before} {after}");
        keep(&daemon, after + 1).await.unwrap();
        assert!(daemon.stop().success());
    }
}
