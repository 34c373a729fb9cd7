//! Epoch secrets.

use keystead::custody::contract::{CustodyError, EpochPurpose, Request};
use keystead::custody::settings::MechanismChoice;

use crate::TokenCase;
use crate::asking::{cmks, context, derive, derive_for, describe, done, epoch, epochs, new_kek};
use crate::support::custodian::Custody;
use crate::support::faulty::with_fault;
use crate::support::inspect;
use crate::support::rig::{MakeRig, Rig};

pub const CASES: &[(&str, TokenCase)] = &[
    ("epoch_keys_are_stable_and_differ_by_owner_and_number", |make| stable_and_different(&make(&["keystead"]))),
    ("epoch_keys_of_a_token_without_hmac_come_by_cmac", cmac),
    ("token_without_any_mac_is_refused", no_mac),
    ("epoch_destroyed_is_gone_for_ever_and_made_anew_is_another", destroyed),
    ("epoch_secret_never_leaves_the_token_and_is_no_cmk", never_leaves),
];

fn cmac(make: MakeRig) {
    let rig = with_fault(make(&["keystead"]), "no-hmac");
    assert_eq!(describe(&Custody::start(rig.settings(MechanismChoice::Auto))).authentication, "aes-cmac");
    stable_and_different(&rig);
}

fn no_mac(make: MakeRig) {
    let rig = with_fault(make(&["keystead"]), "no-mac");
    let error =
        Custody::start(rig.settings(MechanismChoice::Auto)).ask(Request::Describe).expect_err("epochs by nothing");
    assert!(matches!(&error, CustodyError::Unsupported { .. }), "{error:?}");
}

pub fn stable_and_different(rig: &Rig) {
    let mut custody = Custody::start(rig.settings(MechanismChoice::Auto));
    let all = [
        epoch("default", "edge-1", 1),
        epoch("default", "edge-1", 2),
        epoch("default", "edge-1", u64::MAX),
        epoch("default", "edge-2", 1),
        epoch("other", "edge-1", 1),
        // The same two names, divided elsewhere.
        epoch("defaulte", "dge-1", 1),
    ];
    assert_eq!(derive(&custody, &all[0]), Err(CustodyError::EpochMissing { number: 1 }));
    for epoch in &all {
        done(&custody, Request::CreateEpoch(epoch.clone()));
    }
    let mut keys: Vec<_> = all.iter().map(|epoch| derive(&custody, epoch).unwrap()).collect();
    for purpose in [EpochPurpose::Audit, EpochPurpose::OfflineCopy] {
        keys.extend(all.iter().map(|epoch| derive_for(&custody, epoch, purpose).unwrap()));
    }
    for (index, key) in keys.iter().enumerate() {
        assert!(!keys[..index].contains(key), "two epochs or purposes give one key");
    }
    // One that is there already is kept.
    done(&custody, Request::CreateEpoch(all[0].clone()));
    custody.replace();
    assert_eq!(all.iter().map(|epoch| derive(&custody, epoch).unwrap()).collect::<Vec<_>>(), keys[..all.len()]);
    assert_eq!(epochs(&custody, "default", "edge-1"), [1, 2, u64::MAX]);
    assert_eq!(epochs(&custody, "default", "edge-2"), [1]);
    assert_eq!(epochs(&custody, "default", "edge-3"), [0; 0]);
}

fn destroyed(make: MakeRig) {
    let rig = make(&["keystead"]);
    let custody = Custody::start(rig.settings(MechanismChoice::Auto));
    let (one, two) = (epoch("default", "edge-1", 1), epoch("default", "edge-1", 2));
    done(&custody, Request::CreateEpoch(one.clone()));
    done(&custody, Request::CreateEpoch(two.clone()));
    let key = derive(&custody, &one).unwrap();
    for _ in 0..2 {
        done(&custody, Request::DestroyEpoch(one.clone()));
    }
    assert_eq!(derive(&custody, &one), Err(CustodyError::EpochMissing { number: 1 }));
    assert_eq!(epochs(&custody, "default", "edge-1"), [2]);
    done(&custody, Request::CreateEpoch(one.clone()));
    assert_ne!(derive(&custody, &one).unwrap(), key);
    // The last object on the token: an empty one is no lost one.
    for epoch in [&one, &two, &two] {
        done(&custody, Request::DestroyEpoch(epoch.clone()));
    }
    assert_eq!(epochs(&custody, "default", "edge-1"), [0; 0]);
}

fn never_leaves(make: MakeRig) {
    let rig = make(&["keystead"]);
    let custody = Custody::start(rig.settings(MechanismChoice::Auto));
    new_kek(&custody, &context(1));
    done(&custody, Request::CreateEpoch(epoch("default", "edge-1", 1)));
    assert_eq!(cmks(&custody), [context(1).root_id]);
    drop(custody);
    let keys = inspect::keys(&rig);
    let secrets: Vec<_> = keys.iter().filter(|key| key.label == "keystead-epoch default").collect();
    assert_eq!(secrets.len(), 1, "on the token: {keys:?}");
    let key = secrets[0];
    assert!(key.private && key.sensitive && !key.extractable && !key.value_readable, "{key:?}");
    // No CMK request reaches it, not even by its own ID.
    let custody = Custody::start(rig.settings(MechanismChoice::Auto));
    done(&custody, Request::DestroyCmk { root_id: keystead_core::RootId::new(&key.id).unwrap() });
    assert_eq!(epochs(&custody, "default", "edge-1"), [1]);
}
