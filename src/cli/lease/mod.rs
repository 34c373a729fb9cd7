//! `keystead lease …`: more time for a site whose cloud stays away.

mod extend;
mod grant;

use std::path::Path;

use clap::Subcommand;

use super::exit::Failure;
use super::report::Report;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Apply a signed grant: the lease becomes longer by what it grants, once
    Extend(extend::Arguments),
    /// Sign a grant, offline: needs no daemon, token, network or configuration
    Grant(grant::Arguments),
}

pub fn run(command: &Command, config: Option<&Path>) -> Result<Report, Failure> {
    match command {
        Command::Extend(arguments) => extend::run(arguments, config),
        Command::Grant(arguments) => grant::run(arguments),
    }
}
