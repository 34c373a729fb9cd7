//! The epoch secret at work: which record is believed, and the roll that makes older ones worthless.
//!
//! A roll creates E_n+1 in custody, writes the record under it, syncs, and destroys E_n. While both exist (a power cut),
//! whichever authenticates the record wins and the roll is finished.

use hmac::{Hmac, KeyInit, Mac};
use keystead_core::keyring::Keyring;
use keystead_core::record::{self, Authenticator, Claims, RecordError};
use keystead_core::{KeyringId, NodeId};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::custody::client::CustodyClient;
use crate::custody::contract::{CustodyError, EpochPurpose, EpochRef};
use crate::store::{Store, StoreError};

/// A key derived from one epoch secret for the store's record.
pub struct RecordKey(Zeroizing<[u8; 32]>);

impl Authenticator for RecordKey {
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
    #[error("the token has no epoch secret for this keyring and node: it is another token, or it was initialised anew")]
    NoEpochSecret,
    #[error(
        "the store's record is stale: it is of epoch {record}, the token is at {token}. It was restored or copied from \
         an earlier time; put the newest record back"
    )]
    RolledBack { record: u64, token: u64 },
    #[error(
        "the token is older than the store: the record is of epoch {record}, the token is at {token}. The token was \
         restored from a backup"
    )]
    TokenOlderThanStore { record: u64, token: u64 },
    #[error("the store's record is not authentic: it was changed outside keystead. Put an unchanged copy back")]
    NotAuthentic,
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

/// Reads the record, believes it if an epoch secret of this keyring and node authenticates it, and finishes a roll
/// that was cut off.
pub async fn load(
    store: &Store,
    custody: &CustodyClient,
    keyring: &KeyringId,
    node: &NodeId,
) -> Result<Keyring, LoadError> {
    let record = store.load()?.ok_or(LoadError::NotInitialized)?;
    let claims = record.claims();
    if claims.keyring != *keyring {
        return Err(LoadError::ForeignKeyring { found: claims.keyring.clone(), own: keyring.clone() });
    }
    if claims.node != *node {
        return Err(LoadError::ForeignNode { found: claims.node.clone(), own: node.clone() });
    }
    let epochs = custody.list_epochs(keyring.clone(), node.clone()).await?;
    for &number in epochs.iter().rev() {
        let key = record_key(custody, keyring, node, number).await?;
        match record.verify(&key) {
            Ok(authentic) if authentic.epoch == number => {
                destroy_others(custody, &authentic, &epochs).await;
                return Ok(authentic);
            }
            Ok(_) => return Err(LoadError::NotAuthentic),
            Err(RecordError::NotAuthentic) => {}
            Err(other) => return Err(other.into()),
        }
    }
    Err(diagnose(claims, &epochs))
}

fn diagnose(claims: &Claims, epochs: &[u64]) -> LoadError {
    match (epochs.first(), epochs.last()) {
        (Some(&oldest), Some(&newest)) => match claims.epoch {
            record if record < oldest => LoadError::RolledBack { record, token: newest },
            record if record > newest => LoadError::TokenOlderThanStore { record, token: newest },
            _ => LoadError::NotAuthentic,
        },
        _ => LoadError::NoEpochSecret,
    }
}

/// Finishes a roll. A secret that cannot be destroyed now is tried again at the next load.
async fn destroy_others(custody: &CustodyClient, keyring: &Keyring, epochs: &[u64]) {
    for &number in epochs.iter().filter(|&&number| number != keyring.epoch) {
        let epoch = epoch_ref(&keyring.keyring, &keyring.node, number);
        match custody.destroy_epoch(epoch).await {
            Ok(()) => tracing::info!(epoch = number, "finished an epoch roll that was cut off"),
            Err(error) => tracing::warn!(epoch = number, %error, "an old epoch secret is still on the token"),
        }
    }
}

/// Writes `keyring` as it is, within its epoch, as the revision after `expected`.
pub async fn persist(
    store: &Store,
    custody: &CustodyClient,
    expected: Option<u64>,
    keyring: &mut Keyring,
) -> Result<(), LoadError> {
    keyring.revision = expected.map_or(1, |revision| revision + 1);
    let key = record_key(custody, &keyring.keyring, &keyring.node, keyring.epoch).await?;
    store.replace(expected, &record::encode(keyring, &key))?;
    Ok(())
}

/// Writes `keyring` under a new epoch and makes every earlier record worthless.
///
/// # Errors
/// With any error the old and the new epoch secret both remain and the store decides at the next [`load`] which
/// holds: a failed sync does not tell whether the new record is on disk.
pub async fn roll(
    store: &Store,
    custody: &CustodyClient,
    expected: Option<u64>,
    keyring: &mut Keyring,
) -> Result<(), LoadError> {
    let old = keyring.epoch;
    keyring.epoch = old + 1;
    custody.create_epoch(epoch_ref(&keyring.keyring, &keyring.node, keyring.epoch)).await?;
    fail::fail_point!("epoch.created");
    persist(store, custody, expected, keyring).await?;
    fail::fail_point!("epoch.record-written");
    destroy_others(custody, keyring, &[old]).await;
    fail::fail_point!("epoch.old-destroyed");
    Ok(())
}

pub(super) async fn record_key(
    custody: &CustodyClient,
    keyring: &KeyringId,
    node: &NodeId,
    number: u64,
) -> Result<RecordKey, CustodyError> {
    custody.derive_epoch_key(epoch_ref(keyring, node, number), EpochPurpose::Record).await.map(RecordKey)
}

fn epoch_ref(keyring: &KeyringId, node: &NodeId, number: u64) -> EpochRef {
    EpochRef { keyring: keyring.clone(), node: node.clone(), number }
}
