//! The lease in service: counted in memory, stored seldom enough for a flash disk and often enough that a power cut gives
//! nothing back, ended on time, extended by a grant.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keystead_core::availability::{Availability, Observation};
use keystead_core::grant::{Grant, GrantError};
use keystead_core::keyring::Keyring;

use super::cloud::{Cloud, CloudReport};
use super::epoch::LoadError;
use super::explain::explain;
use super::keys::Keys;
use super::lifecycle::Lifecycle;
use super::offline::without_copy;

/// Between two stores of a lease that runs down: less than the floor of a new boot, so that what a power cut forgets is
/// always paid for. Two syncs each make about 200 a day.
const STORE_RUNNING: u64 = 14 * 60;
/// Between two stores of a lease that is renewed all the time.
const STORE_RENEWED: u64 = 3600;
/// After a store that failed.
const STORE_AGAIN: u64 = 30;

/// Why a grant was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ExtendError {
    #[error("there is no lease here: this keyring's root is not in a cloud KMS")]
    NoLease,
    #[error("no grant key was enrolled when this keyring was made: a grant cannot be checked")]
    NoGrantKey,
    #[error("the key is revoked: only the cloud can lift that, no grant can")]
    Revoked,
    #[error("the cloud opens the key: the lease is renewed by itself, and a grant would be lost at the next renewal")]
    NotNeeded,
    #[error("no record has been read yet: {0}")]
    NotStarted(String),
    #[error(transparent)]
    Grant(#[from] GrantError),
    #[error("the grant is good, but the lease could not be stored: {0}")]
    Storage(#[from] LoadError),
}

impl Lifecycle {
    /// Brings the countdown up to date and ends service when it is over. Blocks on nothing.
    pub(super) fn check_lease(&self) {
        let Some(cloud) = &self.cloud else { return };
        let Some(lease) = cloud.count_lease(cloud.clock.now()) else { return };
        let serving = self.keys.serving();
        let in_cloud = serving.keys.as_ref().is_some_and(|keys| keys.keyring.needs_cloud());
        if lease.is_used_up() && in_cloud {
            if serving.availability.serves() && self.machine.state().opens_cloud() {
                tracing::error!("the lease is used up: what hangs on the cloud is refused, and wiped from memory");
                // Else the last word on the disk would be that a little is left, for the next boot to use.
                cloud.memory().dirty = true;
            }
            self.observe(Observation::LeaseUsedUp, String::new(), None);
        }
    }

    /// Stores the lease if that is due. Needs the turn.
    pub(super) async fn store_lease(&self) {
        let Some(cloud) = &self.cloud else { return };
        let now = cloud.clock.now().boot_time;
        let troubled = self.machine.state().upstream_fault().is_some();
        let (due, new_boot, asked) = {
            let memory = cloud.memory();
            let interval = if troubled { STORE_RUNNING } else { STORE_RENEWED };
            let old = memory.stored.is_none_or(|stored| now.saturating_sub(stored) >= interval);
            let due = memory.lease.is_some() && (memory.dirty || old) && now >= memory.store_not_before;
            // An answer makes up for what the boot has cost: so that is waited for.
            (due, memory.boot_unstored, memory.last_fault.is_some())
        };
        let Some(next) = self.keyring().filter(|keyring| due && keyring.needs_cloud()) else { return };
        if !new_boot {
            self.store_with_lease(next).await;
        } else if asked {
            // Also where nothing is opened, expired or disabled: else a record from before this boot could come back.
            self.store_boot(cloud, next).await;
        }
    }

    /// Writes `next` with what this boot has cost of the lease, under a new epoch: no record from before it is believed any
    /// more. Whether it is durable. Needs the turn.
    pub(super) async fn store_boot(&self, cloud: &Cloud, next: Keyring) -> bool {
        match self.roll_with_lease(next).await {
            Ok(next) => {
                fail::fail_point!("offline-start.stored");
                self.publish_keyring(Keys::new(next, self.keys.serving().keys.as_deref()));
                true
            }
            Err(error) => {
                tracing::warn!(error = explain(&error), "what this boot costs of the lease cannot be stored yet");
                cloud.memory().store_not_before = cloud.clock.now().boot_time + STORE_AGAIN;
                false
            }
        }
    }

    /// Writes `next` with what memory knows of the lease; whether it is durable. Needs the turn.
    pub(super) async fn store_with_lease(&self, mut next: Keyring) -> bool {
        let Some(cloud) = &self.cloud else { return false };
        self.put_lease(&mut next);
        let now = cloud.clock.now().boot_time;
        fail::fail_point!("renewal.before-store");
        match self.records.persist(next).await {
            Ok(next) => {
                fail::fail_point!("renewal.stored");
                cloud.memory().note_stored(now);
                let earlier = self.keys.serving().keys.clone();
                self.machine.show(Arc::new(Keys::with_record(next, earlier.as_deref())));
                true
            }
            Err(error) => {
                tracing::warn!(error = explain(&error), "the lease cannot be stored now; it is counted in memory");
                cloud.memory().store_not_before = now + STORE_AGAIN;
                // The write may have got through after all.
                self.reload_needed.store(true, Ordering::Relaxed);
                false
            }
        }
    }

    /// Writes `next` under a new epoch, with what memory knows of the lease. Needs the turn.
    pub(super) async fn roll_with_lease(&self, mut next: Keyring) -> Result<Keyring, LoadError> {
        let cloud = self.cloud.as_ref().filter(|cloud| cloud.memory().lease.is_some());
        if cloud.is_some() {
            self.put_lease(&mut next);
        }
        // With an error it may have got through after all.
        let next = self.records.roll(next).await.inspect_err(|_| self.reload_needed.store(true, Ordering::Relaxed))?;
        if let Some(cloud) = cloud {
            cloud.memory().note_rolled(cloud.clock.now().boot_time);
        }
        Ok(next)
    }

    /// What memory knows, into the record to be written.
    pub(super) fn put_lease(&self, next: &mut Keyring) {
        let (Some(cloud), Some(state)) = (&self.cloud, &mut next.upstream) else { return };
        cloud.count_lease(cloud.clock.now());
        let machine = self.machine.state();
        let memory = cloud.memory();
        if let Some(lease) = &memory.lease {
            state.lease = lease.clone();
        }
        state.server_time = state.server_time.max(memory.server_time);
        if machine.is_proven() {
            state.proven = Some(cloud.digest);
        }
        state.denials = machine.denials();
    }

    /// Applies a signed grant: a longer lease, in a new epoch, so that it is good once. Service that had expired comes back.
    ///
    /// # Errors
    /// [`ExtendError`]; then nothing has changed.
    pub async fn extend_lease(&self, file: &[u8]) -> Result<Duration, ExtendError> {
        let _turn = self.turn.lock().await;
        let cloud = self.cloud.as_ref().ok_or(ExtendError::NoLease)?;
        let serving = self.keys.serving();
        let keyring = self.keyring().ok_or_else(|| ExtendError::NotStarted(serving.reason.clone()))?;
        let state = keyring.upstream.as_ref().ok_or(ExtendError::NoLease)?;
        let key = state.grant_key.as_ref().ok_or(ExtendError::NoGrantKey)?;
        let machine = self.machine.state();
        if machine.is_revoked() {
            return Err(ExtendError::Revoked);
        }
        if serving.availability == Availability::Online && machine.upstream_fault().is_none() && machine.opens_cloud() {
            return Err(ExtendError::NotNeeded);
        }
        let grant = Grant::read(file, key)?;
        grant.is_for(&keyring)?;
        let mut lease = cloud.count_lease(cloud.clock.now()).ok_or(ExtendError::NoLease)?;
        lease.extend(grant.duration());
        let mut next = keyring.clone();
        self.put_lease(&mut next);
        if let Some(state) = &mut next.upstream {
            state.lease = lease.clone();
        }
        let next = match self.records.roll(next).await {
            Ok(next) => next,
            Err(error) => {
                self.reload_needed.store(true, Ordering::Relaxed);
                return Err(error.into());
            }
        };
        {
            let mut memory = cloud.memory();
            memory.lease = Some(lease.clone());
            memory.alarm = None;
            memory.note_rolled(cloud.clock.now().boot_time);
        }
        let earlier = self.keys.serving().keys.clone();
        self.publish_keyring(Keys::new(next, earlier.as_deref()));
        tracing::warn!(
            seconds = grant.seconds,
            nonce = grant.nonce.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
            left_seconds = lease.left().as_secs(),
            "the lease was extended by a signed grant"
        );
        self.observe(Observation::LeaseExtended, String::new(), None);
        self.tend_once().await;
        Ok(lease.left())
    }

    /// The cloud side as it stands; `None` without an upstream, or before a record was read.
    pub fn cloud_report(&self) -> Option<CloudReport> {
        let cloud = self.cloud.as_ref()?;
        let lease = cloud.count_lease(cloud.clock.now())?;
        let machine = self.machine.state();
        let now = self.now();
        let keyring = self.keyring();
        let state = keyring.as_ref().and_then(|keyring| keyring.upstream.as_ref());
        let memory = cloud.memory();
        Some(CloudReport {
            identity: cloud.upstream.identity().clone(),
            lease_left: lease.left(),
            lease_length: lease.length(),
            alarm: lease.alarm(),
            last_contact: memory.last_contact.map(|at| now.saturating_sub(Duration::from_secs(at))),
            fault: machine.upstream_fault().map(|(since, class)| (now.saturating_sub(since), class)),
            last_fault: memory.last_fault.clone(),
            proven: machine.is_proven(),
            denials: machine.denials().map_or(0, |denials| denials.count),
            revoked: memory.revocation.clone().or_else(|| state.and_then(|state| state.revoked.clone())),
            pending_version: memory.pending_version.clone(),
            copies_complete: keyring.as_ref().is_some_and(|keyring| without_copy(keyring).is_empty()),
            unstored: memory.restore || memory.boot_unstored || (machine.is_revoked() && !memory.shredded),
        })
    }

    /// The upstream itself, for counting its calls and the ends of its certificates.
    pub fn upstream(&self) -> Option<&Arc<dyn crate::upstream::contract::Upstream>> {
        self.cloud.as_ref().map(|cloud| &cloud.upstream)
    }
}
