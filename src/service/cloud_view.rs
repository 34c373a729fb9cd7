//! The cloud side of a daemon for people and machines to look at: one view, of which status and metrics show the same.

use std::time::{Duration, SystemTime};

use super::clock::unix_now;
use super::cloud::CloudReport;
use super::lifecycle::Lifecycle;
use super::spending::{Spending, Spent};

/// Everything that is shown of the cloud key. Times are Unix seconds, 0 for never.
#[derive(Debug, Clone)]
pub struct CloudView {
    pub report: CloudReport,
    /// The last call succeeded.
    pub up: bool,
    pub down_since: u64,
    pub last_contact: u64,
    /// The newest version of the key that was seen.
    pub key_version: Option<String>,
    pub calls: Vec<Calls>,
    /// What ends, and when.
    pub not_after: Vec<(String, u64)>,
    pub spent: Spent,
    pub currency: String,
}

/// How often one operation succeeded and failed, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calls {
    pub operation: &'static str,
    pub succeeded: u64,
    pub failed: u64,
}

impl Lifecycle {
    /// `None` in the local profile, and before a record was read. Blocks on nothing.
    pub fn cloud_view(&self, spending: &Spending) -> Option<CloudView> {
        let report = self.cloud_report()?;
        let upstream = self.upstream()?;
        let spent = self.note_spending(spending)?;
        let now = unix_now();
        let ago = |time: Duration| now.saturating_sub(time.as_secs());
        let keyring = self.keyring();
        let state = keyring.as_ref().and_then(|keyring| keyring.upstream.as_ref());
        // Before this start, the cloud's own clock said when.
        let before = state.map_or(0, |state| state.server_time);
        let calls = upstream.calls().operations.into_iter().map(|each| Calls {
            operation: each.operation,
            succeeded: each.succeeded,
            failed: each.failed,
        });
        let not_after = upstream.expiries().into_iter().map(|expiry| (expiry.what, unix(expiry.not_after)));
        Some(CloudView {
            up: report.fault.is_none() && report.last_contact.is_some(),
            down_since: report.fault.map_or(0, |(since, _)| ago(since)),
            last_contact: report.last_contact.map_or(before, ago),
            key_version: state.and_then(|state| state.key_versions.last().cloned()),
            calls: calls.collect(),
            not_after: not_after.collect(),
            spent,
            currency: spending.budget().currency.clone(),
            report,
        })
    }

    /// Counts the calls made so far into their hour. To be called from time to time.
    pub fn note_spending(&self, spending: &Spending) -> Option<Spent> {
        Some(spending.note(self.upstream()?.calls().billed(), super::clock::boot_time()))
    }
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
