//! `keystead upstream …`: the cloud key, asked directly and not through the daemon.

mod check;

use std::path::Path;

use clap::Subcommand;

use super::exit::Failure;
use super::report::{Format, Report};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Try the way to the cloud key step by step; says which step fails and what to do
    ///
    /// Changes nothing; makes at most three billed calls. Run it as the daemon's user, whose files it reads. Exit code 0 if
    /// every step passed, 3 if the cloud is not reached, 4 if it refuses.
    Check,
}

pub fn run(command: &Command, config: Option<&Path>, format: Format) -> Result<Report, Failure> {
    match command {
        Command::Check => check::run(config, format),
    }
}
