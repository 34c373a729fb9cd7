//! `keystead key rotate`: asks, then follows the daemon's progress.
//!
//! The daemon journals each step: whoever interrupts this command leaves nothing half done.

use std::time::Duration;

use clap::Args;
use keystead_core::reason::Reason;
use keystead_wire::admin::v1::{Generation, GetStatusRequest, RotateProgress, RotateRequest};
use serde_json::json;
use tonic::{Response, Status, Streaming};

use super::{Daemon, confirm, generation};
use crate::cli::connection::Connection;
use crate::cli::exit::{Exit, Failure};
use crate::cli::report::{Format, Report, progress};
use crate::cli::table;

/// For one step; making a key pair takes some tokens seconds, RSA on a slow one a minute.
const STEP_WITHIN: Duration = Duration::from_secs(120);

#[derive(Debug, Args)]
pub struct Arguments {
    /// Do not ask; required where there is no terminal
    #[arg(long, short)]
    yes: bool,
    /// Rotate although Secrets may still be under older generations; the reason is logged and kept
    #[arg(long, value_name = "REASON")]
    force: Option<Reason>,
}

pub async fn report(arguments: &Arguments, mut daemon: Daemon, format: Format) -> Result<Report, Failure> {
    if !arguments.yes {
        let status = daemon.connection.answer(daemon.admin.get_status(GetStatusRequest {})).await?;
        let question =
            format!("Rotate keyring {} (generation {} is active)?", status.keyring, status.active_generation);
        confirm::confirm(&question)?;
    }
    let force = arguments.force.as_ref().map(ToString::to_string).unwrap_or_default();
    let call = daemon.admin.rotate(RotateRequest { force });
    let (steps, made) = follow(&daemon.connection, call, format).await?;
    Ok(Report::done(text(&made), json!({ "steps": steps, "generation": generation::json(&made) })))
}

/// Shows each step of a rotation; what was done and made in the end.
pub(in crate::cli) async fn follow(
    connection: &Connection,
    call: impl Future<Output = Result<Response<Streaming<RotateProgress>>, Status>>,
    format: Format,
) -> Result<(Vec<String>, Generation), Failure> {
    let mut stream = connection.within(STEP_WITHIN, call).await?.into_inner();
    let mut steps = Vec::new();
    let mut made = None;
    while let Some(message) = connection.within(STEP_WITHIN, stream.message()).await.map_err(look_first)? {
        progress(format, &format!("{}…", message.step));
        made = message.generation.or(made);
        steps.push(message.step);
    }
    let made = made.ok_or_else(|| look_first(Failure::new(Exit::Failed, "the daemon ended the rotation early")))?;
    Ok((steps, made))
}

/// The remedy of a rotation that stopped is not to start another.
fn look_first(failure: Failure) -> Failure {
    match failure.exit {
        Exit::Refused | Exit::NotServing => failure,
        _ => failure.next("`keystead key list` shows whether it was done; the daemon finishes or undoes it by itself"),
    }
}

fn text(made: &Generation) -> String {
    format!("Rotated.\n{}", after(made, None))
}

/// What a new generation leaves to be done.
pub(in crate::cli) fn after(made: &Generation, roots: Option<String>) -> String {
    let mut rows = vec![("Generation", made.number.to_string()), ("Key ID", made.key_id.clone())];
    rows.extend(roots.map(|roots| ("Roots", roots)));
    let rows = table::fields(&rows);
    format!(
        "{rows}\nkube-apiserver takes the new key within a minute. Secrets written before stay under the old\n\
         one until they are rewritten:\n  kubectl get secrets --all-namespaces -o json | kubectl replace -f -\n\
         Then `keystead etcd scan`: without it the next rotation is refused.\n"
    )
}
