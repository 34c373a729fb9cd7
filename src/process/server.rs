//! The server process: sockets, KEKs, store. No vendor code, nothing executed, no device, no file but the store's.
//!
//! The order matters: hardened first, the sockets taken, then confined, and only then a runtime, whose threads inherit
//! the confinement.

mod orders;
mod reloads;

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::config_copy::ConfigCopy;
use super::control::ControlServerEnd;
use super::hardening::{Hardening, Role, harden};
use super::sandbox::{SandboxError, SandboxReport, SandboxSettings, confine_server};
use super::users::{User, UserError};
use super::{inherited, signals, spawn};

pub use orders::follow_orders;
pub use reloads::{LiveParts, Reloader};

/// The exit code of a server that cannot start until a person changes something (EX_CONFIG of sysexits.h): the
/// supervisor then gives up, if none was ever ready.
pub const CANNOT_START: u8 = 78;

/// How long blocking work may go on after `serve` has returned.
const LAST_WRITES: Duration = Duration::from_secs(1);

/// Sockets that are bound and listen; none blocks.
#[derive(Debug)]
pub struct Listeners {
    pub kms: UnixListener,
    pub admin: UnixListener,
    pub metrics: Option<TcpListener>,
}

/// What a server is born with.
#[derive(Debug)]
pub struct ServerParts {
    pub config: ConfigCopy,
    hardening: Hardening,
    control: OwnedFd,
    kms: UnixListener,
    admin: UnixListener,
    metrics: Option<TcpListener>,
}

/// How far the process is locked down, for `status` to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockdownReport {
    pub hardening: Hardening,
    pub sandbox: SandboxReport,
}

/// Why the server cannot start. It is of no use to try again before a person has changed something.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("the runtime cannot be started")]
    Runtime(#[source] io::Error),
}

/// Hardens the process, then takes what it was started with. Call it first in the hidden subcommand `server`.
///
/// SIGTERM and SIGINT do nothing from now on: a server ends by order of its supervisor, or when that is gone.
///
/// # Errors
/// When started by hand, mostly: the descriptors are missing.
pub fn begin() -> io::Result<ServerParts> {
    let hardening = harden(Role::Server)?;
    signals::outlive_group_signals()?;
    // A descriptor each: connections, and the audit trail's next file. The usual soft limit of 1,024 is for select(2) alone.
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?;
    Ok(ServerParts {
        config: ConfigCopy::from_memory_file(inherited::take(spawn::CONFIG_FD)?)?,
        hardening,
        control: inherited::take(spawn::CHANNEL_FD)?,
        kms: inherited::take(spawn::KMS_FD)?.into(),
        admin: inherited::take(spawn::ADMIN_FD)?.into(),
        metrics: match inherited::take(spawn::METRICS_FD) {
            Ok(fd) => Some(fd.into()),
            // Switched off.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        },
    })
}

impl ServerParts {
    /// Becomes the server's own user. Before [`Self::run`], and before anything is opened by name.
    pub fn switch_to(&mut self, user: &User) -> Result<(), UserError> {
        self.hardening = user.become_for_good(Role::Server)?;
        Ok(())
    }

    /// Confines the process and runs `serve` on a fresh runtime of `workers` threads until it returns.
    ///
    /// `serve` gets what it needs to wire the rooms: the listeners, the control channel and the report. Everything that
    /// has to be opened by name must be open by now.
    pub fn run<T>(
        self,
        sandbox: &SandboxSettings,
        workers: usize,
        serve: impl AsyncFnOnce(Listeners, ControlServerEnd, LockdownReport) -> T,
    ) -> Result<T, ServerError> {
        let report = LockdownReport { hardening: self.hardening, sandbox: confine_server(sandbox)? };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            // Told, not guessed: the guess reads files that are out of reach now.
            .worker_threads(workers)
            .thread_name("keystead-worker")
            .enable_all()
            .build()
            .map_err(ServerError::Runtime)?;
        let listeners = Listeners { kms: self.kms, admin: self.admin, metrics: self.metrics };
        let control = self.control;
        let outcome = runtime.block_on(async {
            let control = ControlServerEnd::new(control).map_err(ServerError::Runtime)?;
            Ok(serve(listeners, control, report).await)
        });
        // A thread that hangs in a write to the store must not keep the process from ending.
        runtime.shutdown_timeout(LAST_WRITES);
        outcome
    }
}
