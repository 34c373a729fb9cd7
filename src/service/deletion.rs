//! The end of a generation: scheduled, cancelled, suspended, carried out.
//!
//! Destroying goes in this order: intent recorded → KEK wiped from memory → tombstone persisted with an epoch roll → shown →
//! the token's CMKs destroyed → recorded as done. Killed anywhere it goes on at the next start: before the tombstone the
//! generation is whole, and behind it the record names what is left on the token. Waits go by served time alone; what is
//! not stored of it does not count ([`keystead_core::waiting_period`]).

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use keystead_core::availability::Availability;
use keystead_core::keyring::{DeletionError, Generation, GenerationState, Keyring, Pending, Suspension};
use keystead_core::waiting_period::{MAX_WAIT, ServedTime};
use keystead_core::{GenerationNumber, KeyId};
use serde_json::{Map, Value, json};

use super::epoch::LoadError;
use super::explain::explain;
use super::keys::{Keys, Slot};
use super::lifecycle::Lifecycle;
use super::rotation::unix_now;
use crate::audit::{AdminRecord, Phase};

/// Without a word on it.
const DEFAULT_WAIT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Served time between two stores of a countdown: two syncs each make about 50 a day, and only while something waits.
const STORE_EVERY: u64 = 3600;

/// What the audit trail calls a destruction.
const ACTION: &str = "destroy-generation";

/// A deletion that a person asks for.
#[derive(Debug, Clone)]
pub struct ScheduleRequest {
    /// Number or key ID.
    pub generation: String,
    /// `None`: seven days, or the site's least if that is longer.
    pub wait: Option<Duration>,
    /// The whole key ID, once more; `None` asks what would be.
    pub confirm: Option<String>,
    /// The user who asks.
    pub by: Option<u32>,
}

/// Why a deletion was not scheduled or cancelled.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    #[error("not now: {0}")]
    Refused(String),
    #[error("the waiting period must lie between {} and {} seconds (deletion.min_wait)", least.as_secs(), MAX_WAIT.as_secs())]
    Wait { least: Duration },
    #[error("not confirmed: the key ID of generation {number} is {key_id}")]
    NotConfirmed { number: GenerationNumber, key_id: KeyId },
    #[error(transparent)]
    Keyring(#[from] DeletionError),
    #[error(transparent)]
    Storage(#[from] LoadError),
}

/// A generation that waits for its deletion, or would.
#[derive(Debug, Clone)]
pub struct DeletionReport {
    pub generation: Generation,
    pub pending: Pending,
    /// Of the wait, in served time.
    pub left: Duration,
    /// Served under it since it was scheduled, by this run of the daemon.
    pub decrypts: u64,
    pub standing: Standing,
    /// Why it does not go on, and what to do; empty while it waits and nothing speaks against it.
    pub detail: String,
    /// Registered backups that need it, or may.
    pub backups: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Waiting,
    /// Over, but something must be proven or mended first; then it is destroyed.
    Held,
    /// Something needs the generation: a person must decide.
    Suspended,
}

impl Standing {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Held => "held",
            Self::Suspended => "suspended",
        }
    }
}

impl Lifecycle {
    /// Begins the waiting period of a generation; asked without a confirmation, only says what would be.
    ///
    /// # Errors
    /// [`DeleteError`]; nothing has changed.
    pub async fn schedule_deletion(&self, request: ScheduleRequest) -> Result<DeletionReport, DeleteError> {
        let least = self.settings.min_deletion_wait;
        let wait = request.wait.unwrap_or_else(|| DEFAULT_WAIT.max(least));
        if !(least..=MAX_WAIT).contains(&wait) {
            return Err(DeleteError::Wait { least });
        }
        let _turn = self.turn.lock().await;
        self.changeable().await.map_err(DeleteError::Refused)?;
        for report in self.deletions() {
            if let Some(why) = self.evidence(&report) {
                self.suspend(report.generation.number, why).await;
            }
        }
        let mut keyring = self.changeable().await.map_err(DeleteError::Refused)?;
        let generation = keyring.named(&request.generation)?;
        let (number, key_id) = (generation.number, generation.key_id.clone());
        // Refused for what it is, before anybody is asked to confirm it.
        keyring.may_schedule(number)?;
        if request.confirm.as_ref().is_some_and(|confirm| confirm != key_id.as_str()) {
            return Err(DeleteError::NotConfirmed { number, key_id });
        }
        let slot = self.slot(&key_id);
        if request.confirm.is_none() {
            keyring.schedule_deletion(number, wait, request.by, unix_now())?;
            let report = self.report(&keyring, number).ok_or(DeletionError::NotOver(number))?;
            return Ok(DeletionReport { left: wait, ..report });
        }
        self.spend_time(&mut keyring);
        keyring.schedule_deletion(number, wait, request.by, unix_now())?;
        let stored = self.records.persist(keyring).await;
        fail::fail_point!("deletion.scheduled");
        let is_done = |keyring: &Keyring| {
            let pending = keyring.generation(number).and_then(|generation| generation.pending.as_ref());
            pending.is_some_and(|pending| pending.suspended.is_none())
        };
        let keyring = self.shown(stored, is_done).await?;
        self.wake.notify_one();
        let decrypts = slot.map_or(0, |slot| slot.decrypts.load(Ordering::Relaxed));
        tracing::warn!(%key_id, generation = %number, wait_seconds = wait.as_secs(), decrypts, "deletion scheduled");
        Ok(self.report(&keyring, number).ok_or(DeletionError::NotOver(number))?)
    }

    /// Back to retired. With custody at hand under a new epoch, so that no earlier record brings the deletion back.
    pub async fn cancel_deletion(&self, wanted: &str) -> Result<Generation, DeleteError> {
        let _turn = self.turn.lock().await;
        let mut keyring = self.changeable().await.map_err(DeleteError::Refused)?;
        let number = keyring.named(wanted)?.number;
        self.spend_time(&mut keyring);
        keyring.cancel_deletion(number)?;
        let stored = self.roll_or_persist(keyring).await;
        fail::fail_point!("deletion.cancelled");
        let is_done = |keyring: &Keyring| {
            keyring.generation(number).is_some_and(|generation| generation.state == GenerationState::Retired)
        };
        let keyring = self.shown(stored, is_done).await?;
        let generation = keyring.named(wanted)?.clone();
        tracing::warn!(key_id = %generation.key_id, generation = %number, "deletion cancelled");
        Ok(generation)
    }

    /// Every generation that waits for its deletion, as it stands now. Blocks on nothing.
    pub fn deletions(&self) -> Vec<DeletionReport> {
        let serving = self.keys.serving();
        let Some(keys) = &serving.keys else { return Vec::new() };
        let pending = keys.keyring.pending();
        pending.filter_map(|(generation, _)| self.report(&keys.keyring, generation.number)).collect()
    }

    fn report(&self, keyring: &Keyring, number: GenerationNumber) -> Option<DeletionReport> {
        let generation = keyring.generation(number)?;
        let pending = generation.pending.clone()?;
        let left = pending.wait.left().saturating_sub(Duration::from_secs(match pending.suspended {
            None => self.served_time().unstored(),
            Some(_) => 0,
        }));
        let (standing, detail) = match (&pending.suspended, left.is_zero()) {
            (Some(why), _) => (Standing::Suspended, suspended(number, why)),
            (None, true) => (Standing::Held, self.obstacle(keyring, number).unwrap_or_default()),
            (None, false) => (Standing::Waiting, unproven(keyring, number).unwrap_or_default()),
        };
        let decrypts = self.slot(&generation.key_id).map_or(0, |slot| slot.pending_use.decrypts());
        let backups = keyring.backups_of(number).map(|backup| backup.name.to_string()).collect();
        Some(DeletionReport { generation: generation.clone(), pending, left, decrypts, standing, detail, backups })
    }

    /// Why a generation whose wait is over is not destroyed now.
    fn obstacle(&self, keyring: &Keyring, number: GenerationNumber) -> Option<String> {
        let serving = self.keys.serving();
        if serving.availability != Availability::Online {
            return Some(format!("it is destroyed once the daemon is online: {}", serving.reason));
        }
        if self.is_unsettled() {
            return Some("it is destroyed once the change before it is settled; the log says why it is not".to_owned());
        }
        unproven(keyring, number)
    }

    /// Looks at the clock: what was served since the last look counts for every wait.
    pub(super) fn look_at_time(&self) {
        let serves = self.keys.serving().availability.serves();
        let waits = self.keys.serving().keys.as_ref().is_some_and(|keys| keys.keyring.pending().next().is_some());
        let mut served = self.served_time();
        served.look(self.now().as_secs(), serves);
        if !waits {
            served.take();
        }
    }

    /// How long until a wait is over; at the latest then there is something to tend to.
    pub(super) fn until_due(&self) -> Option<Duration> {
        let waits = self.deletions().into_iter().filter(|report| report.standing == Standing::Waiting);
        waits.map(|report| report.left).min().map(|left| left.max(Duration::from_secs(1)))
    }

    /// Suspends, destroys, finishes and stores what is due. Needs the turn.
    pub(super) async fn tend_deletions(&self) {
        let Some(keyring) = self.keyring() else { return };
        if !self.keys.serving().availability.serves() || self.is_unsettled() {
            return;
        }
        if keyring.unfinished().next().is_some() {
            self.finish_deletions().await;
        }
        for report in self.deletions() {
            let number = report.generation.number;
            if let Some(why) = self.evidence(&report) {
                self.suspend(number, why).await;
            } else if report.standing == Standing::Suspended {
                continue;
            } else if report.left.is_zero() && report.detail.is_empty() {
                self.destroy(number).await;
            }
            if self.is_unsettled() {
                return;
            }
        }
        if self.served_time().unstored() >= STORE_EVERY
            && let Some(mut next) = self.keyring()
        {
            self.spend_time(&mut next);
            let stored = self.records.persist(next).await;
            // An error is logged, and what was served since the last store is lost.
            let _ = self.shown(stored, |_| true).await;
        }
    }

    /// What shows that a generation is needed although it waits for its deletion, and is not noted yet. Of one that is
    /// suspended: what speaks against the scan by which it might be scheduled anew.
    fn evidence(&self, report: &DeletionReport) -> Option<Suspension> {
        let keyring = self.keyring()?;
        let is_suspended = report.standing == Standing::Suspended;
        let used = self.slot(&report.generation.key_id).is_some_and(|slot| slot.pending_use.is_news());
        if used && (!is_suspended || keyring.scan.is_some()) {
            return Some(Suspension::Decrypts { since: unix_now() });
        }
        keyring.contradiction(report.generation.number, unix_now()).filter(|_| !is_suspended)
    }

    /// A scan was recorded: what was decrypted before under a suspended generation, it has had the chance to see.
    pub(super) fn note_scanned(&self, keyring: &Keyring) {
        for (generation, pending) in keyring.pending() {
            if let (Some(_), Some(slot)) = (&pending.suspended, self.slot(&generation.key_id)) {
                slot.pending_use.was_scanned();
            }
        }
    }

    async fn suspend(&self, number: GenerationNumber, why: Suspension) {
        let Some(mut next) = self.keyring() else { return };
        self.spend_time(&mut next);
        next.suspend_deletion(number, why);
        let details = details(&next, number);
        let stored = self.roll_or_persist(next).await;
        fail::fail_point!("deletion.suspended");
        if self.shown(stored, |_| true).await.is_ok() {
            tracing::error!(generation = %number, why = suspended(number, &why), "a deletion is suspended");
            self.record("suspend-deletion", Phase::Event, details).await;
        }
    }

    async fn destroy(&self, number: GenerationNumber) {
        let Some(mut next) = self.keyring() else { return };
        self.spend_time(&mut next);
        let details = details(&next, number);
        let slot = next.generation(number).and_then(|generation| self.slot(&generation.key_id));
        if let Err(error) = next.bury(number, unix_now()) {
            return tracing::warn!(%error, "a generation is not destroyed");
        }
        if !self.record(ACTION, Phase::Intent, details.clone()).await {
            return tracing::error!(generation = %number, "not destroyed: the intent cannot be recorded");
        }
        fail::fail_point!("deletion.intent-recorded");
        // Refused from here on: whoever asks now, asks too late, or proves that it is needed.
        if let Some(slot) = &slot {
            slot.wipe();
        }
        fail::fail_point!("deletion.wiped");
        if slot.as_ref().is_some_and(|slot| slot.pending_use.is_news()) {
            // Slots of their own, which load again; the next look suspends it.
            self.republish();
            self.record(ACTION, Phase::Failed, with(details, "reason", "decrypted at the last moment")).await;
            self.wake.notify_one();
            return;
        }
        let stored = self.records.roll(next).await;
        fail::fail_point!("deletion.tombstone-written");
        let is_done = |keyring: &Keyring| {
            keyring.generation(number).is_some_and(|generation| generation.state == GenerationState::Destroyed)
        };
        match self.shown(stored, is_done).await {
            Ok(_) => {
                tracing::warn!(generation = %number, "generation destroyed");
                self.finish_deletions().await;
            }
            Err(error) => {
                self.record(ACTION, Phase::Failed, with(details, "reason", explain(&error))).await;
            }
        }
    }

    /// Destroys the CMKs that tombstones name, and records that. What cannot be done now is tried again at the next look.
    async fn finish_deletions(&self) {
        let Some(keyring) = self.keyring() else { return };
        if self.keys.serving().availability != Availability::Online {
            return;
        }
        let mut next = keyring.clone();
        for (generation, left) in keyring.unfinished() {
            let number = generation.number;
            for root_id in left {
                if let Err(error) = self.custody.destroy_cmk(root_id.clone()).await {
                    return tracing::warn!(%error, generation = %number, "the CMK of a destroyed generation is still on the token");
                }
            }
            fail::fail_point!("deletion.cmk-destroyed");
            let details = with(details(&keyring, number), "cmks_destroyed", left.len());
            self.record(ACTION, Phase::Done, details).await;
            next.finish_deletion(number);
        }
        self.spend_time(&mut next);
        let stored = self.records.persist(next).await;
        fail::fail_point!("deletion.finished");
        // Else they are destroyed once more, which harms nothing.
        let _ = self.shown(stored, |_| true).await;
    }

    /// The record in force, for a change to start from; needs the turn.
    pub(super) async fn changeable(&self) -> Result<Keyring, String> {
        self.settle().await;
        let serving = self.keys.serving();
        if self.is_unsettled() {
            return Err("a change before it is not settled yet; the log says why".into());
        }
        self.keyring().filter(|_| serving.availability.serves()).ok_or_else(|| serving.reason.clone())
    }

    /// A change that an earlier record of its epoch would undo to somebody's harm is worth a roll, if custody is there.
    async fn roll_or_persist(&self, next: Keyring) -> Result<Keyring, LoadError> {
        match self.keys.serving().availability {
            Availability::Online => self.records.roll(next).await,
            _ => self.records.persist(next).await,
        }
    }

    /// Shows what was stored. After a failed write the record decides whether it was done all the same.
    pub(super) async fn shown(
        &self,
        stored: Result<Keyring, LoadError>,
        is_done: impl Fn(&Keyring) -> bool,
    ) -> Result<Keyring, LoadError> {
        match stored {
            Ok(keyring) => {
                self.publish_keyring(Keys::new(keyring.clone(), self.keys.serving().keys.as_deref()));
                Ok(keyring)
            }
            Err(error) => {
                tracing::error!(error = explain(&error), "a change was not stored");
                self.reload_needed.store(true, Ordering::Relaxed);
                self.settle().await;
                let settled = self.keyring().filter(|keyring| !self.is_unsettled() && is_done(keyring));
                settled.ok_or(error)
            }
        }
    }

    fn republish(&self) {
        if let Some(keyring) = self.keyring() {
            self.publish_keyring(Keys::new(keyring, self.keys.serving().keys.as_deref()));
        }
    }

    /// Brings every countdown up to date in a record that is about to be written. Should that fail, the time is lost.
    fn spend_time(&self, next: &mut Keyring) {
        self.look_at_time();
        next.pass(self.served_time().take());
    }

    fn slot(&self, key_id: &KeyId) -> Option<Arc<Slot>> {
        let serving = self.keys.serving();
        serving.keys.as_ref()?.slots().find(|slot| slot.generation.key_id == *key_id).cloned()
    }

    /// Never held across an `.await`.
    fn served_time(&self) -> MutexGuard<'_, ServedTime> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records what the daemon does by itself; whether it may go on.
    async fn record(&self, action: &'static str, phase: Phase, details: Map<String, Value>) -> bool {
        let Some(trail) = self.records.trail() else { return true };
        let record = AdminRecord { at: SystemTime::now(), action, phase, who: None, details };
        trail.record(record).await.is_ok() || !trail.stops()
    }
}

/// Why it would not be destroyed now, for want of proof.
fn unproven(keyring: &Keyring, number: GenerationNumber) -> Option<String> {
    let why = keyring.unneeded(number).err()?;
    Some(format!("it is destroyed once a scan proves that nothing needs it ({why}): `keystead etcd scan`"))
}

fn suspended(number: GenerationNumber, why: &Suspension) -> String {
    let what = match why {
        Suspension::Decrypts { .. } => "data under it was decrypted while it waited".to_owned(),
        Suspension::Objects { objects, .. } => format!("a scan of etcd found {objects} objects under it"),
    };
    format!(
        "{what}: something still needs it, and it is not destroyed. Find and rewrite what is under it, run `keystead etcd \
         scan`, then schedule it anew; or `keystead key cancel-deletion --generation {number}`"
    )
}

fn details(keyring: &Keyring, number: GenerationNumber) -> Map<String, Value> {
    let generation = keyring.generation(number);
    let by = generation.and_then(|each| match (&each.pending, &each.tombstone) {
        (Some(pending), _) => pending.by,
        (_, tombstone) => tombstone.as_ref().and_then(|tombstone| tombstone.by),
    });
    let mut details = Map::new();
    details.insert("generation".into(), json!(number.0));
    details.insert("key_id".into(), json!(generation.map(|generation| generation.key_id.as_str())));
    details.insert("scheduled_by".into(), json!(by));
    details
}

fn with(mut details: Map<String, Value>, name: &str, value: impl Into<Value>) -> Map<String, Value> {
    details.insert(name.into(), value.into());
    details
}
