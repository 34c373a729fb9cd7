//! The store: the record on disk beside what the daemon holds, and what the key hangs on. The record is read and not
//! believed: only custody can say whether it is authentic.

use std::io;
use std::time::Duration;

use keystead_core::record::{Claims, RecordError};
use keystead_wire::admin::v1::{Deletion, GetStatusResponse};

use super::super::status;
use super::finding::Finding;
use super::look::{self, Entry, Kind, Look, User};
use super::scene::Scene;
use crate::config::units::show_mode;
use crate::service::notices;
use crate::store::{Store, StoreError};

struct Facts<'a> {
    folder: &'a str,
    entry: Look<Entry>,
    record: Record,
    /// Records that `init` or `recover` moved aside.
    aside: usize,
    keyring: &'a str,
    node: &'a str,
    status: Option<&'a GetStatusResponse>,
    how_to_ask: &'static str,
    user: Option<User>,
}

#[derive(Debug, PartialEq)]
enum Record {
    Missing,
    Forbidden,
    /// Written by a later version.
    Newer(String),
    Broken(String),
    Claims(Claims),
}

const RECOVER: &str =
    "docs/runbooks/recovery.md: `keystead recover` rebuilds it from an etcd snapshot and one durable root";

pub fn check(scene: &Scene<'_>) -> Vec<Finding> {
    let folder = scene.store();
    let mut record = record(scene);
    let mut fresh = None;
    // A rotation between asking and reading looks like a fault; two in a row do not happen.
    if let (Record::Claims(claims), Some(status)) = (&record, scene.daemon.status())
        && claims.revision != status.store_revision
    {
        fresh = status::ask(&scene.settings.admin.socket.path).ok();
        record = self::record(scene);
    }
    let names = look::names(folder);
    judge(&Facts {
        folder: &folder.display().to_string(),
        entry: look::at(folder),
        record,
        aside: names.iter().filter(|name| name.starts_with("keyring.store.aside-")).count(),
        keyring: scene.settings.keyring.as_str(),
        node: scene.settings.node.as_str(),
        status: fresh.as_ref().or(scene.daemon.status()),
        how_to_ask: scene.daemon.how_to_ask(),
        user: scene.daemon_user(),
    })
}

fn record(scene: &Scene<'_>) -> Record {
    match Store::peek(scene.store()) {
        Ok(None) => Record::Missing,
        Ok(Some(record)) => Record::Claims(record.claims().clone()),
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => Record::Forbidden,
        Err(StoreError::Record(error @ RecordError::NewerFormat(_))) => Record::Newer(error.to_string()),
        Err(error) => Record::Broken(crate::service::explain::explain(&error)),
    }
}

fn judge(facts: &Facts<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &facts.entry {
        Look::Found(entry) if entry.kind == Kind::Folder => {
            findings.extend(folder(facts, entry));
            findings.push(record_of(facts));
        }
        Look::Found(_) => {
            let what = format!("{} is not a folder", facts.folder);
            findings.push(Finding::critical(
                "store.folder",
                what,
                "the daemon cannot start",
                "remove what is there, or set store.path",
            ));
        }
        Look::Missing => findings.push(missing(facts, format!("the store folder {} does not exist", facts.folder))),
        Look::Forbidden | Look::Failed(_) => {
            let what = format!("the store folder {} is not open to this user", facts.folder);
            findings.push(Finding::unchecked("store.forbidden", what, "run it as root or the daemon's user"));
        }
    }
    if facts.aside > 0 {
        let what = format!("{} former records lie beside the store", facts.aside);
        let why = "`recover` moved them aside; each holds wraps of keys, worthless without a root";
        findings.push(Finding::info("store.aside", what, why, "remove them when no Secret needs them any more"));
    }
    match facts.status {
        Some(status) => findings.extend(told_by_daemon(status)),
        None => findings.push(Finding::unchecked(
            "store.roots",
            "the key's durable roots are known to the daemon only",
            facts.how_to_ask,
        )),
    }
    findings
}

fn folder(facts: &Facts<'_>, entry: &Entry) -> Option<Finding> {
    let (folder, mode) = (facts.folder, show_mode(entry.mode & 0o777));
    if entry.writable_by_others(facts.user) {
        let what = format!("others than its owner may write to the store folder {folder} (mode {mode})");
        let why =
            "they can remove the record and put old ones back, and remove the note that spares the token a wrong PIN";
        return Some(Finding::critical("store.folder", what, why, format!("`chmod 0700 {folder}`")));
    }
    if entry.foreign(facts.user) {
        let what =
            format!("the store folder {folder} belongs to user {}, who is neither root nor the daemon's", entry.uid);
        let why = "he can remove the record and put old ones back; the daemon may not be able to write";
        return Some(Finding::critical("store.folder", what, why, format!("`chown -R` {folder} to the daemon's user")));
    }
    (entry.mode & 0o055 != 0).then(|| {
        let what = format!("others may look into the store folder {folder} (mode {mode})");
        let why = "what is in it opens nothing without a root, and is nobody else's business";
        Finding::info("store.folder", what, why, format!("`chmod 0700 {folder}`"))
    })
}

fn missing(facts: &Facts<'_>, what: String) -> Finding {
    if facts.status.is_some_and(|status| !status.active_key_id.is_empty()) {
        let why =
            "the keys are in the daemon's memory and on the token; the next start finds no store and serves nothing";
        let next =
            format!("DO NOT RESTART. Put the newest copy back; without one: `keystead roots rescue`, then {RECOVER}");
        return Finding::critical("store.removed", what, why, next);
    }
    let next = format!("`keystead init` makes the key; if there was one, {RECOVER}");
    Finding::critical("store.empty", what, "there is no key to serve", next)
}

fn record_of(facts: &Facts<'_>) -> Finding {
    let serves = facts.status.filter(|status| !status.active_key_id.is_empty());
    match &facts.record {
        Record::Missing => missing(facts, format!("there is no record in {}", facts.folder)),
        Record::Forbidden => Finding::unchecked(
            "store.forbidden",
            "the record is not open to this user",
            "run it as root or the daemon's user",
        ),
        Record::Newer(error) => {
            let why = "an older program was put back over a newer one: it does not start";
            Finding::critical("store.newer-format", error.clone(), why, "install the newer program again")
        }
        Record::Broken(error) => {
            let why = "the next start does not believe it and serves nothing";
            let next = format!(
                "put an unchanged copy back{}; without one, {RECOVER}",
                if serves.is_some() { ", and DO NOT RESTART before" } else { "" }
            );
            Finding::critical("store.damaged", error.clone(), why, next)
        }
        Record::Claims(claims) if (claims.keyring.as_str(), claims.node.as_str()) != (facts.keyring, facts.node) => {
            let what = format!(
                "the record is of keyring {} on node {}, the configuration says {} on {}",
                claims.keyring, claims.node, facts.keyring, facts.node
            );
            let why = "the next start refuses it: a store is not moved by copying it";
            let next = format!(
                "put keyring and node back as they were (a new machine ID changes the default node: set `node`); on another machine, {RECOVER}"
            );
            Finding::critical("store.foreign", what, why, next)
        }
        Record::Claims(Claims { revision, epoch, .. }) => match serves {
            Some(status) if (status.store_revision, status.epoch) != (*revision, *epoch) => {
                let what = format!(
                    "the record on disk is revision {revision}, epoch {epoch}; the daemon holds revision {}, epoch {}",
                    status.store_revision, status.epoch
                );
                let why = "the file was replaced while the daemon runs; the next start refuses a record that is not the newest";
                Finding::critical("store.replaced", what, why, "put the newest record back, and DO NOT RESTART before")
            }
            Some(_) => {
                Finding::ok("store.record", format!("revision {revision}, epoch {epoch}, as the daemon holds it"))
            }
            None => {
                let what =
                    format!("revision {revision}, epoch {epoch}; whether it is authentic only the token can say");
                Finding::unchecked("store.record", what, facts.how_to_ask)
            }
        },
    }
}

fn told_by_daemon(status: &GetStatusResponse) -> Vec<Finding> {
    let mut findings = Vec::new();
    match status.durable_roots.as_slice() {
        // A sealed daemon knows of none.
        [] => {}
        [only] if only != "recovery" => findings.push(Finding::warning(
            "store.one-root",
            format!("the key hangs on one durable root ({only})"),
            "if it is lost, every Secret is lost, in etcd and in every backup",
            "`keystead recovery keygen` on another machine, then `keystead roots add recovery PUBLIC.pem` here",
        )),
        roots => {
            findings.push(Finding::ok("store.roots", format!("{} durable roots: {}", roots.len(), roots.join(", "))))
        }
    }
    let deletions: Vec<(String, &Deletion)> = status.deletions.iter().map(|each| (told(each), each)).collect();
    for warning in status.warnings.iter().filter(|warning| !warning.starts_with(notices::UNWRITTEN)) {
        if let Some((what, deletion)) = deletions.iter().find(|(what, _)| what == warning) {
            findings.push(pending(what, deletion));
            continue;
        }
        let finding = match warning.as_str() {
            // Said above, and by the groups custody, audit and protection.
            notices::ONE_ROOT
            | notices::ONE_CLOUD_ROOT
            | notices::SOFTHSM
            | notices::KEYS_NOT_LOCKED
            | notices::UNRECORDED
            | notices::PIN_READABLE => continue,
            notices::ROTATION_CUT_OFF => Finding::warning(
                "store.rotation",
                "a rotation was cut off",
                "nothing is lost: the generation before serves, and the next start or rotation settles it",
                "`keystead key rotate` when custody is ready",
            ),
            notices::UNSETTLED => Finding::warning(
                "store.unsettled",
                "a change of the key is in force and not settled on disk or token yet",
                "until it is, an older record may still be believed, and a restart has more to mend",
                "see the daemon's log for the cause (a full disk, a token that is away); put no older files back",
            ),
            other => Finding::warning("store.warning", other, "the daemon itself warns of it", "do what it says"),
        };
        findings.push(finding);
    }
    findings
}

fn told(deletion: &Deletion) -> String {
    let left = Duration::from_secs(deletion.remaining_seconds);
    notices::deletion(deletion.generation, &deletion.state, &deletion.detail, left, &deletion.backups)
}

fn pending(what: &str, deletion: &Deletion) -> Finding {
    let why = "what is still under it, in etcd or in a backup, cannot be read once it is destroyed";
    match (deletion.state.as_str(), deletion.detail.is_empty()) {
        ("suspended", _) => {
            let why = "a key that is in use was about to be destroyed: the scan before missed what needs it";
            Finding::warning("store.deletion-suspended", what, why, "do what it says: rewrite and scan, or cancel")
        }
        (_, false) => Finding::warning("store.deletion", what, why, "do what it says, or cancel the deletion"),
        _ => Finding::info("store.deletion", what, why, "nothing, if it is meant"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity::{self, Critical, Info, Ok, Warning};
    use super::*;

    fn status() -> GetStatusResponse {
        GetStatusResponse {
            active_key_id: "ks1.test.1.ab".into(),
            store_revision: 4,
            epoch: 2,
            durable_roots: vec!["pkcs11".into(), "recovery".into()],
            ..GetStatusResponse::default()
        }
    }

    fn claims(revision: u64, epoch: u64) -> Record {
        claims_of("test", "n1", revision, epoch)
    }

    fn claims_of(keyring: &str, node: &str, revision: u64, epoch: u64) -> Record {
        let (keyring, node) = (keyring.parse().unwrap(), node.parse().unwrap());
        Record::Claims(Claims { keyring, node, revision, epoch, disabled: None, audit: None, generations: Vec::new() })
    }

    fn entry(mode: u32, uid: u32) -> Look<Entry> {
        Look::Found(Entry { kind: Kind::Folder, mode, uid, gid: uid, size: 0, modified: 0 })
    }

    fn found(status: Option<&GetStatusResponse>, change: impl FnOnce(&mut Facts<'_>)) -> Vec<(&'static str, Severity)> {
        let mut facts = Facts {
            folder: "/var/lib/keystead",
            entry: entry(0o700, 998),
            record: claims(4, 2),
            aside: 0,
            keyring: "test",
            node: "n1",
            status,
            how_to_ask: "ask it",
            user: Some(User { uid: 998, gid: 998 }),
        };
        change(&mut facts);
        judge(&facts).into_iter().map(|finding| (finding.id, finding.severity)).collect()
    }

    const ROOTS: (&str, Severity) = ("store.roots", Ok);

    #[test]
    fn sound_store_with_two_roots_is_ok() {
        assert_eq!(found(Some(&status()), |_| {}), [("store.record", Ok), ROOTS]);
    }

    #[test]
    fn record_that_is_not_the_daemon_s_is_named() {
        let cases = [
            (claims(3, 2), "store.replaced"),
            (claims(5, 2), "store.replaced"),
            (claims(4, 1), "store.replaced"),
            (Record::Missing, "store.removed"),
            (Record::Broken("damaged".into()), "store.damaged"),
            (Record::Newer("format 9".into()), "store.newer-format"),
            (claims_of("other", "n1", 4, 2), "store.foreign"),
            (claims_of("test", "n2", 4, 2), "store.foreign"),
        ];
        for (record, id) in cases {
            assert_eq!(found(Some(&status()), |facts| facts.record = record), [(id, Critical), ROOTS], "{id}");
        }
    }

    #[test]
    fn daemon_that_serves_nothing_has_an_empty_store_not_a_removed_one() {
        let sealed = GetStatusResponse::default();
        assert_eq!(found(Some(&sealed), |facts| facts.record = Record::Missing), [("store.empty", Critical)]);
        assert_eq!(found(Some(&sealed), |_| {}), [("store.record", Info)]);
        let down = [("store.empty", Critical), ("store.roots", Info)];
        assert_eq!(found(None, |facts| facts.entry = Look::Missing), down);
    }

    #[test]
    fn folder_s_mode_matters_by_what_others_may_do() {
        for (mode, expected) in [
            (0o755, ("store.folder", Info)),
            (0o710, ("store.folder", Info)),
            (0o770, ("store.folder", Info)),
            (0o702, ("store.folder", Critical)),
            (0o1777, ("store.folder", Critical)),
        ] {
            assert_eq!(found(Some(&status()), |facts| facts.entry = entry(mode, 998))[0], expected, "{mode:o}");
        }
        assert_eq!(found(Some(&status()), |facts| facts.entry = entry(0o700, 1000))[0], ("store.folder", Critical));
        assert_eq!(found(None, |facts| facts.entry = Look::Forbidden)[0], ("store.forbidden", Info));
    }

    #[test]
    fn folder_of_a_foreign_group_that_may_write_is_critical() {
        let foreign = |user| {
            let entry = Entry { kind: Kind::Folder, mode: 0o770, uid: 998, gid: 50, size: 0, modified: 0 };
            found(Some(&status()), |facts| (facts.entry, facts.user) = (Look::Found(entry), user))[0]
        };
        assert_eq!(foreign(Some(User { uid: 998, gid: 998 })), ("store.folder", Critical));
        assert_eq!(foreign(None), ("store.folder", Info), "it may be the daemon's own group");
    }

    #[test]
    fn roots_and_warnings_of_the_daemon_are_each_told_once() {
        let mut told = status();
        told.durable_roots.pop();
        told.warnings = [
            notices::ONE_ROOT,
            notices::SOFTHSM,
            notices::UNSETTLED,
            notices::ROTATION_CUT_OFF,
            "generation 1 cannot be opened",
        ]
        .map(String::from)
        .to_vec();
        let expected = [
            ("store.record", Ok),
            ("store.one-root", Warning),
            ("store.unsettled", Warning),
            ("store.rotation", Warning),
            ("store.warning", Warning),
        ];
        assert_eq!(found(Some(&told), |_| {}), expected);
        told.durable_roots = vec!["recovery".into()];
        told.warnings.clear();
        assert_eq!(found(Some(&told), |facts| facts.aside = 2)[1..], [("store.aside", Info), ROOTS]);
    }

    #[test]
    fn deletions_are_told_by_how_they_stand() {
        for (state, detail, expected) in [
            ("waiting", "", ("store.deletion", Info)),
            ("waiting", "no scan", ("store.deletion", Warning)),
            ("held", "no scan", ("store.deletion", Warning)),
            ("suspended", "decrypted", ("store.deletion-suspended", Warning)),
        ] {
            let deletion =
                Deletion { generation: 1, state: state.into(), detail: detail.into(), ..Deletion::default() };
            let warnings = vec![super::told(&deletion)];
            let status = GetStatusResponse { deletions: vec![deletion], warnings, ..status() };
            assert_eq!(found(Some(&status), |_| {}), [("store.record", Ok), ROOTS, expected], "{state}");
        }
    }
}
