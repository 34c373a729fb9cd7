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

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::time::Instant;

use keystead::custody::contract::{Answer, Request};
use keystead::custody::settings::MechanismChoice;
use support::custodian::{Custody, play_role};
use support::rig::{MakeRig, Rig};
#[cfg(feature = "tpm")]
use support::swtpm;
use support::{faulty, kryoptic, softhsm};

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

fn main() -> ExitCode {
    play_role();
    support::inspect::play_role();
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    asking::test_roots_of(keystead_core::RootKind::Pkcs11);
    let mut suite = Suite { filter, passed: 0, failed: Vec::new() };
    for (token, make) in TOKENS {
        for (mechanism, choice) in MECHANISMS {
            for (case, run) in keys::CASES.iter().chain(keys::OBJECT_CASES) {
                suite.run(&format!("{token}/{mechanism}/{case}"), || run(&make(&["keystead"]), choice));
            }
        }
        for (case, run) in epochs::CASES.iter().chain(pins::CASES).chain(faults::CASES) {
            suite.run(&format!("{token}/{case}"), || run(make));
        }
    }
    for (case, run) in faults::SOFTHSM_CASES {
        suite.run(&format!("softhsm/{case}"), || run(softhsm::rig));
    }
    #[cfg(feature = "tpm")]
    {
        asking::test_roots_of(keystead_core::RootKind::Tpm);
        for (mechanism, choice) in &MECHANISMS[1..] {
            for (case, run) in keys::CASES.iter().chain(tpm::KEY_CASES).chain(tpm_boot::KEY_CASES) {
                suite.run(&format!("swtpm/{mechanism}/{case}"), || run(&swtpm::rig(&[]), *choice));
            }
        }
        for (case, run) in tpm::CASES.iter().chain(tpm_boot::CASES) {
            suite.run(&format!("swtpm/{case}"), || run(swtpm::rig));
        }
    }
    faulty::clean_up();
    suite.report()
}

struct Suite {
    filter: String,
    passed: usize,
    failed: Vec<String>,
}

impl Suite {
    fn run(&mut self, name: &str, case: impl FnOnce()) {
        if !name.contains(&self.filter) {
            return;
        }
        let start = Instant::now();
        if panic::catch_unwind(AssertUnwindSafe(case)).is_ok() {
            println!("ok      {name} ({} ms)", start.elapsed().as_millis());
            self.passed += 1;
        } else {
            println!("FAILED  {name}");
            self.failed.push(name.to_owned());
        }
    }

    fn report(&self) -> ExitCode {
        println!("\nCustodian contract: {} passed, {} failed", self.passed, self.failed.len());
        if self.filter.is_empty() {
            TOKENS.iter().for_each(|(_, make)| describe(*make));
            #[cfg(feature = "tpm")]
            describe(swtpm::rig);
        }
        self.failed.iter().for_each(|name| println!("  failed: {name}"));
        if self.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
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
