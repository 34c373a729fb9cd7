//! From a configuration to a running process: what `serve` and its two hidden siblings begin with.

use std::io;
use std::path::{Path, PathBuf};

use super::config_copy::ConfigCopy;
use super::daemon::{self, CloudParts, Opened};
use super::egress::Egress;
use super::hardening::Role;
use super::reload::Reader;
use super::sandbox::SandboxSettings;
use super::seccomp::{Filter, Filtering, filter_system_calls};
use super::server::ServerError;
use super::spawn::CREDENTIALS;
use super::supervisor::{Outcome, SupervisorError, SupervisorSettings, supervise};
use super::users::UserError;
use super::{custodian, server};
use crate::audit;
use crate::config::{ConfigError, Settings, Site, Source, UpstreamTable};
use crate::custody::contract::ProcessReport;
use crate::custody::settings::PinSource;
use crate::custody::worker::{self, WorkerError};
use crate::memory;
use crate::store::{Store, StoreError};
use crate::telemetry::log::{self, AlreadySetUp};

/// Threads of the server's runtime. Requests are short and in memory: two keep both cores of an edge box busy.
const SERVER_THREADS: usize = 2;

/// Why a process could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the process cannot be set up")]
    Inherited(#[from] io::Error),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Log(#[from] AlreadySetUp),
    #[error(transparent)]
    Users(#[from] UserError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Supervisor(#[from] SupervisorError),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Custodian(#[from] WorkerError),
    #[error("the server cannot start; its log says why")]
    ServerCannotStart,
    #[error("a process had to be killed at shutdown")]
    Forced,
    #[cfg(feature = "cloud")]
    #[error(transparent)]
    Cloud(#[from] super::cloud::CloudError),
    #[cfg(not(feature = "cloud"))]
    #[error(
        "the configuration has an [upstream], and this build has no cloud in it: install one with the feature `cloud`"
    )]
    NoCloud,
}

impl StartError {
    /// Whether trying again before somebody has changed something is of no use.
    pub fn needs_a_person(&self) -> bool {
        #[cfg(not(feature = "cloud"))]
        if matches!(self, Self::NoCloud) {
            return true;
        }
        #[cfg(feature = "cloud")]
        if matches!(self, Self::Cloud(_)) {
            return true;
        }
        matches!(self, Self::Config(_) | Self::Users(_) | Self::Store(_) | Self::Server(ServerError::Sandbox(_)))
    }
}

/// The text that the children get: all of them see the same, whatever happens to the file.
pub fn config_copy(source: &Source) -> ConfigCopy {
    ConfigCopy { path: source.file().map(ToOwned::to_owned), text: source.text().to_owned() }
}

/// The supervisor. Returns when the daemon has ended.
pub fn serve(settings: &Settings, source: &Source) -> Result<(), StartError> {
    let verbosity = log::init(settings.log)?;
    if let Some(users) = &settings.users {
        // Here, where an error still reaches whoever starts the daemon.
        users.prepare(&settings.store.path, settings.trail_apart(), &settings.custody.latch_folder)?;
    }
    let outcome = supervise(SupervisorSettings {
        kms: settings.kms.socket.clone(),
        admin: settings.admin.socket.clone(),
        metrics: settings.metrics,
        drain_timeout: settings.kms.drain_timeout,
        pid_file: None,
        custodian_environment: settings.custody.environment.clone(),
        config: config_copy(source),
        reader: Some(Reader { settings: settings.clone(), verbosity }),
    })?;
    match outcome {
        Outcome::Drained => Ok(()),
        Outcome::Forced => Err(StartError::Forced),
        Outcome::ServerCannotStart => Err(StartError::ServerCannotStart),
    }
}

/// The server. Returns when it was told to end and has drained.
pub fn server() -> Result<(), StartError> {
    let mut parts = server::begin()?;
    // While it is still the supervisor's user: defaults of the configuration depend on whose daemon it is.
    let settings = inherited_settings(&parts.config)?;
    let verbosity = log::init(settings.log)?;
    if let Some(users) = &settings.users {
        parts.switch_to(&users.server)?;
    }
    // Before the sandbox: it may have to be made, and Landlock rules name folders that exist.
    let store = Store::open(&settings.store.path)?;
    let mut audit_outlet = None;
    if let Some(audit) = &settings.audit {
        // Where that fails, opening the trail does, too, and says so.
        let _ = audit::make_folder(&audit.folder);
        audit_outlet = audit::outlet(audit)?;
    }
    let pin = match &settings.custody.pin {
        PinSource::File(path) => Some(path.clone()),
        PinSource::Credential(name) => std::env::var_os(CREDENTIALS).map(|folder| PathBuf::from(folder).join(name)),
    };
    let sandbox = SandboxSettings {
        store: settings.store.path.clone(),
        trail: settings.trail_apart().map(Path::to_owned),
        landlock: settings.sandbox.landlock,
        seccomp: settings.sandbox.seccomp,
        egress: settings.upstream.as_ref().map(|table| egress(table, pin.as_deref())).transpose()?,
        pin,
    };
    let cloud = settings.upstream.as_ref().map(cloud_parts).transpose()?;
    // While /proc can still be read: what follows needs little of what the start has run.
    memory::release_startup_code();
    let config = parts.config.clone();
    let served = parts.run(&sandbox, SERVER_THREADS, |listeners, control, lockdown| {
        let opened = Opened { store, audit_outlet, verbosity, config };
        daemon::run(settings, cloud, opened, listeners, control, lockdown)
    })?;
    Ok(served?)
}

/// The way to the cloud, for the sandbox to leave open.
#[cfg(feature = "cloud")]
fn egress(table: &UpstreamTable, pin: Option<&Path>) -> Result<Egress, StartError> {
    Ok(Egress::of(table, super::cloud::token_file(table).as_deref(), pin))
}

#[cfg(feature = "cloud")]
fn cloud_parts(table: &UpstreamTable) -> Result<CloudParts, StartError> {
    Ok(super::cloud::parts(table)?)
}

#[cfg(not(feature = "cloud"))]
fn cloud_parts(_: &UpstreamTable) -> Result<CloudParts, StartError> {
    Err(StartError::NoCloud)
}

#[cfg(not(feature = "cloud"))]
fn egress(_: &UpstreamTable, _: Option<&Path>) -> Result<Egress, StartError> {
    Err(StartError::NoCloud)
}

/// The custodian. Returns when its server is gone.
pub fn custodian() -> Result<(), StartError> {
    let mut parts = custodian::begin()?;
    let settings = inherited_settings(&parts.config)?;
    log::init(settings.log)?;
    if let Some(users) = &settings.users {
        parts.hardening = users.custodian.become_for_good(Role::Custodian)?;
    }
    // Before the module is loaded.
    let system_calls = filter_system_calls(Filter::Custodian, settings.sandbox.seccomp);
    let report = ProcessReport {
        uid: rustix::process::geteuid().as_raw(),
        no_new_privs: parts.hardening.no_new_privs,
        dumpable: parts.hardening.dumpable,
        system_calls_filtered: system_calls == Filtering::On,
    };
    memory::release_startup_code();
    worker::run(parts.stream, report, settings.custody)?;
    Ok(())
}

fn inherited_settings(config: &ConfigCopy) -> Result<Settings, ConfigError> {
    let source = Source::from_parts(config.path.clone(), config.text.clone());
    Settings::from_source(&source, &Site::this_machine())
}
