//! Epoch secrets: keys that never leave the token, known by keyring, node and number, from which record keys are derived.
//!
//! `CKA_LABEL` is `keystead-epoch <keyring>`. `CKA_ID` is `"kse1" ‖ 12 bytes that name keyring and node ‖ u64 number`, so
//! that those of one node can be listed without a table of our own.

use std::fmt;

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use keystead_core::{KeyringId, NodeId};
use zeroize::Zeroizing;

use super::cmk::{KeySpec, class_and_type, require_kept};
use super::failure::Failure;
use super::session::Session;
use crate::custody::contract::{CustodyError, EpochPurpose, EpochRef};
use crate::custody::epoch_key::{derivation_input, owner_digest};

const ID_PREFIX: &[u8; 4] = b"kse1";
const ID_LEN: usize = 24;

/// How keys are derived from an epoch secret. Each secret keeps the one it was made for: its key type says which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Authentication {
    Hmac,
    Cmac,
}

impl fmt::Display for Authentication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hmac => "sha256-hmac",
            Self::Cmac => "aes-cmac",
        })
    }
}

/// Whether an object ID is an epoch secret's. A root ID of that shape is never made and never found.
pub(super) fn is_epoch_id(id: &[u8]) -> bool {
    id.len() == ID_LEN && id.starts_with(ID_PREFIX)
}

/// Numbers of the epoch secrets that exist, ascending.
pub(super) fn list(session: &Session, keyring: &KeyringId, node: &NodeId) -> Result<Vec<u64>, Failure> {
    let owner = owner_id(keyring, node);
    let template = [
        Attribute::Token(true),
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::Label(label(keyring).into_bytes()),
    ];
    let mut numbers = Vec::new();
    for object in session.call().find_objects(&template)? {
        for attribute in session.call().get_attributes(object, &[AttributeType::Id])? {
            if let Attribute::Id(id) = attribute
                && let Some(number) = id.strip_prefix(owner.as_slice()).and_then(|rest| rest.try_into().ok())
            {
                numbers.push(u64::from_be_bytes(number));
            }
        }
    }
    if numbers.is_empty() {
        session.believe_nothing_found()?;
    }
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

/// Makes the secret unless it is there.
pub(super) fn create(session: &Session, authentication: Authentication, epoch: &EpochRef) -> Result<(), Failure> {
    if find(session, epoch)?.is_some() {
        return Ok(());
    }
    let (id, label) = (object_id(epoch), label(&epoch.keyring));
    generate(session, authentication, &KeySpec { token: true, id: &id, label: &label }).map(drop)
}

/// A key derived from the secret: `F(E, "keystead-epoch-key" ‖ 0x01 ‖ purpose ‖ keyring ‖ node ‖ u64 number)`, each text
/// with its length.
pub(super) fn derive(
    session: &Session,
    epoch: &EpochRef,
    purpose: EpochPurpose,
) -> Result<Zeroizing<[u8; 32]>, Failure> {
    let missing = || Failure::Final(CustodyError::EpochMissing { number: epoch.number });
    let key = find(session, epoch)?.ok_or_else(missing)?;
    let authentication = match class_and_type(session, key)?.1 {
        Some(KeyType::AES) => Authentication::Cmac,
        _ => Authentication::Hmac,
    };
    let input = derivation_input(epoch, purpose);
    expand(session, authentication, key, &input)
}

/// Destroys the secret if it is there.
pub(super) fn destroy(session: &Session, epoch: &EpochRef) -> Result<(), Failure> {
    match find(session, epoch)? {
        Some(key) => {
            session.call().destroy_object(key)?;
            session.destroyed_object()
        }
        None => Ok(()),
    }
}

pub(super) fn generate(
    session: &Session,
    authentication: Authentication,
    spec: &KeySpec<'_>,
) -> Result<ObjectHandle, Failure> {
    let mechanism = match authentication {
        Authentication::Hmac => Mechanism::GenericSecretKeyGen,
        Authentication::Cmac => Mechanism::AesKeyGen,
    };
    let mut template = spec.secret();
    template.extend([Attribute::ValueLen(32.into()), Attribute::Sign(true), Attribute::Verify(true)]);
    let key = session.call().generate_key(&mechanism, &template)?;
    require_kept(session, key).map(|()| key).inspect_err(|_| {
        // The error at hand says more than that the key could not be removed.
        let _ = session.call().destroy_object(key);
    })
}

/// 32 bytes from `input` under `key`: HMAC as it is, or CMAC in counter mode (SP 800-108r1 §4.1) with `input` as label.
pub(super) fn expand(
    session: &Session,
    authentication: Authentication,
    key: ObjectHandle,
    input: &[u8],
) -> Result<Zeroizing<[u8; 32]>, Failure> {
    let mut out = Zeroizing::new([0; 32]);
    match authentication {
        Authentication::Hmac => {
            let tag = Zeroizing::new(session.call().sign(&Mechanism::Sha256Hmac, key, input)?);
            fill(out.as_mut_slice(), &tag)?;
        }
        Authentication::Cmac => {
            for (half, counter) in out.chunks_mut(16).zip(1u32..) {
                // [i]_32 ‖ label ‖ 0x00 ‖ empty context ‖ [256]_32
                let block = [&counter.to_be_bytes(), input, &[0], &256u32.to_be_bytes()].concat();
                let tag = Zeroizing::new(session.call().sign(&Mechanism::AesCMac, key, &block)?);
                fill(half, &tag)?;
            }
        }
    }
    Ok(out)
}

fn fill(out: &mut [u8], tag: &[u8]) -> Result<(), Failure> {
    if out.len() != tag.len() {
        return Err(Failure::Suspect(format!("a tag of the token has {} bytes instead of {}", tag.len(), out.len())));
    }
    out.copy_from_slice(tag);
    Ok(())
}

/// The secret's handle, if the token, logged in, has it.
fn find(session: &Session, epoch: &EpochRef) -> Result<Option<ObjectHandle>, Failure> {
    let template = [Attribute::Token(true), Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Id(object_id(epoch))];
    match session.call().find_objects(&template)?.as_slice() {
        [] => session.believe_nothing_found().map(|()| None),
        [key] => Ok(Some(*key)),
        _ => Err(Failure::device(format!("the token has epoch secret {} twice", epoch.number))),
    }
}

fn label(keyring: &KeyringId) -> String {
    format!("keystead-epoch {keyring}")
}

fn object_id(epoch: &EpochRef) -> Vec<u8> {
    let mut id = owner_id(&epoch.keyring, &epoch.node);
    id.extend_from_slice(&epoch.number.to_be_bytes());
    id
}

/// Everything of an ID but the number.
fn owner_id(keyring: &KeyringId, node: &NodeId) -> Vec<u8> {
    let digest = owner_digest(keyring, node);
    [ID_PREFIX.as_slice(), &digest[..ID_LEN - ID_PREFIX.len() - 8]].concat()
}
