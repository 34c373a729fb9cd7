//! The file's schema, key by key, as serde reads it. Nothing is resolved here: a key left out is `None`, and whoever wants
//! a default or another file looks in [`super::settings`].
//!
//! `Spanned` marks the values that are judged together with others, or with the machine, and so need their place kept.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use keystead_core::{KeyringId, NodeId};
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};
use toml::Spanned;

use super::units::{Mode, Size, Span};
use super::upstream::RawUpstream;
use crate::custody::settings::MechanismChoice;
use crate::telemetry::log::{Format, Level};

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Raw {
    pub keyring: Option<KeyringId>,
    pub node: Option<NodeId>,
    pub custody: Custody,
    pub store: Store,
    pub audit: Audit,
    pub rotation: Rotation,
    pub kms: Kms,
    pub admin: Admin,
    /// Whether the table is there at all makes a difference.
    pub roles: Option<Roles>,
    pub deletion: Deletion,
    pub metrics: Metrics,
    pub log: Log,
    pub sandbox: Sandbox,
    pub process: Process,
    pub upstream: Option<Spanned<RawUpstream>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Custody {
    pub kind: Option<Kind>,
    pub module: Option<Spanned<PathBuf>>,
    pub token_label: Option<Spanned<String>>,
    pub token_serial: Option<Spanned<String>>,
    pub pin_file: Option<Spanned<PathBuf>>,
    pub pin_credential: Option<Spanned<String>>,
    pub mechanism: Option<Mechanism>,
    pub sessions: Option<Spanned<i64>>,
    pub queue: Option<Spanned<i64>>,
    pub timeout: Option<Spanned<Span>>,
    pub grace: Option<Spanned<Span>>,
    pub probe_interval: Option<Spanned<Span>>,
    pub environment: Option<Spanned<BTreeMap<String, String>>>,
    pub tcti: Option<Spanned<String>>,
    pub auth_file: Option<Spanned<PathBuf>>,
    pub auth_credential: Option<Spanned<String>>,
    pub pcrs: Option<Spanned<String>>,
    pub boot_signer: Option<Spanned<PathBuf>>,
    pub boot_series: Option<Spanned<i64>>,
    pub approvals: Option<Spanned<PathBuf>>,
    pub state_path: Option<Spanned<PathBuf>>,
}

/// Which custodian holds the CMK.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Pkcs11,
    Tpm,
}

/// How new CMKs wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mechanism {
    Auto,
    AesGcm,
    // serde's kebab-case does not put a hyphen before a digit; the names are those of the admin API.
    #[serde(rename = "ecdh-p256")]
    EcdhP256,
    RsaOaep,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    pub path: Option<Spanned<PathBuf>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Audit {
    pub path: Option<Spanned<PathBuf>>,
    pub level: Option<AuditLevel>,
    pub failure: Option<AuditFailure>,
    pub max_file: Option<Spanned<Size>>,
    pub max_age: Option<Spanned<Span>>,
    pub keep: Option<Spanned<i64>>,
    pub forward: Option<AuditForward>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuditLevel {
    Off,
    Admin,
    Requests,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuditFailure {
    Stop,
    ContinueWithAlarm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuditForward {
    Off,
    Journald,
    Syslog,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rotation {
    pub every: Option<Spanned<Span>>,
    pub jitter: Option<Spanned<Span>>,
    pub window: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kms {
    pub socket: Option<Spanned<PathBuf>>,
    pub mode: Option<Mode>,
    pub group: Option<Spanned<Account>>,
    pub allow_uids: Option<Vec<Spanned<Account>>>,
    pub allow_gids: Option<Vec<Spanned<Account>>>,
    pub max_connections: Option<Spanned<i64>>,
    pub max_plaintext: Option<Spanned<Size>>,
    pub drain_timeout: Option<Spanned<Span>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    pub socket: Option<Spanned<PathBuf>>,
    pub mode: Option<Mode>,
    pub group: Option<Spanned<Account>>,
    pub allow_uids: Option<Vec<Spanned<Account>>>,
    pub allow_gids: Option<Vec<Spanned<Account>>>,
    pub reflection: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Roles {
    pub viewer: Option<Members>,
    pub operator: Option<Members>,
    pub crypto_admin: Option<Members>,
    pub auditor: Option<Members>,
    pub deny: Vec<Denial>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Members {
    pub uids: Vec<Spanned<Account>>,
    pub gids: Vec<Spanned<Account>>,
}

#[derive(Debug, Deserialize)]
#[serde(from = "RawDenial")]
pub struct Denial {
    pub actions: Vec<Spanned<String>>,
    pub members: Members,
}

/// As it is written: serde cannot flatten and refuse unknown keys at once.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDenial {
    actions: Vec<Spanned<String>>,
    #[serde(default)]
    uids: Vec<Spanned<Account>>,
    #[serde(default)]
    gids: Vec<Spanned<Account>>,
}

impl From<RawDenial> for Denial {
    fn from(RawDenial { actions, uids, gids }: RawDenial) -> Self {
        Self { actions, members: Members { uids, gids } }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Deletion {
    pub min_wait: Option<Spanned<Span>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    pub listen: Option<Listen>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    pub level: Option<Level>,
    pub format: Option<Format>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sandbox {
    pub landlock: Option<bool>,
    pub seccomp: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Process {
    pub server_user: Option<Spanned<Account>>,
    pub custodian_user: Option<Spanned<Account>>,
}

/// A user or group, by number or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    Id(u32),
    Name(String),
}

/// Where metrics are served: nowhere, or on an address that only this machine reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    Off,
    Loopback(SocketAddr),
}

impl Mechanism {
    pub fn of(choice: MechanismChoice) -> Self {
        match choice {
            MechanismChoice::Auto => Self::Auto,
            MechanismChoice::AesGcm => Self::AesGcm,
            MechanismChoice::EcdhP256 => Self::EcdhP256,
            MechanismChoice::RsaOaep => Self::RsaOaep,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::AesGcm => "aes-gcm",
            Self::EcdhP256 => "ecdh-p256",
            Self::RsaOaep => "rsa-oaep",
        }
    }
}

impl From<Mechanism> for MechanismChoice {
    fn from(mechanism: Mechanism) -> Self {
        match mechanism {
            Mechanism::Auto => Self::Auto,
            Mechanism::AesGcm => Self::AesGcm,
            Mechanism::EcdhP256 => Self::EcdhP256,
            Mechanism::RsaOaep => Self::RsaOaep,
        }
    }
}

impl<'de> Deserialize<'de> for Account {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AccountVisitor;
        impl Visitor<'_> for AccountVisitor {
            type Value = Account;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name or a number")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Account, E> {
                // The largest value means "no change" to chown, so it names nobody.
                match u32::try_from(number) {
                    Ok(id) if id != u32::MAX => Ok(Account::Id(id)),
                    _ => Err(E::custom("must lie between 0 and 4294967294")),
                }
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Account, E> {
                Ok(Account::Name(name.to_owned()))
            }
        }
        deserializer.deserialize_any(AccountVisitor)
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "off" {
            return Ok(Self::Off);
        }
        let address: SocketAddr = text
            .parse()
            .map_err(|_| de::Error::custom("must be an address with a port, as \"127.0.0.1:9464\", or \"off\""))?;
        if !address.ip().is_loopback() {
            // Metrics name key IDs and have no access control.
            return Err(de::Error::custom("must be a loopback address, as \"127.0.0.1:9464\" or \"[::1]:9464\""));
        }
        Ok(Self::Loopback(address))
    }
}
