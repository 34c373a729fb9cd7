//! Modules and tokens that are missing, wrong, lying, hanging or lost.

use std::time::{Duration, Instant};

use keystead::custody::contract::{Answer, CustodyError, Request};
use keystead::custody::settings::{MechanismChoice, TokenSelector};

use crate::TokenCase;
use crate::asking::{context, describe, done, new_kek, unwrap};
use crate::support::custodian::Custody;
use crate::support::faulty::{logins, trigger, with_fault};
use crate::support::rig::{MakeRig, Rig};
use crate::support::softhsm;

pub const CASES: &[(&str, TokenCase)] = &[
    ("wrong_label_is_token_missing", wrong_label),
    ("two_tokens_with_one_label_are_ambiguous", ambiguous),
    ("tokens_are_listed_without_a_login", listed),
    ("module_that_does_not_exist_or_is_none_is_unusable", no_module),
    ("module_that_hangs_times_out_and_is_reported", hangs),
    ("requests_beyond_the_queue_are_busy", busy),
    ("token_that_hands_keys_out_is_refused", extractable),
    ("token_without_gcm_is_used_by_ecdh", no_gcm),
    ("device_removed_is_opened_again_in_place", dies),
    ("token_is_opened_anew_when_told_and_serves_on", reopened),
    ("probe_says_once_that_the_cmk_used_last_is_gone", probe_misses_cmk),
];

/// Faults that are built on SoftHSM's ways: the caller makes the IV there.
pub const SOFTHSM_CASES: &[(&str, TokenCase)] = &[
    ("iv_appended_by_the_token_is_used", |make| iv_mode(make, "appended", "aes-gcm (IV by token, appended)")),
    ("iv_written_back_by_the_token_is_used", |make| {
        iv_mode(make, "written-back", "aes-gcm (IV by token, written back)")
    }),
    ("token_that_opens_a_wrap_of_another_context_is_refused", deaf),
    ("poisoned_session_is_dropped_and_the_request_served", poisoned),
    ("token_unplugged_and_back_is_used_again", unplugged),
];

fn error(rig: &Rig) -> CustodyError {
    Custody::start(rig.settings(MechanismChoice::Auto)).ask(Request::Describe).expect_err("custody works")
}

fn wrong_label(make: MakeRig) {
    let rig = make(&["keystead"]);
    let mut settings = rig.settings(MechanismChoice::Auto);
    settings.token = TokenSelector::Label("keystea".into());
    let error = Custody::start(settings).ask(Request::Probe).unwrap_err();
    assert!(matches!(&error, CustodyError::TokenMissing { wanted } if wanted.contains("keystea")), "{error:?}");
}

fn ambiguous(make: MakeRig) {
    let rig = with_fault(make(&["keystead", "keystead"]), "none");
    assert_eq!(error(&rig), CustodyError::TokenAmbiguous { label: "keystead".into() });
    assert_eq!(logins(&rig), 0);
}

fn listed(make: MakeRig) {
    let rig = with_fault(make(&["one", "two"]), "none");
    let mut settings = rig.settings(MechanismChoice::Auto);
    settings.token = TokenSelector::Label("three".into());
    let custody = Custody::start(settings);
    custody.ask(Request::Describe).unwrap_err();
    let Ok(Answer::Tokens(mut tokens)) = custody.ask(Request::ListTokens) else { panic!("no list") };
    tokens.retain(|token| token.initialized);
    let mut labels: Vec<_> = tokens.iter().map(|token| token.label.as_str()).collect();
    labels.sort_unstable();
    assert_eq!(labels, ["one", "two"]);
    assert!(tokens.iter().all(|token| !token.serial.is_empty()));
    assert_eq!(logins(&rig), 0);
}

fn no_module(make: MakeRig) {
    let mut rig = make(&["keystead"]);
    let text = rig.folder.path().join("text.so");
    std::fs::write(&text, "no module").unwrap();
    // The last one is a library, of quite another kind.
    let other = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib/aarch64-linux-gnu/libc.so.6", "/lib64/libc.so.6"];
    let library = other.iter().find(|path| std::path::Path::new(path).exists()).unwrap();
    for module in [rig.folder.path().join("missing.so"), text, rig.folder.path().to_owned(), library.into()] {
        rig.module = module;
        let error = error(&rig);
        assert!(matches!(&error, CustodyError::ModuleUnusable { .. }), "{}: {error:?}", rig.module.display());
    }
}

fn hangs(make: MakeRig) {
    let rig = with_fault(make(&["keystead"]), "hang");
    let mut settings = rig.settings(MechanismChoice::Auto);
    settings.timeout = Duration::from_millis(300);
    let mut custody = Custody::start(settings);
    assert_eq!(custody.ask(Request::Describe).unwrap_err(), CustodyError::TimedOut);
    custody.wait_for(custody.client.hung());
    assert_eq!(custody.ask(Request::Probe).unwrap_err(), CustodyError::TimedOut);
    assert_eq!(*custody.client.hung().borrow(), 1, "one custodian hangs once");
    custody.kill(rustix::process::Signal::KILL);
    custody.wait_for(custody.client.disconnected());
}

fn busy(make: MakeRig) {
    let rig = with_fault(make(&["keystead"]), "hang");
    let mut settings = rig.settings(MechanismChoice::Auto);
    (settings.queue, settings.timeout) = (4, Duration::from_millis(500));
    let replies = Custody::start(settings).ask_all(vec![Request::Probe; 64]);
    let count = |error| replies.iter().filter(|reply| reply.as_ref().unwrap_err() == &error).count();
    assert_eq!((count(CustodyError::TimedOut), count(CustodyError::Busy)), (4, 60));
}

fn extractable(make: MakeRig) {
    let error = error(&with_fault(make(&["keystead"]), "extractable"));
    assert!(matches!(&error, CustodyError::Unsupported { detail } if detail.contains("non-extractable")), "{error:?}");
}

fn no_gcm(make: MakeRig) {
    let rig = with_fault(make(&["keystead"]), "no-gcm");
    let custody = Custody::start(rig.settings(MechanismChoice::Auto));
    assert_eq!(describe(&custody).mechanism, "ecdh-p256");
}

fn dies(make: MakeRig) {
    let rig = with_fault(make(&["keystead"]), "dies");
    let custody = Custody::start(rig.settings(MechanismChoice::AesGcm));
    let (wrap, kek) = new_kek(&custody, &context(1));
    trigger(&rig);
    let opened = eventually(|| unwrap(&custody, &context(1), &wrap.bytes));
    assert_eq!(opened.expose(), kek.expose());
    assert_eq!(logins(&rig), 2, "the module was to be started again once");
}

fn reopened(make: MakeRig) {
    let rig = with_fault(make(&["keystead"]), "none");
    let custody = Custody::start(rig.settings(MechanismChoice::Auto));
    let (wrap, kek) = new_kek(&custody, &context(1));
    let before = describe(&custody).openings;
    done(&custody, Request::Reopen);
    assert_eq!((describe(&custody).openings, logins(&rig)), (before + 1, 2));
    assert_eq!(unwrap(&custody, &context(1), &wrap.bytes).unwrap().expose(), kek.expose());
}

fn probe_misses_cmk(make: MakeRig) {
    let rig = make(&["keystead"]);
    let custody = Custody::start(rig.settings(MechanismChoice::Auto));
    new_kek(&custody, &context(1));
    // Another key stays, so that the token is not empty.
    new_kek(&custody, &context(2));
    done(&custody, Request::DestroyCmk { root_id: context(2).root_id });
    let error = custody.ask(Request::Probe).unwrap_err();
    assert!(matches!(error, CustodyError::CmkMissing { .. }), "{error:?}");
    done(&custody, Request::Probe);
}

fn iv_mode(make: MakeRig, fault: &str, mechanism: &str) {
    let rig = with_fault(make(&["keystead"]), fault);
    let custody = Custody::start(rig.settings(MechanismChoice::Auto));
    assert_eq!(describe(&custody).mechanism, mechanism);
    let (wrap, kek) = new_kek(&custody, &context(1));
    assert_eq!(unwrap(&custody, &context(1), &wrap.bytes).unwrap().expose(), kek.expose());
    let (again, _) = new_kek(&custody, &context(1));
    assert_ne!(again.bytes[1..13], wrap.bytes[1..13], "the same IV twice");
}

fn deaf(make: MakeRig) {
    let error = error(&with_fault(make(&["keystead"]), "deaf"));
    assert!(matches!(&error, CustodyError::Unsupported { detail } if detail.contains("another context")), "{error:?}");
}

fn poisoned(make: MakeRig) {
    let rig = with_fault(make(&["keystead"]), "poisoned");
    let custody = Custody::start(rig.settings(MechanismChoice::AesGcm));
    let (wrap, kek) = new_kek(&custody, &context(1));
    trigger(&rig);
    for _ in 0..4 {
        assert_eq!(unwrap(&custody, &context(1), &wrap.bytes).unwrap().expose(), kek.expose());
    }
    assert_eq!(logins(&rig), 1, "one bad session is no reason to start the module again");
}

fn unplugged(make: MakeRig) {
    let rig = make(&["keystead"]);
    let custody = Custody::start(rig.settings(MechanismChoice::Auto));
    let (wrap, kek) = new_kek(&custody, &context(1));
    softhsm::unplug(&rig).unwrap();
    let error = custody.ask(Request::NewKek { context: context(2) }).expect_err("a token that is not there made a key");
    assert!(matches!(error, CustodyError::TokenMissing { .. } | CustodyError::Device { .. }), "{error:?}");
    softhsm::plug_in(&rig).unwrap();
    let opened = eventually(|| unwrap(&custody, &context(1), &wrap.bytes));
    assert_eq!(opened.expose(), kek.expose());
    done(&custody, Request::Probe);
}

/// The device is opened at most once a second, so its return takes a moment to be noticed.
fn eventually<T>(mut attempt: impl FnMut() -> Result<T, CustodyError>) -> T {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) => {
                assert!(!matches!(error, CustodyError::CmkMissing { .. } | CustodyError::WrapRejected), "{error:?}");
                assert!(start.elapsed() < Duration::from_secs(20), "still {error:?}");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}
