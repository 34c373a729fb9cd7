//! The reason that a person gives for doing what is refused otherwise. It is logged and kept with the generation.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// 1 to 200 printable characters; neither begins nor ends with a space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reason(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a reason has 1 to {} letters, digits, spaces and signs, in one line", Reason::MAX_LEN)]
pub struct ReasonError;

impl Reason {
    pub const MAX_LEN: usize = 200;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Reason {
    type Err = ReasonError;

    fn from_str(text: &str) -> Result<Self, ReasonError> {
        // Letters of every script, but none of the characters that only turn, hide or join others.
        let fits = |letter: char| letter.is_alphanumeric() || letter.is_ascii_graphic() || letter == ' ';
        if text.is_empty() || text.trim() != text || text.chars().count() > Self::MAX_LEN || !text.chars().all(fits) {
            return Err(ReasonError);
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Reason {
    type Error = ReasonError;

    fn try_from(text: String) -> Result<Self, ReasonError> {
        text.parse()
    }
}

impl From<Reason> for String {
    fn from(reason: Reason) -> Self {
        reason.0
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_is_one_printable_line() {
        let long = "a".repeat(Reason::MAX_LEN);
        for good in ["CMK compromised, INC-42", "Schlüssel könnte bekannt sein", "鍵", &long] {
            assert_eq!(good.parse::<Reason>().unwrap().as_str(), good);
        }
        let longer = format!("{long}a");
        for bad in ["", " ", " a", "a ", "a\nb", "a\u{1b}[2J", "a\u{202e}b", "a\u{200b}", "a\tb", &longer] {
            assert_eq!(bad.parse::<Reason>(), Err(ReasonError), "{bad:?}");
        }
    }
}
