//! Starts the two children: the same binary under a hidden name, its descriptors at fixed numbers, little else.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};

use super::config_copy::ConfigCopy;
use super::inherited;

/// The hidden subcommands.
pub const SERVER: &str = "server";
pub const CUSTODIAN: &str = "custodian";

/// Well above what the parent has open, so that putting them there covers nothing that starting a process needs.
const FIRST_FD: RawFd = 40;
pub(super) const CONFIG_FD: RawFd = FIRST_FD;
/// Server: to the supervisor. Custodian: to the server.
pub(super) const CHANNEL_FD: RawFd = FIRST_FD + 1;
pub(super) const KMS_FD: RawFd = FIRST_FD + 2;
pub(super) const ADMIN_FD: RawFd = FIRST_FD + 3;
/// Open only when metrics are served.
pub(super) const METRICS_FD: RawFd = FIRST_FD + 4;

/// What children keep of the environment. A PKCS#11 module gets what the configuration says besides.
const KEPT: &[&str] = &["PATH", "LANG", "TZ", "RUST_BACKTRACE"];
/// Where the service manager put the PIN. The server gets it, too: to try, and to find that it cannot read there.
pub(super) const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
/// Fault injection reaches the children only in builds made for it.
const KEPT_FOR_TESTS: &[&str] = if cfg!(feature = "failpoints") {
    &["FAILPOINTS", "KEYSTEAD_KILL_AT", "KEYSTEAD_HOLD_AT", "LD_PRELOAD", "FAKETIME", "FAKETIME_DONT_FAKE_MONOTONIC"]
} else {
    &[]
};

/// Starts a custodian, and gives the connection to it. Closing that connection ends it; see [`end_custodian`].
///
/// The custodian also dies with the *thread* that called this: do not call it from a thread that ends before.
pub fn spawn_custodian(environment: &BTreeMap<String, String>, config: &ConfigCopy) -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = command(CUSTODIAN);
    keep(&mut command, &[CREDENTIALS]);
    command.envs(environment);
    let fds = vec![
        FdMapping { parent_fd: config.to_memory_file()?, child_fd: CONFIG_FD },
        FdMapping { parent_fd: theirs.into(), child_fd: CHANNEL_FD },
    ];
    Ok((spawn(command, fds)?, ours))
}

/// Descriptors that the server is born with.
#[derive(Debug)]
pub struct ServerDescriptors {
    pub control: OwnedFd,
    pub kms: OwnedFd,
    pub admin: OwnedFd,
    pub metrics: Option<OwnedFd>,
}

/// Starts a server.
pub fn spawn_server(descriptors: ServerDescriptors, config: &ConfigCopy) -> io::Result<Child> {
    let mut fds = vec![
        FdMapping { parent_fd: config.to_memory_file()?, child_fd: CONFIG_FD },
        FdMapping { parent_fd: descriptors.control, child_fd: CHANNEL_FD },
        FdMapping { parent_fd: descriptors.kms, child_fd: KMS_FD },
        FdMapping { parent_fd: descriptors.admin, child_fd: ADMIN_FD },
    ];
    fds.extend(descriptors.metrics.map(|parent_fd| FdMapping { parent_fd, child_fd: METRICS_FD }));
    let mut command = command(SERVER);
    keep(&mut command, &[CREDENTIALS]);
    #[cfg(feature = "cloud")]
    keep(&mut command, super::cloud::PLATFORM_VARIABLES);
    spawn(command, fds)
}

/// Waits for a custodian whose connection is closed, and kills it after `grace`. For whoever spawned one by hand.
pub fn end_custodian(mut child: Child, grace: Duration) -> io::Result<()> {
    let give_up = Instant::now() + grace;
    while child.try_wait()?.is_none() {
        if Instant::now() >= give_up {
            child.kill()?;
            child.wait()?;
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn command(subcommand: &str) -> Command {
    // Not by path: after an upgrade the file there is another version than the one that runs.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("keystead").arg(subcommand).env_clear().stdin(Stdio::null());
    keep(&mut command, KEPT);
    keep(&mut command, KEPT_FOR_TESTS);
    command
}

fn keep(command: &mut Command, names: &[&str]) {
    for name in names {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
}

fn spawn(mut command: Command, fds: Vec<FdMapping>) -> io::Result<Child> {
    inherited::keep_from_children()?;
    command.fd_mappings(fds).map_err(io::Error::other)?;
    // Dropping the command closes our copies: a child's end must be the only one, or its death is not seen.
    command.spawn()
}
