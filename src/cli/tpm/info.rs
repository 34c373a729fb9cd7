//! `keystead tpm info`.

use serde_json::{Value, json};

use crate::cli::exit::{Exit, Failure};
use crate::cli::report::{Format, Report, progress};
use crate::cli::table;
use crate::custody::settings::TpmSettings;
use crate::custody::tpm::{self, TpmInfo, Trial};

pub fn run(settings: &TpmSettings, format: Format) -> Result<Report, Failure> {
    progress(format, "Trying ECDH and RSA; a chip may take a minute to make an RSA key …");
    let info = tpm::info(&settings.tcti).map_err(|error| Failure::from_error(Exit::Failed, &error))?;
    Ok(report(&info))
}

/// Exit code `Failed` when neither way of wrapping works: then the TPM cannot hold a CMK.
fn report(info: &TpmInfo) -> Report {
    let lockout = &info.lockout;
    let state = if lockout.locked { "LOCKED" } else { "not locked" };
    let warnings = info.warnings();
    let mut text = table::fields(&[
        ("TPM", format!("{} {}, firmware {}", info.manufacturer, info.model, info.firmware)),
        ("Reached by", info.tcti.clone()),
        ("SRK", info.srk_name.clone().unwrap_or_else(|| "none at its usual place".into())),
        ("Lockout", format!("{state}, {} of {} failed tries", lockout.failed, lockout.allowed)),
        ("Owner", if info.owner_auth_set { "has an auth value" } else { "has no auth value" }.into()),
        ("ECDH P-256", shown(&info.ecdh)),
        ("RSA-OAEP", shown(&info.rsa)),
        ("Algorithms", info.algorithms.join(" ")),
    ]);
    if !warnings.is_empty() {
        text.push_str(&format!("\nTo know:\n{}", table::list(&warnings)));
    }
    let works = [&info.ecdh, &info.rsa].iter().any(|trial| matches!(trial, Trial::Works { .. }));
    let json = json!({
        "tcti": info.tcti,
        "manufacturer": info.manufacturer,
        "model": info.model,
        "firmware": info.firmware,
        "algorithms": info.algorithms,
        "srk_name": info.srk_name,
        "owner_auth_set": info.owner_auth_set,
        "lockout": {
            "locked": lockout.locked,
            "failed": lockout.failed,
            "allowed": lockout.allowed,
            "forgotten_after_seconds": lockout.forgotten_after.as_secs(),
        },
        "ecdh_p256": trial_json(&info.ecdh),
        "rsa_oaep": trial_json(&info.rsa),
        "warnings": warnings,
    });
    Report { text, json, exit: if works { Exit::Done } else { Exit::Failed } }
}

fn shown(trial: &Trial) -> String {
    match trial {
        Trial::Works { unwrap } => format!("works, an unwrap takes {:.1} ms", unwrap.as_secs_f64() * 1000.0),
        Trial::Fails { why } => format!("does not work: {why}"),
    }
}

fn trial_json(trial: &Trial) -> Value {
    match trial {
        Trial::Works { unwrap } => json!({ "works": true, "unwrap_ms": unwrap.as_secs_f64() * 1000.0 }),
        Trial::Fails { why } => json!({ "works": false, "why": why }),
    }
}
