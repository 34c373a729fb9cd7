//! When the key is rotated by itself: how old it may become, how far sites are spread, at which hours it may happen.
//!
//! Pure: all times are passed in. The age goes by two measures, of which the greater counts: the wall clock since the
//! activation, which anybody may have set, and what this process has seen go by, which no one can set. What a clock that
//! jumps may bring about is one rotation and not several: the new generation's age begins at that clock. While the process
//! that made it runs, the next one waits for half of `every` of seen time besides; and a clock is believed only once it
//! has gone on steadily for a while.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::id::KeyId;

const DAY: u64 = 86_400;
/// A clock must have run steadily for so long before a rotation goes by it: after a boot, many are set right first.
pub const STEADY: Duration = Duration::from_secs(3600);
/// How far the wall clock may stray from boot time before it is said to have stepped.
const STEP: i128 = 300;
/// An activation before it (2020-01-01) was dated by a clock that had lost the time.
const NOT_BEFORE: u64 = 1_577_836_800;

/// A site's word on when to rotate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The age that the key does not pass, but for the wait for the window.
    pub every: Duration,
    /// By up to so much it is done earlier, each generation by another part of it: sites do not rotate together.
    pub jitter: Duration,
    pub window: Option<Window>,
}

/// Hours of the week, UTC, so that no day is shorter than another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// On which it opens; bit 0 is Monday.
    days: u8,
    /// Minutes of the day; up to 1440 for the end. An end that is not later is of the next day.
    from: u16,
    until: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no window; write it as \"01:00-05:00\", \"sat,sun 01:00-05:00\" or \"mon-fri 22:00-04:00\" (UTC)")]
pub struct NoWindow;

/// Both clocks at one instant, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Unix time, as the machine believes.
    pub wall: u64,
    /// Since boot; never steps.
    pub boot_time: u64,
}

/// What one process has seen of key and clocks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watch {
    seen: Option<Seen>,
    clock: Option<Steady>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    key_id: KeyId,
    /// Boot time.
    since: u64,
    /// It became active while this process watched, and so is exactly as old as that.
    witnessed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Steady {
    /// Boot time of the last step, or of the first look.
    since: u64,
    last: Moment,
}

/// How old the active generation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age {
    pub seconds: u64,
    /// The clock of now or of the activation is known to be wrong: it may be older.
    pub uncertain: bool,
}

/// What a schedule says at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Unix seconds: when it was due first and its window open; in the past if it is overdue.
    pub planned: u64,
    /// The next moment, from now on, at which it may be made.
    pub next: u64,
    /// It is due, and the window is open.
    pub due: bool,
    /// Seconds until the clock is believed.
    pub unsteady: u64,
}

impl Window {
    fn opens_on(self, day: u64) -> bool {
        // 1970-01-01 was a Thursday.
        self.days & 1 << ((day + 3) % 7) != 0
    }

    /// Whether it is open at `unix`.
    pub fn is_open(self, unix: u64) -> bool {
        let (day, minute) = (unix / DAY, unix % DAY / 60);
        let (from, until) = (u64::from(self.from), u64::from(self.until));
        let over_midnight = until <= from;
        let of_today = self.opens_on(day) && minute >= from && (over_midnight || minute < until);
        // The day before the first is a Wednesday, as any other six days on.
        let of_yesterday = over_midnight && self.opens_on(day + 6) && minute < until;
        of_today || of_yesterday
    }

    /// The first moment from `unix` on at which it is open.
    pub fn next_open(self, unix: u64) -> u64 {
        if self.is_open(unix) {
            return unix;
        }
        let opening = |day: u64| day.saturating_mul(DAY).saturating_add(u64::from(self.from) * 60);
        let today = unix / DAY;
        (today..=today.saturating_add(7))
            .filter(|&day| self.opens_on(day))
            .map(opening)
            .find(|&opens| opens >= unix)
            .unwrap_or(u64::MAX)
    }
}

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

impl FromStr for Window {
    type Err = NoWindow;

    fn from_str(text: &str) -> Result<Self, NoWindow> {
        let text = text.to_ascii_lowercase();
        let (days, hours) = match text.split_once(' ') {
            Some((days, hours)) => (parse_days(days)?, hours),
            None => (0x7f, text.as_str()),
        };
        let (from, until) = hours.split_once('-').ok_or(NoWindow)?;
        let (from, until) = (parse_time(from)?, parse_time(until)?);
        // An empty window, and one of a whole day under another name, are mistakes.
        if from == until || from == 1440 {
            return Err(NoWindow);
        }
        Ok(Self { days, from, until })
    }
}

fn parse_days(text: &str) -> Result<u8, NoWindow> {
    let number = |name: &str| DAYS.iter().position(|day| *day == name).ok_or(NoWindow);
    let mut days = 0;
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        // "sat-mon" goes on into the next week.
        let count = (last + 7 - first) % 7;
        (0..=count).for_each(|offset| days |= 1 << ((first + offset) % 7));
    }
    Ok(days)
}

fn parse_time(text: &str) -> Result<u16, NoWindow> {
    let (hours, minutes) = text.split_once(':').ok_or(NoWindow)?;
    let two_digits = |text: &str| match text.as_bytes() {
        [tens @ b'0'..=b'9', ones @ b'0'..=b'9'] => Ok(u16::from(tens - b'0') * 10 + u16::from(ones - b'0')),
        _ => Err(NoWindow),
    };
    let (hours, minutes) = (two_digits(hours)?, two_digits(minutes)?);
    match hours * 60 + minutes {
        time @ 0..=1440 if minutes < 60 => Ok(time),
        _ => Err(NoWindow),
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days != 0x7f {
            let days = DAYS.iter().enumerate().filter(|(number, _)| self.days & 1 << number != 0);
            let days: Vec<&str> = days.map(|(_, name)| *name).collect();
            write!(f, "{} ", days.join(","))?;
        }
        let (from, until) = (self.from, self.until);
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, until / 60, until % 60)
    }
}

impl Schedule {
    /// The age at which this generation is due. Its part of the jitter is as random as its key ID, and stays.
    fn due_at_age(&self, key_id: &KeyId) -> u64 {
        let digest = Sha256::digest([b"keystead-rotation-jitter\x01", key_id.to_string().as_bytes()].concat());
        let part = digest[..8].iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        // At most the jitter itself, which is a u64 of seconds.
        let earlier = ((u128::from(part) * u128::from(self.jitter.as_secs())) >> 64) as u64;
        self.every.as_secs().saturating_sub(earlier)
    }
}

impl Watch {
    /// Takes the clocks down. `active`: the generation that encrypts, and when it was activated.
    pub fn look(&mut self, active: &KeyId, now: Moment) {
        let first = self.seen.is_none();
        if self.seen.as_ref().is_none_or(|seen| seen.key_id != *active) {
            self.seen = Some(Seen { key_id: active.clone(), since: now.boot_time, witnessed: !first });
        }
        let steady = self.clock.filter(|clock| {
            let by_wall = i128::from(now.wall) - i128::from(clock.last.wall);
            let by_boot = i128::from(now.boot_time) - i128::from(clock.last.boot_time);
            (by_wall - by_boot).abs() <= STEP
        });
        self.clock = Some(Steady { since: steady.map_or(now.boot_time, |clock| clock.since), last: now });
    }

    /// Of the generation that was looked at last, activated at `activated` by the wall clock of then.
    pub fn age(&self, activated: u64, now: Moment) -> Age {
        let seen = self.seen_for(now);
        let by_wall = now.wall.saturating_sub(activated);
        // Both can be told from each other only where the clock is behind: one that is ahead is believed.
        Age { seconds: by_wall.max(seen), uncertain: now.wall < activated || activated < NOT_BEFORE }
    }

    /// When it is to be rotated.
    pub fn plan(&self, schedule: &Schedule, activated: u64, now: Moment) -> Plan {
        let target = self.seen.as_ref().map_or(schedule.every.as_secs(), |seen| schedule.due_at_age(&seen.key_id));
        let age = self.age(activated, now).seconds;
        let spacing = match &self.seen {
            Some(Seen { witnessed: true, .. }) => (schedule.every.as_secs() / 2).saturating_sub(self.seen_for(now)),
            _ => 0,
        };
        let left = target.saturating_sub(age).max(spacing);
        // Where it is overdue, since when.
        let due = now.wall.saturating_add(left).saturating_sub(if left == 0 { age - target.min(age) } else { 0 });
        let opens = |from| schedule.window.map_or(from, |window| window.next_open(from));
        let (planned, next) = (opens(due), opens(due.max(now.wall)));
        let open = schedule.window.is_none_or(|window| window.is_open(now.wall));
        let steady = self.clock.map_or(0, |clock| now.boot_time.saturating_sub(clock.since));
        let believed = STEADY.as_secs().min(schedule.every.as_secs() / 4);
        Plan { planned, next, due: left == 0 && open, unsteady: believed.saturating_sub(steady) }
    }

    fn seen_for(&self, now: Moment) -> u64 {
        self.seen.as_ref().map_or(0, |seen| now.boot_time.saturating_sub(seen.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{GenerationNumber, KeyringId};
    use proptest::prelude::*;

    const HOUR: u64 = 3600;
    /// 2026-11-23, a Monday, at midnight.
    const MONDAY: u64 = 1_795_392_000;

    fn key_id(number: u64) -> KeyId {
        let keyring: KeyringId = "test".parse().unwrap();
        KeyId::mint(&keyring, GenerationNumber(number), [u8::try_from(number).unwrap(); 16])
    }

    fn every(days: u64) -> Schedule {
        Schedule { every: Duration::from_secs(days * DAY), jitter: Duration::ZERO, window: None }
    }

    fn at(day: u64, hour: u64, minute: u64) -> u64 {
        MONDAY + day * DAY + hour * HOUR + minute * 60
    }

    /// A process, its clocks, and the key.
    struct World {
        watch: Watch,
        now: Moment,
        key: (u64, u64),
    }

    impl World {
        fn new(wall: u64, activated: u64) -> Self {
            let mut world = Self { watch: Watch::default(), now: Moment { wall, boot_time: 100 }, key: (1, activated) };
            world.look();
            world
        }

        fn look(&mut self) {
            self.watch.look(&key_id(self.key.0), self.now);
        }

        /// Hours go by, looked at as the daemon does.
        fn run(&mut self, hours: u64) {
            for _ in 0..hours * 60 {
                self.now.wall += 60;
                self.now.boot_time += 60;
                self.look();
            }
        }

        fn step(&mut self, seconds: i64) {
            self.now.wall = self.now.wall.saturating_add_signed(seconds).max(1);
            self.look();
        }

        fn plan(&self, schedule: &Schedule) -> Plan {
            self.watch.plan(schedule, self.key.1, self.now)
        }

        fn rotates(&self, schedule: &Schedule) -> bool {
            let plan = self.plan(schedule);
            plan.due && plan.unsteady == 0
        }

        fn rotate(&mut self) {
            self.key = (self.key.0 + 1, self.now.wall);
            self.look();
        }

        fn restart(&mut self) {
            self.watch = Watch::default();
            self.look();
        }
    }

    #[test]
    fn windows_are_read_as_people_write_them() {
        for (text, shown) in [
            ("01:00-05:00", "01:00-05:00"),
            ("sat,sun 01:00-05:00", "sat,sun 01:00-05:00"),
            ("Mon-Fri 22:00-04:00", "mon,tue,wed,thu,fri 22:00-04:00"),
            ("sat-mon 00:00-24:00", "mon,sat,sun 00:00-24:00"),
            ("sun 23:59-00:00", "sun 23:59-00:00"),
        ] {
            assert_eq!(text.parse::<Window>().unwrap().to_string(), shown);
        }
        for text in [
            "",
            "01:00",
            "1:00-2:00",
            "01:00-01:00",
            "24:00-01:00",
            "01:60-02:00",
            "25:00-26:00",
            "00:00-24:01",
            "funday 01:00-02:00",
            "sat, sun 01:00-02:00",
            "sat 01:00 - 02:00",
            " 01:00-02:00",
            "-01:00-02:00",
            "01:00-02:00 sat",
            "+1:00-02:00",
        ] {
            assert_eq!(text.parse::<Window>(), Err(NoWindow), "{text:?}");
        }
    }

    #[test]
    fn window_over_midnight_belongs_to_the_day_it_begins_on() {
        let window: Window = "fri 22:00-04:00".parse().unwrap();
        for (moment, open) in [
            (at(4, 21, 59), false),
            (at(4, 22, 0), true),
            (at(5, 0, 0), true),
            (at(5, 3, 59), true),
            (at(5, 4, 0), false),
            (at(5, 22, 0), false),
            // The night before is Thursday's.
            (at(4, 2, 0), false),
        ] {
            assert_eq!(window.is_open(moment), open, "{}", moment - MONDAY);
        }
        assert_eq!(window.next_open(at(0, 0, 0)), at(4, 22, 0));
        assert_eq!(window.next_open(at(5, 3, 59)), at(5, 3, 59));
        assert_eq!(window.next_open(at(5, 4, 0)), at(11, 22, 0));
        let sunday: Window = "sun 23:00-01:00".parse().unwrap();
        assert!(sunday.is_open(at(7, 0, 30)), "into the next week");
        let daily: Window = "01:00-05:00".parse().unwrap();
        assert_eq!((daily.next_open(at(2, 5, 0)), daily.next_open(at(2, 0, 0))), (at(3, 1, 0), at(2, 1, 0)));
    }

    proptest! {
        #[test]
        fn next_opening_is_open_and_nothing_before_it_is(days in 1u8..=0x7f, from in 0u16..1440, until in 0u16..=1440, moment in 0u64..4_000_000_000) {
            prop_assume!(from != until);
            let window = Window { days, from, until };
            let next = window.next_open(moment);
            prop_assert!(next >= moment && next <= moment + 7 * DAY && window.is_open(next));
            let mut before = moment;
            while before < next {
                prop_assert!(!window.is_open(before));
                before += 60 - before % 60;
            }
            prop_assert_eq!(window.to_string().parse::<Window>().unwrap(), window);
        }

        #[test]
        fn far_clocks_overflow_nothing(wall in any::<u64>(), boot in any::<u64>(), activated in any::<u64>(), every in any::<u32>()) {
            let schedule = Schedule { every: Duration::from_secs(every.into()), jitter: Duration::from_secs(u64::from(every) / 2), window: Some("mon 23:00-01:00".parse().unwrap()) };
            let mut watch = Watch::default();
            watch.look(&key_id(1), Moment { wall: 5, boot_time: 5 });
            let now = Moment { wall, boot_time: boot };
            watch.look(&key_id(2), now);
            let plan = watch.plan(&schedule, activated, now);
            prop_assert!(!plan.due || every == 0 || every == 1, "just made");
        }
    }

    #[test]
    fn due_when_it_is_as_old_as_that_and_not_before() {
        let schedule = every(90);
        let mut world = World::new(MONDAY + 89 * DAY, MONDAY);
        assert_eq!(world.plan(&schedule).next, MONDAY + 90 * DAY);
        world.run(23);
        assert!(!world.rotates(&schedule));
        world.run(1);
        assert!(world.rotates(&schedule));
        world.run(2);
        let plan = world.plan(&schedule);
        assert_eq!((plan.planned, plan.next), (MONDAY + 90 * DAY, world.now.wall), "overdue since then");
        world.rotate();
        assert!(!world.rotates(&schedule));
        assert_eq!(world.plan(&schedule).next, world.now.wall + 90 * DAY);
    }

    #[test]
    fn window_delays_and_jitter_hastens() {
        let schedule = Schedule { window: Some("sat 01:00-05:00".parse().unwrap()), ..every(7) };
        let mut world = World::new(MONDAY + 7 * DAY, MONDAY);
        world.run(2);
        assert_eq!((world.plan(&schedule).next, world.rotates(&schedule)), (at(12, 1, 0), false));
        world.run(5 * 24 - 1);
        assert!(world.rotates(&schedule));
        world.run(5);
        let plan = world.plan(&schedule);
        assert_eq!((plan.planned, plan.next, plan.due), (at(12, 1, 0), at(19, 1, 0), false), "a window was missed");

        let jittered = Schedule { jitter: Duration::from_secs(9 * DAY), ..every(90) };
        let ages: Vec<u64> = (1..=200).map(|number| jittered.due_at_age(&key_id(number))).collect();
        assert!(ages.iter().all(|age| (81 * DAY..=90 * DAY).contains(age)), "never later than every");
        let quarter = |from: u64| ages.iter().filter(|&&age| age >= from && age < from + 9 * DAY / 4).count();
        assert!((0..4).all(|part| quarter(81 * DAY + part * 9 * DAY / 4) > 20), "spread: {ages:?}");
        assert_eq!(jittered.due_at_age(&key_id(3)), ages[2], "and stays");
    }

    #[test]
    fn clock_a_year_ahead_makes_one_rotation_and_no_more_whichever_way_it_jumps() {
        let schedule = every(90);
        let year = i64::try_from(365 * DAY).unwrap();
        let mut world = World::new(MONDAY + DAY, MONDAY);
        world.run(2);
        world.step(year);
        assert!(!world.rotates(&schedule), "not before the clock has held");
        world.run(1);
        assert!(world.rotates(&schedule));
        world.rotate();
        let mut rotations = 1;
        for step in [-year, year, year, -year, 2 * year, year, -4 * year, 9 * year] {
            world.step(step);
            for _ in 0..48 {
                world.run(1);
                if world.rotates(&schedule) {
                    world.rotate();
                    rotations += 1;
                }
            }
        }
        assert_eq!(rotations, 1, "half of `every` has to be seen between two");
    }

    #[test]
    fn clock_that_jumps_forth_for_less_than_an_hour_makes_none() {
        let schedule = every(90);
        let mut world = World::new(MONDAY + DAY, MONDAY);
        world.run(2);
        for _ in 0..20 {
            world.step(i64::try_from(365 * DAY).unwrap());
            for _ in 0..59 {
                world.now.wall += 60;
                world.now.boot_time += 60;
                world.look();
                assert!(!world.rotates(&schedule));
            }
            world.step(-i64::try_from(365 * DAY).unwrap());
            world.run(2);
            assert!(!world.rotates(&schedule));
        }
    }

    #[test]
    fn clock_in_1970_rotates_by_what_the_process_has_seen() {
        let schedule = every(90);
        let mut world = World::new(1000, MONDAY);
        assert!(world.watch.age(world.key.1, world.now).uncertain);
        world.run(89 * 24);
        assert!(!world.rotates(&schedule));
        assert_eq!(world.watch.age(world.key.1, world.now).seconds, 89 * DAY);
        world.run(24);
        assert!(world.rotates(&schedule));
        world.rotate();
        // Dated 1970: by a right clock it would be of any age, but half of `every` has to go by.
        world.step(i64::try_from(MONDAY).unwrap());
        world.run(24);
        assert!(!world.rotates(&schedule));
        assert!(world.watch.age(world.key.1, world.now).uncertain);
        world.run(44 * 24);
        assert!(world.rotates(&schedule));
    }

    #[test]
    fn key_dated_1970_is_rotated_once_by_a_right_clock_over_restarts_too() {
        let schedule = every(90);
        let mut world = World::new(MONDAY, 1000);
        world.run(1);
        assert!(world.rotates(&schedule));
        world.rotate();
        for _ in 0..10 {
            world.restart();
            world.run(3);
            assert!(!world.rotates(&schedule));
        }
    }

    #[test]
    fn restarts_make_no_second_rotation_of_one_jump() {
        let schedule = every(90);
        let mut world = World::new(MONDAY + DAY, MONDAY);
        let mut rotations = 0;
        for step in [365, -365, 365, -365, 365, -365] {
            world.step(step * i64::try_from(DAY).unwrap());
            world.restart();
            for _ in 0..4 {
                world.run(1);
                if world.rotates(&schedule) {
                    world.rotate();
                    rotations += 1;
                }
            }
        }
        assert_eq!(rotations, 1);
    }
}
