//! `keystead key schedule-deletion` and `cancel-deletion`: says what would be lost, has it confirmed, has the daemon do it.

use std::io::{self, BufRead, IsTerminal, Write};
use std::time::Duration;

use clap::Args;
use keystead_wire::admin::v1::{
    CancelDeletionRequest, Deletion, RootFate, ScheduleDeletionRequest, ScheduleDeletionResponse,
};
use serde_json::{Value, json};

use super::{Daemon, generation};
use crate::cli::exit::{Exit, Failure};
use crate::cli::report::Report;
use crate::cli::{table, time};
use crate::config::units::{UnitError, parse_duration};

/// The daemon writes its store, and lets a change under way be finished first.
const DONE_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub struct ScheduleArguments {
    /// Its number or key ID; a retired one
    #[arg(long, value_name = "N|KEY_ID")]
    generation: String,
    /// How long it waits, of the time that the daemon serves [default: 7d; at least deletion.min_wait]
    #[arg(long, value_name = "DURATION", value_parser = whole_seconds)]
    wait: Option<Duration>,
    /// The whole key ID: confirms without being asked; required where there is no terminal
    #[arg(long, value_name = "KEY_ID")]
    confirm: Option<String>,
}

#[derive(Debug, Args)]
pub struct CancelArguments {
    /// Its number or key ID
    #[arg(long, value_name = "N|KEY_ID")]
    generation: String,
}

pub async fn schedule(arguments: &ScheduleArguments, mut daemon: Daemon) -> Result<Report, Failure> {
    let request = ScheduleDeletionRequest {
        generation: arguments.generation.clone(),
        wait_seconds: arguments.wait.map_or(0, |wait| wait.as_secs()),
        ..ScheduleDeletionRequest::default()
    };
    let confirm = match &arguments.confirm {
        Some(confirm) => confirm.clone(),
        None => {
            has_terminal()?;
            let preview = daemon.admin.schedule_deletion(ScheduleDeletionRequest { preview: true, ..request.clone() });
            let would = daemon.connection.answer(preview).await?;
            ask(&would)?
        }
    };
    let call = daemon.admin.schedule_deletion(ScheduleDeletionRequest { confirm, ..request });
    let done = daemon.connection.within(DONE_WITHIN, call).await?.into_inner();
    let deletion = done.deletion.clone().unwrap_or_default();
    // Whoever was asked has read the rest already.
    let shown = if arguments.confirm.is_some() { text(&done) } else { table::fields(&summary(&deletion)) };
    let text = format!(
        "Scheduled.\n{shown}\nUntil then it still decrypts, and `keystead key cancel-deletion --generation {}` undoes it.\n",
        deletion.generation
    );
    Ok(Report::done(
        text,
        json!({ "deletion": as_json(&deletion), "objects": done.objects, "decrypts": done.decrypts }),
    ))
}

pub async fn cancel(arguments: &CancelArguments, mut daemon: Daemon) -> Result<Report, Failure> {
    let call = daemon.admin.cancel_deletion(CancelDeletionRequest { generation: arguments.generation.clone() });
    let made = daemon.connection.within(DONE_WITHIN, call).await?.into_inner().generation.unwrap_or_default();
    let rows =
        [("Generation", made.number.to_string()), ("State", made.state.clone()), ("Key ID", made.key_id.clone())];
    Ok(Report::done(format!("Cancelled.\n{}", table::fields(&rows)), json!({ "generation": generation::json(&made) })))
}

/// A deletion as programs read it, wherever one is shown.
pub fn as_json(deletion: &Deletion) -> Value {
    let root = |fate: &RootFate| {
        let root = fate.root.clone().unwrap_or_default();
        json!({ "kind": root.kind, "id": root.id, "opens": fate.opens, "why": fate.why })
    };
    json!({
        "generation": deletion.generation,
        "key_id": deletion.key_id,
        "state": deletion.state,
        "scheduled": time::rfc3339(deletion.scheduled),
        "by": deletion.by,
        "wait_seconds": deletion.wait_seconds,
        "remaining_seconds": deletion.remaining_seconds,
        "detail": (!deletion.detail.is_empty()).then_some(&deletion.detail),
        "decrypts": deletion.decrypts,
        "roots": deletion.roots.iter().map(root).collect::<Vec<_>>(),
        "backups": deletion.backups,
    })
}

/// How it stands, in a few words.
pub fn standing(deletion: &Deletion) -> String {
    match deletion.state.as_str() {
        "suspended" => "SUSPENDED".to_owned(),
        "held" => "its wait is over".to_owned(),
        _ => format!("destroyed in {} of service", time::span(deletion.remaining_seconds)),
    }
}

fn summary(deletion: &Deletion) -> Vec<(&'static str, String)> {
    vec![
        ("Generation", deletion.generation.to_string()),
        ("Key ID", deletion.key_id.clone()),
        ("Destroyed", format!("after {} in which the daemon serves", time::span(deletion.remaining_seconds))),
    ]
}

fn text(would: &ScheduleDeletionResponse) -> String {
    let deletion = would.deletion.clone().unwrap_or_default();
    let mut rows = summary(&deletion);
    rows.push(("Objects", format!("{} by the newest scan of etcd", would.objects)));
    rows.push(("Decrypts", format!("{} since the daemon started, which proves nothing", would.decrypts)));
    let mut text = table::fields(&rows);
    let told = |opens: bool| {
        let fates = deletion.roots.iter().filter(move |fate| fate.opens == opens);
        let line = |fate: &RootFate| {
            let root = fate.root.clone().unwrap_or_default();
            format!("{} {}: {}", root.kind, root.id, fate.why)
        };
        fates.map(line).collect::<Vec<_>>()
    };
    let (lost, stays) = (told(false), told(true));
    if !lost.is_empty() {
        text.push_str(&format!("\nOpens it no more:\n{}", table::list(&lost)));
    }
    if stays.is_empty() {
        text.push_str("\nNo root remains: what is under it in a backup is lost for ever.\n");
    } else {
        text.push_str(&format!("\nStill opens it in a backup, so that nothing is shredded:\n{}", table::list(&stays)));
    }
    let how = if stays.is_empty() { "become unreadable" } else { "then open by those roots alone" };
    match deletion.backups.as_slice() {
        [] => text.push_str("\nNo registered backup needs it (`keystead backup register`); others may.\n"),
        backups => text.push_str(&format!("\nRegistered backups that {how}:\n{}", table::list(backups))),
    }
    text
}

/// Days and seconds alike; a part of a second is none.
fn whole_seconds(text: &str) -> Result<Duration, UnitError> {
    match parse_duration(text)? {
        zero if zero.as_secs() == 0 => Err(UnitError::NoNumber { example: "7d" }),
        duration => Ok(duration),
    }
}

fn has_terminal() -> Result<(), Failure> {
    if io::stdin().is_terminal() && io::stderr().is_terminal() {
        return Ok(());
    }
    let failure = Failure::new(Exit::Usage, "there is no terminal to ask on");
    Err(failure.next("confirm with `--confirm KEY_ID`; `keystead key list` shows it"))
}

/// The key ID as it was typed; the daemon compares it.
fn ask(would: &ScheduleDeletionResponse) -> Result<String, Failure> {
    let mut stderr = io::stderr();
    let mut answer = String::new();
    let asked = write!(stderr, "{}\nType the key ID to confirm: ", text(would)).and_then(|()| stderr.flush());
    asked
        .and_then(|()| io::stdin().lock().read_line(&mut answer))
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot ask: {error}")))?;
    let answer = answer.trim();
    if would.deletion.as_ref().is_some_and(|deletion| deletion.key_id == answer) {
        return Ok(answer.to_owned());
    }
    Err(Failure::new(Exit::Failed, "not scheduled: that is not its key ID"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use keystead_wire::admin::v1::Root;

    fn fate(kind: &str, opens: bool) -> RootFate {
        let root = Root { kind: kind.into(), id: "ab".repeat(16), construction: "aes-gcm".into() };
        RootFate {
            root: Some(root),
            opens,
            why: "because of what it is, in so many words that one line is too short".into(),
        }
    }

    fn would(roots: Vec<RootFate>) -> ScheduleDeletionResponse {
        let deletion = Deletion {
            generation: 1,
            key_id: format!("ks1.edge.1.{}", "cd".repeat(16)),
            wait_seconds: 7 * 86_400,
            remaining_seconds: 7 * 86_400,
            state: "waiting".into(),
            roots,
            ..Deletion::default()
        };
        ScheduleDeletionResponse { deletion: Some(deletion), objects: 0, decrypts: 3 }
    }

    #[test]
    fn what_remains_readable_is_said_before_it_is_confirmed() {
        let shred = text(&would(vec![fate("pkcs11", false)]));
        assert!(shred.contains("No root remains") && shred.contains("7d 0h"), "{shred}");
        let stays = text(&would(vec![fate("pkcs11", false), fate("recovery", true)]));
        let (lost, rest) = stays.split_once("Still opens").unwrap();
        assert!(lost.contains("- pkcs11 ab") && rest.contains("- recovery ab"), "{stays}");
        assert!(!stays.contains("No root remains") && stays.contains("No registered backup needs it"));
        let mut named = would(vec![fate("pkcs11", false)]);
        named.deletion.as_mut().unwrap().backups = vec!["friday".into()];
        assert!(text(&named).ends_with("Registered backups that become unreadable:\n- friday\n"), "{}", text(&named));
        assert!(stays.lines().all(|line| line.chars().count() <= 80), "{stays}");
    }

    #[test]
    fn wait_has_a_unit_and_at_least_a_second() {
        assert_eq!(whole_seconds("7d"), Ok(Duration::from_secs(7 * 86_400)));
        for bad in ["", "7", "0s", "500ms", "7w", "-1d"] {
            assert!(whole_seconds(bad).is_err(), "{bad}");
        }
    }
}
