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
        site.keystead(["key", "rotate", "--yes"]).expect_success();
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
