//! `keystead lease extend`: hands a grant to the running daemon.

use std::path::{Path, PathBuf};

use clap::Args;
use keystead_core::grant::MAX_LEN;
use keystead_wire::admin::v1::ExtendLeaseRequest;
use keystead_wire::admin::v1::admin_client::AdminClient;
use serde_json::json;

use crate::cli::connection::{Connection, runtime};
use crate::cli::exit::{Exit, Failure};
use crate::cli::report::Report;
use crate::cli::{settings, time};

#[derive(Debug, Args)]
pub struct Arguments {
    /// The grant, as `keystead lease grant` wrote it
    #[arg(long, value_name = "FILE")]
    grant: PathBuf,
}

pub(super) fn run(arguments: &Arguments, config: Option<&Path>) -> Result<Report, Failure> {
    let (_, settings) = settings(config)?;
    let grant = read(&arguments.grant)?;
    let remaining = runtime()?.block_on(async {
        let connection = Connection::open(&settings.admin.socket.path).await?;
        let mut admin = AdminClient::new(connection.channel.clone());
        connection.answer(admin.extend_lease(ExtendLeaseRequest { grant })).await
    })?;
    let seconds = remaining.lease_remaining_seconds;
    let text = format!("The lease is extended: {} are left.\n", time::span(seconds));
    Ok(Report::done(text, json!({ "lease_remaining_seconds": seconds })))
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    use std::io::Read;
    let unreadable = |error| Failure::new(Exit::Usage, format!("cannot read {}: {error}", path.display()));
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    // One byte more than any grant has, so that the daemon can say what is wrong.
    file.take(MAX_LEN as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}
