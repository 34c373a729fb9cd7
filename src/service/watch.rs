//! The watch over custody: tends the key when the custodian changed and from time to time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::lifecycle::Lifecycle;

/// By then its absence is worth a word.
const FIRST_CUSTODIAN: Duration = Duration::from_secs(1);

/// Runs for the life of the server. `custody_changed` is notified when a custodian was attached or lost.
pub async fn watch(lifecycle: Arc<Lifecycle>, custody_changed: Arc<Notify>) {
    // The first custodian is on its way: asking before it is here would only log a fault that is none.
    let _ = tokio::time::timeout(FIRST_CUSTODIAN, custody_changed.notified()).await;
    loop {
        let pause = lifecycle.tend().await;
        lifecycle.follow_key_version().await;
        // Whichever comes first; a notice that came while tending is kept.
        let noticed = async {
            tokio::select! {
                () = custody_changed.notified() => {}
                () = lifecycle.woken() => {}
            }
        };
        let _ = tokio::time::timeout(pause, noticed).await;
    }
}
