//! `keystead recover`, `roots rescue`: what is left after a disk, a token or both are gone, and what a forger can do about it.

use std::fs;

use keystead_core::annotation::{self, Annotation};
use keystead_core::envelope::EnvelopeKey;
use keystead_core::hpke_p256::P256PublicKey;
use keystead_core::{EnvelopeContext, Kek, WrapContext};
use keystead_wire::kms::v2::EncryptResponse;
use rand_core::UnwrapErr;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::cluster::{Cluster, keygen, opens, recover, shown, text};
use crate::daemon::{Finished, Site, decrypt};

#[tokio::test]
async fn lost_state_folder_with_the_living_token_comes_back_from_a_snapshot() {
    let cluster = Cluster::new().await;
    let snapshot = text(&cluster.snapshot());
    let site = &cluster.site;
    // While there is a store, nothing is done to it.
    let before = fs::read(site.store_file()).unwrap();
    let refused = recover(site, &["--snapshot", &snapshot, "--no-recovery"]).expect_failure(1);
    assert!(refused.contains("--replace-store"), "{refused}");
    assert_eq!(fs::read(site.store_file()).unwrap(), before);

    fs::remove_dir_all(site.path().join("store")).unwrap();
    let lost = site.keystead(["init", "--no-recovery"]).expect_failure(1);
    assert!(lost.contains("keystead recover"), "{lost}");
    let dry = shown(&recover(site, &["--snapshot", &snapshot, "--dry-run"]), 0);
    assert_eq!(dry["store"], Value::Null);
    assert!(!site.store_file().exists());

    let public = text(&site.path().join("recovery.pub"));
    let report = shown(&recover(site, &["--snapshot", &snapshot, "--recovery", &public]), 0);
    assert_eq!((opens(&report, 0), opens(&report, 1)), ((2, 2), (2, 2)), "{report}");
    assert_eq!(report["recovered"][0]["origin"], "proven");
    assert_eq!(report["recovered"][0]["root"], "pkcs11");
    assert_eq!(report["store"]["active_generation"], 3);
    assert_eq!(report["store"]["durable_roots"], json!(["pkcs11", "recovery"]));
    assert_eq!(report["other"]["malformed"], 1);
    assert_eq!(report["other"]["other_plugins"], 1);
    assert!(report["other"]["other_providers"].as_u64().unwrap() >= 44, "{report}");
    cluster.opens_at(site).await;

    // The store from before the loss is worthless now, and a second recovery keeps the record it replaces.
    let now = fs::read(site.store_file()).unwrap();
    fs::write(site.store_file(), &before).unwrap();
    let daemon = site.spawn(&[]);
    let status = daemon.until("sealed", |status| !status.reason.is_empty() && status.reason != "starting").await;
    assert!(status.reason.contains("stale"), "{}", status.reason);
    assert!(daemon.stop().success());
    fs::write(site.store_file(), &now).unwrap();
    let report = shown(&recover(site, &["--snapshot", &snapshot, "--no-recovery", "--replace-store"]), 0);
    let aside = report["store"]["set_aside"].as_str().unwrap();
    assert_eq!(fs::read(aside).unwrap(), now);
    cluster.opens_at(site).await;
}

#[tokio::test]
async fn recovery_key_and_a_snapshot_are_enough_on_a_new_token() {
    let cluster = Cluster::new().await;
    let snapshot = text(&cluster.snapshot());
    let copied = cluster.site.path().join("copied.db");
    let new = Site::bare("");
    // On the offline machine there is no token to ask.
    fs::rename(new.path().join("token"), new.path().join("away")).unwrap();
    let dry = shown(&recover(&new, &["--snapshot", &snapshot, "--private", &cluster.private(), "--dry-run"]), 0);
    assert_eq!((opens(&dry, 0), opens(&dry, 1)), ((2, 2), (2, 2)), "{dry}");
    assert_eq!(dry["recovered"][1]["origin"], "unproven");
    fs::rename(new.path().join("away"), new.path().join("token")).unwrap();

    // The new token alone opens nothing, and neither does the key of another keyring.
    let report = shown(&recover(&new, &["--snapshot", &snapshot, "--no-recovery"]), 1);
    assert_eq!(report["not_recovered"][0]["reason"], "would-not-open", "{report}");
    let (other, _) = keygen(&new, "other");
    let report = shown(&recover(&new, &["--snapshot", &snapshot, "--private", &other, "--dry-run"]), 1);
    assert_eq!(report["not_recovered"][0]["reason"], "no-root", "{report}");
    assert!(!new.store_file().exists());

    let report = shown(&recover(&new, &["--snapshot", &snapshot, "--private", &cluster.private(), "--no-recovery"]), 0);
    assert_eq!(report["recovered"][0]["origin"], "unproven");
    assert_eq!(report["recovered"][0]["root"], "recovery");
    cluster.opens_at(&new).await;

    // etcd's own file, copied while etcd is stopped, serves as well if one says so.
    let copied = text(&cluster.etcd.stop_and_copy(&copied));
    let private = text(&cluster.site.path().join("recovery.pem"));
    let arguments = ["--snapshot", copied.as_str(), "--private", private.as_str(), "--dry-run"];
    assert!(recover(&new, &arguments).expect_failure(1).contains("--skip-hash-check"));
    let dry = shown(&recover(&new, &[&arguments[..], &["--skip-hash-check"]].concat()), 0);
    assert_eq!((opens(&dry, 0), opens(&dry, 1)), ((2, 2), (2, 2)), "{dry}");
}

/// An Encrypt answer under a KEK of the attacker's, who knows the recovery public key and can write etcd.
fn forge(public: &P256PublicKey, genuine: &EncryptResponse, envelope: bool) -> EncryptResponse {
    let kek = Kek::take(&mut [0x66; 32]);
    let old = Annotation::decode(&genuine.annotations[annotation::KEY]).unwrap();
    let context = WrapContext {
        keyring: "test".parse().unwrap(),
        generation: old.key_id.generation(),
        key_id: old.key_id.clone(),
        root_kind: old.wraps[0].root_kind,
        root_id: old.wraps[0].root_id.clone(),
    };
    let wrap = public.recovery_wrap(context.clone(), &kek, &mut UnwrapErr(getrandom::SysRng));
    let wraps = vec![old.wraps[0].clone(), wrap];
    let forged = Annotation { key_id: old.key_id.clone(), commitment: kek.commitment(), wraps };
    let mut answer = genuine.clone();
    answer.annotations.insert(annotation::KEY.into(), forged.encode().unwrap());
    if envelope {
        let context = EnvelopeContext::new(&context.keyring, context.generation, &old.key_id);
        answer.ciphertext = EnvelopeKey::new(&kek).encrypt(&context, [7; 24], &[0x66; 32]);
    }
    answer
}

#[tokio::test]
async fn forged_annotations_are_passed_over_or_contested_and_never_taken() {
    let cluster = Cluster::new().await;
    let (site, private) = (&cluster.site, cluster.private());
    let public = P256PublicKey::from_pem(&fs::read_to_string(site.path().join("recovery.pub")).unwrap()).unwrap();
    let genuine = &cluster.secrets[1].1;
    let commitment = |report: &Value| report["recovered"][1]["commitment"].as_str().unwrap().to_owned();
    let snapshot = text(&cluster.snapshot());
    let offline = |snapshot: &str| recover(site, &["--snapshot", snapshot, "--private", &private, "--dry-run"]);
    let right = commitment(&shown(&offline(&snapshot), 0));

    // The annotation alone: what it opens to opens no object.
    for number in 0..3 {
        cluster.etcd.put_secret(&format!("forged-{number}"), "edge", &forge(&public, genuine, false));
    }
    cluster.etcd.put_secret(
        "huge",
        "edge",
        &EncryptResponse { key_id: format!("ks1.test.{}.{}", u64::MAX, "ab".repeat(16)), ..genuine.clone() },
    );
    let forged = text(&cluster.etcd.snapshot(&site.path().join("forged.db")));
    let report = shown(&offline(&forged), 1);
    assert_eq!(commitment(&report), right);
    assert_eq!(report["not_recovered"][0]["reason"], "no-root", "{report}");

    // With objects of his own: a person has to say which, however many there are.
    for number in 0..5 {
        cluster.etcd.put_secret(&format!("own-{number}"), "edge", &forge(&public, genuine, true));
    }
    let contested = text(&cluster.etcd.snapshot(&site.path().join("contested.db")));
    let report = shown(&offline(&contested), 1);
    assert_eq!(report["recovered"].as_array().unwrap().len(), 1);
    assert_eq!(report["not_recovered"][0]["reason"], "contested", "{report}");
    assert!(report["not_recovered"][0]["detail"].as_str().unwrap().contains(&right));
    let arguments = ["--snapshot", &contested, "--private", &private, "--dry-run", "--trust", &right];
    assert_eq!(commitment(&shown(&recover(site, &arguments), 1)), right);

    // The living token is not deceived, and the huge number does not use up all numbers.
    fs::remove_dir_all(site.path().join("store")).unwrap();
    let report = shown(&recover(site, &["--snapshot", &contested, "--no-recovery"]), 1);
    assert_eq!((commitment(&report), opens(&report, 1)), (right, (5, 10)), "{report}");
    assert_eq!(report["store"]["active_generation"], 3);
    cluster.opens_at(site).await;
}

#[tokio::test]
async fn truncated_damaged_and_foreign_snapshots_are_refused() {
    let cluster = Cluster::new().await;
    let snapshot = cluster.snapshot();
    let (whole, private) = (fs::read(&snapshot).unwrap(), cluster.private());
    let new = Site::bare("");
    let damaged = text(&new.path().join("damaged.db"));
    let attempt = |bytes: &[u8], more: &[&str]| {
        fs::write(&damaged, bytes).unwrap();
        recover(&new, &[&["--snapshot", damaged.as_str(), "--private", &private, "--dry-run"], more].concat())
    };
    for len in [0, 1, 4096, whole.len() / 2, whole.len() - 33, whole.len() - 32, whole.len() - 1] {
        attempt(&whole[..len], &[]).expect_failure(1);
        if len < whole.len() - 32 {
            attempt(&whole[..len], &["--skip-hash-check"]).expect_failure(1);
        }
    }
    let mut flipped = whole.clone();
    let middle = whole.len() / 2;
    flipped[middle] ^= 1;
    assert!(attempt(&flipped, &[]).expect_failure(1).contains("checksum"));
    attempt(b"not a database at all", &[]).expect_failure(1);

    // Another cluster's: the keyring has another name.
    let config = fs::read_to_string(new.config()).unwrap();
    fs::write(new.config(), config.replace("keyring = \"test\"", "keyring = \"another\"")).unwrap();
    let foreign = attempt(&whole, &[]).expect_failure(1);
    assert!(foreign.contains("another cluster's") && foreign.contains("test"), "{foreign}");
    fs::write(new.config(), config).unwrap();
    // The right snapshot at a provider's name that nobody uses.
    assert!(attempt(&whole, &["--provider", "nobody"]).expect_failure(1).contains("--provider"));
}

#[tokio::test]
async fn dead_token_s_keys_are_rescued_from_memory_and_served_from_a_new_one() {
    let cluster = Cluster::new().await;
    let site = &cluster.site;
    let daemon = site.serve().await;
    daemon.until("all loaded", |status| status.generations_loaded == 2).await;
    fs::remove_dir_all(site.token.folder.join("tokens")).unwrap();
    daemon.kill_role("custodian", Signal::KILL);
    daemon.until("degraded", |status| status.availability == "degraded").await;

    let new = Site::bare("");
    let (private, public) = keygen(&new, "rescue");
    let file = text(&new.path().join("rescue.txt"));
    let rescued = site.keystead(["roots", "rescue", "--to", &public, "--out", &file, "--output", "json"]);
    let report: Value = serde_json::from_str(&rescued.expect_success()).unwrap();
    assert_eq!((report["rescued"].as_array().unwrap().len(), &report["not_loaded"]), (2, &json!([])), "{report}");
    site.keystead(["roots", "rescue", "--to", &public, "--out", &file]).expect_failure(2);
    site.keystead(["roots", "rescue", "--to", &private, "--out", &format!("{file}.2")]).expect_failure(2);
    daemon.kill();

    // Sealed now: there is nothing in memory, and that is said politely.
    let sealed = site.spawn(&[]);
    sealed.until("sealed", |status| status.availability == "sealed" && status.reason != "starting").await;
    let refused = site.keystead(["roots", "rescue", "--to", &public, "--out", &format!("{file}.2")]);
    let refused = refused.expect_failure(4);
    assert!(refused.contains("no key in memory"), "{refused}");
    assert!(sealed.stop().success());

    let report = shown(&recover(&new, &["--rescue", &file, "--private", &private, "--recovery", &public]), 0);
    assert_eq!(report["recovered"].as_array().unwrap().len(), 2);
    assert_eq!(report["recovered"][0]["origin"], "unproven");
    cluster.opens_at(&new).await;
    // With the snapshot beside it, its objects show that the keys are the right ones.
    let snapshot = text(&cluster.snapshot());
    let arguments = ["--rescue", &file, "--snapshot", &snapshot, "--private", &private, "--dry-run"];
    let report = shown(&recover(&new, &arguments), 0);
    assert_eq!((opens(&report, 0), opens(&report, 1)), ((2, 2), (2, 2)), "{report}");
}

#[tokio::test]
async fn recovery_killed_anywhere_can_be_run_again() {
    let cluster = Cluster::new().await;
    let (site, snapshot) = (&cluster.site, text(&cluster.snapshot()));
    for name in ["recover.before-write", "store.half-written", "store.before-rename", "recover.written"] {
        let _ = fs::remove_dir_all(site.path().join("store"));
        let mut command = site.command(["recover", "--no-recovery", "--snapshot", &snapshot]);
        let output = command.env("KEYSTEAD_KILL_AT", name).output().unwrap();
        assert_eq!(output.status.code(), None, "{name} was never reached: {}", String::from_utf8_lossy(&output.stderr));
        // Either the store is there and serves, or there is none and the same command makes it.
        if !site.store_file().exists() {
            shown(&recover(site, &["--snapshot", &snapshot, "--no-recovery"]), 0);
        }
        let daemon = site.serve().await;
        for (plaintext, encrypted) in &cluster.secrets {
            assert_eq!(&decrypt(&mut daemon.kms().await, encrypted).await.unwrap(), plaintext, "{name}");
        }
        assert!(daemon.stop().success());
    }
}

#[tokio::test]
async fn invented_generation_is_marked_and_can_be_left_out() {
    let cluster = Cluster::new().await;
    let (site, private) = (&cluster.site, cluster.private());
    let public = P256PublicKey::from_pem(&fs::read_to_string(site.path().join("recovery.pub")).unwrap()).unwrap();
    let invented = format!("ks1.test.9.{}", "cd".repeat(16));
    let genuine = &cluster.secrets[1].1;
    let mut old = Annotation::decode(&genuine.annotations[annotation::KEY]).unwrap();
    old.key_id = invented.parse().unwrap();
    let mut template = EncryptResponse { key_id: invented.clone(), ..genuine.clone() };
    template.annotations.insert(annotation::KEY.into(), old.encode().unwrap());
    cluster.etcd.put_secret("invented", "edge", &forge(&public, &template, true));
    let snapshot = text(&cluster.snapshot());
    let arguments = ["--snapshot", snapshot.as_str(), "--private", &private, "--dry-run"];
    let report = shown(&recover(site, &arguments), 0);
    assert_eq!(
        (&report["recovered"][2]["key_id"], &report["recovered"][2]["origin"]),
        (&json!(invented), &json!("unproven"))
    );
    let report = shown(&recover(site, &[&arguments[..], &["--leave-out", &invented]].concat()), 0);
    assert_eq!(report["recovered"].as_array().unwrap().len(), 2, "{report}");
    // The living token does not open it at all.
    let report = shown(&recover(site, &["--snapshot", &snapshot, "--dry-run"]), 1);
    assert_eq!(report["not_recovered"][0]["key_id"], invented);
}
