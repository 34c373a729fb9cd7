//! `keystead backup …`: backups of etcd that a deletion should be held against, kept by the daemon.
//!
//! The snapshot is read here, with the operator's rights; the daemon is told key IDs and nothing else.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use keystead_wire::admin::v1::{Backup, ForgetBackupRequest, ListBackupsRequest, RegisterBackupRequest, ScanSource};
use serde_json::{Value, json};

use super::connection::runtime;
use super::exit::{Exit, Failure};
use super::key::Daemon;
use super::report::{Format, Report, progress};
use super::{settings, table, time};
use crate::cluster::{Origin, Prefixes, Scan, Snapshot, Source, SourceError};

/// The daemon writes its store, and lets a change under way be finished first.
const DONE_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Keep which generations a backup of etcd needs
    Register(RegisterArguments),
    /// List the backups that were registered
    List,
    /// Take one off the list, once the backup itself is gone
    Forget(ForgetArguments),
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(false))]
pub struct RegisterArguments {
    /// What people call it; 1 to 64 characters
    #[arg(long)]
    name: String,
    /// What `etcdctl snapshot save` wrote: read for the generations it needs
    #[arg(long, value_name = "FILE", group = "what")]
    snapshot: Option<PathBuf>,
    /// Read a copy of etcd's database file that has no checksum
    #[arg(long, requires = "snapshot")]
    skip_hash_check: bool,
    /// Numbers of the generations that it needs, as 1,2; for one that cannot be read here
    #[arg(long, value_name = "N,…", group = "what", value_delimiter = ',')]
    generations: Vec<u64>,
}

#[derive(Debug, Args)]
pub struct ForgetArguments {
    /// As it was registered
    #[arg(long)]
    name: String,
}

pub fn run(command: &Command, config: Option<&Path>, format: Format) -> Result<Report, Failure> {
    let (_, settings) = settings(config)?;
    runtime()?.block_on(async {
        let mut daemon = Daemon::open(&settings.admin.socket.path).await?;
        match command {
            Command::Register(arguments) => {
                let mut request = RegisterBackupRequest {
                    name: arguments.name.clone(),
                    generations: arguments.generations.clone(),
                    ..RegisterBackupRequest::default()
                };
                if let Some(file) = &arguments.snapshot {
                    let mut scanner = Scan::of(&settings.keyring);
                    progress(format, "reading the snapshot…");
                    let read = |error: SourceError| Failure::from_error(Exit::Failed, &error);
                    let opened = Snapshot::open(file, arguments.skip_hash_check).map_err(|error| read(error.into()))?;
                    let everything = Prefixes::new(std::iter::empty());
                    let mut source = Source::Snapshot(opened);
                    let provenance = source.read(&everything, &mut scanner, &mut |_| {}).await.map_err(read)?;
                    let scan = scanner.finish();
                    if let Origin::Snapshot { sha256 } = provenance.origin {
                        let revision = provenance.revision;
                        let snapshot_sha256 = sha256.to_vec();
                        request.source = Some(ScanSource { revision, snapshot_sha256, ..ScanSource::default() });
                    }
                    request.key_ids = scan.ours.keys().map(ToString::to_string).collect();
                    request.unknown = scan.unknown.objects;
                }
                register(request, daemon).await
            }
            Command::List => {
                let call = daemon.admin.list_backups(ListBackupsRequest {});
                Ok(list(&daemon.connection.answer(call).await?.backups))
            }
            Command::Forget(arguments) => {
                let call = daemon.admin.forget_backup(ForgetBackupRequest { name: arguments.name.clone() });
                daemon.connection.within(DONE_WITHIN, call).await?;
                let text = format!("Forgotten. The backup {:?} itself was not touched.\n", arguments.name);
                Ok(Report::done(text, json!({ "forgotten": arguments.name })))
            }
        }
    })
}

async fn register(request: RegisterBackupRequest, mut daemon: Daemon) -> Result<Report, Failure> {
    let call = daemon.admin.register_backup(request);
    let answer = daemon.connection.within(DONE_WITHIN, call).await?.into_inner();
    let backup = answer.backup.unwrap_or_default();
    let mut text = format!("Registered.\n{}", rows(std::slice::from_ref(&backup)));
    if answer.unlisted > 0 {
        text.push_str(&format!(
            "{} key IDs in it are not in the record: nothing here opens what is under them.\n",
            answer.unlisted
        ));
    }
    if backup.unknown > 0 {
        text.push_str(&format!(
            "{} objects in it cannot be read: it counts as needing every generation.\n",
            backup.unknown
        ));
    }
    Ok(Report::done(text, json!({ "backup": as_json(&backup), "unlisted": answer.unlisted })))
}

fn list(backups: &[Backup]) -> Report {
    let text = match backups {
        [] => "No backup is registered.\n".to_owned(),
        backups => rows(backups),
    };
    Report::done(text, json!({ "backups": backups.iter().map(as_json).collect::<Vec<_>>() }))
}

fn rows(backups: &[Backup]) -> String {
    let row = |backup: &Backup| {
        let destroyed = |number: &u64| if backup.destroyed.contains(number) { " (destroyed)" } else { "" };
        let mut needs: Vec<String> =
            backup.generations.iter().map(|number| format!("{number}{}", destroyed(number))).collect();
        if backup.unknown > 0 {
            needs.push("others?".into());
        }
        let from = if backup.source.is_some() { "snapshot" } else { "said so" };
        vec![time::day(backup.registered), from.into(), needs.join(", "), backup.name.clone()]
    };
    table::columns(&["REGISTERED", "FROM", "NEEDS", "NAME"], &backups.iter().map(row).collect::<Vec<_>>())
}

fn as_json(backup: &Backup) -> Value {
    json!({
        "name": backup.name,
        "registered": time::rfc3339(backup.registered),
        "source": backup.source.as_ref().map(super::key::generation::scan_source),
        "generations": backup.generations,
        "destroyed": backup.destroyed,
        "unknown": backup.unknown,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backups_that_lost_a_generation_show_it() {
        let backup = Backup {
            name: "friday".into(),
            registered: 1_763_816_645,
            generations: vec![1, 2],
            destroyed: vec![1],
            unknown: 3,
            ..Backup::default()
        };
        let report = list(&[backup]);
        assert!(report.text.contains("said so  1 (destroyed), 2, others?  friday"), "{}", report.text);
        assert_eq!(report.json["backups"][0]["destroyed"], json!([1]));
        assert!(list(&[]).text.contains("No backup"));
    }
}
