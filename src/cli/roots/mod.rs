//! `keystead roots …`: what can open the key's generations, asked of the running daemon over its admin socket.

mod change;
mod list;
mod rescue;

use std::path::Path;

use clap::Subcommand;

use super::connection::runtime;
use super::exit::Failure;
use super::key::Daemon;
use super::report::{Format, Report};
use super::settings;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List every root and the generations it opens
    List,
    /// Give new generations another root: makes one, and serves it
    #[command(subcommand)]
    Add(change::Add),
    /// Take a root from new generations: makes one, and serves it
    #[command(subcommand)]
    Remove(change::Remove),
    /// Wrap the keys in the daemon's memory to a public key, while their token is dead
    Rescue(rescue::Arguments),
}

pub fn run(command: &Command, config: Option<&Path>, format: Format) -> Result<Report, Failure> {
    let (_, settings) = settings(config)?;
    runtime()?.block_on(async {
        let daemon = Daemon::open(&settings.admin.socket.path).await?;
        match command {
            Command::List => list::report(daemon).await,
            Command::Add(add) => change::add(add, daemon, format).await,
            Command::Remove(remove) => change::remove(remove, daemon, format).await,
            Command::Rescue(arguments) => rescue::report(arguments, daemon).await,
        }
    })
}
