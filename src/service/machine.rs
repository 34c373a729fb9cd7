//! The availability machine in service: the one place that decides what is shown and served, under one lock, so that no
//! two writers can undo each other's refusal.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keystead_core::availability::{Availability, Cause, Effect, Observation, Root, State, step};
use keystead_core::keyring::Keyring;

use super::keys::{Closed, KeyService, Keys, Serving};

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
    /// Why generations rooted in the cloud are not to be used, whatever the machine says.
    held: Option<Closed>,
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
        inner.follow_root(keys.as_deref());
        self.publish(&inner, keys);
        effect
    }

    /// Shuts generations rooted in the cloud off, or no longer, whatever the state.
    pub fn hold_cloud(&self, why: Option<Closed>) {
        let mut inner = self.lock();
        inner.held = why;
        self.publish(&inner, None);
    }

    pub fn holds_cloud(&self) -> bool {
        self.lock().held.is_some()
    }

    /// Shows a changed keyring: the new key ID in Status and Encrypt at the same instant.
    pub fn show(&self, keys: Arc<Keys>) {
        let mut inner = self.lock();
        inner.follow_root(Some(&keys));
        self.publish(&inner, Some(keys));
    }

    fn publish(&self, inner: &Inner, keys: Option<Arc<Keys>>) {
        let before = self.keys.serving();
        let availability = inner.state.availability();
        let reason = inner.reason();
        let changed = availability != before.availability;
        let cloud_closed = inner.cloud_closed(keys.as_deref().or(before.keys.as_deref()));
        if !changed && keys.is_none() && reason == before.reason && cloud_closed == before.cloud_closed {
            return;
        }
        if changed {
            tracing::info!(from = ?before.availability, to = ?availability, "availability");
        }
        let serves = availability.serves();
        let fresh = keys.is_some();
        let mut keys = keys.or_else(|| before.keys.clone());
        let (closed, was_closed) = (cloud_closed.is_some(), before.cloud_closed.is_some());
        if closed != was_closed {
            let why = cloud_closed.as_ref().map(|closed| closed.reason.as_str());
            tracing::warn!(closed, why, "generations whose root is in the cloud");
        }
        if was_closed && !closed {
            // What was wiped stays closed: those that open again get slots of their own.
            keys = keys.map(|keys| Arc::new(Keys::new(Keyring::clone(&keys.keyring), Some(&keys))));
        }
        self.keys.publish(Serving { availability, reason, cloud_closed, keys: keys.clone() });
        // Refuse first, then wipe: no request may find a wiped generation behind an open door.
        if !serves && (fresh || before.availability.serves()) {
            for keys in keys.iter().chain(&before.keys) {
                keys.wipe();
            }
        } else if closed && (fresh || !was_closed) {
            for keys in keys.iter().chain(&before.keys) {
                keys.wipe_cloud();
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

    /// The keys that are shown say where the active generation's root is. No clock is asked for this.
    fn follow_root(&mut self, keys: Option<&Keys>) {
        if let Some(active) = keys.and_then(|keys| keys.keyring.active()) {
            let root = if active.is_rooted_in_cloud() { Root::Upstream } else { Root::Custody };
            self.state = step(&self.state, Observation::Rooted(root), Duration::ZERO, None).0;
        }
    }

    /// Only where older generations are rooted in the cloud, and the active one is not: else the whole is closed or open.
    fn cloud_closed(&self, keys: Option<&Keys>) -> Option<Closed> {
        let keyring = &keys?.keyring;
        if keyring.is_rooted_in_cloud() || !keyring.needs_cloud() {
            return None;
        }
        if self.state.opens_cloud() {
            return self.held.clone();
        }
        let reason = match self.state.is_revoked() {
            true => format!(
                "the root is in the cloud, which has revoked the key ({}). Only the cloud gives it back, by opening the key again",
                self.revocation
            ),
            false => format!(
                "the root is in the cloud, which has not opened the key for too long ({}): the lease is used up. It comes back \
                 once the cloud opens the key again, or by a signed grant: `keystead lease extend --grant FILE`",
                self.upstream
            ),
        };
        Some(Closed { reason, passes: false })
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
