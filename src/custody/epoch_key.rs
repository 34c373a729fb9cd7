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
