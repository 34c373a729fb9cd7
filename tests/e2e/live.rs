//! A running etcd as a source: with client certificates, over a bad line, while it is compacted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::cluster::{Cluster, opens, recover, shown};
use crate::daemon::{Finished, Site};
use crate::etcd::Etcd;
use crate::proxy::{Proxy, Then};

/// Keys of [`full`] that are of other providers or in the clear: more than two pages.
const KEYS: usize = 1200;

/// An etcd of more than a page, over which the recovery key's dry run is asked for what it opens.
async fn full() -> (Arc<Cluster>, Vec<String>) {
    let cluster = Cluster::new().await;
    cluster.etcd.put_many(KEYS, 1000);
    let private = cluster.private();
    (Arc::new(cluster), vec!["--private".to_owned(), private, "--dry-run".to_owned()])
}

fn run(site: &Site, parts: &[&[String]]) -> std::process::Output {
    let arguments: Vec<&str> = parts.iter().flat_map(|part| part.iter().map(String::as_str)).collect();
    recover(site, &arguments)
}

fn host(etcd: &Etcd) -> String {
    etcd.endpoint.rsplit('/').next().unwrap().to_owned()
}

fn at(proxy: &Proxy) -> [String; 2] {
    ["--etcd".to_owned(), format!("http://{}", proxy.address)]
}

#[tokio::test]
async fn store_is_recovered_from_a_running_etcd_with_client_certificates() {
    let cluster = Cluster::on(Etcd::with_client_certificates()).await;
    let new = Site::bare("");
    let then = ["--private".to_owned(), cluster.private(), "--no-recovery".to_owned()];
    let report = shown(&run(&new, &[&cluster.etcd.arguments(), &then]), 0);
    assert_eq!((opens(&report, 0), opens(&report, 1)), ((2, 2), (2, 2)), "{report}");
    assert_eq!(report["other"]["other_plugins"], 1, "{report}");
    cluster.opens_at(&new).await;
}

#[tokio::test]
async fn wrong_certificates_and_addresses_are_told_apart() {
    let etcd = Etcd::with_client_certificates();
    let site = Site::bare("");
    let (right, plain) = (etcd.endpoint.clone(), etcd.endpoint.replace("https", "http"));
    let file = |name| etcd.file(name);
    let attempt =
        |code, arguments: &[&str]| recover(&site, &[arguments, &["--no-recovery"]].concat()).expect_failure(code);
    let (ca, other) = (file("ca.pem"), file("other-ca.pem"));
    let (cert, key) = (file("client.pem"), file("client.key"));
    let (stranger, stranger_key) = (file("stranger.pem"), file("stranger.key"));
    let client = ["--etcd-cert", cert.as_str(), "--etcd-key", key.as_str()];
    let with = |address: &str, ca: &str, client: &[&str], code: i32| {
        attempt(code, &[&["--etcd", address, "--etcd-cacert", ca], client].concat())
    };
    // Right in everything: only that there is nothing of ours.
    assert!(with(&right, &ca, &client, 1).contains("no object of keyring"));

    assert!(with(&right, &other, &client, 1).contains("not signed by --etcd-cacert"));
    assert!(with(&right, &ca, &[], 1).contains("client certificate"));
    let strangers = with(&right, &ca, &["--etcd-cert", &stranger, "--etcd-key", &stranger_key], 1);
    assert!(strangers.contains("client certificate"), "{strangers}");
    let host = with(&right.replace("127.0.0.1", "127.0.0.2"), &ca, &client, 1);
    assert!(host.contains("name one of those in it") || host.contains("is etcd running"), "{host}");
    with(&right, &ca, &["--etcd-cert", &cert, "--etcd-key", &stranger_key], 2);
    assert!(with(&right, &key, &client, 1).contains("name the authority"));
    assert!(with(&right, &file("nowhere.pem"), &client, 2).contains("nowhere.pem"));
    assert!(attempt(2, &["--etcd", &right]).contains("--etcd-cacert"));
    assert!(attempt(2, &["--etcd", "http://192.0.2.1:2379"]).contains("in the clear"));
    // TLS is wanted there.
    attempt(1, &["--etcd", &plain]);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(attempt(1, &["--etcd", &format!("http://{nobody}")]).contains("is etcd running"));
}

#[tokio::test]
async fn revision_compacted_between_two_pages_is_read_anew() {
    let (cluster, then) = full().await;
    let reference = Proxy::start(host(&cluster.etcd), |_| Then::Pass);
    let before = shown(&run(&cluster.site, &[&at(&reference), &then]), 0);
    assert!(before["other"]["other_providers"].as_u64().unwrap() >= KEYS as u64, "{before}");

    // Weak: the proxy outlives the test, and etcd must not.
    let (done, compacting) = (AtomicBool::new(false), Arc::downgrade(&cluster));
    let proxy = Proxy::start(host(&cluster.etcd), move |bytes| {
        // Within the first page, before the second is asked for.
        if bytes > 50_000 && !done.swap(true, Ordering::SeqCst) {
            compacting.upgrade().expect("the test waits").etcd.compact();
        }
        Then::Pass
    });
    let after = shown(&run(&cluster.site, &[&at(&proxy), &then]), 0);
    assert!(proxy.bytes() > reference.bytes() + 100_000, "{} {}", proxy.bytes(), reference.bytes());
    assert_eq!((opens(&after, 0), opens(&after, 1)), ((2, 2), (2, 2)), "{after}");
    let others = |report: &Value| report["other"]["other_providers"].as_u64().unwrap();
    // The key that compacting wrote, and none twice.
    assert_eq!(others(&after), others(&before) + 1);
}

#[tokio::test]
async fn lost_connection_is_made_again_and_a_dead_one_given_up() {
    let (cluster, then) = full().await;
    let whole = shown(&run(&cluster.site, &[&cluster.etcd.arguments(), &then]), 0);

    let cut = AtomicBool::new(false);
    let proxy = Proxy::start(host(&cluster.etcd), move |bytes| {
        if bytes > 1_000_000 && !cut.swap(true, Ordering::SeqCst) { Then::Cut } else { Then::Pass }
    });
    let report = shown(&run(&cluster.site, &[&at(&proxy), &then]), 0);
    assert_eq!(report, whole);
    assert_eq!(proxy.connections(), 2);

    let proxy = Proxy::start(host(&cluster.etcd), |bytes| if bytes > 1_000_000 { Then::Cut } else { Then::Pass });
    let patience = ["--etcd-timeout".to_owned(), "2".to_owned()];
    let error = run(&cluster.site, &[&at(&proxy), &then, &patience]).expect_failure(1);
    assert!(error.contains("no answer") && error.contains("2 s"), "{error}");
    assert!(proxy.connections() > 2, "{}", proxy.connections());

    // Taken to be lost at once if it has never answered.
    let proxy = Proxy::start(host(&cluster.etcd), |_| Then::Cut);
    run(&cluster.site, &[&at(&proxy), &then]).expect_failure(1);
    cluster.etcd.freeze();
    run(&cluster.site, &[&cluster.etcd.arguments(), &then, &patience]).expect_failure(1);
}

#[tokio::test]
async fn objects_too_long_for_one_answer_are_read_in_smaller_pages() {
    let (cluster, then) = full().await;
    cluster.etcd.put_many(40, 1_000_000);
    let report = shown(&run(&cluster.site, &[&cluster.etcd.arguments(), &then]), 0);
    assert_eq!((opens(&report, 0), opens(&report, 1)), ((2, 2), (2, 2)), "{report}");
    assert!(report["other"]["other_providers"].as_u64().unwrap() >= KEYS as u64, "{report}");
}

#[tokio::test]
async fn unix_socket_and_prefixes_are_taken() {
    let cluster = Cluster::on(Etcd::with_socket()).await;
    cluster.etcd.put("/elsewhere/secrets/default/a", b"x");
    let then = ["--private".to_owned(), cluster.private(), "--dry-run".to_owned()];
    let others = |prefixes: &[&str]| {
        let prefixes: Vec<String> =
            prefixes.iter().flat_map(|prefix| ["--prefix".to_owned(), (*prefix).to_owned()]).collect();
        let report = shown(&run(&cluster.site, &[&["--etcd".to_owned(), cluster.etcd.socket()], &then, &prefixes]), 0);
        report["other"]["other_providers"].as_u64().unwrap()
    };
    let all = others(&[]);
    assert_eq!(others(&["/registry/"]), all - 1);
    assert_eq!(others(&["/registry/secrets/", "/registry", "/elsewhere/"]), all);
    let snapshot = cluster.snapshot();
    let arguments = ["--snapshot".to_owned(), snapshot.to_str().unwrap().to_owned()];
    let restricted = ["--prefix".to_owned(), "/registry/".to_owned()];
    let report = shown(&run(&cluster.site, &[&arguments, &then, &restricted]), 0);
    assert_eq!(report["other"]["other_providers"].as_u64().unwrap(), all - 1);
}
