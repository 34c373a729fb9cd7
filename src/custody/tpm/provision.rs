//! What an admin does once on a machine: a storage root key at its usual place, NV indices, and the auth file.
//!
//! The only code that takes the owner's auth value. Run again, it changes nothing that is there.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use keystead_core::{KeyringId, NodeId};
use tss_esapi::Context;
use tss_esapi::handles::{KeyHandle, ObjectHandle, PersistentTpmHandle};
use tss_esapi::interface_types::dynamic_handles::Persistent;
use tss_esapi::interface_types::resource_handles::{Hierarchy, Provision};
use tss_esapi::structures::Auth;

use super::connection::{self, Connection};
use super::failure::Failure;
use super::srk::{self, PERSISTENT};
use super::tcti::Tcti;
use super::{auth, epoch, identity, random};
use crate::custody::contract::CustodyError;
use crate::custody::settings::{PinSource, TpmSettings};

/// What was made, or found made.
#[derive(Debug, Clone)]
pub struct Provisioned {
    /// False if the file was there already and fits this TPM.
    pub made_auth_file: bool,
    pub made_srk: bool,
    pub srk_name: String,
    pub serial: String,
    pub manufacturer: String,
}

/// Makes what is missing for `keyring` on `node`. Blocks.
///
/// # Errors
/// `PinUnreadable` for an auth file that cannot be written or read, `TokenReplaced` for one of another TPM.
pub fn provision(
    settings: &TpmSettings,
    auth_file: &Path,
    owner_auth: Option<&[u8]>,
    keyring: &KeyringId,
    node: &NodeId,
) -> Result<Provisioned, CustodyError> {
    let tcti = Tcti::parse(&settings.tcti)?;
    let mut context = connection::connect(&tcti)?;
    let owner = match owner_auth {
        Some(bytes) => Auth::try_from(bytes)
            .map_err(|_| CustodyError::PinUnreadable { detail: "the owner's auth value is too long".into() })?,
        None => Auth::default(),
    };
    let step = |failure: Failure| match failure {
        Failure::Auth(detail) => CustodyError::Unsupported {
            detail: format!("the right auth value of the owner ({detail}). Give it by --owner-auth-file"),
        },
        other => other.into_error(),
    };
    let (name, made_srk) = storage_root_key(&mut context, &owner).map_err(step)?;
    drop(context);
    let made_auth_file = match std::fs::symlink_metadata(auth_file) {
        Ok(_) => false,
        Err(_) => {
            let value = random::kernel().map_err(Failure::into_error)?;
            auth::write(auth_file, &value, &name).map_err(|error| CustodyError::PinUnreadable {
                detail: format!("{} cannot be written: {error}", auth_file.display()),
            })?;
            true
        }
    };
    let auth = auth::read(&PinSource::File(auth_file.to_owned()))?;
    let mut connection = Connection::open(&tcti, auth, Arc::new(AtomicU64::new(0))).map_err(step)?;
    if let Err(failure) = epoch::require_ours(&mut connection, keyring, node) {
        if made_auth_file {
            // Nothing was made with it: left there, it would be taken for the one that is missing.
            let _ = std::fs::remove_file(auth_file);
        }
        return Err(failure.into_error());
    }
    connection.context().tr_set_auth(ObjectHandle::Owner, owner).map_err(|error| step(error.into()))?;
    epoch::define_both(&mut connection, keyring, node).map_err(step)?;
    Ok(Provisioned {
        made_auth_file,
        made_srk,
        srk_name: name.to_string(),
        serial: name.serial(),
        manufacturer: connection.summary.manufacturer.clone(),
    })
}

fn storage_root_key(context: &mut Context, owner: &Auth) -> Result<(srk::SrkName, bool), Failure> {
    if let Some(srk) = srk::find(context)? {
        return Ok((srk::name(context, srk)?, false));
    }
    let ecc = identity::has_p256(context)?;
    let template = srk::template(ecc)?;
    context.tr_set_auth(ObjectHandle::Owner, owner.clone())?;
    let place = Persistent::Persistent(PersistentTpmHandle::new(PERSISTENT)?);
    let key = context
        .execute_with_nullauth_session(|context| {
            let made = context.create_primary(Hierarchy::Owner, template, None, None, None, None)?;
            context.evict_control(Provision::Owner, made.key_handle.into(), place)
        })
        .map_err(Failure::from)?;
    let key = KeyHandle::from(key);
    Ok((srk::name(context, key)?, true))
}
