//! The settings that each room gets: complete, absolute, resolved, within their bounds. Whoever holds one checks nothing again.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keystead_core::schedule::Schedule;
use keystead_core::waiting_period::MAX_WAIT;
use keystead_core::{KeyringId, NodeId};
use rustix::process::Gid;
use toml::Spanned;

use super::error::{ConfigError, Place};
use super::raw::{self, Account, AuditFailure, AuditForward, AuditLevel, Kind, Listen, Raw};
use super::site::{Site, resolve};
use super::source::Source;
use super::units::{show_duration, show_size};
use super::upstream::UpstreamTable;
use super::{accounts, node};
use crate::audit::settings::{self as audit, AuditSettings, FailurePolicy, Forward};
use crate::custody::settings::{BootPolicy, CustodySettings, MechanismChoice, PinSource, TokenSelector, TpmSettings};
use crate::process::users::{User, Users};
use crate::rpc::peer::PeerPolicy;
use crate::rpc::roles::RolePolicy;
use crate::rpc::socket::SocketSettings;
use crate::telemetry::log::LogSettings;

/// In seconds.
const DAY: u64 = 24 * 3600;

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

/// What every value is judged with.
pub(super) struct Builder<'a> {
    pub(super) place: &'a Place<'a>,
    folder: &'a Path,
    site: &'a Site,
    /// Who is let in unless the file says otherwise: whoever runs the daemon, except the custodian's user.
    owner: u32,
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

    fn grace(&self, raw: &raw::Custody) -> Result<Option<Duration>, ConfigError> {
        let Some(grace) = &raw.grace else { return Ok(None) };
        let bounds = Duration::from_secs(1)..=Duration::from_secs(366 * 24 * 3600);
        self.duration("custody.grace", Some((grace.span(), grace.get_ref().0)), Duration::ZERO, bounds).map(Some)
    }

    fn probe_interval(&self, raw: &raw::Custody) -> Result<Duration, ConfigError> {
        let value = raw.probe_interval.as_ref().map(|interval| (interval.span(), interval.get_ref().0));
        let bounds = Duration::from_secs(1)..=Duration::from_secs(3600);
        self.duration("custody.probe_interval", value, Duration::from_secs(30), bounds)
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

    fn custody(
        &self,
        raw: raw::Custody,
        store: &StoreSettings,
        separate: bool,
    ) -> Result<CustodySettings, ConfigError> {
        let kind = raw.kind.unwrap_or(Kind::Pkcs11);
        self.refuse_keys_of_the_other_kind(kind, &raw)?;
        let (tpm, defaults) = match kind {
            Kind::Pkcs11 => (None, PKCS11_DEFAULTS),
            Kind::Tpm => (Some(self.tpm(&raw)?), TPM_DEFAULTS),
        };
        let mut environment = self.environment(raw.environment)?;
        if tpm.is_some() {
            // Errors come back as codes; the TSS would besides print lines of its own into the daemon's log.
            environment.entry("TSS2_LOG".into()).or_insert_with(|| "all+NONE".into());
        }
        Ok(CustodySettings {
            module: match raw.module {
                Some(module) => self.path("custody.module", Some(module), "")?,
                None => softhsm_module(self.site),
            },
            token: self.token(raw.token_label, raw.token_serial)?,
            pin: match &tpm {
                Some(tpm) => tpm.auth.clone(),
                None => self.pin(raw.pin_file, raw.pin_credential)?,
            },
            mechanism: raw.mechanism.map_or(MechanismChoice::Auto, MechanismChoice::from),
            sessions: self.count("custody.sessions", raw.sessions, defaults.sessions, 1..=64)?,
            queue: self.count("custody.queue", raw.queue, 64, 1..=65_536)?,
            timeout: self.duration(
                "custody.timeout",
                raw.timeout.map(|spanned| (spanned.span(), spanned.into_inner().0)),
                defaults.timeout,
                Duration::from_millis(100)..=Duration::from_secs(300),
            )?,
            environment,
            latch_folder: match raw.state_path {
                Some(path) => self.path("custody.state_path", Some(path), "")?,
                None if separate => beside(&store.path),
                // The one folder that is ours to write to on every site.
                None => store.path.clone(),
            },
            tpm,
        })
    }

    /// A key that does nothing would be believed to do something.
    fn refuse_keys_of_the_other_kind(&self, kind: Kind, raw: &raw::Custody) -> Result<(), ConfigError> {
        fn span<T>(key: &Option<Spanned<T>>) -> Option<std::ops::Range<usize>> {
            key.as_ref().map(Spanned::span)
        }
        let (other, keys) = match kind {
            Kind::Pkcs11 => (
                "tpm",
                vec![
                    ("custody.tcti", span(&raw.tcti)),
                    ("custody.auth_file", span(&raw.auth_file)),
                    ("custody.auth_credential", span(&raw.auth_credential)),
                    ("custody.pcrs", span(&raw.pcrs)),
                    ("custody.boot_signer", span(&raw.boot_signer)),
                    ("custody.boot_series", span(&raw.boot_series)),
                    ("custody.approvals", span(&raw.approvals)),
                ],
            ),
            Kind::Tpm => (
                "pkcs11",
                vec![
                    ("custody.module", span(&raw.module)),
                    ("custody.token_label", span(&raw.token_label)),
                    ("custody.token_serial", span(&raw.token_serial)),
                    ("custody.pin_file", span(&raw.pin_file)),
                    ("custody.pin_credential", span(&raw.pin_credential)),
                ],
            ),
        };
        for (key, span) in keys {
            if let Some(span) = span {
                let problem = format_args!("is a key of kind = \"{other}\"");
                return Err(self.place.fault(span, key, problem, Some("take it out, or set custody.kind")));
            }
        }
        Ok(())
    }

    fn tpm(&self, raw: &raw::Custody) -> Result<TpmSettings, ConfigError> {
        let tcti = match raw.tcti.clone() {
            None => "device:/dev/tpmrm0".to_owned(),
            Some(tcti) => {
                let span = tcti.span();
                let text = self.short("custody.tcti", tcti, 256)?;
                if !["device:", "swtpm:", "mssim:", "tabrmd:"].iter().any(|kind| text.starts_with(kind)) {
                    let help = "as \"device:/dev/tpmrm0\" or \"swtpm:host=127.0.0.1,port=2321\"";
                    return Err(self.place.fault(span, "custody.tcti", "names no TPM", Some(help)));
                }
                text
            }
        };
        let keys = ["custody.auth_file", "custody.auth_credential"];
        let (file, credential) = (raw.auth_file.clone(), raw.auth_credential.clone());
        let auth = self.secret_source(file, credential, keys, "/etc/keystead/tpm-auth")?;
        let approvals = self.path("custody.approvals", raw.approvals.clone(), "/etc/keystead/approvals")?;
        Ok(TpmSettings { tcti, auth, approvals, boot: self.boot(raw)? })
    }

    fn boot(&self, raw: &raw::Custody) -> Result<Option<BootPolicy>, ConfigError> {
        let Some(pcrs) = &raw.pcrs else {
            let lone = [
                ("custody.boot_signer", raw.boot_signer.as_ref().map(Spanned::span)),
                ("custody.boot_series", raw.boot_series.as_ref().map(Spanned::span)),
            ];
            return match lone.into_iter().find_map(|(key, span)| Some((key, span?))) {
                None => Ok(None),
                Some((key, span)) => {
                    Err(self.place.fault(span, key, "does nothing without pcrs", Some("set custody.pcrs, too")))
                }
            };
        };
        let list = pcrs.get_ref().strip_prefix("sha256:").unwrap_or_default();
        let numbers: Vec<u8> = list.split(',').map_while(|number| number.parse().ok()).collect();
        let sound = numbers.is_sorted_by(|a, b| a < b) && numbers.iter().all(|&number| number < 24);
        if numbers.is_empty() || !sound || numbers.len() != list.split(',').count() {
            let help = "ascending numbers up to 23, as \"sha256:0,2,4,7\"";
            return Err(self.place.fault(pcrs.span(), "custody.pcrs", "is no list of PCRs", Some(help)));
        }
        let Some(signer) = raw.boot_signer.clone() else {
            let help = "name the public key that approves boots: without one, no update could ever be approved";
            return Err(self.place.fault(pcrs.span(), "custody.pcrs", "needs boot_signer, too", Some(help)));
        };
        let series = self.count("custody.boot_series", raw.boot_series.clone(), 1, 1..=1_000_000_000)?;
        let signer = self.path("custody.boot_signer", Some(signer), "")?;
        Ok(Some(BootPolicy { pcrs: numbers, signer, series: series as u64 }))
    }

    fn token(
        &self,
        label: Option<Spanned<String>>,
        serial: Option<Spanned<String>>,
    ) -> Result<TokenSelector, ConfigError> {
        match (label, serial) {
            (Some(_), Some(serial)) => Err(self.place.fault(
                serial.span(),
                "custody.token_serial",
                "names the token a second time",
                Some("set either token_label or token_serial"),
            )),
            // CK_TOKEN_INFO has 32 bytes for the label and 16 for the serial number, blank-padded.
            (Some(label), None) => self.short("custody.token_label", label, 32).map(TokenSelector::Label),
            (None, Some(serial)) => self.short("custody.token_serial", serial, 16).map(TokenSelector::Serial),
            (None, None) => Ok(TokenSelector::Label("keystead".into())),
        }
    }

    fn pin(
        &self,
        file: Option<Spanned<PathBuf>>,
        credential: Option<Spanned<String>>,
    ) -> Result<PinSource, ConfigError> {
        self.secret_source(file, credential, ["custody.pin_file", "custody.pin_credential"], "/etc/keystead/pin")
    }

    /// A file or a systemd credential, by one of two keys.
    fn secret_source(
        &self,
        file: Option<Spanned<PathBuf>>,
        credential: Option<Spanned<String>>,
        [file_key, credential_key]: [&str; 2],
        default: &str,
    ) -> Result<PinSource, ConfigError> {
        match (file, credential) {
            (Some(_), Some(credential)) => {
                let name = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
                let help = format!("set either {} or {}", name(file_key), name(credential_key));
                let problem = "names the source a second time";
                Err(self.place.fault(credential.span(), credential_key, problem, Some(&help)))
            }
            (None, Some(credential)) => {
                let span = credential.span();
                let name = self.short(credential_key, credential, 255)?;
                if name.contains('/') || name == "." || name == ".." {
                    let problem = format_args!("{name:?} is not the name of a credential");
                    return Err(self.place.fault(span, credential_key, problem, Some("a name has no `/`")));
                }
                Ok(PinSource::Credential(name))
            }
            (file, None) => self.path(file_key, file, default).map(PinSource::File),
        }
    }

    fn environment(
        &self,
        raw: Option<Spanned<BTreeMap<String, String>>>,
    ) -> Result<BTreeMap<String, String>, ConfigError> {
        let Some(raw) = raw else { return Ok(BTreeMap::new()) };
        let span = raw.span();
        let environment = raw.into_inner();
        for (name, value) in &environment {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                let problem = format_args!("{name:?} cannot be an environment variable");
                return Err(self.place.fault(span, "custody.environment", problem, None));
            }
        }
        Ok(environment)
    }

    fn audit(&self, raw: raw::Audit, store: &StoreSettings) -> Result<Option<AuditSettings>, ConfigError> {
        let folder = match raw.path {
            Some(given) => self.path("audit.path", Some(given), "")?,
            None => store.path.join("audit"),
        };
        let level = match raw.level.unwrap_or(AuditLevel::Admin) {
            AuditLevel::Off => None,
            AuditLevel::Admin => Some(audit::Level::Admin),
            AuditLevel::Requests => Some(audit::Level::Requests),
        };
        let max_file = self.size("audit.max_file", raw.max_file, 16 << 20, 64 << 10..=1 << 30)?;
        let max_age = self.duration(
            "audit.max_age",
            raw.max_age.map(|spanned| (spanned.span(), spanned.into_inner().0)),
            Duration::from_secs(30 * DAY),
            Duration::from_secs(60)..=Duration::from_secs(3660 * DAY),
        )?;
        let keep = self.count("audit.keep", raw.keep, 12, 1..=10_000)?;
        Ok(level.map(|level| AuditSettings {
            folder,
            level,
            failure: match raw.failure.unwrap_or(AuditFailure::ContinueWithAlarm) {
                AuditFailure::Stop => FailurePolicy::Stop,
                AuditFailure::ContinueWithAlarm => FailurePolicy::ContinueWithAlarm,
            },
            max_bytes: max_file as u64,
            max_age,
            keep,
            forward: match raw.forward.unwrap_or(AuditForward::Off) {
                AuditForward::Off => None,
                AuditForward::Journald => Some(Forward::Journald),
                AuditForward::Syslog => Some(Forward::Syslog),
            },
        }))
    }

    /// The server may write all of the trail's folder: what else is ours lies elsewhere.
    fn apart(&self, trail: &Path, settings: &Settings, span: std::ops::Range<usize>) -> Result<(), ConfigError> {
        let secret = match &settings.custody.pin {
            PinSource::File(file) => Some(file.as_path()),
            PinSource::Credential(_) => None,
        };
        let others = [
            ("the store's folder", Some(settings.store.path.as_path())),
            ("the custodian's notes", settings.users.as_ref().map(|_| settings.custody.latch_folder.as_path())),
            ("the file with the PIN or auth value", secret),
        ];
        match others.iter().find(|(_, path)| path.is_some_and(|path| path.starts_with(trail))) {
            None => Ok(()),
            Some((what, _)) => {
                let problem = format_args!("holds {what}, too");
                let help = "give the trail a folder of its own, as \"/var/log/keystead\"";
                Err(self.place.fault(span, "audit.path", problem, Some(help)))
            }
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

    pub(super) fn path(
        &self,
        key: &str,
        given: Option<Spanned<PathBuf>>,
        default: &str,
    ) -> Result<PathBuf, ConfigError> {
        let Some(given) = given else { return Ok(PathBuf::from(default)) };
        let bytes = given.get_ref().as_os_str().as_bytes();
        if bytes.is_empty() || bytes.contains(&0) {
            return Err(self.place.fault(given.span(), key, "is not a path", None));
        }
        Ok(resolve(self.folder, given.get_ref()))
    }

    fn socket(&self, key: &str, given: Option<Spanned<PathBuf>>, default: &str) -> Result<PathBuf, ConfigError> {
        let span = given.as_ref().map_or(0..0, Spanned::span);
        let is_abstract = given.as_ref().is_some_and(|path| path.get_ref().as_os_str().as_bytes().starts_with(b"@"));
        if is_abstract {
            let help = "an abstract socket has no owner and no mode; give the path of a file";
            return Err(self.place.fault(span, key, "is an abstract socket", Some(help)));
        }
        let path = self.path(key, given, default)?;
        let length = path.as_os_str().len();
        // sun_path holds 108 bytes with the final NUL (unix(7)).
        if length > 107 {
            let problem = format_args!("is {length} bytes long as an absolute path; a unix socket may have 107");
            return Err(self.place.fault(span, key, problem, None));
        }
        Ok(path)
    }

    pub(super) fn short(&self, key: &str, given: Spanned<String>, longest: usize) -> Result<String, ConfigError> {
        let text = given.get_ref();
        if text.is_empty() || text.len() > longest || text.chars().any(char::is_control) {
            let problem = format_args!("must have 1 to {longest} printable bytes");
            return Err(self.place.fault(given.span(), key, problem, None));
        }
        Ok(given.into_inner())
    }

    pub(super) fn count(
        &self,
        key: &str,
        given: Option<Spanned<i64>>,
        default: usize,
        bounds: RangeInclusive<usize>,
    ) -> Result<usize, ConfigError> {
        let Some(given) = given else { return Ok(default) };
        usize::try_from(*given.get_ref())
            .ok()
            .filter(|count| bounds.contains(count))
            .ok_or_else(|| self.out_of_bounds(given.span(), key, bounds.start(), bounds.end()))
    }

    fn size(
        &self,
        key: &str,
        given: Option<Spanned<super::units::Size>>,
        default: usize,
        bounds: RangeInclusive<usize>,
    ) -> Result<usize, ConfigError> {
        let Some(given) = given else { return Ok(default) };
        let shown = |bytes: &usize| show_size(*bytes as u64);
        usize::try_from(given.get_ref().0)
            .ok()
            .filter(|size| bounds.contains(size))
            .ok_or_else(|| self.out_of_bounds(given.span(), key, shown(bounds.start()), shown(bounds.end())))
    }

    pub(super) fn duration(
        &self,
        key: &str,
        given: Option<(std::ops::Range<usize>, Duration)>,
        default: Duration,
        bounds: RangeInclusive<Duration>,
    ) -> Result<Duration, ConfigError> {
        let Some((span, duration)) = given else { return Ok(default) };
        if bounds.contains(&duration) {
            return Ok(duration);
        }
        Err(self.out_of_bounds(span, key, show_duration(*bounds.start()), show_duration(*bounds.end())))
    }

    fn out_of_bounds(
        &self,
        span: std::ops::Range<usize>,
        key: &str,
        least: impl Display,
        most: impl Display,
    ) -> ConfigError {
        self.place.fault(span, key, format_args!("must lie between {least} and {most}"), None)
    }

    fn group(&self, key: &str, given: Option<Spanned<Account>>) -> Result<Option<Gid>, ConfigError> {
        let gid = given.map(|account| self.account(key, account, accounts::gid, "group")).transpose()?;
        Ok(gid.map(Gid::from_raw))
    }

    pub(super) fn uids(
        &self,
        key: &str,
        given: Option<Vec<Spanned<Account>>>,
        default: &[u32],
    ) -> Result<Vec<u32>, ConfigError> {
        match given {
            Some(list) => self.accounts(key, list, accounts::uid, "user"),
            None => {
                let mut uids = default.to_vec();
                // The daemon's own user may be root.
                uids.dedup();
                Ok(uids)
            }
        }
    }

    pub(super) fn gids(&self, key: &str, given: Option<Vec<Spanned<Account>>>) -> Result<Vec<u32>, ConfigError> {
        self.accounts(key, given.unwrap_or_default(), accounts::gid, "group")
    }

    fn accounts(
        &self,
        key: &str,
        given: Vec<Spanned<Account>>,
        lookup: fn(&Site, &str) -> Option<u32>,
        what: &str,
    ) -> Result<Vec<u32>, ConfigError> {
        given.into_iter().map(|account| self.account(key, account, lookup, what)).collect()
    }

    fn account(
        &self,
        key: &str,
        given: Spanned<Account>,
        lookup: fn(&Site, &str) -> Option<u32>,
        what: &str,
    ) -> Result<u32, ConfigError> {
        match given.get_ref() {
            Account::Id(id) => Ok(*id),
            Account::Name(name) => lookup(self.site, name).ok_or_else(|| {
                let problem = format_args!("there is no local {what} {name:?}");
                self.place.fault(given.span(), key, problem, Some("create it, or write its number"))
            }),
        }
    }
}

/// What differs between the kinds of custody.
struct CustodyDefaults {
    sessions: usize,
    timeout: Duration,
}

const PKCS11_DEFAULTS: CustodyDefaults = CustodyDefaults { sessions: 2, timeout: Duration::from_secs(5) };
/// A TPM does one thing at a time, and discrete chips take up to a second for each.
const TPM_DEFAULTS: CustodyDefaults = CustodyDefaults { sessions: 1, timeout: Duration::from_secs(15) };

/// `/var/lib/keystead` → `/var/lib/keystead-custodian`
fn beside(store: &Path) -> PathBuf {
    let mut name = store.as_os_str().to_owned();
    name.push("-custodian");
    PathBuf::from(name)
}

fn default_keyring() -> KeyringId {
    // Proven by `defaults_are_those_of_an_air_gapped_softhsm_site`: the text is a constant within the alphabet.
    "default".parse().expect("a constant that is a keyring name")
}

/// The first of the places that distributions install SoftHSM's module to; the first of all when it is not installed, so
/// that the error names a path.
fn softhsm_module(site: &Site) -> PathBuf {
    let multiarch = match std::env::consts::ARCH {
        "arm" => "arm-linux-gnueabihf".to_owned(),
        arch => format!("{arch}-linux-gnu"),
    };
    let places = [
        "/usr/lib/softhsm/libsofthsm2.so".to_owned(),
        format!("/usr/lib/{multiarch}/softhsm/libsofthsm2.so"),
        "/usr/lib64/pkcs11/libsofthsm2.so".to_owned(),
        "/usr/lib/pkcs11/libsofthsm2.so".to_owned(),
        "/usr/lib64/softhsm/libsofthsm2.so".to_owned(),
        "/usr/local/lib/softhsm/libsofthsm2.so".to_owned(),
    ];
    let found = places.iter().find(|place| site.exists(place)).unwrap_or(&places[0]);
    PathBuf::from(found)
}

#[cfg(test)]
mod tests;
