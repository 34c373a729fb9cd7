//! The watch over custody: tends the key when the custodian changed and from time to time.

use std::sync::Arc;

use tokio::sync::Notify;

use super::lifecycle::Lifecycle;

/// Runs for the life of the server. `custody_changed` is notified when a custodian was attached or lost.
pub async fn watch(lifecycle: Arc<Lifecycle>, custody_changed: Arc<Notify>) {
    loop {
        let pause = lifecycle.tend().await;
        // Whichever comes first; a notice that came while tending is kept.
        let _ = tokio::time::timeout(pause, custody_changed.notified()).await;
    }
}
