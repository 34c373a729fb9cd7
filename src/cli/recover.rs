//! `keystead recover`: a new store out of an etcd, its snapshot or a rescue file, and one durable root.

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};
use keystead_core::recovery::{Loss, Origin, Sighting};
use keystead_core::rescue::Rescue;
use keystead_core::{GenerationNumber, KeyCommitment, KeyId, KeyringId};
use serde_json::{Value, json};

use super::connection::runtime;
use super::exit::{Exit, Failure};
use super::recovery::read_private;
use super::report::{Format, Report, progress};
use super::source::EtcdSource;
use super::wiring::{self, RecoverOrder, RecoverOutcome};
use super::{settings, table};
use crate::cluster::Survey;
use crate::service::recover::{OpenedSummary, Summary};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("source").required(true).multiple(true))]
pub struct Arguments {
    #[command(flatten)]
    cluster: EtcdSource,
    /// What `keystead roots rescue` wrote
    #[arg(long, value_name = "FILE", group = "source")]
    rescue: Option<PathBuf>,
    /// The recovery key (PKCS#8 PEM); without it the configured token has to open the wraps
    #[arg(long, value_name = "PRIVATE.pem")]
    private: Option<PathBuf>,
    /// Only at objects of this provider name of EncryptionConfiguration [default: any]
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
    /// Take the key of this commitment where more than one claims to be a generation's; may be given again
    #[arg(long, value_name = "COMMITMENT", value_parser = commitment)]
    trust: Vec<KeyCommitment>,
    /// Pass over this generation; may be given again
    #[arg(long, value_name = "KEY_ID")]
    leave_out: Vec<KeyId>,
    #[command(flatten)]
    then: Then,
    /// Move a store that is there aside and write a new one
    #[arg(long)]
    replace_store: bool,
}

/// What to do with what opens: recovery of the new store must be said in words, as at `init`.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Then {
    /// Only list what opens; with --private this needs no token
    #[arg(long)]
    dry_run: bool,
    /// Write the store; P-256 public key (PEM file) that its new generations are wrapped to as well
    #[arg(long, value_name = "PUBKEY")]
    recovery: Option<PathBuf>,
    /// Write the store; no recovery key from now on
    #[arg(long)]
    no_recovery: bool,
}

fn commitment(text: &str) -> Result<KeyCommitment, &'static str> {
    serde_json::from_value(Value::String(text.to_owned())).map_err(|_| "a commitment has 64 lower-case hex digits")
}

pub fn run(arguments: &Arguments, config: Option<&Path>, format: Format) -> Result<Report, Failure> {
    let (source, settings) = settings(config)?;
    let keyring = &settings.keyring;
    let private = arguments.private.as_deref().map(read_private).transpose()?;
    let mut surveyor = Survey::of(keyring, arguments.provider.as_deref());
    if arguments.cluster.is_some() {
        runtime()?.block_on(arguments.cluster.read(&mut surveyor, format))?;
    }
    let survey = surveyor.finish();
    let rescue = arguments.rescue.as_deref().map(|path| read_rescue(path, keyring)).transpose()?;
    let mut sightings = merged(&survey, rescue.as_ref());
    sightings.retain(|sighting| !arguments.leave_out.contains(&sighting.key_id));
    if sightings.is_empty() {
        return Err(nothing_seen(&survey, keyring));
    }
    let order = RecoverOrder {
        sightings,
        private,
        trusted: arguments.trust.clone(),
        dry_run: arguments.then.dry_run,
        recovery: arguments.then.recovery.clone(),
        epoch_seen: rescue.as_ref().map_or(0, |rescue| rescue.epoch),
        number_seen: rescue.as_ref().map_or(GenerationNumber(0), |rescue| rescue.last_number),
        replace_store: arguments.replace_store,
    };
    progress(format, "opening wraps…");
    let outcome = wiring::recover(order, &settings, &source)?;
    Ok(report(&outcome, &survey))
}

fn read_rescue(path: &Path, keyring: &KeyringId) -> Result<Rescue, Failure> {
    let shown = path.display();
    let bytes =
        std::fs::read(path).map_err(|error| Failure::new(Exit::Usage, format!("cannot read {shown}: {error}")))?;
    let rescue = Rescue::parse(&bytes).map_err(|error| Failure::new(Exit::Usage, format!("{shown}: {error}")))?;
    if rescue.keyring != *keyring {
        let message = format!("{shown} is of keyring {}, the configuration says {keyring}", rescue.keyring);
        return Err(Failure::new(Exit::Usage, message).next("set `keyring` in the configuration"));
    }
    Ok(rescue)
}

/// One sighting a key ID: the objects of the snapshot prove what comes out of the rescue file.
fn merged(survey: &Survey, rescue: Option<&Rescue>) -> Vec<Sighting> {
    let mut all = survey.sightings.clone();
    for extra in rescue.map(Rescue::sightings).unwrap_or_default() {
        match all.iter_mut().find(|sighting| sighting.key_id == extra.key_id) {
            Some(sighting) => sighting.annotations.extend(extra.annotations),
            None => all.push(extra),
        }
    }
    all
}

fn nothing_seen(survey: &Survey, keyring: &KeyringId) -> Failure {
    let mut message = format!("there is no object of keyring {keyring}");
    if !survey.foreign.is_empty() {
        let names: Vec<&str> = survey.foreign.keys().map(String::as_str).collect();
        message.push_str(&format!(", but of {}. Is it another cluster's?", names.join(", ")));
        return Failure::new(Exit::Failed, message)
            .next("set `keyring` in the configuration if it is the right cluster");
    }
    message.push_str(&format!(
        "; {} objects are in the clear or of other providers, {} of other KMS plugins",
        survey.other, survey.other_plugins
    ));
    Failure::new(Exit::Failed, message).next("is it the right etcd or snapshot, and --provider the right name?")
}

fn report(outcome: &RecoverOutcome, survey: &Survey) -> Report {
    let Summary { opened, lost } = &outcome.findings;
    let mut text = String::new();
    let rows: Vec<Vec<String>> = opened
        .iter()
        .map(|each| {
            vec![
                each.sighting.key_id.generation().to_string(),
                objects(each),
                each.via.to_string(),
                origin(each).to_owned(),
                each.sighting.key_id.to_string(),
            ]
        })
        .collect();
    text.push_str(&table::columns(&["GEN", "OPENS", "ROOT", "ORIGIN", "KEY ID"], &rows));
    if opened.iter().any(|each| each.origin == Origin::Unproven) {
        text.push_str(
            "\nOrigin unproven: anybody can wrap a key to a public key. That it opens objects\n\
             proves that they were written under it, not who wrote them. Pass over one that\n\
             nobody here has made: --leave-out KEY_ID.\n",
        );
    }
    if !lost.is_empty() {
        let lines: Vec<String> = lost
            .iter()
            .map(|(sighting, loss)| {
                let more = if sighting.incomplete { " (there were more annotations than were looked at)" } else { "" };
                format!("{} ({} objects): {loss}{more}", sighting.key_id, sighting.objects)
            })
            .collect();
        text.push_str(&format!("\nNOT recovered:\n{}", table::list(&lines)));
    }
    let beside = [
        (survey.foreign.values().sum(), "objects of other keyrings"),
        (survey.other_plugins, "objects of other KMS plugins or provider names"),
        (survey.other, "keys in the clear or of other providers"),
        (survey.malformed, "entries that cannot be read"),
        (survey.passed_over, "objects of key IDs beyond what is kept"),
    ];
    let beside: Vec<String> =
        beside.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{what} ({count})")).collect();
    if !beside.is_empty() {
        text.push_str(&format!("\nAlso seen: {}.\n", beside.join(", ")));
    }
    match &outcome.store {
        None if outcome.dry_run => text.push_str("\nNothing was written: this was a dry run.\n"),
        None => text.push_str("\nNothing could be opened with the roots at hand; no store was written.\n"),
        Some(store) => {
            let mut rows = vec![
                ("Keyring", store.keyring.clone()),
                ("Active", format!("generation {}, {}", store.generation, store.key_id)),
                ("Token", format!("{} (serial {})", store.token_label, store.token_serial)),
                ("Roots", store.durable_roots.join(", ")),
            ];
            if let Some(path) = &store.set_aside {
                rows.push(("Set aside", path.display().to_string()));
            }
            if store.disabled {
                rows.push(("DISABLED", "as it was before; `keystead key enable` brings it back".into()));
            }
            text.push_str(&format!(
                "\nThe store is rebuilt.\n{}Next: `keystead serve`, then rewrite every Secret so that it moves to the new\ngeneration.\n",
                table::fields(&rows)
            ));
        }
    }
    Report { text, json: as_json(outcome, survey), exit: if lost.is_empty() { Exit::Done } else { Exit::Failed } }
}

fn objects(opened: &OpenedSummary) -> String {
    match opened.sighting.objects {
        0 => "no objects".into(),
        objects => format!("{} of {objects}", opened.opens),
    }
}

fn origin(opened: &OpenedSummary) -> &'static str {
    match opened.origin {
        Origin::Proven => "proven",
        Origin::Unproven => "unproven",
    }
}

fn as_json(outcome: &RecoverOutcome, survey: &Survey) -> Value {
    let opened: Vec<_> = outcome
        .findings
        .opened
        .iter()
        .map(|each| {
            json!({
                "number": each.sighting.key_id.generation().0,
                "key_id": each.sighting.key_id.as_str(),
                "commitment": each.commitment,
                "root": each.via.to_string(),
                "origin": origin(each),
                "objects": each.sighting.objects,
                "objects_opened": each.opens,
            })
        })
        .collect();
    let lost: Vec<_> = outcome
        .findings
        .lost
        .iter()
        .map(|(sighting, loss)| {
            json!({
                "number": sighting.key_id.generation().0,
                "key_id": sighting.key_id.as_str(),
                "objects": sighting.objects,
                "reason": reason(loss),
                "detail": loss.to_string(),
                "incomplete": sighting.incomplete,
            })
        })
        .collect();
    let store = outcome.store.as_ref().map(|store| {
        json!({
            "keyring": store.keyring, "active_key_id": store.key_id, "active_generation": store.generation,
            "token": { "label": store.token_label, "serial": store.token_serial },
            "durable_roots": store.durable_roots, "set_aside": store.set_aside, "disabled": store.disabled,
        })
    });
    json!({
        "recovered": opened,
        "not_recovered": lost,
        "other": {
            "keyrings": survey.foreign, "other_plugins": survey.other_plugins, "other_providers": survey.other,
            "malformed": survey.malformed, "passed_over": survey.passed_over,
        },
        "store": store,
    })
}

/// One word for programs.
fn reason(loss: &Loss) -> &'static str {
    match loss {
        Loss::NoRoot => "no-root",
        Loss::WouldNotOpen(_) => "would-not-open",
        Loss::OpensNothing => "opens-nothing",
        Loss::Contested(_) => "contested",
        Loss::NumberTaken(_) => "number-taken",
        Loss::NumberContested(_) => "number-contested",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commitment_is_64_lower_case_hex_digits() {
        assert!(commitment(&"0a".repeat(32)).is_ok());
        for bad in ["", "0a", &"0A".repeat(32), &"0a".repeat(33)] {
            assert!(commitment(bad).is_err(), "{bad}");
        }
    }
}
