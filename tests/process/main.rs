//! The real supervisor with real processes, and children that only say what they see.
//!
//! The supervisor starts the running binary under hidden subcommands; here that binary is this test, so that it needs a
//! `main` of its own and a small runner.

mod cases;
mod children;
mod daemon;

use std::panic::catch_unwind;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("server") => children::server(),
        Some("custodian") => children::custodian(),
        Some("supervise") => children::supervise(&arguments[1..]),
        _ => run(&arguments),
    }
}

fn run(arguments: &[String]) -> ExitCode {
    let wanted = arguments.iter().find(|argument| !argument.starts_with('-'));
    let cases: Vec<_> =
        cases::ALL.iter().filter(|(name, _)| wanted.is_none_or(|wanted| name.contains(wanted.as_str()))).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        cases.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", cases.len());
    let mut failed = 0;
    for (name, case) in &cases {
        let passed = catch_unwind(case).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    println!(
        "\ntest result: {}. {} passed; {failed} failed",
        if failed == 0 { "ok" } else { "FAILED" },
        cases.len() - failed
    );
    ExitCode::from(u8::from(failed > 0))
}
