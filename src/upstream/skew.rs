//! What time the service believes it is: learnt from the `Date` of its answers, used to sign the next request.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

/// Seconds by which a service's clock is ahead of ours. Starts at none.
#[derive(Debug, Default)]
pub struct Skew(AtomicI64);

impl Skew {
    /// `now` as the service would say.
    pub fn apply(&self, now: SystemTime) -> SystemTime {
        let ahead = self.seconds();
        let distance = Duration::from_secs(ahead.unsigned_abs());
        let shifted = if ahead < 0 { now.checked_sub(distance) } else { now.checked_add(distance) };
        shifted.unwrap_or(now)
    }

    /// Takes the clock of an answer that TLS has authenticated. Returns by how many seconds the skew has changed.
    pub fn learn(&self, date: SystemTime, now: SystemTime) -> u64 {
        let ahead = match date.duration_since(now) {
            Ok(ahead) => i64::try_from(ahead.as_secs()).unwrap_or(0),
            Err(behind) => -i64::try_from(behind.duration().as_secs()).unwrap_or(0),
        };
        self.0.swap(ahead, Ordering::Relaxed).abs_diff(ahead)
    }

    pub fn seconds(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_of_the_service_is_followed_both_ways() {
        let skew = Skew::default();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_763_816_645);
        assert_eq!(skew.apply(now), now);
        let ahead = now + Duration::from_secs(1200);
        assert_eq!(skew.learn(ahead, now), 1200);
        assert_eq!(skew.apply(now), ahead);
        assert_eq!(skew.learn(now, ahead), 2400);
        assert_eq!(skew.apply(ahead), now);
        // A clock at 1970 is brought to today, and an offset that leads before 1970 does no harm.
        skew.learn(now, SystemTime::UNIX_EPOCH);
        assert_eq!(skew.apply(SystemTime::UNIX_EPOCH), now);
        skew.learn(SystemTime::UNIX_EPOCH, now);
        skew.apply(SystemTime::UNIX_EPOCH);
    }
}
