//! The rescue file: every KEK a running daemon had in memory, wrapped to a public key, written while its token is dead.
//!
//! The line `keystead-rescue 1`, then one JSON document to the end of the file. Like an annotation it is not authentic:
//! what comes out of it is unproven until it opens objects.

use serde::{Deserialize, Serialize};

use crate::annotation::Annotation;
use crate::id::{GenerationNumber, KeyId, KeyringId, NodeId};
use crate::recovery::Sighting;
use crate::secret::KeyCommitment;
use crate::wrap::{MAX_WRAP_LEN, WrappedKek};

pub const FORMAT: u32 = 1;
pub const MAX_LEN: usize = 16 << 20;
const MAGIC: &str = "keystead-rescue ";

/// A rescue file's document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rescue {
    pub keyring: KeyringId,
    pub node: NodeId,
    /// Unix seconds.
    pub written: u64,
    /// Epoch of the record that was served; the recovered store begins above it.
    pub epoch: u64,
    pub last_number: GenerationNumber,
    pub generations: Vec<RescuedGeneration>,
}

/// One generation whose KEK was in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RescuedGeneration {
    pub key_id: KeyId,
    /// Unix seconds.
    pub created: u64,
    pub commitment: KeyCommitment,
    /// The rescue wrap first, then those of the record.
    pub wraps: Vec<WrappedKek>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RescueError {
    #[error("the rescue file has format {0}, which a newer Keystead wrote; this one reads format {FORMAT}")]
    NewerFormat(u32),
    #[error("the rescue file is damaged: {0}")]
    Malformed(&'static str),
}

impl Rescue {
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{MAGIC}{FORMAT}\n").into_bytes();
        // Strings, numbers and lists only: nothing in it that JSON cannot hold.
        serde_json::to_writer_pretty(&mut bytes, self).expect("a rescue document is always valid JSON");
        bytes.push(b'\n');
        bytes
    }

    pub fn parse(bytes: &[u8]) -> Result<Self, RescueError> {
        let malformed = RescueError::Malformed;
        if bytes.len() > MAX_LEN {
            return Err(malformed("it is longer than any rescue file can be"));
        }
        let end = bytes.iter().take(64).position(|&byte| byte == b'\n').ok_or(malformed("it has no first line"))?;
        let format: u32 = std::str::from_utf8(&bytes[..end])
            .ok()
            .and_then(|line| line.strip_prefix(MAGIC))
            .filter(|number| !number.starts_with(['0', '+']))
            .and_then(|number| number.parse().ok())
            .ok_or(malformed("it does not begin with 'keystead-rescue'"))?;
        if format != FORMAT {
            return Err(RescueError::NewerFormat(format));
        }
        let rescue: Self = serde_json::from_slice(&bytes[end + 1..])
            .map_err(|_| malformed("its document is cut short, garbled or has a field that does not belong there"))?;
        if rescue.generations.iter().any(|each| each.key_id.keyring() != rescue.keyring.as_str()) {
            return Err(malformed("a key ID names another keyring"));
        }
        if rescue.generations.iter().flat_map(|each| &each.wraps).any(|wrap| wrap.bytes.len() > MAX_WRAP_LEN) {
            return Err(malformed("a wrap is too long"));
        }
        Ok(rescue)
    }

    /// What the file says, as a backup without objects.
    pub fn sightings(&self) -> Vec<Sighting> {
        self.generations
            .iter()
            .map(|each| Sighting {
                key_id: each.key_id.clone(),
                objects: 0,
                annotations: vec![Annotation {
                    key_id: each.key_id.clone(),
                    commitment: each.commitment,
                    wraps: each.wraps.clone(),
                }],
                envelopes: Vec::new(),
                incomplete: false,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rescue() -> Rescue {
        let keyring: KeyringId = "edge".parse().unwrap();
        let key_id = KeyId::mint(&keyring, GenerationNumber(2), [1; 16]);
        let commitment = KeyCommitment::from_bytes([3; 32]);
        Rescue {
            keyring,
            node: "n1".parse().unwrap(),
            written: 1,
            epoch: 4,
            last_number: GenerationNumber(2),
            generations: vec![RescuedGeneration { key_id, created: 0, commitment, wraps: Vec::new() }],
        }
    }

    #[test]
    fn rescue_file_reads_back_as_it_was_written() {
        assert_eq!(Rescue::parse(&rescue().to_bytes()).unwrap(), rescue());
    }

    #[test]
    fn damaged_foreign_and_newer_files_are_refused() {
        let whole = rescue().to_bytes();
        // The last byte is a line end, which JSON can do without.
        for len in 0..whole.len() - 1 {
            assert!(Rescue::parse(&whole[..len]).is_err(), "{len} bytes were read");
        }
        let text = String::from_utf8(whole).unwrap();
        assert_eq!(Rescue::parse(text.replacen(" 1\n", " 2\n", 1).as_bytes()), Err(RescueError::NewerFormat(2)));
        for (from, to) in [(" 1\n", " 01\n"), ("\"edge\"", "\"other\""), ("\"node\"", "\"more\": 1, \"node\"")] {
            assert!(Rescue::parse(text.replacen(from, to, 1).as_bytes()).is_err(), "{to}");
        }
    }
}
