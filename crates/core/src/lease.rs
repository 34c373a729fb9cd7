//! The lease: how long the offline copy may be used after the last contact with the upstream. A countdown that is stored.
//!
//! While the machine runs it goes by boot time, which no one can set. Over a reboot nobody knows how long the machine was
//! off: what is taken then is the most that any clock says, and never less than [`FLOOR`] a boot, so that a site that lost
//! its clock cannot live on reboots. A wall clock that steps while the machine runs takes nothing; it only deserves a word.
//! Only a renewal or a signed grant gives anything back.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What the first start of a boot costs at least. Also the longest a countdown may go on without being stored: so a power
/// cut never gives anything back.
pub const FLOOR: Duration = Duration::from_secs(15 * 60);
/// No lease is longer, whoever asks for it.
pub const MAX_LENGTH: Duration = Duration::from_secs(366 * 24 * 3600);
/// More resets than this since a record was written are no count, but another device's, or one that was cleared.
const MANY_RESETS: u32 = 1 << 16;
/// How far the wall clock may stray from boot time before it is said to have stepped.
const STEP: u64 = 300;

/// All clocks, read at one instant. Whole seconds: differences of one clock then add up exactly, whatever the restarts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clocks {
    /// The kernel's boot ID: changes with every boot and with nothing else.
    pub boot: String,
    /// Seconds since boot, suspend included; never steps.
    pub boot_time: u64,
    /// Unix seconds, as the machine believes. Anybody may have set it to anything.
    pub wall: u64,
    /// Seconds on the custody device's own clock, if it has one.
    pub device: Option<u64>,
    /// Resets of the custody device, one a boot at least, counted from anywhere and round; `None` if it does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resets: Option<u32>,
}

/// A countdown, and when it was last brought up to date.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// Seconds it began with.
    length: u64,
    /// Seconds left at `seen`.
    left: u64,
    seen: Clocks,
}

/// What bringing a lease up to date came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Seconds that were taken.
    pub taken: u64,
    /// The machine was started anew since.
    pub new_boot: bool,
    /// Seconds by which the wall clock moved other than it should have.
    pub stepped: Option<i64>,
}

/// How much of a lease is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeaseAlarm {
    None,
    Half,
    ThreeQuarters,
    NineTenths,
    UsedUp,
}

impl Lease {
    /// As after a renewal. Longer than [`MAX_LENGTH`] is cut to it.
    pub fn full(length: Duration, now: Clocks) -> Self {
        let length = length.min(MAX_LENGTH).as_secs();
        Self { length, left: length, seen: now }
    }

    /// Brings the countdown to `now`: while running, and at a start alike.
    pub fn count(&mut self, now: Clocks) -> Counted {
        let wall = i128::from(now.wall) - i128::from(self.seen.wall);
        // Boot time that runs backwards within a boot is an image of the machine that was put back.
        let same_boot = now.boot == self.seen.boot && now.boot_time >= self.seen.boot_time;
        let (taken, expected) = if same_boot {
            let passed = now.boot_time - self.seen.boot_time;
            (passed, i128::from(passed))
        } else {
            let by_device = match (now.device, self.seen.device) {
                (Some(now), Some(seen)) => now.saturating_sub(seen),
                _ => 0,
            };
            let by_wall = u64::try_from(wall).unwrap_or(0);
            let boots = match (now.resets, self.seen.resets) {
                // Of those that a record put back knows nothing of, each is paid for.
                (Some(now), Some(seen)) if now.wrapping_sub(seen) <= MANY_RESETS => now.wrapping_sub(seen).max(1),
                _ => 1,
            };
            let floor = FLOOR.as_secs() * u64::from(boots);
            // The machine has been up for `boot_time` at least, whatever the rest says.
            let passed = floor.max(by_wall).max(by_device).max(now.boot_time);
            // After a boot only a clock that went back is known to be wrong.
            (passed, wall.max(0))
        };
        let strayed = wall - expected;
        let stepped = (strayed.unsigned_abs() > u128::from(STEP))
            .then(|| i64::try_from(strayed).unwrap_or(if strayed < 0 { i64::MIN } else { i64::MAX }));
        self.left = self.left.saturating_sub(taken);
        self.seen = now;
        Counted { taken, new_boot: !same_boot, stepped }
    }

    /// Refilled: the upstream has just opened the key.
    pub fn renew(&mut self, length: Duration, now: Clocks) {
        *self = Self::full(length, now);
    }

    /// Longer by a grant. Alarms begin anew.
    pub fn extend(&mut self, by: Duration) {
        self.left = self.left.saturating_add(by.as_secs()).min(MAX_LENGTH.as_secs());
        self.length = self.left;
    }

    /// Nothing left, and nothing comes back by waiting.
    pub fn end(&mut self) {
        self.left = 0;
    }

    /// As last brought up to date.
    pub fn left(&self) -> Duration {
        Duration::from_secs(self.left)
    }

    pub fn length(&self) -> Duration {
        Duration::from_secs(self.length)
    }

    pub fn is_used_up(&self) -> bool {
        self.left == 0
    }

    pub fn seen(&self) -> &Clocks {
        &self.seen
    }

    pub fn alarm(&self) -> LeaseAlarm {
        let used = u128::from(self.length.saturating_sub(self.left)) * 100;
        let at_least = |percent: u128| used >= u128::from(self.length) * percent;
        if self.left == 0 {
            LeaseAlarm::UsedUp
        } else if at_least(90) {
            LeaseAlarm::NineTenths
        } else if at_least(75) {
            LeaseAlarm::ThreeQuarters
        } else if at_least(50) {
            LeaseAlarm::Half
        } else {
            LeaseAlarm::None
        }
    }

    /// Whether this is a countdown that [`Self::full`] and [`Self::extend`] can have made.
    pub fn is_sound(&self) -> bool {
        self.left <= self.length && self.length <= MAX_LENGTH.as_secs() && self.seen.boot.len() <= 64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;
    const YEAR: u64 = 365 * 24 * HOUR;

    fn clocks(boot: &str, boot_time: u64, wall: u64) -> Clocks {
        Clocks { boot: boot.into(), boot_time, wall, device: None, resets: None }
    }

    fn lease() -> Lease {
        Lease::full(Duration::from_secs(72 * HOUR), clocks("a", 1000, YEAR))
    }

    fn left(lease: &Lease) -> u64 {
        lease.left().as_secs()
    }

    #[test]
    fn running_machine_pays_the_time_that_passed_whatever_its_wall_clock_says() {
        for wall in [0, YEAR, YEAR + 10 * HOUR, 2 * YEAR] {
            let mut lease = lease();
            let counted = lease.count(clocks("a", 1000 + 10 * HOUR, wall));
            assert_eq!((left(&lease), counted.new_boot), (62 * HOUR, false));
            assert_eq!(counted.stepped.is_some(), wall != YEAR + 10 * HOUR, "{wall}");
        }
    }

    #[test]
    fn three_hundred_restarts_in_one_boot_cost_the_time_that_passed_and_no_more() {
        let mut lease = lease();
        for restart in 1..=300 {
            lease.count(clocks("a", 1000 + 7 * restart, YEAR + 7 * restart));
        }
        assert_eq!(left(&lease), 72 * HOUR - 2100);
    }

    #[test]
    fn first_start_of_a_boot_pays_the_most_that_any_clock_says() {
        let at = |now: Clocks, before: Option<u64>| {
            let mut lease = lease();
            lease.seen.device = before;
            let counted = lease.count(now);
            assert!(counted.new_boot);
            assert_eq!(72 * HOUR - left(&lease), counted.taken);
            counted.taken
        };
        assert_eq!(at(clocks("b", 10, YEAR + 20), None), FLOOR.as_secs(), "a quick reboot costs the floor");
        assert_eq!(at(clocks("b", 10, YEAR + 5 * HOUR), None), 5 * HOUR, "the wall clock counts the time powered off");
        assert_eq!(at(clocks("b", 10, 0), None), FLOOR.as_secs(), "a lost clock gives nothing");
        assert_eq!(at(clocks("b", 2 * HOUR, 0), None), 2 * HOUR, "the machine was up at least that long");
        assert_eq!(at(Clocks { device: Some(3 * HOUR + 7), ..clocks("b", 10, 0) }, Some(7)), 3 * HOUR, "the device's");
        assert_eq!(at(Clocks { device: Some(7), ..clocks("b", 10, 0) }, Some(3 * HOUR)), FLOOR.as_secs());
    }

    #[test]
    fn each_reset_of_the_device_since_the_record_costs_a_boot() {
        let taken = |before: Option<u32>, now: Option<u32>, boot: &str| {
            let mut lease = lease();
            lease.seen.resets = before;
            let up = if boot == "a" { 1010 } else { 10 };
            lease.count(Clocks { resets: now, ..clocks(boot, up, 0) }).taken
        };
        let floor = FLOOR.as_secs();
        assert_eq!(taken(Some(7), Some(8), "b"), floor);
        assert_eq!(taken(Some(7), Some(12), "b"), 5 * floor);
        assert_eq!(taken(Some(u32::MAX), Some(1), "b"), 2 * floor, "the count is round");
        // A new kernel without a reset, a device that tells nothing, another device.
        for (before, now) in
            [(Some(7), Some(7)), (None, Some(9)), (Some(9), None), (Some(9), Some(7)), (Some(0), Some(1 << 31))]
        {
            assert_eq!(taken(before, now, "b"), floor, "{before:?} {now:?}");
        }
        assert_eq!(taken(Some(7), Some(9), "a"), 10, "in one boot nothing but its time counts");
    }

    #[test]
    fn reboots_without_a_clock_use_the_lease_up() {
        let mut lease = lease();
        let mut boots = 0;
        while !lease.is_used_up() {
            boots += 1;
            lease.count(clocks(&format!("boot {boots}"), 5, 0));
        }
        assert_eq!(boots, 72 * 4);
    }

    #[test]
    fn boot_time_that_runs_backwards_costs_the_floor() {
        let mut lease = lease();
        let counted = lease.count(clocks("a", 500, YEAR));
        assert_eq!((counted.new_boot, counted.taken), (true, FLOOR.as_secs()));
    }

    #[test]
    fn alarms_come_at_half_three_quarters_and_nine_tenths() {
        let mut lease = Lease::full(Duration::from_secs(1000), clocks("a", 0, 0));
        let mut seen = Vec::new();
        for second in 1..=1001 {
            lease.count(clocks("a", second, second));
            if seen.last().is_none_or(|(_, alarm)| *alarm != lease.alarm()) {
                seen.push((second, lease.alarm()));
            }
        }
        use LeaseAlarm::{Half, NineTenths, None, ThreeQuarters, UsedUp};
        assert_eq!(seen, [(1, None), (500, Half), (750, ThreeQuarters), (900, NineTenths), (1000, UsedUp)]);
    }

    #[test]
    fn extending_adds_and_stays_bounded() {
        let mut lease = lease();
        lease.count(clocks("a", 1000 + 70 * HOUR, YEAR));
        lease.extend(Duration::from_secs(24 * HOUR));
        assert_eq!((left(&lease), lease.alarm()), (26 * HOUR, LeaseAlarm::None));
        lease.extend(Duration::MAX);
        assert_eq!(lease.left(), MAX_LENGTH);
        assert!(lease.is_sound());
        assert_eq!(Lease::full(Duration::MAX, clocks("a", 0, 0)).left(), MAX_LENGTH);
    }

    #[test]
    fn extreme_clocks_overflow_nothing() {
        let far = Clocks {
            boot: "z".into(),
            boot_time: u64::MAX,
            wall: u64::MAX,
            device: Some(u64::MAX),
            resets: Some(u32::MAX),
        };
        for now in [far.clone(), clocks("a", u64::MAX, 0), clocks("", 0, u64::MAX)] {
            let mut lease = lease();
            lease.count(now);
            lease.count(clocks("a", 0, 0));
            lease.count(far.clone());
            assert!(lease.is_used_up() && lease.is_sound());
        }
    }
}
