//! `keystead key describe`.

use clap::Args;
use keystead_wire::admin::v1::{Disabled, Generation, GetStatusRequest};

use super::deletion::standing;
use super::{Daemon, generation, switch};
use crate::cli::exit::{Exit, Failure};
use crate::cli::report::Report;
use crate::cli::{table, time};

#[derive(Debug, Args)]
pub struct Arguments {
    /// Its number or its key ID, or `active`
    #[arg(default_value = "active")]
    generation: String,
}

pub async fn report(arguments: &Arguments, mut daemon: Daemon) -> Result<Report, Failure> {
    let wanted = arguments.generation.as_str();
    let generations = daemon.generations().await?;
    let status = daemon.connection.answer(daemon.admin.get_status(GetStatusRequest {})).await?;
    let found = generations.iter().find(|each| match wanted {
        "active" => each.state == "active",
        other => each.key_id == other || each.number.to_string() == other,
    });
    match found {
        Some(generation) => {
            let mut json = generation::json(generation);
            json["disabled"] = switch::json(status.disabled.as_ref());
            Ok(Report::done(text(generation, status.disabled.as_ref()), json))
        }
        None => Err(Failure::new(Exit::Failed, format!("there is no generation {wanted}"))
            .next("`keystead key list` shows which there are")),
    }
}

fn loaded(generation: &Generation, disabled: Option<&Disabled>) -> &'static str {
    match (generation.loaded, generation.state.as_str(), disabled) {
        (true, ..) => "yes",
        (false, "destroyed", _) => "no, never again",
        (false, _, Some(_)) => "no, not before the key is enabled",
        (false, _, None) if generation.fault.is_empty() => "no, at its first Decrypt",
        (false, _, None) => "no",
    }
}

fn text(generation: &Generation, disabled: Option<&Disabled>) -> String {
    let moment = |unix| time::rfc3339(unix).unwrap_or_else(|| "never".into());
    let mut rows = vec![
        ("Generation", generation.number.to_string()),
        ("Key ID", generation.key_id.clone()),
        ("State", generation.state.clone()),
        ("Created", moment(generation.created)),
        ("Activated", moment(generation.activated)),
        ("Loaded", loaded(generation, disabled).to_owned()),
        ("Requests", format!("{} encrypts, {} decrypts since the start", generation.encrypts, generation.decrypts)),
    ];
    if let Some(disabled) = disabled {
        rows.push(("DISABLED", format!("the whole key, {}", switch::line(disabled))));
    }
    if let Some(objects) = generation.objects {
        rows.push(("Objects", format!("{objects} by the newest scan of etcd")));
    }
    if !generation.fault.is_empty() {
        rows.push(("Cannot open", generation.fault.clone()));
    }
    if !generation.forced.is_empty() {
        rows.push(("Forced", generation.forced.clone()));
    }
    if let Some(deletion) = &generation.deletion {
        let by = deletion.by.map(|uid| format!(", by user {uid}")).unwrap_or_default();
        rows.push(("Deletion", format!("{}; scheduled {}{by}", standing(deletion), moment(deletion.scheduled))));
        rows.push(("", deletion.detail.clone()));
        rows.retain(|(name, value)| !name.is_empty() || !value.is_empty());
    }
    if let Some(tombstone) = &generation.tombstone {
        let by = tombstone.by.map(|uid| format!(", asked for by user {uid}")).unwrap_or_default();
        rows.push(("Destroyed", format!("{}{by}", moment(tombstone.destroyed))));
    }
    for root in &generation.roots {
        rows.push(("Root", format!("{} by {}, {}", root.kind, root.construction, root.id)));
    }
    table::fields(&rows)
}
