//! Values with a unit: durations, sizes, file modes. A bare number is refused, because 5 of what is a matter of luck.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// Why a text is not the quantity it should be. `example` shows one that is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    #[error("needs a unit, as {example:?}")]
    NoUnit { example: &'static str },
    #[error("must not be negative")]
    Negative,
    #[error("is too large")]
    TooLarge,
    #[error("must begin with a whole number, as {example:?}")]
    NoNumber { example: &'static str },
    #[error("has the unknown unit {unit:?}; allowed: {allowed}")]
    UnknownUnit { unit: String, allowed: &'static str },
    #[error("must be three or four octal digits in quotes, as \"0600\"")]
    NoMode,
}

/// A duration in the file: `"500ms"`, `"10s"`, `"10m"`, `"72h"`, `"3d"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

/// A number of bytes in the file: `"512B"`, `"4KiB"`, `"1MiB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

/// Permission bits of a file in the file: `"0600"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode(pub u32);

/// Units in milliseconds, largest first: [`show_duration`] takes the first that divides.
const DURATIONS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
const SIZES: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    quantity(text, &DURATIONS, "10s", "ms, s, m, h, d").map(Duration::from_millis)
}

pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    quantity(text, &SIZES, "4KiB", "B, KiB, MiB, GiB")
}

pub fn parse_mode(text: &str) -> Result<u32, UnitError> {
    let octal = matches!(text.len(), 3 | 4) && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    match u32::from_str_radix(text, 8) {
        // Set-user-ID, set-group-ID and sticky mean nothing on a socket.
        Ok(mode) if octal && mode <= 0o777 => Ok(mode),
        _ => Err(UnitError::NoMode),
    }
}

/// The duration as the file would spell it; parts of a millisecond are dropped.
pub fn show_duration(duration: Duration) -> String {
    show(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), &DURATIONS, "s")
}

pub fn show_size(bytes: u64) -> String {
    show(bytes, &SIZES, "B")
}

pub fn show_mode(mode: u32) -> String {
    format!("{mode:04o}")
}

fn quantity(text: &str, units: &[(&str, u64)], example: &'static str, allowed: &'static str) -> Result<u64, UnitError> {
    if text.starts_with('-') {
        return Err(UnitError::Negative);
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(UnitError::NoNumber { example });
    }
    if unit.is_empty() {
        return Err(UnitError::NoUnit { example });
    }
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        return Err(UnitError::UnknownUnit { unit: unit.to_owned(), allowed });
    };
    // Only digits are left, so the one way to fail is to be too large.
    let number: u64 = number.parse().map_err(|_| UnitError::TooLarge)?;
    number.checked_mul(*factor).ok_or(UnitError::TooLarge)
}

fn show(value: u64, units: &[(&str, u64)], zero: &str) -> String {
    if value == 0 {
        return format!("0{zero}");
    }
    units
        .iter()
        .find(|(_, factor)| value.is_multiple_of(*factor))
        .map_or_else(|| value.to_string(), |(unit, factor)| format!("{}{unit}", value / factor))
}

/// Accepts a string that `parse` accepts, and explains a bare number instead of calling it the wrong type.
struct Quantity<T> {
    expecting: &'static str,
    bare: UnitError,
    parse: fn(&str) -> Result<T, UnitError>,
}

impl<T> Visitor<'_> for Quantity<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        Err(E::custom(if number < 0 { UnitError::Negative } else { self.bare }))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<T, E> {
        Err(E::custom(self.bare))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bare = UnitError::NoUnit { example: "10s" };
        let quantity = Quantity { expecting: "a duration, as \"10s\"", bare, parse: parse_duration };
        deserializer.deserialize_any(quantity).map(Self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bare = UnitError::NoUnit { example: "4KiB" };
        let quantity = Quantity { expecting: "a size, as \"4KiB\"", bare, parse: parse_size };
        deserializer.deserialize_any(quantity).map(Self)
    }
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let quantity = Quantity { expecting: "a file mode, as \"0600\"", bare: UnitError::NoMode, parse: parse_mode };
        deserializer.deserialize_any(quantity).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_with_a_unit_are_read_and_shown_alike() {
        for (text, millis) in [("500ms", 500), ("10s", 10_000), ("10m", 600_000), ("72h", 259_200_000), ("0s", 0)] {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        assert_eq!(show_duration(Duration::from_secs(90)), "90s");
        assert_eq!(show_duration(Duration::from_secs(259_200)), "3d");
        assert_eq!(show_duration(Duration::ZERO), "0s");
        for (text, bytes) in [("1B", 1), ("4KiB", 4096), ("1MiB", 1 << 20), ("2GiB", 2 << 30)] {
            assert_eq!(parse_size(text).unwrap(), bytes);
            assert_eq!(show_size(bytes), text);
        }
        assert_eq!(parse_mode("0660").unwrap(), 0o660);
        assert_eq!(show_mode(parse_mode("600").unwrap()), "0600");
    }

    #[test]
    fn quantities_that_are_not_one_are_refused_with_the_reason() {
        assert_eq!(parse_duration("10").unwrap_err(), UnitError::NoUnit { example: "10s" });
        assert_eq!(parse_duration("-10s").unwrap_err(), UnitError::Negative);
        assert_eq!(parse_duration("18446744073709551615d").unwrap_err(), UnitError::TooLarge);
        assert_eq!(parse_duration("99999999999999999999s").unwrap_err(), UnitError::TooLarge);
        assert_eq!(parse_duration("s").unwrap_err(), UnitError::NoNumber { example: "10s" });
        for bad in ["", " 10s", "10 s", "10S", "1.5s", "10sec", "1h30m", "+1s", "١s", "10KiB"] {
            assert!(parse_duration(bad).is_err(), "{bad:?} was accepted");
        }
        for bad in ["", "4", "4KB", "4kib", "4K", "-1B", "1.5MiB", "18446744073709551615KiB", "0x10B", "4 KiB"] {
            assert!(parse_size(bad).is_err(), "{bad:?} was accepted");
        }
        for bad in ["", "6", "0800", "rw-------", "00600", "+600", "4755", "-600", "0o600"] {
            assert!(parse_mode(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
