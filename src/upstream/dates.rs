//! The three spellings of an instant that services and certificates use. UTC only.

use std::time::{Duration, SystemTime};

/// `2026-11-22T04:04:29Z`. Instants before 1970 are shown as 1970.
pub fn iso8601(time: SystemTime) -> String {
    let [year, month, day, hour, minute, second] = fields(time);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// `20261122T040429Z`.
pub fn iso8601_basic(time: SystemTime) -> String {
    let [year, month, day, hour, minute, second] = fields(time);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// Reads `2026-11-22T04:04:29Z`, also with a fraction of a second, which is dropped.
pub fn parse_iso8601(text: &str) -> Option<SystemTime> {
    let text = text.strip_suffix('Z')?;
    let (text, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let bytes = text.as_bytes();
    let shape = bytes.len() == 19
        && [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')].iter().all(|&(at, sign)| bytes[at] == sign);
    if !shape || fraction.is_empty() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = |from: usize, to: usize| digits(&bytes[from..to]);
    instant(number(0, 4)?, number(5, 7)?, number(8, 10)?, number(11, 13)?, number(14, 16)?, number(17, 19)?)
}

/// Reads a `Date` header.
pub fn parse_http(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text).ok()
}

/// Reads an X.509 `UTCTime` (`YYMMDDHHMMSSZ`, 1950 to 2049) or `GeneralizedTime` (`YYYYMMDDHHMMSSZ`); RFC 5280 §4.1.2.5.
pub fn parse_x509(text: &[u8], generalized: bool) -> Option<SystemTime> {
    let rest = text.strip_suffix(b"Z")?;
    let (year, rest) = rest.split_at_checked(if generalized { 4 } else { 2 })?;
    let year = match (digits(year)?, generalized) {
        (year, true) => year,
        (year, false) if year >= 50 => 1900 + year,
        (year, false) => 2000 + year,
    };
    if rest.len() != 10 {
        return None;
    }
    let pair = |index: usize| digits(&rest[2 * index..2 * index + 2]);
    instant(year, pair(0)?, pair(1)?, pair(2)?, pair(3)?, pair(4)?)
}

fn digits(bytes: &[u8]) -> Option<u64> {
    bytes.iter().try_fold(0, |number: u64, byte| byte.is_ascii_digit().then(|| number * 10 + u64::from(byte - b'0')))
}

/// `None` for a date that is none, or before 1970. A leap second counts as the next one.
fn instant(year: u64, month: u64, day: u64, hour: u64, minute: u64, second: u64) -> Option<SystemTime> {
    let fits = (1970..=9999).contains(&year) && (1..=12).contains(&month) && hour < 24 && minute < 60 && second <= 60;
    let days = fits.then(|| days_from_civil(year, month, day))?;
    // A 31st of February is another day when counted back.
    (civil_from_days(days) == [year, month, day])
        .then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86_400 + hour * 3600 + minute * 60 + second))
}

fn fields(time: SystemTime) -> [u64; 6] {
    let unix = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let [year, month, day] = civil_from_days(unix / 86_400);
    [year, month, day, unix / 3600 % 24, unix / 60 % 60, unix % 60]
}

/// Howard Hinnant, chrono-Compatible Low-Level Date Algorithms: the year is counted from March, so that the leap day is its last.
fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day.saturating_sub(1);
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * 146_097 + day_of_era).saturating_sub(719_468)
}

fn civil_from_days(days: u64) -> [u64; 3] {
    let days = days.min(1 << 58) + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    [year_of_era + era * 400 + u64::from(month <= 2), month, day]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(unix: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(unix)
    }

    #[test]
    fn known_instants_have_their_spellings() {
        for (unix, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (1_763_816_645, "2025-11-22T13:04:05Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(iso8601(at(unix)), text);
            assert_eq!(parse_iso8601(text), Some(at(unix)));
        }
        assert_eq!(iso8601_basic(at(1_763_816_645)), "20251122T130405Z");
        assert_eq!(parse_iso8601("2025-11-22T13:04:05.123Z"), Some(at(1_763_816_645)));
        assert_eq!(parse_x509(b"251122130405Z", false), Some(at(1_763_816_645)));
        assert_eq!(parse_x509(b"20251122130405Z", true), Some(at(1_763_816_645)));
        assert_eq!(parse_http("Sat, 22 Nov 2025 13:04:05 GMT"), Some(at(1_763_816_645)));
    }

    #[test]
    fn what_is_no_date_is_none() {
        for bad in [
            "",
            "Z",
            "2025-11-22",
            "2025-02-30T00:00:00Z",
            "2025-13-01T00:00:00Z",
            "2025-11-22T24:00:00Z",
            "1969-12-31T23:59:59Z",
            "2025-11-22T13:04:05",
            "2025-11-22 13:04:05Z",
            "2025-11-22T13:04:05.Z",
            "2025-1１-22T13:04:05Z",
            "2025-00-22T13:04:05Z",
            "2025-11-00T13:04:05Z",
        ] {
            assert_eq!(parse_iso8601(bad), None, "{bad:?}");
        }
        assert_eq!(parse_x509(b"2511221304Z", false), None);
        assert_eq!(parse_x509(b"491122130405", false), None);
    }
}
