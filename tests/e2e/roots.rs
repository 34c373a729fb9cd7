//! `keystead roots add|remove|list` on a token: a recovery key for a running cluster, another one in its place, none; and
//! what each root still opens meanwhile.

use std::fs;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::cluster::{Cluster, keygen, opens, recover, shown, text};
use crate::daemon::{Finished, Site, decrypt, encrypt, until_gone};
use crate::etcd::Etcd;
use crate::scan::{json, scan};

pub fn run(site: &Site, line: &str) -> std::process::Output {
    site.command([]).args(line.split_whitespace()).output().unwrap()
}

fn list(site: &Site) -> Value {
    json(run(site, "roots list --output json"))
}

/// Objects that a root still opens, and whether the active generation has it.
fn root(site: &Site, kind: &str, opens_active: bool) -> Value {
    let roots = list(site)["roots"].take();
    let fits = |root: &&Value| root["kind"] == kind && root["opens_active"] == opens_active;
    roots.as_array().unwrap().iter().find(fits).unwrap_or_else(|| panic!("no such root: {roots}")).clone()
}

fn warnings(site: &Site) -> String {
    json(run(site, "status --output json"))["warnings"].to_string()
}

#[tokio::test]
async fn recovery_key_is_added_to_a_running_cluster_and_opens_what_is_written_afterwards() {
    let (site, etcd) = (Site::initialized(""), Etcd::start());
    let (private, public) = keygen(&site, "added");
    let daemon = site.serve().await;
    let old = encrypt(&mut daemon.kms().await, &[1; 32]).await;
    etcd.put_secret("a", "edge", &old);
    assert!(warnings(&site).contains("roots add recovery"), "{}", warnings(&site));

    run(&site, &format!("roots add recovery {public}")).expect_failure(2);
    run(&site, "roots add recovery /nonexistent.pem --yes").expect_failure(2);
    run(&site, &format!("roots add recovery {private} --yes")).expect_failure(2);
    let made = json(run(&site, &format!("roots add recovery {public} --yes --output json")));
    assert_eq!(made["steps"], json!(["prepared", "verified", "activated"]));
    let kinds: Vec<&Value> = made["generation"]["roots"].as_array().unwrap().iter().map(|root| &root["kind"]).collect();
    assert_eq!(kinds, ["pkcs11", "recovery"]);
    assert!(!warnings(&site).contains("one durable root"), "{}", warnings(&site));
    assert_eq!(decrypt(&mut daemon.kms().await, &old).await.unwrap(), [1; 32]);
    let again = run(&site, &format!("roots add recovery {public} --yes")).expect_failure(4);
    assert!(again.contains("already"), "{again}");

    // Not what was written before: that is said, until it is rewritten.
    let listed = list(&site);
    assert_eq!((&listed["on_one_root"], &listed["roots"][0]["objects"]), (&json!([1]), &Value::Null));
    scan(&site, &etcd.arguments());
    assert_eq!(root(&site, "pkcs11", false)["objects"], 1);
    assert_eq!(root(&site, "recovery", true)["objects"], 0);
    let new = encrypt(&mut daemon.kms().await, &[1; 32]).await;
    etcd.put_secret("a", "edge", &new);
    scan(&site, &etcd.arguments());
    assert_eq!(
        (&root(&site, "pkcs11", false)["objects"], &root(&site, "recovery", true)["objects"]),
        (&json!(0), &json!(1))
    );
    let listed = list(&site);
    assert!(listed["scan"]["rewritten_since"].is_string(), "{listed}");
    let told = run(&site, "roots list").expect_success();
    assert!(told.contains("proven since") && told.contains("Backups of etcd"), "{told}");
    assert!(told.lines().all(|line| line.chars().count() <= 80), "{told}");

    // Token and store are gone: the added key opens what etcd holds.
    let snapshot = text(&etcd.snapshot(&site.path().join("snapshot.db")));
    assert!(daemon.stop().success());
    let other = Site::bare("");
    let report = shown(&recover(&other, &["--snapshot", &snapshot, "--private", &private, "--no-recovery"]), 1);
    assert_eq!(opens(&report, 0), (1, 1), "{report}");
    // The snapshot holds what stood there before as well: that the token alone opens.
    assert_eq!(report["not_recovered"].as_array().unwrap().len(), 1, "{report}");
    let daemon = other.serve().await;
    assert_eq!(decrypt(&mut daemon.kms().await, &new).await.unwrap(), [1; 32]);
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn replaced_recovery_key_is_said_to_be_needed_until_every_secret_is_rewritten() {
    let cluster = Cluster::new().await;
    let (site, etcd) = (&cluster.site, &cluster.etcd);
    let (private, public) = keygen(site, "new");
    let daemon = site.serve().await;
    let other = run(site, &format!("roots add recovery {public} --yes")).expect_failure(4);
    assert!(other.contains("--replace"), "{other}");
    // The guard of every rotation.
    let unproven = run(site, &format!("roots add recovery {public} --replace --yes")).expect_failure(4);
    assert!(unproven.contains("etcd scan"), "{unproven}");
    run(site, &format!("roots add recovery {public} --replace --yes --force INC-7")).expect_success();
    let removed = root(site, "recovery", false);
    assert_eq!((&removed["removed"], &removed["objects"]), (&json!(true), &Value::Null));
    assert!(warnings(site).contains("no scan since the last activation"), "{}", warnings(site));

    etcd.delete("garbled");
    scan(site, &etcd.arguments());
    assert_eq!(root(site, "recovery", false)["objects"], 4);
    assert!(warnings(site).contains("still opens 4 objects"), "{}", warnings(site));
    let doctor = String::from_utf8(run(site, "doctor --only store").stdout).unwrap();
    let doctor = doctor.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(doctor.contains("still opens 4 objects"), "{doctor}");
    // Another daemon tells the same.
    assert!(daemon.stop().success());
    let daemon = site.serve().await;
    assert_eq!(root(site, "recovery", false)["objects"], 4);

    let fresh = encrypt(&mut daemon.kms().await, &[9; 32]).await;
    for name in ["a", "b", "c", "d"] {
        etcd.put_secret(name, "edge", &fresh);
    }
    scan(site, &etcd.arguments());
    assert_eq!(
        (&root(site, "recovery", false)["objects"], &root(site, "recovery", true)["objects"]),
        (&json!(0), &json!(4))
    );
    assert!(!warnings(site).contains("was taken from the key"), "{}", warnings(site));
    // A generation made before has no wrap for it: the command says so.
    run(site, &format!("recovery verify --private {private}")).expect_failure(1);

    let last = run(site, "roots remove recovery --yes").expect_failure(4);
    assert!(last.contains("--leave-one-root"), "{last}");
    run(site, "roots remove recovery --leave-one-root --yes").expect_success();
    assert_eq!(daemon.status().await.durable_roots, ["pkcs11"]);
    run(site, "roots remove recovery --leave-one-root --yes").expect_failure(4);
    // The choice is the record's: rotations keep it, and so does a daemon that is started anew.
    assert!(daemon.stop().success());
    let daemon = site.serve().await;
    site.rotate().expect_success();
    assert_eq!(daemon.status().await.durable_roots, ["pkcs11"]);

    // Who did what: each with its intent and its outcome.
    let trail = run(site, "audit query --action change-roots --output json").expect_success();
    for part in ["\"intent\"", "\"done\"", "\"failed-precondition\"", "\"INC-7\"", "\"recovery\""] {
        assert!(trail.contains(part), "{part}: {trail}");
    }
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn roots_of_a_token_without_a_cloud_are_refused_with_what_to_do() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let refused = run(&site, "roots add upstream --yes").expect_failure(4);
    assert!(refused.contains("no [upstream]"), "{refused}");
    let refused = run(&site, "roots remove upstream --yes").expect_failure(4);
    assert!(refused.contains("custody already"), "{refused}");
    run(&site, "roots remove recovery --yes --leave-one-root").expect_failure(4);
    assert_eq!(daemon.status().await.generations, 1);
    // While custody is away nothing is changed.
    let (_, public) = keygen(&site, "late");
    let (tokens, away) = (site.token.folder.join("tokens"), site.token.folder.join("away"));
    fs::rename(&tokens, &away).unwrap();
    daemon.kill_role("custodian", Signal::KILL);
    daemon.until("degraded", |status| status.availability == "degraded").await;
    let refused = run(&site, &format!("roots add recovery {public} --yes")).expect_failure(4);
    assert!(refused.contains("custody"), "{refused}");
    fs::rename(&away, &tokens).unwrap();
    daemon.until("online", |status| status.availability == "online").await;
    run(&site, &format!("roots add recovery {public} --yes")).expect_success();
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn change_of_roots_killed_at_every_failpoint_resumes_or_rolls_back_with_its_choice() {
    let site = Site::initialized("");
    let keys = ["one", "two"].map(|name| keygen(&site, name).1);
    let mut sealed = Vec::new();
    for (round, name) in keystead::failpoint::NAMES.iter().enumerate() {
        let mut daemon = site.spawn(&[("KEYSTEAD_KILL_AT", name)]);
        daemon.until_serving().await;
        let server = daemon.role("server").expect("a server runs");
        sealed.push(encrypt(&mut daemon.kms().await, name.as_bytes()).await);
        let before = daemon.status().await;
        let public = &keys[round % 2];
        let output = run(&site, &format!("roots add recovery {public} --replace --yes --force kill"));
        assert!(!output.status.success(), "{name} was never reached");
        until_gone(server);
        daemon.kill();

        let daemon = site.serve().await;
        let after = daemon.status().await;
        let active = json(run(&site, "key describe --output json"));
        let wrapped = active["roots"].as_array().unwrap().iter().map(|root| root["id"].clone()).nth(1);
        let opened_by = wrapped.unwrap_or_default();
        if after.active_key_id == before.active_key_id {
            // Rolled back: the next generation has the roots that this one has.
            site.rotate().expect_success();
            let next = json(run(&site, "key describe --output json"));
            let id = next["roots"].as_array().unwrap().iter().map(|root| root["id"].clone()).nth(1).unwrap_or_default();
            assert_eq!(id, opened_by, "{name}: the choice of a rotation that was rolled back is kept");
            run(&site, &format!("roots add recovery {public} --replace --yes --force again")).expect_success();
        } else {
            assert_ne!(opened_by, Value::Null, "{name}");
        }
        let again = run(&site, &format!("roots add recovery {public} --replace --yes --force same")).expect_failure(4);
        assert!(again.contains("already"), "{name}: {again}");
        for encrypted in &sealed {
            decrypt(&mut daemon.kms().await, encrypted).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        assert!(daemon.stop().success(), "{name}");
    }
}
