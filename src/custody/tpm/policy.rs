//! Policies as a TPM computes them, in software: what a CMK demands, and what an approval is about.
//!
//! A CMK of measured boot demands `PolicyAuthorize(signer, policyRef)` then `PolicyAuthValue`: PCR values that the signer has
//! approved for this keyring and series, and besides the auth value. Source: TPM library part 3, the commands' detailed
//! actions; part 1, "Policy".

use keystead_core::KeyringId;
use keystead_core::hpke_p256::P256PublicKey;
use sha2::{Digest, Sha256};

use super::pcr::{self, PcrSet};

const CC_POLICY_AUTHORIZE: u32 = 0x16a;
const CC_POLICY_AUTH_VALUE: u32 = 0x16b;
const CC_POLICY_PCR: u32 = 0x17f;

/// What approvals of one keyring and series have in common, and those of no other: raising the series with a new CMK
/// ends every earlier approval.
pub fn policy_ref(keyring: &KeyringId, series: u64) -> [u8; 32] {
    Sha256::new()
        .chain_update(b"keystead-boot\x01")
        .chain_update((keyring.as_str().len() as u16).to_be_bytes())
        .chain_update(keyring.as_str())
        .chain_update(series.to_be_bytes())
        .finalize()
        .into()
}

/// `TPMT_PUBLIC` of a signer: P-256, ECDSA with SHA-256, userWithAuth and sign.
pub(super) fn signer_public(signer: &P256PublicKey) -> Vec<u8> {
    let point = signer.as_sec1();
    let head = [0, 0x23, 0, 0x0b, 0, 0x04, 0, 0x40, 0, 0, 0, 0x10, 0, 0x18, 0, 0x0b, 0, 3, 0, 0x10];
    [&head[..], &[0, 32], &point[1..33], &[0, 32], &point[33..]].concat()
}

/// `authPolicy` of a CMK that opens after an approved boot only.
pub(super) fn auth_policy(signer: &P256PublicKey, policy_ref: &[u8; 32]) -> [u8; 32] {
    let name = [&[0, 0x0b][..], &Sha256::digest(signer_public(signer))].concat();
    // PolicyAuthorize begins anew from zeros.
    let authorized = extend(&extend_command(&[0; 32], CC_POLICY_AUTHORIZE, &name), policy_ref);
    extend_command(&authorized, CC_POLICY_AUTH_VALUE, &[])
}

/// The policy digest of a session after PolicyPCR with these values.
pub(super) fn pcr_policy(set: &PcrSet, values: &[(u8, [u8; 32])]) -> [u8; 32] {
    let argument = [set.marshalled(), pcr::digest(values).to_vec()].concat();
    extend_command(&[0; 32], CC_POLICY_PCR, &argument)
}

/// What a signer signs.
pub(super) fn approval_hash(pcr_policy: &[u8; 32], policy_ref: &[u8; 32]) -> [u8; 32] {
    Sha256::new().chain_update(pcr_policy).chain_update(policy_ref).finalize().into()
}

fn extend_command(policy: &[u8; 32], command: u32, argument: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(policy).chain_update(command.to_be_bytes()).chain_update(argument).finalize().into()
}

fn extend(policy: &[u8; 32], argument: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(policy).chain_update(argument).finalize().into()
}
