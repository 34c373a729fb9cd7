//! Reads golden vectors, from their bytes alone. A later version keeps all of this and adds to it.

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::aead::{AeadInOut, KeyInit};
use hmac::{Hmac, Mac};
use keystead_core::annotation::{Annotation, AnnotationError};
use keystead_core::envelope::{EnvelopeError, EnvelopeKey};
use keystead_core::grant::{Grant, GrantError, GrantKey};
use keystead_core::hpke_p256::{P256PublicKey, check_encapsulated, open_with_private_key, open_with_shared_secret};
use keystead_core::offline_copy::CopyKey;
use keystead_core::record::{self, RecordError, UnverifiedRecord};
use keystead_core::rescue::{Rescue, RescueError};
use keystead_core::wrap::{Construction, OaepHash, WrapError, open_oaep_message, open_under_transport_key};
use keystead_core::{
    Authenticator, EnvelopeContext, GenerationNumber, Kek, KeyCommitment, KeyId, RootId, RootKind, WrapContext,
    WrappedKek,
};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::case::Case;

/// How one file is read. `bad` gives the error as the file spells it.
pub struct Reader {
    pub file: &'static str,
    pub good: fn(&Case),
    pub bad: fn(&Case) -> Result<(), String>,
}

pub fn readers() -> Vec<Reader> {
    vec![
        Reader { file: "annotation.json", good: good_annotation, bad: |case| annotation(case).map(drop) },
        Reader { file: "commitment.json", good: good_commitment, bad: bad_commitment },
        Reader { file: "envelope.json", good: good_envelope, bad: |case| envelope(case).map(drop) },
        Reader { file: "key-id.json", good: good_key_id, bad: |case| key_id(case).map(drop) },
        Reader { file: "lease-grant.json", good: good_grant, bad: |case| grant(case).map(drop) },
        Reader {
            file: "offline-copy.json",
            good: |case| good_wrap(case, offline_copy),
            bad: |case| offline_copy(case).map(drop),
        },
        Reader { file: "record.json", good: good_record, bad: |case| record(case).map(drop) },
        Reader { file: "rescue.json", good: good_rescue, bad: |case| rescue(case).map(drop) },
        Reader {
            file: "wrap-aes-gcm.json",
            good: |case| good_wrap(case, aes_gcm),
            bad: |case| aes_gcm(case).map(drop),
        },
        Reader { file: "wrap-hpke-p256.json", good: good_hpke, bad: |case| hpke(case).map(drop) },
        Reader { file: "wrap-rsa-oaep.json", good: good_oaep, bad: |case| oaep(case).map(drop) },
        Reader { file: "wrap-tpm.json", good: good_tpm, bad: |case| tpm(case).map(drop) },
    ]
}

// Key IDs and commitments.

fn key_id(case: &Case) -> Result<KeyId, String> {
    case.text("key_id").parse().map_err(|_| "invalid".to_owned())
}

fn good_key_id(case: &Case) {
    let id = key_id(case).unwrap();
    let generation = GenerationNumber(case.number("generation"));
    assert_eq!(id, KeyId::mint(&case.parsed("keyring"), generation, case.array("random")));
    assert_eq!(id.as_str(), case.text("key_id"));
    assert_eq!(id.generation(), generation);
    assert_eq!(id.keyring(), case.text("keyring"));
}

fn kek(case: &Case) -> Kek {
    Kek::take(&mut case.array("kek"))
}

fn good_commitment(case: &Case) {
    assert_eq!(kek(case).commitment().as_bytes(), &case.array("commitment"));
}

fn bad_commitment(case: &Case) -> Result<(), String> {
    let kek = kek(case);
    let claimed: [u8; 32] = case.bytes("commitment").try_into().map_err(|_| "malformed".to_owned())?;
    if kek.commitment() == KeyCommitment::from_bytes(claimed) { Ok(()) } else { Err("other-key".to_owned()) }
}

// Envelopes.

fn envelope_context(case: &Case) -> EnvelopeContext {
    let generation = GenerationNumber(case.number("generation"));
    EnvelopeContext::new(&case.parsed("keyring"), generation, &case.parsed("key_id"))
}

fn envelope(case: &Case) -> Result<Vec<u8>, String> {
    EnvelopeKey::new(&kek(case))
        .decrypt(&envelope_context(case), &case.bytes("envelope"))
        .map(|plaintext| plaintext.to_vec())
        .map_err(|error| match error {
            EnvelopeError::NotAuthentic => "not-authentic".to_owned(),
            EnvelopeError::NewerFormat(format) => format!("newer-format {format}"),
            EnvelopeError::TooShort => "too-short".to_owned(),
        })
}

fn good_envelope(case: &Case) {
    assert_eq!(envelope(case).as_ref(), Ok(&case.bytes("plaintext")), "{}", case.name());
    assert_eq!(envelope_context(case).as_bytes(), case.bytes("additional_data"));
    assert_eq!(case.bytes("envelope")[1..25], case.bytes("nonce"));
}

// Wraps: each way of opening gives the KEK, then holds it to the commitment that stands beside the wrap.

fn wrap_context(case: &Case) -> WrapContext {
    WrapContext {
        keyring: case.parsed("keyring"),
        generation: GenerationNumber(case.number("generation")),
        key_id: case.parsed("key_id"),
        root_kind: RootKind::from(u8::try_from(case.number("root_kind")).unwrap()),
        root_id: case.parsed("root_id"),
    }
}

fn wrap_error(error: WrapError) -> String {
    match error {
        WrapError::UnknownConstruction(number) => format!("unknown-construction {number}"),
        WrapError::Malformed => "malformed".to_owned(),
        WrapError::NotAuthentic => "not-authentic".to_owned(),
    }
}

fn construction(case: &Case) -> Result<Construction, String> {
    Construction::parse(&case.bytes("wrap")).map_err(wrap_error)
}

fn committed(case: &Case, kek: Kek) -> Result<Kek, String> {
    let commitment = KeyCommitment::from_bytes(case.array("commitment"));
    if kek.commitment() == commitment { Ok(kek) } else { Err("other-key".to_owned()) }
}

fn other_construction<T>() -> Result<T, String> {
    Err("other-construction".to_owned())
}

fn good_wrap(case: &Case, open: fn(&Case) -> Result<Kek, String>) {
    assert_eq!(open(case).unwrap().expose(), &case.array("kek"), "{}", case.name());
    assert_eq!(wrap_context(case).to_bytes(), case.bytes("context"));
    assert_eq!(construction(case).unwrap().to_bytes(), case.bytes("wrap"));
}

/// What a token does with an AES CMK, in software.
fn aes_gcm(case: &Case) -> Result<Kek, String> {
    let (cmk, context) = (case.array::<32>("cmk"), wrap_context(case).to_bytes());
    case.array::<32>("commitment");
    let Construction::AesGcm { iv, sealed } = construction(case)? else { return other_construction() };
    let (ciphertext, tag) = sealed.split_last_chunk::<16>().unwrap();
    let mut kek: [u8; 32] = ciphertext.try_into().unwrap();
    Aes256Gcm::new(&cmk.into())
        .decrypt_inout_detached(&iv.into(), &context, InOutBuf::from(kek.as_mut_slice()), tag.into())
        .map_err(|_| "not-authentic".to_owned())?;
    committed(case, Kek::take(&mut kek))
}

/// What a start offline does, with a key that custody derived.
fn offline_copy(case: &Case) -> Result<Kek, String> {
    let (key, context) = (CopyKey::new(Zeroizing::new(case.array("copy_key"))), wrap_context(case));
    case.array::<32>("commitment");
    let kek = key.open(&context, &case.bytes("wrap")).map_err(wrap_error)?;
    committed(case, kek)
}

/// With the private key, and as after a device's ECDH: both must say the same.
fn hpke(case: &Case) -> Result<Kek, String> {
    let (scalar, context) = (case.array::<32>("private_key"), wrap_context(case));
    let recipient = P256PublicKey::from_sec1(&case.bytes("public_key")).unwrap();
    case.array::<32>("commitment");
    let Construction::HpkeP256 { encapsulated, sealed } = construction(case)? else { return other_construction() };
    let offline = open_with_private_key(&scalar, &context, &encapsulated, &sealed);
    let on_device = check_encapsulated(&encapsulated).and_then(|()| {
        let secret = p256::SecretKey::from_slice(&scalar).unwrap();
        let point = p256::PublicKey::from_sec1_bytes(&encapsulated).unwrap();
        let shared = p256::ecdh::diffie_hellman(secret.to_nonzero_scalar(), point.as_affine());
        let shared = (*shared.raw_secret_bytes()).into();
        open_with_shared_secret(&shared, &recipient, &context.to_bytes(), &encapsulated, &sealed)
    });
    match (offline, on_device) {
        (Ok(offline), Ok(on_device)) => {
            assert_eq!(offline.expose(), on_device.expose());
            committed(case, offline)
        }
        (Err(offline), Err(on_device)) => {
            assert_eq!(offline, on_device, "{}", case.name());
            Err(wrap_error(offline))
        }
        (offline, on_device) => panic!("{}: {offline:?} but {on_device:?}", case.name()),
    }
}

fn good_hpke(case: &Case) {
    good_wrap(case, hpke);
    case.array::<32>("ephemeral_ikm");
    let recipient = P256PublicKey::from_sec1(&case.bytes("public_key")).unwrap();
    if wrap_context(case).root_kind == RootKind::Recovery {
        assert_eq!(recipient.recovery_root_id(), wrap_context(case).root_id);
    }
}

/// `transport_key` is what the token gets out of the OAEP block; `check.py` does that part too.
fn oaep(case: &Case) -> Result<Kek, String> {
    let (transport, context) = (case.array("transport_key"), wrap_context(case).to_bytes());
    case.array::<32>("commitment");
    let Construction::RsaOaep { sealed, .. } = construction(case)? else { return other_construction() };
    let kek = open_under_transport_key(&transport, &context, &sealed).map_err(wrap_error)?;
    committed(case, kek)
}

fn good_oaep(case: &Case) {
    good_wrap(case, oaep);
    case.bytes("private_key_pkcs8");
    let Construction::RsaOaep { hash, block, .. } = construction(case).unwrap() else { panic!("not OAEP") };
    assert_eq!(block, case.bytes("block"));
    let expected = match hash {
        OaepHash::Sha256 => "sha256",
        OaepHash::Sha1 => "sha1",
    };
    assert_eq!(case.text("hash"), expected);
}

/// What a TPM does, in software. `message` is what it gets out of an OAEP block; `check.py` does that part too.
fn tpm(case: &Case) -> Result<Kek, String> {
    let context = wrap_context(case);
    case.array::<32>("commitment");
    let parsed = construction(case);
    if case.has("message") {
        let message = case.bytes("message");
        let Construction::TpmRsaOaep { .. } = parsed? else { return other_construction() };
        return committed(case, open_oaep_message(&message, &context.to_bytes()).map_err(wrap_error)?);
    }
    let scalar = case.array::<32>("private_key");
    let point = case.bytes("public_key");
    let Construction::TpmEcdh { key, encapsulated, sealed } = parsed? else { return other_construction() };
    for half in [&point[1..33], &point[33..]] {
        assert!(key.public.windows(32).any(|window| window == half), "{}", case.name());
    }
    let kek = open_with_private_key(&scalar, &context, &encapsulated, &sealed).map_err(wrap_error)?;
    committed(case, kek)
}

fn good_tpm(case: &Case) {
    good_wrap(case, tpm);
    if case.has("message") {
        case.bytes("private_key_pkcs8");
    }
}

// Lease grants.

fn grant(case: &Case) -> Result<Grant, String> {
    let key = GrantKey::try_from(case.text("public_key").to_owned()).unwrap();
    Grant::read(case.text("grant").as_bytes(), &key).map_err(|error| match error {
        GrantError::Malformed(_) => "malformed".to_owned(),
        GrantError::NewerFormat(format) => format!("newer-format {format}"),
        GrantError::NotAuthentic => "not-authentic".to_owned(),
        other => panic!("{other} is not found by reading"),
    })
}

fn good_grant(case: &Case) {
    let expected = Grant {
        keyring: case.parsed("keyring"),
        key_id: case.parsed("key_id"),
        epoch: case.number("epoch"),
        seconds: case.number("seconds"),
        nonce: case.array("nonce"),
    };
    assert_eq!(grant(case), Ok(expected), "{}", case.name());
}

// Annotations.

fn annotation(case: &Case) -> Result<Annotation, String> {
    Annotation::decode(&case.bytes("annotation")).map_err(|error| match error {
        AnnotationError::NewerFormat(format) => format!("newer-format {format}"),
        AnnotationError::Malformed => "malformed".to_owned(),
        AnnotationError::TooLong(_) | AnnotationError::WrapTooLong(_) => "too-long".to_owned(),
    })
}

fn good_annotation(case: &Case) {
    let read = annotation(case).unwrap();
    assert_eq!(read.key_id, case.parsed("key_id"));
    assert_eq!(read.commitment, KeyCommitment::from_bytes(case.array("commitment")));
    let wraps: Vec<WrappedKek> = case
        .cases("wraps")
        .iter()
        .map(|wrap| {
            let kept = WrappedKek {
                root_kind: RootKind::from(u8::try_from(wrap.number("root_kind")).unwrap()),
                root_id: wrap.parsed::<RootId>("root_id"),
                bytes: wrap.bytes("wrap"),
            };
            wrap.finish();
            kept
        })
        .collect();
    assert_eq!(read.wraps, wraps);
    // Also what this version does not know is written back byte for byte.
    assert_eq!(read.encode().unwrap(), case.bytes("annotation"), "{}", case.name());
}

// Records.

/// HMAC-SHA256 under a fixed key in the place of one derived from an epoch secret.
pub struct FixedKey(pub [u8; 32]);

impl Authenticator for FixedKey {
    fn tag(&self, message: &[u8]) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).unwrap();
        mac.update(message);
        mac.finalize().into_bytes().into()
    }
}

fn record(case: &Case) -> Result<(UnverifiedRecord, keystead_core::keyring::Keyring), String> {
    let key = FixedKey(case.array("record_key"));
    let spelled = |error: RecordError| match error {
        RecordError::NewerFormat(format) => format!("newer-format {format}"),
        RecordError::Malformed(_) => "malformed".to_owned(),
        RecordError::NotAuthentic => "not-authentic".to_owned(),
        RecordError::Inconsistent(_) => "inconsistent".to_owned(),
    };
    let unverified = UnverifiedRecord::parse(case.text("record").as_bytes()).map_err(spelled)?;
    let keyring = unverified.verify(&key).map_err(spelled)?;
    Ok((unverified, keyring))
}

fn good_record(case: &Case) {
    let (unverified, keyring) = record(case).unwrap();
    let claims = unverified.claims();
    assert_eq!((claims.keyring.as_str(), claims.node.as_str()), (case.text("keyring"), case.text("node")));
    assert_eq!((claims.revision, claims.epoch), (case.number("revision"), case.number("epoch")));
    assert_eq!(keyring.keyring, claims.keyring);
    let states: Vec<String> = keyring
        .generations
        .iter()
        .map(|generation| format!("{} {:?} {}", generation.number, generation.state, generation.wraps.len()))
        .collect();
    assert_eq!(states.join(", "), case.text("generations"));
    let key = FixedKey(case.array("record_key"));
    assert_eq!(record::encode(&keyring, &key), case.text("record").as_bytes(), "{}", case.name());
}

// Rescue files.

/// Parsed, and every generation opened with the private key.
fn rescue(case: &Case) -> Result<(Rescue, Vec<Kek>), String> {
    let scalar = case.array::<32>("private_key");
    let recipient = P256PublicKey::from_sec1(&case.bytes("public_key")).unwrap();
    let rescue = Rescue::parse(case.text("rescue").as_bytes()).map_err(|error| match error {
        RescueError::NewerFormat(format) => format!("newer-format {format}"),
        RescueError::Malformed(_) => "malformed".to_owned(),
    })?;
    let keks: Result<Vec<Kek>, String> = rescue
        .sightings()
        .iter()
        .map(|sighting| {
            let annotation = &sighting.annotations[0];
            let mut wraps = annotation.wraps.iter();
            let to_this_key = |wrap: &&WrappedKek| {
                wrap.root_kind == RootKind::Recovery && wrap.root_id == recipient.recovery_root_id()
            };
            let wrap = wraps.find(to_this_key).ok_or("no-root")?;
            let Construction::HpkeP256 { encapsulated, sealed } =
                Construction::parse(&wrap.bytes).map_err(wrap_error)?
            else {
                return other_construction();
            };
            let context = sighting.wrap_context(wrap);
            let kek = open_with_private_key(&scalar, &context, &encapsulated, &sealed).map_err(wrap_error)?;
            if kek.commitment() == annotation.commitment { Ok(kek) } else { Err("other-key".to_owned()) }
        })
        .collect();
    Ok((rescue, keks?))
}

fn good_rescue(case: &Case) {
    let (read, keks) = rescue(case).unwrap();
    assert_eq!((read.keyring.as_str(), read.node.as_str()), (case.text("keyring"), case.text("node")));
    assert_eq!((read.written, read.epoch), (case.number("written"), case.number("epoch")));
    assert_eq!(read.last_number, GenerationNumber(case.number("last_number")));
    let expected = case.cases("generations");
    assert_eq!(read.generations.len(), expected.len());
    for ((each, kek), expected) in read.generations.iter().zip(keks).zip(expected) {
        assert_eq!(each.key_id, expected.parsed("key_id"));
        assert_eq!((each.created, each.wraps.len() as u64), (expected.number("created"), expected.number("wraps")));
        assert_eq!(kek.expose(), &expected.array("kek"));
        expected.finish();
    }
    assert_eq!(read.to_bytes(), case.text("rescue").as_bytes(), "{}", case.name());
}
