//! Epoch secrets: in two NV indices of each keyring and node, which take turns.
//!
//! An index holds `"kse1" ‖ 12 bytes that name keyring and node ‖ u64 number ‖ secret (32) ‖ check (8)`, or zeros. The check is the
//! start of SHA-256 over the rest: an index that a power cut left half-written counts as empty, and its fellow is whole.
//! One write makes a secret and one destroys it; nothing else ever writes, to spare the chip.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use keystead_core::{KeyringId, NodeId};
use sha2::{Digest, Sha256};
use tss_esapi::attributes::NvIndexAttributesBuilder;
use tss_esapi::constants::NvIndexType;
use tss_esapi::constants::response_code::Tss2ResponseCodeKind;
use tss_esapi::handles::{NvIndexHandle, NvIndexTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::{NvAuth, Provision};
use tss_esapi::structures::{MaxNvBuffer, NvPublic, NvPublicBuilder};
use zeroize::Zeroizing;

use super::connection::Connection;
use super::failure::Failure;
use super::random;
use crate::custody::contract::{CustodyError, EpochPurpose, EpochRef};
use crate::custody::epoch_key::{derivation_input, owner_digest};

/// First and last handle that the owner may use (TCG registry of reserved handles), without the lowest bit.
const FIRST: u32 = 0x0180_0000;
const SPAN: u32 = 0x003f_fffe;
const LEN: usize = 64;
const MAGIC: &[u8; 4] = b"kse1";
/// OWNERREAD, POLICYREAD, … must all be clear: of the attributes only these, and WRITTEN once it was.
const ATTRIBUTES: u32 = 1 << 2 | 1 << 18 | 1 << 25;
const WRITTEN: u32 = 1 << 29;

/// What an index holds.
enum Content {
    /// The index is not defined.
    Missing,
    Empty,
    Secret {
        number: u64,
        secret: Zeroizing<[u8; 32]>,
    },
}

/// Numbers of the epoch secrets that exist, ascending.
pub(super) fn list(connection: &mut Connection, keyring: &KeyringId, node: &NodeId) -> Result<Vec<u64>, Failure> {
    let mut numbers = Vec::new();
    for (_, content) in read_both(connection, keyring, node)? {
        if let Content::Secret { number, .. } = content {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Makes the secret unless it is there: in a free index, else in that of the lowest number.
pub(super) fn create(connection: &mut Connection, epoch: &EpochRef) -> Result<(), Failure> {
    let contents = read_both(connection, &epoch.keyring, &epoch.node)?;
    let number = |content: &Content| match content {
        Content::Secret { number, .. } => Some(*number),
        _ => None,
    };
    if contents.iter().any(|(_, content)| number(content) == Some(epoch.number)) {
        return Ok(());
    }
    let Some((index, content)) = contents.into_iter().min_by_key(|(_, content)| number(content)) else { return Ok(()) };
    if matches!(content, Content::Missing) {
        define(connection, index)?;
    }
    let secret = random::mixed(connection)?;
    write(connection, index, &encode(epoch, &secret))?;
    // Believed only when it was read back: what hangs on it is destroyed next.
    match read(connection, index, epoch)? {
        Content::Secret { secret: stored, .. } if stored == secret => Ok(()),
        _ => Err(Failure::device("the TPM did not keep an epoch secret that it was given")),
    }
}

/// 32 bytes of `HMAC-SHA-256(secret, input)`, as on a token.
pub(super) fn derive(
    connection: &mut Connection,
    epoch: &EpochRef,
    purpose: EpochPurpose,
) -> Result<Zeroizing<[u8; 32]>, Failure> {
    for (_, content) in read_both(connection, &epoch.keyring, &epoch.node)? {
        if let Content::Secret { number, secret } = content
            && number == epoch.number
        {
            let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_slice()).expect("HMAC takes keys of any length");
            mac.update(&derivation_input(epoch, purpose));
            return Ok(Zeroizing::new(mac.finalize().into_bytes().into()));
        }
    }
    Err(Failure::Final(CustodyError::EpochMissing { number: epoch.number }))
}

/// Overwrites the secret if it is there.
pub(super) fn destroy(connection: &mut Connection, epoch: &EpochRef) -> Result<(), Failure> {
    for (index, content) in read_both(connection, &epoch.keyring, &epoch.node)? {
        if matches!(content, Content::Secret { number, .. } if number == epoch.number) {
            write(connection, index, &Zeroizing::new([0; LEN]))?;
        }
    }
    Ok(())
}

/// Defines both indices of a keyring and node, unless they are there.
pub(super) fn define_both(connection: &mut Connection, keyring: &KeyringId, node: &NodeId) -> Result<(), Failure> {
    let first = first_index(keyring, node);
    for index in [first, first + 1] {
        if resolve(connection, index)?.is_none() {
            define(connection, index)?;
        }
    }
    Ok(())
}

/// Whether those of the two indices that are there take our auth value.
pub(super) fn require_ours(connection: &mut Connection, keyring: &KeyringId, node: &NodeId) -> Result<(), Failure> {
    let first = first_index(keyring, node);
    match read_both(connection, keyring, node) {
        Ok(_) => Ok(()),
        Err(Failure::Auth(_)) => Err(Failure::device(format!(
            "the NV indices of keyring {keyring} on node {node} are there, with the auth value of another auth file. Put that \
             file back; or, if nothing depends on it any more, `tpm2_nvundefine -C o 0x{first:x}`, the same for 0x{:x}, and \
             provision again",
            first + 1
        ))),
        Err(failure) => Err(failure),
    }
}

fn read_both(connection: &mut Connection, keyring: &KeyringId, node: &NodeId) -> Result<Vec<(u32, Content)>, Failure> {
    let owner = EpochRef { keyring: keyring.clone(), node: node.clone(), number: 0 };
    let first = first_index(keyring, node);
    [first, first + 1].into_iter().map(|index| Ok((index, read(connection, index, &owner)?))).collect()
}

fn first_index(keyring: &KeyringId, node: &NodeId) -> u32 {
    let [a, b, c, d, ..] = owner_digest(keyring, node);
    FIRST | (u32::from_be_bytes([a, b, c, d]) & SPAN)
}

/// `owner` says whose it has to be; its number does not matter.
fn read(connection: &mut Connection, index: u32, owner: &EpochRef) -> Result<Content, Failure> {
    let Some(handle) = resolve(connection, index)? else { return Ok(Content::Missing) };
    let read = connection.call_nv(|context| context.nv_read(NvAuth::NvIndex(handle), handle, LEN as u16, 0));
    let bytes = match read {
        Ok(bytes) => bytes,
        Err(NvError::Uninitialized) => return Ok(Content::Empty),
        Err(NvError::Other(failure)) => return Err(failure),
    };
    connection.auth_proven = true;
    let Ok(bytes) = <&[u8; LEN]>::try_from(bytes.value()) else { return Ok(Content::Empty) };
    if bytes[56..] != Sha256::digest(&bytes[..56])[..8] || &bytes[..4] != MAGIC {
        return Ok(Content::Empty);
    }
    if bytes[4..16] != owner_digest(&owner.keyring, &owner.node)[..12] {
        return Err(Failure::device(format!(
            "NV index 0x{index:x} belongs to another keyring; name this one otherwise"
        )));
    }
    let mut secret = Zeroizing::new([0; 32]);
    secret.copy_from_slice(&bytes[24..56]);
    let number = bytes[16..24].try_into().map(u64::from_be_bytes).unwrap_or_default();
    Ok(Content::Secret { number, secret })
}

fn encode(epoch: &EpochRef, secret: &[u8; 32]) -> Zeroizing<[u8; LEN]> {
    let mut bytes = Zeroizing::new([0; LEN]);
    bytes[..4].copy_from_slice(MAGIC);
    bytes[4..16].copy_from_slice(&owner_digest(&epoch.keyring, &epoch.node)[..12]);
    bytes[16..24].copy_from_slice(&epoch.number.to_be_bytes());
    bytes[24..56].copy_from_slice(secret);
    let check = Sha256::digest(&bytes[..56]);
    bytes[56..].copy_from_slice(&check[..8]);
    bytes
}

fn write(connection: &mut Connection, index: u32, bytes: &[u8; LEN]) -> Result<(), Failure> {
    let Some(handle) = resolve(connection, index)? else {
        return Err(Failure::device(format!("NV index 0x{index:x} has vanished")));
    };
    let data = MaxNvBuffer::try_from(bytes.as_slice())?;
    connection.call(|context| context.nv_write(NvAuth::NvIndex(handle), handle, data, 0))
}

/// The index's handle, once its public area was seen to be of our making: one that the owner may read is refused.
fn resolve(connection: &mut Connection, index: u32) -> Result<Option<NvIndexHandle>, Failure> {
    if let Some((_, handle)) = connection.nv.iter().find(|(known, _)| *known == index) {
        return Ok(Some(*handle));
    }
    let place = TpmHandle::NvIndex(NvIndexTpmHandle::new(index)?);
    let found = connection.context().execute_without_session(|context| context.tr_from_tpm_public(place));
    let handle = match found {
        Ok(handle) => NvIndexHandle::from(handle),
        Err(tss_esapi::Error::Tss2Error(code))
            if matches!(code.kind(), Some(Tss2ResponseCodeKind::Handle | Tss2ResponseCodeKind::Value)) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    let (public, _) = connection.plain(|context| context.nv_read_public(handle))?;
    let attributes = u32::try_from(public.attributes())?;
    if attributes & !WRITTEN != ATTRIBUTES || public.data_size() != LEN {
        return Err(Failure::device(format!(
            "NV index 0x{index:x} is not as Keystead defines it: somebody else uses it, or meddled with it"
        )));
    }
    let auth = connection.auth().value.for_tss();
    connection.context().tr_set_auth(handle.into(), auth)?;
    connection.nv.push((index, handle));
    Ok(Some(handle))
}

/// Without the owner's auth value: where one is set, provisioning has to have been here before.
fn define(connection: &mut Connection, index: u32) -> Result<(), Failure> {
    let (public, auth) = (public(index)?, connection.auth().value.for_tss());
    let defined = connection.call(|context| context.nv_define_space(Provision::Owner, Some(auth), public));
    match defined {
        Ok(_) => Ok(()),
        Err(Failure::Auth(detail)) => Err(Failure::unsupported(format!(
            "NV index 0x{index:x}; defining it takes the owner's auth value ({detail}). Run `keystead tpm provision \
             --owner-auth-file FILE`"
        ))),
        Err(failure) => Err(failure),
    }
}

fn public(index: u32) -> Result<NvPublic, Failure> {
    let attributes = NvIndexAttributesBuilder::new()
        .with_auth_write(true)
        .with_auth_read(true)
        .with_no_da(true)
        .with_nv_index_type(NvIndexType::Ordinary)
        .build()?;
    Ok(NvPublicBuilder::new()
        .with_nv_index(NvIndexTpmHandle::new(index)?)
        .with_index_name_algorithm(HashingAlgorithm::Sha256)
        .with_index_attributes(attributes)
        .with_data_area_size(LEN)
        .build()?)
}

/// An index that was never written is no failure.
pub(super) enum NvError {
    Uninitialized,
    Other(Failure),
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "Missing",
            Self::Empty => "Empty",
            Self::Secret { .. } => "Secret",
        })
    }
}
