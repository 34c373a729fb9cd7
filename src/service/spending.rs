//! How many upstream calls the last 24 hours saw, and what they cost: an estimate to notice a runaway by, not a bill.
//!
//! By the boot clock and not by the calendar: an edge box's wall clock jumps by years. Begins anew with each start.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const HOUR: u64 = 3600;
const HOURS: usize = 24;

/// What is spent at most, and what a call costs.
#[derive(Debug, Clone, PartialEq)]
pub struct Budget {
    pub daily_calls: u64,
    pub per_10k_calls: f64,
    pub currency: String,
}

/// Calls of the last 24 hours against a [`Budget`].
#[derive(Debug)]
pub struct Spending {
    budget: Budget,
    window: Mutex<Window>,
}

/// What [`Spending`] says at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spent {
    pub calls: u64,
    pub budget: u64,
    pub cost: f64,
}

#[derive(Debug, Default)]
struct Window {
    hours: [u64; HOURS],
    /// Number of the hour that is counted into now.
    hour: u64,
    seen: u64,
}

impl Spending {
    pub fn new(budget: Budget) -> Self {
        Self { budget, window: Mutex::default() }
    }

    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Takes note of `total` calls since the start, at `now` of the boot clock. Calls between two notes count as made at
    /// the later one.
    pub fn note(&self, total: u64, now: Duration) -> Spent {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let hour = now.as_secs() / HOUR;
        for passed in window.hour.saturating_add(1)..=hour.min(window.hour.saturating_add(HOURS as u64)) {
            window.hours[index(passed)] = 0;
        }
        window.hour = hour.max(window.hour);
        let here = index(window.hour);
        window.hours[here] += total.saturating_sub(window.seen);
        window.seen = total.max(window.seen);
        let calls = window.hours.iter().sum();
        // Calls of a day are far below where a float loses count.
        Spent { calls, budget: self.budget.daily_calls, cost: calls as f64 * self.budget.per_10k_calls / 10_000.0 }
    }
}

fn index(hour: u64) -> usize {
    // Below 24.
    (hour % HOURS as u64) as usize
}

impl Spent {
    pub fn over_budget(&self) -> bool {
        self.calls > self.budget
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spending() -> Spending {
        Spending::new(Budget { daily_calls: 100, per_10k_calls: 3.0, currency: "USD".into() })
    }

    fn at(hours: u64) -> Duration {
        Duration::from_secs(hours * HOUR)
    }

    #[test]
    fn calls_count_for_a_day_and_no_longer() {
        let spending = spending();
        assert_eq!(spending.note(10, at(100)).calls, 10);
        assert_eq!(spending.note(30, at(110)).calls, 30);
        assert_eq!(spending.note(30, at(123)).calls, 30);
        assert_eq!(spending.note(30, at(124)).calls, 20);
        assert_eq!(spending.note(35, at(134)).calls, 5);
        assert_eq!(spending.note(35, at(10_000)).calls, 0);
    }

    #[test]
    fn cost_and_budget_follow_the_calls() {
        let spending = spending();
        let spent = spending.note(100, at(1));
        assert!(!spent.over_budget());
        assert!((spent.cost - 0.03).abs() < 1e-9, "{spent:?}");
        assert!(spending.note(101, at(2)).over_budget());
    }
}
