//! What the daemon does by itself, in the audit trail.

use std::time::SystemTime;

use serde_json::{Map, Value};

use super::explain::explain;
use super::lifecycle::Lifecycle;
use crate::audit::{AdminRecord, Phase, Who};

impl Lifecycle {
    /// Records an action of `part` of the daemon. False: it must be recorded and cannot be, so it must not be done.
    pub(super) async fn record(
        &self,
        part: &'static str,
        action: &'static str,
        phase: Phase,
        details: Map<String, Value>,
    ) -> bool {
        let Some(trail) = self.records.trail() else { return true };
        let who = Some(Who::Daemon(part));
        let recorded = trail.record(AdminRecord { at: SystemTime::now(), action, phase, who, details }).await;
        if let Err(error) = &recorded {
            tracing::error!(error = explain(error), action, "what the daemon did or meant to do is not recorded");
        }
        recorded.is_ok() || !trail.stops()
    }
}
