//! The availability machine in service: the one place that decides what is shown and served, under one lock, so that no
//! two writers can undo each other's refusal.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keystead_core::availability::{Availability, Cause, Effect, Observation, State, step};

use super::keys::{KeyService, Keys, Serving};

/// Decides, and publishes what it decided.
pub(super) struct Machine {
    keys: Arc<KeyService>,
    /// How long custody may be away.
    grace: Option<Duration>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    state: State,
    /// Why, and what to do; of each source of trouble the last word.
    sealed: String,
    custody: String,
    upstream: String,
    /// Of the revocation in force.
    revocation: String,
    /// Of the disabling in force.
    disabled: String,
}

impl Machine {
    pub fn new(keys: Arc<KeyService>, grace: Option<Duration>) -> Self {
        let inner = Inner { sealed: keys.serving().reason.clone(), ..Inner::default() };
        Self { keys, grace, inner: Mutex::new(inner) }
    }

    pub fn state(&self) -> State {
        self.lock().state.clone()
    }

    /// Takes one step and publishes what comes of it. `keys` replaces what is served. Blocks on nothing: a refusal is in
    /// force, and its KEKs are wiped, when this returns.
    pub fn observe(
        &self,
        observation: Observation,
        reason: String,
        keys: Option<Arc<Keys>>,
        now: Duration,
    ) -> Option<Effect> {
        let mut inner = self.lock();
        let (next, effect) = step(&inner.state, observation, now, self.grace);
        let was_loaded = inner.state.serves();
        if next.is_revoked() && !inner.state.is_revoked() {
            inner.revocation.clone_from(&reason);
        }
        inner.state = next;
        inner.note(observation, was_loaded, reason);
        self.publish(&inner, keys);
        effect
    }

    /// Shows a changed keyring: the new key ID in Status and Encrypt at the same instant.
    pub fn show(&self, keys: Arc<Keys>) {
        self.publish(&self.lock(), Some(keys));
    }

    fn publish(&self, inner: &Inner, keys: Option<Arc<Keys>>) {
        let before = self.keys.serving();
        let availability = inner.state.availability();
        let reason = inner.reason();
        let changed = availability != before.availability;
        if !changed && keys.is_none() && reason == before.reason {
            return;
        }
        if changed {
            tracing::info!(from = ?before.availability, to = ?availability, "availability");
        }
        let serves = availability.serves();
        let fresh = keys.is_some();
        let keys = keys.or_else(|| before.keys.clone());
        self.keys.publish(Serving { availability, reason, keys: keys.clone() });
        // Refuse first, then wipe: no request may find a wiped generation behind an open door.
        if !serves && (fresh || before.availability.serves()) {
            for keys in keys.iter().chain(&before.keys) {
                keys.wipe();
            }
        }
    }

    /// Never held across an `.await`, nor while anything blocks.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn note(&mut self, observation: Observation, was_loaded: bool, reason: String) {
        match observation {
            Observation::Loaded(_) => self.sealed.clear(),
            Observation::Disabled => {
                self.disabled = reason;
                self.sealed.clear();
            }
            Observation::Enabled => self.sealed = "starting".to_owned(),
            Observation::CustodyLost if was_loaded => self.custody = reason,
            Observation::CustodyLost | Observation::RecordRejected | Observation::NothingOpens if !was_loaded => {
                self.sealed = reason;
            }
            Observation::UpstreamFailed(_) => self.upstream = reason,
            _ => {}
        }
    }

    fn reason(&self) -> String {
        const AGAIN: &str = "Service comes back by itself once the cloud opens the key again";
        match self.state.availability() {
            Availability::Online => String::new(),
            Availability::Degraded { cause: Cause::Custody, .. } => self.custody.clone(),
            Availability::Degraded { cause: Cause::Upstream(_), .. } => self.upstream.clone(),
            Availability::Degraded { cause: Cause::Configuration(_), .. } => format!(
                "{}. This configuration has never opened the key, so this is taken for a mistake in [upstream] and not \
                 for a revocation",
                self.upstream
            ),
            Availability::Degraded { cause: Cause::Both(_), .. } => format!("{}; {}", self.custody, self.upstream),
            Availability::Sealed(_) if self.sealed.is_empty() => self.custody.clone(),
            Availability::Sealed(_) => self.sealed.clone(),
            Availability::Expired => format!(
                "the lease is used up: the cloud has not opened the key for too long ({}). {AGAIN}, or go on with a signed \
                 grant: `keystead lease extend --grant FILE`",
                self.upstream
            ),
            Availability::Revoked { .. } => {
                let besides = match self.state.is_disabled() {
                    true => format!(". Besides, {}", self.disabled),
                    false => String::new(),
                };
                format!("the cloud has revoked the key ({}). {AGAIN}; nothing else lifts it{besides}", self.revocation)
            }
            Availability::Disabled if self.sealed.is_empty() => self.disabled.clone(),
            Availability::Disabled => format!("{}. Besides: {}", self.disabled, self.sealed),
        }
    }
}
