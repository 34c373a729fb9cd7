//! Custody as last seen: asked while it serves, and proven by a round trip for every generation.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keystead_core::availability::{Availability, Observation};

use super::clock::boot_time;
use super::identity;
use super::keys::{Keys, ServeError};
use super::lifecycle::Lifecycle;
use crate::custody::contract::{CustodyError, TokenDescription};

/// How often every generation is opened in custody.
const CHECK_EVERY: Duration = Duration::from_secs(3600);

/// Custody as last seen.
#[derive(Debug, Clone, Default)]
pub struct CustodyState {
    pub description: Option<TokenDescription>,
    pub fault: Option<CustodyError>,
}

impl CustodyState {
    /// One word for status and metrics.
    pub fn name(&self) -> &'static str {
        match &self.fault {
            None if self.description.is_none() => "starting",
            None => "ready",
            Some(CustodyError::Gone) => "restarting",
            Some(CustodyError::TimedOut) => "hung",
            Some(CustodyError::Busy) => "busy",
            Some(CustodyError::TpmUnreachable { .. }) => "tpm-unreachable",
            Some(CustodyError::ModuleUnusable { .. }) => "module-unusable",
            Some(CustodyError::TokenMissing { .. }) => "token-missing",
            Some(CustodyError::TokenAmbiguous { .. }) => "token-ambiguous",
            Some(CustodyError::PinRejected { .. }) => "pin-rejected",
            Some(CustodyError::PinLocked { .. }) => "pin-locked",
            Some(CustodyError::PinFinalTry { .. }) => "pin-final-try",
            Some(CustodyError::BootNotApproved { .. }) => "boot-not-approved",
            Some(CustodyError::AuthRejected { .. }) => "auth-rejected",
            Some(CustodyError::PinUnreadable { .. }) => "pin-unreadable",
            Some(CustodyError::Unsupported { .. }) => "unsupported",
            Some(CustodyError::TokenReplaced { .. }) => "token-replaced",
            Some(CustodyError::TokenReinitialized { .. }) => "token-reinitialized",
            Some(CustodyError::TokenOlder { .. }) => "token-older",
            Some(CustodyError::CmkMissing { .. }) => "cmk-missing",
            Some(CustodyError::EpochMissing { .. }) => "epoch-missing",
            Some(CustodyError::WrapRejected) => "wrap-rejected",
            Some(CustodyError::Device { .. }) => "device-failed",
        }
    }
}

impl Lifecycle {
    pub fn custody_state(&self) -> CustodyState {
        self.custody_state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks whether custody is well and the token the right one; needs the turn.
    pub(super) async fn probe(&self) {
        let mut outcome = self.examine().await;
        if matches!(outcome, Err(CustodyError::EpochMissing { .. })) {
            // The token is ahead of memory: custody was lost between a change's record and its publication.
            self.reload_needed.store(true, Ordering::Relaxed);
            self.settle().await;
            outcome = self.examine().await;
        }
        match &outcome {
            Ok(_) => self.observe(Observation::CustodyAnswered, String::new(), None),
            // Says nothing of the token.
            Err(CustodyError::Busy) => {}
            Err(error) => {
                let what = if identity::is_wrong(error) { "custody is not the right one" } else { "custody is away" };
                if self.keys.serving().availability == Availability::Online {
                    tracing::error!(%error, "{what}; serving goes on from memory");
                }
                let reason = format!(
                    "{what}: {error}. Loaded keys are served on. DO NOT RESTART this daemon until custody is back"
                );
                self.observe(Observation::CustodyLost, reason, None);
            }
        }
        if !matches!(outcome, Err(CustodyError::Busy)) {
            self.note_custody(outcome);
        }
        self.observe(Observation::Tick, String::new(), None);
    }

    /// Brings retired generations into memory, one by one: each is a round trip that proves the old key still opens.
    pub(super) async fn load_retired(&self) {
        let Some(keys) = self.keys.serving().keys.clone() else { return };
        let all_loaded = keys.slots().all(|slot| slot.is_loaded() || !self.may_open(&slot.generation));
        if all_loaded && (keys.slots().count() == 1 || self.active_used_last.load(Ordering::Relaxed)) {
            return;
        }
        for slot in keys.slots().filter(|slot| !slot.is_loaded() && self.may_open(&slot.generation)) {
            match self.keys.load_generation(slot).await {
                Ok(()) => {}
                // Custody as a whole is away: the next round tries again.
                Err(ServeError::Custody(CustodyError::Gone | CustodyError::TimedOut | CustodyError::Busy)) => return,
                Err(error) => slot.note_fault(Some(error.to_string())),
            }
        }
        self.use_active_last(&keys).await;
    }

    /// The canary sings under the CMK that was used last: it must be the newest one, which an older token does not have.
    async fn use_active_last(&self, keys: &Keys) {
        if let Some(active) = keys.active() {
            let fault = active.open(&self.custody).await.err();
            active.note_fault(fault.map(|fault| fault.to_string()));
            self.active_used_last.store(true, Ordering::Relaxed);
        }
    }

    /// Every hour, a round trip for each generation: that a key is in memory does not prove that the token still has it.
    pub(super) async fn check_all(&self) {
        {
            let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
            if boot_time().saturating_sub(*checked) < CHECK_EVERY {
                return;
            }
            *checked = boot_time();
        }
        let Some(keys) = self.keys.serving().keys.clone() else { return };
        for slot in keys.slots().filter(|slot| self.may_open(&slot.generation)) {
            match slot.open(&self.custody).await {
                Ok(_) => slot.note_fault(None),
                Err(ServeError::Custody(CustodyError::Gone | CustodyError::TimedOut | CustodyError::Busy)) => return,
                Err(error) => slot.note_fault(Some(error.to_string())),
            }
        }
        self.use_active_last(&keys).await;
    }

    /// Keeps what custody said for status, and logs what is new.
    pub(super) fn note_custody(&self, outcome: Result<TokenDescription, CustodyError>) {
        let mut state = self.custody_state.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(description) => {
                if state.description.is_none() || state.fault.is_some() {
                    let TokenDescription { token, mechanism, authentication, .. } = &description;
                    tracing::info!(
                        serial = token.serial,
                        label = token.label,
                        mechanism,
                        authentication,
                        "custody ready"
                    );
                }
                *state = CustodyState { description: Some(description), fault: None };
            }
            Err(fault) => {
                let before = state.fault.replace(fault);
                if before != state.fault
                    && let Some(error) = &state.fault
                {
                    tracing::warn!(state = state.name(), %error, "custody cannot be used");
                }
            }
        }
    }
}
