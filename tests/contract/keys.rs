//! CMKs and the KEKs they wrap: every case with every mechanism.

use keystead::custody::contract::{Answer, CustodyError, GivenKek, Request};
use keystead::custody::settings::MechanismChoice;
use keystead_core::{Kek, RootId, RootKind};
use rustix::process::Signal;

use crate::KeyCase;
use crate::asking::{cmks, context, describe, done, new_kek, refusal, unwrap};
use crate::support::custodian::Custody;
use crate::support::inspect;
use crate::support::rig::Rig;

/// Of tokens that keep CMKs as objects.
pub const OBJECT_CASES: &[(&str, KeyCase)] =
    &[("cmk_never_leaves_the_token", never_leaves), ("destroyed_cmk_is_gone_and_others_stay", destroyed)];

pub const CASES: &[(&str, KeyCase)] = &[
    ("new_kek_unwraps_to_itself_also_after_a_restart", unwraps_to_itself),
    ("wrap_opens_whatever_the_mechanism_setting_is_now", opens_by_its_own_construction),
    ("given_kek_is_wrapped_under_a_new_cmk_and_opens_to_itself", given_kek),
    ("damaged_wrap_is_rejected_at_every_byte_and_the_device_is_well", damaged),
    ("wrap_of_another_context_or_root_is_rejected", foreign),
    ("missing_cmk_is_told_apart", missing),
    ("new_kek_asked_twice_keeps_the_first_ones_cmk", asked_twice),
    ("known_cmk_is_not_searched_again", cached),
    ("sixty_four_unwraps_at_once_all_succeed", concurrent),
    ("custodian_killed_by_a_signal_is_replaced", killed),
];

/// What the token lists: every CMK, or none where they live in their wraps.
#[track_caller]
fn assert_cmks(rig: &Rig, custody: &Custody, numbers: &[u8]) {
    let expected: Vec<_> = match rig.root_kind() {
        RootKind::Tpm => Vec::new(),
        _ => numbers.iter().map(|number| context(*number).root_id).collect(),
    };
    assert_eq!(cmks(custody), expected);
}

fn unwraps_to_itself(rig: &Rig, mechanism: MechanismChoice) {
    let mut custody = Custody::start(rig.settings(mechanism));
    let (wrap, kek) = new_kek(&custody, &context(1));
    assert_eq!(wrap.root_id, context(1).root_id);
    assert_eq!(unwrap(&custody, &context(1), &wrap.bytes).unwrap().expose(), kek.expose());
    let (_, other) = new_kek(&custody, &context(2));
    assert_ne!(other.expose(), kek.expose());
    custody.replace();
    assert_eq!(unwrap(&custody, &context(1), &wrap.bytes).unwrap().expose(), kek.expose());
    assert_cmks(rig, &custody, &[1, 2]);
}

fn given_kek(rig: &Rig, mechanism: MechanismChoice) {
    let mut custody = Custody::start(rig.settings(mechanism));
    let kek = Kek::take(&mut [0x5a; 32]);
    let request = |number| Request::WrapKek {
        context: context(number),
        kek: GivenKek(std::sync::Arc::new(Kek::take(&mut [0x5a; 32]))),
    };
    let wrap = match custody.ask(request(1)) {
        Ok(Answer::Wrapped(wrap)) => wrap,
        other => panic!("not wrapped: {other:?}"),
    };
    assert_eq!((wrap.root_kind, &wrap.root_id), (context(1).root_kind, &context(1).root_id));
    assert_eq!(unwrap(&custody, &context(1), &wrap.bytes).unwrap().expose(), kek.expose());
    assert!(!wrap.bytes.windows(32).any(|window| window == kek.expose()));
    // Under another CMK of its own, and not as another generation's.
    custody.ask(request(2)).unwrap();
    assert_cmks(rig, &custody, &[1, 2]);
    assert_eq!(refusal(&custody, &context(2), &wrap.bytes), CustodyError::WrapRejected);
    custody.replace();
    assert_eq!(unwrap(&custody, &context(1), &wrap.bytes).unwrap().expose(), kek.expose());
    let mut elsewhere = context(3);
    elsewhere.root_kind = RootKind::Recovery;
    let refused = custody
        .ask(Request::WrapKek { context: elsewhere, kek: GivenKek(std::sync::Arc::new(Kek::take(&mut [1; 32]))) });
    assert!(matches!(refused, Err(CustodyError::Unsupported { .. })), "{refused:?}");
}

fn opens_by_its_own_construction(rig: &Rig, mechanism: MechanismChoice) {
    let (wrap, kek) = new_kek(&Custody::start(rig.settings(mechanism)), &context(1));
    let second = match rig.root_kind() {
        // No TPM has it, and says so.
        RootKind::Tpm => MechanismChoice::RsaOaep,
        _ => MechanismChoice::AesGcm,
    };
    for setting in [MechanismChoice::Auto, second, MechanismChoice::EcdhP256] {
        let custody = Custody::start(rig.settings(setting));
        assert_eq!(unwrap(&custody, &context(1), &wrap.bytes).unwrap().expose(), kek.expose());
        // The canary has to work with the older key too.
        let mut damaged = wrap.bytes.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(refusal(&custody, &context(1), &damaged), CustodyError::WrapRejected);
    }
}

fn never_leaves(rig: &Rig, mechanism: MechanismChoice) {
    let custody = Custody::start(rig.settings(mechanism));
    new_kek(&custody, &context(1));
    drop(custody);
    let keys = inspect::keys(rig);
    let secrets: Vec<_> = keys.iter().filter(|key| key.secret).collect();
    assert_eq!(secrets.len(), 1, "on the token: {keys:?}");
    for key in &keys {
        assert_eq!((key.id.as_slice(), key.label.as_str()), (context(1).root_id.as_bytes(), "keystead default 1"));
        assert!(key.private, "{key:?}");
    }
    assert!(secrets.iter().all(|key| key.sensitive && !key.extractable && !key.value_readable), "{secrets:?}");
}

fn damaged(rig: &Rig, mechanism: MechanismChoice) {
    let custody = Custody::start(rig.settings(mechanism));
    let (wrap, kek) = new_kek(&custody, &context(1));
    for index in 0..wrap.bytes.len() {
        let mut damaged = wrap.bytes.clone();
        damaged[index] ^= 1 << (index % 8);
        match refusal(&custody, &context(1), &damaged) {
            CustodyError::WrapRejected => {}
            // The first byte names the construction; one that nobody knows is another diagnosis.
            CustodyError::Unsupported { .. } if index == 0 => {}
            other => panic!("byte {index}: {other:?}"),
        }
    }
    for len in 0..wrap.bytes.len() {
        assert_eq!(refusal(&custody, &context(1), &wrap.bytes[..len]), CustodyError::WrapRejected);
    }
    done(&custody, Request::Probe);
    assert_eq!(unwrap(&custody, &context(1), &wrap.bytes).unwrap().expose(), kek.expose());
}

fn foreign(rig: &Rig, mechanism: MechanismChoice) {
    let custody = Custody::start(rig.settings(mechanism));
    let (wrap, _) = new_kek(&custody, &context(1));
    let (other, _) = new_kek(&custody, &context(2));
    let (right, two) = (context(1), context(2));
    let mut contexts = vec![right.clone(); 5];
    contexts[0].generation = two.generation;
    contexts[1].key_id = two.key_id.clone();
    contexts[2].keyring = "other".parse().unwrap();
    contexts[3].root_kind = if right.root_kind == RootKind::Tpm { RootKind::Pkcs11 } else { RootKind::Tpm };
    contexts[4].root_id = two.root_id.clone();
    for context in contexts {
        assert_eq!(refusal(&custody, &context, &wrap.bytes), CustodyError::WrapRejected, "{context:?}");
    }
    assert_eq!(refusal(&custody, &right, &other.bytes), CustodyError::WrapRejected);
    done(&custody, Request::Probe);
    unwrap(&custody, &right, &wrap.bytes).unwrap();
}

fn missing(rig: &Rig, mechanism: MechanismChoice) {
    let custody = Custody::start(rig.settings(mechanism));
    let (wrap, _) = new_kek(&custody, &context(1));
    let mut elsewhere = context(1);
    elsewhere.root_id = RootId::new(&[0xee; 16]).unwrap();
    let expected = match rig.root_kind() {
        // The key came with the wrap, and opens nothing under another name.
        RootKind::Tpm => CustodyError::WrapRejected,
        _ => CustodyError::CmkMissing { root_id: "ee".repeat(16) },
    };
    assert_eq!(refusal(&custody, &elsewhere, &wrap.bytes), expected);
    unwrap(&custody, &context(1), &wrap.bytes).unwrap();
}

fn asked_twice(rig: &Rig, mechanism: MechanismChoice) {
    let custody = Custody::start(rig.settings(mechanism));
    let (first, first_kek) = new_kek(&custody, &context(1));
    let (second, second_kek) = new_kek(&custody, &context(1));
    assert_cmks(rig, &custody, &[1]);
    assert_eq!(unwrap(&custody, &context(1), &first.bytes).unwrap().expose(), first_kek.expose());
    assert_eq!(unwrap(&custody, &context(1), &second.bytes).unwrap().expose(), second_kek.expose());
}

fn destroyed(rig: &Rig, mechanism: MechanismChoice) {
    let custody = Custody::start(rig.settings(mechanism));
    let (one, _) = new_kek(&custody, &context(1));
    let (two, _) = new_kek(&custody, &context(2));
    // Both seats know the CMK before it goes.
    for _ in 0..4 {
        unwrap(&custody, &context(1), &one.bytes).unwrap();
    }
    for _ in 0..2 {
        done(&custody, Request::DestroyCmk { root_id: context(1).root_id });
    }
    for _ in 0..4 {
        let refusal = refusal(&custody, &context(1), &one.bytes);
        assert!(matches!(refusal, CustodyError::CmkMissing { .. }), "{refusal:?}");
    }
    assert_eq!(cmks(&custody), [context(2).root_id]);
    unwrap(&custody, &context(2), &two.bytes).unwrap();
    drop(custody);
    assert!(inspect::keys(rig).iter().all(|key| key.label == "keystead default 2"));
}

fn cached(rig: &Rig, mechanism: MechanismChoice) {
    let mut settings = rig.settings(mechanism);
    settings.sessions = 1;
    let custody = Custody::start(settings);
    let (wrap, _) = new_kek(&custody, &context(1));
    unwrap(&custody, &context(1), &wrap.bytes).unwrap();
    let before = describe(&custody).device_operations;
    for _ in 0..10 {
        unwrap(&custody, &context(1), &wrap.bytes).unwrap();
    }
    // ECDH on a token derives an object, reads it and destroys it.
    let on_token = rig.root_kind() == RootKind::Pkcs11;
    let each = if on_token && mechanism == MechanismChoice::EcdhP256 { 3 } else { 1 };
    assert_eq!(describe(&custody).device_operations - before, 10 * each);
}

fn concurrent(rig: &Rig, mechanism: MechanismChoice) {
    let custody = Custody::start(rig.settings(mechanism));
    let (wrap, _) = new_kek(&custody, &context(1));
    let request = Request::Unwrap { context: context(1), wrap: wrap.bytes };
    let replies = custody.ask_all(vec![request; 64]);
    assert!(replies.iter().all(Result::is_ok), "{replies:?}");
}

fn killed(rig: &Rig, mechanism: MechanismChoice) {
    let mut custody = Custody::start(rig.settings(mechanism));
    let (wrap, kek) = new_kek(&custody, &context(1));
    custody.kill(Signal::SEGV);
    custody.wait_for(custody.client.disconnected());
    assert_eq!(refusal(&custody, &context(1), &wrap.bytes), CustodyError::Gone);
    custody.replace();
    assert_eq!(unwrap(&custody, &context(1), &wrap.bytes).unwrap().expose(), kek.expose());
}
