//! What kube-apiserver stores under a key: in the clear, or behind a prefix that names provider and version.
//!
//! Source: k8s.io/apiserver, `storage/value/encrypt/envelope/kmsv2/v2/api.proto` and the transformers' prefixes.

use std::collections::HashMap;

use prost::Message;

const PREFIX: &[u8] = b"k8s:enc:kms:v2:";
/// Of every provider that is not `identity`.
const ENCRYPTED: &[u8] = b"k8s:enc:";
/// Longest name of a provider's kind with its version.
const MAX_SCHEME: usize = 32;
/// A provider's name in EncryptionConfiguration; no colon can be in it.
const MAX_NAME: usize = 256;

/// `k8s.io/apiserver`'s EncryptedObject.
#[derive(Clone, PartialEq, Message)]
pub struct EncryptedObject {
    #[prost(bytes = "vec", tag = "1")]
    pub encrypted_data: Vec<u8>,
    #[prost(string, tag = "2")]
    pub key_id: String,
    /// What the KMS plugin's Encrypt answered: our envelope.
    #[prost(bytes = "vec", tag = "3")]
    pub encrypted_dek_source: Vec<u8>,
    #[prost(map = "string, bytes", tag = "4")]
    pub annotations: HashMap<String, Vec<u8>>,
    #[prost(int32, tag = "5")]
    pub encrypted_dek_source_type: i32,
}

/// A stored value.
#[derive(Debug, PartialEq)]
pub enum Stored<'a> {
    /// By a KMS v2 plugin: ours or another.
    Kms { provider: &'a str, object: EncryptedObject },
    /// Behind that prefix, but not of its form.
    Malformed,
    /// Of another provider, as `aescbc:v1`.
    Other { scheme: &'a str },
    /// In the clear.
    Plain,
}

pub fn parse(value: &[u8]) -> Stored<'_> {
    let Some(rest) = value.strip_prefix(PREFIX) else {
        return value.strip_prefix(ENCRYPTED).map_or(Stored::Plain, |rest| Stored::Other { scheme: scheme(rest) });
    };
    let Some(end) = rest.iter().take(MAX_NAME).position(|&byte| byte == b':') else { return Stored::Malformed };
    match (std::str::from_utf8(&rest[..end]), EncryptedObject::decode(&rest[end + 1..])) {
        (Ok(provider), Ok(object)) if !provider.is_empty() => Stored::Kms { provider, object },
        _ => Stored::Malformed,
    }
}

/// Kind and version of a provider: what stands before the second colon.
fn scheme(rest: &[u8]) -> &str {
    let mut colons = rest.iter().take(MAX_SCHEME).enumerate().filter(|(_, byte)| **byte == b':').map(|(at, _)| at);
    let end = colons.nth(1).unwrap_or(0);
    std::str::from_utf8(&rest[..end]).ok().filter(|text| text.is_ascii() && !text.is_empty()).unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kms_v2_prefix_is_ours_to_read() {
        let object = EncryptedObject { key_id: "ks1.a".into(), ..EncryptedObject::default() };
        let value = [b"k8s:enc:kms:v2:edge:".as_slice(), &object.encode_to_vec()].concat();
        assert_eq!(parse(&value), Stored::Kms { provider: "edge", object });
        for plain in ["", "{}", "k8s\0", "k8s:encoded"] {
            assert_eq!(parse(plain.as_bytes()), Stored::Plain, "{plain}");
        }
        for (other, scheme) in [
            ("k8s:enc:aescbc:v1:key1:abc", "aescbc:v1"),
            ("k8s:enc:kms:v1:edge:abc", "kms:v1"),
            ("k8s:enc:", "unknown"),
            ("k8s:enc:\u{e9}:v1:a", "unknown"),
            ("k8s:enc:none", "unknown"),
        ] {
            assert_eq!(parse(other.as_bytes()), Stored::Other { scheme }, "{other}");
        }
        let endless = format!("k8s:enc:kms:v2:{}", "a".repeat(1000));
        for bad in ["k8s:enc:kms:v2:", "k8s:enc:kms:v2:edge", "k8s:enc:kms:v2::", "k8s:enc:kms:v2:edge:\u{1}", &endless]
        {
            assert_eq!(parse(bad.as_bytes()), Stored::Malformed, "{bad}");
        }
    }
}
