//! `keystead recovery drill`: opens what was exported with the private key, on a machine without token, store or daemon.

use std::path::PathBuf;

use clap::Args;
use keystead_core::envelope::EnvelopeKey;
use keystead_core::recovery_key::RecoveryKey;
use keystead_core::{EnvelopeContext, KeyringId, WrapContext};
use serde_json::json;

use super::{Exported, read_private};
use crate::cli::exit::{Exit, Failure};
use crate::cli::report::Report;
use crate::cli::table;

#[derive(Debug, Args)]
pub struct Arguments {
    /// The recovery key (PKCS#8 PEM)
    #[arg(long, value_name = "PRIVATE.pem")]
    private: PathBuf,
    /// What `key list --output json`, `key describe --output json` or `kms encrypt` printed; may be given again
    #[arg(long = "in", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

/// What opening one generation came to.
struct Outcome {
    opened: bool,
    detail: String,
}

pub fn run(arguments: &Arguments) -> Result<Report, Failure> {
    let key = read_private(&arguments.private)?;
    let exported = Exported::read(&arguments.files)?;
    let outcomes: Vec<_> = exported.iter().map(|each| drill(&key, each)).collect();
    let failed = outcomes.iter().filter(|outcome| !outcome.opened).count();
    let rows: Vec<Vec<String>> = exported
        .iter()
        .zip(&outcomes)
        .map(|(each, outcome)| {
            let word = if outcome.opened { "opens" } else { "FAILS" };
            vec![each.annotation.key_id.generation().to_string(), word.to_owned(), outcome.detail.clone()]
        })
        .collect();
    let json: Vec<_> = exported
        .iter()
        .zip(&outcomes)
        .map(|(each, outcome)| {
            json!({
                "number": each.annotation.key_id.generation().0,
                "key_id": each.annotation.key_id.as_str(),
                "opened": outcome.opened,
                "detail": outcome.detail,
            })
        })
        .collect();
    let verdict = match failed {
        0 => "The drill succeeded: this key opens everything in the file.".to_owned(),
        count => format!("The drill FAILED for {count} of {}.", exported.len()),
    };
    Ok(Report {
        text: format!("{}{verdict}\n", table::columns(&["GEN", "RESULT", "DETAIL"], &rows)),
        json: json!({ "root_id": key.public().recovery_root_id().to_string(), "generations": json, "ok": failed == 0 }),
        exit: if failed == 0 { Exit::Done } else { Exit::Failed },
    })
}

fn drill(key: &RecoveryKey, exported: &Exported) -> Outcome {
    match open(key, exported) {
        Ok(detail) => Outcome { opened: true, detail: detail.into() },
        Err(detail) => Outcome { opened: false, detail },
    }
}

fn open(key: &RecoveryKey, exported: &Exported) -> Result<&'static str, String> {
    let annotation = &exported.annotation;
    let key_id = &annotation.key_id;
    let keyring: KeyringId = key_id.keyring().parse().map_err(|_| "its key ID names no keyring".to_owned())?;
    let wrap = annotation
        .wraps
        .iter()
        .find(|wrap| key.is_root_of(wrap))
        .ok_or_else(|| "it has no wrap for this key".to_owned())?;
    let context = WrapContext {
        keyring: keyring.clone(),
        generation: key_id.generation(),
        key_id: key_id.clone(),
        root_kind: wrap.root_kind,
        root_id: wrap.root_id.clone(),
    };
    let kek = key.open(&context, &wrap.bytes).map_err(|error| error.to_string())?;
    if kek.commitment() != annotation.commitment {
        return Err("it opens to another key than the one committed to".into());
    }
    let Some(envelope) = &exported.envelope else { return Ok("wrap opened, commitment matches") };
    let context = EnvelopeContext::new(&keyring, key_id.generation(), key_id);
    EnvelopeKey::new(&kek).decrypt(&context, envelope).map_err(|error| error.to_string())?;
    Ok("wrap opened, commitment matches, ciphertext decrypted")
}
