//! `keystead key list`.

use keystead_wire::admin::v1::GetStatusRequest;
use serde_json::json;

use super::deletion::standing;
use super::{Daemon, generation, switch};
use crate::cli::exit::Failure;
use crate::cli::report::Report;
use crate::cli::{table, time};

pub async fn report(mut daemon: Daemon) -> Result<Report, Failure> {
    let generations = daemon.generations().await?;
    let status = daemon.connection.answer(daemon.admin.get_status(GetStatusRequest {})).await?;
    let rows: Vec<Vec<String>> = generations
        .iter()
        .map(|generation| {
            let loaded = if generation.loaded { "yes" } else { "no" };
            vec![
                generation.number.to_string(),
                // Short, so that whole key IDs fit beside it: one is typed to confirm.
                generation.state.replace("pending-deletion", "pending"),
                loaded.to_owned(),
                time::day(generation.created),
                generation.key_id.clone(),
            ]
        })
        .collect();
    let mut text = match rows.as_slice() {
        [] => "There is no generation yet.\n".to_owned(),
        rows => table::columns(&["GEN", "STATE", "LOADED", "CREATED", "KEY ID"], rows),
    };
    let waiting = generations.iter().filter_map(|each| each.deletion.as_ref());
    let waiting: Vec<String> =
        waiting.map(|each| format!("generation {}: {}", each.generation, standing(each))).collect();
    if !waiting.is_empty() {
        text.push_str(&format!("\nPending deletion:\n{}", table::list(&waiting)));
    }
    if let Some(disabled) = &status.disabled {
        let line = switch::line(disabled);
        text.insert_str(0, &format!("{}\n", table::fields(&[("DISABLED", line)])));
    }
    if let Some(scan) = &status.scan {
        let counts: Vec<String> = generations
            .iter()
            .filter(|each| each.state != "destroyed")
            .filter_map(|each| Some(format!("generation {}: {} objects", each.number, each.objects?)))
            .collect();
        let moment = time::rfc3339(scan.recorded).unwrap_or_default();
        text.push_str(&format!("\nBy the scan of {moment}:\n{}", table::list(&counts)));
    }
    let generations: Vec<_> = generations.iter().map(generation::json).collect();
    let scan = status.scan.as_ref().map(generation::scan);
    let disabled = switch::json(status.disabled.as_ref());
    Ok(Report::done(text, json!({ "generations": generations, "scan": scan, "disabled": disabled })))
}
