//! Lower-case hexadecimal for byte strings in text formats (RFC 4648 §8).

use base16ct::lower;
use serde::{Deserialize, Deserializer, Serializer, de};

pub fn encode(bytes: &[u8]) -> String {
    lower::encode_string(bytes)
}

/// Strict: lower case only, so that one value has one spelling.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    lower::decode_vec(text).ok()
}

/// For `#[serde(with = "hex")]` on anything made from bytes.
pub fn serialize<S: Serializer>(bytes: &impl AsRef<[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&encode(bytes.as_ref()))
}

pub fn deserialize<'de, D: Deserializer<'de>, T: TryFrom<Vec<u8>>>(deserializer: D) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    decode(&text)
        .and_then(|bytes| T::try_from(bytes).ok())
        .ok_or_else(|| de::Error::custom("not the expected number of lower-case hex digits"))
}
