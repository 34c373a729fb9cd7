//! The contract that every upstream keeps: one suite, run against each cloud's rig, then each cloud's own cases; all clouds at
//! once.
//!
//! Prints a report with the class of every fault. `cargo test --test upstream -- WORD` runs the cases whose name holds the word.

mod alibaba;
mod aws;
mod faults;
mod ibm;
mod keys;
mod network;
mod provider;
mod rig;

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use provider::{Case, Provider, Stand};

const PROVIDERS: [&Provider; 3] = [&alibaba::PROVIDER, &ibm::PROVIDER, &aws::PROVIDER];

fn main() -> ExitCode {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    // They wait for time-outs more than they compute.
    let suites = thread::scope(|scope| {
        let running = PROVIDERS.map(|provider| scope.spawn(|| Suite::run_on(provider, &filter)));
        running.map(|suite| suite.join().expect("a suite that catches its cases' panics"))
    });
    report(&suites)
}

#[derive(Default)]
struct Suite {
    passed: usize,
    failed: Vec<String>,
}

impl Suite {
    fn run_on(provider: &'static Provider, filter: &str) -> Self {
        let mut suite = Self::default();
        let faults = faults::cases(provider);
        let common = [keys::CASES, network::CASES, faults::CASES, provider.own].concat();
        let chosen = |name: &str| format!("{}/{name}", provider.name).contains(filter);
        let faults: Vec<_> = faults.into_iter().filter(|fault| chosen(fault.name)).collect();
        let common: Vec<_> = common.into_iter().filter(|(name, _)| chosen(name)).collect();
        if faults.is_empty() && common.is_empty() {
            return suite;
        }
        let stand = Stand::new(provider);
        for (name, case) in common {
            suite.run(&stand, name, case);
        }
        for fault in faults {
            suite.run_with(&stand, &format!("{} -> {}", fault.name, fault.class), || fault.run(&stand));
        }
        suite
    }

    fn run(&mut self, stand: &Stand, name: &str, case: Case) {
        self.run_with(stand, name, || case(stand));
    }

    fn run_with(&mut self, stand: &Stand, name: &str, case: impl FnOnce()) {
        let (name, start) = (format!("{}/{name}", stand.provider.name), Instant::now());
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
            stand.rig.control(r#"{"action": "reset"}"#);
            case();
        }));
        if outcome.is_ok() {
            println!("ok      {name} ({} ms)", start.elapsed().as_millis());
            self.passed += 1;
        } else {
            println!("FAILED  {name}");
            self.failed.push(name);
        }
    }
}

fn report(suites: &[Suite]) -> ExitCode {
    let names = PROVIDERS.map(|provider| provider.name).join(", ");
    let passed: usize = suites.iter().map(|suite| suite.passed).sum();
    let failed: Vec<&String> = suites.iter().flat_map(|suite| &suite.failed).collect();
    println!("\nUpstream contract ({names}): {passed} passed, {} failed", failed.len());
    failed.iter().for_each(|name| println!("  failed: {name}"));
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
