//! Rotation: a new CMK, a new KEK, a new key ID, journalled so that a kill at any point resumes or rolls back.
//!
//! Intent (persisted) → CMK and KEK made → prepared (persisted) → unwrapped again and compared → activated with an
//! epoch roll (persisted) → published. The intent names the CMK before it exists: what a dead rotation left on the
//! token can be told from everything else, and only that is ever destroyed.

use std::sync::atomic::Ordering;

use keystead_core::availability::{Availability, Cause, Effect, Observation};
use keystead_core::keyring::{Generation, Keyring, RootsChoice, TransitionError};
use keystead_core::reason::Reason;
use keystead_core::scan::NotRewritten;
use keystead_core::wrap::WrappedKek;
use keystead_core::{FaultClass, Kek, WrapContext};
use rand_core::{TryRng, UnwrapErr};

use super::clock::unix_now;
use super::cloud;
use super::epoch::{LoadError, Records};
use super::explain::explain;
use super::keys::{Keys, ServeError, open_locally};
use super::lifecycle::Lifecycle;
use super::offline;
use super::roots::RootsError;
use crate::custody::client::CustodyClient;
use crate::custody::contract::CustodyError;
use crate::upstream::contract::{Upstream, UpstreamError};

/// Where a running rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotationStep {
    Prepared,
    Verified,
    Activated,
}

#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// Not while sealed, degraded, or another rotation is under way: the new generation could not be proven.
    #[error("rotation is refused: {0}")]
    Refused(String),
    /// Another generation would be needed for ever: old ones cannot be deleted while objects hang on them, and a
    /// cluster that hangs on many has been wedged by the loss of one.
    #[error(
        "rotation is refused: Secrets may still be under an older generation ({0}). Rewrite every Secret, then run \
         `keystead etcd scan`; or rotate all the same with --force REASON, which is kept"
    )]
    NotRewritten(NotRewritten),
    #[error("the roots are not changed: {0}")]
    Roots(RootsError),
    #[error(transparent)]
    Transition(#[from] TransitionError),
    #[error("the new key could not be proven: {0}. It is rolled back, or finished, before the next rotation")]
    NotProven(ServeError),
    #[error("the cloud does not do its part: {0}")]
    Upstream(UpstreamError),
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

/// A keyring whose record is durable, and the KEK of its active generation if that was just unwrapped.
pub(super) struct Settled {
    pub keyring: Keyring,
    pub kek: Option<Kek>,
}

impl Lifecycle {
    /// Rotates to a new generation. Returns when the new key ID is served. `force`: a person's reason to do so although
    /// Secrets under older generations may not have been rewritten; it is kept with the generation if it was needed.
    ///
    /// # Errors
    /// [`RotationError`]; the generation before goes on serving, and what was begun is settled before the next rotation.
    pub async fn rotate(
        &self,
        force: Option<Reason>,
        progress: impl Fn(RotationStep),
    ) -> Result<Generation, RotationError> {
        self.rotate_with(force, progress, |_| Ok(None)).await
    }

    /// [`Self::rotate`] with the roots that `choose` makes of the record, if others than before.
    pub(super) async fn rotate_with(
        &self,
        force: Option<Reason>,
        progress: impl Fn(RotationStep),
        choose: impl FnOnce(&Keyring) -> Result<Option<RootsChoice>, RotationError>,
    ) -> Result<Generation, RotationError> {
        // Retries of an impatient client must not queue up: each would be a rotation of its own.
        let _alone =
            self.rotating.try_lock().map_err(|_| RotationError::Refused("another rotation is under way".into()))?;
        let _turn = self.turn.lock().await;
        if self.machine.state().is_disabled() {
            // Not even one that was cut off is settled: that would open keys.
            return Err(RotationError::Refused(self.keys.serving().reason.clone()));
        }
        if self.keys.serving().availability == Availability::Online {
            // A token that went away or was swapped since the last look is no token to make keys on.
            self.probe().await;
        }
        self.settle().await;
        let serving = self.keys.serving();
        let moves = self.moves_root();
        if serving.availability != Availability::Online && !moves {
            return Err(RotationError::Refused(serving.reason.clone()));
        }
        let Some(keyring) = self.keyring().filter(|keyring| keyring.rotation.is_none() && !self.is_unsettled()) else {
            return Err(RotationError::Refused("the rotation before is not settled yet; the log says why".into()));
        };
        let roots = choose(&keyring)?;
        if moves && roots.as_ref().is_some_and(|roots| roots.custody_only) {
            // What the cloud has not just opened stays under its word: nothing is brought home behind its back.
            return Err(RotationError::Refused(serving.reason.clone()));
        }
        let forced = match (keyring.rewritten(), force) {
            (Ok(()), _) => None,
            (Err(why), None) => return Err(RotationError::NotRewritten(why)),
            (Err(why), Some(reason)) => {
                tracing::warn!(%reason, %why, "rotation forced");
                Some(reason)
            }
        };
        let before = keyring.active().map(|generation| generation.key_id.clone());
        match self.rotate_from(keyring, roots, forced, &progress).await {
            Ok(settled) => {
                fail::fail_point!("rotation.before-publish");
                self.publish_settled(settled);
            }
            Err(error) => {
                tracing::error!(error = explain(&error), "rotation failed");
                self.reload_needed.store(true, Ordering::Relaxed);
                self.settle().await;
                let active = self.keyring().and_then(|keyring| keyring.active().map(|active| active.key_id.clone()));
                if active == before {
                    return Err(error);
                }
                // Only its last step failed, and settling finished it.
            }
        }
        let active = self.keyring().and_then(|keyring| keyring.active().cloned());
        let generation = active.ok_or(TransitionError::Inconsistent("no active generation"))?;
        progress(RotationStep::Activated);
        tracing::info!(key_id = %generation.key_id, generation = %generation.number, "rotated");
        Ok(generation)
    }

    /// Whether the configuration names another cloud key than the active generation's: what is served meanwhile is its
    /// offline copy, and a rotation is the way to the new key.
    pub(super) fn moves_root(&self) -> bool {
        let serving = self.keys.serving();
        let active = serving.keys.as_ref().and_then(|keys| keys.active());
        let (Some(cloud), Some(wrap)) = (&self.cloud, active.and_then(|slot| slot.generation.upstream_wrap())) else {
            return false;
        };
        let identity = cloud.upstream.identity();
        matches!(serving.availability, Availability::Degraded { cause: Cause::Upstream(FaultClass::Unclassified), .. })
            && (wrap.root_kind, &wrap.root_id) != (identity.kind, &identity.root_id)
    }

    async fn rotate_from(
        &self,
        mut keyring: Keyring,
        roots: Option<RootsChoice>,
        forced: Option<Reason>,
        progress: &impl Fn(RotationStep),
    ) -> Result<Settled, RotationError> {
        keyring.begin_rotation(random()?, random()?, unix_now())?;
        if let Some(intent) = &mut keyring.rotation {
            intent.forced = forced;
        }
        if let Some(roots) = roots {
            keyring.intend_roots(roots)?;
        }
        let cloud = self.cloud.as_ref().filter(|_| !keyring.next_roots().custody_only);
        if cloud.is_some() {
            self.marker.prepare();
        }
        if let (Some(cloud), false) = (cloud, keyring.needs_cloud()) {
            // A keyring that has its root here moves it to the cloud. What an earlier one there left behind is over.
            let (identity, settings) = (cloud.upstream.identity(), &cloud.settings);
            let before = keyring.upstream.take().and_then(|state| state.grant_key);
            let grant_key = before.or_else(|| settings.grant_key.clone());
            keyring.upstream = Some(cloud::first_state(identity, settings.lease, grant_key, cloud.clock.now()));
        }
        let keyring = self.records.persist(keyring).await?;
        fail::fail_point!("rotation.intent-written");
        let upstream = cloud.map(|cloud| &*cloud.upstream);
        let keyring = make_generation(&self.records, &self.custody, upstream, keyring).await?;
        progress(RotationStep::Prepared);
        self.prove_and_activate(&keyring, progress).await
    }

    /// Unwraps the prepared generation again, compares, and makes it the active one under a new epoch.
    async fn prove_and_activate(
        &self,
        keyring: &Keyring,
        progress: &impl Fn(RotationStep),
    ) -> Result<Settled, RotationError> {
        let prepared = keyring.prepared().ok_or(TransitionError::NoRotation)?;
        let mut next = keyring.clone();
        let kek = if prepared.custody_wrap().is_some() {
            open_locally(&self.custody, keyring, prepared).await.map_err(RotationError::NotProven)?
        } else {
            self.prove_in_cloud(keyring, prepared, &mut next).await?
        };
        fail::fail_point!("rotation.verified");
        progress(RotationStep::Verified);
        // The schedule counts from here, by the same clock.
        next.activate(self.moment().wall)?;
        let keyring = self.records.roll(next).await?;
        if let Some(cloud) = &self.cloud {
            cloud.memory().pending_version = None;
        }
        Ok(Settled { keyring, kek: Some(kek) })
    }

    /// Both ways to the key are tried before anything depends on it: the upstream's, and the offline copy's.
    async fn prove_in_cloud(
        &self,
        keyring: &Keyring,
        prepared: &Generation,
        next: &mut Keyring,
    ) -> Result<Kek, RotationError> {
        let not_here = || RotationError::Refused("the configuration has no [upstream]".into());
        let cloud = self.cloud.as_ref().ok_or_else(not_here)?;
        let opened = cloud.open(keyring, prepared).await.map_err(RotationError::Upstream)?;
        cloud.note_success(&opened, keyring.upstream.as_ref(), cloud.clock.now());
        let renewed = self.machine.observe(Observation::Renewed, String::new(), None, self.now());
        if renewed == Some(Effect::Restore) || self.marker.is_raised() {
            // The marker may be of a key that was given up since.
            cloud.memory().restore = true;
        }
        if keyring.upstream.as_ref().is_some_and(|state| state.revoked.is_none()) {
            open_locally(&self.custody, keyring, prepared).await.map_err(RotationError::NotProven)?;
        }
        self.put_lease(next);
        if let (Some(state), Some(wrap)) = (&mut next.upstream, prepared.upstream_wrap()) {
            state.root_kind = wrap.root_kind;
            state.root_id = wrap.root_id.clone();
            state.proven = Some(cloud.digest);
            for version in cloud.memory().pending_version.iter().chain(&opened.key_version) {
                state.note_version(version);
            }
        }
        Ok(opened.kek)
    }

    /// [`Self::finish_rotation`], but a disabled key's rotation waits: settling it would open keys.
    pub(super) async fn finish_rotation_unless(&self, disabled: bool, keyring: &Keyring) -> Result<Settled, LoadError> {
        if disabled {
            return Ok(Settled { keyring: keyring.clone(), kek: None });
        }
        self.finish_rotation(keyring).await
    }

    /// Settles a rotation that the record says is under way: finishes it once prepared, else rolls it back.
    ///
    /// # Errors
    /// When custody or disk do not allow it now. `keyring` still holds, and its active generation may be served.
    pub(super) async fn finish_rotation(&self, keyring: &Keyring) -> Result<Settled, LoadError> {
        let Some(intent) = keyring.rotation.clone() else {
            return Ok(Settled { keyring: keyring.clone(), kek: None });
        };
        if keyring.prepared().is_some() {
            match self.prove_and_activate(keyring, &|_| ()).await {
                Ok(settled) => {
                    tracing::info!(key_id = %intent.key_id, "finished a rotation that was cut off");
                    return Ok(settled);
                }
                Err(RotationError::Storage(error)) => return Err(error),
                // Anything but the cloud's word that this wrap is none of its key's may pass; or, where the key does without it
                // so far, that it is not to be opened.
                Err(RotationError::Upstream(error)) if !is_final(error.class, keyring) => {
                    return Err(LoadError::Upstream(error));
                }
                Err(RotationError::NotProven(ServeError::Custody(error))) if !is_lost(&error) => {
                    return Err(error.into());
                }
                Err(error) => tracing::warn!(%error, key_id = %intent.key_id, "the prepared generation does not open"),
            }
        }
        // The object first: once the journal is gone, nothing would name it any more.
        self.custody.destroy_cmk(intent.root_id.clone()).await?;
        let mut next = keyring.clone();
        if next.roll_back_rotation().is_err() {
            return Ok(Settled { keyring: next, kek: None });
        }
        let keyring = self.records.persist(next).await?;
        tracing::info!(key_id = %intent.key_id, "rolled back a rotation that was cut off");
        Ok(Settled { keyring, kek: None })
    }

    /// Brings record, token and memory together again after a change that failed half-way. What cannot be done now is
    /// tried again; serving goes on meanwhile.
    pub(super) async fn settle(&self) {
        if !self.is_unsettled() {
            return;
        }
        if self.machine.state().is_disabled() {
            return self.tend_disabled().await;
        }
        let settled = match self.records.load().await {
            Ok(keyring) => self.finish_rotation(&keyring).await,
            Err(error) => Err(error),
        };
        match settled {
            Ok(settled) => {
                self.reload_needed.store(false, Ordering::Relaxed);
                let number = settled.keyring.active().map(|active| active.number);
                let loaded = settled.kek.is_some()
                    || number == self.keyring().and_then(|keyring| keyring.active().map(|active| active.number));
                if loaded {
                    self.publish_settled(settled);
                } else {
                    // The generation that the record names is not in memory: no door is opened to a key that is not there.
                    self.reload_needed.store(true, Ordering::Relaxed);
                    self.load_and_publish(settled.keyring).await;
                }
            }
            Err(error) => {
                tracing::warn!(error = explain(&error), "a change is not settled yet; serving goes on from memory")
            }
        }
    }

    async fn load_and_publish(&self, keyring: Keyring) {
        let keys = Keys::new(keyring, self.keys.serving().keys.as_deref());
        let Some(active) = keys.active() else { return };
        match self.keys.load_generation(active).await {
            Ok(()) => {
                self.publish_keyring(keys);
                self.reload_needed.store(false, Ordering::Relaxed);
            }
            Err(error) => {
                tracing::warn!(%error, "the active generation cannot be opened yet; the one before serves on")
            }
        }
    }

    fn publish_settled(&self, settled: Settled) {
        let keys = Keys::new(settled.keyring, self.keys.serving().keys.as_deref());
        if let (Some(slot), Some(kek)) = (keys.active(), settled.kek) {
            slot.fill(kek);
        }
        self.publish_keyring(keys);
    }

    pub(super) fn is_unsettled(&self) -> bool {
        self.reload_needed.load(Ordering::Relaxed)
            || self.records.in_debt()
            || self.keyring().is_some_and(|keyring| keyring.rotation.is_some())
    }
}

/// Whether the token itself says that the generation can never be opened.
fn is_lost(error: &CustodyError) -> bool {
    matches!(error, CustodyError::CmkMissing { .. } | CustodyError::WrapRejected)
}

/// Whether a prepared generation that the cloud does not open is given up.
fn is_final(class: FaultClass, keyring: &Keyring) -> bool {
    match class {
        FaultClass::Corrupt => true,
        FaultClass::KeyDisabled | FaultClass::KeyGone | FaultClass::Denied => !keyring.is_rooted_in_cloud(),
        _ => false,
    }
}

/// Makes CMK and KEK of the intended generation, wraps the KEK to every durable root, and persists it as prepared. With an
/// upstream the CMK is the cloud's, and what is made here is the offline copy.
pub(super) async fn make_generation(
    records: &Records,
    custody: &CustodyClient,
    upstream: Option<&dyn Upstream>,
    mut keyring: Keyring,
) -> Result<Keyring, RotationError> {
    prepare_generation(custody, upstream, &mut keyring).await?;
    let keyring = records.persist(keyring).await?;
    fail::fail_point!("rotation.prepared");
    Ok(keyring)
}

/// [`make_generation`] but for the last step.
pub(super) async fn prepare_generation(
    custody: &CustodyClient,
    upstream: Option<&dyn Upstream>,
    keyring: &mut Keyring,
) -> Result<(), RotationError> {
    let intent = keyring.rotation.clone().ok_or(TransitionError::NoRotation)?;
    let (context, wrap, kek) = match upstream {
        None => {
            let context = keyring.wrap_context(&intent, custody.describe().await?.root_kind);
            let (wrap, kek) = custody.new_kek(context.clone()).await?;
            (context, wrap, kek)
        }
        Some(upstream) => {
            let identity = upstream.identity();
            let context = keyring.wrap_context_under(&intent, identity.kind, identity.root_id.clone());
            let made = upstream.generate(&context).await.map_err(RotationError::Upstream)?;
            if let (Some(state), Some(version)) = (&mut keyring.upstream, &made.wrapped.key_version) {
                state.note_version(version);
            }
            (context, made.wrapped.wrap, made.kek)
        }
    };
    fail::fail_point!("rotation.cmk-created");
    let wraps = durable_wraps(keyring, context, wrap, &kek)?;
    keyring.prepare(kek.commitment(), wraps, unix_now())?;
    if let (Some(_), Some(prepared)) = (upstream, keyring.prepared().cloned()) {
        let key = offline::copy_key(custody, keyring).await?;
        offline::put(keyring, &prepared, &kek, &key)?;
    }
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
    let recovery = keyring
        .next_roots()
        .recovery
        .key()
        .map(|key| key.recovery_wrap(context, kek, &mut UnwrapErr(getrandom::SysRng)));
    Ok(std::iter::once(custody_wrap).chain(recovery).collect())
}

/// Fresh random bytes from the kernel.
pub(super) fn random<const N: usize>() -> Result<[u8; N], RotationError> {
    let mut bytes = [0; N];
    getrandom::SysRng.try_fill_bytes(&mut bytes).map_err(|_| RotationError::NoRandomness)?;
    Ok(bytes)
}
