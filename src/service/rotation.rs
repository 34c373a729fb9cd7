//! Rotation: a new CMK, a new KEK, a new key ID, journalled so that a kill at any point resumes or rolls back.
//!
//! Intent (persisted) → CMK and KEK made → prepared (persisted) → unwrapped again and compared → activated with an
//! epoch roll (persisted) → published. The intent names the CMK before it exists: what a dead rotation left on the
//! token can be told from everything else, and only that is ever destroyed.

use std::time::SystemTime;

use keystead_core::keyring::{Generation, Keyring, TransitionError};
use keystead_core::wrap::WrappedKek;
use keystead_core::{Kek, WrapContext};
use rand_core::{TryRng, UnwrapErr};

use super::epoch::{self, LoadError};
use super::keys::{Keys, ServeError, unwrap_checked};
use super::lifecycle::Lifecycle;
use crate::custody::client::CustodyClient;
use crate::custody::contract::CustodyError;
use crate::store::Store;

/// Where a running rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotationStep {
    Prepared,
    Verified,
    Activated,
}

#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// Not while sealed or degraded: the new generation could not be proven.
    #[error("rotation is refused: {0}")]
    Refused(String),
    #[error(transparent)]
    Transition(#[from] TransitionError),
    #[error("the new key could not be proven and was rolled back: {0}")]
    NotProven(ServeError),
    #[error(transparent)]
    Storage(#[from] LoadError),
    #[error("the system's random source failed")]
    NoRandomness,
}

impl From<CustodyError> for RotationError {
    fn from(error: CustodyError) -> Self {
        Self::Storage(LoadError::Custody(error))
    }
}

impl Lifecycle {
    /// Rotates to a new generation. Returns when the new key ID is served.
    ///
    /// # Errors
    /// [`RotationError`]; the generation before goes on serving, and what was begun is resumed or rolled back.
    pub async fn rotate(&self, progress: impl Fn(RotationStep)) -> Result<Generation, RotationError> {
        let _turn = self.turn.lock().await;
        if self.keys.serving().availability == keystead_core::availability::Availability::Online {
            // A token that went away or was swapped since the last look is no token to make keys on.
            self.probe().await;
        }
        let serving = self.keys.serving();
        let online = serving.availability == keystead_core::availability::Availability::Online;
        let Some(mut keyring) = self.keyring().filter(|_| online) else {
            return Err(RotationError::Refused(serving.reason.clone()));
        };
        if keyring.rotation.is_some() {
            // Left by a failure of custody or disk: settle it before beginning another.
            self.finish_rotation(&mut keyring).await?;
            self.publish_keyring(Keys::new(keyring.clone(), serving.keys.as_deref()));
        }
        match self.rotate_from(keyring, &progress).await {
            Ok((keyring, kek)) => {
                let generation =
                    keyring.active().cloned().ok_or(TransitionError::Inconsistent("no active generation"))?;
                let keys = Keys::new(keyring, self.keys.serving().keys.as_deref());
                if let Some(slot) = keys.active() {
                    slot.fill(kek);
                }
                fail::fail_point!("rotation.before-publish");
                self.publish_keyring(keys);
                progress(RotationStep::Activated);
                tracing::info!(key_id = %generation.key_id, generation = %generation.number, "rotated");
                Ok(generation)
            }
            Err(error) => {
                tracing::error!(%error, "rotation failed");
                self.reload_after_failure().await;
                Err(error)
            }
        }
    }

    async fn rotate_from(
        &self,
        mut keyring: Keyring,
        progress: &impl Fn(RotationStep),
    ) -> Result<(Keyring, Kek), RotationError> {
        let (store, custody) = (&self.store, &self.custody);
        let revision = keyring.revision;
        keyring.begin_rotation(random()?, random()?, unix_now())?;
        epoch::persist(store, custody, Some(revision), &mut keyring).await?;
        fail::fail_point!("rotation.intent-written");
        make_generation(store, custody, &mut keyring).await?;
        progress(RotationStep::Prepared);
        let kek = self.prove_and_activate(&mut keyring, progress).await?;
        Ok((keyring, kek))
    }

    /// Unwraps the prepared generation again, compares, and makes it the active one under a new epoch.
    async fn prove_and_activate(
        &self,
        keyring: &mut Keyring,
        progress: &impl Fn(RotationStep),
    ) -> Result<Kek, RotationError> {
        let prepared = keyring.prepared().ok_or(TransitionError::NoRotation)?;
        let kek = unwrap_checked(&self.custody, &keyring.keyring, prepared).await.map_err(RotationError::NotProven)?;
        fail::fail_point!("rotation.verified");
        progress(RotationStep::Verified);
        let revision = keyring.revision;
        keyring.activate(unix_now())?;
        epoch::roll(&self.store, &self.custody, Some(revision), keyring).await?;
        Ok(kek)
    }

    /// Settles a rotation that the record says is under way: resumes it once prepared, else rolls it back.
    pub(super) async fn finish_rotation(&self, keyring: &mut Keyring) -> Result<(), LoadError> {
        let Some(intent) = keyring.rotation.clone() else { return Ok(()) };
        if keyring.prepared().is_some() {
            match self.prove_and_activate(keyring, &|_| ()).await {
                Ok(_) => {
                    tracing::info!(key_id = %intent.key_id, "resumed a rotation that was cut off");
                    return Ok(());
                }
                Err(RotationError::Storage(error)) => return Err(error),
                Err(RotationError::NotProven(ServeError::Custody(error))) if !is_lost(&error) => {
                    return Err(error.into());
                }
                Err(error) => tracing::warn!(%error, key_id = %intent.key_id, "the prepared generation does not open"),
            }
        }
        let revision = keyring.revision;
        // The object first: once the journal is gone, nothing would name it any more.
        self.custody.destroy_cmk(intent.root_id.clone()).await?;
        if keyring.roll_back_rotation().is_ok() {
            epoch::persist(&self.store, &self.custody, Some(revision), keyring).await?;
        }
        tracing::info!(key_id = %intent.key_id, "rolled back a rotation that was cut off");
        Ok(())
    }

    /// After a failed rotation the store says what holds; what is in memory may be behind it.
    pub(super) async fn reload_after_failure(&self) {
        let settings = &self.settings;
        match epoch::load(&self.store, &self.custody, &settings.keyring, &settings.node).await {
            Ok(mut keyring) => {
                if let Err(error) = self.finish_rotation(&mut keyring).await {
                    tracing::warn!(%error, "the rotation stays journalled and is settled before the next one");
                }
                let keys = Keys::new(keyring, self.keys.serving().keys.as_deref());
                let loaded = match keys.active() {
                    Some(active) => self.keys.load_generation(active).await.is_ok(),
                    None => false,
                };
                if loaded {
                    self.publish_keyring(keys);
                }
            }
            Err(error) => tracing::error!(%error, "the store cannot be read back; serving goes on from memory"),
        }
    }
}

/// Whether the token itself says that the generation can never be opened.
fn is_lost(error: &CustodyError) -> bool {
    matches!(error, CustodyError::CmkMissing { .. } | CustodyError::WrapRejected)
}

/// Makes CMK and KEK of the intended generation, wraps the KEK to every durable root, and persists it as prepared.
pub(super) async fn make_generation(
    store: &Store,
    custody: &CustodyClient,
    keyring: &mut Keyring,
) -> Result<(), RotationError> {
    let intent = keyring.rotation.clone().ok_or(TransitionError::NoRotation)?;
    let context = keyring.wrap_context(&intent);
    let (wrap, kek) = custody.new_kek(context.clone()).await?;
    fail::fail_point!("rotation.cmk-created");
    let wraps = durable_wraps(keyring, context, wrap, &kek)?;
    let revision = keyring.revision;
    keyring.prepare(kek.commitment(), wraps, unix_now())?;
    epoch::persist(store, custody, Some(revision), keyring).await?;
    fail::fail_point!("rotation.prepared");
    Ok(())
}

/// The custody wrap, and the recovery wrap if the keyring has a recovery key.
pub(super) fn durable_wraps(
    keyring: &Keyring,
    context: WrapContext,
    custody_wrap: WrappedKek,
    kek: &Kek,
) -> Result<Vec<WrappedKek>, RotationError> {
    // Checked once, so that the generator inside the HPKE seal cannot fail half-way.
    random::<1>()?;
    let recovery = keyring.recovery_key().map(|key| key.recovery_wrap(context, kek, &mut UnwrapErr(getrandom::SysRng)));
    Ok(std::iter::once(custody_wrap).chain(recovery).collect())
}

/// Fresh random bytes from the kernel.
pub(super) fn random<const N: usize>() -> Result<[u8; N], RotationError> {
    let mut bytes = [0; N];
    getrandom::SysRng.try_fill_bytes(&mut bytes).map_err(|_| RotationError::NoRandomness)?;
    Ok(bytes)
}

/// Unix seconds; 0 on a machine whose clock is before 1970. For people, never for a decision.
pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
