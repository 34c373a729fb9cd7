//! The KMS v2 contract: what each request answers, and each bad one.

use keystead_core::annotation::Annotation;
use keystead_core::{GenerationNumber, KeyId};
use keystead_wire::kms::v2::{DecryptRequest, EncryptRequest, StatusRequest};
use tonic::Code;

use crate::daemon::{Site, decrypt, decrypt_request, encrypt};

#[tokio::test]
async fn status_encrypt_and_decrypt_answer_as_the_apiserver_expects() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    let status = kms.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.version.as_str(), status.healthz.as_str()), ("v2", "ok"));
    let seed = [0xa5; 32];
    let encrypted = encrypt(&mut kms, &seed).await;
    assert_eq!(encrypted.key_id, status.key_id);
    assert_eq!(encrypted.ciphertext.len(), 73);
    let annotation = &encrypted.annotations[keystead_core::annotation::KEY];
    assert_eq!(Annotation::decode(annotation).unwrap().key_id.as_str(), status.key_id);
    assert_eq!(decrypt(&mut kms, &encrypted).await.unwrap(), seed);
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn what_was_encrypted_before_a_restart_still_opens() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let encrypted = encrypt(&mut daemon.kms().await, b"before").await;
    assert!(daemon.stop().success());
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    assert_eq!(kms.status(StatusRequest {}).await.unwrap().into_inner().key_id, encrypted.key_id);
    assert_eq!(decrypt(&mut kms, &encrypted).await.unwrap(), b"before");
}

#[tokio::test]
async fn bad_requests_get_a_precise_code_and_service_goes_on() {
    let site = Site::initialized("[kms]\nmax_plaintext = \"1KiB\"");
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    let good = encrypt(&mut kms, b"seed").await;

    for (plaintext, uid) in
        [(vec![], "uid".to_owned()), (vec![0; 1025], "uid".to_owned()), (vec![0; 32], "u".repeat(257))]
    {
        let error = kms.encrypt(EncryptRequest { plaintext, uid }).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }

    let request = decrypt_request(&good);
    let foreign = KeyId::mint(&"other".parse().unwrap(), GenerationNumber(1), [1; 16]).to_string();
    let unknown = KeyId::mint(&"test".parse().unwrap(), GenerationNumber(1), [1; 16]).to_string();
    let mut huge = request.annotations.clone();
    huge.insert("big.example".into(), vec![0; 33 << 10]);
    let mut newer = request.ciphertext.clone();
    newer[0] = 2;
    let cases: Vec<(&str, Code, DecryptRequest)> = vec![
        ("empty ciphertext", Code::InvalidArgument, DecryptRequest { ciphertext: vec![], ..request.clone() }),
        ("long ciphertext", Code::InvalidArgument, DecryptRequest { ciphertext: vec![1; 2000], ..request.clone() }),
        ("short ciphertext", Code::InvalidArgument, DecryptRequest { ciphertext: vec![1; 40], ..request.clone() }),
        ("empty key ID", Code::InvalidArgument, DecryptRequest { key_id: String::new(), ..request.clone() }),
        ("long key ID", Code::InvalidArgument, DecryptRequest { key_id: "k".repeat(1025), ..request.clone() }),
        ("malformed key ID", Code::InvalidArgument, DecryptRequest { key_id: "ks1.x".into(), ..request.clone() }),
        ("another keyring's key ID", Code::NotFound, DecryptRequest { key_id: foreign, ..request.clone() }),
        ("unknown key ID", Code::NotFound, DecryptRequest { key_id: unknown, ..request.clone() }),
        ("long uid", Code::InvalidArgument, DecryptRequest { uid: "u".repeat(257), ..request.clone() }),
        ("oversized annotations", Code::InvalidArgument, DecryptRequest { annotations: huge, ..request.clone() }),
        ("newer format", Code::FailedPrecondition, DecryptRequest { ciphertext: newer, ..request.clone() }),
    ];
    for (what, code, request) in cases {
        let error = kms.decrypt(request).await.expect_err(what);
        assert_eq!(error.code(), code, "{what}: {error}");
    }
    assert_eq!(decrypt(&mut kms, &good).await.unwrap(), b"seed");
}

#[tokio::test]
async fn any_flipped_bit_of_a_ciphertext_is_refused() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    let good = encrypt(&mut kms, &[7; 32]).await;
    for bit in 0..good.ciphertext.len() * 8 {
        let mut request = decrypt_request(&good);
        request.ciphertext[bit / 8] ^= 1 << (bit % 8);
        let error = kms.decrypt(request).await.expect_err("a flipped bit was accepted");
        assert!(matches!(error.code(), Code::InvalidArgument | Code::FailedPrecondition), "bit {bit}: {error}");
    }
    assert_eq!(decrypt(&mut kms, &good).await.unwrap(), [7; 32]);
}

/// Whoever can write etcd could put in a KEK of his own, wrapped to our public key: it must never be used.
#[tokio::test]
async fn annotations_from_etcd_are_ignored() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    let good = encrypt(&mut kms, b"seed").await;

    // The attacker's envelope is flawless under his own KEK and names our key ID.
    let key_id: KeyId = good.key_id.parse().unwrap();
    let mut annotation = Annotation::decode(&good.annotations[keystead_core::annotation::KEY]).unwrap();
    let attacker = keystead_core::Kek::take(&mut [0x66; 32]);
    annotation.commitment = attacker.commitment();
    let context = keystead_core::EnvelopeContext::new(&"test".parse().unwrap(), key_id.generation(), &key_id);
    let forged = keystead_core::envelope::EnvelopeKey::new(&attacker).encrypt(&context, [1; 24], b"forged");
    let mut request = decrypt_request(&good);
    request.ciphertext = forged;
    request.annotations.insert(keystead_core::annotation::KEY.into(), annotation.encode().unwrap());
    assert_eq!(kms.decrypt(request).await.unwrap_err().code(), Code::InvalidArgument);

    // And the right ciphertext opens whatever the annotations say.
    for garbage in [vec![], vec![0xff; 1024], annotation.encode().unwrap()] {
        let mut request = decrypt_request(&good);
        request.annotations.insert(keystead_core::annotation::KEY.into(), garbage);
        assert_eq!(kms.decrypt(request).await.unwrap().into_inner().plaintext, b"seed");
    }
}
