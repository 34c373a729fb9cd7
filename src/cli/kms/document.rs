//! What `encrypt` prints and `decrypt` takes: the answer of Encrypt as JSON, bytes in base64 (RFC 4648 §4).

use std::collections::{BTreeMap, HashMap};

use base64ct::{Base64, Encoding};
use keystead_wire::kms::v2::EncryptResponse;
use serde::{Deserialize, Serialize};

use crate::cli::exit::{Exit, Failure};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    pub ciphertext: Bytes,
    pub key_id: String,
    #[serde(default)]
    pub annotations: BTreeMap<String, Bytes>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes(pub Vec<u8>);

impl TryFrom<String> for Bytes {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Base64::decode_vec(&text).map(Self).map_err(|_| "not base64")
    }
}

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> Self {
        Base64::encode_string(&bytes.0)
    }
}

impl From<EncryptResponse> for Document {
    fn from(answer: EncryptResponse) -> Self {
        let annotations = answer.annotations.into_iter().map(|(key, value)| (key, Bytes(value))).collect();
        Self { ciphertext: Bytes(answer.ciphertext), key_id: answer.key_id, annotations }
    }
}

impl Document {
    pub fn parse(json: &[u8]) -> Result<Self, Failure> {
        serde_json::from_slice(json).map_err(|error| {
            Failure::new(Exit::Usage, format!("the input is not what `keystead kms encrypt` prints: {error}"))
        })
    }

    pub fn annotations(&self) -> HashMap<String, Vec<u8>> {
        self.annotations.iter().map(|(key, value)| (key.clone(), value.0.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn document_is_read_back_as_it_was_written() {
        let annotations = HashMap::from([("a.keystead.dev".to_owned(), vec![0, 255])]);
        let answer = EncryptResponse { ciphertext: vec![1, 2, 3], key_id: "ks1.a".into(), annotations };
        let document = Document::from(answer);
        let json = serde_json::to_string(&document).unwrap();
        assert_eq!(json, r#"{"ciphertext":"AQID","key_id":"ks1.a","annotations":{"a.keystead.dev":"AP8="}}"#);
        assert_eq!(Document::parse(json.as_bytes()).unwrap(), document);
    }

    #[test]
    fn anything_else_is_a_usage_error() {
        for bad in [
            "",
            "plaintext",
            "{}",
            r#"{"ciphertext":"AQI","key_id":"a"}"#,
            r#"{"ciphertext":"AQ ID","key_id":"a"}"#,
            r#"{"ciphertext":"AQID","key_id":1}"#,
            r#"{"ciphertext":"AQID","key_id":"a","plaintext":"b"}"#,
        ] {
            assert_eq!(Document::parse(bad.as_bytes()).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }
}
