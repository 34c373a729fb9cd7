//! `keystead init`: the first generation of a keyring, its epoch secret, its record.

use std::sync::Arc;
use std::time::Duration;

use keystead_core::grant::GrantKey;
use keystead_core::hpke_p256::P256PublicKey;
use keystead_core::keyring::{Keyring, RecoveryRoot, TokenIdentity};
use keystead_core::upstream_state::UpstreamState;
use keystead_core::{KeyringId, NodeId, RootKind};

use super::clock::{Clock, unix_now};
use super::cloud::{self, configuration_digest};
use super::epoch::{LoadError, Records};
use super::rotation::{RotationError, make_generation, random};
use crate::custody::client::CustodyClient;
use crate::custody::contract::{CustodyError, TokenDescription};
use crate::store::{Mark, Store, StoreError};
use crate::upstream::contract::Upstream;

/// What `init` is told.
#[derive(Clone)]
pub struct InitRequest {
    pub keyring: KeyringId,
    pub node: NodeId,
    /// `None` is `--no-recovery`: a choice that must be made in words.
    pub recovery: Option<P256PublicKey>,
    /// Go on although the token holds an epoch secret of this keyring and node, left by a store that was lost. Destroys
    /// no key.
    pub abandon_lost_store: bool,
    /// The durable root is this cloud's key, and custody holds the offline copy; `None` is the local profile.
    pub cloud: Option<InitCloud>,
}

/// What `init` is told of the cloud.
#[derive(Clone)]
pub struct InitCloud {
    pub upstream: Arc<dyn Upstream>,
    pub lease: Duration,
    /// Signs lease grants later.
    pub grant_key: Option<GrantKey>,
    pub clock: Arc<dyn Clock>,
}

/// What `init` made.
#[derive(Debug, Clone)]
pub struct Initialized {
    /// False if it was there already.
    pub created: bool,
    pub keyring: Keyring,
    pub token: TokenDescription,
}

#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("the store already holds keyring {0}: `keystead serve` serves it")]
    AlreadyInitialized(KeyringId),
    #[error(
        "keyring {0} has another recovery root than asked for: ask for the one it has, or change it with `keystead roots add \
         recovery`, `keystead roots remove recovery` while the daemon runs"
    )]
    OtherRecovery(KeyringId),
    #[error(
        "the token already holds an epoch secret of this keyring and node, but the store is empty: a store was lost. Put \
         it back if you have it, or rebuild it from an etcd snapshot with `keystead recover`; `keystead init \
         --abandon-lost-store` starts anew and destroys no key on the token"
    )]
    LostStore,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Custody(#[from] CustodyError),
    #[error(transparent)]
    Generation(#[from] RotationError),
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// [`init`], but a key that is there already is shown and not an error.
pub async fn init_if_needed(
    request: InitRequest,
    store: Store,
    custody: &CustodyClient,
) -> Result<Initialized, InitError> {
    let records = Records::new(store, custody.clone(), request.keyring.clone(), request.node.clone());
    match make(&request, &records, custody).await {
        Err(InitError::AlreadyInitialized(found)) if found == request.keyring => {
            let keyring = records.load().await?;
            if keyring.recovery != recovery_root(&request) {
                return Err(InitError::OtherRecovery(found));
            }
            Ok(Initialized { created: false, keyring, token: custody.describe().await? })
        }
        outcome => outcome,
    }
}

/// Makes a keyring with one active generation. Killed anywhere, it can be run again.
pub async fn init(request: InitRequest, store: Store, custody: &CustodyClient) -> Result<Initialized, InitError> {
    let records = Records::new(store, custody.clone(), request.keyring.clone(), request.node.clone());
    make(&request, &records, custody).await
}

async fn make(request: &InitRequest, records: &Records, custody: &CustodyClient) -> Result<Initialized, InitError> {
    let token = custody.describe().await?;
    let keyring = match records.claims()? {
        Some(claims) => resume(claims.keyring, request, records, custody).await?,
        None => begin(request, records, custody, &token).await?,
    };
    let upstream = request.cloud.as_ref().map(|cloud| &*cloud.upstream);
    let mut next = make_generation(records, custody, upstream, keyring).await?;
    if let Some(cloud) = &request.cloud {
        cloud.prove(&mut next).await?;
        records.marker(Mark::Revoked).prepare()?;
    }
    next.activate(unix_now()).map_err(RotationError::from)?;
    // A new epoch, as at every activation: the records on the way here must not come back.
    let keyring = records.roll(next).await?;
    Ok(Initialized { created: true, keyring, token })
}

impl InitCloud {
    /// Of a keyring that gets its first root in this cloud.
    pub(super) fn first_state(&self) -> UpstreamState {
        cloud::first_state(self.upstream.identity(), self.lease, self.grant_key.clone(), self.clock.now())
    }

    /// Has the cloud open what it has just made: from now on this configuration is one that can revoke.
    pub(super) async fn prove(&self, keyring: &mut Keyring) -> Result<(), RotationError> {
        let Some(prepared) = keyring.prepared().cloned() else { return Ok(()) };
        let opened = cloud::open(&*self.upstream, keyring, &prepared).await.map_err(RotationError::Upstream)?;
        if let Some(state) = &mut keyring.upstream {
            state.proven = Some(configuration_digest(self.upstream.identity()));
            state.lease.renew(self.lease, self.clock.now());
            state.server_time = opened.server_time.unwrap_or(0);
            for version in opened.key_version.iter() {
                state.note_version(version);
            }
        }
        Ok(())
    }
}

/// The first record: a keyring without a generation, and the intent of making one.
async fn begin(
    request: &InitRequest,
    records: &Records,
    custody: &CustodyClient,
    token: &TokenDescription,
) -> Result<Keyring, InitError> {
    let epochs = records.list_epochs().await?;
    if !request.abandon_lost_store && had_a_store(request, &epochs, token, custody).await? {
        return Err(InitError::LostStore);
    }
    let mut keyring = Keyring {
        // Above every epoch of a lost store, whose record must not come back to life.
        epoch: epochs.last().copied().unwrap_or(0) + 1,
        upstream: request.cloud.as_ref().map(InitCloud::first_state),
        ..Keyring::empty(
            request.keyring.clone(),
            request.node.clone(),
            TokenIdentity { serial: token.token.serial.clone(), label: token.token.label.clone() },
            recovery_root(request),
        )
    };
    keyring.begin_rotation(random()?, random()?, unix_now()).map_err(RotationError::from)?;
    let epoch = keyring.epoch;
    records.create_epoch(epoch).await?;
    match records.persist(keyring).await {
        Ok(keyring) => Ok(keyring),
        Err(error) => {
            // Unless a record got there after all, the secret is of no use, and would look like a lost store.
            if matches!(records.claims(), Ok(None)) {
                let _ = records.destroy_epoch(epoch).await;
            }
            Err(error.into())
        }
    }
}

/// Whether a store that was lost could name keys on this token.
async fn had_a_store(
    request: &InitRequest,
    epochs: &[u64],
    token: &TokenDescription,
    custody: &CustodyClient,
) -> Result<bool, InitError> {
    match token.root_kind {
        RootKind::Pkcs11 if request.cloud.is_none() => Ok(!epochs.is_empty() && !custody.list_cmks().await?.is_empty()),
        // There are no CMKs to be seen, on a TPM or with one in the cloud. An `init` that was finished has gone beyond the
        // first epoch.
        _ => Ok(epochs.iter().any(|&epoch| epoch > 1)),
    }
}

/// A record is there: of an `init` that was cut off, which is begun anew, or of one that was not.
async fn resume(
    found: KeyringId,
    request: &InitRequest,
    records: &Records,
    custody: &CustodyClient,
) -> Result<Keyring, InitError> {
    if found != request.keyring {
        return Err(InitError::AlreadyInitialized(found));
    }
    let mut keyring = records.load().await?;
    if keyring.active().is_some() {
        return Err(InitError::AlreadyInitialized(found));
    }
    if let Some(intent) = &keyring.rotation {
        custody.destroy_cmk(intent.root_id.clone()).await?;
        keyring.roll_back_rotation().map_err(RotationError::from)?;
    }
    keyring.recovery = recovery_root(request);
    keyring.upstream = request.cloud.as_ref().map(InitCloud::first_state);
    keyring.begin_rotation(random()?, random()?, unix_now()).map_err(RotationError::from)?;
    Ok(records.persist(keyring).await?)
}

fn recovery_root(request: &InitRequest) -> RecoveryRoot {
    RecoveryRoot::of(request.recovery.as_ref())
}
