//! One of the two children, or the wait for the next one.

use std::io;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use crate::process::backoff::Backoff;

const SHORTEST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
const LONG_LIFE: Duration = Duration::from_secs(60);

/// A process in the middle of a device's system call survives SIGKILL until the call returns, which may be never.
const ABANDON_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct ChildSlot {
    name: &'static str,
    backoff: Backoff,
    state: State,
    /// Killed, but not dead: replaced all the same, and reaped when they die.
    abandoned: Vec<Child>,
}

#[derive(Debug)]
enum State {
    Down { start_at: Instant },
    Up { child: Child, since: Instant, end_by: Option<Instant>, killed_at: Option<Instant> },
}

impl ChildSlot {
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            backoff: Backoff::new(SHORTEST_WAIT, LONGEST_WAIT, LONG_LIFE),
            state: State::Down { start_at: Instant::now() },
            abandoned: Vec::new(),
        }
    }

    pub(super) fn is_down(&self) -> bool {
        matches!(self.state, State::Down { .. })
    }

    /// Down, and the wait is over.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        matches!(self.state, State::Down { start_at } if start_at <= now)
    }

    /// Up, and later than it should have ended.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        matches!(self.state, State::Up { end_by: Some(by), killed_at: None, .. } if by <= now)
    }

    /// When the next one may be started; nothing while there is one.
    pub(super) fn starts_at(&self) -> Option<Instant> {
        match self.state {
            State::Down { start_at } => Some(start_at),
            State::Up { .. } => None,
        }
    }

    /// When patience with the one that is there runs out.
    pub(super) fn ends_at(&self) -> Option<Instant> {
        match self.state {
            State::Down { .. } => None,
            State::Up { killed_at: Some(at), .. } => Some(at + ABANDON_AFTER),
            State::Up { end_by, .. } => end_by,
        }
    }

    /// It was given a moment by which to end, or is down.
    pub(super) fn is_ending(&self) -> bool {
        !matches!(self.state, State::Up { end_by: None, .. })
    }

    pub(super) fn started(&mut self, child: Child) {
        tracing::info!(child = self.name, pid = child.id(), "started");
        self.state = State::Up { child, since: Instant::now(), end_by: None, killed_at: None };
    }

    pub(super) fn failed(&mut self, error: &io::Error) {
        let wait = self.backoff.after(Duration::ZERO);
        tracing::error!(child = self.name, %error, ?wait, "cannot be started");
        self.state = State::Down { start_at: Instant::now() + wait };
    }

    /// Keeps an earlier moment.
    pub(super) fn must_end_within(&mut self, time: Duration) {
        if let State::Up { end_by, .. } = &mut self.state {
            let by = Instant::now() + time;
            *end_by = Some(end_by.map_or(by, |earlier| earlier.min(by)));
        }
    }

    /// Ends the wait for the next one; nothing while there is one.
    pub(super) fn start_at_once(&mut self) {
        if let State::Down { start_at } = &mut self.state {
            *start_at = Instant::now();
        }
    }

    /// At once. By the kernel's handle to the child, so that no other process is ever hit.
    pub(super) fn kill(&mut self) {
        if let State::Up { child, killed_at, .. } = &mut self.state {
            if let Err(error) = child.kill() {
                tracing::error!(child = self.name, %error, "cannot be killed");
            }
            killed_at.get_or_insert_with(Instant::now);
        }
    }

    /// Buries the child if it is dead. One whose end was expected is replaced without a wait.
    pub(super) fn reap(&mut self, expected: bool) -> io::Result<Option<ExitStatus>> {
        self.abandoned.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        let State::Up { child, since, killed_at, .. } = &mut self.state else { return Ok(None) };
        let lived = since.elapsed();
        if let Some(status) = child.try_wait()? {
            let wait = if expected { Duration::ZERO } else { self.backoff.after(lived) };
            if !expected {
                tracing::warn!(child = self.name, %status, ?lived, restart_in = ?wait, "ended unexpectedly");
            }
            self.state = State::Down { start_at: Instant::now() + wait };
            return Ok(Some(status));
        }
        if killed_at.is_some_and(|at| at.elapsed() >= ABANDON_AFTER) {
            tracing::error!(child = self.name, pid = child.id(), "does not die when killed: it is left behind");
            let down = State::Down { start_at: Instant::now() + self.backoff.after(lived) };
            if let State::Up { child, .. } = std::mem::replace(&mut self.state, down) {
                self.abandoned.push(child);
            }
        }
        Ok(None)
    }
}
