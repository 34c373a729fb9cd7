//! The settings that each room gets: complete, absolute, resolved, within their bounds. Whoever holds one checks nothing again.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use keystead_core::schedule::Schedule;
use keystead_core::waiting_period::MAX_WAIT;
use keystead_core::{KeyringId, NodeId};
use toml::Spanned;

use super::builder::{Builder, DAY};
use super::error::ConfigError;
use super::raw::{self, Account, Listen, Raw};
use super::site::Site;
use super::source::Source;
use super::upstream::UpstreamTable;
use super::{accounts, node};
use crate::audit::settings::AuditSettings;
use crate::custody::settings::CustodySettings;
use crate::process::users::{User, Users};
use crate::rpc::peer::PeerPolicy;
use crate::rpc::roles::RolePolicy;
use crate::rpc::socket::SocketSettings;
use crate::telemetry::log::LogSettings;

#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub keyring: KeyringId,
    pub node: NodeId,
    pub custody: CustodySettings,
    /// How long custody may be away before loaded keys are given up; `None` keeps them for ever.
    pub custody_grace: Option<Duration>,
    /// How often the token is asked whether it is well while nothing is wrong.
    pub custody_probe_interval: Duration,
    pub store: StoreSettings,
    /// `None` when switched off.
    pub audit: Option<AuditSettings>,
    /// `None`: by hand only.
    pub rotation: Option<Schedule>,
    pub kms: KmsSettings,
    pub admin: AdminSettings,
    /// No generation is destroyed sooner after it was scheduled.
    pub min_deletion_wait: Duration,
    /// Loopback only; `None` when metrics are off.
    pub metrics: Option<SocketAddr>,
    pub log: LogSettings,
    pub sandbox: SandboxSettings,
    /// `None`: server and custodian run as whoever starts the daemon.
    pub users: Option<Users>,
    /// The cloud profile; `None` is the local one, without any network.
    pub upstream: Option<UpstreamTable>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSettings {
    /// Folder of `keyring.store` and its lock.
    pub path: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KmsSettings {
    pub socket: SocketSettings,
    pub peers: PeerPolicy,
    pub max_connections: usize,
    /// Bytes one Encrypt may carry.
    pub max_plaintext: usize,
    /// How long requests in progress may take to finish at shutdown.
    pub drain_timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminSettings {
    pub socket: SocketSettings,
    pub peers: PeerPolicy,
    pub roles: RolePolicy,
    /// Whether clients may ask what the interface looks like.
    pub reflection: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SandboxSettings {
    pub landlock: bool,
    pub seccomp: bool,
}

impl Settings {
    /// The settings of `source` on `site`. Reads small system files (accounts, machine ID); opens nothing of ours.
    ///
    /// # Errors
    /// `Invalid` with place, key and remedy for the first value that cannot be; `NoNode` if the node has no name.
    pub fn from_source(source: &Source, site: &Site) -> Result<Self, ConfigError> {
        let document = source.parse()?;
        source.with_place(|place| {
            Builder { place, folder: source.folder(), site, owner: site.uid }.settings(document.raw)
        })
    }

    /// The audit trail's folder, where it is not within the store's.
    pub fn trail_apart(&self) -> Option<&Path> {
        let folder = self.audit.as_ref().map(|audit| audit.folder.as_path())?;
        (!folder.starts_with(&self.store.path)).then_some(folder)
    }

    /// Reads and resolves the configuration of this machine: [`Source::find`], then [`Settings::from_source`].
    pub fn load(named: Option<&Path>) -> Result<(Source, Self), ConfigError> {
        let source = Source::find(named)?;
        let settings = Self::from_source(&source, &Site::this_machine())?;
        Ok((source, settings))
    }
}

impl Builder<'_> {
    fn settings(mut self, raw: Raw) -> Result<Settings, ConfigError> {
        let users = self.users(raw.process)?;
        if users.as_ref().is_some_and(|users| users.custodian.uid == self.owner) {
            self.owner = 0;
        }
        let store = StoreSettings { path: self.path("store.path", raw.store.path, "/var/lib/keystead")? };
        let admin_span = raw.admin.socket.as_ref().map(Spanned::span);
        let kms_span = raw.kms.socket.as_ref().map(Spanned::span);
        let audit_span = raw.audit.path.as_ref().map(Spanned::span);
        let settings = Settings {
            keyring: match raw.keyring {
                Some(keyring) => keyring,
                None => default_keyring(),
            },
            node: match raw.node {
                Some(node) => node,
                None => node::derive(self.site)?,
            },
            custody_grace: self.grace(&raw.custody)?,
            custody_probe_interval: self.probe_interval(&raw.custody)?,
            audit: self.audit(raw.audit, &store)?,
            rotation: self.rotation(raw.rotation)?,
            custody: self.custody(raw.custody, &store, users.is_some())?,
            store,
            kms: self.kms(raw.kms)?,
            admin: self.admin(raw.admin, raw.roles)?,
            min_deletion_wait: self.duration(
                "deletion.min_wait",
                raw.deletion.min_wait.map(|spanned| (spanned.span(), spanned.into_inner().0)),
                Duration::from_secs(DAY),
                Duration::from_secs(1)..=MAX_WAIT,
            )?,
            metrics: match raw.metrics.listen {
                None => Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9464))),
                Some(Listen::Off) => None,
                Some(Listen::Loopback(address)) => Some(address),
            },
            log: LogSettings { level: raw.log.level.unwrap_or_default(), format: raw.log.format.unwrap_or_default() },
            sandbox: SandboxSettings {
                landlock: raw.sandbox.landlock.unwrap_or(true),
                seccomp: raw.sandbox.seccomp.unwrap_or(true),
            },
            users,
            upstream: raw
                .upstream
                .map(|table| {
                    let span = table.span();
                    self.upstream(table.into_inner(), span)
                })
                .transpose()?,
        };
        if let (Some(audit), Some(span)) = (&settings.audit, audit_span) {
            self.apart(&audit.folder, &settings, span)?;
        }
        if settings.kms.socket.path == settings.admin.socket.path {
            let (span, key) = match (admin_span, kms_span) {
                (Some(span), _) => (span, "admin.socket"),
                (None, kms) => (kms.unwrap_or(0..0), "kms.socket"),
            };
            return Err(self.place.fault(span, key, "kms.socket and admin.socket are the same path", None));
        }
        Ok(settings)
    }

    fn users(&self, raw: raw::Process) -> Result<Option<Users>, ConfigError> {
        let (server, custodian) = match (raw.server_user, raw.custodian_user) {
            (None, None) => return Ok(None),
            (Some(server), Some(custodian)) => (server, custodian),
            (Some(alone), None) | (None, Some(alone)) => {
                let help = "set both, or neither: both processes then run as whoever starts the daemon";
                return Err(self.place.fault(
                    alone.span(),
                    "process",
                    "names the user of one process only",
                    Some(help),
                ));
            }
        };
        let span = custodian.span();
        let users = Users {
            server: User { groups: Vec::new(), ..self.user("process.server_user", server)? },
            custodian: self.user("process.custodian_user", custodian)?,
        };
        if users.server.uid == users.custodian.uid {
            let problem = "is the server's user, too";
            return Err(self.place.fault(span, "process.custodian_user", problem, Some("each needs one of its own")));
        }
        Ok(Some(users))
    }

    fn user(&self, key: &str, given: Spanned<Account>) -> Result<User, ConfigError> {
        let user = accounts::user(self.site, given.get_ref()).ok_or_else(|| {
            self.place.fault(given.span(), key, "is no local user", Some("create it, or write its number"))
        })?;
        match user.uid {
            0 => Err(self.place.fault(given.span(), key, "is root", Some("give the process a user of its own"))),
            _ => Ok(user),
        }
    }

    fn kms(&self, raw: raw::Kms) -> Result<KmsSettings, ConfigError> {
        Ok(KmsSettings {
            socket: SocketSettings {
                path: self.socket("kms.socket", raw.socket, "/run/keystead/kms.sock")?,
                mode: raw.mode.map_or(0o600, |mode| mode.0),
                group: self.group("kms.group", raw.group)?,
            },
            peers: PeerPolicy {
                uids: self.uids("kms.allow_uids", raw.allow_uids, &[self.owner, 0])?,
                gids: self.gids("kms.allow_gids", raw.allow_gids)?,
            },
            max_connections: self.count("kms.max_connections", raw.max_connections, 64, 1..=16_384)?,
            max_plaintext: self.size("kms.max_plaintext", raw.max_plaintext, 4096, 32..=1 << 20)?,
            drain_timeout: self.duration(
                "kms.drain_timeout",
                raw.drain_timeout.map(|spanned| (spanned.span(), spanned.into_inner().0)),
                Duration::from_secs(10),
                Duration::ZERO..=Duration::from_secs(600),
            )?,
        })
    }

    fn admin(&self, raw: raw::Admin, roles: Option<raw::Roles>) -> Result<AdminSettings, ConfigError> {
        Ok(AdminSettings {
            socket: SocketSettings {
                path: self.socket("admin.socket", raw.socket, "/run/keystead/admin.sock")?,
                mode: raw.mode.map_or(0o600, |mode| mode.0),
                group: self.group("admin.group", raw.group)?,
            },
            peers: PeerPolicy {
                uids: self.uids("admin.allow_uids", raw.allow_uids, &[self.owner])?,
                gids: self.gids("admin.allow_gids", raw.allow_gids)?,
            },
            roles: self.roles(roles)?,
            reflection: raw.reflection.unwrap_or(false),
        })
    }
}

fn default_keyring() -> KeyringId {
    // Proven by `defaults_are_those_of_an_air_gapped_softhsm_site`: the text is a constant within the alphabet.
    "default".parse().expect("a constant that is a keyring name")
}

#[cfg(test)]
mod tests;
