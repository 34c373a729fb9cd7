//! A marker in service: raised off the caller's thread and within his patience, taken down only while nobody raises it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::disk;
use super::explain::explain;
use crate::store::{Marker, StoreError};

/// A disk that hangs must not keep the caller: the marker goes on being raised behind his back.
const PATIENCE: Duration = Duration::from_secs(5);

/// One marker, locked while it is raised or taken down.
#[derive(Debug, Clone)]
pub(super) struct GuardedMarker {
    /// For the log.
    of: &'static str,
    marker: Arc<Mutex<Marker>>,
}

impl GuardedMarker {
    pub fn new(of: &'static str, marker: Marker) -> Self {
        Self { of, marker: Arc::new(Mutex::new(marker)) }
    }

    /// Whether it is durably raised when this returns; if not, that is logged.
    pub async fn raise(&self) -> bool {
        let this = self.clone();
        let raised = tokio::task::spawn_blocking(move || this.lock().raise());
        match tokio::time::timeout(PATIENCE, raised).await {
            Ok(Ok(Ok(()))) => return true,
            Ok(Ok(Err(error))) => {
                tracing::error!(
                    of = self.of,
                    error = explain(&error),
                    "a marker cannot be raised yet; it is tried again"
                );
            }
            Ok(Err(_)) | Err(_) => tracing::error!(of = self.of, "a marker is not on the disk yet"),
        }
        false
    }

    /// If `still` holds, which is asked under the lock that raising takes; whether it is down.
    pub fn take_down_if(&self, still: impl FnOnce() -> bool) -> Result<bool, StoreError> {
        disk::wait(|| {
            let marker = self.lock();
            if !still() {
                return Ok(false);
            }
            marker.take_down().map(|()| true)
        })
    }

    /// A spare marker for the day it is needed. A disk without room for it will have room for a name.
    pub fn prepare(&self) {
        if let Err(error) = disk::wait(|| self.lock().prepare()) {
            tracing::warn!(of = self.of, error = explain(&error), "no marker could be made ahead of time");
        }
    }

    pub fn is_raised(&self) -> bool {
        disk::wait(|| self.lock().is_raised())
    }

    fn lock(&self) -> MutexGuard<'_, Marker> {
        self.marker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
