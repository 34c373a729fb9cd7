//! From the store to a served key and back: start, seal, degrade, recover. The only writer of what [`KeyService`] serves.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keystead_core::availability::{Availability, Cause, Observation, Root, SealReason, Source};
use keystead_core::keyring::Keyring;
use keystead_core::waiting_period::ServedTime;
use keystead_core::{FaultClass, KeyringId, NodeId, RootKind};
use tokio::sync::Notify;

use super::clock::{Clock, boot_time};
use super::cloud::{Cloud, CloudSettings};
use super::disable::Switch;
use super::epoch::{LoadError, Records};
use super::explain::explain;
use super::identity::{self, Identity};
use super::keys::{KeyService, Keys, ServeError};
use super::machine::Machine;
use super::markers::GuardedMarker;
use super::rotation::Settled;
use super::schedule::Scheduled;
use crate::audit::Trail;
use crate::custody::client::CustodyClient;
use crate::custody::contract::{CustodyError, ProcessReport, TokenDescription};
use crate::store::{Mark, Store};
use crate::upstream::contract::Upstream;

/// How often every generation is opened in custody.
const CHECK_EVERY: Duration = Duration::from_secs(3600);

/// A lease that runs down is looked at this often, so that it is stored before the floor of a new boot would not cover it.
const STORED_IN_TIME: Duration = Duration::from_secs(30);

/// Which key this daemon serves, and how patient it is.
#[derive(Debug, Clone)]
pub struct KeySettings {
    pub keyring: KeyringId,
    pub node: NodeId,
    /// How long custody may be away before loaded keys are given up; `None` keeps them for ever.
    pub custody_grace: Option<Duration>,
    /// How often a custody without a fault is asked whether it is well.
    pub probe_interval: Duration,
    /// No generation is destroyed sooner after it was scheduled.
    pub min_deletion_wait: Duration,
}

/// One daemon's key: its store, its custody, and what it serves from them.
pub struct Lifecycle {
    pub(super) settings: KeySettings,
    pub(super) records: Records,
    pub(super) custody: CustodyClient,
    pub(super) keys: Arc<KeyService>,
    pub(super) machine: Machine,
    /// One change at a time: start, rotation, sealing.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// Held by the one rotation that may be asked for at a time.
    pub(super) rotating: tokio::sync::Mutex<()>,
    /// A change failed half-way: the store may say something else than memory.
    pub(super) reload_needed: AtomicBool,
    pub(super) scheduled: Scheduled,
    /// Custody's canary is on the newest CMK; not so after a start, whose last unwraps are of retired generations.
    active_used_last: AtomicBool,
    /// When every generation was last opened in custody.
    checked: Mutex<Duration>,
    /// What custody said last, for status.
    custody_state: Mutex<CustodyState>,
    /// Which token was proven to be the right one, and when.
    pub(super) identity: Mutex<Identity>,
    /// The cloud profile's other half; `None` in the local one.
    pub(super) cloud: Option<Cloud>,
    /// Of a revocation.
    pub(super) marker: GuardedMarker,
    /// Disabled and enabled by an admin.
    pub(super) switch: Switch,
    /// What waiting periods go by.
    pub(super) served: Mutex<ServedTime>,
    /// Notified when there is something to tend to at once.
    pub(super) wake: Notify,
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
    #[error(
        "the active generation's root is in a cloud KMS, and the configuration has no [upstream]: put it back. To do without, \
         `keystead roots remove upstream` comes first"
    )]
    NoUpstream,
    #[error("the cloud does not open the key ({0}), and no offline copy may stand in for it")]
    NothingOpens(String),
    /// Expired, revoked or disabled; the machine has said so.
    #[error("the key may not be used now")]
    Refused,
}

impl Lifecycle {
    pub fn new(
        settings: KeySettings,
        store: Store,
        custody: CustodyClient,
        keys: Arc<KeyService>,
        trail: Option<Trail>,
    ) -> Self {
        let records = Records::new(store, custody.clone(), settings.keyring.clone(), settings.node.clone());
        let records = records.with_trail(trail);
        let machine = Machine::new(keys.clone(), settings.custody_grace);
        let marker = GuardedMarker::new("revoked", records.marker(Mark::Revoked));
        let switch = Switch::new(records.marker(Mark::Disabled));
        Self {
            settings,
            records,
            custody,
            keys,
            machine,
            turn: tokio::sync::Mutex::new(()),
            rotating: tokio::sync::Mutex::new(()),
            reload_needed: AtomicBool::new(false),
            scheduled: Scheduled::default(),
            active_used_last: AtomicBool::new(false),
            checked: Mutex::new(boot_time()),
            custody_state: Mutex::new(CustodyState::default()),
            identity: Mutex::default(),
            cloud: None,
            marker,
            switch,
            served: Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// The cloud profile: `upstream` holds the durable root. `clock` must tell one boot from another.
    pub fn in_cloud(mut self, upstream: Arc<dyn Upstream>, settings: CloudSettings, clock: Arc<dyn Clock>) -> Self {
        self.cloud = Some(Cloud::new(upstream, settings, clock));
        self
    }

    pub fn keys(&self) -> &Arc<KeyService> {
        &self.keys
    }

    pub fn settings(&self) -> &KeySettings {
        &self.settings
    }

    /// What the custodian of the moment says of its process.
    pub fn custodian_process(&self) -> Option<ProcessReport> {
        self.custody.process()
    }

    pub fn custody_state(&self) -> CustodyState {
        self.custody_state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks after the key: starts it while sealed, probes custody while serving. Called when custody changed and
    /// from time to time; returns how long to wait until the next call.
    pub async fn tend(&self) -> Duration {
        let _turn = self.turn.lock().await;
        self.tend_once().await;
        let pause = match &self.keys.serving().availability {
            Availability::Online if self.owes_shredding() => Duration::from_secs(1),
            Availability::Online if self.is_unsettled() => Duration::from_secs(5).min(self.settings.probe_interval),
            Availability::Online if self.machine.state().upstream_fault().is_some() => {
                STORED_IN_TIME.min(self.settings.probe_interval)
            }
            Availability::Online => self.settings.probe_interval,
            Availability::Degraded { cause: Cause::Upstream(_) | Cause::Configuration(_), .. } => {
                STORED_IN_TIME.min(self.settings.probe_interval)
            }
            Availability::Degraded { .. } => Duration::from_secs(1),
            Availability::Sealed(SealReason::RecordRejected) => Duration::from_secs(10),
            Availability::Disabled if self.keyring().is_some() => {
                let retry = Duration::from_secs(5).min(self.settings.probe_interval);
                if self.is_disabling_unsettled() { retry } else { self.settings.probe_interval }
            }
            Availability::Sealed(_) | Availability::Expired | Availability::Revoked { .. } | Availability::Disabled => {
                Duration::from_secs(1)
            }
        };
        self.until_due().map_or(pause, |due| due.min(pause))
    }

    /// Completes when there is something to tend to before the pause is over.
    pub async fn woken(&self) {
        tokio::select! {
            () = self.wake.notified() => {}
            () = self.keys.pending_used.notified() => {}
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
    pub(super) async fn tend_once(&self) {
        self.check_lease();
        self.look_at_time();
        if self.keys.serving().availability.serves() {
            self.probe().await;
            self.shred().await;
        } else {
            self.shred().await;
            self.tend_disabled().await;
            if !self.waits_for_upstream() {
                self.start().await;
            }
        }
        // The active generation is served by now: the rest follows behind it.
        if self.custody_serves() {
            self.settle().await;
            self.release_cloud().await;
            self.load_retired().await;
            self.check_all().await;
            self.restore().await;
        }
        self.tend_deletions().await;
        if matches!(
            self.keys.serving().availability,
            Availability::Online
                | Availability::Degraded { .. }
                | Availability::Expired
                | Availability::Disabled
                | Availability::Sealed(SealReason::NothingOpens)
        ) {
            self.store_lease().await;
        }
    }

    /// Serving, with a custody that answers.
    fn custody_serves(&self) -> bool {
        matches!(
            self.keys.serving().availability,
            Availability::Online | Availability::Degraded { cause: Cause::Upstream(_) | Cause::Configuration(_), .. }
        )
    }

    /// Whether a start would be of no use: nothing but an admin can bring service back, or nothing but the upstream, and it
    /// is not yet time to ask it again.
    fn waits_for_upstream(&self) -> bool {
        let waits = match self.keys.serving().availability {
            // Once the record was read, for that it is needed.
            Availability::Disabled => return self.keyring().is_some(),
            Availability::Expired | Availability::Sealed(SealReason::NothingOpens) => true,
            Availability::Revoked { .. } => self.cloud.as_ref().is_some_and(|cloud| cloud.memory().lease.is_some()),
            _ => false,
        };
        waits && self.cloud.as_ref().is_some_and(|cloud| cloud.memory().ask_at > self.now())
    }

    /// Loads the record and the active key; needs the turn.
    async fn start(&self) {
        self.active_used_last.store(false, Ordering::Relaxed);
        self.heed_disabled_marker();
        self.look_again().await;
        let described = self.custody.describe().await;
        if let (Some(cloud), Ok(TokenDescription { clock: Some(seconds), .. })) = (&self.cloud, &described) {
            cloud.clock.shows(*seconds);
        }
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
            Ok((keys, source)) => {
                let keyring = keys.keyring.clone();
                self.observe(Observation::Loaded(source), String::new(), Some(Arc::new(keys)));
                if !self.keys.serving().availability.serves() {
                    // The cloud gave the key back, and an admin has it disabled.
                    return;
                }
                let active = keyring.active().map(|generation| generation.key_id.to_string()).unwrap_or_default();
                tracing::info!(keyring = %keyring.keyring, key_id = active, generations = keyring.generations.len(), "serving");
            }
            Err(StartError::Refused) => {}
            Err(error) => {
                let waits = match &error {
                    StartError::Load(load) => load.is_custody(),
                    StartError::Active(ServeError::Custody(_)) => true,
                    StartError::Active(_)
                    | StartError::NoActive
                    | StartError::NoUpstream
                    | StartError::NothingOpens(_)
                    | StartError::Refused => false,
                };
                let reason = explain(&error);
                if self.keys.serving().reason != reason {
                    tracing::warn!(reason, "sealed");
                }
                let observation = match &error {
                    _ if waits => Observation::CustodyLost,
                    StartError::NothingOpens(_) => Observation::NothingOpens,
                    _ => Observation::RecordRejected,
                };
                self.observe(observation, reason, None);
            }
        }
    }

    async fn try_start(&self) -> Result<(Keys, Source), StartError> {
        let keyring = self.records.load().await?;
        if keyring.active().is_none() {
            // An `init` that was cut off is begun anew by `init`, not by whoever starts the daemon.
            return Err(StartError::NoActive);
        }
        self.switch.prepare();
        let disabled = self.heed_disabled_record(&keyring);
        let settled = match self.finish_rotation_unless(disabled, &keyring).await {
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
        if active.generation.is_rooted_in_cloud() {
            return self.start_in_cloud(keys).await;
        }
        self.remember_cloud(&keys.keyring);
        if disabled {
            self.machine.show(Arc::new(keys));
            return Err(StartError::Refused);
        }
        if let Some(kek) = settled.kek {
            active.fill(kek);
        }
        self.keys.load_generation(active).await.map_err(StartError::Active)?;
        Ok((keys, Source::Custody))
    }

    /// The active generation's root is in the cloud: by the upstream if it opens the key, else, unless it has revoked it or
    /// the lease is used up, by the offline copy.
    async fn start_in_cloud(&self, mut keys: Keys) -> Result<(Keys, Source), StartError> {
        let cloud = self.cloud.as_ref().ok_or(StartError::NoUpstream)?;
        let state = keys.keyring.upstream.clone().ok_or(StartError::NoUpstream)?;
        self.marker.prepare();
        cloud.adopt(&state, cloud.clock.now());
        self.observe(Observation::Rooted(Root::Upstream), String::new(), None);
        let (past, told) = self.past(cloud, &state);
        // Refused from here on, if it is: the keys shown are the record's, with nothing in memory.
        self.observe(Observation::Remembered(past), told, None);
        if self.machine.state().availability() == Availability::Disabled {
            // Renewals go on asking; only an admin brings it back.
            self.machine.show(Arc::new(keys));
            return Err(StartError::Refused);
        }
        let error = match self.ask_or_remember(cloud, &keys.keyring).await {
            Ok(opened) => {
                if let Some(active) = keys.active() {
                    active.fill(opened.kek);
                }
                if self.machine.state().is_revoked() {
                    cloud.memory().restore = true;
                }
                return Ok((keys, Source::Upstream));
            }
            Err(error) => error,
        };
        self.shred().await;
        let lease = cloud.count_lease(cloud.clock.now());
        if lease.is_none_or(|lease| lease.is_used_up()) {
            self.observe(Observation::LeaseUsedUp, String::new(), None);
        }
        if !matches!(self.machine.state().availability(), Availability::Sealed(_)) {
            // Unless shredding them has just shown newer ones.
            if self.keyring().is_none_or(|shown| shown.revision <= keys.keyring.revision) {
                self.machine.show(Arc::new(keys));
            }
            return Err(StartError::Refused);
        }
        if error.class == FaultClass::Corrupt {
            // Not an upstream that is away: what it was sent, or what it answered, is wrong.
            self.machine.show(Arc::new(keys));
            return Err(StartError::NothingOpens(error.to_string()));
        }
        if cloud.memory().boot_unstored {
            // Before anything is served: what this boot has cost, in an epoch that makes every record before it worthless.
            let mut next = Keyring::clone(&keys.keyring);
            self.put_lease(&mut next);
            let next = self.records.roll(next).await?;
            cloud.memory().note_stored(cloud.clock.now().boot_time);
            fail::fail_point!("offline-start.stored");
            keys = Keys::new(next, Some(&keys));
        }
        let active = keys.active().ok_or(StartError::NoActive)?;
        match self.keys.load_generation(active).await {
            Ok(()) => Ok((keys, Source::OfflineCopy)),
            Err(ServeError::NoOfflineCopy) => Err(StartError::NothingOpens(error.to_string())),
            Err(other) => Err(StartError::Active(other)),
        }
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
    async fn load_retired(&self) {
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
    async fn check_all(&self) {
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

    /// Whether record, token and memory are still to be brought together after a change that failed.
    pub fn is_in_debt(&self) -> bool {
        self.records.in_debt() || self.reload_needed.load(Ordering::Relaxed)
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

    /// Tells the availability machine, which publishes what comes of it. `keys` replaces what is served.
    pub(super) fn observe(&self, observation: Observation, reason: String, keys: Option<Arc<Keys>>) {
        self.machine.observe(observation, reason, keys, self.now());
    }

    /// Boot time, by the clock that this service goes by.
    pub(super) fn now(&self) -> Duration {
        match &self.cloud {
            Some(cloud) => Duration::from_secs(cloud.clock.now().boot_time),
            None => boot_time(),
        }
    }

    /// Shows a changed keyring.
    pub(super) fn publish_keyring(&self, keys: Keys) {
        self.machine.show(Arc::new(keys));
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
        // Another TPM would not have come so far: its storage root key is pinned.
        StartError::Load(LoadError::NoEpochSecret { record }) if description.root_kind == RootKind::Tpm => {
            Some(CustodyError::EpochMissing { number: *record })
        }
        StartError::Load(LoadError::NoEpochSecret { .. }) => {
            Some(CustodyError::TokenReplaced { serial, expected: None })
        }
        StartError::Load(LoadError::TokenOlderThanStore { record, token }) => {
            Some(CustodyError::TokenOlder { serial, record: *record, token: *token })
        }
        _ => None,
    }
}
