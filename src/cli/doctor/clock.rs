//! The clock: edge boxes lose it with their battery. Nothing here sets it.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::super::time;
use super::finding::Finding;
use super::look::{self, Look};
use super::scene::Scene;

struct Facts {
    /// Unix seconds.
    now: i64,
    /// When the store was last written.
    stored: Option<i64>,
    /// Unix seconds of each real-time clock, as the kernel reads it.
    rtc: Vec<Option<i64>>,
    /// Whether /sys tells of such clocks at all; a container may not show it.
    sys: bool,
    /// systemd-timesyncd has set the clock since boot.
    synchronized: bool,
}

/// 2026-01-01: no copy of this program is older.
const NOT_BEFORE: i64 = 1_767_225_600;
const HOUR: i64 = 3600;
/// Both clocks count whole seconds and are read one after the other; a battery clock drifts by seconds a week.
const TOLERANCE: i64 = 60;

const WRONG_TIME: &str = "Keystead serves on, but certificates fail, the log's times are wrong, and what is kept for a time is kept too long or too short";

pub fn check(scene: &Scene<'_>) -> Vec<Finding> {
    let class = scene.site.path("/sys/class/rtc");
    let clocks = look::names(&class);
    let seconds = |clock: &String| match look::read(&class.join(clock).join("since_epoch")) {
        Look::Found(text) => text.trim().parse().ok(),
        _ => None,
    };
    let device = scene.site.path("/dev/rtc0").exists() || scene.site.path("/dev/rtc").exists();
    let mut rtc: Vec<Option<i64>> = clocks.iter().map(seconds).collect();
    if rtc.is_empty() && device {
        rtc.push(None);
    }
    judge(&Facts {
        now: unix(SystemTime::now()),
        stored: look::at(&scene.store().join("keyring.store")).found().map(|entry| entry.modified),
        rtc,
        sys: look::at(&scene.site.path("/sys/class")).found().is_some(),
        synchronized: Path::new(&scene.site.path("/run/systemd/timesync/synchronized")).exists(),
    })
}

/// Before 1970 is negative.
fn unix(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
    }
}

fn judge(facts: &Facts) -> Vec<Finding> {
    vec![wall(facts), rtc(facts), synchronization(facts)]
}

fn shown(unix: i64) -> String {
    u64::try_from(unix).ok().and_then(time::rfc3339).unwrap_or_else(|| "1970-01-01T00:00:00Z or before".into())
}

fn wall(facts: &Facts) -> Finding {
    let id = "clock.wall";
    let next =
        "set the clock (`timedatectl set-time`), or wait for its synchronization; then look at the RTC's battery";
    if facts.now < NOT_BEFORE {
        let what = format!("the clock says {}, before this program was written", shown(facts.now));
        return Finding::critical(id, what, WRONG_TIME, next);
    }
    if let Some(stored) = facts.stored
        && stored > facts.now + HOUR
    {
        let what = format!("the clock says {}, and the store was written at {}", shown(facts.now), shown(stored));
        return Finding::warning(id, what, WRONG_TIME, next);
    }
    Finding::ok(id, shown(facts.now))
}

fn rtc(facts: &Facts) -> Finding {
    let id = "clock.rtc";
    if facts.rtc.is_empty() && !facts.sys {
        return Finding::unchecked(
            id,
            "there is no /sys/class to look for a real-time clock in",
            "run it on the host itself",
        );
    }
    if facts.rtc.is_empty() {
        let why = "after a power cut the clock starts at 1970, or where it last was, until the network sets it";
        return Finding::warning(
            id,
            "there is no real-time clock",
            why,
            "add one with a battery where the site has no time source; see fake-hwclock for the rest",
        );
    }
    let Some(seconds) = facts.rtc.iter().flatten().next() else {
        return Finding::unchecked(id, "there is a real-time clock, and its time cannot be read", "run it as root");
    };
    let apart = seconds - facts.now;
    if apart.abs() <= TOLERANCE {
        return Finding::ok(id, format!("the real-time clock is within {TOLERANCE} s"));
    }
    // Time zones are whole quarters of an hour, at most 14 hours.
    let local = apart.abs() <= 14 * HOUR + TOLERANCE
        && (apart.rem_euclid(900) <= TOLERANCE || apart.rem_euclid(900) >= 900 - TOLERANCE);
    if local {
        let what = format!("the real-time clock says {}: local time, it seems", shown(*seconds));
        return Finding::info(
            id,
            what,
            "it jumps twice a year, and is read as UTC by whatever boots first",
            "`timedatectl set-local-rtc 0`",
        );
    }
    let what = format!("the real-time clock says {}, the system {}", shown(*seconds), shown(facts.now));
    Finding::warning(
        id,
        what,
        "the next boot starts with the wrong time",
        "`hwclock --systohc` once the system's time is right; if it is lost again, change the battery",
    )
}

fn synchronization(facts: &Facts) -> Finding {
    let id = "clock.sync";
    if facts.synchronized {
        return Finding::ok(id, "set by systemd-timesyncd since boot");
    }
    let why =
        "without a time source the clock drifts by seconds a day; other services than timesyncd are not looked at";
    Finding::info(
        id,
        "no sign that systemd-timesyncd has set the clock",
        why,
        "fine on an air-gapped site with a good real-time clock, and with chrony or ntpd",
    )
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity::{self, Critical, Info, Ok, Warning};
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn found(change: impl FnOnce(&mut Facts)) -> Vec<(&'static str, Severity)> {
        let mut facts =
            Facts { now: NOW, stored: Some(NOW - 5), rtc: vec![Some(NOW + 1)], sys: true, synchronized: true };
        change(&mut facts);
        judge(&facts)
            .into_iter()
            .map(|finding| (finding.id, finding.severity))
            .filter(|(_, severity)| *severity != Ok)
            .collect()
    }

    #[test]
    fn right_clocks_have_no_findings() {
        assert_eq!(found(|_| {}), []);
        assert_eq!(found(|facts| facts.stored = None), []);
    }

    #[test]
    fn clock_at_1970_or_before_the_store_is_named() {
        for now in [-5, 0, 1000, NOT_BEFORE - 1] {
            assert_eq!(
                found(|facts| (facts.now, facts.rtc) = (now, vec![Some(now)])),
                [("clock.wall", Critical)],
                "{now}"
            );
        }
        assert_eq!(found(|facts| facts.stored = Some(NOW + 2 * HOUR)), [("clock.wall", Warning)]);
        assert_eq!(found(|facts| facts.stored = Some(i64::MAX / 2)), [("clock.wall", Warning)]);
    }

    #[test]
    fn real_time_clock_that_is_missing_wrong_or_local_is_told_apart() {
        assert_eq!(found(|facts| facts.rtc.clear()), [("clock.rtc", Warning)]);
        assert_eq!(found(|facts| (facts.rtc, facts.sys) = (Vec::new(), false)), [("clock.rtc", Info)]);
        assert_eq!(found(|facts| facts.rtc = vec![None]), [("clock.rtc", Info)]);
        for (apart, severity) in [
            (61, Warning),
            (-4000, Warning),
            (2 * HOUR + 3, Info),
            (-5 * HOUR - 1800, Info),
            (15 * HOUR, Warning),
            (-NOW, Warning),
        ] {
            assert_eq!(found(|facts| facts.rtc = vec![Some(NOW + apart)]), [("clock.rtc", severity)], "{apart}");
        }
        assert_eq!(found(|facts| facts.synchronized = false), [("clock.sync", Info)]);
    }

    #[test]
    fn clocks_are_read_below_the_given_root() {
        let folder = tempfile::tempdir().unwrap();
        let rtc = folder.path().join("sys/class/rtc/rtc0");
        std::fs::create_dir_all(&rtc).unwrap();
        std::fs::write(rtc.join("since_epoch"), "1000\n").unwrap();
        let text = "node = 'n'\n[store]\npath = '/nonexistent'\n";
        let source = crate::config::Source::from_parts(None, text.into());
        let site = crate::config::Site { root: folder.path().to_owned(), uid: 0, credentials: None };
        let settings = crate::config::Settings::from_source(&source, &site).unwrap();
        let scene = Scene::of(&settings, None, None, site);
        let findings = check(&scene);
        assert!(findings[1].what.contains("1970-01-01T00:16:40Z"), "{findings:?}");
        assert_eq!(findings[1].severity, Warning);
    }
}
