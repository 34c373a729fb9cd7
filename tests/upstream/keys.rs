//! Keys go in and come back, bound to what they are for.

use std::time::{Duration, SystemTime};

use keystead::upstream::contract::KeyState;
use keystead_core::annotation::Annotation;
use keystead_core::wrap::MAX_WRAP_LEN;
use keystead_core::{FaultClass, Kek, RootId, RootKind};

use crate::provider::{Case, Stand};

pub const CASES: &[(&str, Case)] = &[
    ("generated_kek_comes_back_from_its_wrap", generated_kek_comes_back),
    ("given_kek_comes_back_from_its_wrap", given_kek_comes_back),
    ("two_generated_keks_differ", two_generated_keks_differ),
    ("wrap_opens_in_its_own_context_only", wrap_opens_in_its_own_context_only),
    ("changed_or_truncated_wrap_is_corrupt", changed_or_truncated_wrap_is_corrupt),
    ("wrap_of_another_construction_or_root_is_refused_without_a_call", foreign_wrap_is_refused_without_a_call),
    ("longest_names_fit_into_wrap_and_annotation", longest_names_fit),
    ("description_tells_state_version_and_deletion", description_tells),
    ("rotation_shows_in_the_version_and_old_wraps_still_open", rotation_shows),
    ("calls_are_counted_as_the_service_has_seen_them", calls_are_counted),
    ("end_of_certificates_is_told", end_of_certificates_is_told),
    ("identity_names_the_bare_key", identity_names_the_bare_key),
];

fn generated_kek_comes_back(stand: &Stand) {
    let opened = stand.usual();
    let made = opened.generate();
    let wrap = &made.wrapped.wrap;
    assert_eq!((wrap.root_kind, &wrap.root_id), (stand.provider.kind, &opened.upstream.identity().root_id));
    assert_eq!(wrap.bytes[0], stand.provider.construction);
    let unwrapped = opened.unwrap(&made).unwrap();
    assert_eq!(unwrapped.kek.commitment(), made.kek.commitment());
    let behind = SystemTime::now().duration_since(unwrapped.server_time.expect("a Date")).unwrap_or_default();
    assert!(behind < Duration::from_secs(300), "{behind:?}");
}

fn given_kek_comes_back(stand: &Stand) {
    let opened = stand.usual();
    // Bytes whose base64 has every sign that a URL or form would mistake.
    let kek = Kek::take(&mut [0xfb; 32]);
    let wrapped = opened.wait(opened.upstream.wrap(&kek, &opened.context())).unwrap();
    let unwrapped = opened.unwrap_bytes(&wrapped.wrap.bytes).unwrap();
    assert_eq!(unwrapped.kek.commitment(), kek.commitment());
}

fn two_generated_keks_differ(stand: &Stand) {
    let opened = stand.usual();
    let (one, two) = (opened.generate(), opened.generate());
    assert_ne!(one.kek.commitment(), two.kek.commitment());
    assert_ne!(one.wrapped.wrap, two.wrapped.wrap);
}

fn wrap_opens_in_its_own_context_only(stand: &Stand) {
    let opened = stand.usual();
    let made = opened.generate();
    for other in
        [opened.context_of("edge-8", 3, 1), opened.context_of("edge-7", 4, 1), opened.context_of("edge-7", 3, 2)]
    {
        let error = opened.wait(opened.upstream.unwrap(&made.wrapped.wrap.bytes, &other)).unwrap_err();
        assert_eq!(error.class, FaultClass::Corrupt, "{error}");
    }
    opened.opens(&made);
}

fn changed_or_truncated_wrap_is_corrupt(stand: &Stand) {
    let opened = stand.usual();
    let made = opened.generate();
    let bytes = &made.wrapped.wrap.bytes;
    let middle = bytes.len() / 2;
    let mut bad: Vec<Vec<u8>> =
        [1, 2, middle, bytes.len() - 16, bytes.len() - 1].map(|len| bytes[..len].to_vec()).into();
    bad.push([bytes.as_slice(), &[0]].concat());
    for at in [middle, bytes.len() - 1] {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        bad.push(changed);
    }
    for wrap in bad {
        let error = opened.unwrap_bytes(&wrap).unwrap_err();
        assert_eq!(error.class, FaultClass::Corrupt, "{} bytes: {error}", wrap.len());
    }
    opened.opens(&made);
}

fn foreign_wrap_is_refused_without_a_call(stand: &Stand) {
    let opened = stand.usual();
    let made = opened.generate();
    let before = stand.rig.requests().len();
    let mut another = made.wrapped.wrap.bytes.clone();
    another[0] ^= 0x80;
    for wrap in [Vec::new(), vec![another[0]], another, vec![stand.provider.construction; MAX_WRAP_LEN + 1]] {
        assert_eq!(opened.unwrap_bytes(&wrap).unwrap_err().class, FaultClass::Corrupt);
    }
    let (mut kind, mut id) = (opened.context(), opened.context());
    kind.root_kind = RootKind::Pkcs11;
    id.root_id = RootId::new(b"another-key").unwrap();
    for context in [&kind, &id] {
        assert_eq!(opened.wait(opened.upstream.generate(context)).unwrap_err().class, FaultClass::Corrupt);
        assert_eq!(opened.wait(opened.upstream.wrap(&made.kek, context)).unwrap_err().class, FaultClass::Corrupt);
        let bytes = &made.wrapped.wrap.bytes;
        assert_eq!(opened.wait(opened.upstream.unwrap(bytes, context)).unwrap_err().class, FaultClass::Corrupt);
    }
    assert_eq!(stand.rig.requests().len(), before);
}

fn longest_names_fit(stand: &Stand) {
    let opened = stand.usual();
    let context = opened.context_of(&"k".repeat(40), u64::MAX, 255);
    let made = opened.wait(opened.upstream.generate(&context)).unwrap();
    let wrap = made.wrapped.wrap;
    assert!(wrap.bytes.len() <= MAX_WRAP_LEN);
    let unwrapped = opened.wait(opened.upstream.unwrap(&wrap.bytes, &context)).unwrap();
    assert_eq!(unwrapped.kek.commitment(), made.kek.commitment());
    let annotation = Annotation { key_id: context.key_id, commitment: made.kek.commitment(), wraps: vec![wrap] };
    annotation.encode().expect("an annotation within its bounds");
}

fn description_tells(stand: &Stand) {
    let opened = stand.usual();
    let describe = || opened.wait(opened.upstream.describe()).unwrap_or_else(|error| panic!("describe: {error}"));
    let enabled = describe();
    assert_eq!(enabled.state, KeyState::Enabled);
    assert!(enabled.key_version.is_some() && enabled.protection.is_some() && enabled.server_time.is_some());
    stand.rig.control(r#"{"action": "disable-key"}"#);
    assert_eq!(describe().state, KeyState::Disabled);
    stand.rig.control(r#"{"action": "enable-key"}"#);
    stand.rig.control(r#"{"action": "schedule-deletion"}"#);
    let pending = describe();
    assert_eq!(pending.state, KeyState::PendingDeletion);
    stand.rig.control(r#"{"action": "cancel-deletion"}"#);
}

fn rotation_shows(stand: &Stand) {
    let opened = stand.usual();
    let (made, before) = (opened.generate(), opened.version());
    assert_eq!(opened.version(), before);
    stand.rig.control(r#"{"action": "rotate-key"}"#);
    let after = opened.version();
    assert_ne!(before, after);
    let unwrapped = opened.unwrap(&made).unwrap();
    assert_eq!(unwrapped.kek.commitment(), made.kek.commitment());
    assert!(unwrapped.key_version.is_none_or(|newest| newest == after));
    let new = opened.generate();
    assert!(new.wrapped.key_version.as_ref().is_none_or(|version| *version == after));
    opened.opens(&new);
}

fn calls_are_counted(stand: &Stand) {
    let opened = stand.usual();
    assert_eq!(opened.upstream.calls().billed(), 0);
    let made = opened.generate();
    opened.opens(&made);
    opened.unwrap_bytes(&made.wrapped.wrap.bytes[..20]).unwrap_err();
    opened.version();
    let (counts, seen) = (opened.upstream.calls(), stand.rig.requests());
    let failed = seen.iter().filter(|(_, _, code)| code != "ok").count() as u64;
    let sum = |of: fn(&keystead::upstream::calls::OperationCalls) -> u64| counts.operations.iter().map(of).sum::<u64>();
    assert_eq!(sum(|calls| calls.failed), failed, "{counts:?} {seen:?}");
    assert_eq!(sum(|calls| calls.succeeded) + failed, seen.len() as u64, "{counts:?} {seen:?}");
    assert_eq!(counts.billed(), seen.iter().filter(|(service, ..)| service == "kms").count() as u64);
}

fn end_of_certificates_is_told(stand: &Stand) {
    let opened = stand.usual();
    assert!(opened.upstream.expiries().iter().all(|expiry| !expiry.what.starts_with("certificate")));
    opened.generate();
    let expiries = opened.upstream.expiries();
    for beginning in ["certificate of 127.0.0.1", "CA certificate 1 in "] {
        let found = expiries.iter().find(|expiry| expiry.what.starts_with(beginning)).expect(beginning);
        let left = found.not_after.duration_since(SystemTime::now()).unwrap();
        assert!((10..100).contains(&(left.as_secs() / 86_400)), "{found:?}");
    }
}

fn identity_names_the_bare_key(stand: &Stand) {
    let opened = stand.usual();
    let identity = opened.upstream.identity();
    assert_eq!(identity.kind, stand.provider.kind);
    assert!(identity.root_id.as_bytes().is_ascii());
    assert_eq!(identity.root_id.as_bytes(), stand.rig.text("/keys/main").rsplit('/').next().unwrap().as_bytes());
    assert_eq!(stand.rig.requests().len(), 0);
}
