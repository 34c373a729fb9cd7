//! How long to wait before a child is started again. Pure: who asks says how long the last one lived.

use std::time::Duration;

/// Doubles from the shortest to the longest wait; forgets after a child that lived long enough.
#[derive(Debug, Clone)]
pub struct Backoff {
    shortest: Duration,
    longest: Duration,
    forgets_after: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(shortest: Duration, longest: Duration, forgets_after: Duration) -> Self {
        Self { shortest, longest, forgets_after, next: shortest }
    }

    /// The wait after a child that lived for `lived`.
    pub fn after(&mut self, lived: Duration) -> Duration {
        if lived >= self.forgets_after {
            self.next = self.shortest;
        }
        let wait = self.next;
        self.next = (wait * 2).min(self.longest);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT_LIFE: Duration = Duration::from_secs(1);

    fn backoff() -> Backoff {
        Backoff::new(Duration::from_millis(100), Duration::from_secs(30), Duration::from_secs(60))
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let mut backoff = backoff();
        let waits: Vec<_> = (0..11).map(|_| backoff.after(SHORT_LIFE).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
    }

    #[test]
    fn long_life_is_forgiven() {
        let mut backoff = backoff();
        for _ in 0..20 {
            backoff.after(SHORT_LIFE);
        }
        assert_eq!(backoff.after(Duration::from_secs(60)).as_millis(), 100);
        assert_eq!(backoff.after(SHORT_LIFE).as_millis(), 200);
    }
}
