//! `keystead store restore`: the way out where a store that was put back from a backup is refused as rolled back.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use keystead_wire::admin::v1::{GetStatusRequest, RestoreStoreRequest, RestoreStoreResponse, ScannedKeyId};
use serde_json::json;

use super::connection::runtime;
use super::exit::{Exit, Failure};
use super::key::{Daemon, confirm};
use super::report::{Format, Report, progress};
use super::source::EtcdSource;
use super::{settings, table};
use crate::cluster::Scan;

/// Every generation is opened, on a slow token or in the cloud.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take over an old record that is refused as rolled back; the key comes back disabled
    ///
    /// Asked of the running daemon, which refuses the record and serves nothing. Generations made after the backup are lost
    /// to it: `keystead recover` brings them back from etcd. Prefer the newest record, if there is one anywhere.
    Restore(Box<Arguments>),
}

#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("source").multiple(false),
    group = ArgGroup::new("roots").multiple(false)
)]
pub struct Arguments {
    /// The record, as keyring.store of a backup [default: the one in the store]
    #[arg(value_name = "FILE")]
    record: Option<PathBuf>,
    /// Said in words: what happened after the backup is given up
    #[arg(long, required = true)]
    accept_rollback: bool,
    /// Confirm the record's recovery key (PEM file), or name one where it has none
    #[arg(long, value_name = "PUBKEY", group = "roots")]
    recovery: Option<PathBuf>,
    /// Without a recovery key from now on
    #[arg(long, group = "roots")]
    no_recovery: bool,
    /// Do not ask; required where there is no terminal
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    cluster: EtcdSource,
}

pub fn run(command: &Command, config: Option<&Path>, format: Format) -> Result<Report, Failure> {
    let Command::Restore(arguments) = command;
    let (_, settings) = settings(config)?;
    let record = arguments.record.as_deref().map(read).transpose()?.unwrap_or_default();
    let recovery_key = match &arguments.recovery {
        None => String::new(),
        Some(path) => String::from_utf8(read(path)?)
            .map_err(|_| Failure::new(Exit::Usage, format!("{} is no PEM file", path.display())))?,
    };
    runtime()?.block_on(async {
        let mut daemon = Daemon::open(&settings.admin.socket.path).await?;
        let status = daemon.connection.answer(daemon.admin.get_status(GetStatusRequest {})).await?;
        let mut seen = Vec::new();
        if arguments.cluster.is_some() {
            let mut scanner = Scan::of(&settings.keyring);
            arguments.cluster.read(&mut scanner, format).await?;
            let each = scanner.finish().ours.into_iter();
            seen.extend(
                each.map(|(key_id, group)| ScannedKeyId { key_id: key_id.to_string(), objects: group.objects }),
            );
        }
        if !arguments.yes {
            confirm::confirm(&format!(
                "Take over an old store of keyring {}? What happened after the backup is given up.",
                status.keyring
            ))?;
        }
        progress(format, "opening the keys of the old store…");
        let request = RestoreStoreRequest { record, recovery_key, no_recovery: arguments.no_recovery, seen };
        let call = daemon.admin.restore_store(request);
        let answer = daemon.connection.within(PATIENCE, call).await?.into_inner();
        Ok(report(&answer, arguments.cluster.is_some()))
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| Failure::new(Exit::Usage, format!("cannot read {}: {error}", path.display())))
}

fn report(restored: &RestoreStoreResponse, scanned: bool) -> Report {
    let mut rows = vec![
        ("Epoch", format!("{} (the backup is of {})", restored.epoch, restored.of_epoch)),
        ("Generation", format!("{}, fresh: it encrypts once the key is enabled", restored.generation)),
        ("Key ID", restored.key_id.clone()),
    ];
    if !restored.set_aside.is_empty() {
        rows.push(("Set aside", restored.set_aside.clone()));
    }
    let mut text = format!("The store is taken over, and the key is DISABLED.\n{}", table::fields(&rows));
    let opened = restored.opened.iter().map(|each| match each.proven {
        true => each.key_id.clone(),
        false => format!("{}, origin unproven: anybody who knows the token's public key can have made it", each.key_id),
    });
    text.push_str(&format!("\nDecrypt again:\n{}", table::list(&opened.collect::<Vec<_>>())));
    if !restored.unopened.is_empty() {
        text.push_str(&format!("\nKept, and opened by nothing that is here:\n{}", table::list(&restored.unopened)));
    }
    if !restored.lost.is_empty() {
        let in_etcd = if scanned { "etcd holds no object under it" } else { "etcd was not looked at" };
        let lines: Vec<String> = restored
            .lost
            .iter()
            .map(|each| match each.key_id.as_str() {
                "" => format!("generation {}: its CMK is on the token; {in_etcd}", each.number),
                key_id => format!("generation {}: {} objects in etcd, {key_id}", each.number, each.objects),
            })
            .collect();
        text.push_str(&format!(
            "\nLOST, made after the backup:\n{}\nStop the daemon, then `keystead recover --replace-store --snapshot FILE`, with\n\
             --recovery or --no-recovery, brings back what etcd names and a root still opens.\n",
            table::list(&lines)
        ));
    } else if !scanned {
        text.push_str(
            "\netcd was not looked at. `keystead etcd scan` shows whether objects stand under\n\
             key IDs that are lost; `keystead recover` brings those back.\n",
        );
    }
    text.push_str(
        "\nNobody can tell whether the key was disabled or revoked after the backup. If it\n\
         is to serve: `keystead key enable`. Then rewrite every Secret, and `keystead\n\
         etcd scan`.\n",
    );
    let json = json!({
        "epoch": restored.epoch,
        "of_epoch": restored.of_epoch,
        "generation": restored.generation,
        "key_id": restored.key_id,
        "opened": restored.opened.iter().map(|each| json!({
            "key_id": each.key_id, "origin": if each.proven { "proven" } else { "unproven" },
        })).collect::<Vec<_>>(),
        "unopened": restored.unopened,
        "lost": restored.lost.iter().map(|each| json!({
            "number": each.number,
            "key_id": (!each.key_id.is_empty()).then_some(&each.key_id),
            "objects": each.objects,
        })).collect::<Vec<_>>(),
        "set_aside": (!restored.set_aside.is_empty()).then_some(&restored.set_aside),
    });
    // Done, and something is still missing.
    let exit = if restored.lost.is_empty() && restored.unopened.is_empty() { Exit::Done } else { Exit::Failed };
    Report { text, json, exit }
}
