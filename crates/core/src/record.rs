//! The store's record: a keyring as exact bytes, authenticated by a key that only custody can derive.
//!
//! Three parts: the line `keystead-store 1`, the line `tag <64 hex digits>`, then one JSON document to the end of the file. The tag is over
//! `"keystead-record" ‖ 0x01 ‖ document`. Reading goes in two steps so that unauthenticated content cannot be used by
//! mistake: [`UnverifiedRecord::parse`] gives only claims, good for naming what is wrong, and
//! [`UnverifiedRecord::verify`] gives the keyring.

use subtle::ConstantTimeEq;

use crate::audit::Position;
use crate::hex;
use crate::id::{GenerationNumber, KeyringId, NodeId};
use crate::keyring::{Disabling, GenerationState, Keyring, TransitionError};

pub const FORMAT: u32 = 1;
/// A record of 1,000 generations takes about 700 KB.
pub const MAX_LEN: usize = 16 << 20;
const MAGIC: &str = "keystead-store ";
const TAG_LABEL: &[u8] = b"keystead-record\x01";

/// Makes and checks tags with a key derived from the epoch secret. Implemented above the core, where custody is.
pub trait Authenticator {
    fn tag(&self, message: &[u8]) -> [u8; 32];

    /// In constant time.
    fn verify(&self, message: &[u8], tag: &[u8; 32]) -> bool {
        self.tag(message).ct_eq(tag).into()
    }
}

/// A record as read from a file: well-formed, not yet believed.
pub struct UnverifiedRecord {
    tag: [u8; 32],
    message: Vec<u8>,
    claims: Claims,
}

/// What a record says of itself, for diagnosis only.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub struct Claims {
    pub keyring: KeyringId,
    pub node: NodeId,
    pub revision: u64,
    pub epoch: u64,
    /// Whoever replaces such a record by a new one leaves the key switched off.
    #[serde(default)]
    pub disabled: Option<Disabling>,
    /// How far the audit trail had come.
    #[serde(default)]
    pub audit: Option<Position>,
    #[serde(default)]
    pub generations: Vec<ClaimedGeneration>,
}

/// What a record says of one generation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub struct ClaimedGeneration {
    pub number: GenerationNumber,
    pub state: GenerationState,
    /// Unix seconds.
    pub created: u64,
    pub activated: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("the record has format {0}, which a newer Keystead wrote; this one reads format {FORMAT}")]
    NewerFormat(u32),
    #[error("the record is damaged: {0}")]
    Malformed(&'static str),
    #[error("the record does not authenticate under this epoch secret")]
    NotAuthentic,
    #[error(transparent)]
    Inconsistent(#[from] TransitionError),
}

/// The exact bytes to write for `keyring`, tagged by `authenticator` (of the epoch that `keyring` names).
pub fn encode(keyring: &Keyring, authenticator: &impl Authenticator) -> Vec<u8> {
    let mut message = TAG_LABEL.to_vec();
    // Strings, numbers and lists only: nothing in it that JSON cannot hold.
    serde_json::to_writer_pretty(&mut message, keyring).expect("a keyring is always valid JSON");
    message.push(b'\n');
    let tag = authenticator.tag(&message);
    let mut bytes = format!("{MAGIC}{FORMAT}\ntag {}\n", hex::encode(&tag)).into_bytes();
    bytes.extend_from_slice(&message[TAG_LABEL.len()..]);
    bytes
}

impl UnverifiedRecord {
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let malformed = RecordError::Malformed;
        if bytes.len() > MAX_LEN {
            return Err(malformed("it is longer than any record can be"));
        }
        let (magic, rest) = line(bytes).ok_or(malformed("it has no first line"))?;
        let format: u32 = magic
            .strip_prefix(MAGIC)
            .filter(|number| !number.starts_with(['0', '+']))
            .and_then(|number| number.parse().ok())
            .ok_or(malformed("it does not begin with 'keystead-store'"))?;
        if format != FORMAT {
            return Err(RecordError::NewerFormat(format));
        }
        let (tag, document) = line(rest).ok_or(malformed("its tag is missing"))?;
        let tag = tag
            .strip_prefix("tag ")
            .and_then(hex::decode)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(malformed("its tag is not 64 hex digits"))?;
        let claims = serde_json::from_slice(document).map_err(|_| malformed("its document is cut short or garbled"))?;
        Ok(Self { tag, message: [TAG_LABEL, document].concat(), claims })
    }

    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// What it says, with nobody to vouch for a word of it. For taking over a record that is refused as rolled back.
    pub fn unvouched(&self) -> Result<Keyring, RecordError> {
        let keyring: Keyring = serde_json::from_slice(&self.message[TAG_LABEL.len()..])
            .map_err(|_| RecordError::Malformed("its document is not of this format"))?;
        keyring.check()?;
        Ok(keyring)
    }

    /// # Errors
    /// [`RecordError::NotAuthentic`] if `authenticator` did not tag exactly these bytes.
    pub fn verify(&self, authenticator: &impl Authenticator) -> Result<Keyring, RecordError> {
        if !authenticator.verify(&self.message, &self.tag) {
            return Err(RecordError::NotAuthentic);
        }
        let keyring: Keyring = serde_json::from_slice(&self.message[TAG_LABEL.len()..])
            .map_err(|_| RecordError::Malformed("it is authentic but not of this format"))?;
        keyring.check()?;
        Ok(keyring)
    }
}

fn line(bytes: &[u8]) -> Option<(&str, &[u8])> {
    // Header lines are short: a file without line ends must not be searched whole.
    let end = bytes.iter().take(128).position(|&byte| byte == b'\n')?;
    Some((std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]))
}
