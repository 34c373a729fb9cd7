//! Times and spans as people and programs read them. UTC only: an edge box's time zone says little.

/// `2025-11-22T13:04:05Z`; `None` for 0, which stands for never.
pub fn rfc3339(unix: u64) -> Option<String> {
    if unix == 0 {
        return None;
    }
    let (year, month, day) = date(unix / 86_400);
    let (hour, minute, second) = (unix / 3600 % 24, unix / 60 % 60, unix % 60);
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"))
}

/// `2025-11-22`, or `-` for never.
pub fn day(unix: u64) -> String {
    rfc3339(unix).map_or_else(|| "-".into(), |time| time.split('T').next().unwrap_or_default().to_owned())
}

/// `3d 4h`, `5m 6s`: the two largest units.
pub fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// Days since 1970-01-01 → year, month, day in the Gregorian calendar. The year is counted from March, so that the leap
/// day is its last (Howard Hinnant, chrono-Compatible Low-Level Date Algorithms, `civil_from_days`).
fn date(days: u64) -> (u64, u64, u64) {
    // Days beyond year 10^15 are no date; they only must not overflow.
    let days = days.min(1 << 58) + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_instants_have_their_dates() {
        for (unix, expected) in [
            (1, "1970-01-01T00:00:01Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (1_763_816_645, "2025-11-22T13:04:05Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(unix).unwrap(), expected);
        }
        assert_eq!(rfc3339(0), None);
        assert_eq!(day(0), "-");
        assert!(rfc3339(u64::MAX).is_some());
    }

    #[test]
    fn spans_show_two_units() {
        assert_eq!([span(0), span(59), span(61), span(3_700), span(90_000)], ["0s", "59s", "1m 1s", "1h 1m", "1d 1h"]);
    }
}
