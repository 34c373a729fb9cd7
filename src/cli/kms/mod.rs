//! `keystead kms …`: a KMS v2 client, for debugging what kube-apiserver sees.
//!
//! Plaintext comes from stdin or a file and goes to stdout or a file, never through the command line, which every user
//! of the machine can read.

mod bench;
mod decrypt;
mod document;
mod encrypt;
pub(super) mod files;
mod status;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use keystead_wire::kms::v2::key_management_service_client::KeyManagementServiceClient;
use tonic::transport::Channel;

use super::connection::{Connection, runtime};
use super::exit::{Exit, Failure};
use super::report::{Format, Report};
use super::settings;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Socket of the KMS service [default: `kms.socket` of the configuration]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Call Status, as the apiserver's health check does
    Status,
    /// Encrypt stdin or a file; prints a JSON document that `decrypt` takes
    Encrypt(encrypt::Arguments),
    /// Decrypt such a document from stdin or a file; prints the plaintext
    Decrypt(decrypt::Arguments),
    /// Measure throughput and latency
    Bench(bench::Arguments),
}

pub fn run(arguments: &Arguments, config: Option<&Path>, format: Format) -> Result<Report, Failure> {
    let socket = match &arguments.socket {
        // The config file may be closed to whoever debugs with the socket at hand.
        Some(socket) => socket.clone(),
        None => settings(config)?.1.kms.socket.path,
    };
    match &arguments.command {
        Command::Status => runtime()?.block_on(async { status::report(Service::open(&socket).await?).await }),
        Command::Encrypt(arguments) => encrypt::run(arguments, &socket),
        Command::Decrypt(arguments) => decrypt::run(arguments, &socket, format),
        Command::Bench(arguments) => bench::run(arguments, &socket, format),
    }
}

/// The daemon's KMS service.
#[derive(Clone)]
struct Service {
    connection: Connection,
    kms: KeyManagementServiceClient<Channel>,
}

impl Service {
    async fn open(socket: &Path) -> Result<Self, Failure> {
        let connection = Connection::open(socket).await?;
        let kms = KeyManagementServiceClient::new(connection.channel.clone());
        Ok(Self { connection, kms })
    }
}

/// A name for one request, found again in the daemon's log.
fn request_uid() -> Result<String, Failure> {
    let number = getrandom::u64().map_err(|error| Failure::new(Exit::Failed, format!("no randomness: {error}")))?;
    Ok(format!("keystead-cli-{number:016x}"))
}

#[cfg(test)]
mod tests;
