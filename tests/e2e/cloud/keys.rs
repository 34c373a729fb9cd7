//! What an owner does with the key: rotates it in the cloud, moves it there from the token, gives a cut-off site more time.

use std::fs;

use tonic::Code;

use super::rig::{CloudSite, Vendor};
use crate::clients::kms_code;
use crate::daemon::{Finished, decrypt, encrypt};

#[tokio::test]
async fn new_version_of_the_cloud_key_makes_a_generation_and_none_is_made_offline() {
    let site = CloudSite::initialized("");
    let daemon = site.serve().await;
    let before = daemon.status().await.active_key_id;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    assert!(daemon.stop().success());
    site.cloud.act("rotate-key");
    let daemon = site.serve().await;
    let status = daemon.until("followed", |status| status.active_generation == 2).await;
    assert_ne!(status.active_key_id, before);
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");

    site.cloud.fault("refuse");
    daemon.until("cut off", |status| status.availability == "degraded").await;
    let refused = site.site.keystead(["key", "rotate", "--yes"]).expect_failure(4);
    assert!(refused.contains("cloud"), "{refused}");
    assert_eq!(daemon.status().await.active_key_id, status.active_key_id);
    // Both generations come back without the cloud.
    assert!(daemon.stop().success());
    let mut daemon = site.site.spawn(&[]);
    daemon.until_serving().await;
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
}

/// IBM's names the newest version in each unwrap, AWS's only in a description, which a start asks for.
#[tokio::test]
async fn new_version_is_followed_on_the_other_clouds_as_well() {
    for vendor in [Vendor::Ibm, Vendor::Aws] {
        let site = CloudSite::initialized_at(vendor, "");
        let mut daemon = site.serve().await;
        let before = daemon.status().await.active_key_id;
        let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
        site.cloud.act("rotate-key");
        if vendor == Vendor::Aws {
            assert!(daemon.stop().success());
            daemon = site.serve().await;
        }
        let status = daemon.until("followed", |status| status.active_generation == 2).await;
        assert_ne!(status.active_key_id, before);
        assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
        // Once: what was followed is no news any more.
        let contact = status.upstream.unwrap().last_contact;
        let renewed = |status: &keystead_wire::admin::v1::GetStatusResponse| {
            status.upstream.as_ref().is_some_and(|upstream| upstream.last_contact > contact + 1)
        };
        let status = daemon.until("renewed since", renewed).await;
        assert_eq!((status.active_generation, status.generations), (2, 2));
        assert!(status.upstream.unwrap().pending_version.is_empty());
        println!("{:<8} new key version: generation 2, once", vendor.name());
    }
}

#[tokio::test]
async fn announced_version_waits_for_a_rotation() {
    let site = CloudSite::initialized("on_key_version = \"announce\"");
    site.cloud.act("rotate-key");
    let daemon = site.serve().await;
    let pending = |status: &keystead_wire::admin::v1::GetStatusResponse| {
        status.upstream.as_ref().is_some_and(|upstream| !upstream.pending_version.is_empty())
    };
    let status = daemon.until("announced", pending).await;
    assert_eq!(status.active_generation, 1);
    site.site.keystead(["key", "rotate", "--yes"]).expect_success();
    daemon.until("taken up", |status| status.active_generation == 2 && !pending(status)).await;
}

#[tokio::test]
async fn keyring_of_a_token_moves_to_the_cloud_by_a_rotation() {
    let site = CloudSite::bare("");
    let cloud = fs::read_to_string(site.site.config()).unwrap();
    site.site.configure(&site.custody(), "");
    site.site.keystead(["init", "--no-recovery"]).expect_success();
    let daemon = site.site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    assert!(daemon.stop().success());

    fs::write(site.site.config(), cloud).unwrap();
    let daemon = site.site.serve().await;
    site.site.keystead(["key", "rotate", "--yes"]).expect_success();
    let status = daemon.until("moved", |status| status.active_generation == 2).await;
    assert_eq!(status.durable_roots, ["alibaba-kms"]);
    // What each root still opens.
    let roots = site.site.keystead(["roots", "list", "--output", "json"]).expect_success();
    let roots: serde_json::Value = serde_json::from_str(&roots).unwrap();
    let opens = |kind: &str| {
        let roots = roots["roots"].as_array().unwrap();
        roots.iter().find(|root| root["kind"] == kind).map(|root| (root["id"].clone(), root["generations"].clone()))
    };
    assert_eq!(opens("alibaba-kms").unwrap(), (site.cloud.key().into(), serde_json::json!([2])));
    assert_eq!(opens("pkcs11").unwrap().1, serde_json::json!([1]));
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
    let moved = encrypt(&mut daemon.kms().await, b"moved").await;
    site.cloud.fault("refuse");
    assert!(daemon.stop().success());
    let mut daemon = site.site.spawn(&[]);
    daemon.until_serving().await;
    for (sealed, seed) in [(&sealed, b"seed".as_slice()), (&moved, b"moved")] {
        assert_eq!(decrypt(&mut daemon.kms().await, sealed).await.unwrap(), seed);
    }
}

#[tokio::test]
async fn lease_that_ran_out_is_extended_by_a_signed_grant_once() {
    let site = CloudSite::bare("");
    let at = |name: &str| site.site.path().join(name).display().to_string();
    let run = |line: &str| {
        let mut command = site.site.command([]);
        command.args(line.split_whitespace()).output().unwrap()
    };
    run(&format!("recovery keygen --out {} --public-out {}", at("grant.key"), at("grant.pem"))).expect_success();
    site.configure(&format!("lease = \"4s\"\ngrant_key = {:?}", at("grant.pem")));
    run("init --no-recovery").expect_success();
    let daemon = site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    site.cloud.fault("refuse");
    daemon.until("expired", |status| status.availability == "expired").await;
    assert_eq!(kms_code(&site.site).await, Code::FailedPrecondition);

    fs::write(at("status.json"), run("status --output json").stdout).unwrap();
    run(&format!(
        "lease grant --key {} --status {} --for 2h --out {}",
        at("grant.key"),
        at("status.json"),
        at("grant")
    ))
    .expect_success();
    let mut forged = fs::read(at("grant")).unwrap();
    let last = forged.len() - 5;
    forged[last] ^= 1;
    fs::write(at("forged"), forged).unwrap();
    run(&format!("lease extend --grant {}", at("forged"))).expect_failure(4);
    run(&format!("lease extend --grant {}", at("grant"))).expect_success();
    let status = daemon.until("serving again", |status| status.availability == "degraded").await;
    let left = status.upstream.unwrap().lease_remaining_seconds;
    assert!((7100..=7204).contains(&left), "{left}");
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
    run(&format!("lease extend --grant {}", at("grant"))).expect_failure(4);

    // And no grant lifts a revocation.
    site.cloud.act("clear");
    site.cloud.act("disable-key");
    daemon.until("revoked", |status| status.availability == "revoked").await;
    fs::write(at("status.json"), run("status --output json").stdout).unwrap();
    run(&format!(
        "lease grant --key {} --status {} --for 2h --out {}",
        at("grant.key"),
        at("status.json"),
        at("second")
    ))
    .expect_success();
    let refused = run(&format!("lease extend --grant {}", at("second"))).expect_failure(4);
    assert!(refused.contains("revoked"), "{refused}");
}

/// What a thief, a mix-up or an old drawer may come up with. Everything is made and applied while the cloud is away.
#[tokio::test]
async fn grants_of_others_for_others_and_for_another_epoch_are_refused() {
    let site = CloudSite::bare("");
    let at = |name: &str| site.site.path().join(name).display().to_string();
    let run = |line: &str| {
        let mut command = site.site.command([]);
        command.args(line.split_whitespace()).output().unwrap()
    };
    for key in ["owner", "stranger"] {
        run(&format!("recovery keygen --out {} --public-out {}", at(key), at(&format!("{key}.pem")))).expect_success();
    }
    let settings = format!("lease = \"3s\"\ngrant_key = {:?}", at("owner.pem"));
    let other = CloudSite::initialized(&settings);
    site.configure(&settings);
    run("init --no-recovery").expect_success();
    let daemon = site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    site.cloud.fault("refuse");
    daemon.until("expired", |status| status.availability == "expired").await;

    let beside = other.serve().await;
    fs::write(at("other.json"), other.site.keystead(["status", "--output", "json"]).stdout).unwrap();
    fs::write(at("status.json"), run("status --output json").stdout).unwrap();
    assert!(beside.stop().success());
    for (key, status, grant) in [
        ("stranger", "status.json", "of-another-signer"),
        ("owner", "other.json", "for-another-key"),
        ("owner", "status.json", "first"),
        ("owner", "status.json", "second"),
    ] {
        let (key, status, grant) = (at(key), at(status), at(grant));
        run(&format!("lease grant --key {key} --status {status} --for 1h --out {grant}")).expect_success();
    }
    fs::write(at("long"), vec![b'x'; 1 << 20]).unwrap();
    fs::write(at("empty"), "").unwrap();
    for wrong in ["of-another-signer", "for-another-key", "long", "empty", "status.json"] {
        let refused = run(&format!("lease extend --grant {}", at(wrong)));
        assert!(!refused.status.success(), "{wrong}");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        println!("{wrong:<20} exit {:?}: {}", refused.status.code(), said.lines().next().unwrap_or_default());
        assert_eq!(daemon.status().await.availability, "expired", "{wrong}");
    }
    run(&format!("lease extend --grant {}", at("first"))).expect_success();
    daemon.until("serving", |status| status.availability == "degraded").await;
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
    // Both were made for the epoch that the first one has ended.
    let refused = run(&format!("lease extend --grant {}", at("second"))).expect_failure(4);
    assert!(refused.contains("epoch"), "{refused}");
    // Nor after a restart.
    assert!(daemon.stop().success());
    let mut daemon = site.site.spawn(&[]);
    daemon.until_serving().await;
    run(&format!("lease extend --grant {}", at("first"))).expect_failure(4);
    run(&format!("lease extend --grant {}", at("second"))).expect_failure(4);
}

#[tokio::test]
async fn lost_store_is_rebuilt_with_its_root_in_the_cloud() {
    let site = CloudSite::bare("");
    let at = |name: &str| site.site.path().join(name).display().to_string();
    let run = |line: &str| {
        let mut command = site.site.command([]);
        command.args(line.split_whitespace()).output().unwrap()
    };
    run(&format!("recovery keygen --out {} --public-out {}", at("private.pem"), at("public.pem"))).expect_success();
    run("init --no-recovery").expect_success();
    let daemon = site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    run(&format!("roots rescue --to {} --out {}", at("public.pem"), at("rescue"))).expect_success();
    assert!(daemon.stop().success());
    fs::remove_dir_all(site.site.path().join("store")).unwrap();

    let line = format!("recover --rescue {} --private {} --no-recovery --output json", at("rescue"), at("private.pem"));
    let recovered = run(&line).expect_success();
    assert!(recovered.contains("alibaba-kms"), "{recovered}");
    let daemon = site.serve().await;
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
    let status = daemon.status().await;
    assert_eq!((status.active_generation, status.durable_roots), (2, vec!["alibaba-kms".to_owned()]));
    // Both without the cloud.
    site.cloud.fault("refuse");
    assert!(daemon.stop().success());
    let mut daemon = site.site.spawn(&[]);
    daemon.until_serving().await;
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
}
