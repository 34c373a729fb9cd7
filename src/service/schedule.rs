//! Rotation on a schedule: looks at the key's age from time to time, and rotates as a person would, but never forces it.
//!
//! The arithmetic is [`keystead_core::schedule`]; here is what else must hold: service, a clock that has run steadily, and the
//! proof that nothing hangs on older generations. What is refused waits and says what it waits for; what fails is tried
//! again ever later. Each try is recorded in the audit trail as the daemon's own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keystead_core::GenerationNumber;
use keystead_core::availability::Availability;
use keystead_core::keyring::{Generation, Keyring};
use keystead_core::scan::NotRewritten;
use keystead_core::schedule::{Age, Moment, Plan, Schedule, Watch};
use serde_json::{Map, Value};

use super::clock::unix_now;
use super::explain::explain;
use super::lifecycle::Lifecycle;
use crate::audit::Phase;

/// What the audit trail calls this part of the daemon, and what it does.
const PART: &str = "schedule";
const ACTION: &str = "rotate";
/// The schedule is looked at this often.
const LOOK: Duration = Duration::from_secs(5);
/// In seconds: after the first failure, doubled with each.
const FIRST_RETRY: u64 = 300;
const LAST_RETRY: u64 = 6 * 3600;

/// The site's schedule, and what came of it so far.
#[derive(Debug, Default)]
pub(super) struct Scheduled(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    schedule: Option<Schedule>,
    watch: Watch,
    /// Since the last success, and since the start.
    failures: u32,
    failures_ever: u64,
    failed: String,
    /// Boot time.
    not_before: u64,
    /// What was said last of why it waits.
    told: String,
}

/// Key age and schedule at one instant, for status and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RotationOutlook {
    pub age: Age,
    /// `None`: the key is rotated by hand only.
    pub schedule: Option<Schedule>,
    /// Unix seconds; 0 without a schedule.
    pub next: u64,
    /// Seconds since the rotation was due within its window; 0 while it is not.
    pub overdue: u64,
    /// Why a rotation that is due is not made, and what to do; empty while there is none.
    pub waits: String,
    /// Scheduled rotations that failed since the start.
    pub failures: u64,
    /// Older generations that are not proven to be no longer needed, with their objects by the newest scan.
    pub needed: Vec<(GenerationNumber, Option<u64>)>,
}

/// Runs for the life of the server.
pub async fn follow(lifecycle: Arc<Lifecycle>) {
    loop {
        lifecycle.follow_schedule().await;
        tokio::time::sleep(LOOK).await;
    }
}

impl Lifecycle {
    /// From now on; `None` is by hand only. Failures so far are forgotten: whoever changes it has looked.
    pub fn set_schedule(&self, schedule: Option<Schedule>) {
        let mut memory = self.scheduled.lock();
        if memory.schedule != schedule {
            *memory = Memory {
                schedule,
                watch: std::mem::take(&mut memory.watch),
                failures_ever: memory.failures_ever,
                ..Memory::default()
            };
        }
    }

    /// `None` while no key is known.
    pub fn rotation_outlook(&self) -> Option<RotationOutlook> {
        let serving = self.keys.serving();
        let keyring = &serving.keys.as_ref()?.keyring;
        let active = keyring.active()?;
        let now = self.moment();
        let mut memory = self.scheduled.lock();
        memory.watch.look(&active.key_id, now);
        let activated = activated(active);
        let age = memory.watch.age(activated, now);
        let plan = memory.schedule.map(|schedule| memory.watch.plan(&schedule, activated, now));
        let overdue = plan.map_or(0, |plan| now.wall.saturating_sub(plan.planned));
        let waits = plan.filter(|plan| plan.due || overdue > 0);
        let waits = waits.and_then(|plan| self.waits_for(keyring, &memory, &plan, now)).unwrap_or_default();
        Some(RotationOutlook {
            age,
            schedule: memory.schedule,
            next: plan.map_or(0, |plan| plan.next),
            overdue,
            waits,
            failures: memory.failures_ever,
            needed: needed(keyring),
        })
    }

    /// Rotates if it is time to, and nothing speaks against it.
    pub async fn follow_schedule(&self) {
        let due = {
            let serving = self.keys.serving();
            let Some(keyring) = serving.keys.as_ref().map(|keys| &keys.keyring) else { return };
            let Some(active) = keyring.active() else { return };
            let now = self.moment();
            let mut memory = self.scheduled.lock();
            memory.watch.look(&active.key_id, now);
            let Some(schedule) = memory.schedule else { return };
            let plan = memory.watch.plan(&schedule, activated(active), now);
            let waits = self.waits_for(keyring, &memory, &plan, now);
            if plan.due {
                memory.tell(waits.as_deref().unwrap_or_default());
            }
            plan.due && waits.is_none()
        };
        if due {
            self.rotate_as_scheduled().await;
        }
    }

    async fn rotate_as_scheduled(&self) {
        if self.rotating.try_lock().is_err() {
            // Somebody else does it just now.
            return;
        }
        let before = self.rotation_outlook().map_or(0, |outlook| outlook.age.seconds);
        tracing::info!(age_days = before / 86_400, "the key is rotated as scheduled");
        let details = |name: &str, value: Value| Map::from_iter([(name.to_owned(), value)]);
        if !self.record(PART, ACTION, Phase::Intent, details("key_age_seconds", before.into())).await {
            return self.note_failure("the intent cannot be recorded in the audit trail");
        }
        match self.rotate(None, |_| ()).await {
            Ok(generation) => {
                self.note_success();
                let mut made = details("generation", generation.number.0.into());
                made.insert("key_id".into(), generation.key_id.as_str().into());
                // What was done is done: that it cannot be recorded is the trail's own alarm.
                self.record(PART, ACTION, Phase::Done, made).await;
            }
            Err(error) => {
                let why = explain(&error);
                self.record(PART, ACTION, Phase::Failed, details("reason", why.as_str().into())).await;
                self.note_failure(&why);
            }
        }
    }

    fn note_success(&self) {
        let mut memory = self.scheduled.lock();
        (memory.failures, memory.not_before) = (0, 0);
        memory.failed.clear();
    }

    fn note_failure(&self, why: &str) {
        let boot_time = self.moment().boot_time;
        let mut memory = self.scheduled.lock();
        let pause = (FIRST_RETRY << memory.failures.min(16)).min(LAST_RETRY);
        memory.failures = memory.failures.saturating_add(1);
        memory.failures_ever += 1;
        memory.not_before = boot_time.saturating_add(pause);
        why.clone_into(&mut memory.failed);
        tracing::error!(error = why, pause_seconds = pause, "the scheduled rotation failed; it is tried again");
    }

    /// What speaks against a rotation that is due.
    fn waits_for(&self, keyring: &Keyring, memory: &Memory, plan: &Plan, now: Moment) -> Option<String> {
        let serving = self.keys.serving();
        if serving.availability != Availability::Online {
            return Some(format!("not while the daemon is not online: {}", serving.reason));
        }
        let unsteady = settles(plan.unsteady);
        if unsteady > 0 {
            return Some(format!(
                "the clock must have run steadily for a while, since the start of the daemon or a step: {unsteady}s more"
            ));
        }
        if let Err(why) = keyring.rewritten() {
            return Some(format!(
                "Secrets may still be under an older generation ({why}). Rewrite every Secret, then `keystead etcd scan`: \
                 the schedule goes on by itself"
            ));
        }
        let pause = memory.not_before.saturating_sub(now.boot_time);
        (pause > 0).then(|| format!("the last try failed, and is repeated in {pause}s: {}", memory.failed))
    }

    /// Of the same clocks as everything else here.
    pub(super) fn moment(&self) -> Moment {
        let wall = self.cloud.as_ref().map_or_else(unix_now, |cloud| cloud.clock.now().wall);
        Moment { wall, boot_time: self.now().as_secs() }
    }
}

impl Scheduled {
    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    /// Once for each reason: a count of seconds in it is no news.
    fn tell(&mut self, waits: &str) {
        let kind = waits.split([':', '(']).next().unwrap_or_default();
        if self.told != kind {
            if !waits.is_empty() {
                tracing::warn!(waits, "a rotation is due and waits");
            }
            kind.clone_into(&mut self.told);
        }
    }
}

fn activated(active: &Generation) -> u64 {
    active.activated.unwrap_or(active.created)
}

/// Those that a scan of everything saw no object under are left out, though the proof fails by another.
fn needed(keyring: &Keyring) -> Vec<(GenerationNumber, Option<u64>)> {
    let Err(why) = keyring.rewritten() else { return Vec::new() };
    let Some(active) = keyring.active().map(|active| active.number) else { return Vec::new() };
    let scan = keyring.scan.as_ref();
    let saw_all = matches!(why, NotRewritten::StillNeeded { .. })
        && scan.is_some_and(|scan| !scan.restricted && scan.unknown == 0 && scan.objects(active) > Some(0));
    let older = keyring.generations.iter().filter(|each| each.decrypts() && each.number != active);
    older
        .map(|each| (each.number, scan.and_then(|scan| scan.objects(each.number))))
        .filter(|(_, objects)| !(saw_all && *objects == Some(0)))
        .collect()
}

/// A test of the whole daemon cannot wait until a clock is believed.
fn settles(unsteady: u64) -> u64 {
    fail::fail_point!("schedule.steady", |_| 0);
    unsteady
}
