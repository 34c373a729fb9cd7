//! `keystead etcd scan`: which generations the objects in etcd still need, counted from its bytes.
//!
//! The daemon keeps the outcome and goes by it; it holds no access to etcd itself.

use std::path::Path;
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use keystead_core::{GenerationNumber, KeyId};
use keystead_wire::admin::v1::{RecordScanRequest, Scan as Kept, ScanSource, ScannedKeyId};
use serde_json::{Value, json};

use super::connection::runtime;
use super::exit::Failure;
use super::key::{Daemon, generation};
use super::report::{Format, Report};
use super::source::EtcdSource;
use super::{settings, table};
use crate::cluster::{Group, Origin, Provenance, Scan};

/// The daemon asks the token for the record's key, and lets a change under way be finished first.
const RECORDED_WITHIN: Duration = Duration::from_secs(60);
/// Kinds named in a line of the table.
const KINDS_SHOWN: usize = 2;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Count which generations the objects in etcd need, and have the daemon keep the outcome
    Scan(Box<Arguments>),
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("source").required(true).multiple(false))]
pub struct Arguments {
    #[command(flatten)]
    cluster: EtcdSource,
    /// Only show: the daemon is not asked, and need not run
    #[arg(long)]
    no_record: bool,
}

pub fn run(command: &Command, config: Option<&Path>, format: Format) -> Result<Report, Failure> {
    let Command::Scan(arguments) = command;
    let (_, settings) = settings(config)?;
    runtime()?.block_on(async {
        // Before minutes are spent on reading.
        let daemon = match arguments.no_record {
            true => None,
            false => Some(Daemon::open(&settings.admin.socket.path).await?),
        };
        let mut scanner = Scan::of(&settings.keyring);
        let provenance = arguments.cluster.read(&mut scanner, format).await?;
        let scan = scanner.finish();
        let kept = match daemon {
            None => None,
            Some(daemon) => Some(record(daemon, &scan, &provenance, arguments.cluster.is_restricted()).await?),
        };
        Ok(report(&scan, &provenance, kept.as_ref()))
    })
}

async fn record(mut daemon: Daemon, scan: &Scan, provenance: &Provenance, restricted: bool) -> Result<Kept, Failure> {
    let objects =
        scan.ours.iter().map(|(key_id, group)| ScannedKeyId { key_id: key_id.to_string(), objects: group.objects });
    let request = RecordScanRequest {
        source: Some(wire(provenance)),
        restricted,
        objects: objects.collect(),
        unknown: scan.unknown.objects,
    };
    let call = daemon.admin.record_scan(request);
    let answer = daemon.connection.within(RECORDED_WITHIN, call).await?.into_inner();
    Ok(answer.scan.unwrap_or_default())
}

fn wire(provenance: &Provenance) -> ScanSource {
    let revision = provenance.revision;
    match provenance.origin {
        Origin::Snapshot { sha256 } => {
            ScanSource { revision, snapshot_sha256: sha256.to_vec(), ..ScanSource::default() }
        }
        Origin::Etcd { cluster, member } => {
            ScanSource { revision, cluster_id: cluster, member_id: member, ..ScanSource::default() }
        }
    }
}

/// By number, then key ID.
fn by_number(scan: &Scan) -> Vec<(GenerationNumber, &KeyId, &Group)> {
    let mut all: Vec<_> = scan.ours.iter().map(|(key_id, group)| (key_id.generation(), key_id, group)).collect();
    all.sort_by_key(|(number, key_id, _)| (*number, *key_id));
    all
}

fn report(scan: &Scan, provenance: &Provenance, kept: Option<&Kept>) -> Report {
    let ours = by_number(scan);
    let mut text = match ours.as_slice() {
        [] => "No object is under a key of this keyring.\n".to_owned(),
        ours => {
            let row = |(number, key_id, group): &(GenerationNumber, &KeyId, &Group)| {
                vec![number.to_string(), group.objects.to_string(), kinds(group), key_id.to_string()]
            };
            let rows: Vec<Vec<String>> = ours.iter().map(row).collect();
            table::columns(&["GEN", "OBJECTS", "KINDS", "KEY ID"], &rows)
        }
    };
    // Without the daemon's word, the newest one seen is taken for the active one.
    let active = kept.map(|kept| kept.active_generation).or(ours.last().map(|(number, ..)| number.0));
    let older: Vec<String> = ours
        .iter()
        .filter(|(number, ..)| Some(number.0) != active)
        .map(|(number, _, group)| format!("generation {number}: {}", samples(group)))
        .collect();
    if !older.is_empty() {
        text.push_str(&format!("\nNot under the active generation:\n{}", table::list(&older)));
    }
    let beside: Vec<String> = beside(scan).into_iter().filter(|line| !line.is_empty()).collect();
    if !beside.is_empty() {
        text.push_str(&format!("\nAlso seen:\n{}", table::list(&beside)));
    }
    text.push_str(&format!("\n{} keys, {}.\n", scan.keys, from(provenance)));
    if let Some(unlisted) = kept.map(|kept| kept.unlisted).filter(|unlisted| *unlisted > 0) {
        text.push_str(&format!(
            "{unlisted} objects are under key IDs that the daemon does not have: it opens none of them.\n"
        ));
    }
    match kept {
        None => text.push_str("Not recorded, as asked.\n"),
        Some(kept) if kept.rewritten => {
            text.push_str("Recorded. Every object is under the active generation; no older one is needed.\n");
        }
        Some(kept) => {
            text.push_str("Recorded. Older generations may still be needed:\n");
            text.push_str(&table::list(std::slice::from_ref(&kept.detail)));
        }
    }
    Report::done(text, as_json(scan, provenance, kept))
}

fn kinds(group: &Group) -> String {
    let mut all: Vec<_> = group.kinds.iter().collect();
    all.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let mut shown: Vec<String> = all.iter().take(KINDS_SHOWN).map(|(kind, _)| short(kind)).collect();
    if all.len() > KINDS_SHOWN {
        shown.push("…".into());
    }
    shown.join(",")
}

/// A custom resource without its group, as people call it.
fn short(kind: &str) -> String {
    kind.rsplit('/').next().unwrap_or(kind).chars().take(20).collect()
}

fn samples(group: &Group) -> String {
    let more = group.objects.saturating_sub(group.samples.len() as u64);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{rest}", group.samples.join(", "))
}

fn beside(scan: &Scan) -> Vec<String> {
    let group = |what: &str, group: &Group| match group.objects {
        0 => String::new(),
        objects => format!("{what}: {objects} ({})", samples(group)),
    };
    let mut lines = vec![group("Secrets in the clear", &scan.plain_secrets)];
    lines.extend(scan.others.iter().map(|(name, objects)| group(&format!("of provider {name}"), objects)));
    lines.extend(scan.foreign.iter().map(|(name, objects)| group(&format!("of keyring {name}"), objects)));
    lines.push(match scan.unknown.objects {
        0 => String::new(),
        _ => group("cannot be read, so that nobody knows which generation they need", &scan.unknown),
    });
    lines
}

fn from(provenance: &Provenance) -> String {
    let revision = provenance.revision;
    match provenance.origin {
        Origin::Snapshot { .. } => format!("from a snapshot up to revision {revision}"),
        Origin::Etcd { cluster, .. } => format!("from etcd cluster {cluster:x} at revision {revision}"),
    }
}

fn as_json(scan: &Scan, provenance: &Provenance, kept: Option<&Kept>) -> Value {
    let group = |group: &Group| json!({ "objects": group.objects, "kinds": group.kinds, "samples": group.samples });
    let named = |groups: &std::collections::BTreeMap<String, Group>| {
        Value::Object(groups.iter().map(|(name, objects)| (name.clone(), group(objects))).collect())
    };
    let generations: Vec<Value> = by_number(scan)
        .into_iter()
        .map(|(number, key_id, objects)| {
            let mut value = group(objects);
            value["number"] = number.0.into();
            value["key_id"] = key_id.as_str().into();
            value
        })
        .collect();
    json!({
        "source": generation::scan_source(&wire(provenance)),
        "keys": scan.keys,
        "generations": generations,
        "keyrings": named(&scan.foreign),
        "providers": named(&scan.others),
        "plain_secrets": group(&scan.plain_secrets),
        "unknown": group(&scan.unknown),
        "recorded": kept.is_some(),
        "rewritten": kept.map(|kept| kept.rewritten),
        "detail": kept.map(|kept| kept.detail.as_str()).filter(|detail| !detail.is_empty()),
    })
}
