//! The key as a whole, disabled and enabled by an admin: durable, and independent of what the cloud and the lease say.
//!
//! Disabling goes in the order of a revocation: refused and wiped at once in memory, then the marker, which needs neither
//! space nor custody, then the record under a new epoch, which makes every record from before worthless. Enabling goes the
//! other way: record, marker, memory. What of the first cannot be done is tried again; what of the second cannot be done
//! leaves the key disabled.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keystead_core::availability::{Availability, Observation};
use keystead_core::keyring::{Disabling, Keyring};

use super::clock::unix_now;
use super::epoch::LoadError;
use super::explain::explain;
use super::keys::Keys;
use super::lifecycle::Lifecycle;
use super::markers::GuardedMarker;
use crate::custody::contract::CustodyError;
use crate::store::{Marker, StoreError};

/// What is on the way between the admin's word and the record.
pub(super) struct Switch {
    marker: GuardedMarker,
    orders: Mutex<Orders>,
}

#[derive(Default)]
struct Orders {
    /// How often it was disabled since the start: an enabling that was overtaken must not undo what came after it.
    count: u64,
    /// Disabled in memory; the record does not say so, or it is not known whether it does.
    pending: Option<Disabling>,
}

/// How the key stands, for whoever asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disabled {
    pub disabling: Disabling,
    /// The record says so. Else the marker does, until it can be written.
    pub recorded: bool,
}

/// What came of disabling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchedOff {
    /// False if it was disabled before.
    pub changed: bool,
    pub disabled: Disabled,
}

/// What came of enabling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchedOn {
    /// False if it was enabled before.
    pub changed: bool,
    /// As it is now: enabling lifts nothing else.
    pub availability: Availability,
    pub reason: String,
}

#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    #[error("there is no key to disable: run `keystead init`")]
    NoKey,
    #[error("it is not known yet whether the key is disabled: {0}")]
    NotStarted(String),
    #[error("another client has enabled the key meanwhile; it is enabled")]
    EnabledMeanwhile,
    #[error("another client has disabled the key meanwhile; it stays disabled")]
    DisabledMeanwhile,
    #[error(
        "the key is refused from now on, but until record or marker can be written, which is tried again by itself, a restart \
         would bring it back"
    )]
    NotDurable(#[source] LoadError),
    #[error("the key stays disabled")]
    NotEnabled(#[from] LoadError),
    #[error("the key stays disabled: the marker in the store's folder cannot be taken down")]
    Marker(#[from] StoreError),
}

impl Switch {
    pub fn new(marker: Marker) -> Self {
        Self { marker: GuardedMarker::new("disabled", marker), orders: Mutex::default() }
    }

    /// Never held across an `.await`, nor while anything blocks.
    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the spare marker.
    pub fn prepare(&self) {
        self.marker.prepare();
    }
}

impl Lifecycle {
    /// Whether, by whom and why the key is disabled.
    pub fn disabled(&self) -> Option<Disabled> {
        if !self.machine.state().is_disabled() {
            return None;
        }
        if let Some(disabling) = self.switch.orders().pending.clone() {
            return Some(Disabled { disabling, recorded: false });
        }
        let disabling = self.keyring()?.disabled?;
        Some(Disabled { disabling, recorded: true })
    }

    /// Disables the key. Refused, and wiped from memory, before anything is waited for; durable when it returns.
    ///
    /// # Errors
    /// [`SwitchError`]. With [`SwitchError::NotDurable`] the key is refused all the same.
    pub async fn disable(&self, order: Disabling) -> Result<SwitchedOff, SwitchError> {
        if self.keyring().is_none() && matches!(self.records.claims(), Ok(None)) {
            return Err(SwitchError::NoKey);
        }
        let changed = self.refuse(order);
        fail::fail_point!("disable.refused");
        let marked = self.is_disabling_pending() && self.switch.marker.raise().await;
        fail::fail_point!("disable.marked");
        let _turn = self.turn.lock().await;
        if !self.machine.state().is_disabled() {
            return Err(SwitchError::EnabledMeanwhile);
        }
        if self.is_disabling_unsettled()
            && let Err(error) = self.record_disabling().await
            && !marked
            && self.is_disabling_pending()
            && !self.switch.marker.raise().await
        {
            return Err(SwitchError::NotDurable(error));
        }
        self.disabled().map(|disabled| SwitchedOff { changed, disabled }).ok_or(SwitchError::EnabledMeanwhile)
    }

    /// Enables the key, and starts to serve it if nothing else stands against that. Waits for a change under way.
    ///
    /// # Errors
    /// [`SwitchError`]; then the key is as disabled as it was.
    pub async fn enable(&self) -> Result<SwitchedOn, SwitchError> {
        let _turn = self.turn.lock().await;
        let count = self.switch.orders().count;
        let Some(disabled) = self.disabled() else {
            let serving = self.keys.serving();
            return match serving.keys {
                None => Err(SwitchError::NotStarted(serving.reason.clone())),
                Some(_) => Ok(self.switched_on(false)),
            };
        };
        let mut next = self.records.load().await?;
        next.enable();
        let next = match self.roll_with_lease(next).await {
            Ok(next) => next,
            Err(error) => {
                // It may have reached the disk all the same: told to be disabled, it is written down as that again.
                self.switch.orders().pending.get_or_insert(disabled.disabling);
                return Err(error.into());
            }
        };
        fail::fail_point!("enable.stored");
        let still = || self.switch.orders().count == count;
        if let Err(error) = self.switch.marker.take_down_if(still) {
            self.switch.orders().pending.get_or_insert(disabled.disabling);
            return Err(error.into());
        }
        fail::fail_point!("enable.before-publish");
        let keys = Keys::new(next, self.keys.serving().keys.as_deref());
        {
            let mut orders = self.switch.orders();
            if orders.count != count {
                // Whoever did so waits for the turn, to write it down.
                orders.pending.get_or_insert(disabled.disabling);
                return Err(SwitchError::DisabledMeanwhile);
            }
            orders.pending = None;
            self.publish_keyring(keys);
            self.observe(Observation::Enabled, String::new(), None);
        }
        tracing::warn!("the key is enabled by an admin's order");
        if let Some(cloud) = &self.cloud {
            // What the cloud said while the key was disabled gave nothing back: it is asked anew, at once.
            cloud.memory().ask_at = Duration::ZERO;
        }
        self.tend_once().await;
        Ok(self.switched_on(true))
    }

    fn switched_on(&self, changed: bool) -> SwitchedOn {
        let serving = self.keys.serving();
        SwitchedOn { changed, availability: serving.availability, reason: serving.reason.clone() }
    }

    /// In memory: from here on nothing is opened. False if it was so before.
    fn refuse(&self, order: Disabling) -> bool {
        let mut orders = self.switch.orders();
        orders.count += 1;
        if self.machine.state().is_disabled() {
            tracing::info!("the key is to be disabled, and is so already: it stays so");
            return false;
        }
        let text = told(&order);
        orders.pending = Some(order);
        self.observe(Observation::Disabled, text, None);
        tracing::warn!("the key is disabled: refused, and wiped from memory");
        true
    }

    /// At a start: what only the marker knows.
    pub(super) fn heed_disabled_marker(&self) {
        if !self.machine.state().is_disabled() && self.switch.marker.is_raised() {
            self.refuse(Disabling { since: unix_now(), uid: None, login_uid: None, reason: None });
        }
    }

    /// At a start: what an authentic record says. Whether the key is disabled, by whatever tells it.
    pub(super) fn heed_disabled_record(&self, keyring: &Keyring) -> bool {
        if let Some(disabling) = &keyring.disabled {
            self.observe(Observation::Disabled, told(disabling), None);
        }
        self.machine.state().is_disabled()
    }

    /// Brings record and marker to what memory knows, and shows what the record holds. Opens no generation: a rotation that
    /// was cut off waits until the key is enabled. Needs the turn.
    async fn record_disabling(&self) -> Result<(), LoadError> {
        // Read anew: what a change that failed has left is on the disk, and not in memory.
        let mut next = self.records.load().await.inspect_err(|error| self.still_pending(error))?;
        let pending = self.switch.orders().pending.clone();
        if let Some(order) = pending
            && next.disable(order)
        {
            next = self.roll_with_lease(next).await.inspect_err(|error| self.still_pending(error))?;
            fail::fail_point!("disable.stored");
        }
        self.reload_needed.store(false, Ordering::Relaxed);
        self.heed_disabled_record(&next);
        self.switch.orders().pending = None;
        self.publish_keyring(Keys::new(next, self.keys.serving().keys.as_deref()));
        // The record tells it from now on.
        if let Err(error) = self.switch.marker.take_down_if(|| true) {
            tracing::warn!(error = explain(&error), "the marker of a disabled key cannot be taken down yet");
        }
        Ok(())
    }

    fn still_pending(&self, error: &LoadError) {
        tracing::warn!(
            error = explain(error),
            "the record does not say yet that the key is disabled; it is tried again"
        );
    }

    /// What is left to be done for a disabled key. Needs the turn.
    pub(super) async fn tend_disabled(&self) {
        if !self.machine.state().is_disabled() {
            return;
        }
        if self.keyring().is_some() && self.is_disabling_unsettled() {
            // It says itself what is still in the way.
            let _ = self.record_disabling().await;
        }
        if self.keys.serving().availability == Availability::Disabled {
            match self.custody.describe().await {
                // Says nothing of the token.
                Err(CustodyError::Busy) => {}
                described => self.note_custody(described),
            }
        }
    }

    fn is_disabling_pending(&self) -> bool {
        self.switch.orders().pending.is_some()
    }

    /// Whether record or marker are still to be brought to what memory knows.
    pub(super) fn is_disabling_unsettled(&self) -> bool {
        self.is_disabling_pending() || self.is_in_debt()
    }
}

/// Why nothing is served, and what can be done while that is so.
fn told(disabling: &Disabling) -> String {
    let who = match (disabling.uid, disabling.login_uid) {
        (Some(uid), Some(login)) if login != uid => format!("user {uid}, logged in as {login}"),
        (Some(uid), _) => format!("user {uid}"),
        (None, _) => "whoever raised the marker in the store's folder; the audit trail knows".to_owned(),
    };
    let why = disabling.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    format!(
        "the key was disabled by {who}{why}. Until `keystead key enable`, nothing is possible but to look at it (status, \
         key list, roots list, audit), `etcd scan`, `lease extend` and `custodian restart`"
    )
}
