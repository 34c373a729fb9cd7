//! What is common to epoch secrets wherever they lie: whom they belong to, and what keys are derived from.

use keystead_core::{KeyringId, NodeId};
use sha2::{Digest, Sha256};

use super::contract::{EpochPurpose, EpochRef};

const DERIVE_LABEL: &[u8] = b"keystead-epoch-key\x01";

/// `"keystead-epoch-key" ‖ 0x01 ‖ purpose ‖ keyring ‖ node ‖ u64 number`, each text with its length: what is fed to the keyed hash.
pub(super) fn derivation_input(epoch: &EpochRef, purpose: EpochPurpose) -> Vec<u8> {
    let mut input = DERIVE_LABEL.to_vec();
    let purpose: &[u8] = match purpose {
        EpochPurpose::Record => b"record",
        EpochPurpose::Audit => b"audit",
        EpochPurpose::OfflineCopy => b"offline-copy",
    };
    for field in [purpose, epoch.keyring.as_str().as_bytes(), epoch.node.as_str().as_bytes()] {
        // Identifiers have at most 64 bytes.
        input.extend_from_slice(&(field.len() as u16).to_be_bytes());
        input.extend_from_slice(field);
    }
    input.extend_from_slice(&epoch.number.to_be_bytes());
    input
}

/// Names keyring and node in few bytes. No `\0` can stand in a keyring's name, so the two names cannot run together.
pub(super) fn owner_digest(keyring: &KeyringId, node: &NodeId) -> [u8; 32] {
    Sha256::new()
        .chain_update(b"keystead-epoch-owner\x01")
        .chain_update(keyring.as_str())
        .chain_update([0])
        .chain_update(node.as_str())
        .finalize()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_purpose_is_derived_from_under_the_label_of_the_format() {
        let epoch = EpochRef { keyring: "edge".parse().unwrap(), node: "n".parse().unwrap(), number: 7 };
        for (purpose, label) in [
            (EpochPurpose::Record, "\0\x06record"),
            (EpochPurpose::Audit, "\0\x05audit"),
            (EpochPurpose::OfflineCopy, "\0\x0coffline-copy"),
        ] {
            let expected = format!("keystead-epoch-key\x01{label}\0\x04edge\0\x01n\0\0\0\0\0\0\0\x07");
            assert_eq!(derivation_input(&epoch, purpose), expected.as_bytes(), "{purpose:?}");
        }
    }
}
