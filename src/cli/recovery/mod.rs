//! `keystead recovery …`: the recovery key itself, made, checked and drilled. Nothing here opens a token or a store.

mod drill;
mod exported;
pub mod keygen;
mod private;
mod verify;

use std::path::Path;

use clap::Subcommand;

use super::exit::Failure;
use super::report::Report;

use exported::Exported;
pub use keygen::create_new;
pub use private::read_private;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a recovery key; run it on the machine where the private half is to be kept
    Keygen(keygen::Arguments),
    /// Show which generations have a recovery wrap for this key
    Verify(verify::Arguments),
    /// Prove offline that this key opens every generation of an exported file
    Drill(drill::Arguments),
}

pub fn run(command: &Command, config: Option<&Path>) -> Result<Report, Failure> {
    match command {
        Command::Keygen(arguments) => keygen::run(arguments),
        Command::Verify(arguments) => verify::run(arguments, config),
        Command::Drill(arguments) => drill::run(arguments),
    }
}
