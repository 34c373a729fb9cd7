//! `keystead init`: makes the key.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::exit::Failure;
use super::report::Report;
use super::wiring::{self, InitOrder, InitOutcome};
use super::{settings, table};
use crate::config::roles::{Granted, grant_all};

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    recovery: Recovery,
    /// Succeed without doing anything if the key is there already
    #[arg(long)]
    if_needed: bool,
    /// Start anew although the token knows of a store that is gone; destroys no key on the token
    #[arg(long)]
    abandon_lost_store: bool,
}

/// One of the two must be said: a key that hangs on one token is a choice, not a default.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Recovery {
    /// P-256 public key (PEM file) whose private half is kept offline; opens every Secret if the token is lost
    #[arg(long, value_name = "PUBKEY")]
    recovery: Option<PathBuf>,
    /// No recovery key: if the token is lost, every Secret is lost
    #[arg(long)]
    no_recovery: bool,
}

pub fn run(arguments: &Arguments, config: Option<&Path>) -> Result<Report, Failure> {
    let (source, settings) = settings(config)?;
    let order = InitOrder {
        recovery: arguments.recovery.recovery.clone(),
        if_needed: arguments.if_needed,
        abandon_lost_store: arguments.abandon_lost_store,
    };
    let outcome = wiring::init(&order, &settings, &source)?;
    // Who makes the key looks after it, until he gives the roles to others.
    let granted = outcome.created.then(|| grant_all(&source, rustix::process::getuid().as_raw()));
    Ok(report(&outcome, granted.as_ref()))
}

fn report(outcome: &InitOutcome, granted: Option<&Granted>) -> Report {
    let title = if outcome.created { "The key is made." } else { "The key was there already." };
    let roles = match granted {
        Some(Granted::Now { uid }) => format!("all granted to user {uid}, in [roles] of the configuration"),
        Some(Granted::Before) | None => "as in [roles] of the configuration".into(),
        Some(Granted::Nobody { why }) => {
            format!("not given out: {why}. Whoever may use the admin socket may do everything")
        }
    };
    let rows = table::fields(&[
        ("Keyring", format!("{} on node {}", outcome.keyring, outcome.node)),
        ("Key ID", outcome.key_id.clone()),
        ("Generation", outcome.generation.to_string()),
        ("Token", format!("{} (serial {}), {}", outcome.token_label, outcome.token_serial, outcome.mechanism)),
        ("Roots", outcome.durable_roots.join(", ")),
        ("Admin roles", roles),
    ]);
    let text = format!("{title}\n{rows}Next: `keystead serve`\n");
    let json = json!({
        "created": outcome.created,
        "keyring": outcome.keyring,
        "node": outcome.node,
        "key_id": outcome.key_id,
        "generation": outcome.generation,
        "token": { "label": outcome.token_label, "serial": outcome.token_serial },
        "mechanism": outcome.mechanism,
        "durable_roots": outcome.durable_roots,
        "roles_granted_to": match granted {
            Some(Granted::Now { uid }) => Some(uid),
            _ => None,
        },
    });
    Report::done(text, json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_names_the_key_and_the_next_step() {
        let outcome = InitOutcome {
            created: true,
            keyring: "default".into(),
            node: "edge-1".into(),
            key_id: "ks1.default.1.00".into(),
            generation: 1,
            token_label: "keystead".into(),
            token_serial: "4d3a".into(),
            mechanism: "aes-gcm (IV by caller)".into(),
            durable_roots: vec!["pkcs11".into(), "recovery".into()],
        };
        let report = report(&outcome, Some(&Granted::Now { uid: 1234 }));
        assert!(report.text.contains("user 1234"), "{}", report.text);
        assert!(report.text.contains("ks1.default.1.00") && report.text.contains("keystead serve"), "{}", report.text);
        assert_eq!(report.json["durable_roots"][1], "recovery");
    }
}
