//! `keystead key list`.

use serde_json::json;

use super::{Daemon, generation};
use crate::cli::exit::Failure;
use crate::cli::report::Report;
use crate::cli::{table, time};

pub async fn report(mut daemon: Daemon) -> Result<Report, Failure> {
    let generations = daemon.generations().await?;
    let rows: Vec<Vec<String>> = generations
        .iter()
        .map(|generation| {
            let loaded = if generation.loaded { "yes" } else { "no" };
            vec![
                generation.number.to_string(),
                generation.state.clone(),
                loaded.to_owned(),
                time::day(generation.created),
                generation.key_id.clone(),
            ]
        })
        .collect();
    let text = match rows.as_slice() {
        [] => "There is no generation yet.\n".to_owned(),
        rows => table::columns(&["GEN", "STATE", "LOADED", "CREATED", "KEY ID"], rows),
    };
    let generations: Vec<_> = generations.iter().map(generation::json).collect();
    Ok(Report::done(text, json!({ "generations": generations })))
}
