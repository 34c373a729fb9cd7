//! Whether the server still answers. Pure: who asks says what time it is.
//!
//! One question at a time. A server that was just started may take longer, for it opens its store before it listens.

use std::time::{Duration, Instant};

/// Asked that often by a supervisor that nobody watches.
const EVERY: Duration = Duration::from_secs(2);
/// An answer takes microseconds; by then there will be none.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much longer the first answer may take: a slow disk's recovery is no hang.
const START: Duration = Duration::from_secs(20);

/// How often to ask and how long to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pace {
    every: Duration,
    patience: Duration,
    start: Duration,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Heartbeat {
    pace: Pace,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Nothing was asked yet.
    Fresh {
        since: Instant,
    },
    Resting {
        ask_at: Instant,
    },
    Waiting {
        until: Instant,
    },
}

impl Pace {
    /// Quick enough that a hung server is replaced, and its successor has answered, before a service manager of this
    /// watchdog replaces the whole daemon.
    pub(super) fn new(watchdog: Option<Duration>) -> Self {
        let Some(watchdog) = watchdog else { return Self { every: EVERY, patience: PATIENCE, start: START } };
        let patience = PATIENCE.min(watchdog / 3);
        Self { every: EVERY.min(patience / 3), patience, start: START.min(watchdog / 3) }
    }

    /// For a server that was started at `now`. The first question is due at once.
    pub(super) fn of_new_server(self, now: Instant) -> Heartbeat {
        Heartbeat { pace: self, state: State::Fresh { since: now } }
    }
}

impl Heartbeat {
    pub(super) fn must_ask(&self, now: Instant) -> bool {
        matches!(self.state, State::Fresh { .. }) || matches!(self.state, State::Resting { ask_at } if ask_at <= now)
    }

    /// The question is out.
    pub(super) fn asked(&mut self, now: Instant) {
        let extra = if matches!(self.state, State::Fresh { .. }) { self.pace.start } else { Duration::ZERO };
        self.state = State::Waiting { until: now + self.pace.patience + extra };
    }

    pub(super) fn answered(&mut self, now: Instant) {
        self.state = State::Resting { ask_at: now + self.pace.every };
    }

    /// No answer came in time.
    pub(super) fn is_missed(&self, now: Instant) -> bool {
        matches!(self.state, State::Waiting { until } if until <= now)
    }

    /// When something is due again.
    pub(super) fn due_at(&self) -> Instant {
        match self.state {
            State::Fresh { since } => since,
            State::Resting { ask_at } => ask_at,
            State::Waiting { until } => until,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn asks_at_once_then_at_intervals_and_misses_only_what_was_asked() {
        let start = Instant::now();
        let mut heartbeat = Pace::new(None).of_new_server(start);
        assert!(heartbeat.must_ask(start) && !heartbeat.is_missed(start + 100 * SECOND));
        heartbeat.asked(start);
        heartbeat.answered(start + SECOND);
        assert!(!heartbeat.must_ask(start + 2 * SECOND) && heartbeat.must_ask(start + 3 * SECOND));
        assert!(!heartbeat.is_missed(start + 100 * SECOND));
        heartbeat.asked(start + 3 * SECOND);
        assert!(!heartbeat.must_ask(start + 100 * SECOND) && !heartbeat.is_missed(start + 12 * SECOND));
        assert!(heartbeat.is_missed(start + 13 * SECOND));
        assert_eq!(heartbeat.due_at(), start + 13 * SECOND);
    }

    #[test]
    fn first_answer_may_take_longer() {
        let start = Instant::now();
        let mut heartbeat = Pace::new(None).of_new_server(start);
        heartbeat.asked(start);
        assert!(!heartbeat.is_missed(start + 29 * SECOND) && heartbeat.is_missed(start + 30 * SECOND));
    }

    #[test]
    fn server_is_replaced_before_the_service_manager_loses_patience() {
        for seconds in [1, 3, 10, 30, 60, 3600] {
            let watchdog = Duration::from_secs(seconds);
            let pace = Pace::new(Some(watchdog));
            assert!(pace.every + pace.patience < watchdog, "{pace:?}");
            assert!(pace.start + pace.patience < watchdog, "{pace:?}");
        }
        assert_eq!(Pace::new(Some(Duration::from_secs(3600))), Pace::new(None));
    }
}
