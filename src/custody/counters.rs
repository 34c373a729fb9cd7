//! How many custody operations of each kind ended how. Plain atomics; the telemetry room reads a snapshot.

use std::sync::atomic::{AtomicU64, Ordering};

use super::contract::{CustodyError, Request};
use super::frames::Reply;

const REQUESTS: [&str; 13] = [
    "describe",
    "list_tokens",
    "list_cmks",
    "new_kek",
    "unwrap",
    "list_epochs",
    "create_epoch",
    "derive_epoch_key",
    "destroy_epoch",
    "destroy_cmk",
    "probe",
    "wrap_kek",
    "reopen",
];

const OUTCOMES: [&str; 22] = [
    "ok",
    "gone",
    "timed_out",
    "busy",
    "module_unusable",
    "token_missing",
    "token_ambiguous",
    "pin_rejected",
    "pin_locked",
    "pin_final_try",
    "pin_unreadable",
    "unsupported",
    "cmk_missing",
    "epoch_missing",
    "wrap_rejected",
    "device",
    "token_replaced",
    "token_reinitialized",
    "token_older",
    "tpm_unreachable",
    "auth_rejected",
    "boot_not_approved",
];

/// One line of the metric "custody operations".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OperationCount {
    pub request: &'static str,
    pub outcome: &'static str,
    pub count: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters([[AtomicU64; OUTCOMES.len()]; REQUESTS.len()]);

impl Counters {
    pub(super) fn count(&self, request: RequestKind, reply: &Reply) {
        self.0[request.0][outcome(reply)].fetch_add(1, Ordering::Relaxed);
    }

    /// What has happened at least once.
    pub(super) fn snapshot(&self) -> Vec<OperationCount> {
        let rows = REQUESTS.iter().zip(&self.0);
        rows.flat_map(|(request, row)| OUTCOMES.iter().zip(row).map(move |(outcome, cell)| (request, outcome, cell)))
            .map(|(request, outcome, cell)| OperationCount { request, outcome, count: cell.load(Ordering::Relaxed) })
            .filter(|line| line.count > 0)
            .collect()
    }
}

/// A request's place in the table, kept where the request itself has moved on.
#[derive(Clone, Copy)]
pub(super) struct RequestKind(usize);

impl From<&Request> for RequestKind {
    fn from(request: &Request) -> Self {
        Self(match request {
            Request::Describe => 0,
            Request::ListTokens => 1,
            Request::ListCmks => 2,
            Request::NewKek { .. } => 3,
            Request::Unwrap { .. } => 4,
            Request::ListEpochs { .. } => 5,
            Request::CreateEpoch(_) => 6,
            Request::DeriveEpochKey { .. } => 7,
            Request::DestroyEpoch(_) => 8,
            Request::DestroyCmk { .. } => 9,
            Request::Probe => 10,
            Request::WrapKek { .. } => 11,
            Request::Reopen => 12,
        })
    }
}

fn outcome(reply: &Reply) -> usize {
    match reply {
        Ok(_) => 0,
        Err(error) => match error {
            CustodyError::Gone => 1,
            CustodyError::TimedOut => 2,
            CustodyError::Busy => 3,
            CustodyError::ModuleUnusable { .. } => 4,
            CustodyError::TokenMissing { .. } => 5,
            CustodyError::TokenAmbiguous { .. } => 6,
            CustodyError::PinRejected { .. } => 7,
            CustodyError::PinLocked { .. } => 8,
            CustodyError::PinFinalTry { .. } => 9,
            CustodyError::PinUnreadable { .. } => 10,
            CustodyError::Unsupported { .. } => 11,
            CustodyError::CmkMissing { .. } => 12,
            CustodyError::EpochMissing { .. } => 13,
            CustodyError::WrapRejected => 14,
            CustodyError::Device { .. } => 15,
            CustodyError::TokenReplaced { .. } => 16,
            CustodyError::TokenReinitialized { .. } => 17,
            CustodyError::TokenOlder { .. } => 18,
            CustodyError::TpmUnreachable { .. } => 19,
            CustodyError::AuthRejected { .. } => 20,
            CustodyError::BootNotApproved { .. } => 21,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::custody::contract::Answer;

    #[test]
    fn snapshot_names_what_happened_and_only_that() {
        let counters = Counters::default();
        counters.count((&Request::Probe).into(), &Ok(Answer::Done));
        counters.count((&Request::Probe).into(), &Ok(Answer::Done));
        counters.count((&Request::Describe).into(), &Err(CustodyError::WrapRejected));
        let line = |request, outcome, count| OperationCount { request, outcome, count };
        assert_eq!(counters.snapshot(), [line("describe", "wrap_rejected", 1), line("probe", "ok", 2)]);
    }
}
