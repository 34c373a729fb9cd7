//! Registered backups: within the record, so that a deletion can name those that need the generation.

use keystead_core::backup::{Backup, BackupError};
use keystead_core::keyring::Keyring;

use super::clock::unix_now;
use super::epoch::LoadError;
use super::lifecycle::Lifecycle;

/// Why a list of backups was not changed.
#[derive(Debug, thiserror::Error)]
pub enum BackupsError {
    #[error("not now: {0}")]
    Refused(String),
    #[error(transparent)]
    Keyring(#[from] BackupError),
    #[error(transparent)]
    Storage(#[from] LoadError),
}

impl Lifecycle {
    /// Adds what `make` makes of the keyring in force, as of now. Returns the keyring that holds it.
    pub async fn register_backup(&self, make: impl FnOnce(&Keyring) -> Backup) -> Result<Keyring, BackupsError> {
        let _turn = self.turn.lock().await;
        let mut keyring = self.changeable().await.map_err(BackupsError::Refused)?;
        let backup = Backup { registered: unix_now(), ..make(&keyring) };
        let name = backup.name.clone();
        keyring.register_backup(backup)?;
        let stored = self.records.persist(keyring).await;
        Ok(self.shown(stored, |keyring| keyring.backups.iter().any(|each| each.name == name)).await?)
    }

    pub async fn forget_backup(&self, name: &str) -> Result<Backup, BackupsError> {
        let _turn = self.turn.lock().await;
        let mut keyring = self.changeable().await.map_err(BackupsError::Refused)?;
        let forgotten = keyring.forget_backup(name)?;
        let stored = self.records.persist(keyring).await;
        self.shown(stored, |keyring| keyring.backups.iter().all(|each| each.name != forgotten.name)).await?;
        Ok(forgotten)
    }
}
