//! The PIN: a wrong one costs one try, whatever happens afterwards.

use keystead::custody::contract::{CustodyError, PinState, Request};
use keystead::custody::settings::MechanismChoice;

use crate::TokenCase;
use crate::asking::describe;
use crate::support::custodian::Custody;
use crate::support::faulty::{logins, with_fault};
use crate::support::rig::{MakeRig, PIN};

pub const CASES: &[(&str, TokenCase)] = &[
    ("wrong_pin_costs_one_try_over_three_restarts", wrong_pin),
    ("corrected_pin_is_tried_again", corrected),
    ("final_try_is_not_used_up", final_try),
    ("locked_pin_is_told_apart", locked),
    ("unreadable_pin_is_told_apart", unreadable),
];

fn wrong_pin(make: MakeRig) {
    let rig = with_fault(make(&["keystead"]), "none");
    rig.write_pin("not-the-pin");
    let mut custody = Custody::start(rig.settings(MechanismChoice::Auto));
    for _ in 0..4 {
        let refused = custody.ask_all(vec![Request::Probe; 8]);
        for reply in refused {
            let error = reply.expect_err("a wrong PIN opened the token");
            assert!(matches!(error, CustodyError::PinRejected { .. }), "{error:?}");
        }
        custody.replace();
    }
    assert_eq!(logins(&rig), 1);
    let text = std::fs::read_to_string(rig.folder.path().join("pin-rejected")).unwrap();
    assert!(!text.contains("not-the-pin"), "{text}");
}

fn corrected(make: MakeRig) {
    let rig = with_fault(make(&["keystead"]), "none");
    rig.write_pin("not-the-pin");
    let mut custody = Custody::start(rig.settings(MechanismChoice::Auto));
    custody.ask(Request::Probe).unwrap_err();
    rig.write_pin(PIN);
    custody.replace();
    assert_eq!(describe(&custody).token.pin, PinState::Fine);
    assert_eq!(logins(&rig), 2);
    assert!(!rig.folder.path().join("pin-rejected").exists());
}

fn final_try(make: MakeRig) {
    let rig = with_fault(make(&["keystead"]), "final-try");
    let error = Custody::start(rig.settings(MechanismChoice::Auto)).ask(Request::Describe).unwrap_err();
    assert!(matches!(error, CustodyError::PinFinalTry { .. }), "{error:?}");
    assert_eq!(logins(&rig), 0);
}

fn locked(make: MakeRig) {
    let rig = with_fault(make(&["keystead"]), "locked");
    let error = Custody::start(rig.settings(MechanismChoice::Auto)).ask(Request::Describe).unwrap_err();
    assert!(matches!(error, CustodyError::PinLocked { .. }), "{error:?}");
    assert_eq!(logins(&rig), 0);
}

fn unreadable(make: MakeRig) {
    let rig = with_fault(make(&["keystead"]), "none");
    std::fs::remove_file(rig.pin_file()).unwrap();
    let error = Custody::start(rig.settings(MechanismChoice::Auto)).ask(Request::Describe).unwrap_err();
    assert!(matches!(error, CustodyError::PinUnreadable { .. }), "{error:?}");
    assert_eq!(logins(&rig), 0);
}
