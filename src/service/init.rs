//! `keystead init`: the first generation of a keyring, its epoch secret, its record.

use keystead_core::hpke_p256::P256PublicKey;
use keystead_core::keyring::{Keyring, RecoveryRoot, TokenIdentity};
use keystead_core::{GenerationNumber, KeyringId, NodeId};

use super::epoch::{self, LoadError};
use super::rotation::{RotationError, make_generation, random, unix_now};
use crate::custody::client::CustodyClient;
use crate::custody::contract::{CustodyError, EpochRef, TokenDescription};
use crate::store::{Store, StoreError};

/// What `init` is told.
#[derive(Debug, Clone)]
pub struct InitRequest {
    pub keyring: KeyringId,
    pub node: NodeId,
    /// `None` is `--no-recovery`: a choice that must be made in words.
    pub recovery: Option<P256PublicKey>,
    /// Go on although the token holds an epoch secret of this keyring and node, left by a store that was lost. Destroys
    /// no key.
    pub abandon_lost_store: bool,
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
    store: &Store,
    custody: &CustodyClient,
) -> Result<Initialized, InitError> {
    let (keyring, node) = (request.keyring.clone(), request.node.clone());
    match init(request, store, custody).await {
        Err(InitError::AlreadyInitialized(found)) if found == keyring => Ok(Initialized {
            created: false,
            keyring: epoch::load(store, custody, &keyring, &node).await?,
            token: custody.describe().await?,
        }),
        outcome => outcome,
    }
}

/// Makes a keyring with one active generation. Killed anywhere, it can be run again.
pub async fn init(request: InitRequest, store: &Store, custody: &CustodyClient) -> Result<Initialized, InitError> {
    let token = custody.describe().await?;
    if let Some(record) = store.load()? {
        return settle_earlier(record.claims().keyring.clone(), &request, store, custody, token).await;
    }
    let epochs = custody.list_epochs(request.keyring.clone(), request.node.clone()).await?;
    if !epochs.is_empty() && !request.abandon_lost_store {
        return Err(InitError::LostStore);
    }
    let mut keyring = Keyring {
        keyring: request.keyring.clone(),
        node: request.node.clone(),
        revision: 0,
        // Above every epoch of a lost store, whose record must not come back to life.
        epoch: epochs.last().copied().unwrap_or(0) + 1,
        token: TokenIdentity { serial: token.token.serial.clone(), label: token.token.label.clone() },
        recovery: match &request.recovery {
            None => RecoveryRoot::Declined,
            Some(key) => RecoveryRoot::PublicKey { point: key.as_sec1().to_vec() },
        },
        last_number: GenerationNumber(0),
        rotation: None,
        generations: Vec::new(),
    };
    let epoch = EpochRef { keyring: keyring.keyring.clone(), node: keyring.node.clone(), number: keyring.epoch };
    keyring.begin_rotation(random()?, random()?, unix_now()).map_err(RotationError::from)?;
    custody.create_epoch(epoch).await?;
    epoch::persist(store, custody, None, &mut keyring).await?;
    activate_first(&mut keyring, store, custody).await?;
    for number in epochs {
        let old = EpochRef { keyring: keyring.keyring.clone(), node: keyring.node.clone(), number };
        custody.destroy_epoch(old).await?;
    }
    Ok(Initialized { created: true, keyring, token })
}

async fn activate_first(keyring: &mut Keyring, store: &Store, custody: &CustodyClient) -> Result<(), InitError> {
    make_generation(store, custody, keyring).await?;
    let revision = keyring.revision;
    keyring.activate(unix_now()).map_err(RotationError::from)?;
    epoch::persist(store, custody, Some(revision), keyring).await?;
    Ok(())
}

/// A record is there: of an `init` that was killed half-way, which is finished, or of one that was not.
async fn settle_earlier(
    found: KeyringId,
    request: &InitRequest,
    store: &Store,
    custody: &CustodyClient,
    token: TokenDescription,
) -> Result<Initialized, InitError> {
    if found != request.keyring {
        return Err(InitError::AlreadyInitialized(found));
    }
    let mut keyring = epoch::load(store, custody, &request.keyring, &request.node).await?;
    let half_made = keyring.active().is_none() && keyring.rotation.is_some();
    if !half_made {
        return Err(InitError::AlreadyInitialized(found));
    }
    if let Some(intent) = keyring.rotation.clone() {
        let revision = keyring.revision;
        custody.destroy_cmk(intent.root_id).await?;
        keyring.roll_back_rotation().map_err(RotationError::from)?;
        keyring.begin_rotation(random()?, random()?, unix_now()).map_err(RotationError::from)?;
        epoch::persist(store, custody, Some(revision), &mut keyring).await?;
    }
    activate_first(&mut keyring, store, custody).await?;
    Ok(Initialized { created: true, keyring, token })
}
