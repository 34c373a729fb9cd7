//! Identifiers: keyring, node, generation, key ID, root. Each is parsed once, at the edge, and cannot be wrong afterwards.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::hex;

/// A text that is not the identifier it should be. Holds only what is wrong, never the text: it may come from a peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {problem}")]
pub struct InvalidId {
    what: &'static str,
    problem: &'static str,
}

/// Name of one cluster's key: 1 to 40 of `a-z 0-9 -`, neither first nor last a `-`. Part of every key ID, so public.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyringId(String);

/// Name of one daemon's machine: 1 to 64 of `A-Z a-z 0-9 - . _`. Epoch secrets and store records belong to one node.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(String);

/// Counter of a keyring's generations, from 1. For people: only key IDs are unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GenerationNumber(pub u64);

/// The opaque string Kubernetes stores: `ks1.<keyring>.<generation>.<32 hex digits>`. Minted once, never reused.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyId {
    text: String,
    generation: GenerationNumber,
}

/// What kind of key a root is. Numbers stand in stored formats; a number unknown here is kept as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "u8", into = "u8")]
pub enum RootKind {
    /// A CMK in a PKCS#11 token; the root ID is its `CKA_ID`.
    Pkcs11,
    /// A CMK in a TPM 2.0.
    Tpm,
    /// A P-256 public key whose private half is kept offline.
    Recovery,
    /// A key in Alibaba Cloud KMS; the root ID of this and the next two is the bare key ID's ASCII bytes.
    AlibabaKms,
    /// A root key in IBM Key Protect or HPCS.
    IbmKeyProtect,
    /// A key in AWS KMS.
    AwsKms,
    /// A kind of a later version: carried along, never dropped, never opened.
    Other(u8),
}

/// Names one root within its kind: 1 to 64 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RootId(Vec<u8>);

impl KeyringId {
    pub const MAX_LEN: usize = 40;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyringId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let wrong = |problem| Err(InvalidId { what: "keyring name", problem });
        if text.is_empty() || text.len() > Self::MAX_LEN {
            return wrong("must have 1 to 40 characters");
        }
        if !text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
            return wrong("may hold only a-z, 0-9 and -");
        }
        if text.starts_with('-') || text.ends_with('-') {
            return wrong("must not begin or end with -");
        }
        Ok(Self(text.to_owned()))
    }
}

impl NodeId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let wrong = |problem| Err(InvalidId { what: "node name", problem });
        if text.is_empty() || text.len() > 64 {
            return wrong("must have 1 to 64 characters");
        }
        if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')) {
            return wrong("may hold only letters, digits, '-', '.' and '_'");
        }
        Ok(Self(text.to_owned()))
    }
}

impl GenerationNumber {
    pub const FIRST: Self = Self(1);

    /// The number after this one. 2^64 rotations do not happen.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl KeyId {
    const VERSION: &str = "ks1";
    /// Longest possible: version, keyring, 20 digits, 32 hex digits, three dots.
    pub const MAX_LEN: usize = 3 + KeyringId::MAX_LEN + 20 + 32 + 3;

    /// Mints a key ID. `random` must be fresh: it is what makes the ID unique for ever.
    pub fn mint(keyring: &KeyringId, generation: GenerationNumber, random: [u8; 16]) -> Self {
        let text = format!("{}.{}.{}.{}", Self::VERSION, keyring.as_str(), generation.0, hex::encode(&random));
        Self { text, generation }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn generation(&self) -> GenerationNumber {
        self.generation
    }

    /// Name of the keyring it was minted for.
    pub fn keyring(&self) -> &str {
        // Neither the version nor a keyring name holds a dot.
        self.text.split('.').nth(1).unwrap_or_default()
    }
}

impl FromStr for KeyId {
    type Err = InvalidId;

    /// Accepts exactly what [`KeyId::mint`] writes: one value has one spelling.
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let wrong = |problem| InvalidId { what: "key ID", problem };
        let shape = || wrong("is not of the form ks1.<keyring>.<generation>.<32 hex digits>");
        if text.len() > Self::MAX_LEN {
            return Err(wrong("is too long"));
        }
        let mut parts = text.split('.');
        let (Some(version), Some(keyring), Some(number), Some(random), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(shape());
        };
        if version != Self::VERSION {
            return Err(shape());
        }
        let keyring: KeyringId = keyring.parse()?;
        let generation = GenerationNumber(number.parse().map_err(|_| shape())?);
        let random: [u8; 16] = hex::decode(random).and_then(|bytes| bytes.try_into().ok()).ok_or_else(shape)?;
        let id = Self::mint(&keyring, generation, random);
        if id.text != text || generation.0 == 0 {
            return Err(shape());
        }
        Ok(id)
    }
}

impl From<u8> for RootKind {
    fn from(number: u8) -> Self {
        match number {
            1 => Self::Pkcs11,
            2 => Self::Tpm,
            3 => Self::Recovery,
            16 => Self::AlibabaKms,
            17 => Self::IbmKeyProtect,
            18 => Self::AwsKms,
            other => Self::Other(other),
        }
    }
}

impl From<RootKind> for u8 {
    fn from(kind: RootKind) -> u8 {
        match kind {
            RootKind::Pkcs11 => 1,
            RootKind::Tpm => 2,
            RootKind::Recovery => 3,
            RootKind::AlibabaKms => 16,
            RootKind::IbmKeyProtect => 17,
            RootKind::AwsKms => 18,
            RootKind::Other(number) => number,
        }
    }
}

impl fmt::Display for RootKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pkcs11 => f.write_str("pkcs11"),
            Self::Tpm => f.write_str("tpm"),
            Self::Recovery => f.write_str("recovery"),
            Self::AlibabaKms => f.write_str("alibaba-kms"),
            Self::IbmKeyProtect => f.write_str("ibm-key-protect"),
            Self::AwsKms => f.write_str("aws-kms"),
            Self::Other(number) => write!(f, "kind-{number}"),
        }
    }
}

impl RootKind {
    /// Whether the root is a key in a cloud KMS.
    pub fn is_upstream(self) -> bool {
        matches!(self, Self::AlibabaKms | Self::IbmKeyProtect | Self::AwsKms)
    }
}

impl RootId {
    pub const MAX_LEN: usize = 64;

    pub fn new(bytes: &[u8]) -> Result<Self, InvalidId> {
        if bytes.is_empty() || bytes.len() > Self::MAX_LEN {
            return Err(InvalidId { what: "root ID", problem: "must have 1 to 64 bytes" });
        }
        Ok(Self(bytes.to_vec()))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for RootId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let bytes = hex::decode(text).ok_or(InvalidId { what: "root ID", problem: "must be lower-case hex" })?;
        Self::new(&bytes)
    }
}

impl fmt::Display for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

/// Display, Debug and the conversions serde goes through, for identifiers that are text.
macro_rules! text_id {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    )*};
}
text_id!(KeyringId, NodeId, KeyId, RootId);

impl fmt::Display for KeyringId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for GenerationNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minted_key_id_parses_back_to_itself() {
        let keyring: KeyringId = "edge-7".parse().unwrap();
        let id = KeyId::mint(&keyring, GenerationNumber(12), [0xab; 16]);
        assert_eq!(id.as_str(), "ks1.edge-7.12.abababababababababababababababab");
        assert_eq!(id.as_str().parse::<KeyId>().unwrap(), id);
        assert_eq!(id.generation(), GenerationNumber(12));
    }

    #[test]
    fn longest_key_id_stays_within_its_bound() {
        let keyring: KeyringId = "k".repeat(KeyringId::MAX_LEN).parse().unwrap();
        let id = KeyId::mint(&keyring, GenerationNumber(u64::MAX), [0; 16]);
        assert_eq!(id.as_str().len(), KeyId::MAX_LEN);
        assert_eq!(id.as_str().parse::<KeyId>().unwrap(), id);
    }

    #[test]
    fn other_spellings_of_a_key_id_are_refused() {
        let random = "abababababababababababababababab";
        for bad in [
            String::new(),
            "ks1".into(),
            format!("ks2.default.1.{random}"),
            format!("ks1.default.01.{random}"),
            format!("ks1.default.+1.{random}"),
            format!("ks1.default.0.{random}"),
            format!("ks1.default.18446744073709551616.{random}"),
            format!("ks1.Default.1.{random}"),
            format!("ks1..1.{random}"),
            format!("ks1.default.1.{}", random.to_uppercase()),
            format!("ks1.default.1.{random}0"),
            format!("ks1.default.1.{}", &random[1..]),
            format!("ks1.default.1.{random}."),
            format!(" ks1.default.1.{random}"),
            format!("ks1.{}.1.{random}", "k".repeat(1000)),
        ] {
            assert!(bad.parse::<KeyId>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn unknown_root_kind_keeps_its_number() {
        for number in 0..=u8::MAX {
            assert_eq!(u8::from(RootKind::from(number)), number);
        }
    }

    #[test]
    fn names_outside_their_alphabet_are_refused() {
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "é", &"a".repeat(41)] {
            assert!(bad.parse::<KeyringId>().is_err(), "{bad:?} was accepted");
        }
        for bad in ["", "a b", "a/b", "a\n", &"a".repeat(65)] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad:?} was accepted");
        }
    }
}
