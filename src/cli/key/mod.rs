//! `keystead key …`: the key and its generations, asked of the running daemon over its admin socket.

pub(super) mod confirm;
mod describe;
pub(super) mod generation;
mod list;
mod rotate;
pub(super) mod switch;

use std::path::Path;

use clap::Subcommand;
use keystead_wire::admin::v1::admin_client::AdminClient;
use keystead_wire::admin::v1::{Generation, ListGenerationsRequest};
use tonic::transport::Channel;

use super::connection::{Connection, runtime};
use super::exit::Failure;
use super::report::{Format, Report};
use super::settings;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List every generation
    List,
    /// Show one generation with its roots
    Describe(describe::Arguments),
    /// Make a new generation and serve it; older ones go on decrypting
    Rotate(rotate::Arguments),
    /// Switch the whole key off: Status, Encrypt and Decrypt are refused, over restarts too
    Disable(switch::DisableArguments),
    /// Switch the key on again, without a restart; lifts no revocation
    Enable(switch::EnableArguments),
}

pub fn run(command: &Command, config: Option<&Path>, format: Format) -> Result<Report, Failure> {
    let (_, settings) = settings(config)?;
    runtime()?.block_on(async {
        let daemon = Daemon::open(&settings.admin.socket.path).await?;
        match command {
            Command::List => list::report(daemon).await,
            Command::Describe(arguments) => describe::report(arguments, daemon).await,
            Command::Rotate(arguments) => rotate::report(arguments, daemon, format).await,
            Command::Disable(arguments) => switch::disable(arguments, daemon).await,
            Command::Enable(arguments) => switch::enable(arguments, daemon).await,
        }
    })
}

/// The daemon's admin service.
pub(super) struct Daemon {
    pub(super) connection: Connection,
    pub(super) admin: AdminClient<Channel>,
}

impl Daemon {
    pub(super) async fn open(socket: &Path) -> Result<Self, Failure> {
        let connection = Connection::open(socket).await?;
        let admin = AdminClient::new(connection.channel.clone());
        Ok(Self { connection, admin })
    }

    pub(super) async fn generations(&mut self) -> Result<Vec<Generation>, Failure> {
        let answer = self.admin.list_generations(ListGenerationsRequest {});
        Ok(self.connection.answer(answer).await?.generations)
    }
}

#[cfg(test)]
mod tests;
