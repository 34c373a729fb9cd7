//! Offline copies in service: sealed when a generation is made, opened at a start without the upstream, carried over each
//! epoch roll, and made anew when the upstream gives back what it had revoked.

use keystead_core::keyring::{Generation, Keyring};
use keystead_core::offline_copy::{CopyKey, OfflineCopy};
use keystead_core::{Kek, WrapContext};

use super::epoch::LoadError;
use super::keys::ServeError;
use super::lifecycle::Lifecycle;
use super::rotation::{RotationError, random};
use crate::custody::client::CustodyClient;
use crate::custody::contract::{CustodyError, EpochPurpose, EpochRef};

/// The copy key of the epoch that `keyring` is written under.
pub(super) async fn copy_key(custody: &CustodyClient, keyring: &Keyring) -> Result<CopyKey, CustodyError> {
    let epoch = EpochRef { keyring: keyring.keyring.clone(), node: keyring.node.clone(), number: keyring.epoch };
    custody.derive_epoch_key(epoch, EpochPurpose::OfflineCopy).await.map(CopyKey::new)
}

/// Opens a generation's copy. The caller compares the commitment.
pub(super) async fn open(
    custody: &CustodyClient,
    keyring: &Keyring,
    generation: &Generation,
) -> Result<Kek, ServeError> {
    let copy = keyring.upstream.as_ref().and_then(|state| state.copy_of(generation.number));
    let (Some(copy), Some(context)) = (copy, context(keyring, generation)) else {
        return Err(ServeError::NoOfflineCopy);
    };
    let key = copy_key(custody, keyring).await.map_err(ServeError::Custody)?;
    key.open(&context, &copy.sealed).map_err(|_| ServeError::Custody(CustodyError::WrapRejected))
}

/// Seals and files a copy of `kek`.
pub(super) fn put(
    keyring: &mut Keyring,
    generation: &Generation,
    kek: &Kek,
    key: &CopyKey,
) -> Result<(), RotationError> {
    let Some(context) = context(keyring, generation) else { return Ok(()) };
    let sealed = key.seal(&context, kek, random()?);
    if let Some(state) = &mut keyring.upstream {
        state.put_copy(OfflineCopy { generation: generation.number, sealed });
    }
    Ok(())
}

/// Carries every copy over to another epoch's key. One that does not open is dropped: it would open nowhere else.
pub(super) fn reseal(keyring: &mut Keyring, old: &CopyKey, new: &CopyKey) -> Result<(), LoadError> {
    let copies = keyring.upstream.as_mut().map(|state| std::mem::take(&mut state.copies)).unwrap_or_default();
    for copy in copies {
        let Some(generation) = keyring.generation(copy.generation).cloned() else { continue };
        let Some(context) = context(keyring, &generation) else { continue };
        match old.open(&context, &copy.sealed) {
            Ok(kek) => put(keyring, &generation, &kek, new).map_err(|_| LoadError::NoRandomness)?,
            Err(error) => {
                tracing::error!(key_id = %generation.key_id, %error, "an offline copy does not open and is dropped")
            }
        }
    }
    Ok(())
}

/// What a copy is bound to: the wrap that it stands in for.
fn context(keyring: &Keyring, generation: &Generation) -> Option<WrapContext> {
    generation.upstream_wrap().map(|wrap| generation.wrap_context(&keyring.keyring, wrap))
}

/// Generations that decrypt, have their root in the cloud, and have no copy.
pub(super) fn without_copy(keyring: &Keyring) -> Vec<Generation> {
    let has_copy = |generation: &Generation| {
        keyring.upstream.as_ref().is_some_and(|state| state.copy_of(generation.number).is_some())
    };
    keyring
        .generations
        .iter()
        .filter(|generation| generation.decrypts() && generation.is_rooted_in_cloud() && !has_copy(generation))
        .cloned()
        .collect()
}

impl Lifecycle {
    /// Makes the copies that are missing, out of memory or by the upstream, one call a generation; then stores that the key
    /// is not revoked any more, and takes the marker down. Needs the turn, and an upstream that has just answered.
    pub(super) async fn restore(&self) {
        let Some(cloud) = &self.cloud else { return };
        let Some(mut next) = self.keyring() else { return };
        let missing = without_copy(&next);
        let given_back = cloud.memory().restore;
        let machine = self.machine.state();
        if (missing.is_empty() && !given_back) || machine.upstream_fault().is_some() || !machine.opens_cloud() {
            return;
        }
        if !cloud.may_restore(&cloud.clock.now()) {
            return;
        }
        let key = match copy_key(&self.custody, &next).await {
            Ok(key) => key,
            Err(error) => return tracing::warn!(%error, "offline copies cannot be made now"),
        };
        for generation in missing {
            let slot = self.keys.serving().keys.as_ref().and_then(|keys| keys.slot_of(&generation).cloned());
            let Some(slot) = slot else { continue };
            if !slot.is_loaded() {
                match cloud.open(&next, &generation).await {
                    Ok(opened) => slot.fill(opened.kek),
                    Err(error) => {
                        slot.note_fault(Some(error.to_string()));
                        continue;
                    }
                }
            }
            let sealed = slot.wrap_loaded(|kek| put(&mut next, &generation, kek, &key));
            if let Some(Err(error)) = sealed {
                return tracing::warn!(%error, "offline copies cannot be made now");
            }
        }
        if let Some(state) = &mut next.upstream {
            state.revoked = None;
        }
        fail::fail_point!("return.before-store");
        if self.store_with_lease(next).await {
            fail::fail_point!("return.stored");
            self.take_marker_down();
        }
    }
}
