//! One daemon's key over time, tended from round to round: started, probed, settled, degraded, recovered. The only writer of
//! what [`KeyService`] serves.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keystead_core::availability::{Availability, Cause, Observation, SealReason};
use keystead_core::keyring::Keyring;
use keystead_core::waiting_period::ServedTime;
use keystead_core::{KeyringId, NodeId};
use tokio::sync::Notify;

use super::clock::{Clock, boot_time};
use super::cloud::{Cloud, CloudSettings};
use super::custody_state::CustodyState;
use super::disable::Switch;
use super::epoch::Records;
use super::identity::Identity;
use super::keys::{KeyService, Keys};
use super::machine::Machine;
use super::markers::GuardedMarker;
use super::schedule::Scheduled;
use crate::audit::Trail;
use crate::custody::client::CustodyClient;
use crate::custody::contract::ProcessReport;
use crate::store::{Mark, Store};
use crate::upstream::contract::Upstream;

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
    pub(super) active_used_last: AtomicBool,
    /// When every generation was last opened in custody.
    pub(super) checked: Mutex<Duration>,
    /// What custody said last, for status.
    pub(super) custody_state: Mutex<CustodyState>,
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

    /// Whether record, token and memory are still to be brought together after a change that failed.
    pub fn is_in_debt(&self) -> bool {
        self.records.in_debt() || self.reload_needed.load(Ordering::Relaxed)
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
