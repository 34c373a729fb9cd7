//! A key that goes to the cloud and comes home to its token, and what the cloud still has to say then.

use std::fs;

use keystead_wire::admin::v1::GetStatusResponse;
use keystead_wire::kms::v2::EncryptResponse;
use serde_json::Value;
use tonic::Code;

use super::rig::CloudSite;
use crate::daemon::{Daemon, Finished, decrypt, encrypt, until_gone};
use crate::etcd::Etcd;
use crate::roots::run;
use crate::scan::{json, scan};

/// A key made in the token, with the configuration of the cloud put in place and a daemon on it.
async fn at_home() -> (CloudSite, Daemon, EncryptResponse) {
    let site = CloudSite::bare("");
    let cloud = fs::read_to_string(site.site.config()).unwrap();
    site.site.configure(&site.custody(), "");
    site.site.keystead(["init", "--no-recovery"]).expect_success();
    let daemon = site.site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"token").await;
    assert!(daemon.stop().success());
    fs::write(site.site.config(), cloud).unwrap();
    let daemon = site.serve().await;
    (site, daemon, sealed)
}

async fn opens(daemon: &Daemon, sealed: &EncryptResponse) -> Result<Vec<u8>, Code> {
    decrypt(&mut daemon.kms().await, sealed).await.map_err(|status| status.code())
}

async fn until_opens(daemon: &Daemon, sealed: &EncryptResponse) {
    for _ in 0..600 {
        if opens(daemon, sealed).await.is_ok() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("never opened again: {:?}; {}", opens(daemon, sealed).await, daemon.log());
}

fn upstream_down(status: &GetStatusResponse) -> bool {
    status.upstream.as_ref().is_some_and(|upstream| !upstream.up && upstream.down_since > 0)
}

fn told(status: &GetStatusResponse) -> String {
    status.warnings.join("\n")
}

#[tokio::test]
async fn key_goes_to_the_cloud_and_home_with_all_data_readable_at_every_step() {
    let (site, daemon, token) = at_home().await;
    let etcd = Etcd::start();
    etcd.put_secret("a", "edge", &token);
    assert!(told(&daemon.status().await).contains("the next rotation"), "{}", told(&daemon.status().await));
    run(&site.site, "roots add upstream --yes").expect_success();
    let status = daemon.until("in the cloud", |status| status.active_generation == 2).await;
    assert_eq!(status.durable_roots, ["alibaba-kms"]);
    let cloud = encrypt(&mut daemon.kms().await, b"cloud").await;
    etcd.put_secret("b", "edge", &cloud);
    scan(&site.site, &etcd.arguments());
    assert!(
        told(&daemon.status().await).contains("CMK in the token (pkcs11) was taken"),
        "{}",
        told(&daemon.status().await)
    );
    run(&site.site, "roots add upstream --yes").expect_failure(4);
    assert!(daemon.stop().success());

    // Offline nothing comes home.
    let daemon = site.serve().await;
    site.cloud.fault("refuse");
    daemon.until("cut off", |status| status.availability == "degraded").await;
    let refused = run(&site.site, "roots remove upstream --yes --force INC-1").expect_failure(4);
    assert!(refused.contains("cloud"), "{refused}");
    site.cloud.act("clear");
    daemon.until("back", |status| status.availability == "online").await;
    let unproven = run(&site.site, "roots remove upstream --yes").expect_failure(4);
    assert!(unproven.contains("objects under generation 1: 1"), "{unproven}");
    etcd.put_secret("a", "edge", &cloud);
    scan(&site.site, &etcd.arguments());
    run(&site.site, "roots remove upstream --yes").expect_success();
    let status = daemon.status().await;
    assert_eq!((status.active_generation, status.durable_roots.clone()), (3, vec!["pkcs11".to_owned()]));
    let told_now = told(&status);
    assert!(told_now.contains("needed for generation 2 until"), "{told_now}");
    assert!(told_now.contains("root alibaba-kms") && told_now.contains("unknown number"), "{told_now}");
    let home = encrypt(&mut daemon.kms().await, b"home").await;
    let all = [(&token, &b"token"[..]), (&cloud, b"cloud"), (&home, b"home")];
    for (sealed, seed) in all {
        assert_eq!(opens(&daemon, sealed).await.unwrap(), seed);
    }
    // A new version of the cloud key is nothing to follow any more, and rotations stay at home.
    site.cloud.act("rotate-key");
    site.site.rotate().expect_success();
    assert_eq!(daemon.status().await.durable_roots, ["pkcs11"]);

    // The cloud cut, then a restart: fully online.
    site.cloud.fault("refuse");
    let status = daemon.until("cut off", upstream_down).await;
    assert_eq!((status.availability.as_str(), status.reboot.unwrap().survives), ("online", true));
    run(&site.site, "status").expect_success();
    site.site.rotate().expect_success();
    assert!(daemon.stop().success());
    let mut daemon = site.site.spawn(&[]);
    daemon.until_serving().await;
    assert_eq!(daemon.status().await.availability, "online");
    until_opens(&daemon, &cloud).await;
    for (sealed, seed) in all {
        assert_eq!(opens(&daemon, sealed).await.unwrap(), seed);
    }
    let refused = run(&site.site, "roots add upstream --yes --force INC-2").expect_failure(4);
    assert!(refused.contains("cannot be reached"), "{refused}");
    site.cloud.act("clear");
    daemon.until("contact", |status| status.upstream.as_ref().is_some_and(|upstream| upstream.up)).await;

    // Nothing in etcd needs the cloud any more: its table goes.
    let fresh = encrypt(&mut daemon.kms().await, b"fresh").await;
    for name in ["a", "b"] {
        etcd.put_secret(name, "edge", &fresh);
    }
    scan(&site.site, &etcd.arguments());
    assert!(told(&daemon.status().await).contains("take [upstream] out"), "{}", told(&daemon.status().await));
    assert!(daemon.stop().success());
    site.site.configure(&site.custody(), "");
    let daemon = site.site.serve().await;
    let status = daemon.status().await;
    assert_eq!((status.availability.as_str(), status.upstream.is_none()), ("online", true));
    assert!(status.shut.contains("generation 2 cannot be opened"), "{}", status.shut);
    assert!(!told(&status).contains("generation 2"), "nothing needs it: {}", told(&status));
    assert!(status.apiserver_restart.as_ref().unwrap().survives);
    assert_eq!(opens(&daemon, &cloud).await, Err(Code::FailedPrecondition));
    for (sealed, seed) in [(&token, &b"token"[..]), (&home, b"home"), (&fresh, b"fresh")] {
        assert_eq!(opens(&daemon, sealed).await.unwrap(), seed);
    }
    let listed = json(site.site.keystead(["key", "list", "--output", "json"]));
    let faults: Vec<bool> =
        listed["generations"].as_array().unwrap().iter().map(|each| each["fault"] != Value::Null).collect();
    assert_eq!(faults, [false, true, false, false, false]);
    site.site.rotate().expect_success();
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn revocation_after_the_way_home_bites_what_is_rooted_in_the_cloud_and_no_more() {
    let (site, daemon, token) = at_home().await;
    run(&site.site, "roots add upstream --yes").expect_success();
    let cloud = encrypt(&mut daemon.kms().await, b"cloud").await;
    run(&site.site, "roots remove upstream --yes --force test").expect_success();
    let home = encrypt(&mut daemon.kms().await, b"home").await;
    assert_eq!(opens(&daemon, &cloud).await.unwrap(), b"cloud");

    let store = site.site.path().join("store");
    site.cloud.act("disable-key");
    let shut = |status: &GetStatusResponse| told(status).contains("generation 2 cannot be opened");
    let status = daemon.until("told", shut).await;
    assert_eq!(status.availability, "online");
    assert!(told(&status).contains("revoked the key"), "{}", told(&status));
    assert!(!status.apiserver_restart.as_ref().unwrap().survives, "an apiserver that starts reads all Secrets");
    let served = async |daemon: &Daemon| {
        assert_eq!(opens(daemon, &cloud).await, Err(Code::FailedPrecondition));
        for (sealed, seed) in [(&token, &b"token"[..]), (&home, b"home")] {
            assert_eq!(opens(daemon, sealed).await.unwrap(), seed);
        }
        encrypt(&mut daemon.kms().await, b"fresh").await;
    };
    served(&daemon).await;
    daemon.until("shredded", |_| !fs::read_to_string(site.site.store_file()).unwrap().contains("\"sealed\"")).await;
    assert!(store.join("revoked").exists());

    // Neither a kill and an outage, nor its absence from the configuration, lifts it.
    daemon.kill();
    site.cloud.fault("refuse");
    let mut daemon = site.site.spawn(&[]);
    daemon.until_serving().await;
    daemon.until("told", shut).await;
    served(&daemon).await;
    let refused = run(&site.site, "roots add upstream --yes --force test").expect_failure(4);
    assert!(refused.contains("revoked"), "{refused}");
    site.cloud.act("clear");
    site.cloud.act("disable-key");
    site.cloud.act("enable-key");
    until_opens(&daemon, &cloud).await;
    daemon.until("stored", |_| !store.join("revoked").exists()).await;
    assert!(daemon.stop().success());
    site.cloud.fault("refuse");
    let mut daemon = site.site.spawn(&[]);
    daemon.until_serving().await;
    until_opens(&daemon, &cloud).await;
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn way_to_the_cloud_and_home_killed_half_way_is_finished_or_undone() {
    let (site, daemon, token) = at_home().await;
    assert!(daemon.stop().success());
    let mut sealed = vec![token];
    for name in
        ["rotation.intent-written", "rotation.cmk-created", "rotation.prepared", "rotation.verified", "epoch.created"]
    {
        for (change, root) in [("roots add upstream", "alibaba-kms"), ("roots remove upstream", "pkcs11")] {
            let line = format!("{change} --yes --force kill");
            let mut daemon = site.site.spawn(&[("KEYSTEAD_KILL_AT", name)]);
            daemon.until_serving().await;
            let server = daemon.role("server").expect("a server runs");
            daemon.until("online", |status| status.availability == "online").await;
            assert!(!run(&site.site, &line).status.success(), "{name} was never reached");
            until_gone(server);
            daemon.kill();
            let daemon = site.serve().await;
            let undone = name == "rotation.intent-written" || name == "rotation.cmk-created";
            assert_eq!(daemon.status().await.durable_roots == [root], !undone, "{name}: {change}");
            if undone {
                run(&site.site, &line).expect_success();
            }
            assert_eq!(daemon.status().await.durable_roots, [root], "{name}");
            sealed.push(encrypt(&mut daemon.kms().await, b"token").await);
            for each in &sealed {
                until_opens(&daemon, each).await;
            }
            assert!(daemon.stop().success());
        }
    }
}

#[tokio::test]
async fn key_moves_to_another_cloud_key_that_the_configuration_names() {
    let site = CloudSite::initialized("");
    let daemon = site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    assert!(daemon.stop().success());
    let config = fs::read_to_string(site.site.config()).unwrap();
    fs::write(site.site.config(), config.replace(site.cloud.key(), site.cloud.other_key())).unwrap();
    let mut daemon = site.site.spawn(&[]);
    daemon.until_serving().await;
    let status = daemon.until("told", |status| status.availability == "degraded").await;
    assert!(told(&status).contains("`keystead roots add upstream` moves the key"), "{}", told(&status));
    let refused = run(&site.site, "roots remove upstream --yes --force test").expect_failure(4);
    assert!(refused.contains("another cloud key"), "{refused}");
    run(&site.site, "roots add upstream --yes").expect_success();
    let status = daemon.until("moved", |status| status.availability == "online").await;
    let gone = format!("root alibaba-kms {} was taken from the key", site.cloud.key());
    assert!(told(&status).contains(&gone), "{}", told(&status));
    let listed = json(run(&site.site, "roots list --output json"));
    let active: Vec<&Value> =
        listed["roots"].as_array().unwrap().iter().filter(|root| root["opens_active"] == true).collect();
    assert_eq!((active.len(), active[0]["id"].as_str()), (1, Some(site.cloud.other_key())));
    assert_eq!(opens(&daemon, &sealed).await.unwrap(), b"seed");
    assert!(daemon.stop().success());
}
