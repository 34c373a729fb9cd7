//! The key's age: how long the active generation has encrypted. From the record on disk, which is read and not believed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keystead_core::keyring::GenerationState;

use super::super::time;
use super::finding::Finding;
use super::scene::Scene;
use crate::config::Effective;
use crate::store::Store;

/// Where no schedule says when a key is old: what the automatic rotation of the cloud consoles goes by.
const OLD: Duration = Duration::from_secs(365 * DAY);
/// A scheduled rotation may wait for its window, or for the cloud.
const LATE: Duration = Duration::from_secs(7 * DAY);
const DAY: u64 = 86_400;

struct Facts {
    /// Number, and when it was activated; `None` without a record that can be read.
    active: Option<(u64, SystemTime)>,
    now: SystemTime,
    /// What the schedule says.
    every: Option<Duration>,
}

pub fn check(scene: &Scene<'_>) -> Vec<Finding> {
    let record = Store::peek(scene.store()).ok().flatten();
    let active = record.as_ref().and_then(|record| {
        let generations = &record.claims().generations;
        let active = generations.iter().find(|generation| generation.state == GenerationState::Active)?;
        let since = UNIX_EPOCH.checked_add(Duration::from_secs(active.activated.unwrap_or(active.created)))?;
        Some((active.number.0, since))
    });
    let every = Effective::value(scene.settings, "rotation.every");
    let every = every.as_ref().and_then(|value| humantime::parse_duration(value.as_str()?).ok());
    judge(&Facts { active, now: SystemTime::now(), every }).into_iter().collect()
}

/// Nothing where the group of the store says why there is no record.
fn judge(facts: &Facts) -> Option<Finding> {
    let (number, since) = facts.active?;
    let Ok(age) = facts.now.duration_since(since) else {
        let what = format!("generation {number} was activated in the future: this clock, or that of then, is wrong");
        return Some(Finding::unchecked("key.age", what, "set the clock (see the group clock)"));
    };
    let what = format!("generation {number} has been active for {}", time::span(age.as_secs()));
    let why = "the longer one key encrypts, the more there is to lose with it, and a rotation that nobody has done for years is one that nobody knows how to do";
    let next = "`keystead key rotate`, after an `etcd scan`";
    Some(match facts.every {
        Some(every) if age > every + LATE => {
            let what = format!("{what}; rotation.every is {}", time::span(every.as_secs()));
            Finding::warning("key.age", what, why, "`keystead status` and the log say why it is not rotated")
        }
        None if age > OLD => Finding::warning("key.age", what, why, next),
        _ => Finding::ok("key.age", what),
    })
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;

    fn found(age: u64, every: Option<u64>) -> Severity {
        let days = |days: u64| Duration::from_secs(days * DAY);
        let now = UNIX_EPOCH + days(20_000);
        judge(&Facts { active: Some((3, now - days(age))), now, every: every.map(days) }).unwrap().severity
    }

    #[test]
    fn a_key_is_old_after_a_year_or_when_its_schedule_is_overdue() {
        use Severity::{Ok, Warning};
        for (age, every, expected) in [
            (0, None, Ok),
            (365, None, Ok),
            (366, None, Warning),
            (96, Some(90), Ok),
            (98, Some(90), Warning),
            (700, Some(730), Ok),
        ] {
            assert_eq!(found(age, every), expected, "{age} days, every {every:?}");
        }
    }

    #[test]
    fn a_clock_that_lost_its_battery_makes_no_key_old() {
        let now = UNIX_EPOCH;
        let facts = Facts { active: Some((3, now + OLD)), now, every: None };
        assert!(!judge(&facts).unwrap().checked);
        assert_eq!(judge(&Facts { active: None, ..facts }), None);
    }
}
