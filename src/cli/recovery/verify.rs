//! `keystead recovery verify`: which generations name this key among their roots.

use std::path::{Path, PathBuf};

use clap::Args;
use keystead_core::annotation::Annotation;
use serde_json::json;

use super::{Exported, read_private};
use crate::cli::connection::runtime;
use crate::cli::exit::{Exit, Failure};
use crate::cli::key::Daemon;
use crate::cli::report::Report;
use crate::cli::{settings, table};

#[derive(Debug, Args)]
pub struct Arguments {
    /// The recovery key (PKCS#8 PEM)
    #[arg(long, value_name = "PRIVATE.pem")]
    private: PathBuf,
    /// What `key list --output json`, `key describe --output json` or `kms encrypt` printed [default: ask the daemon]
    #[arg(long = "in", value_name = "FILE")]
    files: Vec<PathBuf>,
}

pub fn run(arguments: &Arguments, config: Option<&Path>) -> Result<Report, Failure> {
    let key = read_private(&arguments.private)?;
    let annotations = if arguments.files.is_empty() {
        ask_daemon(config)?
    } else {
        Exported::read(&arguments.files)?.into_iter().map(|each| each.annotation).collect()
    };
    let mut rows = Vec::new();
    let mut found = Vec::new();
    let mut missing = 0;
    for annotation in &annotations {
        let named = annotation.wraps.iter().any(|wrap| key.is_root_of(wrap));
        missing += usize::from(!named);
        let word = if named { "yes" } else { "NO" };
        rows.push(vec![annotation.key_id.generation().to_string(), word.to_owned(), annotation.key_id.to_string()]);
        found.push(json!({
            "number": annotation.key_id.generation().0, "key_id": annotation.key_id.as_str(), "wrapped_to_this_key": named,
        }));
    }
    let root = key.public().recovery_root_id();
    let verdict = match missing {
        0 => "Every generation has a wrap for this key. `keystead recovery drill` proves that it opens.".to_owned(),
        count => format!("{count} of {} generations have NO wrap for this key.", annotations.len()),
    };
    let table = table::columns(&["GEN", "WRAPPED TO THIS KEY", "KEY ID"], &rows);
    Ok(Report {
        text: format!("Root ID {root}\n{table}{verdict}\n"),
        json: json!({ "root_id": root.to_string(), "generations": found, "ok": missing == 0 }),
        exit: if missing == 0 { Exit::Done } else { Exit::Failed },
    })
}

fn ask_daemon(config: Option<&Path>) -> Result<Vec<Annotation>, Failure> {
    let (_, settings) = settings(config)?;
    let generations =
        runtime()?.block_on(async { Daemon::open(&settings.admin.socket.path).await?.generations().await })?;
    generations
        .iter()
        .filter(|generation| generation.state != "destroyed")
        .map(|generation| {
            Annotation::decode(&generation.annotation).map_err(|error| Failure::from_error(Exit::Failed, &error))
        })
        .collect()
}
