//! Changing the roots: always by a new generation, so that each generation keeps the roots it was made with.
//!
//! What is asked for is judged against the record under the turn of the rotation that carries it out. The choice travels in
//! the rotation's intent: it becomes the keyring's with the activation, and is gone with a rotation that is rolled back.

use keystead_core::FaultClass;
use keystead_core::availability::{Availability, Observation};
use keystead_core::hpke_p256::P256PublicKey;
use keystead_core::keyring::{Generation, Keyring, RecoveryRoot, RootsChoice};
use keystead_core::reason::Reason;
use keystead_core::{RootId, RootKind};

use super::lifecycle::Lifecycle;
use super::rotation::{RotationError, RotationStep};

/// What is to be different from now on.
#[derive(Debug, Clone)]
pub enum RootsChange {
    /// `replace`: although there is another one, whose place it takes.
    AddRecovery { key: P256PublicKey, replace: bool },
    /// `leave_one_root`: a person knows that everything hangs on the other one then.
    RemoveRecovery { leave_one_root: bool },
    /// The cloud key that the configuration names.
    AddUpstream,
    /// The CMK in custody takes its place.
    RemoveUpstream,
}

/// Why the roots are not changed. Nothing was.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    #[error("the active generation is wrapped to this recovery key already")]
    SameRecovery,
    #[error(
        "there is another recovery key ({0}): say --replace if new generations are to be wrapped to this one in its place"
    )]
    OtherRecovery(String),
    #[error("there is no recovery key to remove")]
    NoRecovery,
    #[error(
        "the recovery key is the only root besides {0}: if that is lost, every Secret is lost. Say --leave-one-root if it is meant"
    )]
    LastRoot(&'static str),
    #[error("the configuration has no [upstream]: name the cloud key there and restart the daemon first")]
    NoUpstream,
    #[error("the active generation's root is the cloud key of the configuration already")]
    SameUpstream,
    #[error("the active generation's root is the CMK in custody already: there is no cloud key to remove")]
    NotInCloud,
    #[error(
        "the cloud has revoked the key of older generations: only it can give that back. Or destroy those generations first"
    )]
    Revoked,
    #[error("the cloud cannot be reached or does not open the key now: {0}")]
    CloudAway(String),
}

impl Lifecycle {
    /// Makes a new generation with other roots and serves it. The guard against rotations too many, and `force`, are those of
    /// [`Self::rotate`].
    ///
    /// # Errors
    /// [`RotationError`]; then the roots are what they were.
    pub async fn change_roots(
        &self,
        change: RootsChange,
        force: Option<Reason>,
        progress: impl Fn(RotationStep),
    ) -> Result<Generation, RotationError> {
        self.ask_beforehand(&change).await.map_err(RotationError::Roots)?;
        let choose = |keyring: &Keyring| self.choose(&change, keyring).map(Some).map_err(RotationError::Roots);
        let generation = self.rotate_with(force, progress, choose).await?;
        tracing::warn!(?change, generation = %generation.number, "the roots were changed");
        Ok(generation)
    }

    /// Refuses what the cloud does not carry, before anything is written. Whether the daemon may rotate at all is judged later.
    async fn ask_beforehand(&self, change: &RootsChange) -> Result<(), RootsError> {
        let online = self.keys.serving().availability == Availability::Online;
        let (Some(keyring), Some(cloud)) = (self.keyring(), &self.cloud) else { return Ok(()) };
        match change {
            RootsChange::AddUpstream if online || self.moves_root() => {
                self.choose(change, &keyring)?;
                match cloud.upstream.describe().await {
                    Err(error) if !passes_over(error.class) => Err(RootsError::CloudAway(error.to_string())),
                    _ => Ok(()),
                }
            }
            // The last renewal may be some time ago, and what was revoked since must not come home.
            RootsChange::RemoveUpstream if online => {
                self.choose(change, &keyring)?;
                match self.ask(cloud, &keyring).await {
                    Ok(_) => {
                        self.observe(Observation::Renewed, String::new(), None);
                        Ok(())
                    }
                    Err(error) => {
                        self.upstream_failed(&error).await;
                        Err(RootsError::CloudAway(error.to_string()))
                    }
                }
            }
            _ => Ok(()),
        }
    }

    /// The cloud key that the configuration names, whatever the record says.
    pub fn configured_root(&self) -> Option<(RootKind, RootId)> {
        let identity = self.cloud.as_ref()?.upstream.identity();
        Some((identity.kind, identity.root_id.clone()))
    }

    fn choose(&self, change: &RootsChange, keyring: &Keyring) -> Result<RootsChoice, RootsError> {
        let mut next = keyring.roots_choice();
        let active_in_cloud = keyring.is_rooted_in_cloud();
        match change {
            RootsChange::AddRecovery { key, replace } => {
                let root_id = key.recovery_root_id();
                let wraps = keyring.active().map(|active| active.wraps.as_slice()).unwrap_or_default();
                match keyring.recovery_key().map(|known| known.recovery_root_id()) {
                    // Unless a generation was made without it, there is nothing to do.
                    Some(known) if known == root_id && wraps.iter().any(|wrap| wrap.root_id == root_id) => {
                        return Err(RootsError::SameRecovery);
                    }
                    Some(known) if known != root_id && !replace => {
                        return Err(RootsError::OtherRecovery(known.to_string()));
                    }
                    _ => next.recovery = RecoveryRoot::of(Some(key)),
                }
            }
            RootsChange::RemoveRecovery { leave_one_root } => {
                if keyring.recovery == RecoveryRoot::Declined {
                    return Err(RootsError::NoRecovery);
                }
                if !leave_one_root {
                    return Err(RootsError::LastRoot(if active_in_cloud { "the cloud key" } else { "this token" }));
                }
                next.recovery = RecoveryRoot::Declined;
            }
            RootsChange::AddUpstream => {
                self.may_add_upstream(keyring)?;
                next.custody_only = false;
            }
            RootsChange::RemoveUpstream => {
                if !active_in_cloud {
                    return Err(RootsError::NotInCloud);
                }
                next.custody_only = true;
            }
        }
        Ok(next)
    }

    fn may_add_upstream(&self, keyring: &Keyring) -> Result<(), RootsError> {
        let cloud = self.cloud.as_ref().ok_or(RootsError::NoUpstream)?;
        let active = keyring.active().filter(|active| active.is_rooted_in_cloud()).and_then(Generation::upstream_wrap);
        if active.map(|wrap| (wrap.root_kind, wrap.root_id.clone())) == self.configured_root() {
            return Err(RootsError::SameUpstream);
        }
        if active.is_none() && keyring.needs_cloud() {
            let machine = self.machine.state();
            if machine.is_revoked() {
                return Err(RootsError::Revoked);
            }
            let fault = cloud.memory().last_fault.clone().filter(|fault| fault.code != super::cloud::OTHER_ROOT);
            if let (Some(_), Some(fault)) = (machine.upstream_fault(), fault) {
                return Err(RootsError::CloudAway(fault.detail));
            }
        }
        Ok(())
    }
}

/// Describing a key is a right of its own, and some services have none such: only the use of the key shows more.
fn passes_over(class: FaultClass) -> bool {
    matches!(class, FaultClass::Denied | FaultClass::Unclassified | FaultClass::Corrupt)
}
