//! The supervisor: holds the sockets, keeps a server and a custodian alive, ends both in order.
//!
//! One thread, no runtime, no key, no PIN, no request. A crashed server loses no socket, for the supervisor has it too;
//! a crashed or hung custodian loses no key, for the server has it.

mod child;
mod heartbeat;

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use sd_notify::NotifyState;

use self::child::ChildSlot;
use self::heartbeat::{Heartbeat, Pace};
use super::activation::{self, ActivationError};
use super::config_copy::ConfigCopy;
use super::control::{self, ControlSupervisorEnd, Report};
use super::hardening::{Role, harden};
use super::pid_file::PidFile;
use super::reload::{BY_SIGNAL, Pending, Reader, Ruling, Verdict};
use super::server::CANNOT_START;
use super::signals::Signals;
use super::spawn::{self, ServerDescriptors};
use crate::memory;
use crate::rpc::socket::{ListeningSocket, SocketError, SocketSettings};

/// How much longer than its own deadline the server is given to end: a worn SD card takes seconds for what is stored then.
const DRAIN_MARGIN: Duration = Duration::from_secs(5);
/// What a server that has closed its channel is given.
const SERVER_FAREWELL: Duration = Duration::from_secs(2);
/// How long a custodian whose server is gone may finish what the device is doing: cut off in the middle of a write,
/// some tokens lose more than the write.
const CUSTODIAN_FAREWELL: Duration = Duration::from_secs(3);

#[derive(Debug, Clone)]
pub struct SupervisorSettings {
    pub kms: SocketSettings,
    pub admin: SocketSettings,
    pub metrics: Option<SocketAddr>,
    /// The server's own deadline for running requests.
    pub drain_timeout: Duration,
    pub pid_file: Option<PathBuf>,
    /// What the module needs, for the custodian only.
    pub custodian_environment: BTreeMap<String, String>,
    pub config: ConfigCopy,
    /// `None`: the configuration is never read again.
    pub reader: Option<Reader>,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As asked, and in order.
    Drained,
    /// As asked, but a process had to be killed.
    Forced,
    /// The server said that it cannot start; it has logged why.
    ServerCannotStart,
}

#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    #[error(transparent)]
    Activation(#[from] ActivationError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("the metrics address {address} cannot be bound. Change `listen` in [metrics], or set it to \"off\"")]
    Metrics { address: SocketAddr, source: io::Error },
    #[error("the process ID cannot be written to {}", path.display())]
    PidFile { path: PathBuf, source: io::Error },
    #[error("the supervisor cannot {action}")]
    System { action: &'static str, source: io::Error },
}

impl Outcome {
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Drained => 0,
            Self::Forced => 1,
            Self::ServerCannotStart => CANNOT_START,
        }
    }
}

/// Runs the daemon until it is told to end (SIGTERM, SIGINT) or cannot start. Blocks; call it on the main thread of a
/// process that has no other thread and has opened nothing for long.
pub fn supervise(settings: SupervisorSettings) -> Result<Outcome, SupervisorError> {
    let system = |action| move |source| SupervisorError::System { action, source };
    // First: descriptors that the service manager passed must be taken before we open any.
    let activated = activation::take()?;
    harden(Role::Supervisor).map_err(system("harden itself"))?;
    let signals = Signals::install().map_err(system("wait for signals"))?;
    let kms = activated.kms.map_or_else(|| ListeningSocket::acquire(&settings.kms), Ok)?;
    let admin = activated.admin.map_or_else(|| ListeningSocket::acquire(&settings.admin), Ok)?;
    let metrics = settings.metrics.map(bind_metrics).transpose()?;
    let pid_file = settings
        .pid_file
        .as_deref()
        .map(|path| PidFile::write(path).map_err(|source| SupervisorError::PidFile { path: path.to_owned(), source }));
    let _pid_file = pid_file.transpose()?;
    tracing::info!(kms = %settings.kms.path.display(), admin = %settings.admin.path.display(), "supervising");
    let mut supervisor = Supervisor {
        settings,
        sockets: Sockets { kms, admin, metrics },
        signals,
        server: ChildSlot::new("server"),
        control: None,
        pace: Pace::new(sd_notify::watchdog_enabled()),
        heartbeat: None,
        ready: false,
        custodian: ChildSlot::new("custodian"),
        custodians: 0,
        pending: None,
        reload_again: false,
        ending: None,
    };
    supervisor.run().map_err(system("wait for its children"))
}

/// Bound here and not by the server: a mistyped address is then an error of `serve`, and a port once had is not lost.
fn bind_metrics(address: SocketAddr) -> Result<TcpListener, SupervisorError> {
    let bind = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind().map_err(|source| SupervisorError::Metrics { address, source })
}

struct Sockets {
    kms: ListeningSocket,
    admin: ListeningSocket,
    metrics: Option<TcpListener>,
}

struct Supervisor {
    settings: SupervisorSettings,
    sockets: Sockets,
    signals: Signals,
    server: ChildSlot,
    /// To the server that runs.
    control: Option<ControlSupervisorEnd>,
    /// How often the server is asked whether it is alive.
    pace: Pace,
    /// Of the server that runs, as long as it is meant to answer.
    heartbeat: Option<Heartbeat>,
    /// A server has served since the supervisor started.
    ready: bool,
    custodian: ChildSlot,
    /// Started so far; one less is the number of restarts.
    custodians: u32,
    /// A configuration that was read again, and waits for the server's word on it.
    pending: Option<Pending>,
    /// SIGHUP came meanwhile.
    reload_again: bool,
    /// What the end will be; children that end are not replaced then.
    ending: Option<Outcome>,
}

impl Supervisor {
    fn run(&mut self) -> io::Result<Outcome> {
        loop {
            self.start_what_is_due();
            self.ask_whether_the_server_lives();
            self.kill_what_is_overdue();
            if let Some(outcome) = self.ending
                && self.server.is_down()
                && self.custodian.is_down()
            {
                tracing::info!(?outcome, "ended");
                return Ok(outcome);
            }
            self.wait()?;
            self.heed_signals();
            // Before the dead are buried: what a server said last, it said.
            self.hear_reports();
            self.reap()?;
        }
    }

    fn wait(&self) -> io::Result<()> {
        // What may not start now must not wake us for it.
        let server_starts = self.server.starts_at().filter(|_| self.ending.is_none());
        let custodian_starts = self.custodian.starts_at().filter(|_| self.ending.is_none() && self.control.is_some());
        let asks = self.heartbeat.map(|heartbeat| heartbeat.due_at());
        let moments = [server_starts, custodian_starts, asks, self.server.ends_at(), self.custodian.ends_at()];
        let wake_at = moments.into_iter().flatten().min();
        // A millisecond more, for the kernel's clock must be past the moment and not just at it.
        let left = wake_at.map(|at| at.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        fds.extend(self.control.iter().map(|control| PollFd::new(control, PollFlags::IN)));
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn start_what_is_due(&mut self) {
        if self.ending.is_some() {
            return;
        }
        let now = Instant::now();
        if self.server.is_due(now) {
            match self.spawn_server() {
                Ok(child) => self.server.started(child),
                Err(error) => self.server.failed(&error),
            }
        }
        // A custodian without a server to talk to would end at once.
        if self.control.is_some() && self.custodian.is_due(now) {
            match self.spawn_custodian() {
                Ok(child) => self.custodian.started(child),
                Err(error) => self.custodian.failed(&error),
            }
        }
    }

    fn spawn_server(&mut self) -> io::Result<std::process::Child> {
        let (ours, theirs) = control::pair()?;
        let descriptors = ServerDescriptors {
            control: theirs,
            kms: self.sockets.kms.share()?,
            admin: self.sockets.admin.share()?,
            metrics: self.sockets.metrics.as_ref().map(|listener| listener.try_clone().map(Into::into)).transpose()?,
        };
        let child = spawn::spawn_server(descriptors, &self.settings.config)?;
        self.control = Some(ours);
        self.heartbeat = Some(self.pace.of_new_server(Instant::now()));
        Ok(child)
    }

    fn spawn_custodian(&mut self) -> io::Result<std::process::Child> {
        let (child, stream) = spawn::spawn_custodian(&self.settings.custodian_environment, &self.settings.config)?;
        let restarts = self.custodians;
        self.custodians = self.custodians.saturating_add(1);
        if let Some(control) = &self.control
            && let Err(error) = control.new_custodian(stream, restarts)
        {
            // The stream is closed, so this custodian ends by itself. If the server died its end is reported anyway; if
            // it does not read any more, it serves nobody either.
            tracing::error!(%error, "the server does not take a new custodian: it is replaced");
            self.server.kill();
        }
        Ok(child)
    }

    /// Reports were heard right before: what is missed now was not said.
    fn ask_whether_the_server_lives(&mut self) {
        let (Some(control), Some(heartbeat)) = (&self.control, &mut self.heartbeat) else { return };
        let now = Instant::now();
        let dead = if heartbeat.is_missed(now) {
            tracing::error!("the server does not answer: it is replaced");
            true
        } else if heartbeat.must_ask(now) {
            heartbeat.asked(now);
            control
                .ask()
                .inspect_err(|error| tracing::error!(%error, "the server does not read: it is replaced"))
                .is_err()
        } else {
            false
        };
        if dead {
            // Once: what is killed is not asked again.
            self.heartbeat = None;
            self.server.kill();
        }
    }

    /// Each child has at most one moment by which it must be gone.
    fn kill_what_is_overdue(&mut self) {
        let now = Instant::now();
        if self.server.is_overdue(now) {
            tracing::error!("the server did not end in time: it is killed");
            self.server.kill();
            self.ending = self.ending.map(|_| Outcome::Forced);
        }
        if self.custodian.is_overdue(now) {
            tracing::warn!("the custodian did not end in time: it is killed");
            self.custodian.kill();
        }
    }

    fn heed_signals(&mut self) {
        let arrived = self.signals.take();
        if arrived.reload {
            notify_all(&[NotifyState::Reloading, monotonic_now()]);
            if !self.reload(BY_SIGNAL) {
                notify(NotifyState::Ready);
            }
        }
        match (arrived.stop, self.ending) {
            (false, _) => {}
            (true, None) => self.end(Outcome::Drained),
            (true, Some(_)) => {
                tracing::warn!("told to end a second time: everything is killed");
                self.ending = Some(Outcome::Forced);
                self.server.kill();
                self.custodian.kill();
            }
        }
    }

    /// Reads the configuration again. False: nothing will come of it, and whoever asked has been told.
    fn reload(&mut self, ticket: u32) -> bool {
        let Some(control) = &self.control else {
            tracing::warn!("the configuration is not read again: no server runs; try again");
            return false;
        };
        if self.pending.is_some() && ticket == BY_SIGNAL {
            self.reload_again = true;
            return true;
        }
        let refusal = match (&self.pending, self.ending) {
            (_, Some(_)) => Some("the daemon is ending"),
            (Some(_), None) => Some("another reload is under way: try again"),
            (None, None) => None,
        };
        let (verdict, pending) = match (refusal, &self.settings.reader) {
            (Some(why), _) => (Verdict { ticket, ruling: Ruling::NotNow(why.into()) }, None),
            (None, Some(reader)) => reader.read(&self.settings.config, ticket),
            (None, None) => {
                tracing::warn!("the configuration cannot be read again");
                return false;
            }
        };
        if let Err(error) = verdict.to_memory_file().and_then(|file| control.verdict(file)) {
            tracing::error!(%error, "the server does not hear of the configuration that was read again");
            return false;
        }
        if pending.is_some() {
            self.pending = pending;
        }
        true
    }

    fn reloaded(&mut self, ticket: u32, applied: bool) {
        let pending = self.pending.take_if(|pending| pending.ticket == ticket);
        if let (Some(pending), Some(reader), true) = (pending, &mut self.settings.reader, applied) {
            reader.commit(pending, &mut self.settings.config);
            tracing::info!("configuration reloaded");
        }
        // What reading it needed is not needed again for long.
        memory::release_startup_code();
        if self.pending.is_some() {
            // This was another one's, refused for the sake of the one under way.
            return;
        }
        let again = std::mem::take(&mut self.reload_again);
        let goes_on = again && self.reload(BY_SIGNAL);
        if !goes_on && (again || ticket == BY_SIGNAL) {
            notify(NotifyState::Ready);
        }
    }

    fn end(&mut self, outcome: Outcome) {
        tracing::info!(?outcome, "ending");
        notify(NotifyState::Stopping);
        self.ending = Some(outcome);
        // It keeps its own deadline from now on.
        self.heartbeat = None;
        self.server.must_end_within(self.settings.drain_timeout + DRAIN_MARGIN);
        match &self.control {
            Some(control) => {
                if let Err(error) = control.drain() {
                    tracing::warn!(%error, "the server cannot be told to drain: it is killed");
                    self.ending = Some(Outcome::Forced);
                    self.server.kill();
                }
            }
            None => self.custodian.must_end_within(CUSTODIAN_FAREWELL),
        }
    }

    fn hear_reports(&mut self) {
        while let Some(control) = &self.control {
            match control.receive() {
                Ok(Some(Report::Ready)) => {
                    self.ready = true;
                    notify(NotifyState::Ready);
                    memory::release_startup_code();
                }
                Ok(Some(Report::Alive)) => {
                    if let Some(heartbeat) = &mut self.heartbeat {
                        heartbeat.answered(Instant::now());
                        // Not by a timer: the service manager hears of nothing but answers.
                        notify(NotifyState::Watchdog);
                    }
                }
                Ok(Some(Report::AskLogin { pid })) => {
                    // One that is not answered shows as unknown.
                    let _ = control.login(pid, login_uid(pid));
                }
                Ok(Some(Report::Reload { ticket })) => {
                    self.reload(ticket);
                }
                Ok(Some(Report::Reloaded { ticket, applied })) => self.reloaded(ticket, applied),
                Ok(Some(Report::Status(text))) => notify(NotifyState::Status(&text)),
                Ok(Some(Report::CustodianHung { restarts })) => self.replace_hung_custodian(restarts),
                Ok(Some(Report::ReplaceCustodian)) => {
                    tracing::info!("the custodian is replaced as asked");
                    // The server closes its connection, on which it ends; one that hangs does not.
                    self.custodian.must_end_within(CUSTODIAN_FAREWELL);
                    self.custodian.start_at_once();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The end of the channel is the end of the server: nobody is left who could be told anything.
                Ok(None) => return self.server_hung_up(),
                Err(error) => {
                    tracing::error!(%error, "the server talks nonsense: it is replaced");
                    self.server.kill();
                    return self.server_hung_up();
                }
            }
        }
    }

    fn server_hung_up(&mut self) {
        self.control = None;
        self.heartbeat = None;
        if self.pending.take().is_some() || std::mem::take(&mut self.reload_again) {
            tracing::error!("the server ended while it reloaded: the next one runs by the configuration before");
            notify(NotifyState::Ready);
        }
        // It is about to exit; one that closed the channel and lingers is of no use.
        self.server.must_end_within(SERVER_FAREWELL);
        // Its connection is closed, too, so that it ends by itself.
        self.custodian.must_end_within(CUSTODIAN_FAREWELL);
    }

    fn replace_hung_custodian(&mut self, restarts: u32) {
        // A report about one that was replaced meanwhile does not concern its successor.
        if self.custodians == restarts.saturating_add(1) && !self.custodian.is_down() {
            tracing::warn!(restarts, "the custodian does not answer: it is killed");
            self.custodian.kill();
        }
    }

    fn reap(&mut self) -> io::Result<()> {
        if let Some(status) = self.server.reap(self.ending.is_some())? {
            self.server_ended(status);
        }
        // After the server: a custodian that ends because its server did is no crash.
        let expected = self.ending.is_some() || self.custodian.is_ending();
        if let Some(status) = self.custodian.reap(expected)? {
            tracing::debug!(%status, "the custodian ended");
        }
        Ok(())
    }

    fn server_ended(&mut self, status: ExitStatus) {
        // What it said last is still in the channel.
        self.hear_reports();
        if self.control.is_some() {
            self.server_hung_up();
        }
        if status.code() == Some(i32::from(CANNOT_START)) && !self.ready && self.ending.is_none() {
            self.end(Outcome::ServerCannotStart);
        }
    }
}

/// By the kernel: the user whose session a process belongs to. Nothing of what no session began, or that is hidden from us.
fn login_uid(pid: i32) -> Option<u32> {
    let uid = std::fs::read_to_string(format!("/proc/{pid}/loginuid")).ok()?;
    uid.trim_end().parse().ok().filter(|uid| *uid != u32::MAX)
}

fn notify(state: NotifyState<'_>) {
    notify_all(&[state]);
}

/// What systemd wants to know of a reload: that it began after it was asked for.
fn monotonic_now() -> NotifyState<'static> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    NotifyState::MonotonicUsec(i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000)
}

fn notify_all(states: &[NotifyState<'_>]) {
    // Without a service manager this does nothing.
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be notified");
    }
}
