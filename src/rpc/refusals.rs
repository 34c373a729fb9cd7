//! How refusals are recorded: the first one at once, its repeats counted and told as one line when a window has passed. Whoever is
//! refused in a loop must not fill the disk, nor wear it out with a sync each.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::audit::AuditedPeer;

/// How long the repeats of a refusal gather at first; as long again, twice as long each time, while they go on.
pub(super) const FIRST_WINDOW: Duration = Duration::from_secs(60);
const LONGEST_WINDOW: Duration = Duration::from_secs(3600);
/// Users told apart; the refusals of more are counted by action alone.
const MOST_PRINCIPALS: usize = 64;

/// What is counted together: who, and what he may not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Refused {
    action: &'static str,
    /// User and login; `None` for all whom the table has no room for.
    principal: Option<(Option<u32>, Option<u32>)>,
}

/// Repeats that have not been told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Repeats {
    pub action: &'static str,
    /// As last refused; `None` where several users are counted together.
    pub who: Option<AuditedPeer>,
    pub repeated: u64,
    /// Since the line before.
    pub within: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<HashMap<Refused, Count>>);

#[derive(Debug)]
struct Count {
    who: Option<AuditedPeer>,
    repeated: u64,
    since: Instant,
    window: Duration,
}

impl Refusals {
    /// Counts a refusal. One that is the first of its window is to be recorded, and its window watched: [`Self::close`].
    pub(super) fn count(&self, action: &'static str, who: Option<AuditedPeer>, now: Instant) -> Option<Refused> {
        let mut counts = self.lock();
        let principal = Some((who.map(|who| who.uid), who.and_then(|who| who.login_uid)));
        let mut key = Refused { action, principal };
        let mut shown = who;
        if !counts.contains_key(&key) && counts.len() >= MOST_PRINCIPALS {
            key.principal = None;
            shown = None;
        }
        match counts.get_mut(&key) {
            Some(count) => {
                count.repeated += 1;
                count.who = shown;
                None
            }
            None => {
                counts.insert(key, Count { who: shown, repeated: 0, since: now, window: FIRST_WINDOW });
                Some(key)
            }
        }
    }

    /// What was repeated in a window that has passed, and how long the next one is; `None` when nothing was, and the next refusal is
    /// a first one again.
    pub(super) fn close(&self, key: Refused, now: Instant) -> Option<(Repeats, Duration)> {
        let mut counts = self.lock();
        let count = counts.get_mut(&key)?;
        let Some(repeats) = count.take(key, now) else {
            counts.remove(&key);
            return None;
        };
        count.window = (count.window * 2).min(LONGEST_WINDOW);
        Some((repeats, count.window))
    }

    /// All that was not told so far. Windows go on.
    pub(super) fn untold(&self, now: Instant) -> Vec<Repeats> {
        self.lock().iter_mut().filter_map(|(key, count)| count.take(*key, now)).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Refused, Count>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Count {
    fn take(&mut self, key: Refused, now: Instant) -> Option<Repeats> {
        let repeated = std::mem::take(&mut self.repeated);
        let since = std::mem::replace(&mut self.since, now);
        let within = now.saturating_duration_since(since);
        (repeated > 0).then_some(Repeats { action: key.action, who: self.who, repeated, within })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(uid: u32) -> Option<AuditedPeer> {
        Some(AuditedPeer { uid, login_uid: None, gid: 1, pid: Some(7) })
    }

    fn told(repeats: &Repeats) -> (&'static str, Option<u32>, u64) {
        (repeats.action, repeats.who.map(|who| who.uid), repeats.repeated)
    }

    #[test]
    fn first_is_told_at_once_repeats_once_a_window_and_windows_grow_while_it_goes_on() {
        let refusals = Refusals::default();
        let mut now = Instant::now();
        let key = refusals.count("rotate", who(5), now).expect("the first");
        let mut window = FIRST_WINDOW;
        let mut lines = 1;
        // A day of ten refusals a second, as nobody but the counter could take.
        let end = now + Duration::from_secs(86_400);
        while now < end {
            let refused = window.as_secs() * 10;
            (0..refused).for_each(|_| assert!(refusals.count("rotate", who(5), now).is_none()));
            now += window;
            let (repeats, next) = refusals.close(key, now).expect("repeats");
            assert_eq!(told(&repeats), ("rotate", Some(5), refused));
            assert_eq!(repeats.within, window);
            (window, lines) = (next, lines + 1);
        }
        assert_eq!(window, LONGEST_WINDOW);
        assert!(lines < 40, "{lines} lines");
        assert!(refusals.close(key, now + window).is_none(), "it has stopped");
        assert!(refusals.count("rotate", who(5), now).is_some(), "and is a first one again");
    }

    #[test]
    fn users_logins_and_actions_are_counted_apart() {
        let refusals = Refusals::default();
        let now = Instant::now();
        let logged_in = who(5).map(|who| AuditedPeer { login_uid: Some(9), ..who });
        for (action, who) in
            [("rotate", who(5)), ("rotate", who(6)), ("rescue", who(5)), ("rotate", logged_in), ("rotate", None)]
        {
            assert!(refusals.count(action, who, now).is_some(), "{action} {who:?}");
            assert!(refusals.count(action, who, now).is_none(), "{action} {who:?}");
        }
        assert_eq!(refusals.untold(now).len(), 5);
        assert!(refusals.untold(now).is_empty(), "told once");
        assert!(refusals.count("rotate", who(5), now).is_none(), "the window goes on");
    }

    #[test]
    fn more_users_than_the_table_holds_are_counted_together() {
        let refusals = Refusals::default();
        let now = Instant::now();
        let firsts = (0..10_000).filter(|uid| refusals.count("rotate", who(*uid), now).is_some()).count();
        assert_eq!(firsts, MOST_PRINCIPALS + 1);
        let untold = refusals.untold(now);
        let expected = ("rotate", None, 10_000 - MOST_PRINCIPALS as u64 - 1);
        assert_eq!(untold.iter().map(told).collect::<Vec<_>>(), [expected]);
    }
}
