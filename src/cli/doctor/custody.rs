//! Custody as the daemon reports it: token, PIN, module, the mechanism that its probe settled on. Nothing is asked of the
//! token here: no device call, no login. With the daemon down, only the note of a rejected PIN is looked for.

use keystead_wire::admin::v1::Custody;

use super::finding::Finding;
use super::scene::Scene;
use crate::custody::rejected_by;

struct Facts {
    custody: Option<Custody>,
    how_to_ask: &'static str,
    uptime_seconds: u64,
    /// Tokens that have rejected some PIN. `Err`: the note could not be looked for.
    rejected_by: Result<Vec<String>, String>,
}

const LAST_COPY: &str = "what is in the daemon's memory may be the last copy of the keys: a restart would lose it";
const RUNBOOK: &str = "docs/runbooks/faults.md";

pub fn check(scene: &Scene<'_>) -> Vec<Finding> {
    let status = scene.daemon.status();
    judge(&Facts {
        custody: status.map(|status| status.custody.clone().unwrap_or_default()),
        how_to_ask: scene.daemon.how_to_ask(),
        uptime_seconds: status.map_or(0, |status| status.uptime_seconds),
        rejected_by: rejected_by(&scene.settings.custody.latch_folder).map_err(|error| error.to_string()),
    })
}

fn judge(facts: &Facts) -> Vec<Finding> {
    match &facts.custody {
        None => offline(facts),
        Some(custody) if custody.state == "ready" => ready(facts, custody),
        Some(custody) => vec![fault(custody)],
    }
}

/// The daemon does not say: what is left is the note.
fn offline(facts: &Facts) -> Vec<Finding> {
    let next = format!("{}; `keystead token list` shows the tokens, without a PIN", facts.how_to_ask);
    let mut findings =
        vec![Finding::unchecked("custody.state", "token, login and mechanism are known to the daemon only", next)];
    match &facts.rejected_by {
        Ok(serials) => findings.extend(serials.iter().map(|serial| {
            let what = format!("token {serial} has rejected a PIN or auth value, and has taken none since");
            let why = "it is not tried again, so that the token does not lock: with it the daemon starts sealed";
            Finding::warning("custody.pin-rejected", what, why, "make sure that the right one is there before starting")
        })),
        Err(error) => {
            let what = format!("whether a PIN was rejected could not be looked up: {error}");
            findings.push(Finding::unchecked("custody.pin-note", what, "run it as root or the daemon's user"));
        }
    }
    findings
}

fn ready(facts: &Facts, custody: &Custody) -> Vec<Finding> {
    let Custody { token_label, token_serial, manufacturer, mechanism, authentication, restarts, .. } = custody;
    let mut findings = vec![
        Finding::ok("custody.state", format!("ready: token {token_label} (serial {token_serial}), logged in")),
        Finding::ok("custody.mechanism", format!("probed: {mechanism}; {authentication}")),
    ];
    if manufacturer.starts_with("SoftHSM") {
        findings.push(Finding::warning(
            "custody.software-token",
            "the token is SoftHSM: its keys are files",
            "whoever copies the files and the PIN has the keys; putting old files back undoes the protection against rollback",
            "use a hardware token in production",
        ));
    }
    // A crash every hour is more than bad luck.
    if *restarts >= 3 && u64::from(*restarts) * 3600 > facts.uptime_seconds {
        let what = format!("the custodian was restarted {restarts} times");
        let why = "the vendor's module crashes or hangs; requests go on from memory meanwhile";
        findings.push(Finding::warning(
            "custody.restarts",
            what,
            why,
            "look for its faults in the daemon's log; ask the vendor for a newer module",
        ));
    }
    findings
}

/// One word of `custody.state` each: docs/runbooks/faults.md lists them all.
fn fault(custody: &Custody) -> Finding {
    let state = custody.state.as_str();
    let what = if custody.detail.is_empty() { state.to_owned() } else { format!("{state}: {}", custody.detail) };
    let critical = |id, why, next: &str| Finding::critical(id, what.clone(), why, next);
    match state {
        "starting" | "restarting" | "busy" => {
            let why = "it passes by itself within seconds, unless the module crashes each time";
            Finding::warning(
                "custody.state",
                what,
                why,
                "run it again in a minute; if it stays so, look at the daemon's log",
            )
        }
        "pin-rejected" => critical(
            "custody.pin-rejected",
            "it was tried once and is not tried again, so that the token does not lock",
            "write the right PIN to the PIN file, or to the credential and restart the unit",
        ),
        "pin-locked" => critical(
            "custody.pin-locked",
            "no login until it is unlocked",
            "have the security officer unlock the user PIN",
        ),
        "pin-final-try" => critical(
            "custody.pin-final-try",
            "one more wrong PIN locks the token: it is not tried",
            "log in once by hand with the right PIN, to reset the count",
        ),
        "auth-rejected" => critical(
            "custody.auth-rejected",
            "it was tried once and is not tried again: this is not the auth file that the TPM was provisioned with",
            "put the right auth file, or credential, back (docs/custody-tpm.md)",
        ),
        "boot-not-approved" => critical(
            "custody.boot-not-approved",
            "the TPM opens the keys after an approved boot only",
            "`keystead tpm preview` says what changed; approve this boot off the box, or boot what was approved",
        ),
        "tpm-unreachable" => critical(
            "custody.tpm",
            LAST_COPY,
            "mend custody.tcti or the device's permissions; `keystead tpm info` looks, too",
        ),
        "pin-unreadable" => critical(
            "custody.pin-unreadable",
            "without the PIN there is no login",
            "do what the files group says of the PIN",
        ),
        "token-missing"
        | "token-ambiguous"
        | "token-replaced"
        | "token-reinitialized"
        | "token-older"
        | "cmk-missing" => critical(
            "custody.token",
            LAST_COPY,
            &format!("put the right token back, or its newest backup: {RUNBOOK}. DO NOT RESTART a daemon that serves"),
        ),
        "epoch-missing" => critical(
            "custody.token",
            LAST_COPY,
            "put the token's newest backup back; a TPM has lost its NV indices: `keystead roots rescue` while the daemon \
             serves, then `keystead recover` (docs/custody-tpm.md). DO NOT RESTART a daemon that serves",
        ),
        "module-unusable" => critical(
            "custody.module",
            LAST_COPY,
            "mend custody.module or its environment, then `keystead custodian restart`",
        ),
        _ => critical(
            "custody.state",
            LAST_COPY,
            &format!("{RUNBOOK} says what each state means. DO NOT RESTART a daemon that serves"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity::{self, Critical, Info, Ok as Fine, Warning};
    use super::*;

    fn custody(state: &str) -> Custody {
        Custody { state: state.into(), manufacturer: "Vendor".into(), ..Custody::default() }
    }

    fn found(custody: Option<Custody>, rejected_by: Result<Vec<String>, String>) -> Vec<(&'static str, Severity)> {
        let facts = Facts { custody, how_to_ask: "ask it", uptime_seconds: 7200, rejected_by };
        judge(&facts).into_iter().map(|finding| (finding.id, finding.severity)).collect()
    }

    #[test]
    fn ready_custody_shows_token_and_mechanism() {
        let fine = [("custody.state", Fine), ("custody.mechanism", Fine)];
        assert_eq!(found(Some(custody("ready")), Ok(vec![])), fine);
        let soft = Custody { manufacturer: "SoftHSM project".into(), ..custody("ready") };
        assert_eq!(found(Some(soft), Ok(vec![]))[2..], [("custody.software-token", Warning)]);
        let often = |restarts| Custody { restarts, ..custody("ready") };
        assert_eq!(found(Some(often(2)), Ok(vec![])), fine);
        assert_eq!(found(Some(often(3)), Ok(vec![]))[2..], [("custody.restarts", Warning)]);
    }

    #[test]
    fn every_state_but_ready_is_a_finding_with_a_remedy() {
        let states = [
            ("starting", "custody.state", Warning),
            ("restarting", "custody.state", Warning),
            ("hung", "custody.state", Critical),
            ("pin-rejected", "custody.pin-rejected", Critical),
            ("pin-locked", "custody.pin-locked", Critical),
            ("pin-final-try", "custody.pin-final-try", Critical),
            ("pin-unreadable", "custody.pin-unreadable", Critical),
            ("auth-rejected", "custody.auth-rejected", Critical),
            ("boot-not-approved", "custody.boot-not-approved", Critical),
            ("tpm-unreachable", "custody.tpm", Critical),
            ("token-missing", "custody.token", Critical),
            ("token-older", "custody.token", Critical),
            ("module-unusable", "custody.module", Critical),
            ("device-failed", "custody.state", Critical),
            ("", "custody.state", Critical),
            ("unheard-of", "custody.state", Critical),
        ];
        for (state, id, severity) in states {
            assert_eq!(found(Some(custody(state)), Ok(vec![])), [(id, severity)], "{state}");
            let facts = Facts {
                custody: Some(custody(state)),
                how_to_ask: "ask it",
                uptime_seconds: 0,
                rejected_by: Ok(vec![]),
            };
            assert!(judge(&facts).iter().all(|finding| !finding.why.is_empty() && !finding.next.is_empty()), "{state}");
        }
    }

    #[test]
    fn note_of_a_rejected_pin_is_found_with_the_daemon_down() {
        let unknown = ("custody.state", Info);
        assert_eq!(found(None, Ok(vec![])), [unknown]);
        assert_eq!(found(None, Ok(vec!["4d".into()])), [unknown, ("custody.pin-rejected", Warning)]);
        assert_eq!(found(None, Err("denied".into())), [unknown, ("custody.pin-note", Info)]);
    }
}
