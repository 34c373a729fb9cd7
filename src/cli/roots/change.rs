//! `keystead roots add|remove`: other roots, by a new generation.
//!
//! The daemon judges and journals; this asks whether it is meant, and follows.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use keystead_core::hpke_p256::P256PublicKey;
use keystead_core::reason::Reason;
use keystead_wire::admin::v1::change_roots_request::Change;
use keystead_wire::admin::v1::{AddRecovery, AddUpstream, ChangeRootsRequest, RemoveRecovery, RemoveUpstream};
use serde_json::json;

use crate::cli::exit::{Exit, Failure};
use crate::cli::key::confirm::confirm;
use crate::cli::key::rotate::{after, follow};
use crate::cli::key::{Daemon, generation};
use crate::cli::report::{Format, Report};

#[derive(Debug, Subcommand)]
pub enum Add {
    /// Wrap new generations to a recovery key as well, whose private half is kept offline
    Recovery {
        /// P-256 public key (PEM); make a pair with `keystead recovery keygen`
        #[arg(value_name = "PUBLIC.pem")]
        key: PathBuf,
        /// In the place of the recovery key that there is
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        rotation: Rotation,
    },
    /// Root new generations in the cloud key that [upstream] names
    Upstream {
        #[command(flatten)]
        rotation: Rotation,
    },
}

#[derive(Debug, Subcommand)]
pub enum Remove {
    /// Wrap new generations to no recovery key
    Recovery {
        /// Although everything hangs on one root then
        #[arg(long)]
        leave_one_root: bool,
        #[command(flatten)]
        rotation: Rotation,
    },
    /// Root new generations in the token again, also while [upstream] is configured
    Upstream {
        #[command(flatten)]
        rotation: Rotation,
    },
}

/// Every change is a rotation.
#[derive(Debug, Args)]
pub struct Rotation {
    /// Do not ask; required where there is no terminal
    #[arg(long, short)]
    yes: bool,
    /// Go on although Secrets may still be under older generations; the reason is logged and kept
    #[arg(long, value_name = "REASON")]
    force: Option<Reason>,
}

pub async fn add(add: &Add, daemon: Daemon, format: Format) -> Result<Report, Failure> {
    match add {
        Add::Recovery { key, replace, rotation } => {
            let (recovery_key, id) = read(key)?;
            let change = Change::AddRecovery(AddRecovery { recovery_key, replace: *replace });
            carry_out(change, &format!("Wrap new generations to recovery key {id}"), rotation, daemon, format).await
        }
        Add::Upstream { rotation } => {
            let what = "Root new generations in the cloud key of the configuration";
            carry_out(Change::AddUpstream(AddUpstream {}), what, rotation, daemon, format).await
        }
    }
}

pub async fn remove(remove: &Remove, daemon: Daemon, format: Format) -> Result<Report, Failure> {
    match remove {
        Remove::Recovery { leave_one_root, rotation } => {
            let change = Change::RemoveRecovery(RemoveRecovery { leave_one_root: *leave_one_root });
            carry_out(change, "Wrap new generations to no recovery key", rotation, daemon, format).await
        }
        Remove::Upstream { rotation } => {
            let what = "Root new generations in the token, and no more in the cloud";
            carry_out(Change::RemoveUpstream(RemoveUpstream {}), what, rotation, daemon, format).await
        }
    }
}

fn read(path: &Path) -> Result<(String, String), Failure> {
    let shown = path.display();
    let pem = std::fs::read_to_string(path)
        .map_err(|error| Failure::new(Exit::Usage, format!("cannot read {shown}: {error}")))?;
    let key = P256PublicKey::from_pem(&pem).map_err(|error| Failure::new(Exit::Usage, format!("{shown}: {error}")))?;
    Ok((pem, key.recovery_root_id().to_string()))
}

async fn carry_out(
    change: Change,
    what: &str,
    rotation: &Rotation,
    mut daemon: Daemon,
    format: Format,
) -> Result<Report, Failure> {
    if !rotation.yes {
        confirm(&format!("{what}? It makes a new generation; older ones keep their roots."))?;
    }
    let force = rotation.force.as_ref().map(ToString::to_string).unwrap_or_default();
    let call = daemon.admin.change_roots(ChangeRootsRequest { change: Some(change), force });
    let (steps, made) = follow(&daemon.connection, call, format).await?;
    let roots: Vec<_> = made.roots.iter().map(|root| format!("{} {}", root.kind, root.id)).collect();
    let text = format!(
        "Changed, for new generations.\n{}Older generations keep their roots; `keystead roots list` says what they still open.\n",
        after(&made, Some(roots.join(", ")))
    );
    Ok(Report::done(text, json!({ "steps": steps, "generation": generation::json(&made) })))
}
