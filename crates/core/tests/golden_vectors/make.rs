//! Builds the vector files from fixed inputs. Format 1 throughout.

use std::convert::Infallible;
use std::time::Duration;

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::aead::{AeadInOut, KeyInit};
use keystead_core::annotation::Annotation;
use keystead_core::backup::{Backup, Snapshot};
use keystead_core::envelope::EnvelopeKey;
use keystead_core::grant::{Grant, GrantSigner};
use keystead_core::hpke_p256::P256PublicKey;
use keystead_core::keyring::{
    Disabling, Generation, GenerationState, Keyring, RecoveryRoot, RootsChoice, Suspension, TokenIdentity,
};
use keystead_core::lease::{Clocks, Lease};
use keystead_core::offline_copy::{CopyKey, OfflineCopy};
use keystead_core::record;
use keystead_core::rescue::{Rescue, RescuedGeneration};
use keystead_core::scan::{Findings, Source};
use keystead_core::upstream_state::{ConfigurationDigest, Denials, UpstreamState};
use keystead_core::wrap::{Construction, OaepHash, TpmKey, oaep_message, seal_under_transport_key};
use keystead_core::{
    Authenticator, EnvelopeContext, GenerationNumber, Kek, KeyId, KeyringId, RootId, RootKind, WrapContext, WrappedKek,
};
use p256::ecdsa::signature::Signer;
use p256::elliptic_curve::sec1::ToSec1Point;
use p256::pkcs8::{EncodePrivateKey, LineEnding};
use rand_core::{TryCryptoRng, TryRng};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::read::FixedKey;
use crate::rsa;

pub fn files() -> Vec<(&'static str, Value)> {
    vec![
        ("annotation.json", annotation()),
        ("commitment.json", commitment()),
        ("envelope.json", envelope()),
        ("key-id.json", key_id()),
        ("lease-grant.json", lease_grant()),
        ("offline-copy.json", offline_copy()),
        ("record.json", record()),
        ("rescue.json", rescue()),
        ("wrap-aes-gcm.json", wrap_aes_gcm()),
        ("wrap-hpke-p256.json", wrap_hpke()),
        ("wrap-rsa-oaep.json", wrap_oaep()),
        ("wrap-tpm.json", wrap_tpm()),
    ]
}

fn file(what: &str, good: Vec<Value>, bad: Vec<Value>) -> Value {
    json!({ "what": what, "format": 1, "good": good, "bad": bad })
}

// Inputs: bytes that count up from a start, so that a reader sees which is which.

fn counting<const N: usize>(start: u8) -> [u8; N] {
    std::array::from_fn(|index| start.wrapping_add(index as u8))
}

fn kek(start: u8) -> Kek {
    Kek::take(&mut counting(start))
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    base16ct::lower::encode_string(bytes.as_ref())
}

fn unhex(text: &str) -> Vec<u8> {
    base16ct::lower::decode_vec(text).unwrap()
}

fn flipped(bytes: &[u8], offset: usize, mask: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[offset] ^= mask;
    bytes
}

fn replaced(bytes: &[u8], offset: usize, by: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[offset..offset + by.len()].copy_from_slice(by);
    bytes
}

fn longer(bytes: &[u8], by: &[u8]) -> Vec<u8> {
    [bytes, by].concat()
}

/// `case` under another name, with some fields replaced, as a bad one.
fn bad(case: &Value, name: &str, error: &str, changes: Value) -> Value {
    let mut case = case.clone();
    let fields = case.as_object_mut().unwrap();
    for input in INPUTS_OF_GOOD_CASES {
        fields.remove(*input);
    }
    fields.insert("name".into(), name.into());
    fields.insert("error".into(), error.into());
    for (field, value) in changes.as_object().unwrap() {
        fields.insert(field.clone(), value.clone());
    }
    case
}

/// What only a good case says: how its bytes came about, or what they must give.
const INPUTS_OF_GOOD_CASES: &[&str] = &[
    "additional_data",
    "block",
    "context",
    "ephemeral_ikm",
    "generations",
    "hash",
    "nonce",
    "plaintext",
    "private_key_pkcs8",
    "random",
    "wraps",
];

#[derive(Clone)]
struct Name {
    keyring: KeyringId,
    generation: GenerationNumber,
    key_id: KeyId,
}

fn name(keyring: &str, generation: u64, random: u8) -> Name {
    let keyring: KeyringId = keyring.parse().unwrap();
    let generation = GenerationNumber(generation);
    Name { key_id: KeyId::mint(&keyring, generation, counting(random)), keyring, generation }
}

fn first() -> Name {
    name("default", 1, 0xa0)
}

fn second() -> Name {
    name("default", 2, 0xb0)
}

fn elsewhere() -> Name {
    name("edge-7", 1, 0xa0)
}

fn longest() -> Name {
    name(&"k".repeat(KeyringId::MAX_LEN), u64::MAX, 0xf0)
}

fn named(name: &Name) -> Value {
    json!({ "keyring": name.keyring, "generation": name.generation, "key_id": name.key_id })
}

fn merged(parts: &[Value]) -> Value {
    let fields = parts.iter().flat_map(|part| part.as_object().unwrap().clone());
    Value::Object(fields.collect())
}

// Key IDs and commitments.

fn key_id() -> Value {
    let good = [("first", first(), 0xa0), ("second-generation", second(), 0xb0), ("longest", longest(), 0xf0)].map(
        |(case, id, random)| merged(&[named(&id), json!({ "name": case, "random": hex(counting::<16>(random)) })]),
    );
    let random = "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf";
    let bad = [
        ("empty", String::new()),
        ("newer-version", format!("ks2.default.1.{random}")),
        ("no-version", format!("default.1.{random}")),
        ("upper-case-version", format!("KS1.default.1.{random}")),
        ("no-keyring", format!("ks1..1.{random}")),
        ("upper-case-keyring", format!("ks1.Default.1.{random}")),
        ("keyring-too-long", format!("ks1.{}.1.{random}", "k".repeat(41))),
        ("keyring-begins-with-hyphen", format!("ks1.-default.1.{random}")),
        ("generation-zero", format!("ks1.default.0.{random}")),
        ("generation-with-leading-zero", format!("ks1.default.01.{random}")),
        ("generation-with-sign", format!("ks1.default.+1.{random}")),
        ("generation-of-65-bits", format!("ks1.default.18446744073709551616.{random}")),
        ("upper-case-random", format!("ks1.default.1.{}", random.to_uppercase())),
        ("random-too-short", format!("ks1.default.1.{}", &random[2..])),
        ("random-too-long", format!("ks1.default.1.{random}00")),
        ("space-before", format!(" ks1.default.1.{random}")),
        ("line-end-after", format!("ks1.default.1.{random}\n")),
        ("fifth-part", format!("ks1.default.1.{random}.x")),
    ]
    .map(|(case, text)| json!({ "name": case, "key_id": text, "error": "invalid" }));
    file("Key IDs: ks1.<keyring>.<generation>.<random>", good.into(), bad.into())
}

fn commitment() -> Value {
    let case = |name: &str, start| json!({ "name": name, "kek": hex(counting::<32>(start)), "commitment": hex(kek(start).commitment().as_bytes()) });
    let good = case("counting-from-0", 0);
    let right = *kek(0).commitment().as_bytes();
    let bad = vec![
        bad(&good, "first-bit-flipped", "other-key", json!({ "commitment": hex(flipped(&right, 0, 0x80)) })),
        bad(&good, "last-bit-flipped", "other-key", json!({ "commitment": hex(flipped(&right, 31, 1)) })),
        bad(&good, "of-another-key", "other-key", json!({ "commitment": hex(kek(1).commitment().as_bytes()) })),
        bad(&good, "the-key-itself", "other-key", json!({ "commitment": hex(counting::<32>(0)) })),
        bad(&good, "truncated", "malformed", json!({ "commitment": hex(&right[..31]) })),
        bad(&good, "extended", "malformed", json!({ "commitment": hex(longer(&right, &[0])) })),
    ];
    file("Key commitments: HKDF-Expand of the KEK", vec![good, case("counting-from-0x80", 0x80)], bad)
}

// Envelopes.

fn envelope() -> Value {
    let case = |case: &str, id: &Name, plaintext: &[u8]| {
        let (context, nonce) = (EnvelopeContext::new(&id.keyring, id.generation, &id.key_id), counting(0xc0));
        merged(&[
            named(id),
            json!({
                "name": case,
                "kek": hex(counting::<32>(0)),
                "nonce": hex(nonce),
                "plaintext": hex(plaintext),
                "additional_data": hex(context.as_bytes()),
                "envelope": hex(EnvelopeKey::new(&kek(0)).encrypt(&context, nonce, plaintext)),
            }),
        ])
    };
    let seed = case("seed", &first(), &counting::<32>(0x40));
    let bytes = unhex(seed["envelope"].as_str().unwrap());
    let (body, context) = (&bytes[1..], EnvelopeContext::new(&first().keyring, first().generation, &first().key_id));
    // What somebody makes who skips a step of the derivation.
    let unexpanded = {
        let mut sealed = counting::<32>(0x40);
        let tag = xaes_256_gcm::Xaes256Gcm::new(&counting::<32>(0).into())
            .encrypt_inout_detached(
                &counting::<24>(0xc0).into(),
                context.as_bytes(),
                InOutBuf::from(sealed.as_mut_slice()),
            )
            .unwrap();
        [&[1][..], &counting::<24>(0xc0), &sealed, &tag].concat()
    };
    let with = |name: &str, error: &str, bytes: &[u8]| bad(&seed, name, error, json!({ "envelope": hex(bytes) }));
    let named_by = |case: &str, id: Name| bad(&seed, case, "not-authentic", named(&id));
    let no = "not-authentic";
    let bad = vec![
        with("empty", "too-short", b""),
        with("version-alone", "too-short", &bytes[..1]),
        with("nonce-cut", "too-short", &bytes[..24]),
        with("nonce-alone", "too-short", &bytes[..25]),
        with("tag-cut-of-nothing", "too-short", &bytes[..40]),
        with("no-ciphertext", no, &bytes[..41]),
        with("last-byte-cut", no, &bytes[..bytes.len() - 1]),
        with("byte-added", no, &longer(&bytes, &[0])),
        with("byte-put-before", no, &longer(&[0], &bytes)),
        with("version-0", no, &longer(&[0], body)),
        with("version-2", "newer-format 2", &longer(&[2], body)),
        with("version-255", "newer-format 255", &longer(&[255], body)),
        with("newer-format-of-any-length", "newer-format 2", &[2]),
        with("nonce-first-bit", no, &flipped(&bytes, 1, 0x80)),
        with("nonce-last-bit", no, &flipped(&bytes, 24, 1)),
        with("nonce-halves-swapped", no, &[&bytes[..1], &bytes[13..25], &bytes[1..13], &bytes[25..]].concat()),
        with("ciphertext-first-bit", no, &flipped(&bytes, 25, 0x80)),
        with("ciphertext-last-bit", no, &flipped(&bytes, bytes.len() - 17, 1)),
        with("tag-first-bit", no, &flipped(&bytes, bytes.len() - 16, 0x80)),
        with("tag-last-bit", no, &flipped(&bytes, bytes.len() - 1, 1)),
        with("tag-zero", no, &replaced(&bytes, bytes.len() - 16, &[0; 16])),
        with("kek-used-unexpanded", no, &unexpanded),
        bad(&seed, "other-kek", no, json!({ "kek": hex(counting::<32>(1)) })),
        named_by("other-keyring", elsewhere()),
        named_by("other-generation", second()),
        named_by("other-generation-number-alone", Name { generation: GenerationNumber(2), ..first() }),
        named_by("other-key-id-alone", Name { key_id: name("default", 1, 0xb0).key_id, ..first() }),
    ];
    let good = vec![
        case("empty-plaintext", &first(), b""),
        case("longest-key-id", &longest(), &counting::<32>(0x40)),
        case("block-and-a-byte", &second(), &counting::<17>(0x40)),
        case("kilobyte", &elsewhere(), &counting::<1024>(0)),
    ];
    file("Envelopes: XAES-256-GCM, what etcd holds in place of a DEK seed", [vec![seed], good].concat(), bad)
}

// Wraps.

fn pkcs11(id: &Name) -> WrapContext {
    WrapContext {
        keyring: id.keyring.clone(),
        generation: id.generation,
        key_id: id.key_id.clone(),
        root_kind: RootKind::Pkcs11,
        root_id: RootId::new(&counting::<16>(0xe0)).unwrap(),
    }
}

fn bound(context: &WrapContext) -> Value {
    json!({
        "keyring": context.keyring,
        "generation": context.generation,
        "key_id": context.key_id,
        "root_kind": u8::from(context.root_kind),
        "root_id": context.root_id,
    })
}

/// Fields of a good wrap of the KEK that counts from 0x20.
fn wrap_case(case: &str, context: &WrapContext, wrap: &[u8], rest: Value) -> Value {
    let common = json!({
        "name": case,
        "kek": hex(counting::<32>(0x20)),
        "commitment": hex(kek(0x20).commitment().as_bytes()),
        "context": hex(context.to_bytes()),
        "wrap": hex(wrap),
    });
    merged(&[bound(context), common, rest])
}

/// What is bad about any wrap: its context changed, its seal flipped, its length or construction changed.
fn bad_wraps(good: &Value, context: &WrapContext) -> Vec<Value> {
    let bytes = unhex(good["wrap"].as_str().unwrap());
    let with = |name: &str, error: &str, bytes: &[u8]| {
        let case = bad(good, name, error, json!({ "wrap": hex(bytes) }));
        without_kek(case)
    };
    let in_context = |name: &str, change: &dyn Fn(&mut WrapContext)| {
        let mut context = context.clone();
        change(&mut context);
        without_kek(bad(good, name, "not-authentic", bound(&context)))
    };
    let (end, no) = (bytes.len(), "not-authentic");
    vec![
        with("empty", "malformed", b""),
        with("construction-alone", "malformed", &bytes[..1]),
        with("last-byte-cut", "malformed", &bytes[..end - 1]),
        with("byte-added", "malformed", &longer(&bytes, &[0])),
        with("construction-0", "unknown-construction 0", &replaced(&bytes, 0, &[0])),
        with("construction-127", "unknown-construction 127", &replaced(&bytes, 0, &[127])),
        with("unknown-construction-of-any-length", "unknown-construction 200", &[200]),
        with("ciphertext-first-bit", no, &flipped(&bytes, end - 48, 0x80)),
        with("ciphertext-last-bit", no, &flipped(&bytes, end - 17, 1)),
        with("tag-first-bit", no, &flipped(&bytes, end - 16, 0x80)),
        with("tag-last-bit", no, &flipped(&bytes, end - 1, 1)),
        with("tag-zero", no, &replaced(&bytes, end - 16, &[0; 16])),
        in_context("other-keyring", &|context| context.keyring = elsewhere().keyring),
        in_context("other-generation", &|context| context.generation = GenerationNumber(2)),
        in_context("other-key-id", &|context| context.key_id = name("default", 1, 0xb0).key_id),
        in_context("other-root-kind", &|context| context.root_kind = RootKind::Tpm),
        in_context("unknown-root-kind", &|context| context.root_kind = RootKind::Other(200)),
        in_context("other-root", &|context| context.root_id = RootId::new(&counting::<16>(0xd0)).unwrap()),
        in_context("root-id-cut", &|context| context.root_id = RootId::new(&context.root_id.as_bytes()[..15]).unwrap()),
    ]
}

fn without_kek(mut case: Value) -> Value {
    case.as_object_mut().unwrap().remove("kek");
    case
}

fn sealed_by_cmk(cmk: u8, iv: u8, context: &WrapContext, kek: u8) -> Vec<u8> {
    let mut sealed = [0; 48];
    let (ciphertext, tag) = sealed.split_at_mut(32);
    ciphertext.copy_from_slice(&counting::<32>(kek));
    let computed = Aes256Gcm::new(&counting::<32>(cmk).into())
        .encrypt_inout_detached(&counting::<12>(iv).into(), &context.to_bytes(), InOutBuf::from(ciphertext))
        .unwrap();
    tag.copy_from_slice(&computed);
    Construction::AesGcm { iv: counting(iv), sealed }.to_bytes()
}

fn wrap_aes_gcm() -> Value {
    let case = |case: &str, context: &WrapContext| {
        wrap_case(case, context, &sealed_by_cmk(0x60, 0x10, context, 0x20), json!({ "cmk": hex(counting::<32>(0x60)) }))
    };
    let context = pkcs11(&first());
    let good = case("first-generation", &context);
    let bytes = sealed_by_cmk(0x60, 0x10, &context, 0x20);
    let next = sealed_by_cmk(0x60, 0x11, &pkcs11(&second()), 0x20);
    let with = |name: &str, error: &str, changes: Value| without_kek(bad(&good, name, error, changes));
    let mut bad = bad_wraps(&good, &context);
    bad.extend([
        with("iv-first-bit", "not-authentic", json!({ "wrap": hex(flipped(&bytes, 1, 0x80)) })),
        with("iv-last-bit", "not-authentic", json!({ "wrap": hex(flipped(&bytes, 12, 1)) })),
        with("other-cmk", "not-authentic", json!({ "cmk": hex(counting::<32>(0x61)) })),
        with("wrap-of-the-next-generation", "not-authentic", json!({ "wrap": hex(next) })),
        with(
            "another-kek-under-the-same-cmk",
            "other-key",
            json!({ "wrap": hex(sealed_by_cmk(0x60, 0x12, &context, 0x21)) }),
        ),
        with("taken-for-hpke", "malformed", json!({ "wrap": hex(replaced(&bytes, 0, &[2])) })),
        with("wrap-of-the-recovery-key", "other-construction", json!({ "wrap": hex(hpke_wrap(0x11, &context, 0x20)) })),
    ]);
    let mut long = pkcs11(&longest());
    long.root_id = RootId::new(&counting::<64>(0)).unwrap();
    file("Custody wraps: the KEK under an AES-256 CMK, by AES-256-GCM", vec![good, case("longest-names", &long)], bad)
}

// Offline copies.

fn copied(key: u8, iv: u8, context: &WrapContext, start: u8) -> Vec<u8> {
    CopyKey::new(Zeroizing::new(counting(key))).seal(context, &kek(start), counting(iv))
}

fn offline_copy() -> Value {
    let in_cloud = |id: &Name, kind: RootKind, root: &[u8]| WrapContext {
        root_kind: kind,
        root_id: RootId::new(root).unwrap(),
        ..pkcs11(id)
    };
    let case = |case: &str, context: &WrapContext| {
        let key = json!({ "copy_key": hex(counting::<32>(0x70)) });
        wrap_case(case, context, &copied(0x70, 0x10, context, 0x20), key)
    };
    let context = in_cloud(&first(), RootKind::AlibabaKms, b"key-hzz000000000000000001");
    let good = case("first-generation", &context);
    let with = |name: &str, error: &str, changes: Value| without_kek(bad(&good, name, error, changes));
    let next = in_cloud(&second(), RootKind::AlibabaKms, b"key-hzz000000000000000001");
    let mut bad = bad_wraps(&good, &context);
    bad.extend([
        with("key-of-another-epoch", "not-authentic", json!({ "copy_key": hex(counting::<32>(0x71)) })),
        with("copy-of-the-next-generation", "not-authentic", json!({ "wrap": hex(copied(0x70, 0x11, &next, 0x20)) })),
        with("another-kek", "other-key", json!({ "wrap": hex(copied(0x70, 0x12, &context, 0x21)) })),
        // The same key, context and construction, without the label of copies.
        with(
            "custody-wrap-by-the-same-key",
            "not-authentic",
            json!({ "wrap": hex(sealed_by_cmk(0x70, 0x10, &context, 0x20)) }),
        ),
        with("wrap-of-the-recovery-key", "not-authentic", json!({ "wrap": hex(hpke_wrap(0x11, &context, 0x20)) })),
    ]);
    let longest = in_cloud(&longest(), RootKind::AwsKms, &counting::<64>(0));
    file(
        "Offline copies: the KEK of a generation whose root is in the cloud, under a key of one epoch",
        vec![good, case("longest-names", &longest)],
        bad,
    )
}

// Lease grants.

fn grant_signer(scalar: u8) -> GrantSigner {
    let key = p256::SecretKey::from_slice(&[scalar; 32]).unwrap();
    GrantSigner::from_pem(&key.to_pkcs8_pem(LineEnding::LF).unwrap()).unwrap()
}

/// Any document, signed as a grant is.
fn signed(document: &str) -> String {
    let key = p256::ecdsa::SigningKey::from(p256::SecretKey::from_slice(&[0x11; 32]).unwrap());
    let signature: p256::ecdsa::Signature = key.sign(&[b"keystead-grant\x01", document.as_bytes()].concat());
    format!("keystead-grant 1\nsignature {}\n{document}", hex(signature.to_bytes()))
}

fn lease_grant() -> Value {
    let case = |case: &str, id: &Name, epoch: u64, seconds: u64| {
        let grant =
            Grant { keyring: id.keyring.clone(), key_id: id.key_id.clone(), epoch, seconds, nonce: counting(0x40) };
        json!({
            "name": case,
            "public_key": hex(public_key(0x11).as_sec1()),
            "grant": String::from_utf8(grant.sign(&grant_signer(0x11)).unwrap()).unwrap(),
            "keyring": id.keyring,
            "key_id": id.key_id,
            "epoch": epoch,
            "seconds": seconds,
            "nonce": hex(grant.nonce),
        })
    };
    let good = vec![
        case("one-day", &first(), 17, 86_400),
        case("longest-names-longest-time", &longest(), u64::MAX, 366 * 86_400),
    ];
    let grant = good[0]["grant"].as_str().unwrap();
    let (head, document) = grant.split_at(grant.match_indices('\n').nth(1).unwrap().0 + 1);
    let with = |name: &str, error: &str, grant: &str| json!({ "name": name, "public_key": hex(public_key(0x11).as_sec1()), "grant": grant, "error": error });
    let edited = |name: &str, from: &str, to: &str| {
        assert!(document.contains(from), "{from}");
        with(name, "not-authentic", &format!("{head}{}", document.replacen(from, to, 1)))
    };
    let resigned = |name: &str, from: &str, to: &str| {
        assert!(document.contains(from), "{from}");
        with(name, "malformed", &signed(&document.replacen(from, to, 1)))
    };
    let mut other_key = with("signed-by-another-key", "not-authentic", grant);
    other_key["public_key"] = hex(public_key(0x12).as_sec1()).into();
    let bad = vec![
        with("empty", "malformed", ""),
        with("head-alone", "not-authentic", head),
        with("document-cut", "not-authentic", &grant[..grant.len() - 2]),
        with("byte-added", "not-authentic", &format!("{grant} ")),
        with("format-0", "malformed", &grant.replacen("grant 1", "grant 0", 1).replacen("grant 0", "grant 01", 1)),
        with("newer-format", "newer-format 2", &grant.replacen("grant 1", "grant 2", 1)),
        with("a-record", "malformed", &grant.replacen("keystead-grant", "keystead-store", 1)),
        with(
            "signature-in-upper-case",
            "malformed",
            &format!(
                "{}{document}",
                head.to_uppercase().replacen("KEYSTEAD-GRANT 1\nSIGNATURE", "keystead-grant 1\nsignature", 1)
            ),
        ),
        with(
            "signature-of-zeros",
            "malformed",
            &format!("keystead-grant 1\nsignature {}\n{document}", "0".repeat(128)),
        ),
        other_key,
        edited("longer", "\"seconds\": 86400", "\"seconds\": 86401"),
        edited("for-the-next-epoch", "\"epoch\": 17", "\"epoch\": 18"),
        edited("other-nonce", "4041", "4141"),
        resigned("of-nothing", "\"seconds\": 86400", "\"seconds\": 0"),
        resigned("of-more-than-a-year", "\"seconds\": 86400", "\"seconds\": 31622401"),
        resigned("field-missing", "  \"epoch\": 17,\n", ""),
        resigned("field-unknown", "\"epoch\": 17", "\"epoch\": 17, \"more\": 1"),
        resigned("key-of-another-keyring", "\"keyring\": \"default\"", "\"keyring\": \"other\""),
    ];
    file("Lease grants: an owner's signed word, for one epoch of one key", good, bad)
}

// HPKE.

/// A random source that gives out the ephemeral key's seed, then panics.
struct Scripted(Vec<u8>);

impl TryRng for Scripted {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        unreachable!("HPKE asks for bytes")
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        unreachable!("HPKE asks for bytes")
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        let rest = self.0.split_off(out.len());
        out.copy_from_slice(&self.0);
        self.0 = rest;
        Ok(())
    }
}

impl TryCryptoRng for Scripted {}

fn public_key(scalar: u8) -> P256PublicKey {
    let secret = p256::SecretKey::from_slice(&[scalar; 32]).unwrap();
    P256PublicKey::from_sec1(secret.public_key().to_sec1_point(false).as_bytes()).unwrap()
}

fn hpke_wrap(scalar: u8, context: &WrapContext, start: u8) -> Vec<u8> {
    let mut rng = Scripted(counting::<32>(0x90).to_vec());
    public_key(scalar).seal(context, &kek(start), &mut rng).to_bytes()
}

fn wrap_hpke() -> Value {
    let case = |case: &str, context: &WrapContext| {
        let keys = json!({
            "private_key": hex([0x11; 32]),
            "public_key": hex(public_key(0x11).as_sec1()),
            "ephemeral_ikm": hex(counting::<32>(0x90)),
        });
        wrap_case(case, context, &hpke_wrap(0x11, context, 0x20), keys)
    };
    let recovery = |id: &Name| {
        let mut rng = Scripted(counting::<32>(0x90).to_vec());
        let wrap = public_key(0x11).recovery_wrap(pkcs11(id), &kek(0x20), &mut rng);
        let context = WrapContext { root_kind: wrap.root_kind, root_id: wrap.root_id, ..pkcs11(id) };
        assert_eq!(wrap.bytes, hpke_wrap(0x11, &context, 0x20));
        context
    };
    let context = recovery(&first());
    let good = case("recovery-key", &context);
    let bytes = hpke_wrap(0x11, &context, 0x20);
    let point = p256::PublicKey::from_sec1_bytes(&bytes[1..66]).unwrap();
    let negated = p256::PublicKey::from_affine(-*point.as_affine()).unwrap().to_sec1_point(false);
    let with = |name: &str, error: &str, changes: Value| without_kek(bad(&good, name, error, changes));
    let point_is =
        |name: &str, error: &str, point: &[u8]| with(name, error, json!({ "wrap": hex(replaced(&bytes, 1, point)) }));
    let mut bad = bad_wraps(&good, &context);
    bad.extend([
        point_is("point-compressed-prefix", "malformed", &[2]),
        point_is("point-hybrid-prefix", "malformed", &[6]),
        point_is("point-x-first-bit", "malformed", &flipped(&bytes[1..66], 1, 0x80)),
        point_is("point-y-last-bit", "malformed", &flipped(&bytes[1..66], 64, 1)),
        point_is("point-at-infinity", "malformed", &[0; 65]),
        point_is("point-zero-coordinates", "malformed", &longer(&[4], &[0; 64])),
        point_is("point-coordinates-above-p", "malformed", &longer(&[4], &[0xff; 64])),
        // The same x-coordinate, so the same ECDH output: only the key schedule tells them apart.
        point_is("point-negated", "not-authentic", negated.as_bytes()),
        point_is("point-of-another-key", "not-authentic", public_key(0x22).as_sec1()),
        with(
            "other-private-key",
            "not-authentic",
            json!({
                "private_key": hex([0x22; 32]), "public_key": hex(public_key(0x22).as_sec1()),
            }),
        ),
        with(
            "wrap-of-the-next-generation",
            "not-authentic",
            json!({ "wrap": hex(hpke_wrap(0x11, &recovery(&second()), 0x20)) }),
        ),
        with(
            "wrap-of-the-custody-root",
            "other-construction",
            json!({ "wrap": hex(sealed_by_cmk(0x60, 0x10, &context, 0x20)) }),
        ),
        // Whoever has the public key can do this; the commitment beside the wrap gives it away.
        with("another-kek-to-the-same-key", "other-key", json!({ "wrap": hex(hpke_wrap(0x11, &context, 0x21)) })),
    ]);
    let good =
        vec![good, case("custody-key-in-a-token", &pkcs11(&second())), case("longest-names", &recovery(&longest()))];
    file("Public-key wraps: the KEK by HPKE base mode, DHKEM(P-256, HKDF-SHA256), HKDF-SHA256, AES-256-GCM", good, bad)
}

// TPM.

fn in_tpm(id: &Name) -> WrapContext {
    WrapContext { root_kind: RootKind::Tpm, ..pkcs11(id) }
}

/// `TPMT_PUBLIC` of a CMK: type, SHA-256, attributes, no policy; then what its type has.
fn tpm_public(kind: [u8; 2], rest: &[&[u8]]) -> Vec<u8> {
    [&kind[..], &unhex("000b000204720000"), &rest.concat()].concat()
}

fn tpm_key(public: Vec<u8>) -> TpmKey {
    // Encrypted by the TPM: to everybody else just bytes.
    TpmKey { public, private: counting::<126>(0).to_vec() }
}

fn tpm_ecdh_wrap(scalar: u8, context: &WrapContext, start: u8) -> Vec<u8> {
    let mut rng = Scripted(counting::<32>(0x90).to_vec());
    let point = public_key(scalar);
    let Construction::HpkeP256 { encapsulated, sealed } = point.seal(context, &kek(start), &mut rng) else {
        unreachable!("a public key seals by HPKE")
    };
    let [x, y] = [1..33, 33..65].map(|half| point.as_sec1()[half].to_vec());
    let rest: [&[u8]; 5] = [&unhex("0010001000030010"), &[0, 32], &x, &[0, 32], &y];
    let key = tpm_key(tpm_public([0, 0x23], &rest));
    Construction::TpmEcdh { key, encapsulated, sealed }.to_bytes()
}

fn wrap_tpm() -> Value {
    let ecdh = |case: &str, context: &WrapContext| {
        let keys = json!({ "private_key": hex([0x11; 32]), "public_key": hex(public_key(0x11).as_sec1()) });
        wrap_case(case, context, &tpm_ecdh_wrap(0x11, context, 0x20), keys)
    };
    let context = in_tpm(&first());
    let good = ecdh("p256", &context);
    let bytes = tpm_ecdh_wrap(0x11, &context, 0x20);
    // No cipher, no scheme, 2048 bits, the usual exponent, `u16 256 ‖ modulus`.
    let rest: [&[u8]; 3] = [&unhex("00100010080000000000"), &[1, 0], &unhex(rsa::MODULUS)];
    let key = tpm_key(tpm_public([0, 1], &rest));
    let block = Box::new(unhex(rsa::BLOCK_TPM).try_into().unwrap());
    let rsa_bytes = Construction::TpmRsaOaep { key, block }.to_bytes();
    let message = oaep_message(&context.to_bytes(), &kek(0x20));
    let keys = json!({ "private_key_pkcs8": rsa::PRIVATE_KEY_PKCS8, "message": hex(message.as_slice()) });
    let rsa = wrap_case("rsa-2048", &context, &rsa_bytes, keys);
    let with = |name: &str, error: &str, changes: Value| without_kek(bad(&good, name, error, changes));
    let wrap_is = |name: &str, error: &str, bytes: &[u8]| with(name, error, json!({ "wrap": hex(bytes) }));
    let rsa_is = |name: &str, error: &str, changes: Value| without_kek(bad(&rsa, name, error, changes));
    let elsewhere = hex(oaep_message(&in_tpm(&second()).to_bytes(), &kek(0x20)).as_slice());
    let mut bad = bad_wraps(&good, &pkcs11(&first()));
    // That one is this very context.
    bad.retain(|case| case["name"] != "other-root-kind");
    bad.extend([
        with("root-kind-of-a-token", "not-authentic", json!({ "root_kind": 1 })),
        wrap_is("public-half-empty", "malformed", &replaced(&bytes, 1, &[0, 0])),
        wrap_is("public-half-one-longer", "malformed", &replaced(&bytes, 1, &[0, 87])),
        wrap_is("public-half-beyond-the-end", "malformed", &replaced(&bytes, 1, &[0xff, 0xff])),
        wrap_is("private-half-empty", "malformed", &replaced(&bytes, 89, &[0, 0])),
        wrap_is("private-half-one-shorter", "malformed", &replaced(&bytes, 89, &[0, 125])),
        wrap_is("taken-for-rsa", "malformed", &replaced(&bytes, 0, &[5])),
        wrap_is("wrap-of-the-next-generation", "not-authentic", &tpm_ecdh_wrap(0x11, &in_tpm(&second()), 0x20)),
        wrap_is("another-kek-to-the-same-key", "other-key", &tpm_ecdh_wrap(0x11, &context, 0x21)),
        wrap_is("wrap-without-the-halves", "other-construction", &hpke_wrap(0x11, &context, 0x20)),
        rsa_is("rsa-block-cut", "malformed", json!({ "wrap": hex(&rsa_bytes[..rsa_bytes.len() - 1]) })),
        rsa_is("rsa-block-longer", "malformed", json!({ "wrap": hex(longer(&rsa_bytes, &[0])) })),
        rsa_is("rsa-message-of-another-context", "not-authentic", json!({ "message": elsewhere })),
        rsa_is("rsa-in-another-context", "not-authentic", json!({ "generation": 2 })),
        rsa_is("rsa-message-cut", "not-authentic", json!({ "message": hex(&message[..31]) })),
    ]);
    let good = vec![good, ecdh("longest-names", &in_tpm(&longest())), rsa];
    file("Custody wraps: the KEK under a key of a TPM 2.0, which travels with the wrap", good, bad)
}

// RSA-OAEP.

fn oaep_wrap(hash: OaepHash, transport: u8, context: &WrapContext, start: u8) -> Vec<u8> {
    let block = match hash {
        OaepHash::Sha256 => rsa::BLOCK_SHA256,
        OaepHash::Sha1 => rsa::BLOCK_SHA1,
    };
    let sealed = seal_under_transport_key(&counting(transport), &context.to_bytes(), &kek(start));
    Construction::RsaOaep { hash, block: unhex(block), sealed }.to_bytes()
}

fn wrap_oaep() -> Value {
    let case = |case: &str, hash: OaepHash, transport: u8, context: &WrapContext| {
        let (spelled, block) = match hash {
            OaepHash::Sha256 => ("sha256", rsa::BLOCK_SHA256),
            OaepHash::Sha1 => ("sha1", rsa::BLOCK_SHA1),
        };
        let rest = json!({
            "private_key_pkcs8": rsa::PRIVATE_KEY_PKCS8,
            "hash": spelled,
            "block": block,
            "transport_key": hex(counting::<32>(transport)),
        });
        wrap_case(case, context, &oaep_wrap(hash, transport, context, 0x20), rest)
    };
    let context = pkcs11(&first());
    let good = case("sha256", OaepHash::Sha256, 0x60, &context);
    let bytes = oaep_wrap(OaepHash::Sha256, 0x60, &context, 0x20);
    let with = |name: &str, error: &str, changes: Value| without_kek(bad(&good, name, error, changes));
    let wrap_is = |name: &str, error: &str, bytes: &[u8]| with(name, error, json!({ "wrap": hex(bytes) }));
    let resized = |len: usize| {
        let head = [&[3, 1][..], &(len as u16).to_be_bytes()].concat();
        [head, vec![7; len], bytes[260..].to_vec()].concat()
    };
    let mut bad = bad_wraps(&good, &context);
    bad.extend([
        wrap_is("hash-0", "malformed", &replaced(&bytes, 1, &[0])),
        wrap_is("hash-3", "malformed", &replaced(&bytes, 1, &[3])),
        wrap_is("length-cut", "malformed", &bytes[..3]),
        wrap_is("length-one-less", "malformed", &replaced(&bytes, 2, &[0, 255])),
        wrap_is("length-one-more", "malformed", &replaced(&bytes, 2, &[1, 1])),
        wrap_is("length-beyond-the-end", "malformed", &replaced(&bytes, 2, &[0xff, 0xff])),
        wrap_is("block-shorter-than-rsa-2048", "malformed", &resized(255)),
        wrap_is("block-longer-than-rsa-4096", "malformed", &resized(513)),
        wrap_is("block-cut", "malformed", &bytes[..200]),
        with("other-transport-key", "not-authentic", json!({ "transport_key": hex(counting::<32>(0x61)) })),
        wrap_is(
            "wrap-of-the-next-generation",
            "not-authentic",
            &oaep_wrap(OaepHash::Sha256, 0x60, &pkcs11(&second()), 0x20),
        ),
        wrap_is(
            "another-kek-under-the-same-transport-key",
            "other-key",
            &oaep_wrap(OaepHash::Sha256, 0x60, &context, 0x21),
        ),
        wrap_is("wrap-of-an-aes-cmk", "other-construction", &sealed_by_cmk(0x60, 0x10, &context, 0x20)),
    ]);
    let good = vec![good, case("sha1", OaepHash::Sha1, 0x80, &pkcs11(&second()))];
    file("OAEP wraps: a transport key by RSA-OAEP, the KEK under it by AES-256-GCM", good, bad)
}

// Annotations.

fn custody_wrap(id: &Name) -> WrappedKek {
    let context = pkcs11(id);
    WrappedKek {
        bytes: sealed_by_cmk(0x60, 0x10, &context, 0x20),
        root_kind: context.root_kind,
        root_id: context.root_id,
    }
}

fn recovery_wrap(id: &Name) -> WrappedKek {
    public_key(0x11).recovery_wrap(pkcs11(id), &kek(0x20), &mut Scripted(counting::<32>(0x90).to_vec()))
}

/// A root and a construction of a version to come.
fn unknown_wrap() -> WrappedKek {
    WrappedKek {
        root_kind: RootKind::Other(200),
        root_id: RootId::new(b"a-root-of-tomorrow").unwrap(),
        bytes: longer(&[0x7f], &counting::<100>(0)),
    }
}

fn annotation() -> Value {
    let encoded = |id: &Name, wraps: Vec<WrappedKek>| {
        Annotation { key_id: id.key_id.clone(), commitment: kek(0x20).commitment(), wraps }.encode().unwrap()
    };
    let case = |case: &str, id: &Name, wraps: Vec<WrappedKek>| {
        let listed: Vec<Value> = wraps
            .iter()
            .map(|wrap| json!({ "root_kind": u8::from(wrap.root_kind), "root_id": wrap.root_id, "wrap": hex(&wrap.bytes) }))
            .collect();
        json!({
            "name": case,
            "key_id": id.key_id,
            "commitment": hex(kek(0x20).commitment().as_bytes()),
            "wraps": listed,
            "annotation": hex(encoded(id, wraps)),
        })
    };
    let good = vec![
        case("custody-alone", &first(), vec![custody_wrap(&first())]),
        case("custody-and-recovery", &first(), vec![custody_wrap(&first()), recovery_wrap(&first())]),
        case("unknown-root-kind-and-construction-kept", &second(), vec![custody_wrap(&second()), unknown_wrap()]),
        case("longest-key-id", &longest(), vec![custody_wrap(&longest())]),
    ];
    let bytes = encoded(&first(), vec![custody_wrap(&first())]);
    let id_len = first().key_id.as_str().len();
    // version, u16, key ID, commitment, count, kind, u16, root ID (16), u16, wrap (61)
    let (commitment, count) = (3 + id_len, 3 + id_len + 32);
    let (kind, root_len, wrap_len) = (count + 1, count + 2, count + 4 + 16);
    let with =
        |name: &str, error: &str, bytes: &[u8]| json!({ "name": name, "annotation": hex(bytes), "error": error });
    let no = "malformed";
    let wrap_of = |len: usize| [&bytes[..wrap_len], &(len as u16).to_be_bytes()[..], &vec![0x7f; len]].concat();
    let key_id_is = |text: &str| {
        [&bytes[..1], &(text.len() as u16).to_be_bytes()[..], text.as_bytes(), &bytes[commitment..]].concat()
    };
    let bad = vec![
        with("empty", no, b""),
        with("version-alone", no, &bytes[..1]),
        with("version-0", no, &replaced(&bytes, 0, &[0])),
        with("version-2", "newer-format 2", &replaced(&bytes, 0, &[2])),
        with("newer-format-of-any-length", "newer-format 255", &[255]),
        with("key-id-length-cut", no, &bytes[..2]),
        with("key-id-cut", no, &bytes[..3 + id_len - 1]),
        with("key-id-length-zero", no, &replaced(&bytes, 1, &[0, 0])),
        with("key-id-length-beyond-the-end", no, &replaced(&bytes, 1, &[0xff, 0xff])),
        with("key-id-of-another-spelling", no, &key_id_is("ks1.default.01.a0a1a2a3a4a5a6a7a8a9aaabacadaeaf")),
        with("key-id-not-utf-8", no, &flipped(&bytes, 3, 0x80)),
        with("commitment-cut", no, &bytes[..commitment + 31]),
        with("count-missing", no, &bytes[..count]),
        with("count-one-less", no, &replaced(&bytes, count, &[0])),
        with("count-one-more", no, &replaced(&bytes, count, &[2])),
        with("count-255", no, &replaced(&bytes, count, &[255])),
        with("kind-alone", no, &bytes[..kind + 1]),
        with("root-id-empty", no, &[&bytes[..root_len], &[0, 0], &bytes[wrap_len..]].concat()),
        with("root-id-of-65-bytes", no, &[&bytes[..root_len], &[0, 65], &[7; 65], &bytes[wrap_len..]].concat()),
        with("root-id-cut", no, &bytes[..wrap_len - 1]),
        with("wrap-length-cut", no, &bytes[..wrap_len + 1]),
        with("wrap-length-one-less", no, &replaced(&bytes, wrap_len, &[0, 60])),
        with("wrap-length-one-more", no, &replaced(&bytes, wrap_len, &[0, 62])),
        with("wrap-of-897-bytes", no, &wrap_of(897)),
        with("last-byte-cut", no, &bytes[..bytes.len() - 1]),
        with("byte-added", no, &longer(&bytes, &[0])),
        with("longer-than-a-kibibyte", no, &longer(&bytes, &vec![0; 1025 - bytes.len()])),
    ];
    file("Annotations: the wraps that each Encrypt answer carries", good, bad)
}

// Records.

fn keyring(recovery: bool) -> Keyring {
    Keyring {
        revision: 3,
        epoch: 2,
        ..Keyring::empty(
            "default".parse().unwrap(),
            "master-1".parse().unwrap(),
            TokenIdentity { serial: "0123456789abcdef".into(), label: "Keystead \"edge\" é".into() },
            if recovery {
                RecoveryRoot::PublicKey { point: public_key(0x11).as_sec1().to_vec() }
            } else {
                RecoveryRoot::Declined
            },
        )
    }
}

fn generation(id: &Name, state: GenerationState, wraps: Vec<WrappedKek>) -> Generation {
    Generation {
        number: id.generation,
        key_id: id.key_id.clone(),
        state,
        created: 1_800_000_000,
        activated: (state != GenerationState::Prepared).then_some(1_800_000_060),
        forced: None,
        commitment: kek(0x20).commitment(),
        wraps,
        pending: None,
        tombstone: None,
    }
}

/// Any document with a right tag.
fn tagged(document: &str) -> String {
    let tag = FixedKey(counting(0x30)).tag(&[b"keystead-record\x01", document.as_bytes()].concat());
    format!("keystead-store 1\ntag {}\n{document}", hex(tag))
}

fn in_the_cloud() -> Keyring {
    let id = first();
    let root_id = RootId::new(b"key-hzz000000000000000001").unwrap();
    let wrap = WrappedKek { root_kind: RootKind::AlibabaKms, root_id: root_id.clone(), bytes: b"\x10opaque".to_vec() };
    let mut keyring = keyring(false);
    keyring.last_number = GenerationNumber(1);
    keyring.generations = vec![generation(&id, GenerationState::Active, vec![wrap])];
    let context = keyring.generations[0].context(&id.keyring, RootKind::AlibabaKms, &root_id);
    let boot = "0b0c0d0e-1111-4222-8333-444455556666".to_owned();
    let now = Clocks { boot, boot_time: 3600, wall: 1_800_000_000, device: None, resets: None };
    keyring.upstream = Some(UpstreamState {
        root_kind: RootKind::AlibabaKms,
        root_id,
        proven: Some(ConfigurationDigest(counting(0x50))),
        grant_key: Some(grant_signer(0x11).public()),
        lease: Lease::full(Duration::from_secs(72 * 3600), now),
        server_time: 1_800_000_000,
        denials: Some(Denials { count: 2, spread: 600 }),
        revoked: None,
        key_versions: vec!["v1".to_owned()],
        copies: vec![OfflineCopy { generation: id.generation, sealed: copied(0x70, 0x10, &context, 0x20) }],
    });
    keyring
}

fn record() -> Value {
    let case = |case: &str, keyring: &Keyring, generations: &str| {
        keyring.check().unwrap();
        json!({
            "name": case,
            "record_key": hex(counting::<32>(0x30)),
            "record": String::from_utf8(record::encode(keyring, &FixedKey(counting(0x30)))).unwrap(),
            "keyring": keyring.keyring,
            "node": keyring.node,
            "revision": keyring.revision,
            "epoch": keyring.epoch,
            "generations": generations,
        })
    };
    let mut one = keyring(false);
    one.begin_rotation(counting(0xa0), counting(0xe0), 1_800_000_000).unwrap();
    one.prepare(kek(0x20).commitment(), vec![custody_wrap(&first())], 1_800_000_000).unwrap();
    one.activate(1_800_000_060).unwrap();
    let mut rotating = one.clone();
    rotating.revision = 4;
    rotating.begin_rotation(counting(0xb0), counting(0xd0), 1_800_086_400).unwrap();
    let mut rotated = keyring(true);
    rotated.last_number = GenerationNumber(3);
    let third = name("default", 3, 0xd0);
    rotated.generations = vec![
        generation(&first(), GenerationState::Destroyed, Vec::new()),
        generation(&second(), GenerationState::Retired, vec![custody_wrap(&second()), unknown_wrap()]),
        generation(&third, GenerationState::Active, vec![custody_wrap(&third), recovery_wrap(&third)]),
    ];

    let mut scanned = rotated.clone();
    scanned.generations[2].forced = Some("CMK may be known: é, \"INC-42\"".parse().unwrap());
    let findings = |source| Findings {
        source,
        revision: 9_007_199_254_740_993,
        restricted: false,
        objects: [(second().key_id, 7), (third.key_id.clone(), 120), (longest().key_id, 1)].into(),
        unknown: 2,
    };
    scanned.record_scan(findings(Source::Etcd { cluster: u64::MAX - 1, member: 1 }), 1_800_000_120);
    let clean = |active: &Name| Findings {
        objects: [(active.key_id.clone(), 120)].into(),
        ..findings(Source::Etcd { cluster: 7, member: 8 })
    };
    let mut from_snapshot = rotated.clone();
    from_snapshot.begin_rotation(counting(0xc0), counting(0x08), 1_800_086_400).unwrap();
    from_snapshot.rotation.as_mut().unwrap().forced = Some("because".parse().unwrap());
    from_snapshot.record_scan(findings(Source::Snapshot { sha256: counting(0x70) }), 1_800_000_120);

    let good = vec![
        case("nothing-yet", &keyring(false), ""),
        case("one-active", &one, "1 Active 1"),
        case("rotation-journalled", &rotating, "1 Active 1"),
        case("three-generations-and-an-unknown-root", &rotated, "1 Destroyed 0, 2 Retired 2, 3 Active 2"),
        case("forced-and-scanned", &scanned, "1 Destroyed 0, 2 Retired 2, 3 Active 2"),
        case("scanned-from-a-snapshot-and-forcing", &from_snapshot, "1 Destroyed 0, 2 Retired 2, 3 Active 2"),
    ];
    let mut disabled = rotated.clone();
    let reason = Some("stolen, \"INC-43\"".parse().unwrap());
    disabled.disable(Disabling { since: 1_800_000_180, uid: Some(1000), login_uid: None, reason });
    let mut told_by_the_marker = one.clone();
    told_by_the_marker.disable(Disabling { since: 1_800_000_180, uid: None, login_uid: None, reason: None });
    let good = [good, vec![case("root-in-the-cloud", &in_the_cloud(), "1 Active 1")]].concat();
    let mut waiting = rotated.clone();
    waiting.record_scan(Findings { unknown: 0, ..clean(&third) }, 1_800_000_120);
    waiting.schedule_deletion(GenerationNumber(2), Duration::from_secs(604_800), Some(1000), 1_800_000_180).unwrap();
    waiting.pass(4800);
    let backup = |name: &str, snapshot, generations: &[u64], unknown| Backup {
        name: name.parse().unwrap(),
        registered: 1_800_000_150,
        snapshot,
        generations: generations.iter().map(|number| GenerationNumber(*number)).collect(),
        unknown,
    };
    let snapshot = Some(Snapshot { sha256: counting(0x70), revision: 9_007_199_254_740_993 });
    waiting.register_backup(backup("tape é 7", None, &[2], 0)).unwrap();
    waiting.register_backup(backup("friday.db", snapshot, &[1, 2], 3)).unwrap();
    let mut buried = waiting.clone();
    buried.pass(604_800);
    buried.bury(GenerationNumber(2), 1_800_700_000).unwrap();
    // The made-up generations share one.
    buried.generations[1].tombstone.as_mut().unwrap().left = Some(vec![RootId::new(&counting::<16>(0x99)).unwrap()]);
    let mut suspended = waiting.clone();
    suspended.suspend_deletion(GenerationNumber(2), Suspension::Objects { since: 1_800_000_240, objects: 5 });
    let mut used = waiting.clone();
    used.generations[1].pending.as_mut().unwrap().by = None;
    used.suspend_deletion(GenerationNumber(2), Suspension::Decrypts { since: 1_800_000_240 });
    let mut finished = buried.clone();
    finished.finish_deletion(GenerationNumber(2));
    let deletions = vec![
        case("deletion-waiting-and-backups", &waiting, "1 Destroyed 0, 2 PendingDeletion 2, 3 Active 2"),
        case("deletion-suspended-by-objects", &suspended, "1 Destroyed 0, 2 PendingDeletion 2, 3 Active 2"),
        case("deletion-suspended-by-decrypts", &used, "1 Destroyed 0, 2 PendingDeletion 2, 3 Active 2"),
        case("tombstone-with-a-cmk-to-destroy", &buried, "1 Destroyed 0, 2 Destroyed 0, 3 Active 2"),
        case("tombstone", &finished, "1 Destroyed 0, 2 Destroyed 0, 3 Active 2"),
    ];
    let good = [good, deletions].concat();
    let mut going_home = in_the_cloud();
    going_home.begin_rotation(counting(0xb0), counting(0xd0), 1_800_086_400).unwrap();
    let recovery = RecoveryRoot::PublicKey { point: public_key(0x11).as_sec1().to_vec() };
    going_home.intend_roots(RootsChoice { recovery, custody_only: true }).unwrap();
    let newest = name("default", 2, 0xb0);
    let mut home = going_home.clone();
    home.prepare(kek(0x20).commitment(), vec![custody_wrap(&newest), recovery_wrap(&newest)], 1_800_086_400).unwrap();
    home.activate(1_800_086_460).unwrap();
    let findings = Findings {
        source: Source::Etcd { cluster: 1, member: 1 },
        revision: 7,
        restricted: false,
        objects: [(newest.key_id.clone(), 7)].into(),
        unknown: 0,
    };
    home.record_scan(findings, 1_800_086_520);
    let good = [
        good,
        vec![
            case("going-home-with-a-recovery-key", &going_home, "1 Active 1"),
            case("home-again-and-rewritten", &home, "1 Retired 1, 2 Active 2"),
            case("disabled", &disabled, "1 Destroyed 0, 2 Retired 2, 3 Active 2"),
            case("disabled-by-the-marker", &told_by_the_marker, "1 Active 1"),
        ],
    ]
    .concat();
    let record = good[1]["record"].as_str().unwrap();
    let (head, document) = record.split_at(record.match_indices('\n').nth(1).unwrap().0 + 1);
    let (tag, other_tag) = (&head[21..85], hex([0; 32]));
    let with = |name: &str, error: &str, record: &str| json!({ "name": name, "record_key": hex(counting::<32>(0x30)), "record": record, "error": error });
    let edited = |name: &str, from: &str, to: &str| {
        assert!(document.contains(from), "{from}");
        with(name, "not-authentic", &format!("{head}{}", document.replacen(from, to, 1)))
    };
    let retagged = |name: &str, error: &str, from: &str, to: &str| {
        assert!(document.contains(from), "{from}");
        with(name, error, &tagged(&document.replacen(from, to, 1)))
    };
    let of_scan = |name: &str, from: &str, to: &str| {
        let (_, document) = good[4]["record"].as_str().unwrap().split_at(head.len());
        assert!(document.contains(from), "{from}");
        with(name, "malformed", &tagged(&document.replacen(from, to, 1)))
    };
    let inconsistent = |name: &str, change: &dyn Fn(&mut Keyring)| {
        let mut keyring = rotated.clone();
        change(&mut keyring);
        let bytes = record::encode(&keyring, &FixedKey(counting(0x30)));
        with(name, "inconsistent", std::str::from_utf8(&bytes).unwrap())
    };
    let of_deletion = |name: &str, from: &str, to: &str| {
        let (_, document) = good[7]["record"].as_str().unwrap().split_at(head.len());
        assert!(document.contains(from), "{from}");
        with(name, "malformed", &tagged(&document.replacen(from, to, 1)))
    };
    let spoilt = |name: &str, of: &Keyring, change: &dyn Fn(&mut Keyring)| {
        let mut keyring = of.clone();
        change(&mut keyring);
        let bytes = record::encode(&keyring, &FixedKey(counting(0x30)));
        with(name, "inconsistent", std::str::from_utf8(&bytes).unwrap())
    };
    let mut other_key = with("key-of-another-epoch", "not-authentic", record);
    other_key["record_key"] = hex(counting::<32>(0x31)).into();
    let bad = vec![
        with("empty", "malformed", ""),
        with("first-line-alone", "malformed", "keystead-store 1\n"),
        with("head-alone", "malformed", head),
        with("document-cut", "malformed", &record[..record.len() - 3]),
        with("last-line-end-cut", "not-authentic", &record[..record.len() - 1]),
        with("line-end-added", "not-authentic", &format!("{record}\n")),
        with("text-added", "malformed", &format!("{record}{{}}")),
        with("byte-order-mark", "malformed", &format!("\u{feff}{record}")),
        with("carriage-returns", "malformed", &record.replace('\n', "\r\n")),
        with("other-magic", "malformed", &record.replacen("keystead-store", "keystead-stove", 1)),
        with("format-0", "malformed", &record.replacen("store 1", "store 0", 1)),
        with("format-01", "malformed", &record.replacen("store 1", "store 01", 1)),
        with("format-plus-1", "malformed", &record.replacen("store 1", "store +1", 1)),
        with("format-2", "newer-format 2", &record.replacen("store 1", "store 2", 1)),
        with("newer-format-of-any-content", "newer-format 10", "keystead-store 10\n"),
        with("no-tag", "malformed", &format!("keystead-store 1\n{document}")),
        with("tag-in-upper-case", "malformed", &record.replacen(tag, &tag.to_uppercase(), 1)),
        with("tag-too-short", "malformed", &record.replacen(tag, &tag[2..], 1)),
        with("tag-zero", "not-authentic", &record.replacen(tag, &other_tag, 1)),
        with(
            "tag-of-another-record",
            "not-authentic",
            &format!("{}{document}", &good[2]["record"].as_str().unwrap()[..head.len()]),
        ),
        other_key,
        edited("revision-raised", "\"revision\": 3", "\"revision\": 4"),
        edited("epoch-raised", "\"epoch\": 2", "\"epoch\": 3"),
        edited("other-node", "master-1", "master-2"),
        edited("other-commitment", "\"commitment\": \"", "\"commitment\": \"00"),
        edited("space-added", "{", "{ "),
        retagged("unknown-field", "malformed", "\"revision\"", "\"surprise\": 1, \"revision\""),
        retagged("field-twice", "malformed", "\"revision\"", "\"revision\": 3, \"revision\""),
        retagged("field-missing", "malformed", "  \"recovery\": {\n    \"kind\": \"declined\"\n  },\n", ""),
        retagged("unknown-state", "malformed", "\"active\"", "\"dormant\""),
        retagged("negative-revision", "malformed", "\"revision\": 3", "\"revision\": -3"),
        of_scan("reason-with-a-control-character", "CMK may be known", "\\u001b[2J"),
        of_scan("reason-empty", "CMK may be known: é, \\\"INC-42\\\"", ""),
        of_scan("scan-of-an-unknown-kind", "\"kind\": \"etcd\"", "\"kind\": \"consul\""),
        of_scan("scan-without-a-revision", "\"revision\": 9007199254740993,", ""),
        of_scan("scan-with-an-unknown-field", "\"unlisted\"", "\"surprise\": 1, \"unlisted\""),
        retagged("disabled-by-nobody-at-no-time", "malformed", "\"revision\"", "\"disabled\": {}, \"revision\""),
        retagged(
            "disabled-with-an-unknown-field",
            "malformed",
            "\"revision\"",
            "\"disabled\": {\"since\": 1, \"until\": 2}, \"revision\"",
        ),
        retagged(
            "disabled-for-no-reason-in-words",
            "malformed",
            "\"revision\"",
            "\"disabled\": {\"since\": 1, \"reason\": \"\"}, \"revision\"",
        ),
        of_scan("scan-of-a-cluster-beyond-64-bits", "18446744073709551614", "18446744073709551616"),
        inconsistent("scanned-generations-out-of-order", &|keyring| {
            keyring.scan = scanned.scan.clone();
            keyring.scan.as_mut().unwrap().objects.swap(0, 1);
        }),
        inconsistent("two-active", &|keyring| keyring.generations[1].state = GenerationState::Active),
        inconsistent("prepared-without-rotation", &|keyring| keyring.generations[2].state = GenerationState::Prepared),
        inconsistent("number-never-handed-out", &|keyring| keyring.last_number = GenerationNumber(2)),
        inconsistent("generation-twice", &|keyring| keyring.generations[1] = keyring.generations[0].clone()),
        inconsistent("generations-out-of-order", &|keyring| keyring.generations.swap(0, 1)),
        inconsistent("key-id-of-another-generation", &|keyring| keyring.generations[0].key_id = second().key_id),
        inconsistent("key-id-of-another-keyring", &|keyring| keyring.generations[0].key_id = elsewhere().key_id),
        inconsistent("recovery-point-off-the-curve", &|keyring| {
            keyring.recovery = RecoveryRoot::PublicKey { point: flipped(public_key(0x11).as_sec1(), 64, 1) };
        }),
        inconsistent("intended-recovery-point-off-the-curve", &|keyring| {
            keyring.begin_rotation(counting(0xc0), counting(0xe0), 0).unwrap();
            let recovery = RecoveryRoot::PublicKey { point: flipped(public_key(0x11).as_sec1(), 64, 1) };
            keyring.intend_roots(RootsChoice { recovery, custody_only: false }).unwrap();
        }),
        inconsistent("rotation-names-a-cmk-in-use", &|keyring| {
            let mut intent = keyring.begin_rotation(counting(0xc0), counting(0xe0), 0).unwrap();
            intent.root_id = custody_wrap(&third).root_id;
            keyring.rotation = Some(intent);
        }),
        of_deletion("wait-with-an-unknown-field", "\"left\": 600000", "\"left\": 600000, \"until\": 1"),
        of_deletion("wait-without-what-is-left", "\"left\": 600000", "\"remaining\": 600000"),
        of_deletion("backup-without-a-name", "tape é 7", ""),
        of_deletion("backup-with-a-control-character", "tape é 7", "\\u001b[2J"),
        spoilt("wait-longer-than-it-began", &suspended, &|keyring| {
            keyring.generations[1].pending =
                serde_json::from_str("{\"scheduled\": 1, \"wait\": {\"length\": 5, \"left\": 6}}").ok();
        }),
        spoilt("pending-without-a-wait", &waiting, &|keyring| keyring.generations[1].pending = None),
        spoilt("wait-of-a-retired-generation", &waiting, &|keyring| {
            keyring.generations[1].state = GenerationState::Retired;
        }),
        spoilt("destroyed-with-wraps", &buried, &|keyring| {
            keyring.generations[1].wraps = vec![custody_wrap(&second())]
        }),
        spoilt("retired-without-wraps", &rotated, &|keyring| keyring.generations[1].wraps.clear()),
        spoilt("tombstone-names-a-cmk-in-use", &buried, &|keyring| {
            keyring.generations[1].tombstone.as_mut().unwrap().left = Some(vec![custody_wrap(&third).root_id]);
        }),
        spoilt("two-backups-of-one-name", &waiting, &|keyring| {
            keyring.backups[1].name = keyring.backups[0].name.clone()
        }),
        spoilt("backup-needs-what-was-never-made", &waiting, &|keyring| {
            keyring.backups[0].generations = vec![GenerationNumber(4)];
        }),
    ];
    file("Store records: a keyring, authenticated under a key derived from the epoch secret", good, bad)
}

// Rescue files.

fn rescue() -> Value {
    let rescued = |id: &Name, created: u64, wraps: Vec<WrappedKek>| RescuedGeneration {
        key_id: id.key_id.clone(),
        created,
        commitment: kek(0x20).commitment(),
        wraps,
    };
    let of = |generations: Vec<RescuedGeneration>| Rescue {
        keyring: "default".parse().unwrap(),
        node: "master-1".parse().unwrap(),
        written: 1_800_172_800,
        epoch: 5,
        last_number: GenerationNumber(3),
        generations,
    };
    let keys = json!({ "private_key": hex([0x11; 32]), "public_key": hex(public_key(0x11).as_sec1()) });
    let text = |rescue: &Rescue| String::from_utf8(rescue.to_bytes()).unwrap();
    let case = |name: &str, rescue: &Rescue| {
        let listed: Vec<Value> = rescue
            .generations
            .iter()
            .map(|each| json!({ "key_id": each.key_id, "created": each.created, "kek": hex(counting::<32>(0x20)), "wraps": each.wraps.len() }))
            .collect();
        merged(&[
            keys.clone(),
            json!({
                "name": name, "rescue": text(rescue), "keyring": rescue.keyring, "node": rescue.node,
                "written": rescue.written, "epoch": rescue.epoch, "last_number": rescue.last_number,
                "generations": listed,
            }),
        ])
    };
    let one = of(vec![rescued(&first(), 1_800_000_000, vec![recovery_wrap(&first()), custody_wrap(&first())])]);
    let two = of(vec![
        rescued(&second(), 0, vec![recovery_wrap(&second()), custody_wrap(&second()), unknown_wrap()]),
        rescued(&name("default", 3, 0xd0), 1_800_086_400, vec![recovery_wrap(&name("default", 3, 0xd0))]),
    ]);
    let good = vec![case("one-generation", &one), case("two-generations-and-an-unknown-root", &two)];
    let whole = text(&one);
    let with = |name: &str, error: &str, rescue: &str| {
        merged(&[keys.clone(), json!({ "name": name, "rescue": rescue, "error": error })])
    };
    let edited = |name: &str, error: &str, from: &str, to: &str| {
        assert!(whole.contains(from), "{from}");
        with(name, error, &whole.replacen(from, to, 1))
    };
    let changed = |name: &str, error: &str, change: &dyn Fn(&mut RescuedGeneration)| {
        let mut rescue = one.clone();
        change(&mut rescue.generations[0]);
        with(name, error, &text(&rescue))
    };
    let no = "malformed";
    let mut other_key = with("other-private-key", "no-root", &whole);
    other_key["private_key"] = hex([0x22; 32]).into();
    other_key["public_key"] = hex(public_key(0x22).as_sec1()).into();
    let bad = vec![
        with("empty", no, ""),
        with("first-line-alone", no, "keystead-rescue 1\n"),
        with("document-cut", no, &whole[..whole.len() - 3]),
        with("text-added", no, &format!("{whole}{{}}")),
        with("byte-order-mark", no, &format!("\u{feff}{whole}")),
        with("carriage-returns", no, &whole.replace('\n', "\r\n")),
        with("first-line-without-end", no, &"keystead-rescue 1".repeat(9)),
        edited("other-magic", no, "keystead-rescue", "keystead-stores"),
        edited("format-0", no, "rescue 1\n", "rescue 0\n"),
        edited("format-01", no, "rescue 1\n", "rescue 01\n"),
        edited("format-plus-1", no, "rescue 1\n", "rescue +1\n"),
        edited("format-2", "newer-format 2", "rescue 1\n", "rescue 2\n"),
        with("newer-format-of-any-content", "newer-format 10", "keystead-rescue 10\n"),
        edited("unknown-field", no, "\"epoch\"", "\"surprise\": 1, \"epoch\""),
        edited("unknown-field-of-a-generation", no, "\"created\"", "\"surprise\": 1, \"created\""),
        edited("field-twice", no, "\"epoch\"", "\"epoch\": 5, \"epoch\""),
        edited("field-missing", no, "  \"written\": 1800172800,\n", ""),
        edited("negative-epoch", no, "\"epoch\": 5", "\"epoch\": -5"),
        edited("other-keyring", no, "\"keyring\": \"default\"", "\"keyring\": \"edge-7\""),
        changed("key-id-of-another-keyring", no, &|each| each.key_id = elsewhere().key_id),
        changed("wrap-of-641-bytes", no, &|each| each.wraps[0].bytes = vec![2; 641]),
        changed("no-wrap", "no-root", &|each| each.wraps.clear()),
        changed("custody-wrap-alone", "no-root", &|each| drop(each.wraps.remove(0))),
        changed("wrap-last-bit", "not-authentic", &|each| {
            let wrap = &mut each.wraps[0].bytes;
            *wrap = flipped(wrap, wrap.len() - 1, 1);
        }),
        changed("wrap-cut", no, &|each| each.wraps[0].bytes.truncate(113)),
        changed("wrap-of-another-generation", "not-authentic", &|each| each.wraps[0] = recovery_wrap(&second())),
        changed("key-id-of-another-generation", "not-authentic", &|each| each.key_id = second().key_id),
        changed("commitment-of-another-key", "other-key", &|each| each.commitment = kek(0x21).commitment()),
        other_key,
    ];
    file("Rescue files: the KEKs that were in memory when a token died, wrapped to a public key", good, bad)
}
