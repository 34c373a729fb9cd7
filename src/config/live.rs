//! What a running daemon may take over from a changed file, and what it may not: judged whole, so that nothing is applied if
//! one key cannot be.

use keystead_core::schedule::Schedule;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::effective::values;
use super::settings::Settings;
use crate::audit::settings::Level as AuditLevel;
use crate::rpc::peer::PeerPolicy;
use crate::rpc::roles::RolePolicy;
use crate::telemetry::log::Level;

/// Every key that may change while the daemon runs. `roles` stands for its whole table.
pub const LIVE_KEYS: &[&str] = &[
    "audit.level",
    "rotation.every",
    "rotation.jitter",
    "rotation.window",
    "kms.allow_uids",
    "kms.allow_gids",
    "kms.max_connections",
    "kms.max_plaintext",
    "admin.allow_uids",
    "admin.allow_gids",
    "roles",
    "log.level",
];

/// Their values: names resolved, bounds kept. Goes from the supervisor, which can resolve them, to the server, which cannot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Live {
    /// Whether requests are recorded; `None` without a trail.
    pub audit_requests: Option<bool>,
    pub rotation: Option<Schedule>,
    pub kms_peers: PeerPolicy,
    pub kms_max_connections: usize,
    pub kms_max_plaintext: usize,
    pub admin_peers: PeerPolicy,
    pub roles: RolePolicy,
    pub log_level: Level,
}

/// One key before and after, spelt as the file spells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    pub key: String,
    pub before: Value,
    pub after: Value,
}

/// What a changed file comes to.
#[derive(Debug, Clone, PartialEq)]
pub enum Judged {
    /// All of it can be taken over.
    Live(Vec<Change>),
    /// These cannot while the daemon runs, and so nothing is.
    NeedsRestart(Vec<Change>),
}

impl Live {
    pub fn of(settings: &Settings) -> Self {
        Self {
            audit_requests: settings.audit.as_ref().map(|audit| audit.level == AuditLevel::Requests),
            rotation: settings.rotation,
            kms_peers: settings.kms.peers.clone(),
            kms_max_connections: settings.kms.max_connections,
            kms_max_plaintext: settings.kms.max_plaintext,
            admin_peers: settings.admin.peers.clone(),
            roles: settings.admin.roles.clone(),
            log_level: settings.log.level,
        }
    }

    /// `settings` with these in place of its own.
    fn put_into(self, settings: &mut Settings) {
        if let (Some(audit), Some(requests)) = (&mut settings.audit, self.audit_requests) {
            audit.level = if requests { AuditLevel::Requests } else { AuditLevel::Admin };
        }
        settings.rotation = self.rotation;
        settings.kms.peers = self.kms_peers;
        settings.kms.max_connections = self.kms_max_connections;
        settings.kms.max_plaintext = self.kms_max_plaintext;
        settings.admin.peers = self.admin_peers;
        settings.admin.roles = self.roles;
        settings.log.level = self.log_level;
    }
}

/// Holds `wanted` against what runs.
pub fn judge(running: &Settings, wanted: &Settings) -> Judged {
    let mut rest = wanted.clone();
    Live::of(running).put_into(&mut rest);
    let changes = changes(running, wanted);
    if rest == *running {
        return Judged::Live(changes);
    }
    // Told by the whole settings and only named by the keys: one that this list forgets is refused all the same.
    let is_live = |change: &Change| LIVE_KEYS.contains(&change.key.as_str()) && !switches_the_trail(change);
    let mut fixed: Vec<Change> = changes.into_iter().filter(|change| !is_live(change)).collect();
    if fixed.is_empty() {
        fixed.push(Change { key: "a setting".into(), before: Value::Null, after: Value::Null });
    }
    Judged::NeedsRestart(fixed)
}

/// A trail is opened when the daemon starts.
fn switches_the_trail(change: &Change) -> bool {
    change.key == "audit.level" && [&change.before, &change.after].iter().any(|level| *level == "off")
}

fn changes(running: &Settings, wanted: &Settings) -> Vec<Change> {
    let (before, after) = (values(running), values(wanted));
    let of = |rows: &[(&str, Value)], key: &str| {
        rows.iter().find(|(name, _)| *name == key).map_or(Value::Null, |(_, value)| value.clone())
    };
    let mut keys: Vec<&str> = before.iter().map(|(key, _)| *key).collect();
    keys.extend(after.iter().map(|(key, _)| *key).filter(|key| !before.iter().any(|(known, _)| known == key)));
    keys.into_iter()
        .map(|key| Change { key: key.to_owned(), before: of(&before, key), after: of(&after, key) })
        .filter(|change| change.before != change.after)
        .collect()
}

impl Change {
    /// `kms.max_plaintext ("4KiB" to "8KiB")`.
    pub fn spelt(&self) -> String {
        format!("{} ({} to {})", self.key, self.before, self.after)
    }
}

/// The live keys that did not change.
pub fn unchanged(changes: &[Change]) -> Vec<&'static str> {
    LIVE_KEYS.iter().copied().filter(|key| changes.iter().all(|change| change.key != *key)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Site, Source};

    fn settings(text: &str) -> Settings {
        let source = Source::from_parts(Some("/etc/keystead/config.toml".into()), format!("node = \"n\"\n{text}"));
        let site = Site { root: "/".into(), uid: 500, credentials: None };
        Settings::from_source(&source, &site).unwrap()
    }

    fn judged(before: &str, after: &str) -> (bool, Vec<String>) {
        let named = |changes: Vec<Change>| changes.into_iter().map(|change| change.key).collect();
        match judge(&settings(before), &settings(after)) {
            Judged::Live(changes) => (true, named(changes)),
            Judged::NeedsRestart(changes) => (false, named(changes)),
        }
    }

    /// One change of each key, so that none is promised that is refused.
    const EACH: &[(&str, &str)] = &[
        ("audit.level", "[audit]\nlevel = \"requests\""),
        ("rotation.every", "[rotation]\nevery = \"90d\"\njitter = \"0s\""),
        ("rotation.jitter", "[rotation]\nevery = \"90d\"\njitter = \"1d\""),
        ("rotation.window", "[rotation]\nevery = \"90d\"\njitter = \"0s\"\nwindow = \"01:00-05:00\""),
        ("kms.allow_uids", "[kms]\nallow_uids = [7]"),
        ("kms.allow_gids", "[kms]\nallow_gids = [7]"),
        ("kms.max_connections", "[kms]\nmax_connections = 9"),
        ("kms.max_plaintext", "[kms]\nmax_plaintext = \"8KiB\""),
        ("admin.allow_uids", "[admin]\nallow_uids = [7]"),
        ("admin.allow_gids", "[admin]\nallow_gids = [7]"),
        ("roles", "[roles]\nviewer = { uids = [7] }"),
        ("log.level", "[log]\nlevel = \"debug\""),
    ];

    #[test]
    fn each_live_key_may_change_and_is_named() {
        assert_eq!(EACH.iter().map(|(key, _)| *key).collect::<Vec<_>>(), LIVE_KEYS);
        for (key, text) in EACH {
            for (before, after) in [("", *text), (*text, "")] {
                let (live, named) = judged(before, after);
                assert!(live && named.contains(&(*key).to_owned()), "{text} {named:?}");
                assert!(named.len() == 1 || key.starts_with("rotation."), "{text} {named:?}");
            }
            assert_eq!(judged(text, text), (true, vec![]), "{text}");
        }
        let all = "[kms]\nallow_uids = [7]\nmax_plaintext = \"8KiB\"";
        let Judged::Live(changes) = judge(&settings(""), &settings(all)) else { panic!() };
        assert_eq!(unchanged(&changes).len(), LIVE_KEYS.len() - 2);
        assert_eq!(changes[1].spelt(), "kms.max_plaintext (\"4KiB\" to \"8KiB\")");
    }

    #[test]
    fn one_key_that_cannot_change_refuses_all_and_is_named_alone() {
        for (key, text) in [
            ("keyring", "keyring = \"other\""),
            ("custody.timeout", "[custody]\ntimeout = \"9s\""),
            ("store.path", "[store]\npath = \"/elsewhere\""),
            ("kms.socket", "[kms]\nsocket = \"/run/other.sock\""),
            ("kms.drain_timeout", "[kms]\ndrain_timeout = \"9s\""),
            ("metrics.listen", "[metrics]\nlisten = \"off\""),
            ("log.format", "[log]\nformat = \"json\""),
            ("sandbox.seccomp", "[sandbox]\nseccomp = false"),
            ("audit.failure", "[audit]\nfailure = \"stop\""),
            ("audit.keep", "[audit]\nkeep = 3"),
            ("audit.path", "[audit]\npath = \"/var/log/keystead\""),
        ] {
            let (live, named) = judged("", &format!("{text}\n[roles]\nviewer = {{ uids = [7] }}"));
            assert!(!live && named.contains(&key.to_owned()) && !named.contains(&"roles".to_owned()), "{named:?}");
        }
    }

    #[test]
    fn trail_is_neither_begun_nor_ended_while_the_daemon_runs() {
        for (before, after) in [("off", "admin"), ("requests", "off"), ("admin", "off")] {
            let level = |level: &str| format!("[audit]\nlevel = \"{level}\"");
            let (live, named) = judged(&level(before), &level(after));
            assert!(!live && named.contains(&"audit.level".to_owned()), "{before} {after} {named:?}");
        }
    }

    #[test]
    fn cloud_profile_is_no_live_change() {
        let upstream = "[upstream]\nkind = \"aws\"\nkey = \"1234abcd-12ab-34cd-56ef-1234567890ab\"\nregion = \"a-b-1\"";
        let (live, named) = judged("", upstream);
        assert!(!live && named.contains(&"upstream.kind".to_owned()), "{named:?}");
    }
}
