//! `keystead token list`: what the PKCS#11 module shows, without logging in to anything.

use std::path::Path;

use clap::Subcommand;
use serde_json::{Value, json};

use super::exit::{Exit, Failure};
use super::report::Report;
use super::{settings, table, wiring};
use crate::config::Settings;
use crate::custody::contract::{PinState, TokenSummary};
use crate::custody::settings::{CustodySettings, TokenSelector};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the tokens of the configured module; needs no PIN
    List,
}

pub fn run(command: &Command, config: Option<&Path>) -> Result<Report, Failure> {
    let Command::List = command;
    let (source, settings) = settings(config)?;
    let tokens = wiring::list_tokens(&settings, &source)?;
    Ok(report(&tokens, &settings))
}

/// Exit code `Failed` when not exactly one token is the configured one: then `serve` would not start either.
fn report(tokens: &[TokenSummary], settings: &Settings) -> Report {
    let custody = &settings.custody;
    let chosen = tokens.iter().filter(|token| is_chosen(token, custody)).count();
    let rows: Vec<Vec<String>> = tokens.iter().map(row).collect();
    let wanted = match &custody.token {
        TokenSelector::Label(label) => format!("label {label:?}"),
        TokenSelector::Serial(serial) => format!("serial {serial:?}"),
    };
    let module = match &custody.tpm {
        Some(tpm) => tpm.tcti.clone(),
        None => custody.module.display().to_string(),
    };
    let mut text = match tokens {
        [] => format!("{module} shows no token.\n"),
        _ => table::columns(&["LABEL", "SERIAL", "MODEL", "PIN"], &rows),
    };
    match chosen {
        0 => text.push_str(&format!(
            "No token has {wanted}: see custody.token_label, custody.token_serial and custody.environment.\n"
        )),
        1 => {}
        _ => text.push_str(&format!("{chosen} tokens have {wanted}: set custody.token_serial.\n")),
    }
    Report {
        text,
        json: json!({
            "module": module,
            "tokens": tokens.iter().map(|token| json(token, is_chosen(token, custody))).collect::<Vec<_>>(),
        }),
        exit: if chosen == 1 { Exit::Done } else { Exit::Failed },
    }
}

fn is_chosen(token: &TokenSummary, custody: &CustodySettings) -> bool {
    // There is one TPM, and it has no label.
    custody.tpm.is_some()
        || token.initialized
            && match &custody.token {
                TokenSelector::Label(label) => token.label == *label,
                TokenSelector::Serial(serial) => token.serial == *serial,
            }
}

fn row(token: &TokenSummary) -> Vec<String> {
    let label = if token.initialized { token.label.clone() } else { "(not initialized)".into() };
    vec![label, token.serial.clone(), token.model.clone(), pin(token.pin).replace('-', " ")]
}

fn json(token: &TokenSummary, configured: bool) -> Value {
    json!({
        "slot": token.slot,
        "label": token.label,
        "serial": token.serial,
        "manufacturer": token.manufacturer,
        "model": token.model,
        "firmware": token.firmware,
        "initialized": token.initialized,
        "pin": pin(token.pin),
        "configured": configured,
    })
}

fn pin(state: PinState) -> &'static str {
    match state {
        PinState::Fine => "fine",
        PinState::FinalTry => "final-try",
        PinState::CountLow => "count-low",
        PinState::Locked => "locked",
        PinState::NotSet => "not-set",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Site, Source};

    fn token(label: &str, serial: &str) -> TokenSummary {
        TokenSummary {
            slot: 7,
            label: label.into(),
            serial: serial.into(),
            manufacturer: "SoftHSM project".into(),
            model: "SoftHSM v2".into(),
            firmware: "2.6".into(),
            initialized: true,
            pin: PinState::FinalTry,
        }
    }

    fn settings() -> Settings {
        let source = Source::from_parts(None, "node = 'n'\n[custody]\ntoken_label = 'keystead'".into());
        Settings::from_source(&source, &Site::this_machine()).unwrap()
    }

    #[test]
    fn configured_token_is_marked_and_the_table_fits() {
        let longest = token(&"L".repeat(32), &"S".repeat(16));
        let report = report(&[token("keystead", "1"), TokenSummary { model: "M".repeat(16), ..longest }], &settings());
        assert_eq!(report.exit, Exit::Done);
        assert_eq!(report.json["tokens"][0]["configured"], true);
        assert_eq!(report.json["tokens"][1]["configured"], false);
        assert!(report.text.lines().all(|line| line.chars().count() <= 80), "{}", report.text);
        assert!(report.text.contains("final try"), "{}", report.text);
    }

    #[test]
    fn none_or_two_of_the_configured_label_fail_with_the_remedy() {
        let none = report(&[], &settings());
        assert_eq!(none.exit, Exit::Failed);
        assert!(none.text.contains("shows no token"), "{}", none.text);
        let two = report(&[token("keystead", "1"), token("keystead", "2")], &settings());
        assert_eq!(two.exit, Exit::Failed);
        assert!(two.text.contains("set custody.token_serial"), "{}", two.text);
        let empty_slot = TokenSummary { initialized: false, ..token("keystead", "1") };
        assert_eq!(report(&[empty_slot], &settings()).exit, Exit::Failed);
    }
}
