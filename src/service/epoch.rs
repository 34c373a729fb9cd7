//! The epoch secret at work: which record is believed, and the roll that makes older ones worthless.
//!
//! A roll creates E_n+1 in custody, writes the record under it, syncs, and destroys E_n. While both exist (a power cut),
//! whichever authenticates the record wins and the roll is finished.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hmac::{Hmac, KeyInit, Mac};
use keystead_core::keyring::Keyring;
use keystead_core::record::{self, Authenticator, Claims, RecordError, UnverifiedRecord};
use keystead_core::{KeyringId, NodeId};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::explain::explain;
use super::{disk, offline};
use crate::audit::{AuditKey, Trail};
use crate::custody::client::CustodyClient;
use crate::custody::contract::{CustodyError, EpochPurpose, EpochRef};
use crate::store::{Mark, Marker, Store, StoreError};
use crate::upstream::contract::UpstreamError;

/// A key derived from one epoch secret, for the store's record or for checkpoints of the audit trail.
pub struct EpochKey(Zeroizing<[u8; 32]>);

impl Authenticator for EpochKey {
    fn tag(&self, message: &[u8]) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_slice()).expect("HMAC takes keys of any length");
        mac.update(message);
        mac.finalize().into_bytes().into()
    }
}

/// Why there is no keyring to serve. Each says what happened and what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("there is no keyring in the store: run `keystead init`")]
    NotInitialized,
    #[error("the store belongs to node {found}, this is node {own}: a store cannot be moved by copying it")]
    ForeignNode { found: NodeId, own: NodeId },
    #[error("the store holds keyring {found}, the configuration says {own}")]
    ForeignKeyring { found: KeyringId, own: KeyringId },
    #[error(
        "the token has no epoch secret for this keyring and node: it is another token, or it was initialised anew; on a TPM, \
         its NV indices were undefined"
    )]
    NoEpochSecret { record: u64 },
    #[error(
        "the store's record is stale: it is of epoch {record}, the token is at {token}. It was restored or copied from \
         an earlier time; put the newest record back. If there is none: `keystead store restore --accept-rollback`"
    )]
    RolledBack { record: u64, token: u64 },
    #[error(
        "the token is older than the store: the record is of epoch {record}, the token is at {token}. The token was \
         restored from a backup, and not the store"
    )]
    TokenOlderThanStore { record: u64, token: u64 },
    #[error("the store's record is not authentic: it was changed outside keystead. Put an unchanged copy back")]
    NotAuthentic,
    #[error("the system's random source failed")]
    NoRandomness,
    #[error("the cloud does not open it now: {0}")]
    Upstream(UpstreamError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Custody(#[from] CustodyError),
}

impl LoadError {
    /// Whether waiting for custody may mend it; the rest needs a person.
    pub fn is_custody(&self) -> bool {
        matches!(self, Self::Custody(_))
    }
}

/// The store's record under the epoch secrets of one keyring and node. Every change goes in by value and comes back only
/// when it is durable, so that nothing can be published that is not.
pub struct Records {
    store: Store,
    custody: CustodyClient,
    keyring: KeyringId,
    node: NodeId,
    /// An epoch secret besides the one in force is still on the token: while it is, an older record could come back.
    in_debt: AtomicBool,
    trail: Option<Trail>,
    /// The key of the record in force: a lease is stored also while custody is away.
    key: Mutex<Option<(u64, Arc<EpochKey>)>>,
}

impl Records {
    pub fn new(store: Store, custody: CustodyClient, keyring: KeyringId, node: NodeId) -> Self {
        let in_debt = AtomicBool::new(false);
        Self { store, custody, keyring, node, in_debt, trail: None, key: Mutex::default() }
    }

    /// With an audit trail, which gets a checkpoint by every epoch and whose end every record names.
    pub fn with_trail(self, trail: Option<Trail>) -> Self {
        Self { trail, ..self }
    }

    /// Where what is done is recorded; `None` where the site wants no trail.
    pub fn trail(&self) -> Option<&Trail> {
        self.trail.as_ref()
    }

    /// A marker beside the record.
    pub fn marker(&self, mark: Mark) -> Marker {
        self.store.marker(mark)
    }

    /// What the record in the store says of itself, if there is one.
    pub fn claims(&self) -> Result<Option<Claims>, StoreError> {
        Ok(disk::wait(|| self.store.load())?.map(|record| record.claims().clone()))
    }

    /// Reads the record, believes it if an epoch secret of this keyring and node authenticates it, and finishes a roll
    /// that was cut off.
    pub async fn load(&self) -> Result<Keyring, LoadError> {
        let record = self.unverified()?;
        let claims = record.claims();
        self.claimed_for_here(claims)?;
        let epochs = self.list_epochs().await?;
        for &number in epochs.iter().rev() {
            // Asked anew: what is believed is what custody has, not what is remembered of it.
            let key = Arc::new(record_key(&self.custody, self.epoch(number)).await?);
            match record.verify(&*key) {
                Ok(authentic) if authentic.epoch == number => {
                    self.remember(number, key);
                    self.in_debt.store(epochs.len() > 1, Ordering::Relaxed);
                    self.settle_debt(&authentic).await;
                    if let (Some(trail), Some(end)) = (&self.trail, authentic.audit) {
                        trail.expect(end);
                    }
                    self.vouch(number).await;
                    return Ok(authentic);
                }
                Ok(_) => return Err(LoadError::NotAuthentic),
                Err(RecordError::NotAuthentic) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Err(diagnose(claims, &epochs))
    }

    fn claimed_for_here(&self, claims: &Claims) -> Result<(), LoadError> {
        if claims.keyring != self.keyring {
            return Err(LoadError::ForeignKeyring { found: claims.keyring.clone(), own: self.keyring.clone() });
        }
        if claims.node != self.node {
            return Err(LoadError::ForeignNode { found: claims.node.clone(), own: self.node.clone() });
        }
        Ok(())
    }

    /// The record in the store, parsed and not believed.
    pub(super) fn unverified(&self) -> Result<UnverifiedRecord, LoadError> {
        disk::wait(|| self.store.load())?.ok_or(LoadError::NotInitialized)
    }

    /// What a record says that is refused as rolled back, vouched for by nobody, and the newest epoch that custody knows.
    /// `None` for a record that is in force.
    ///
    /// # Errors
    /// Why it is refused, if for anything else.
    pub(super) async fn rolled_back(&self, record: &UnverifiedRecord) -> Result<Option<(Keyring, u64)>, LoadError> {
        let claims = record.claims();
        self.claimed_for_here(claims)?;
        let epochs = self.list_epochs().await?;
        if epochs.contains(&claims.epoch) {
            let key = record_key(&self.custody, self.epoch(claims.epoch)).await?;
            if record.verify(&key).is_ok() {
                return Ok(None);
            }
        }
        match diagnose(claims, &epochs) {
            LoadError::RolledBack { token, .. } => Ok(Some((record.unvouched()?, token))),
            other => Err(other),
        }
    }

    /// Writes `next` in the place of a record that nobody believes, which is kept aside, and makes every epoch but its own
    /// worthless. `next` is of an epoch that custody has and no record was ever written under.
    pub(super) async fn supersede(&self, mut next: Keyring, now: u64) -> Result<(Keyring, Option<PathBuf>), LoadError> {
        if let Some(trail) = &self.trail {
            next.audit = Some(trail.position());
        }
        let key = self.record_key(next.epoch).await?;
        let bytes = record::encode(&next, &*key);
        fail::fail_point!("restore.before-write");
        let aside = disk::wait(|| match self.store.load() {
            Ok(found) => {
                let aside = self.store.keep_aside(now)?;
                self.store.replace(found.map(|record| record.claims().revision), &bytes)?;
                Ok(aside)
            }
            // Nothing that can be compared and swapped.
            Err(StoreError::Record(_)) => {
                let aside = self.store.set_aside(now)?;
                self.store.replace(None, &bytes)?;
                Ok(aside)
            }
            Err(other) => Err(other),
        })?;
        self.in_debt.store(true, Ordering::Relaxed);
        fail::fail_point!("restore.written");
        self.settle_debt(&next).await;
        self.vouch(next.epoch).await;
        Ok((next, aside))
    }

    /// Writes `next` within its epoch, as the revision after its own.
    pub async fn persist(&self, mut next: Keyring) -> Result<Keyring, LoadError> {
        let expected = (next.revision > 0).then_some(next.revision);
        next.revision += 1;
        if let Some(trail) = &self.trail {
            next.audit = Some(trail.position());
        }
        let key = self.record_key(next.epoch).await?;
        let bytes = record::encode(&next, &*key);
        disk::wait(|| self.store.replace(expected, &bytes))?;
        Ok(next)
    }

    /// Writes `next` under a new epoch and makes every earlier record worthless.
    ///
    /// # Errors
    /// With any error the old and the new epoch secret both remain and the store decides at the next [`Self::load`] which
    /// holds: a failed sync does not tell whether the new record is on disk.
    pub async fn roll(&self, mut next: Keyring) -> Result<Keyring, LoadError> {
        next.epoch += 1;
        self.create_epoch(next.epoch).await?;
        fail::fail_point!("epoch.created");
        self.in_debt.store(true, Ordering::Relaxed);
        if next.upstream.as_ref().is_some_and(|state| !state.copies.is_empty()) {
            let new = offline::copy_key(&self.custody, &next).await?;
            let old = offline::copy_key(&self.custody, &Keyring { epoch: next.epoch - 1, ..next.clone() }).await?;
            offline::reseal(&mut next, &old, &new)?;
        }
        let next = self.persist(next).await?;
        fail::fail_point!("epoch.record-written");
        self.settle_debt(&next).await;
        self.vouch(next.epoch).await;
        fail::fail_point!("epoch.old-destroyed");
        Ok(next)
    }

    /// Gives the audit trail the key of an epoch, for a checkpoint now and those to come.
    async fn vouch(&self, number: u64) {
        let Some(trail) = &self.trail else { return };
        match self.custody.derive_epoch_key(self.epoch(number), EpochPurpose::Audit).await {
            Ok(key) => trail.set_key(AuditKey { epoch: number, key: Arc::new(EpochKey(key)) }),
            Err(error) => tracing::warn!(%error, "custody does not vouch for the audit trail yet"),
        }
    }

    pub fn in_debt(&self) -> bool {
        self.in_debt.load(Ordering::Relaxed)
    }

    /// Destroys every epoch secret but the one in force, which `keyring`'s record is written under. What cannot be done
    /// now stays a debt.
    pub async fn settle_debt(&self, keyring: &Keyring) {
        if !self.in_debt() {
            return;
        }
        match self.destroy_others(keyring).await {
            Ok(()) => self.in_debt.store(false, Ordering::Relaxed),
            Err(error) => tracing::warn!(error = explain(&error), "an old epoch secret is still on the token"),
        }
    }

    async fn destroy_others(&self, keyring: &Keyring) -> Result<(), LoadError> {
        // The record that is believed may so far be in the page cache only; without it, its predecessor is needed.
        disk::wait(|| self.store.sync())?;
        for number in self.list_epochs().await?.into_iter().filter(|&number| number != keyring.epoch) {
            self.custody.destroy_epoch(self.epoch(number)).await?;
            tracing::info!(epoch = number, "old epoch secret destroyed");
        }
        Ok(())
    }

    pub(super) async fn list_epochs(&self) -> Result<Vec<u64>, CustodyError> {
        self.custody.list_epochs(self.keyring.clone(), self.node.clone()).await
    }

    pub(super) async fn create_epoch(&self, number: u64) -> Result<(), CustodyError> {
        self.custody.create_epoch(self.epoch(number)).await
    }

    pub(super) async fn destroy_epoch(&self, number: u64) -> Result<(), CustodyError> {
        self.custody.destroy_epoch(self.epoch(number)).await
    }

    async fn record_key(&self, number: u64) -> Result<Arc<EpochKey>, CustodyError> {
        let known = self.key.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, key)) = known.filter(|(epoch, _)| *epoch == number) {
            return Ok(key);
        }
        let key = Arc::new(record_key(&self.custody, self.epoch(number)).await?);
        self.remember(number, key.clone());
        Ok(key)
    }

    fn remember(&self, number: u64, key: Arc<EpochKey>) {
        *self.key.lock().unwrap_or_else(PoisonError::into_inner) = Some((number, key));
    }

    fn epoch(&self, number: u64) -> EpochRef {
        EpochRef { keyring: self.keyring.clone(), node: self.node.clone(), number }
    }
}

/// The key that authenticates records of one epoch.
pub(super) async fn record_key(custody: &CustodyClient, epoch: EpochRef) -> Result<EpochKey, CustodyError> {
    custody.derive_epoch_key(epoch, EpochPurpose::Record).await.map(EpochKey)
}

fn diagnose(claims: &Claims, epochs: &[u64]) -> LoadError {
    match (epochs.first(), epochs.last()) {
        (Some(&oldest), Some(&newest)) => match claims.epoch {
            record if record < oldest => LoadError::RolledBack { record, token: newest },
            record if record > newest => LoadError::TokenOlderThanStore { record, token: newest },
            _ => LoadError::NotAuthentic,
        },
        _ => LoadError::NoEpochSecret { record: claims.epoch },
    }
}
