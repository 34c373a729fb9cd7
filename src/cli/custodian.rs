//! `keystead custodian restart`: another custodian for the running daemon, after a change of module or PIN.

use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};
use keystead_wire::admin::v1::RestartCustodianRequest;
use keystead_wire::admin::v1::admin_client::AdminClient;
use serde_json::json;

use super::connection::{Connection, runtime};
use super::exit::{Exit, Failure};
use super::report::Report;
use super::settings;

/// The old one may take seconds to end, the new one a login and the trial of the token's mechanisms.
const RESTARTED_WITHIN: Duration = Duration::from_secs(60);

/// Without a command it is the process that `serve` starts; by hand that fails, saying so.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Replace it: loads the module and reads the PIN anew, while loaded keys are served
    Restart,
}

pub fn run(command: &Command, config: Option<&Path>) -> Result<Report, Failure> {
    let Command::Restart = command;
    let (_, settings) = settings(config)?;
    runtime()?.block_on(restart(&settings.admin.socket.path))
}

async fn restart(socket: &Path) -> Result<Report, Failure> {
    let connection = Connection::open(socket).await?;
    let mut admin = AdminClient::new(connection.channel.clone());
    let call = admin.restart_custodian(RestartCustodianRequest {});
    let custody = connection.within(RESTARTED_WITHIN, call).await?.into_inner().custody.unwrap_or_default();
    let ready = custody.state == "ready";
    let text = if ready {
        format!("The custodian was replaced: token {} is ready.\n", custody.token_serial)
    } else {
        format!(
            "The custodian was replaced, but custody is not ready ({}): {}\nLoaded keys are served on; do not restart \
             the daemon.\n",
            custody.state, custody.detail
        )
    };
    let json = json!({
        "state": custody.state,
        "detail": custody.detail,
        "token_serial": custody.token_serial,
        "restarts": custody.restarts,
    });
    Ok(Report { text, json, exit: if ready { Exit::Done } else { Exit::NotServing } })
}
