//! What all providers do with an answer: read JSON that may be hostile, sort a code nobody knows, tell a person.

use std::time::{Duration, SystemTime};

use http::StatusCode;
use keystead_core::FaultClass;
use serde::de::DeserializeOwned;

use super::contract::UpstreamError;
use super::dates;
use super::transport::{Reply, codes};

/// Longer waits than this are no throttling; the renewal interval takes over.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// The answer's JSON. What does not parse was not said by the service, whatever the status: HTML with 200, foreign JSON.
///
/// # Errors
/// `Unreachable` with [`codes::FOREIGN`], or with `http-503` and the like.
pub fn json<T: DeserializeOwned>(reply: &Reply, service: &str) -> Result<T, UpstreamError> {
    serde_json::from_slice(&reply.body).map_err(|_| foreign(reply, service))
}

/// An answer that is not the service's own: a portal's, or a gateway's in front of a service that is overloaded.
pub fn foreign(reply: &Reply, service: &str) -> UpstreamError {
    let status = reply.status.as_u16();
    let (code, detail) = if unsorted(reply.status) == FaultClass::Unreachable {
        (format!("http-{status}"), format!("what stands before {service} answered {status}"))
    } else {
        let detail =
            format!("what answered {status} for {service} is not {service}; is a captive portal or proxy in the way?");
        (codes::FOREIGN.to_owned(), detail)
    };
    UpstreamError { retry_after: reply.retry_after, ..UpstreamError::new(FaultClass::Unreachable, code, detail) }
}

/// The class of a service's code that no table lists.
pub fn unsorted(status: StatusCode) -> FaultClass {
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::REQUEST_TIMEOUT {
        FaultClass::Unreachable
    } else {
        FaultClass::Unclassified
    }
}

/// A service's word as it may be logged: printable ASCII, at most `max` bytes.
pub fn printable(text: &str, max: usize) -> String {
    text.chars().filter(|sign| sign.is_ascii_graphic() || *sign == ' ').take(max).collect()
}

/// Reads a `Retry-After` header: seconds, or a date seen from the service's own clock.
pub(super) fn retry_after(text: &str, date: Option<SystemTime>) -> Option<Duration> {
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => dates::parse_http(text)?.duration_since(date?).ok()?,
    };
    Some(wait.min(LONGEST_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_refusal_is_never_a_revocation() {
        for (status, class) in [
            (500, FaultClass::Unreachable),
            (503, FaultClass::Unreachable),
            (429, FaultClass::Unreachable),
            (400, FaultClass::Unclassified),
            (403, FaultClass::Unclassified),
            (404, FaultClass::Unclassified),
            (410, FaultClass::Unclassified),
        ] {
            assert_eq!(unsorted(StatusCode::from_u16(status).unwrap()), class, "{status}");
        }
    }

    #[test]
    fn wait_is_read_in_both_spellings_and_bounded() {
        let date = dates::parse_http("Sat, 22 Nov 2025 13:04:05 GMT");
        assert_eq!(retry_after("7", None), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Sat, 22 Nov 2025 13:04:15 GMT", date), Some(Duration::from_secs(10)));
        assert_eq!(retry_after("99999999999", None), Some(LONGEST_WAIT));
        assert_eq!(retry_after("soon", date), None);
    }

    #[test]
    fn hostile_words_cannot_forge_a_log_line() {
        assert_eq!(printable("a\nb\x1b[31m é x", 6), "ab[31m");
    }
}
