//! The contract that every custodian keeps: one suite, run on two independent PKCS#11 tokens and a TPM with every mechanism.
//!
//! Prints a report that names the tokens and what each negotiated. `cargo test --test contract -- WORD` runs the cases
//! whose name holds the word.

mod asking;
mod epochs;
mod faults;
mod keys;
mod pins;
#[path = "../support/mod.rs"]
mod support;
#[cfg(feature = "tpm")]
mod tpm;
#[cfg(feature = "tpm")]
mod tpm_boot;
#[cfg(feature = "tpm")]
#[path = "../../crates/bench/src/tpm_proxy.rs"]
#[allow(dead_code, reason = "the daemon's tests use the rest")]
mod tpm_proxy;

use std::panic;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use keystead::custody::contract::{Answer, Request};
use keystead::custody::settings::MechanismChoice;
use keystead_core::RootKind;
use support::custodian::{Custody, play_role};
use support::rig::{MakeRig, Rig};
#[cfg(feature = "tpm")]
use support::swtpm;
use support::{kryoptic, softhsm};

/// Runs on a token of its own, with one mechanism.
pub type KeyCase = fn(&Rig, MechanismChoice);
/// Makes the tokens it needs.
pub type TokenCase = fn(MakeRig);

const TOKENS: [(&str, MakeRig); 2] = [("softhsm", softhsm::rig), ("kryoptic", kryoptic::rig)];
const MECHANISMS: [(&str, MechanismChoice); 3] = [
    ("aes-gcm", MechanismChoice::AesGcm),
    ("ecdh-p256", MechanismChoice::EcdhP256),
    ("rsa-oaep", MechanismChoice::RsaOaep),
];

/// Cases at a time. More would be slower for it: they compute.
const AT_A_TIME: usize = 3;

/// Names the one case that this process runs.
const CASE: &str = "KEYSTEAD_TEST_CASE";

fn main() -> ExitCode {
    play_role();
    support::inspect::play_role();
    let cases = cases();
    if let Ok(wanted) = std::env::var(CASE) {
        let case = cases.iter().find(|case| case.name == wanted).expect("a case of that name");
        asking::test_roots_of(case.kind);
        (case.run)();
        return ExitCode::SUCCESS;
    }
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let names: Vec<String> = cases.into_iter().map(|case| case.name).filter(|name| name.contains(&filter)).collect();
    let failed = failures(&names);
    println!("\nCustodian contract: {} passed, {} failed", names.len() - failed.len(), failed.len());
    if filter.is_empty() {
        TOKENS.iter().for_each(|(_, make)| describe(*make));
        #[cfg(feature = "tpm")]
        describe(swtpm::rig);
    }
    failed.iter().for_each(|name| println!("  failed: {name}"));
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Case {
    name: String,
    /// Of the roots that its token makes.
    kind: RootKind,
    run: Box<dyn Fn()>,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |kind, name, run| cases.push(Case { name, kind, run });
    for (token, make) in TOKENS {
        for (mechanism, choice) in MECHANISMS {
            for (case, run) in keys::CASES.iter().chain(keys::OBJECT_CASES) {
                let run = move || run(&make(&["keystead"]), choice);
                add(RootKind::Pkcs11, format!("{token}/{mechanism}/{case}"), Box::new(run) as Box<dyn Fn()>);
            }
        }
        for (case, run) in epochs::CASES.iter().chain(pins::CASES).chain(faults::CASES) {
            add(RootKind::Pkcs11, format!("{token}/{case}"), Box::new(move || run(make)));
        }
    }
    for (case, run) in faults::SOFTHSM_CASES {
        add(RootKind::Pkcs11, format!("softhsm/{case}"), Box::new(|| run(softhsm::rig)));
    }
    #[cfg(feature = "tpm")]
    {
        for (mechanism, choice) in &MECHANISMS[1..] {
            for (case, run) in keys::CASES.iter().chain(tpm::KEY_CASES).chain(tpm_boot::KEY_CASES) {
                add(RootKind::Tpm, format!("swtpm/{mechanism}/{case}"), Box::new(|| run(&swtpm::rig(&[]), *choice)));
            }
        }
        for (case, run) in tpm::CASES.iter().chain(tpm_boot::CASES) {
            add(RootKind::Tpm, format!("swtpm/{case}"), Box::new(|| run(swtpm::rig)));
        }
    }
    cases
}

/// Runs the cases, each in a process of its own, and names those that failed. In one process a child that one case starts
/// would inherit the connections of another one's TSS, which are not closed at exec; a software TPM serves one at a time.
fn failures(names: &[String]) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut failed = Vec::new();
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            let start = Instant::now();
            let this = std::env::current_exe().expect("the path of this program");
            let status = Command::new(this).env(CASE, name).status().expect("this program runs");
            match status.success() {
                true => println!("ok      {name} ({} ms)", start.elapsed().as_millis()),
                false => {
                    println!("FAILED  {name} ({status})");
                    failed.push(name.clone());
                }
            }
        }
        failed
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker ends")).collect()
    })
}

/// What a token says of itself, and what each mechanism setting came to.
fn describe(make: MakeRig) {
    let described = panic::catch_unwind(|| {
        let rig = make(&["keystead"]);
        for (index, (asked, choice)) in [("auto", MechanismChoice::Auto)].into_iter().chain(MECHANISMS).enumerate() {
            let Ok(Answer::Token(found)) = Custody::start(rig.settings(choice)).ask(Request::Describe) else {
                println!("  {asked}: not supported");
                continue;
            };
            if index == 0 {
                let token = &found.token;
                println!("{}: {} {}, firmware {}", rig.name, token.manufacturer, token.model, token.firmware);
            }
            println!("  asked for {asked}: {}, epoch secrets by {}", found.mechanism, found.authentication);
        }
    });
    if described.is_err() {
        println!("  a token could not be described");
    }
}
