//! The recovery root: `init --recovery` makes every Encrypt answer openable with the offline key alone.

use keystead_core::annotation::{self, Annotation};
use keystead_core::envelope::EnvelopeKey;
use keystead_core::hpke_p256::open_with_private_key;
use keystead_core::wrap::Construction;
use keystead_core::{EnvelopeContext, RootKind, WrapContext};
use p256::elliptic_curve::Generate;
use p256::pkcs8::{EncodePublicKey, LineEnding};

use crate::daemon::{Finished, Site, encrypt};

#[tokio::test]
async fn the_offline_key_and_an_etcd_object_are_enough_to_read_a_seed() {
    let site = Site::bare("");
    let private = p256::SecretKey::generate();
    let pem = private.public_key().to_public_key_pem(LineEnding::LF).unwrap();
    let path = site.path().join("recovery.pem");
    std::fs::write(&path, pem).unwrap();
    site.keystead(["init", "--recovery", path.to_str().unwrap()]).expect_success();
    let daemon = site.serve().await;
    for _ in 0..2 {
        let object = encrypt(&mut daemon.kms().await, b"a Secret's seed").await;
        drop_everything_but(&object, &private);
        site.rotate().expect_success();
    }
    let status = daemon.status().await;
    assert_eq!(status.durable_roots, ["pkcs11", "recovery"]);
    assert!(status.warnings.iter().all(|warning| !warning.contains("one durable root")), "{:?}", status.warnings);
}

pub fn new_public_key() -> String {
    p256::SecretKey::generate().public_key().to_public_key_pem(LineEnding::LF).unwrap()
}

/// Opens what etcd holds with the private key, by the format's description.
fn drop_everything_but(object: &keystead_wire::kms::v2::EncryptResponse, private: &p256::SecretKey) {
    let annotation = Annotation::decode(&object.annotations[annotation::KEY]).unwrap();
    assert!(annotation.encode().unwrap().len() <= annotation::MAX_LEN);
    let wrap = annotation.wraps.iter().find(|wrap| wrap.root_kind == RootKind::Recovery).expect("a recovery wrap");
    let Ok(Construction::HpkeP256 { encapsulated, sealed }) = Construction::parse(&wrap.bytes) else {
        panic!("not an HPKE wrap");
    };
    let key_id = annotation.key_id.clone();
    assert_eq!(key_id.as_str(), object.key_id);
    let context = WrapContext {
        keyring: "test".parse().unwrap(),
        generation: key_id.generation(),
        key_id: key_id.clone(),
        root_kind: wrap.root_kind,
        root_id: wrap.root_id.clone(),
    };
    let scalar: [u8; 32] = private.to_bytes().into();
    let kek = open_with_private_key(&scalar, &context, &encapsulated, &sealed).unwrap();
    assert_eq!(kek.commitment(), annotation.commitment);
    let context = EnvelopeContext::new(&context.keyring, context.generation, &key_id);
    assert_eq!(&**EnvelopeKey::new(&kek).decrypt(&context, &object.ciphertext).unwrap(), b"a Secret's seed");
}

#[test]
fn a_file_that_is_no_p256_public_key_is_refused_before_anything_is_made() {
    let site = Site::bare("");
    let path = site.path().join("recovery.pem");
    for content in ["", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "not a key"] {
        std::fs::write(&path, content).unwrap();
        let error = site.keystead(["init", "--recovery", path.to_str().unwrap()]).expect_failure(2);
        assert!(error.contains("P-256"), "{error}");
    }
    site.keystead(["init", "--recovery", "/nonexistent.pem"]).expect_failure(2);
    assert!(!site.store_file().exists());
}

#[tokio::test]
async fn keygen_verify_and_drill_prove_the_key_and_refuse_another_one() {
    let site = Site::bare("");
    let path = |name: &str| site.path().join(name).to_str().unwrap().to_owned();
    let keygen = |private: &str, public: &str| {
        site.keystead(["recovery", "keygen", "--out", &path(private), "--public-out", &path(public)])
    };
    let printed = keygen("own.pem", "own.pub").expect_success();
    assert!(printed.contains("BEGIN PUBLIC KEY") && !printed.contains("PRIVATE KEY-"), "{printed}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path("own.pem")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let before = std::fs::read(path("own.pem")).unwrap();
    assert!(keygen("own.pem", "elsewhere.pub").expect_failure(2).contains("not overwritten"));
    assert_eq!(std::fs::read(path("own.pem")).unwrap(), before);
    keygen("other.pem", "other.pub").expect_success();

    site.keystead(["init", "--recovery", &path("own.pub")]).expect_success();
    let daemon = site.serve().await;
    site.rotate().expect_success();
    site.keystead(["recovery", "verify", "--private", &path("own.pem")]).expect_success();
    let other = site.keystead(["recovery", "verify", "--private", &path("other.pem")]);
    assert_eq!(other.status.code(), Some(1));
    let roots = site.keystead(["roots", "list", "--output", "json"]).expect_success();
    let roots: serde_json::Value = serde_json::from_str(&roots).unwrap();
    assert_eq!(roots["roots"].as_array().unwrap().len(), 3, "{roots}");

    std::fs::write(path("list.json"), site.keystead(["key", "list", "--output", "json"]).expect_success()).unwrap();
    std::fs::write(path("seed"), [7; 32]).unwrap();
    site.keystead(["kms", "encrypt", "--in", &path("seed"), "--out", &path("sample.json")]).expect_success();
    // From here on there is no daemon, no token and no store.
    assert!(daemon.stop().success());
    std::fs::remove_dir_all(site.path().join("token")).unwrap();
    std::fs::remove_dir_all(site.path().join("store")).unwrap();
    let drill = |private: &str, files: [&str; 2]| {
        let (one, two) = (path(files[0]), path(files[1]));
        site.keystead(["recovery", "drill", "--private", &path(private), "--in", &one, "--in", &two])
    };
    let shown = drill("own.pem", ["list.json", "sample.json"]).expect_success();
    assert!(shown.contains("ciphertext decrypted") && shown.contains("succeeded"), "{shown}");
    assert_eq!(drill("other.pem", ["list.json", "sample.json"]).status.code(), Some(1));
    // Somebody changed the ciphertext on the way.
    let tampered =
        std::fs::read_to_string(path("sample.json")).unwrap().replacen("\"ciphertext\": \"A", "\"ciphertext\": \"B", 1);
    std::fs::write(path("tampered.json"), tampered).unwrap();
    assert_eq!(drill("own.pem", ["list.json", "tampered.json"]).status.code(), Some(1));
    drill("own.pub", ["list.json", "sample.json"]).expect_failure(2);
}
