//! The waiting period before a generation is destroyed: a countdown of time that was served, and of nothing else.
//!
//! It exists so that somebody notices. So only time counts in which a Decrypt could have been seen: between two looks of one
//! run of the daemon, both of which found the key served. No wall clock is asked, nor how long the machine was off or the
//! daemon down: a clock that jumps, in whatever direction, moves nothing, and whatever is in doubt makes the wait longer.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// No waiting period is longer.
pub const MAX_WAIT: Duration = Duration::from_secs(366 * 24 * 3600);
/// Two looks are never further apart in a daemon that runs; a machine that slept in between gains no more than this.
pub const MAX_STEP: u64 = 3600;

/// How much of a wait is left, as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WaitingPeriod {
    /// Seconds it began with.
    length: u64,
    /// Seconds left.
    left: u64,
}

impl WaitingPeriod {
    /// Longer than [`MAX_WAIT`] is cut to it.
    pub fn of(length: Duration) -> Self {
        let length = length.min(MAX_WAIT).as_secs().max(1);
        Self { length, left: length }
    }

    /// So many seconds were served.
    pub fn pass(&mut self, served: u64) {
        self.left = self.left.saturating_sub(served);
    }

    pub fn left(&self) -> Duration {
        Duration::from_secs(self.left)
    }

    pub fn length(&self) -> Duration {
        Duration::from_secs(self.length)
    }

    pub fn is_over(&self) -> bool {
        self.left == 0
    }

    /// Whether this is a countdown that [`Self::of`] can have made.
    pub fn is_sound(&self) -> bool {
        self.left <= self.length && (1..=MAX_WAIT.as_secs()).contains(&self.length)
    }
}

/// Time that this run of the daemon has served and that no stored countdown knows of yet. Begins anew with each run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServedTime {
    /// Boot time of the last look, if it found the key served.
    last: Option<u64>,
    unstored: u64,
}

impl ServedTime {
    /// Looks at `boot_time`, in seconds of the clock that never steps.
    pub fn look(&mut self, boot_time: u64, serves: bool) {
        if let (Some(last), true) = (self.last, serves) {
            self.unstored = self.unstored.saturating_add(boot_time.saturating_sub(last).min(MAX_STEP));
        }
        self.last = serves.then_some(boot_time);
    }

    pub fn unstored(&self) -> u64 {
        self.unstored
    }

    /// Hands it over to whoever stores it. What then does not reach the disk is lost: counting it twice would be worse.
    pub fn take(&mut self) -> u64 {
        std::mem::take(&mut self.unstored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600;

    #[test]
    fn only_time_between_two_looks_that_found_it_served_counts() {
        let mut served = ServedTime::default();
        for (boot_time, serves, expected) in [
            (1000, true, 0),
            (1060, true, 60),
            (1120, false, 60),
            (1180, true, 60),
            (1200, true, 80),
            // Boot time that runs backwards is an image of the machine that was put back.
            (100, true, 80),
            (130, true, 110),
            // It slept.
            (130 + 30 * DAY, true, 110 + MAX_STEP),
        ] {
            served.look(boot_time, serves);
            assert_eq!(served.unstored(), expected, "{boot_time}");
        }
        assert_eq!((served.take(), served.unstored()), (110 + MAX_STEP, 0));
        served.look(u64::MAX, true);
        assert_eq!(served.unstored(), MAX_STEP);
    }

    #[test]
    fn wait_ends_after_its_length_and_stays_bounded() {
        let mut wait = WaitingPeriod::of(Duration::from_secs(7 * DAY));
        wait.pass(7 * DAY - 1);
        assert!(!wait.is_over() && wait.is_sound());
        wait.pass(u64::MAX);
        assert!(wait.is_over() && wait.is_sound());
        assert_eq!(WaitingPeriod::of(Duration::MAX).left(), MAX_WAIT);
        assert!(!WaitingPeriod::of(Duration::ZERO).is_over(), "no wait at all is not a wait");
        for (length, left) in [(0, 0), (5, 6), (MAX_WAIT.as_secs() + 1, 1)] {
            assert!(!WaitingPeriod { length, left }.is_sound());
        }
    }
}
