//! The settings in force, key by key, with whether the file or a default says so: what `config check` shows.

use serde_json::{Value, json};

use super::error::ConfigError;
use super::raw::Mechanism;
use super::settings::Settings;
use super::source::Source;
use super::units::{show_duration, show_mode, show_size};
use super::upstream::UpstreamTable;
use crate::audit::settings::{AuditSettings, FailurePolicy, Forward, Level};
use crate::custody::settings::{BootPolicy, PinSource, TokenSelector};
use crate::rpc::peer::PeerPolicy;
use crate::rpc::roles::{Action, RolePolicy};
use crate::rpc::socket::SocketSettings;

/// One key and its value, spelt as the file would spell it.
#[derive(Debug, Clone, PartialEq)]
pub struct Effective {
    pub key: &'static str,
    /// `null` for a key that is neither set nor has a default.
    pub value: Value,
    pub origin: Origin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    File,
    Default,
}

impl Origin {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Default => "default",
        }
    }
}

impl Effective {
    /// Every setting, in the order of `docs/configuration.md`. Of two keys that exclude each other only the one in force.
    pub fn list(settings: &Settings, source: &Source) -> Result<Vec<Self>, ConfigError> {
        let set = source.parse()?.keys;
        let rows = values(settings).into_iter().map(|(key, value)| {
            let origin = if set.iter().any(|name| name == key) { Origin::File } else { Origin::Default };
            Self { key, value, origin }
        });
        Ok(rows.collect())
    }

    /// One setting; `None` if there is no such key.
    pub fn value(settings: &Settings, key: &str) -> Option<Value> {
        values(settings).into_iter().find_map(|(name, value)| (name == key).then_some(value))
    }
}

pub(super) fn values(settings: &Settings) -> Vec<(&'static str, Value)> {
    let custody = &settings.custody;
    let kms = &settings.kms;
    let path = |path: &std::path::Path| json!(path.display().to_string());
    let mut rows = vec![
        ("keyring", json!(settings.keyring.as_str())),
        ("node", json!(settings.node.as_str())),
        ("custody.kind", json!(if custody.tpm.is_some() { "tpm" } else { "pkcs11" })),
    ];
    match &custody.tpm {
        Some(tpm) => rows.extend([
            ("custody.tcti", json!(tpm.tcti)),
            match &tpm.auth {
                PinSource::File(file) => ("custody.auth_file", path(file)),
                PinSource::Credential(name) => ("custody.auth_credential", json!(name)),
            },
            ("custody.pcrs", json!(tpm.boot.as_ref().map(spelt))),
            ("custody.boot_signer", json!(tpm.boot.as_ref().map(|boot| boot.signer.display().to_string()))),
            ("custody.boot_series", json!(tpm.boot.as_ref().map(|boot| boot.series))),
            ("custody.approvals", path(&tpm.approvals)),
        ]),
        None => rows.extend([
            ("custody.module", path(&custody.module)),
            match &custody.token {
                TokenSelector::Label(label) => ("custody.token_label", json!(label)),
                TokenSelector::Serial(serial) => ("custody.token_serial", json!(serial)),
            },
            match &custody.pin {
                PinSource::File(file) => ("custody.pin_file", path(file)),
                PinSource::Credential(name) => ("custody.pin_credential", json!(name)),
            },
        ]),
    }
    rows.extend([
        ("custody.mechanism", json!(Mechanism::of(custody.mechanism).as_str())),
        ("custody.sessions", json!(custody.sessions)),
        ("custody.queue", json!(custody.queue)),
        ("custody.timeout", json!(show_duration(custody.timeout))),
        ("custody.grace", json!(settings.custody_grace.map(show_duration))),
        ("custody.probe_interval", json!(show_duration(settings.custody_probe_interval))),
        ("custody.environment", json!(custody.environment)),
        ("custody.state_path", path(&custody.latch_folder)),
        ("store.path", path(&settings.store.path)),
    ]);
    rows.extend(audit(settings.audit.as_ref()));
    let rotation = settings.rotation.as_ref();
    rows.extend([
        ("rotation.every", json!(rotation.map(|schedule| show_duration(schedule.every)))),
        ("rotation.jitter", json!(rotation.map(|schedule| show_duration(schedule.jitter)))),
        ("rotation.window", json!(rotation.and_then(|schedule| schedule.window).map(|window| window.to_string()))),
    ]);
    rows.extend(socket(
        &kms.socket,
        &kms.peers,
        ["kms.socket", "kms.mode", "kms.group", "kms.allow_uids", "kms.allow_gids"],
    ));
    rows.extend([
        ("kms.max_connections", json!(kms.max_connections)),
        ("kms.max_plaintext", json!(show_size(kms.max_plaintext as u64))),
        ("kms.drain_timeout", json!(show_duration(kms.drain_timeout))),
    ]);
    rows.extend(socket(
        &settings.admin.socket,
        &settings.admin.peers,
        ["admin.socket", "admin.mode", "admin.group", "admin.allow_uids", "admin.allow_gids"],
    ));
    rows.push(("roles", roles(&settings.admin.roles)));
    rows.extend([
        ("admin.reflection", json!(settings.admin.reflection)),
        ("deletion.min_wait", json!(show_duration(settings.min_deletion_wait))),
        ("metrics.listen", settings.metrics.map_or(json!("off"), |address| json!(address.to_string()))),
        ("log.level", json!(settings.log.level.as_str())),
        ("log.format", json!(settings.log.format.as_str())),
        ("sandbox.landlock", json!(settings.sandbox.landlock)),
        ("sandbox.seccomp", json!(settings.sandbox.seccomp)),
        ("process.server_user", json!(settings.users.as_ref().map(|users| users.server.uid))),
        ("process.custodian_user", json!(settings.users.as_ref().map(|users| users.custodian.uid))),
    ]);
    rows.extend(settings.upstream.iter().flat_map(upstream));
    rows
}

fn spelt(boot: &BootPolicy) -> String {
    let numbers: Vec<String> = boot.pcrs.iter().map(u8::to_string).collect();
    format!("sha256:{}", numbers.join(","))
}

/// Of a trail that is switched off only that.
fn audit(audit: Option<&AuditSettings>) -> Vec<(&'static str, Value)> {
    let Some(audit) = audit else { return vec![("audit.level", json!("off"))] };
    let level = match audit.level {
        Level::Admin => "admin",
        Level::Requests => "requests",
    };
    let failure = match audit.failure {
        FailurePolicy::Stop => "stop",
        FailurePolicy::ContinueWithAlarm => "continue-with-alarm",
    };
    let forward = match audit.forward {
        None => "off",
        Some(Forward::Journald) => "journald",
        Some(Forward::Syslog) => "syslog",
    };
    vec![
        ("audit.path", json!(audit.folder.display().to_string())),
        ("audit.level", json!(level)),
        ("audit.failure", json!(failure)),
        ("audit.max_file", json!(show_size(audit.max_bytes))),
        ("audit.max_age", json!(show_duration(audit.max_age))),
        ("audit.keep", json!(audit.keep)),
        ("audit.forward", json!(forward)),
    ]
}

fn upstream(table: &UpstreamTable) -> Vec<(&'static str, Value)> {
    let path = |path: &Option<std::path::PathBuf>| json!(path.as_ref().map(|path| path.display().to_string()));
    vec![
        ("upstream.kind", json!(table.kind.as_str())),
        ("upstream.key", json!(table.key)),
        ("upstream.region", json!(table.region)),
        ("upstream.network", json!(table.network.as_str())),
        ("upstream.endpoint", json!(table.endpoint)),
        ("upstream.token_endpoint", json!(table.token_endpoint)),
        ("upstream.instance", json!(table.instance)),
        ("upstream.ca_file", path(&table.ca_file)),
        ("upstream.proxy", json!(table.proxy)),
        ("upstream.no_proxy", json!(table.no_proxy)),
        ("upstream.credentials", json!(table.credentials.as_str())),
        ("upstream.credentials_file", path(&table.credentials_file)),
        ("upstream.connect_timeout", json!(show_duration(table.connect_timeout))),
        ("upstream.timeout", json!(show_duration(table.timeout))),
        ("upstream.renew_every", json!(show_duration(table.renew_every))),
        ("upstream.lease", json!(show_duration(table.lease))),
        ("upstream.probe_interval", json!(show_duration(table.probe_interval))),
        ("upstream.on_key_version", json!(table.on_key_version.as_str())),
        ("upstream.daily_call_budget", json!(table.daily_call_budget)),
        ("upstream.price.per_10k_calls", json!(table.price.per_10k_calls)),
        ("upstream.price.currency", json!(table.price.currency)),
        ("upstream.grant_key", path(&table.grant_key)),
    ]
}

/// The whole table; `null` where whoever is admitted may do everything.
fn roles(policy: &RolePolicy) -> Value {
    if *policy == RolePolicy::default() {
        return Value::Null;
    }
    let mut table = serde_json::Map::new();
    for (role, members) in policy.grants.iter().flatten() {
        table.insert(role.name().to_owned(), json!({"uids": members.uids, "gids": members.gids}));
    }
    let denials = policy.denials.iter().map(|(rights, members)| {
        let actions: Vec<&str> =
            Action::ALL.into_iter().filter(|action| rights.allow(*action)).map(Action::name).collect();
        json!({"actions": actions, "uids": members.uids, "gids": members.gids})
    });
    if !policy.denials.is_empty() {
        table.insert("deny".to_owned(), denials.collect());
    }
    Value::Object(table)
}

fn socket(socket: &SocketSettings, peers: &PeerPolicy, keys: [&'static str; 5]) -> [(&'static str, Value); 5] {
    let values = [
        json!(socket.path.display().to_string()),
        json!(show_mode(socket.mode)),
        json!(socket.group.map(rustix::process::Gid::as_raw)),
        json!(peers.uids),
        json!(peers.gids),
    ];
    let mut values = values.into_iter();
    keys.map(|key| (key, values.next().unwrap_or_default()))
}
