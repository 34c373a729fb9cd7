//! From the store to a served key and back: start, seal, degrade, recover. The only writer of what [`KeyService`] serves.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keystead_core::availability::{Availability, Effect, Observation, SealReason, step};
use keystead_core::keyring::Keyring;
use keystead_core::{KeyringId, NodeId};
use rustix::time::{ClockId, clock_gettime};

use super::epoch::{LoadError, Records};
use super::explain::explain;
use super::identity::{self, Identity};
use super::keys::{KeyService, Keys, ServeError, Serving, unwrap_checked};
use super::rotation::Settled;
use crate::custody::client::CustodyClient;
use crate::custody::contract::{CustodyError, TokenDescription};
use crate::store::Store;

/// How often every generation is opened in custody.
const CHECK_EVERY: Duration = Duration::from_secs(3600);

/// Which key this daemon serves, and how patient it is.
#[derive(Debug, Clone)]
pub struct KeySettings {
    pub keyring: KeyringId,
    pub node: NodeId,
    /// How long custody may be away before loaded keys are given up; `None` keeps them for ever.
    pub custody_grace: Option<Duration>,
    /// How often a custody without a fault is asked whether it is well.
    pub probe_interval: Duration,
}

/// One daemon's key: its store, its custody, and what it serves from them.
pub struct Lifecycle {
    pub(super) settings: KeySettings,
    pub(super) records: Records,
    pub(super) custody: CustodyClient,
    pub(super) keys: Arc<KeyService>,
    /// One change at a time: start, rotation, sealing.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// Held by the one rotation that may be asked for at a time.
    pub(super) rotating: tokio::sync::Mutex<()>,
    /// A change failed half-way: the store may say something else than memory.
    pub(super) reload_needed: AtomicBool,
    /// Custody's canary is on the newest CMK; not so after a start, whose last unwraps are of retired generations.
    active_used_last: AtomicBool,
    /// When every generation was last opened in custody.
    checked: Mutex<Duration>,
    /// What custody said last, for status.
    custody_state: Mutex<CustodyState>,
    /// Which token was proven to be the right one, and when.
    pub(super) identity: Mutex<Identity>,
}

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

/// Why a start did not end in serving.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("the active generation cannot be opened: {0}")]
    Active(ServeError),
    #[error("the keyring has no active generation: `keystead init` was cut off; run it again")]
    NoActive,
}

impl Lifecycle {
    pub fn new(settings: KeySettings, store: Store, custody: CustodyClient, keys: Arc<KeyService>) -> Self {
        let records = Records::new(store, custody.clone(), settings.keyring.clone(), settings.node.clone());
        Self {
            settings,
            records,
            custody,
            keys,
            turn: tokio::sync::Mutex::new(()),
            rotating: tokio::sync::Mutex::new(()),
            reload_needed: AtomicBool::new(false),
            active_used_last: AtomicBool::new(false),
            checked: Mutex::new(boot_time()),
            custody_state: Mutex::new(CustodyState::default()),
            identity: Mutex::default(),
        }
    }

    pub fn keys(&self) -> &Arc<KeyService> {
        &self.keys
    }

    pub fn settings(&self) -> &KeySettings {
        &self.settings
    }

    pub fn custody_state(&self) -> CustodyState {
        self.custody_state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks after the key: starts it while sealed, probes custody while serving. Called when custody changed and
    /// from time to time; returns how long to wait until the next call.
    pub async fn tend(&self) -> Duration {
        let _turn = self.turn.lock().await;
        self.tend_once().await;
        match &self.keys.serving().availability {
            Availability::Online if self.is_unsettled() => Duration::from_secs(5).min(self.settings.probe_interval),
            Availability::Online => self.settings.probe_interval,
            Availability::Degraded { .. } => Duration::from_secs(1),
            Availability::Sealed(SealReason::RecordRejected) => Duration::from_secs(10),
            Availability::Sealed(_) => Duration::from_secs(1),
        }
    }

    /// Has the custodian replaced by a fresh one, which loads the module and reads the PIN anew; then looks how it fares.
    /// A change under way is let finish first. Loaded keys are served throughout.
    pub async fn restart_custodian(&self) -> CustodyState {
        let _turn = self.turn.lock().await;
        tracing::info!("the custodian is replaced as asked");
        self.custody.replace().await;
        self.tend_once().await;
        self.custody_state()
    }

    /// Needs the turn.
    async fn tend_once(&self) {
        if self.keys.serving().availability.serves() {
            self.probe().await;
        } else {
            self.start().await;
        }
        // The active generation is served by now: the rest follows behind it.
        if self.keys.serving().availability == Availability::Online {
            self.settle().await;
            self.load_retired().await;
            self.check_all().await;
        }
    }

    /// Loads the record and the active key; needs the turn.
    async fn start(&self) {
        self.active_used_last.store(false, Ordering::Relaxed);
        self.look_again().await;
        let described = self.custody.describe().await;
        let outcome = match &described {
            Ok(_) => self.try_start().await,
            Err(error) => Err(StartError::Load(LoadError::Custody(error.clone()))),
        };
        if let (Ok(_), Ok(description)) = (&outcome, &described) {
            self.prove(description);
        }
        self.note_custody(match (&outcome, described) {
            (Err(error), Ok(token)) => match fault_of(error, &token) {
                Some(fault) => Err(fault),
                None => Ok(token),
            },
            (_, described) => described,
        });
        match outcome {
            Ok(keys) => {
                let keyring = keys.keyring.clone();
                self.observe(Observation::Loaded, String::new(), Some(Arc::new(keys)));
                let active = keyring.active().map(|generation| generation.key_id.to_string()).unwrap_or_default();
                tracing::info!(keyring = %keyring.keyring, key_id = active, generations = keyring.generations.len(), "serving");
            }
            Err(error) => {
                let waits = match &error {
                    StartError::Load(load) => load.is_custody(),
                    StartError::Active(ServeError::Custody(_)) => true,
                    StartError::Active(_) | StartError::NoActive => false,
                };
                let reason = explain(&error);
                if self.keys.serving().reason != reason {
                    tracing::warn!(reason, "sealed");
                }
                let observation = if waits { Observation::CustodyLost } else { Observation::RecordRejected };
                self.observe(observation, reason, None);
            }
        }
    }

    async fn try_start(&self) -> Result<Keys, StartError> {
        let keyring = self.records.load().await?;
        if keyring.active().is_none() {
            // An `init` that was cut off is begun anew by `init`, not by whoever starts the daemon.
            return Err(StartError::NoActive);
        }
        let settled = match self.finish_rotation(&keyring).await {
            Ok(settled) => settled,
            // A full disk or a prepared generation that does not open now: neither is a reason not to serve what was active.
            Err(error) => {
                tracing::warn!(error = explain(&error), "a rotation that was cut off is not settled yet");
                Settled { keyring, kek: None }
            }
        };
        let earlier = self.keys.serving().keys.clone();
        let keys = Keys::new(settled.keyring, earlier.as_deref());
        let active = keys.active().ok_or(StartError::NoActive)?;
        if let Some(kek) = settled.kek {
            active.fill(kek);
        }
        self.keys.load_generation(active).await.map_err(StartError::Active)?;
        Ok(keys)
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
        self.observe(Observation::Tick, self.keys.serving().reason.clone(), None);
    }

    /// Brings retired generations into memory, one by one: each is a round trip that proves the old key still opens.
    async fn load_retired(&self) {
        let Some(keys) = self.keys.serving().keys.clone() else { return };
        let all_loaded = keys.slots().all(|slot| slot.is_loaded() || !slot.generation.decrypts());
        if all_loaded && (keys.slots().count() == 1 || self.active_used_last.load(Ordering::Relaxed)) {
            return;
        }
        for slot in keys.slots().filter(|slot| !slot.is_loaded() && slot.generation.decrypts()) {
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
            let fault = unwrap_checked(&self.custody, &self.settings.keyring, &active.generation).await.err();
            active.note_fault(fault.map(|fault| fault.to_string()));
            self.active_used_last.store(true, Ordering::Relaxed);
        }
    }

    /// Every hour, a round trip for each generation: that a key is in memory does not prove that the token still has it.
    async fn check_all(&self) {
        {
            let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
            if boot_time().saturating_sub(*checked) < CHECK_EVERY {
                return;
            }
            *checked = boot_time();
        }
        let Some(keys) = self.keys.serving().keys.clone() else { return };
        for slot in keys.slots().filter(|slot| slot.generation.decrypts()) {
            match unwrap_checked(&self.custody, &self.settings.keyring, &slot.generation).await {
                Ok(_) => slot.note_fault(None),
                Err(ServeError::Custody(CustodyError::Gone | CustodyError::TimedOut | CustodyError::Busy)) => return,
                Err(error) => slot.note_fault(Some(error.to_string())),
            }
        }
        self.use_active_last(&keys).await;
    }

    /// Whether record, token and memory are still to be brought together after a change that failed.
    pub fn is_in_debt(&self) -> bool {
        self.records.in_debt() || self.reload_needed.load(Ordering::Relaxed)
    }

    /// Keeps what custody said for status, and logs what is new.
    fn note_custody(&self, outcome: Result<TokenDescription, CustodyError>) {
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

    /// Takes one step of the availability machine and publishes what it says. `keys` replaces what is served.
    pub(super) fn observe(&self, observation: Observation, reason: String, keys: Option<Arc<Keys>>) {
        let before = self.keys.serving();
        let (availability, effect) = step(&before.availability, observation, boot_time(), self.settings.custody_grace);
        let changed = availability != before.availability;
        if !changed && keys.is_none() && reason == before.reason {
            return;
        }
        let keys = keys.or_else(|| before.keys.clone());
        if changed {
            tracing::info!(from = ?before.availability, to = ?availability, "availability");
        }
        let wipe = (effect == Some(Effect::WipeKeks)).then(|| keys.clone()).flatten();
        self.keys.publish(Serving { availability, reason, keys });
        // Refuse first, then wipe: no request may find a wiped generation behind an open door.
        if let Some(keys) = wipe {
            keys.wipe();
        }
    }

    /// Shows a changed keyring: the new key ID in Status and Encrypt at the same instant.
    pub(super) fn publish_keyring(&self, keys: Keys) {
        let before = self.keys.serving();
        self.keys.publish(Serving {
            availability: before.availability.clone(),
            reason: before.reason.clone(),
            keys: Some(Arc::new(keys)),
        });
    }

    /// The record in force, for a change to start from.
    pub(super) fn keyring(&self) -> Option<Keyring> {
        self.keys.serving().keys.as_ref().map(|keys| Keyring::clone(&keys.keyring))
    }
}

/// What a start that failed says of the token, if anything.
fn fault_of(error: &StartError, description: &TokenDescription) -> Option<CustodyError> {
    let serial = description.token.serial.clone();
    match error {
        StartError::Load(LoadError::Custody(fault)) | StartError::Active(ServeError::Custody(fault)) => {
            Some(fault.clone())
        }
        StartError::Load(LoadError::NoEpochSecret) => Some(CustodyError::TokenReplaced { serial, expected: None }),
        StartError::Load(LoadError::TokenOlderThanStore { record, token }) => {
            Some(CustodyError::TokenOlder { serial, record: *record, token: *token })
        }
        _ => None,
    }
}

/// Time since boot, suspend included; never steps.
pub(super) fn boot_time() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}
