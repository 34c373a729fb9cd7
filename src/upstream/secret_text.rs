//! Text that nobody may see: credentials from a file or an answer, and KEKs in base64 on their way to and from a cloud.

use std::fmt;

use base64ct::{Base64, Encoding};
use keystead_core::Kek;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

/// Wiped on drop, never shown.
pub struct SecretText(SecretString);

impl SecretText {
    pub fn new(text: &str) -> Self {
        Self(SecretString::from(text))
    }

    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(redacted)")
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(SecretString::from(text)))
    }
}

/// A KEK as requests carry it.
pub fn encode_kek(kek: &Kek) -> Zeroizing<String> {
    Zeroizing::new(Base64::encode_string(kek.expose()))
}

/// A KEK as answers carry it; `None` when it is no base64 of 32 bytes.
pub fn decode_kek(text: &SecretText) -> Option<Kek> {
    let mut bytes = Zeroizing::new([0; Kek::LEN]);
    let decoded = Base64::decode(text.expose(), bytes.as_mut_slice()).ok()?;
    (decoded.len() == Kek::LEN).then(|| Kek::take(&mut bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kek_survives_the_way_there_and_back_and_nothing_else_is_one() {
        let text = encode_kek(&Kek::take(&mut [7; 32]));
        assert_eq!(decode_kek(&SecretText::new(&text)).unwrap().expose(), &[7; 32]);
        for bad in ["", "AAAA", "!!!!", &format!("{}AAAA", *text), "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc"] {
            assert!(decode_kek(&SecretText::new(bad)).is_none(), "{bad}");
        }
    }

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", SecretText::new("AKIA")), "SecretText(redacted)");
    }
}
