//! Keystead's command: picks the subcommand, maps errors to exit codes.
#![deny(unsafe_code)]

mod custody;

fn main() {}
