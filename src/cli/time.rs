//! Times and spans as people and programs read them. UTC only: an edge box's time zone says little.

use std::time::{Duration, UNIX_EPOCH};

/// The last second that RFC 3339 can write, of the year 9999.
const LAST: u64 = 253_402_300_799;

/// `2025-11-22T13:04:05Z`; `None` for 0, which stands for never.
pub fn rfc3339(unix: u64) -> Option<String> {
    let time = UNIX_EPOCH + Duration::from_secs(unix.min(LAST));
    (unix > 0).then(|| humantime::format_rfc3339_seconds(time).to_string())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_dates_and_never_is_none() {
        assert_eq!(rfc3339(1_763_816_645).unwrap(), "2025-11-22T13:04:05Z");
        assert_eq!(rfc3339(u64::MAX).unwrap(), "9999-12-31T23:59:59Z");
        assert_eq!((rfc3339(0), day(0).as_str(), day(951_782_400).as_str()), (None, "-", "2000-02-29"));
    }

    #[test]
    fn spans_show_two_units() {
        assert_eq!([span(0), span(59), span(61), span(3_700), span(90_000)], ["0s", "59s", "1m 1s", "1h 1m", "1d 1h"]);
    }
}
