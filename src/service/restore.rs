//! A store that was put back from a backup, taken over by a person's word: the audited way out where its record is refused
//! as rolled back.
//!
//! The secret that once authenticated the record is gone, so nobody vouches for what it says. Each of its keys is opened
//! anew, by the token or by the cloud; none of them encrypts again, a fresh one does; and the whole key comes back disabled,
//! for nobody can tell whether it was disabled or revoked after the backup. It runs in the daemon, which has store, token,
//! roles and trail; it needs no key in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use keystead_core::hpke_p256::P256PublicKey;
use keystead_core::keyring::{Disabling, Generation, GenerationState, Keyring, RecoveryRoot, Takeover, TokenIdentity};
use keystead_core::record::{RecordError, UnverifiedRecord};
use keystead_core::recovery::Origin;
use keystead_core::{FaultClass, GenerationNumber, Kek, KeyId, RootKind};

use super::clock::unix_now;
use super::epoch::LoadError;
use super::init::InitCloud;
use super::keys::{ServeError, open_locally};
use super::lifecycle::Lifecycle;
use super::offline;
use super::recover::{RecoverError, make_active, make_active_in_cloud};
use crate::custody::contract::{CustodyError, TokenDescription};
use crate::upstream::contract::UpstreamError;

/// What a person says when he has a store taken over.
pub struct RestoreRequest {
    /// The record; `None` takes the one in the store.
    pub record: Option<Vec<u8>>,
    /// What the record says of a recovery key, confirmed.
    pub recovery: Recovery,
    /// Key IDs in etcd, with their objects.
    pub seen: BTreeMap<KeyId, u64>,
    pub uid: Option<u32>,
    pub login_uid: Option<u32>,
}

/// The recovery root of the key from now on. An old record could name a key of somebody else.
#[derive(Debug, Clone)]
pub enum Recovery {
    /// Enough where the record names none.
    Unsaid,
    Declined,
    Key(P256PublicKey),
}

/// A store that was taken over.
#[derive(Debug)]
pub struct Restored {
    pub keyring: Keyring,
    /// Key IDs whose key was opened, and what is known of where it came from.
    pub opened: Vec<(KeyId, Origin)>,
    /// Kept, but opened by nothing that is here.
    pub unopened: Vec<KeyId>,
    pub lost: Vec<Lost>,
    /// Where the record is that was in the store.
    pub set_aside: Option<PathBuf>,
    /// The epoch of the backup.
    pub of_epoch: u64,
}

/// A generation that was made after the backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    pub number: GenerationNumber,
    /// Known if etcd holds objects under it.
    pub key_id: Option<KeyId>,
    pub objects: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("there is an authentic record here: nothing was rolled back, and nothing is to be restored")]
    NothingToRestore,
    #[error(
        "that record is the one in force: put it into the store as keyring.store, nothing has to be accepted for that"
    )]
    InForce,
    #[error(
        "{0}. That is not what `store restore` is for: an old token takes no store back. Put the newest token, or its newest \
         backup, there"
    )]
    TokenOlder(LoadError),
    #[error(
        "the record names a recovery key ({0}), and nobody vouches for it: say --recovery PUBKEY if it is yours, or --no-recovery \
         to go on without one"
    )]
    RecoveryUnsaid(String),
    #[error("the record names another recovery key ({0}) than the one given: whose is it?")]
    OtherRecovery(String),
    #[error("none of the record's keys opens with this token, or this cloud key: nothing was changed")]
    NothingOpens,
    #[error("the cloud does not open what it holds the key of: {0}. Without its word nothing is restored")]
    Upstream(UpstreamError),
    #[error(transparent)]
    Custody(#[from] CustodyError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("that is no record")]
    Record(#[from] RecordError),
    #[error("the fresh generation could not be made")]
    Generation(#[from] RecoverError),
}

impl Lifecycle {
    /// Takes over a record that is refused as rolled back. The key is disabled afterwards.
    ///
    /// # Errors
    /// [`RestoreError`]; then the store is as it was, but for [`RestoreError::Load`] after the last step, which a start settles.
    pub async fn restore_store(&self, request: RestoreRequest) -> Result<Restored, RestoreError> {
        let _turn = self.turn.lock().await;
        if self.keyring().is_some() {
            return Err(RestoreError::NothingToRestore);
        }
        let record = match &request.record {
            Some(bytes) => {
                self.has_nothing_better().await?;
                UnverifiedRecord::parse(bytes)?
            }
            None => self.records.unverified()?,
        };
        let Some((old, newest)) = self.rolled_back(&record).await? else { return Err(RestoreError::InForce) };
        let recovery = request.recovery.confirms(&old)?;
        let token = self.custody.describe().await?;
        let (keys, unopened) = self.open_all(&old, &token).await?;
        if keys.is_empty() {
            return Err(RestoreError::NothingOpens);
        }
        let on_token = self.numbers_on_token(&old).await?;
        let lost = lost(&old, &on_token, &request.seen);
        // Each activation since took an epoch of its own: where the token shows no CMKs, that bounds what was handed out.
        let since = GenerationNumber(old.last_number.0.saturating_add(newest - old.epoch));
        let in_etcd = request.seen.keys().map(KeyId::generation);
        let cloud = self.init_cloud();
        let takeover = Takeover {
            epoch: newest.saturating_add(1),
            token: TokenIdentity { serial: token.token.serial.clone(), label: token.token.label.clone() },
            recovery,
            upstream: cloud.as_ref().map(InitCloud::first_state),
            seen: on_token.into_iter().chain([since]).chain(in_etcd).collect(),
            disabled: Disabling {
                since: unix_now(),
                uid: request.uid,
                login_uid: request.login_uid,
                reason: Some("store restored from a backup".parse().expect("a line of text")),
            },
        };
        let mut next = old.taken_over(takeover, |key_id| keys.contains_key(key_id));
        let opened: Vec<_> = keys.iter().map(|(key_id, (_, origin))| (key_id.clone(), *origin)).collect();
        self.records.create_epoch(next.epoch).await?;
        fail::fail_point!("restore.epoch-created");
        match &cloud {
            None => drop(make_active(&mut next, &self.custody, token.root_kind).await?),
            Some(cloud) => {
                self.seal_copies(&mut next, &keys).await?;
                make_active_in_cloud(&mut next, &self.custody, cloud).await?;
            }
        }
        drop(keys);
        next.check().map_err(RecoverError::from)?;
        let (keyring, set_aside) = self.records.supersede(next, unix_now()).await.inspect_err(|_| {
            // It may have reached the disk all the same; whatever is there is read anew.
            self.reload_needed.store(true, Ordering::Relaxed);
        })?;
        tracing::warn!(
            epoch = keyring.epoch,
            of_epoch = old.epoch,
            last_number = %keyring.last_number,
            "a store from an earlier time was taken over by an admin's order; the key is disabled"
        );
        self.tend_once().await;
        Ok(Restored { keyring, opened, unopened, lost, set_aside, of_epoch: old.epoch })
    }

    async fn rolled_back(&self, record: &UnverifiedRecord) -> Result<Option<(Keyring, u64)>, RestoreError> {
        self.records.rolled_back(record).await.map_err(|error| match error {
            LoadError::TokenOlderThanStore { .. } => RestoreError::TokenOlder(error),
            other => other.into(),
        })
    }

    /// A file takes the place of no record that is in force and was only not read yet, nor of one that waits for its token.
    async fn has_nothing_better(&self) -> Result<(), RestoreError> {
        let Ok(own) = self.records.unverified() else { return Ok(()) };
        match self.rolled_back(&own).await {
            Ok(None) => Err(RestoreError::NothingToRestore),
            Err(error @ (RestoreError::TokenOlder(_) | RestoreError::Load(LoadError::Custody(_)))) => Err(error),
            Ok(Some(_)) | Err(_) => Ok(()),
        }
    }

    /// Opens every generation by its root, and holds it against its commitment.
    async fn open_all(
        &self,
        old: &Keyring,
        token: &TokenDescription,
    ) -> Result<(BTreeMap<KeyId, (Kek, Origin)>, Vec<KeyId>), RestoreError> {
        let (mut keys, mut unopened) = (BTreeMap::new(), Vec::new());
        for generation in old.generations.iter().filter(|generation| generation.decrypts()) {
            let opened = match self.open_by_root(old, generation, token.root_kind).await? {
                Some(opened) if opened.0.commitment() == generation.commitment => opened,
                _ => {
                    unopened.push(generation.key_id.clone());
                    continue;
                }
            };
            keys.insert(generation.key_id.clone(), opened);
        }
        Ok((keys, unopened))
    }

    /// `None` if none of the roots here opens it; an error if one that might does not answer.
    async fn open_by_root(
        &self,
        old: &Keyring,
        generation: &Generation,
        token: RootKind,
    ) -> Result<Option<(Kek, Origin)>, RestoreError> {
        if let (Some(cloud), Some(_), None) = (&self.cloud, generation.upstream_wrap(), generation.custody_wrap()) {
            return match cloud.open(old, generation).await {
                Ok(opened) => Ok(Some((opened.kek, Origin::Proven))),
                // A wrap of another key, or none at all.
                Err(error) if error.class == FaultClass::Corrupt || error.code == "OtherRoot" => Ok(None),
                Err(error) => Err(RestoreError::Upstream(error)),
            };
        }
        let Some(wrap) = generation.custody_wrap().filter(|wrap| wrap.root_kind == token) else { return Ok(None) };
        match open_locally(&self.custody, old, generation).await {
            Ok(kek) => Ok(Some((kek, Origin::of(wrap)))),
            Err(ServeError::Custody(
                CustodyError::CmkMissing { .. } | CustodyError::WrapRejected | CustodyError::Unsupported { .. },
            )) => Ok(None),
            Err(ServeError::Custody(error)) => Err(error.into()),
            Err(_) => Ok(None),
        }
    }

    /// Of the copies that custody keeps, none is left from the old epoch.
    async fn seal_copies(&self, next: &mut Keyring, keys: &BTreeMap<KeyId, (Kek, Origin)>) -> Result<(), RestoreError> {
        let key = offline::copy_key(&self.custody, next).await?;
        for generation in next.generations.clone() {
            if let Some((kek, _)) = keys.get(&generation.key_id).filter(|_| generation.decrypts()) {
                offline::put(next, &generation, kek, &key).map_err(RecoverError::from)?;
            }
        }
        Ok(())
    }

    /// Generations of this keyring whose CMK lies on the token.
    async fn numbers_on_token(&self, old: &Keyring) -> Result<BTreeSet<GenerationNumber>, CustodyError> {
        let cmks = self.custody.list_cmks().await?;
        Ok(cmks.iter().filter_map(|cmk| cmk.generation(&old.keyring)).collect())
    }

    fn init_cloud(&self) -> Option<InitCloud> {
        self.cloud.as_ref().map(|cloud| InitCloud {
            upstream: cloud.upstream.clone(),
            lease: cloud.settings.lease,
            grant_key: cloud.settings.grant_key.clone(),
            clock: cloud.clock.machine(),
        })
    }
}

impl Recovery {
    /// The recovery root to go on with, if the person's word fits what the record says.
    fn confirms(&self, old: &Keyring) -> Result<RecoveryRoot, RestoreError> {
        let named = old.recovery_key();
        let name = |key: &P256PublicKey| key.recovery_root_id().to_string();
        match (self, named) {
            (Self::Declined, _) | (Self::Unsaid, None) => Ok(RecoveryRoot::Declined),
            (Self::Unsaid, Some(key)) => Err(RestoreError::RecoveryUnsaid(name(&key))),
            (Self::Key(given), Some(key)) if given.as_sec1() != key.as_sec1() => {
                Err(RestoreError::OtherRecovery(name(&key)))
            }
            (Self::Key(given), _) => Ok(RecoveryRoot::PublicKey { point: given.as_sec1().to_vec() }),
        }
    }
}

/// What token and etcd show, and the old record does not know.
fn lost(old: &Keyring, on_token: &BTreeSet<GenerationNumber>, seen: &BTreeMap<KeyId, u64>) -> Vec<Lost> {
    let in_etcd = seen.iter().filter(|(key_id, objects)| {
        let known = old.by_key_id(key_id).is_some_and(|generation| generation.state != GenerationState::Prepared);
        **objects > 0 && !known
    });
    let mut lost: Vec<Lost> = in_etcd
        .map(|(key_id, &objects)| Lost { number: key_id.generation(), key_id: Some(key_id.clone()), objects })
        .collect();
    for &number in on_token {
        let known = old.generation(number).is_some_and(|generation| generation.state != GenerationState::Prepared);
        if !known && lost.iter().all(|each| each.number != number) {
            lost.push(Lost { number, key_id: None, objects: 0 });
        }
    }
    lost.sort_by_key(|each| each.number);
    lost
}
