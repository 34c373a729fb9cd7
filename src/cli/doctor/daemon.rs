//! The daemon itself: does it run, is it the one this configuration means, does it serve, is it the program on disk?

use keystead_wire::admin::v1::GetStatusResponse;

use super::super::{drift, time};
use super::finding::Finding;
use super::scene::{Daemon, Scene};

struct Facts<'a> {
    daemon: &'a Daemon,
    keyring: &'a str,
    node: &'a str,
    /// Of this program.
    version: &'static str,
    replaced: Option<bool>,
    /// The configuration file is not what the daemon loaded; `None` for who may not know.
    drifted: Option<bool>,
}

const NO_SECRETS: &str = "kube-apiserver can open no Secret that it has not in memory, and after 3 minutes write none";

pub fn check(scene: &Scene<'_>) -> Vec<Finding> {
    judge(&Facts {
        daemon: &scene.daemon,
        keyring: scene.settings.keyring.as_str(),
        node: scene.settings.node.as_str(),
        version: env!("CARGO_PKG_VERSION"),
        replaced: scene.server().and_then(|server| server.replaced),
        drifted: scene.daemon.status().and_then(|status| drift::differs(status.configuration.as_ref()?)),
    })
}

fn judge(facts: &Facts<'_>) -> Vec<Finding> {
    match facts.daemon {
        Daemon::Down(reason) => {
            let what = format!("no daemon runs: {reason}");
            let next =
                "start it: `systemctl start keystead`, or `keystead serve`; if it ended by itself, its log says why";
            vec![Finding::critical("daemon.down", what, NO_SECRETS, next)]
        }
        Daemon::Silent(reason) => {
            let what = format!("the daemon does not answer: {reason}");
            vec![Finding::critical("daemon.silent", what, NO_SECRETS, "look at its log; restart it if it stays so")]
        }
        Daemon::Forbidden(reason) => {
            let what = format!("the daemon could not be asked: {reason}");
            let next = "run it as root or the daemon's user, or admit this one (admin.allow_uids)";
            vec![Finding::unchecked("daemon.forbidden", what, next)]
        }
        Daemon::Answers(status) => answers(facts, status),
    }
}

fn answers(facts: &Facts<'_>, status: &GetStatusResponse) -> Vec<Finding> {
    if (status.keyring.as_str(), status.node.as_str()) != (facts.keyring, facts.node) {
        let (found, node) = (&status.keyring, &status.node);
        let what = format!(
            "the daemon serves keyring {found} on node {node}, the configuration says {} on {}",
            facts.keyring, facts.node
        );
        let why = "either this is another daemon, or a restart would seal it: a store belongs to one keyring and node";
        let next = "name this daemon's config file with --config, or put keyring and node back as they were";
        return vec![Finding::critical("daemon.other", what, why, next)];
    }
    let mut findings = vec![availability(status)];
    if status.version != facts.version {
        let what = format!("the daemon is version {}, this program {}", status.version, facts.version);
        let why =
            "what this program says may not fit the daemon, and a mended fault goes on until the daemon is restarted";
        findings.push(Finding::warning("daemon.version", what, why, RESTART));
    } else if facts.replaced == Some(true) {
        let why = "the daemon goes on with the old program; a mended fault goes on with it";
        let what = "the daemon's program file was replaced since it started";
        findings.push(Finding::warning("daemon.version", what, why, RESTART));
    } else if facts.replaced == Some(false) {
        findings.push(Finding::ok("daemon.version", format!("version {}, the program on disk", status.version)));
    } else {
        let what = format!("version {}; whether its program file was replaced since was not looked at", status.version);
        findings.push(Finding::unchecked("daemon.version", what, "run it as root"));
    }
    findings.extend(configuration(status, facts.drifted));
    findings
}

fn configuration(status: &GetStatusResponse, drifted: Option<bool>) -> Option<Finding> {
    let configuration = status.configuration.as_ref().filter(|configuration| !configuration.file.is_empty())?;
    let file = &configuration.file;
    let loaded = time::rfc3339(configuration.loaded).unwrap_or_default();
    Some(match drifted {
        Some(true) => {
            let refused = match configuration.refused.as_str() {
                "" => String::new(),
                why => format!(" The last reload was refused: {why}."),
            };
            let what = format!("{file} has changed since the daemon loaded it at {loaded}.{refused}");
            let why = "the daemon runs by what it loaded; a restart would change more than was meant, or fail";
            Finding::warning("daemon.configuration", what, why, "`keystead config check`, then `keystead reload`")
        }
        Some(false) => Finding::ok("daemon.configuration", format!("{file}, as loaded at {loaded}")),
        None => {
            let what = format!("whether {file} has changed since it was loaded at {loaded} was not looked at");
            Finding::unchecked("daemon.configuration", what, "run it as root")
        }
    })
}

const RESTART: &str = "restart the daemon at a quiet moment, while custody is ready";

fn availability(status: &GetStatusResponse) -> Finding {
    let up = time::span(status.uptime_seconds);
    match status.availability.as_str() {
        "online" => Finding::ok("daemon.serving", format!("online, up {up}")),
        "degraded" => Finding::critical(
            "daemon.degraded",
            format!("it serves from memory, without custody: {}", status.reason),
            "a restart, a crash or a power cut now ends the service until custody is back",
            "DO NOT RESTART; mend what the custody group names",
        ),
        "disabled" => Finding::critical(
            "daemon.disabled",
            format!("it is disabled and serves nothing: {}", status.reason),
            NO_SECRETS,
            "if it is to serve again: `keystead key enable`; no restart is needed, and none helps",
        ),
        other => Finding::critical(
            "daemon.sealed",
            format!("it is {other} and serves nothing: {}", status.reason),
            NO_SECRETS,
            "do what the reason says; the daemon goes on by itself",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;

    fn found(daemon: &Daemon, replaced: Option<bool>) -> Vec<(&'static str, Severity)> {
        let facts = Facts { daemon, keyring: "default", node: "n1", version: "0.1.0", replaced, drifted: None };
        judge(&facts).into_iter().map(|finding| (finding.id, finding.severity)).collect()
    }

    fn status(availability: &str) -> GetStatusResponse {
        GetStatusResponse {
            version: "0.1.0".into(),
            keyring: "default".into(),
            node: "n1".into(),
            availability: availability.into(),
            ..GetStatusResponse::default()
        }
    }

    fn answers(status: GetStatusResponse) -> Daemon {
        Daemon::Answers(Box::new(status))
    }

    #[test]
    fn availability_and_version_are_judged_apart() {
        use Severity::{Critical, Info, Ok, Warning};
        let fine = ("daemon.version", Ok);
        assert_eq!(found(&answers(status("online")), Some(false)), [("daemon.serving", Ok), fine]);
        assert_eq!(found(&answers(status("degraded")), Some(false)), [("daemon.degraded", Critical), fine]);
        for word in ["sealed", "revoked", ""] {
            assert_eq!(found(&answers(status(word)), Some(false)), [("daemon.sealed", Critical), fine], "{word}");
        }
        assert_eq!(found(&answers(status("disabled")), Some(false)), [("daemon.disabled", Critical), fine]);
        let old = answers(GetStatusResponse { version: "0.0.9".into(), ..status("online") });
        assert_eq!(found(&old, Some(false))[1], ("daemon.version", Warning));
        assert_eq!(found(&answers(status("online")), Some(true))[1], ("daemon.version", Warning));
        assert_eq!(found(&answers(status("online")), None)[1], ("daemon.version", Info));
    }

    #[test]
    fn configuration_that_was_edited_since_is_a_warning() {
        use Severity::{Info, Ok, Warning};
        let loaded = keystead_wire::admin::v1::Configuration { file: "/c".into(), loaded: 1, ..Default::default() };
        let status = GetStatusResponse { configuration: Some(loaded), ..status("online") };
        for (drifted, severity) in [(Some(true), Warning), (Some(false), Ok), (None, Info)] {
            let daemon = answers(status.clone());
            let facts = Facts {
                daemon: &daemon,
                keyring: "default",
                node: "n1",
                version: "0.1.0",
                replaced: Some(false),
                drifted,
            };
            let found = judge(&facts).pop().unwrap();
            assert_eq!((found.id, found.severity), ("daemon.configuration", severity), "{found:?}");
        }
    }

    #[test]
    fn another_daemon_is_not_judged_as_ours() {
        let other = answers(GetStatusResponse { keyring: "other".into(), ..status("sealed") });
        assert_eq!(found(&other, None), [("daemon.other", Severity::Critical)]);
    }

    #[test]
    fn daemon_that_cannot_be_asked_is_not_called_down() {
        assert_eq!(found(&Daemon::Forbidden("x".into()), None), [("daemon.forbidden", Severity::Info)]);
        assert_eq!(found(&Daemon::Silent("x".into()), None), [("daemon.silent", Severity::Critical)]);
        assert_eq!(found(&Daemon::Down("x".into()), None), [("daemon.down", Severity::Critical)]);
    }
}
