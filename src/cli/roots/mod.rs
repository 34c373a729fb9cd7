//! `keystead roots …`: what can open the key's generations, asked of the running daemon over its admin socket.

mod list;
mod rescue;

use std::path::Path;

use clap::Subcommand;

use super::connection::runtime;
use super::exit::Failure;
use super::key::Daemon;
use super::report::Report;
use super::settings;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List every root and the generations it opens
    List,
    /// Wrap the keys in the daemon's memory to a public key, while their token is dead
    Rescue(rescue::Arguments),
}

pub fn run(command: &Command, config: Option<&Path>) -> Result<Report, Failure> {
    let (_, settings) = settings(config)?;
    runtime()?.block_on(async {
        let daemon = Daemon::open(&settings.admin.socket.path).await?;
        match command {
            Command::List => list::report(daemon).await,
            Command::Rescue(arguments) => rescue::report(arguments, daemon).await,
        }
    })
}
