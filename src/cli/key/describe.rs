//! `keystead key describe`.

use clap::Args;
use keystead_wire::admin::v1::Generation;

use super::{Daemon, generation};
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
    let found = generations.iter().find(|each| match wanted {
        "active" => each.state == "active",
        other => each.key_id == other || each.number.to_string() == other,
    });
    match found {
        Some(generation) => Ok(Report::done(text(generation), generation::json(generation))),
        None => Err(Failure::new(Exit::Failed, format!("there is no generation {wanted}"))
            .next("`keystead key list` shows which there are")),
    }
}

fn text(generation: &Generation) -> String {
    let moment = |unix| time::rfc3339(unix).unwrap_or_else(|| "never".into());
    let mut rows = vec![
        ("Generation", generation.number.to_string()),
        ("Key ID", generation.key_id.clone()),
        ("State", generation.state.clone()),
        ("Created", moment(generation.created)),
        ("Activated", moment(generation.activated)),
        (
            "Loaded",
            if generation.loaded {
                "yes"
            } else if generation.fault.is_empty() {
                "no, at its first Decrypt"
            } else {
                "no"
            }
            .to_owned(),
        ),
        ("Requests", format!("{} encrypts, {} decrypts since the start", generation.encrypts, generation.decrypts)),
    ];
    if let Some(objects) = generation.objects {
        rows.push(("Objects", format!("{objects} by the newest scan of etcd")));
    }
    if !generation.fault.is_empty() {
        rows.push(("Cannot open", generation.fault.clone()));
    }
    if !generation.forced.is_empty() {
        rows.push(("Forced", generation.forced.clone()));
    }
    for root in &generation.roots {
        rows.push(("Root", format!("{} by {}, {}", root.kind, root.construction, root.id)));
    }
    table::fields(&rows)
}
