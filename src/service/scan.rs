//! Keeping what a scan of etcd has shown: within the record, so that a rotation can be refused by it after a restart too.

use std::sync::atomic::Ordering;

use keystead_core::keyring::Keyring;
use keystead_core::scan::Findings;

use super::clock::unix_now;
use super::epoch::LoadError;
use super::explain::explain;
use super::keys::Keys;
use super::lifecycle::Lifecycle;

#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error("the scan cannot be kept now: {0}")]
    Refused(String),
    #[error(transparent)]
    Storage(#[from] LoadError),
}

impl Lifecycle {
    /// Persists `findings` as the newest scan. Returns the keyring that holds them.
    pub async fn record_scan(&self, findings: Findings) -> Result<Keyring, ScanError> {
        let _turn = self.turn.lock().await;
        self.settle().await;
        let refused = |reason: String| Err(ScanError::Refused(reason));
        let Some(mut keyring) = self.keyring() else { return refused(self.keys.serving().reason.clone()) };
        if self.is_unsettled() {
            return refused("a change before it is not settled yet; the log says why".into());
        }
        keyring.record_scan(findings, unix_now());
        match self.records.persist(keyring).await {
            Ok(keyring) => {
                self.publish_keyring(Keys::new(keyring.clone(), self.keys.serving().keys.as_deref()));
                self.note_scanned(&keyring);
                // What waits for its deletion is held against it at once.
                self.wake.notify_one();
                tracing::info!(proof = keyring.rewritten().is_ok(), "scan of etcd recorded");
                Ok(keyring)
            }
            Err(error) => {
                // It may have reached the disk all the same.
                tracing::error!(error = explain(&error), "a scan of etcd was not recorded");
                self.reload_needed.store(true, Ordering::Relaxed);
                self.settle().await;
                Err(error.into())
            }
        }
    }
}
