//! The audit trail: do its lines follow each other, up to where record and daemon say that it came, is there room for more, does
//! it leave the box? Read and not written; whether custody vouches for it only `keystead audit verify` asks.

use std::io;
use std::os::unix::net::UnixDatagram;

use keystead_core::audit::Position;
use keystead_wire::admin::v1::{Audit, GetStatusResponse};

use super::finding::Finding;
use super::scene::Scene;
use crate::audit::settings::AuditSettings;
use crate::audit::verify::{Newest, VerifyError, verify_newest};
use crate::config::units::show_size;
use crate::service::explain::explain;
use crate::store::Store;

/// What is read of a long trail, from its end: a second's work on a small box. All of it is `audit verify`'s.
const MOST_BYTES: u64 = 32 << 20;

struct Facts<'a> {
    settings: &'a AuditSettings,
    trail: Trail,
    /// How far the record on disk says that the trail had come.
    recorded: Option<Position>,
    daemon: Option<Told>,
    how_to_ask: &'static str,
    /// Bytes free for the daemon's user where the trail is; `None` where that cannot be seen.
    free: Option<u64>,
    /// Why lines cannot be forwarded, with the receiver.
    forward: Option<(&'static str, Result<(), String>)>,
}

/// What the daemon says of the trail that it writes; `None` of one that it could not open.
struct Told(Option<Audit>);

enum Trail {
    Missing,
    Forbidden,
    Broken(String),
    Read(Newest),
}

pub fn check(scene: &Scene<'_>) -> Vec<Finding> {
    let Some(settings) = &scene.settings.audit else {
        let why = "who rotated, rescued or refused what nobody can say afterwards";
        let next = "set audit.level to \"admin\", unless the site records this elsewhere";
        return vec![Finding::info("audit.off", "there is no audit trail", why, next)];
    };
    // Before the trail: what is written meanwhile makes that longer, never shorter.
    let recorded = Store::peek(scene.store()).ok().flatten().and_then(|record| record.claims().audit);
    let mut trail = read(scene, settings, recorded);
    // A file that is closed while it is read looks broken; two in a row are not.
    if matches!(trail, Trail::Broken(_)) {
        trail = read(scene, settings, recorded);
    }
    let ours = |status: &&GetStatusResponse| {
        status.keyring == scene.settings.keyring.as_str() && status.node == scene.settings.node.as_str()
    };
    judge(&Facts {
        settings,
        trail,
        recorded,
        daemon: scene.daemon.status().filter(ours).map(|status| Told(status.audit)),
        how_to_ask: scene.daemon.how_to_ask(),
        free: free(settings),
        forward: settings.forward.map(|to| {
            let receiver = to.receiver();
            // Connecting sends nothing.
            let reached = UnixDatagram::unbound().and_then(|socket| socket.connect(scene.site.path(receiver)));
            (receiver, reached.map_err(|error| error.to_string()))
        }),
    })
}

fn read(scene: &Scene<'_>, settings: &AuditSettings, recorded: Option<Position>) -> Trail {
    match verify_newest(&settings.folder, &scene.settings.keyring, MOST_BYTES, recorded) {
        Ok(newest) => Trail::Read(newest),
        Err(VerifyError::Missing(_)) => Trail::Missing,
        Err(VerifyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Trail::Missing,
        Err(VerifyError::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => Trail::Forbidden,
        Err(error) => Trail::Broken(explain(&error)),
    }
}

/// Of the folder, or of the one that it will be made in.
fn free(settings: &AuditSettings) -> Option<u64> {
    let disk = settings.folder.ancestors().find_map(|folder| rustix::fs::statvfs(folder).ok())?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

const COMPARE: &str = "keep a copy of the folder; compare with what was forwarded off the box (docs/audit.md says what a trail proves), and find out who was on this machine";
const TAMPERED: &str = "lines were changed or removed, by somebody who may write the folder, or by a failing disk: what it says may not be what happened";

fn judge(facts: &Facts<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(told_by_daemon(facts));
    findings.push(of_files(facts));
    findings.extend(facts.free.map(|free| room(facts, free)));
    findings.extend(facts.forward.as_ref().map(|(receiver, reached)| match reached {
        Ok(()) => Finding::ok("audit.forward", format!("{receiver} takes lines")),
        Err(error) => Finding::warning(
            "audit.forward",
            format!("lines are not forwarded: {receiver}: {error}"),
            "what does not leave the box proves nothing against root of the box; lines that nobody takes are not sent again",
            "start the service that listens there, or set audit.forward",
        ),
    }));
    findings
}

fn told_by_daemon(facts: &Facts<'_>) -> Option<Finding> {
    let Told(told) = facts.daemon.as_ref()?;
    let mend = "free some space or mend the folder; the log says why. It is tried again by itself";
    match told {
        None => Some(Finding::warning(
            "audit.unrecorded",
            "the daemon could not open the trail when it started: nothing is recorded",
            "what is done meanwhile nobody can say afterwards",
            "mend the folder (the log says why), then restart the daemon while custody is ready",
        )),
        Some(audit) if audit.failing && audit.stops => {
            let what = "the trail cannot be written, and what cannot be recorded is refused";
            let why = "admin actions fail, and with audit.level = \"requests\" Encrypt and Decrypt, too";
            Some(Finding::critical("audit.failing", what, why, mend))
        }
        Some(audit) if audit.failing => {
            let what = "the trail cannot be written: what is done is not recorded";
            Some(Finding::warning("audit.failing", what, "what is done meanwhile nobody can say afterwards", mend))
        }
        Some(audit) if audit.lost > 0 => {
            let what = format!("{} requests were not recorded since the daemon started", audit.lost);
            let why = "the disk was full or slower than the requests; the trail itself says when";
            let next = "`keystead audit query --action trail-resumed`; a faster disk, or audit.level = \"admin\"";
            Some(Finding::warning("audit.lost", what, why, next))
        }
        Some(_) => None,
    }
}

fn of_files(facts: &Facts<'_>) -> Finding {
    let folder = facts.settings.folder.display();
    let told = facts.daemon.as_ref().and_then(|Told(audit)| audit.as_ref()).map_or(0, |audit| audit.last);
    let came = told.max(facts.recorded.map_or(0, |position| position.sequence));
    match &facts.trail {
        Trail::Forbidden => {
            let what = format!("{folder} is not open to this user");
            Finding::unchecked("audit.forbidden", what, "run it as root or the daemon's user")
        }
        Trail::Missing if came > 0 => {
            let what = format!("there is no trail in {folder}, and it had come to line {came}");
            Finding::critical("audit.missing", what, TAMPERED, COMPARE)
        }
        Trail::Missing => Finding::unchecked("audit.trail", "nothing was recorded so far", facts.how_to_ask),
        Trail::Broken(problem) => Finding::critical("audit.broken", problem.clone(), TAMPERED, COMPARE),
        Trail::Read(Newest { verified, passes }) => {
            let (first, last) = (verified.first, verified.end.sequence);
            if last < came {
                let what = format!("the trail ends at line {last}, and it had come to line {came}");
                return Finding::critical("audit.short", what, TAMPERED, COMPARE);
            }
            if *passes == Some(false) {
                let what = format!(
                    "line {} is not the one that the record on disk names",
                    facts.recorded.map_or(0, |position| position.sequence)
                );
                return Finding::critical("audit.changed", what, TAMPERED, COMPARE);
            }
            Finding::ok(
                "audit.trail",
                format!("lines {first} to {last} follow each other; `audit verify` asks custody"),
            )
        }
    }
}

fn room(facts: &Facts<'_>, free: u64) -> Finding {
    let what = format!("{} free for it", show_size(free >> 20 << 20));
    if free >= facts.settings.max_bytes {
        return Finding::ok("audit.disk", what);
    }
    let what = format!("{what}, less than one file of it ({})", show_size(facts.settings.max_bytes));
    let why = "once the disk is full it is not written, and audit.failure says whether the service goes on";
    Finding::warning("audit.disk", what, why, "free some space, or set audit.keep and audit.max_file lower")
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity::{self, Critical, Info, Ok as Fine, Warning};
    use super::*;
    use crate::audit::settings::{FailurePolicy, Level};
    use crate::audit::verify::Verified;

    fn settings() -> AuditSettings {
        AuditSettings {
            folder: "/store/audit".into(),
            level: Level::Admin,
            failure: FailurePolicy::Stop,
            max_bytes: 16 << 20,
            max_age: std::time::Duration::from_secs(1),
            keep: 1,
            forward: None,
        }
    }

    fn at(sequence: u64) -> Position {
        Position { sequence, head: [1; 32] }
    }

    fn read(first: u64, last: u64, passes: Option<bool>) -> Trail {
        let verified =
            Verified { files: 1, lines: last - first + 1, first, end: at(last), checkpoint: None, unfinished: 0 };
        Trail::Read(Newest { verified, passes })
    }

    fn found(change: impl FnOnce(&mut Facts<'_>)) -> Vec<(&'static str, Severity)> {
        let settings = settings();
        let mut facts = Facts {
            settings: &settings,
            trail: read(1, 9, Some(true)),
            recorded: Some(at(7)),
            daemon: Some(Told(Some(Audit { last: 9, ..Audit::default() }))),
            how_to_ask: "ask",
            free: None,
            forward: None,
        };
        change(&mut facts);
        judge(&facts).into_iter().map(|finding| (finding.id, finding.severity)).collect()
    }

    #[test]
    fn what_record_or_daemon_know_and_the_files_do_not_is_critical() {
        assert_eq!(found(|_| ()), [("audit.trail", Fine)]);
        assert_eq!(found(|facts| facts.recorded = Some(at(10))), [("audit.short", Critical)]);
        let ahead = Audit { last: 12, ..Audit::default() };
        assert_eq!(found(|facts| facts.daemon = Some(Told(Some(ahead)))), [("audit.short", Critical)]);
        assert_eq!(found(|facts| facts.trail = read(1, 9, Some(false))), [("audit.changed", Critical)]);
        assert_eq!(found(|facts| facts.trail = read(8, 9, None)), [("audit.trail", Fine)]);
        assert_eq!(found(|facts| facts.trail = Trail::Missing), [("audit.missing", Critical)]);
        assert_eq!(found(|facts| facts.trail = Trail::Broken("x".into())), [("audit.broken", Critical)]);
        assert_eq!(found(|facts| facts.trail = Trail::Forbidden), [("audit.forbidden", Info)]);
        let fresh = found(|facts| (facts.trail, facts.recorded, facts.daemon) = (Trail::Missing, None, None));
        assert_eq!(fresh, [("audit.trail", Info)]);
    }

    #[test]
    fn a_trail_that_is_not_written_is_as_bad_as_the_site_has_chosen() {
        let told = |failing, stops, lost| {
            let audit = Audit { failing, stops, lost, ..Audit::default() };
            found(|facts| facts.daemon = Some(Told(Some(audit))))[0]
        };
        assert_eq!(told(true, true, 0), ("audit.failing", Critical));
        assert_eq!(told(true, false, 5), ("audit.failing", Warning));
        assert_eq!(told(false, true, 5), ("audit.lost", Warning));
        assert_eq!(found(|facts| facts.daemon = Some(Told(None)))[0], ("audit.unrecorded", Warning));
    }

    #[test]
    fn room_for_less_than_a_file_and_a_receiver_that_is_away_are_warnings() {
        assert_eq!(found(|facts| facts.free = Some(16 << 20))[1], ("audit.disk", Fine));
        assert_eq!(found(|facts| facts.free = Some((16 << 20) - 1))[1], ("audit.disk", Warning));
        assert_eq!(found(|facts| facts.forward = Some(("/dev/log", Ok(()))))[1], ("audit.forward", Fine));
        let away = found(|facts| facts.forward = Some(("/dev/log", Err("gone".into()))));
        assert_eq!(away[1], ("audit.forward", Warning));
    }
}
