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
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
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

/// Cases at a time. More would be slower for it: they compute.
const AT_A_TIME: usize = 3;

fn main() -> ExitCode {
    play_role();
    support::inspect::play_role();
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let mut suite = Suite { filter, cases: Vec::new(), passed: 0, failed: Vec::new() };
    for (token, make) in TOKENS {
        for (mechanism, choice) in MECHANISMS {
            for (case, run) in keys::CASES.iter().chain(keys::OBJECT_CASES) {
                suite.add(format!("{token}/{mechanism}/{case}"), move || run(&make(&["keystead"]), choice));
            }
        }
        for (case, run) in epochs::CASES.iter().chain(pins::CASES).chain(faults::CASES) {
            suite.add(format!("{token}/{case}"), move || run(make));
        }
    }
    for (case, run) in faults::SOFTHSM_CASES {
        suite.add(format!("softhsm/{case}"), || run(softhsm::rig));
    }
    suite.run_on(keystead_core::RootKind::Pkcs11);
    #[cfg(feature = "tpm")]
    {
        for (mechanism, choice) in &MECHANISMS[1..] {
            for (case, run) in keys::CASES.iter().chain(tpm::KEY_CASES).chain(tpm_boot::KEY_CASES) {
                suite.add(format!("swtpm/{mechanism}/{case}"), || run(&swtpm::rig(&[]), *choice));
            }
        }
        for (case, run) in tpm::CASES.iter().chain(tpm_boot::CASES) {
            suite.add(format!("swtpm/{case}"), || run(swtpm::rig));
        }
        suite.run_on(keystead_core::RootKind::Tpm);
    }
    faulty::clean_up();
    suite.report()
}

struct Suite {
    filter: String,
    cases: Vec<(String, Box<dyn Fn() + Send + Sync>)>,
    passed: usize,
    failed: Vec<String>,
}

impl Suite {
    fn add(&mut self, name: String, case: impl Fn() + Send + Sync + 'static) {
        if name.contains(&self.filter) {
            self.cases.push((name, Box::new(case)));
        }
    }

    /// Runs what was added, on tokens that make roots of this kind.
    fn run_on(&mut self, kind: keystead_core::RootKind) {
        asking::test_roots_of(kind);
        let cases = std::mem::take(&mut self.cases);
        let next = AtomicUsize::new(0);
        let work = || {
            let mut outcomes = Vec::new();
            while let Some((name, case)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                let start = Instant::now();
                let passed = panic::catch_unwind(AssertUnwindSafe(case)).is_ok();
                match passed {
                    true => println!("ok      {name} ({} ms)", start.elapsed().as_millis()),
                    false => println!("FAILED  {name}"),
                }
                outcomes.push((name.clone(), passed));
            }
            outcomes
        };
        let outcomes = thread::scope(|scope| {
            let workers: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .flat_map(|worker| worker.join().expect("a worker that catches panics"))
                .collect::<Vec<_>>()
        });
        for (name, passed) in outcomes {
            match passed {
                true => self.passed += 1,
                false => self.failed.push(name),
            }
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
