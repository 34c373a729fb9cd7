//! From the store to a served key: the record is read, a change that was cut off is settled, and the active generation opened.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use keystead_core::availability::{Availability, Observation, Root, Source};
use keystead_core::keyring::Keyring;
use keystead_core::{FaultClass, RootKind};

use super::epoch::LoadError;
use super::explain::explain;
use super::keys::{Keys, ServeError};
use super::lifecycle::Lifecycle;
use super::rotation::Settled;
use crate::custody::contract::{CustodyError, TokenDescription};

/// Why a start did not end in serving.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("the active generation cannot be opened: {0}")]
    Active(ServeError),
    #[error("the keyring has no active generation: `keystead init` was cut off; run it again")]
    NoActive,
    #[error(
        "the active generation's root is in a cloud KMS, and the configuration has no [upstream]: put it back. To do without, \
         `keystead roots remove upstream` comes first"
    )]
    NoUpstream,
    #[error("the cloud does not open the key ({0}), and no offline copy may stand in for it")]
    NothingOpens(String),
    /// Expired, revoked or disabled; the machine has said so.
    #[error("the key may not be used now")]
    Refused,
}

impl Lifecycle {
    /// Loads the record and the active key; needs the turn.
    pub(super) async fn start(&self) {
        self.active_used_last.store(false, Ordering::Relaxed);
        self.heed_disabled_marker();
        self.look_again().await;
        let described = self.custody.describe().await;
        if let (Some(cloud), Ok(TokenDescription { clock: Some(told), .. })) = (&self.cloud, &described) {
            cloud.clock.shows(*told);
        }
        let outcome = match &described {
            Ok(_) => self.try_start().await,
            Err(error) => Err(StartError::Load(LoadError::Custody(error.clone()))),
        };
        if let (Ok(_), Ok(description)) = (&outcome, &described) {
            self.prove(description);
        }
        self.note_custody(match (&outcome, described) {
            (Err(error), Ok(token)) => match fault_of(error, &token) {
                Some(fault) => Err(fault),
                None => Ok(token),
            },
            (_, described) => described,
        });
        match outcome {
            Ok((keys, source)) => {
                let keyring = keys.keyring.clone();
                self.observe(Observation::Loaded(source), String::new(), Some(Arc::new(keys)));
                if !self.keys.serving().availability.serves() {
                    // The cloud gave the key back, and an admin has it disabled.
                    return;
                }
                let active = keyring.active().map(|generation| generation.key_id.to_string()).unwrap_or_default();
                tracing::info!(keyring = %keyring.keyring, key_id = active, generations = keyring.generations.len(), "serving");
            }
            Err(StartError::Refused) => {}
            Err(error) => {
                let waits = match &error {
                    StartError::Load(load) => load.is_custody(),
                    StartError::Active(ServeError::Custody(_)) => true,
                    StartError::Active(_)
                    | StartError::NoActive
                    | StartError::NoUpstream
                    | StartError::NothingOpens(_)
                    | StartError::Refused => false,
                };
                let reason = explain(&error);
                if self.keys.serving().reason != reason {
                    tracing::warn!(reason, "sealed");
                }
                let observation = match &error {
                    _ if waits => Observation::CustodyLost,
                    StartError::NothingOpens(_) => Observation::NothingOpens,
                    _ => Observation::RecordRejected,
                };
                self.observe(observation, reason, None);
            }
        }
    }

    async fn try_start(&self) -> Result<(Keys, Source), StartError> {
        let keyring = self.records.load().await?;
        if keyring.active().is_none() {
            // An `init` that was cut off is begun anew by `init`, not by whoever starts the daemon.
            return Err(StartError::NoActive);
        }
        self.switch.prepare();
        let disabled = self.heed_disabled_record(&keyring);
        let settled = match self.finish_rotation_unless(disabled, &keyring).await {
            Ok(settled) => settled,
            // A full disk or a prepared generation that does not open now: neither is a reason not to serve what was active.
            Err(error) => {
                tracing::warn!(error = explain(&error), "a rotation that was cut off is not settled yet");
                Settled { keyring, kek: None }
            }
        };
        let earlier = self.keys.serving().keys.clone();
        let keys = Keys::new(settled.keyring, earlier.as_deref());
        let active = keys.active().ok_or(StartError::NoActive)?;
        if active.generation.is_rooted_in_cloud() {
            return self.start_in_cloud(keys).await;
        }
        self.remember_cloud(&keys.keyring);
        if disabled {
            self.machine.show(Arc::new(keys));
            return Err(StartError::Refused);
        }
        if let Some(kek) = settled.kek {
            active.fill(kek);
        }
        self.keys.load_generation(active).await.map_err(StartError::Active)?;
        Ok((keys, Source::Custody))
    }

    /// The active generation's root is in the cloud: by the upstream if it opens the key, else, unless it has revoked it or
    /// the lease is used up, by the offline copy.
    async fn start_in_cloud(&self, mut keys: Keys) -> Result<(Keys, Source), StartError> {
        let cloud = self.cloud.as_ref().ok_or(StartError::NoUpstream)?;
        let state = keys.keyring.upstream.clone().ok_or(StartError::NoUpstream)?;
        self.marker.prepare();
        cloud.adopt(&state, cloud.clock.now());
        self.observe(Observation::Rooted(Root::Upstream), String::new(), None);
        let (past, told) = self.past(cloud, &state);
        // Refused from here on, if it is: the keys shown are the record's, with nothing in memory.
        self.observe(Observation::Remembered(past), told, None);
        if self.machine.state().availability() == Availability::Disabled {
            // Renewals go on asking; only an admin brings it back.
            self.machine.show(Arc::new(keys));
            return Err(StartError::Refused);
        }
        let error = match self.ask_or_remember(cloud, &keys.keyring).await {
            Ok(opened) => {
                if let Some(active) = keys.active() {
                    active.fill(opened.kek);
                }
                if self.machine.state().is_revoked() {
                    cloud.memory().restore = true;
                }
                return Ok((keys, Source::Upstream));
            }
            Err(error) => error,
        };
        self.shred().await;
        let lease = cloud.count_lease(cloud.clock.now());
        if lease.is_none_or(|lease| lease.is_used_up()) {
            self.observe(Observation::LeaseUsedUp, String::new(), None);
        }
        if !matches!(self.machine.state().availability(), Availability::Sealed(_)) {
            // Unless shredding them has just shown newer ones.
            if self.keyring().is_none_or(|shown| shown.revision <= keys.keyring.revision) {
                self.machine.show(Arc::new(keys));
            }
            return Err(StartError::Refused);
        }
        if error.class == FaultClass::Corrupt {
            // Not an upstream that is away: what it was sent, or what it answered, is wrong.
            self.machine.show(Arc::new(keys));
            return Err(StartError::NothingOpens(error.to_string()));
        }
        if cloud.memory().boot_unstored {
            // Before anything is served: what this boot has cost, in an epoch that makes every record before it worthless.
            let next = self.roll_with_lease(Keyring::clone(&keys.keyring)).await?;
            fail::fail_point!("offline-start.stored");
            keys = Keys::new(next, Some(&keys));
        }
        let active = keys.active().ok_or(StartError::NoActive)?;
        match self.keys.load_generation(active).await {
            Ok(()) => Ok((keys, Source::OfflineCopy)),
            Err(ServeError::NoOfflineCopy) => Err(StartError::NothingOpens(error.to_string())),
            Err(other) => Err(StartError::Active(other)),
        }
    }
}

/// What a start that failed says of the token, if anything.
fn fault_of(error: &StartError, description: &TokenDescription) -> Option<CustodyError> {
    let serial = description.token.serial.clone();
    match error {
        StartError::Load(LoadError::Custody(fault)) | StartError::Active(ServeError::Custody(fault)) => {
            Some(fault.clone())
        }
        // Another TPM would not have come so far: its storage root key is pinned.
        StartError::Load(LoadError::NoEpochSecret { record }) if description.root_kind == RootKind::Tpm => {
            Some(CustodyError::EpochMissing { number: *record })
        }
        StartError::Load(LoadError::NoEpochSecret { .. }) => {
            Some(CustodyError::TokenReplaced { serial, expected: None })
        }
        StartError::Load(LoadError::TokenOlderThanStore { record, token }) => {
            Some(CustodyError::TokenOlder { serial, record: *record, token: *token })
        }
        _ => None,
    }
}
