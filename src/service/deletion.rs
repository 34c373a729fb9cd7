//! A deletion as people see it: scheduled, cancelled, and how it stands. [`super::destruction`] carries it out.
//!
//! Waits go by served time alone; what is not stored of it does not count ([`keystead_core::waiting_period`]).

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use keystead_core::availability::Availability;
use keystead_core::keyring::{DeletionError, Generation, GenerationState, Keyring, Pending, Suspension};
use keystead_core::waiting_period::{MAX_WAIT, ServedTime};
use keystead_core::{GenerationNumber, KeyId};

use super::clock::unix_now;
use super::epoch::LoadError;
use super::explain::explain;
use super::keys::{Keys, Slot};
use super::lifecycle::Lifecycle;

/// Without a word on it.
const DEFAULT_WAIT: Duration = Duration::from_secs(7 * 24 * 3600);

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
            return Ok(DeletionReport { left: wait, ..self.reported(&keyring, number)? });
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
        self.reported(&keyring, number)
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

    fn reported(&self, keyring: &Keyring, number: GenerationNumber) -> Result<DeletionReport, DeleteError> {
        let gone = || DeleteError::Refused(format!("generation {number} does not wait any more"));
        self.report(keyring, number).ok_or_else(gone)
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
    pub(super) async fn roll_or_persist(&self, next: Keyring) -> Result<Keyring, LoadError> {
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

    /// Brings every countdown up to date in a record that is about to be written. Should that fail, the time is lost.
    pub(super) fn spend_time(&self, next: &mut Keyring) {
        self.look_at_time();
        next.pass(self.served_time().take());
    }

    pub(super) fn slot(&self, key_id: &KeyId) -> Option<Arc<Slot>> {
        let serving = self.keys.serving();
        serving.keys.as_ref()?.slots().find(|slot| slot.generation.key_id == *key_id).cloned()
    }

    /// Never held across an `.await`.
    pub(super) fn served_time(&self) -> MutexGuard<'_, ServedTime> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why it would not be destroyed now, for want of proof.
fn unproven(keyring: &Keyring, number: GenerationNumber) -> Option<String> {
    let why = keyring.unneeded(number).err()?;
    Some(format!("it is destroyed once a scan proves that nothing needs it ({why}): `keystead etcd scan`"))
}

pub(super) fn suspended(number: GenerationNumber, why: &Suspension) -> String {
    let what = match why {
        Suspension::Decrypts { .. } => "data under it was decrypted while it waited".to_owned(),
        Suspension::Objects { objects, .. } => format!("a scan of etcd found {objects} objects under it"),
    };
    format!(
        "{what}: something still needs it, and it is not destroyed. Find and rewrite what is under it, run `keystead etcd \
         scan`, then schedule it anew; or `keystead key cancel-deletion --generation {number}`"
    )
}
