//! PCRs: which of them count, and what they hold. SHA-256 bank only.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::structures::{PcrSelectionList, PcrSlot};

use super::connection::Connection;
use super::failure::Failure;

/// The PCRs of a platform, as the TPM library names them.
const SLOTS: [PcrSlot; 24] = [
    PcrSlot::Slot0,
    PcrSlot::Slot1,
    PcrSlot::Slot2,
    PcrSlot::Slot3,
    PcrSlot::Slot4,
    PcrSlot::Slot5,
    PcrSlot::Slot6,
    PcrSlot::Slot7,
    PcrSlot::Slot8,
    PcrSlot::Slot9,
    PcrSlot::Slot10,
    PcrSlot::Slot11,
    PcrSlot::Slot12,
    PcrSlot::Slot13,
    PcrSlot::Slot14,
    PcrSlot::Slot15,
    PcrSlot::Slot16,
    PcrSlot::Slot17,
    PcrSlot::Slot18,
    PcrSlot::Slot19,
    PcrSlot::Slot20,
    PcrSlot::Slot21,
    PcrSlot::Slot22,
    PcrSlot::Slot23,
];

/// A set of PCRs: ascending, not empty, each at most 23. Spelt `sha256:0,2,4,7`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PcrSet(Vec<u8>);

/// A PCR and its value.
pub type PcrValues = Vec<(u8, [u8; 32])>;

impl PcrSet {
    pub fn new(numbers: &[u8]) -> Option<Self> {
        let sound = !numbers.is_empty() && numbers.is_sorted_by(|a, b| a < b) && numbers.iter().all(|&n| n < 24);
        sound.then(|| Self(numbers.to_vec()))
    }

    pub fn numbers(&self) -> &[u8] {
        &self.0
    }

    /// `TPML_PCR_SELECTION`, as a policy digest has it.
    pub(super) fn marshalled(&self) -> Vec<u8> {
        let mut mask = [0; 3];
        for &number in &self.0 {
            mask[usize::from(number / 8)] |= 1 << (number % 8);
        }
        // One selection; SHA-256; three bytes of mask.
        [&[0, 0, 0, 1, 0, 0x0b, 3][..], &mask].concat()
    }

    pub(super) fn for_tss(&self) -> Result<PcrSelectionList, Failure> {
        selection(&self.0)
    }

    /// Two commands for all 24: a TPM gives at most eight values at a time.
    pub(super) fn read(&self, connection: &mut Connection) -> Result<PcrValues, Failure> {
        let mut values = Vec::new();
        for numbers in self.0.chunks(8) {
            let wanted = selection(numbers)?;
            let (_, _, digests) = connection.plain(|context| context.pcr_read(wanted))?;
            let digests: Vec<[u8; 32]> =
                digests.value().iter().filter_map(|digest| digest.value().try_into().ok()).collect();
            if digests.len() != numbers.len() {
                return Err(Failure::unsupported("a SHA-256 bank with all PCRs of custody.pcrs"));
            }
            values.extend(numbers.iter().copied().zip(digests));
        }
        Ok(values)
    }
}

fn selection(numbers: &[u8]) -> Result<PcrSelectionList, Failure> {
    let slots: Vec<PcrSlot> = numbers.iter().map(|&number| SLOTS[usize::from(number % 24)]).collect();
    Ok(PcrSelectionList::builder().with_selection(HashingAlgorithm::Sha256, &slots).build()?)
}

/// The digest of several values that a PCR policy is about.
pub(super) fn digest(values: &[(u8, [u8; 32])]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for (_, value) in values {
        hash.update(value);
    }
    hash.finalize().into()
}

impl fmt::Display for PcrSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(u8::to_string).collect();
        write!(f, "sha256:{}", numbers.join(","))
    }
}

impl FromStr for PcrSet {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let numbers = text.strip_prefix("sha256:").ok_or(())?;
        let numbers: Result<Vec<u8>, _> = numbers.split(',').map(str::parse).collect();
        let set = numbers.ok().and_then(|numbers| Self::new(&numbers)).ok_or(())?;
        if set.to_string() == text { Ok(set) } else { Err(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_reads_back_and_has_one_spelling() {
        for text in ["sha256:0", "sha256:0,2,4,7", "sha256:23"] {
            assert_eq!(text.parse::<PcrSet>().unwrap().to_string(), text);
        }
        for bad in ["", "0,2", "sha1:0", "sha256:", "sha256:2,0", "sha256:1,1", "sha256:24", "sha256:00", "sha256:0, 2"]
        {
            assert!(bad.parse::<PcrSet>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn selection_is_marshalled_with_the_lowest_pcr_in_the_lowest_bit() {
        let set: PcrSet = "sha256:0,2,4,7,8,23".parse().unwrap();
        assert_eq!(set.marshalled(), [0, 0, 0, 1, 0, 0x0b, 3, 0b1001_0101, 1, 0x80]);
    }
}
