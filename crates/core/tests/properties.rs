//! Properties over random and exhaustive inputs: what must hold for every value, not only for the golden ones.

use std::collections::BTreeSet;

use hmac::{Hmac, KeyInit, Mac};
use keystead_core::annotation::{self, Annotation, AnnotationError};
use keystead_core::envelope::{EnvelopeError, EnvelopeKey, OVERHEAD};
use keystead_core::keyring::{
    Disabling, GenerationState, Keyring, RecoveryRoot, RootsChoice, Takeover, TokenIdentity, TransitionError,
};
use keystead_core::record::{self, RecordError, UnverifiedRecord};
use keystead_core::recovery_key::RecoveryKey;
use keystead_core::wrap::{
    Construction, MAX_WRAP_LEN, OaepHash, TpmKey, open_under_transport_key, seal_under_transport_key,
};
use keystead_core::{
    Authenticator, EnvelopeContext, GenerationNumber, Kek, KeyCommitment, KeyId, KeyringId, NodeId, RootId, RootKind,
    WrapContext, WrappedKek,
};
use proptest::collection::vec;
use proptest::prelude::*;
use sha2::Sha256;
use zeroize::Zeroizing;

fn kek(bytes: [u8; 32]) -> Kek {
    Kek::take(&mut { bytes })
}

prop_compose! {
    fn keyring_id()(text in "[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?") -> KeyringId {
        text.parse().unwrap()
    }
}

prop_compose! {
    fn key_id()(keyring in keyring_id(), number in 1_u64.., random: [u8; 16]) -> (KeyringId, KeyId) {
        let id = KeyId::mint(&keyring, GenerationNumber(number), random);
        (keyring, id)
    }
}

prop_compose! {
    fn root_id()(bytes in vec(any::<u8>(), 1..=RootId::MAX_LEN)) -> RootId {
        RootId::new(&bytes).unwrap()
    }
}

prop_compose! {
    fn wrapped(max: usize)(kind: u8, root_id in root_id(), bytes in vec(any::<u8>(), 0..=max)) -> WrappedKek {
        WrappedKek { root_kind: RootKind::from(kind), root_id, bytes }
    }
}

prop_compose! {
    fn sealed()(bytes in vec(any::<u8>(), 48)) -> [u8; 48] {
        bytes.try_into().unwrap()
    }
}

/// Halves as long as real ones at most: an RSA-2048 key with a policy has 312 and some 230 bytes.
fn tpm_key() -> impl Strategy<Value = TpmKey> {
    (vec(any::<u8>(), 1..=320), vec(any::<u8>(), 1..=300)).prop_map(|(public, private)| TpmKey { public, private })
}

fn construction() -> impl Strategy<Value = Construction> {
    prop_oneof![
        (any::<[u8; 12]>(), sealed()).prop_map(|(iv, sealed)| Construction::AesGcm { iv, sealed }),
        (vec(any::<u8>(), 65), sealed()).prop_map(|(encapsulated, sealed)| Construction::HpkeP256 {
            encapsulated: encapsulated.try_into().unwrap(),
            sealed
        }),
        (any::<bool>(), vec(any::<u8>(), 256..=512), sealed()).prop_map(|(sha1, block, sealed)| {
            Construction::RsaOaep { hash: if sha1 { OaepHash::Sha1 } else { OaepHash::Sha256 }, block, sealed }
        }),
        (tpm_key(), vec(any::<u8>(), 65), sealed()).prop_map(|(key, encapsulated, sealed)| Construction::TpmEcdh {
            key,
            encapsulated: encapsulated.try_into().unwrap(),
            sealed
        }),
        (tpm_key(), vec(any::<u8>(), 256)).prop_map(|(key, block)| {
            let block: [u8; 256] = block.try_into().unwrap();
            Construction::TpmRsaOaep { key, block: Box::new(block) }
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn envelope_opens_to_what_was_encrypted(
        key: [u8; 32],
        (keyring, id) in key_id(),
        nonce: [u8; 24],
        plaintext in vec(any::<u8>(), 0..=4096),
    ) {
        let key = EnvelopeKey::new(&kek(key));
        let context = EnvelopeContext::new(&keyring, id.generation(), &id);
        let envelope = key.encrypt(&context, nonce, &plaintext);
        prop_assert_eq!(envelope.len(), plaintext.len() + OVERHEAD);
        let opened = key.decrypt(&context, &envelope).unwrap();
        prop_assert_eq!(&*opened, &plaintext);
    }

    #[test]
    fn envelope_of_any_length_with_one_bit_flipped_does_not_open(
        key: [u8; 32],
        (keyring, id) in key_id(),
        plaintext in vec(any::<u8>(), 0..=4096),
        at: prop::sample::Index,
        bit in 0..8_u32,
    ) {
        let key = EnvelopeKey::new(&kek(key));
        let context = EnvelopeContext::new(&keyring, id.generation(), &id);
        let mut envelope = key.encrypt(&context, [3; 24], &plaintext);
        let at = at.index(envelope.len());
        envelope[at] ^= 1_u8 << bit;
        prop_assert!(key.decrypt(&context, &envelope).is_err());
    }

    #[test]
    fn envelope_does_not_open_in_another_context_or_under_another_key(
        one: [u8; 32], other: [u8; 32],
        (keyring, id) in key_id(),
        (other_keyring, other_id) in key_id(),
    ) {
        prop_assume!(one != other && id != other_id && keyring != other_keyring);
        let key = EnvelopeKey::new(&kek(one));
        let number = id.generation();
        let envelope = key.encrypt(&EnvelopeContext::new(&keyring, number, &id), [3; 24], b"seed");
        for context in [
            EnvelopeContext::new(&other_keyring, number, &id),
            EnvelopeContext::new(&keyring, GenerationNumber(number.0 ^ 1), &id),
            EnvelopeContext::new(&keyring, number, &other_id),
        ] {
            prop_assert_eq!(key.decrypt(&context, &envelope).unwrap_err(), EnvelopeError::NotAuthentic);
        }
        let other = EnvelopeKey::new(&kek(other)).decrypt(&EnvelopeContext::new(&keyring, number, &id), &envelope);
        prop_assert_eq!(other.unwrap_err(), EnvelopeError::NotAuthentic);
    }

    #[test]
    fn no_two_names_share_their_additional_data(
        (keyring, id) in key_id(),
        (other_keyring, other_id) in key_id(),
        (kind, root) in (any::<u8>(), root_id()),
        (other_kind, other_root) in (any::<u8>(), root_id()),
    ) {
        let wrap = |keyring: &KeyringId, id: &KeyId, kind: u8, root: &RootId| WrapContext {
            keyring: keyring.clone(),
            generation: id.generation(),
            key_id: id.clone(),
            root_kind: kind.into(),
            root_id: root.clone(),
        }.to_bytes();
        let envelope = |keyring: &KeyringId, id: &KeyId| EnvelopeContext::new(keyring, id.generation(), id);
        prop_assert_eq!((&keyring, &id) == (&other_keyring, &other_id), envelope(&keyring, &id) == envelope(&other_keyring, &other_id));
        prop_assert_eq!(
            (&keyring, &id, kind, &root) == (&other_keyring, &other_id, other_kind, &other_root),
            wrap(&keyring, &id, kind, &root) == wrap(&other_keyring, &other_id, other_kind, &other_root)
        );
        prop_assert_ne!(wrap(&keyring, &id, kind, &root), envelope(&keyring, &id).as_bytes().to_vec());
    }

    #[test]
    fn transport_seal_opens_only_as_it_was_made(
        transport: [u8; 32],
        key: [u8; 32],
        context in vec(any::<u8>(), 0..200),
        at in 0..48_usize,
        bit in 0..8_u32,
    ) {
        let mut sealed = seal_under_transport_key(&transport, &context, &kek(key));
        let opened = open_under_transport_key(&transport, &context, &sealed).unwrap();
        prop_assert_eq!(opened.expose(), &key);
        prop_assert!(open_under_transport_key(&transport, &[&context[..], &[0]].concat(), &sealed).is_err());
        sealed[at] ^= 1_u8 << bit;
        prop_assert!(open_under_transport_key(&transport, &context, &sealed).is_err());
    }

    #[test]
    fn construction_reads_back_as_written(construction in construction()) {
        let bytes = construction.to_bytes();
        prop_assert!(bytes.len() <= MAX_WRAP_LEN);
        prop_assert_eq!(Construction::parse(&bytes), Ok(construction));
        for len in 0..bytes.len() {
            prop_assert!(Construction::parse(&bytes[..len]).is_err());
        }
        prop_assert!(Construction::parse(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn construction_from_any_bytes_is_refused_or_exact(kind in 0..7_u8, rest in vec(any::<u8>(), 0..700)) {
        let bytes = [&[kind][..], &rest].concat();
        if let Ok(read) = Construction::parse(&bytes) {
            prop_assert_eq!(read.to_bytes(), bytes);
        }
    }

    #[test]
    fn annotation_from_any_bytes_is_refused_or_exact(bytes in vec(any::<u8>(), 0..1200), version in 0..3_u8) {
        for bytes in [bytes.clone(), [&[version][..], &bytes].concat()] {
            if let Ok(read) = Annotation::decode(&bytes) {
                prop_assert_eq!(read.encode().unwrap(), bytes);
            }
        }
    }

    #[test]
    fn annotation_with_a_byte_changed_is_refused_or_exact(
        (_, key_id) in key_id(),
        commitment: [u8; 32],
        wraps in vec(wrapped(90), 0..4),
        at: prop::sample::Index,
        by: u8,
    ) {
        let mut bytes =
            Annotation { key_id, commitment: KeyCommitment::from_bytes(commitment), wraps }.encode().unwrap();
        let at = at.index(bytes.len());
        bytes[at] = by;
        if let Ok(read) = Annotation::decode(&bytes) {
            prop_assert_eq!(read.encode().unwrap(), bytes);
        }
    }

    #[test]
    fn annotation_that_is_written_reads_back(
        (_, key_id) in key_id(),
        commitment: [u8; 32],
        wraps in vec(wrapped(MAX_WRAP_LEN + 40), 0..5),
    ) {
        let written = Annotation { key_id, commitment: KeyCommitment::from_bytes(commitment), wraps };
        match written.encode() {
            Ok(bytes) => {
                prop_assert!(bytes.len() <= annotation::MAX_LEN);
                prop_assert_eq!(Annotation::decode(&bytes), Ok(written));
                for len in 0..bytes.len() {
                    prop_assert!(Annotation::decode(&bytes[..len]).is_err());
                }
            }
            Err(AnnotationError::TooLong(len)) => prop_assert!(len > annotation::MAX_LEN),
            Err(AnnotationError::WrapTooLong(len)) => prop_assert!(len > MAX_WRAP_LEN),
            Err(error) => prop_assert!(false, "{error}"),
        }
    }

    #[test]
    fn identifiers_from_any_text_are_refused_or_exact(
        text in prop_oneof![any::<String>(), "ks1\\.[a-z-]{0,4}\\.[0-9+]{0,21}\\.[0-9a-fA-F]{30,33}", "[a-zA-Z0-9._-]{0,70}"],
    ) {
        if let Ok(id) = text.parse::<KeyId>() {
            prop_assert_eq!(id.as_str(), &text);
            prop_assert_eq!(text.split('.').nth(1), Some(id.keyring()));
        }
        if let Ok(id) = text.parse::<KeyringId>() {
            prop_assert_eq!(id.as_str(), &text);
        }
        if let Ok(id) = text.parse::<NodeId>() {
            prop_assert_eq!(id.as_str(), &text);
        }
        if let Ok(id) = text.parse::<RootId>() {
            prop_assert_eq!(id.to_string(), text);
        }
    }

    #[test]
    fn minted_key_ids_read_back((keyring, id) in key_id()) {
        prop_assert_eq!(id.keyring(), keyring.as_str());
        prop_assert_eq!(id.as_str().parse::<KeyId>(), Ok(id));
    }
}

#[test]
fn seeds_envelope_with_any_bit_of_it_or_of_its_context_flipped_does_not_open() {
    use xaes_256_gcm::Xaes256Gcm;
    use xaes_256_gcm::aead::AeadInOut;
    use xaes_256_gcm::aead::inout::InOutBuf;

    let keyring: KeyringId = "default".parse().unwrap();
    let id = KeyId::mint(&keyring, GenerationNumber(1), [9; 16]);
    let context = EnvelopeContext::new(&keyring, id.generation(), &id);
    let key = EnvelopeKey::new(&kek([1; 32]));
    let envelope = key.encrypt(&context, [3; 24], &[4; 32]);
    for at in 0..envelope.len() * 8 {
        let mut flipped = envelope.clone();
        flipped[at / 8] ^= 1 << (at % 8);
        assert!(key.decrypt(&context, &flipped).is_err(), "bit {at}");
    }
    // A context can only be built of valid names, so its bits are flipped one layer below.
    let mut derived = [0; 32];
    hkdf::Hkdf::<Sha256>::from_prk(&[1; 32]).unwrap().expand(b"keystead-kek-envelope\x01", &mut derived).unwrap();
    let opens = |context: &[u8]| {
        let mut opened = envelope[25..57].to_vec();
        let (nonce, tag) = (envelope[1..25].try_into().unwrap(), envelope[57..].try_into().unwrap());
        Xaes256Gcm::new(&derived.into())
            .decrypt_inout_detached(nonce, context, InOutBuf::from(opened.as_mut_slice()), tag)
            .is_ok()
    };
    assert!(opens(context.as_bytes()));
    for at in 0..context.as_bytes().len() * 8 {
        let mut flipped = context.as_bytes().to_vec();
        flipped[at / 8] ^= 1 << (at % 8);
        assert!(!opens(&flipped), "bit {at}");
    }
}

// The record.

struct Key(u8);

impl Authenticator for Key {
    fn tag(&self, message: &[u8]) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&[self.0; 32]).unwrap();
        mac.update(message);
        mac.finalize().into_bytes().into()
    }
}

fn empty_keyring() -> Keyring {
    Keyring::empty(
        "default".parse().unwrap(),
        "master-1".parse().unwrap(),
        TokenIdentity { serial: "serial".into(), label: "label".into() },
        RecoveryRoot::Declined,
    )
}

/// Takes a keyring through one whole rotation.
fn rotate(keyring: &mut Keyring, random: u8) {
    let intent = keyring.begin_rotation([random; 16], [random; 16], 1).unwrap();
    let wrap = WrappedKek { root_kind: RootKind::Pkcs11, root_id: intent.root_id, bytes: vec![1; 61] };
    keyring.prepare(kek([random; 32]).commitment(), vec![wrap], 2).unwrap();
    keyring.activate(3).unwrap();
}

fn read(bytes: &[u8]) -> Result<Keyring, RecordError> {
    UnverifiedRecord::parse(bytes)?.verify(&Key(7))
}

#[test]
fn record_flipped_at_any_bit_or_cut_at_any_byte_is_refused() {
    let mut keyring = empty_keyring();
    rotate(&mut keyring, 1);
    rotate(&mut keyring, 2);
    let bytes = record::encode(&keyring, &Key(7));
    assert_eq!(read(&bytes), Ok(keyring));
    assert_eq!(UnverifiedRecord::parse(&bytes).unwrap().verify(&Key(8)), Err(RecordError::NotAuthentic));
    for at in 0..bytes.len() {
        assert!(read(&bytes[..at]).is_err(), "a record cut at {at} was read");
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1_u8 << bit;
            assert!(read(&flipped).is_err(), "a record with bit {bit} of byte {at} flipped was read");
        }
    }
}

#[test]
fn record_longer_than_any_can_be_is_refused_unread() {
    let bytes = [b"keystead-store 1\n".to_vec(), vec![b' '; record::MAX_LEN]].concat();
    assert!(matches!(read(&bytes), Err(RecordError::Malformed(_))));
}

#[test]
fn thousand_generations_stay_within_the_records_bound() {
    let mut keyring = empty_keyring();
    for number in 0..1000_u32 {
        rotate(&mut keyring, number as u8);
    }
    let bytes = record::encode(&keyring, &Key(7));
    assert!(bytes.len() < record::MAX_LEN / 8, "{} bytes", bytes.len());
    assert_eq!(read(&bytes), Ok(keyring));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn record_from_any_bytes_is_refused(bytes in vec(any::<u8>(), 0..400)) {
        let head = format!("keystead-store 1\ntag {}\n", "00".repeat(32)).into_bytes();
        for bytes in [bytes.clone(), [head, bytes].concat()] {
            prop_assert!(read(&bytes).is_err());
        }
    }

    #[test]
    fn record_keeps_unknown_roots_byte_for_byte(wraps in vec(wrapped(120), 1..5), revision: u64, epoch: u64) {
        let mut keyring = Keyring { revision, epoch, ..empty_keyring() };
        keyring.begin_rotation([1; 16], [2; 16], 1).unwrap();
        keyring.prepare(KeyCommitment::from_bytes([5; 32]), wraps, 2).unwrap();
        keyring.activate(3).unwrap();
        let bytes = record::encode(&keyring, &Key(7));
        let again = read(&bytes).unwrap();
        prop_assert_eq!(&again, &keyring);
        prop_assert_eq!(record::encode(&again, &Key(7)), bytes);
    }
}

// The keyring.

#[derive(Debug, Clone, Copy)]
enum Move {
    Begin,
    Prepare,
    PrepareTooMuch,
    Activate,
    RollBack,
    Disable,
    Enable,
    WriteAndRead,
    Intend { recovery: Option<u8>, custody_only: bool },
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        3 => Just(Move::Begin),
        3 => Just(Move::Prepare),
        1 => Just(Move::PrepareTooMuch),
        3 => Just(Move::Activate),
        1 => Just(Move::RollBack),
        1 => Just(Move::Disable),
        1 => Just(Move::Enable),
        1 => Just(Move::WriteAndRead),
        2 => (prop::option::of(1..4_u8), any::<bool>())
            .prop_map(|(recovery, custody_only)| Move::Intend { recovery, custody_only }),
    ];
    vec(one, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn keyring_stays_consistent_whatever_order_its_transitions_come_in(moves in moves()) {
        let mut keyring = empty_keyring();
        let (mut numbers, mut key_ids) = (BTreeSet::new(), BTreeSet::new());
        let mut activated = false;
        for (now, one) in moves.into_iter().enumerate() {
            let now = now as u64;
            let before = keyring.clone();
            let random = [now as u8; 16];
            let wrap = |keyring: &Keyring, len| {
                let root_id = keyring.rotation.as_ref().map_or(RootId::new(&[1]).unwrap(), |intent| intent.root_id.clone());
                vec![WrappedKek { root_kind: RootKind::Pkcs11, root_id, bytes: vec![1; len] }]
            };
            let commitment = KeyCommitment::from_bytes([now as u8; 32]);
            let key = |byte| RecoveryKey::from_random(&Zeroizing::new([byte; 32])).unwrap().public();
            let moved: Result<(), TransitionError> = match one {
                Move::Intend { recovery, custody_only } => {
                    let recovery = RecoveryRoot::of(recovery.map(key).as_ref());
                    keyring.intend_roots(RootsChoice { recovery, custody_only })
                }
                Move::Begin => keyring.begin_rotation(random, random, now).map(|intent| {
                    assert!(numbers.insert(intent.number), "number {} was used twice", intent.number);
                    assert!(key_ids.insert(intent.key_id.to_string()), "a key ID was used twice");
                }),
                Move::Prepare => keyring.prepare(commitment, wrap(&before, 61), now),
                Move::PrepareTooMuch => {
                    let refused = keyring.prepare(commitment, wrap(&before, 70_000), now);
                    assert!(refused.is_err());
                    refused
                }
                Move::Activate => keyring.activate(now).map(|key_id| {
                    activated = true;
                    assert_eq!(Some(&key_id), keyring.active().map(|active| &active.key_id));
                }),
                Move::RollBack => keyring.roll_back_rotation().map(|intent| {
                    assert!(keyring.generation(intent.number).is_none(), "rolled back, but still there");
                }),
                Move::Disable => {
                    let order = Disabling { since: now, uid: Some(1), login_uid: None, reason: None };
                    assert_eq!(keyring.disable(order), before.disabled.is_none());
                    assert!(keyring.disabled.is_some());
                    // The first word stands, and nothing else is touched.
                    assert!(before.disabled.is_none() || keyring == before);
                    assert_eq!(Keyring { disabled: before.disabled.clone(), ..keyring.clone() }, before);
                    Ok(())
                }
                Move::Enable => {
                    assert_eq!(keyring.enable(), before.disabled.is_some());
                    assert_eq!(Keyring { disabled: before.disabled.clone(), ..keyring.clone() }, before);
                    Ok(())
                }
                Move::WriteAndRead => {
                    keyring = read(&record::encode(&keyring, &Key(7))).unwrap();
                    Ok(())
                }
            };
            if moved.is_err() {
                prop_assert_eq!(&keyring, &before, "refused, but changed something");
            }
            prop_assert_eq!(keyring.check(), Ok(()));
            // Roots change with an activation alone, to what its rotation was begun with.
            let expected = match (one, &moved) {
                (Move::Activate, Ok(())) => before.next_roots(),
                _ => before.roots_choice(),
            };
            prop_assert_eq!(keyring.roots_choice(), expected);
            let active = keyring.generations.iter().filter(|one| one.state == GenerationState::Active).count();
            prop_assert_eq!(active, usize::from(activated));
            let known: BTreeSet<&KeyId> = keyring.generations.iter().map(|one| &one.key_id).collect();
            prop_assert_eq!(known.len(), keyring.generations.len());
            for earlier in before.generations.iter().filter(|one| one.decrypts()) {
                let now = keyring.by_key_id(&earlier.key_id);
                prop_assert!(now.is_some_and(|one| one.decrypts() && one.wraps == earlier.wraps), "a generation was lost");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever an old record says, and whatever was seen beside it: it comes back disabled, encrypts with none of its keys,
    /// and the number that comes next was never used by anything that opens or is plausible.
    #[test]
    fn record_that_is_taken_over_gains_nothing_and_reuses_no_number(
        rotations in 1..6_u8,
        cut_off: bool,
        unopened in prop::collection::btree_set(1..7_u64, 0..4),
        seen in vec(prop_oneof![1..40_u64, Just(u64::MAX), any::<u64>()], 0..6),
        last_number in prop_oneof![0..50_u64, Just(u64::MAX)],
    ) {
        let mut old = empty_keyring();
        (0..rotations).for_each(|random| rotate(&mut old, random));
        if cut_off {
            old.begin_rotation([99; 16], [99; 16], 1).unwrap();
        } else {
            old.last_number = GenerationNumber(last_number.max(old.last_number.0));
        }
        let takeover = Takeover {
            epoch: 77,
            token: old.token.clone(),
            recovery: RecoveryRoot::Declined,
            upstream: None,
            seen: seen.iter().copied().map(GenerationNumber).collect(),
            disabled: Disabling { since: 1, uid: None, login_uid: None, reason: None },
        };
        let opens = |key_id: &KeyId| !unopened.contains(&key_id.generation().0);
        let mut new = old.taken_over(takeover, opens);
        prop_assert_eq!(new.check(), Ok(()));
        prop_assert!(new.active().is_none() && new.disabled.is_some() && new.rotation.is_none());
        prop_assert_eq!((new.epoch, new.scan.is_none(), &new.recovery), (77, true, &RecoveryRoot::Declined));
        for before in old.generations.iter().filter(|each| opens(&each.key_id)) {
            let after = new.by_key_id(&before.key_id);
            prop_assert!(after.is_some_and(|after| after.decrypts() && after.wraps == before.wraps));
        }
        let plausible = |number: &&u64| **number < 1_000_000;
        let highest = seen.iter().chain(&[old.last_number.0]).filter(plausible).max().copied().unwrap_or(0);
        let taken: BTreeSet<KeyId> = old.generations.iter().map(|each| each.key_id.clone()).collect();
        rotate(&mut new, 200);
        let active = new.active().unwrap();
        prop_assert!(active.number.0 > highest, "{} of {highest}", active.number);
        prop_assert!(!taken.contains(&active.key_id));
        prop_assert_eq!(new.check(), Ok(()));
        prop_assert!(new.disabled.is_some(), "a fresh generation enables nothing");
    }
}
