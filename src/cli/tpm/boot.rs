//! `keystead tpm predict`, `approve` and `preview`: which boots a measured CMK opens after.

use std::collections::HashSet;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use zeroize::Zeroizing;

use crate::cli::exit::{Exit, Failure};
use crate::cli::report::Report;
use crate::cli::table;
use crate::config::Settings;
use crate::custody::settings::{BootPolicy, TpmSettings};
use crate::custody::tpm;
use crate::custody::tpm::approval::{Approval, MAX_LEN, Measured};
use crate::custody::tpm::event_log::{self, EventLog};
use crate::custody::tpm::pcr::{PcrSet, PcrValues};

#[derive(Debug, Args)]
pub struct PredictArguments {
    /// Where the draft goes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Compute the values from this event log instead of reading the TPM's PCRs
    #[arg(long, value_name = "FILE")]
    event_log: Option<PathBuf>,
    /// In the event log, put digest NEW in the place of OLD (SHA-256, hex), as an update will; may be given again
    #[arg(long, value_name = "OLD=NEW", requires = "event_log", value_parser = replacement)]
    replace: Vec<Replacement>,
}

#[derive(Debug, Args)]
pub struct ApproveArguments {
    /// What `keystead tpm predict` wrote
    #[arg(long, value_name = "FILE")]
    draft: PathBuf,
    /// The signer's private key (P-256, PKCS#8 PEM); keep it off the box
    #[arg(long, value_name = "PRIVATE.pem")]
    signer_key: PathBuf,
    /// Where the approval goes; bring it to the folder custody.approvals
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, Args)]
pub struct PreviewArguments {
    /// Event log of this boot [default: the kernel's, if it can be read]
    #[arg(long, value_name = "FILE")]
    event_log: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy)]
struct Replacement {
    old: [u8; 32],
    new: [u8; 32],
}

fn replacement(text: &str) -> Result<Replacement, &'static str> {
    let (old, new) = text.split_once('=').ok_or("must be OLD=NEW")?;
    match (parse_digest(old), parse_digest(new)) {
        (Some(old), Some(new)) => Ok(Replacement { old, new }),
        _ => Err("a digest has 64 lower-case hex digits"),
    }
}

fn parse_digest(text: &str) -> Option<[u8; 32]> {
    let id: keystead_core::RootId = text.parse().ok()?;
    id.as_bytes().try_into().ok()
}

pub fn predict(arguments: &PredictArguments, tpm: &TpmSettings, settings: &Settings) -> Result<Report, Failure> {
    let boot = demanded(tpm)?;
    let pcrs = set(boot)?;
    let mut replaced = 0;
    let (values, events) = match &arguments.event_log {
        Some(path) => {
            let mut log = read_log(path)?;
            for event in &mut log.events {
                if let Some(replacement) = arguments.replace.iter().find(|each| each.old == event.digest) {
                    event.digest = replacement.new;
                    replaced += 1;
                }
            }
            if replaced < arguments.replace.len() {
                return Err(Failure::new(Exit::Failed, "the event log does not hold every digest to be replaced")
                    .next("look at it with `tpm2_eventlog`"));
            }
            (log.replay(pcrs.numbers()), log.events)
        }
        None => {
            let values = tpm::read_pcrs(&tpm.tcti, &pcrs).map_err(|error| failed(&error))?;
            // Without a log the preview can name PCRs only.
            let events = read_log(Path::new(event_log::PATH)).map(|log| log.events).unwrap_or_default();
            (values, events)
        }
    };
    let approval = Approval {
        keyring: settings.keyring.clone(),
        series: boot.series,
        events: events.into_iter().filter(|event| pcrs.numbers().contains(&event.pcr)).collect(),
        pcrs,
        values,
        signed: None,
    };
    write_new(&arguments.out, &approval.to_text())?;
    let text = format!(
        "{}Next, off the box: `keystead tpm approve --draft {} --signer-key PRIVATE.pem --out APPROVAL`\n",
        shown(&approval),
        arguments.out.display()
    );
    Ok(Report::done(text, as_json(&approval)))
}

/// Needs neither TPM nor configuration.
pub fn approve(arguments: &ApproveArguments) -> Result<Report, Failure> {
    let mut approval = read_approval(&arguments.draft)?;
    let key = Zeroizing::new(read(&arguments.signer_key)?);
    approval.sign(&key).map_err(|error| failed(&error))?;
    approval.verify().map_err(|error| failed(&error))?;
    write_new(&arguments.out, &approval.to_text())?;
    let text = format!(
        "{}Approved. It holds until the series is raised and the CMKs of this one are retired: older firmware, too, \
         once approved, stays approved.\nNext: bring {} to the folder custody.approvals\n",
        shown(&approval),
        arguments.out.display()
    );
    Ok(Report::done(text, as_json(&approval)))
}

/// Exit code `Failed` when no approval fits this boot.
pub fn preview(arguments: &PreviewArguments, tpm: &TpmSettings, settings: &Settings) -> Result<Report, Failure> {
    let log = match &arguments.event_log {
        Some(path) => Some(read_log(path)?),
        None => read_log(Path::new(event_log::PATH)).ok(),
    };
    let folder = &tpm.approvals;
    let found = tpm::approvals(folder)
        .map_err(|error| Failure::new(Exit::Failed, format!("custody.approvals: {}: {error}", folder.display())))?;
    let mut fits = false;
    let (mut text, mut list) = (String::new(), Vec::new());
    for (path, approval) in found.iter().filter(|(_, approval)| approval.keyring == settings.keyring) {
        let now = tpm::read_pcrs(&tpm.tcti, &approval.pcrs).map_err(|error| failed(&error))?;
        let differing = tpm::differing(approval, &now);
        let sound = approval.signed.is_some() && approval.verify().is_ok();
        fits |= differing.is_empty() && sound;
        let changes = changes(approval, &differing, log.as_ref(), &now);
        let verdict = match (differing.is_empty(), sound) {
            (_, false) => "is not signed, or not rightly".to_owned(),
            (true, true) => "fits this boot".to_owned(),
            (false, true) => format!("does not fit: PCR {} differ", numbers(&differing)),
        };
        text.push_str(&format!("{} (series {}) {verdict}\n", path.display(), approval.series));
        if !changes.is_empty() {
            text.push_str(&table::list(&changes));
        }
        list.push(json!({
            "file": path.display().to_string(),
            "series": approval.series,
            "signed": sound,
            "fits": differing.is_empty(),
            "differing": differing,
            "changes": changes,
        }));
    }
    if list.is_empty() {
        text.push_str(&format!("{} holds no approval for keyring {}.\n", folder.display(), settings.keyring));
    }
    if !fits {
        text.push_str(
            "CMKs of measured boot do not open after this boot. If it is a good one: `keystead tpm predict`, then\n\
             `keystead tpm approve` off the box, and bring the approval here; the daemon finds it by itself.\n",
        );
    }
    let exit = if fits { Exit::Done } else { Exit::Failed };
    Ok(Report { text, json: json!({ "fits": fits, "approvals": list, "event_log": log.is_some() }), exit })
}

/// Which events of a PCR that differs were not there when it was approved, and which are gone.
fn changes(approval: &Approval, differing: &[u8], log: Option<&EventLog>, now: &PcrValues) -> Vec<String> {
    let Some(log) = log else { return Vec::new() };
    let mut lines = Vec::new();
    for &pcr in differing {
        if log.replay(&[pcr]).first().map(|(_, value)| value) != now.iter().find(|(n, _)| *n == pcr).map(|(_, v)| v) {
            lines.push(format!("PCR {pcr}: the event log does not give its value: something measured past the log"));
        }
        let (before, after) = (of(pcr, &approval.events), of(pcr, &log.events));
        lines.extend(missing(&before, &after).map(|event| format!("PCR {pcr}: gone: {}", event.what)));
        lines.extend(missing(&after, &before).map(|event| format!("PCR {pcr}: new: {}", event.what)));
    }
    lines
}

fn of(pcr: u8, events: &[Measured]) -> Vec<&Measured> {
    events.iter().filter(|event| event.pcr == pcr).collect()
}

/// Those of `events` whose digest is not among `others`.
fn missing<'a>(events: &'a [&Measured], others: &[&Measured]) -> impl Iterator<Item = &'a Measured> {
    let others: HashSet<[u8; 32]> = others.iter().map(|event| event.digest).collect();
    events.iter().copied().filter(move |event| !others.contains(&event.digest))
}

fn demanded(tpm: &TpmSettings) -> Result<&BootPolicy, Failure> {
    tpm.boot.as_ref().ok_or_else(|| {
        Failure::new(Exit::Usage, "custody.pcrs is not set: nothing is bound to a boot")
            .next("set custody.pcrs and custody.boot_signer")
    })
}

fn set(boot: &BootPolicy) -> Result<PcrSet, Failure> {
    PcrSet::new(&boot.pcrs).ok_or_else(|| Failure::new(Exit::Usage, "custody.pcrs is no list of PCRs"))
}

fn numbers(pcrs: &[u8]) -> String {
    pcrs.iter().map(u8::to_string).collect::<Vec<_>>().join(", ")
}

fn shown(approval: &Approval) -> String {
    let mut rows = vec![
        ("Keyring", approval.keyring.to_string()),
        ("Series", approval.series.to_string()),
        ("PCRs", approval.pcrs.to_string()),
    ];
    for (pcr, value) in &approval.values {
        rows.push(("", format!("{pcr}: {}", value.iter().map(|byte| format!("{byte:02x}")).collect::<String>())));
    }
    table::fields(&rows)
}

fn as_json(approval: &Approval) -> serde_json::Value {
    let hex = |value: &[u8; 32]| value.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    json!({
        "keyring": approval.keyring.to_string(),
        "series": approval.series,
        "pcrs": approval.values.iter().map(|(pcr, value)| json!({ "pcr": pcr, "value": hex(value) })).collect::<Vec<_>>(),
        "events": approval.events.len(),
        "signed": approval.signed.is_some(),
    })
}

fn read_approval(path: &Path) -> Result<Approval, Failure> {
    Approval::parse(&read(path)?).map_err(|error| Failure::new(Exit::Usage, format!("{}: {error}", path.display())))
}

fn read_log(path: &Path) -> Result<EventLog, Failure> {
    let bytes = read_bytes(path, event_log::MAX_LEN)?;
    EventLog::parse(&bytes).map_err(|error| Failure::new(Exit::Usage, format!("{}: {error}", path.display())))
}

fn read(path: &Path) -> Result<String, Failure> {
    String::from_utf8(read_bytes(path, MAX_LEN)?)
        .map_err(|_| Failure::new(Exit::Usage, format!("{} is no text", path.display())))
}

fn read_bytes(path: &Path, longest: usize) -> Result<Vec<u8>, Failure> {
    use std::io::Read;
    let unreadable =
        |error: std::io::Error| Failure::new(Exit::Usage, format!("cannot read {}: {error}", path.display()));
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .map_err(unreadable)?
        .take(longest as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() > longest {
        return Err(Failure::new(Exit::Usage, format!("{} is too long", path.display())));
    }
    Ok(bytes)
}

/// Never over a file that is there: an approval once brought may be the one in force.
fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)
        .map_err(|error| Failure::new(Exit::Usage, format!("cannot write {}: {error}", path.display())))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|error| failed(&error))
}

fn failed(error: &dyn std::error::Error) -> Failure {
    Failure::from_error(Exit::Failed, error)
}
