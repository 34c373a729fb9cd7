//! Deletions carried out: what is due is suspended, destroyed, finished, counted, as the daemon tends its key.
//!
//! Destroying goes in this order: intent recorded → KEK wiped from memory → tombstone persisted with an epoch roll → shown →
//! the token's CMKs destroyed → recorded as done. Killed anywhere it goes on at the next start: before the tombstone the
//! generation is whole, and behind it the record names what is left on the token.

use keystead_core::GenerationNumber;
use keystead_core::availability::Availability;
use keystead_core::keyring::{GenerationState, Keyring, Suspension};
use serde_json::{Map, Value, json};

use super::clock::unix_now;
use super::deletion::{DeletionReport, Standing, suspended};
use super::explain::explain;
use super::keys::Keys;
use super::lifecycle::Lifecycle;
use crate::audit::Phase;

/// Served time between two stores of a countdown: two syncs each make about 50 a day, and only while something waits.
const STORE_EVERY: u64 = 3600;

/// What the audit trail calls this part of the daemon, and a destruction.
const PART: &str = "deletion";
const ACTION: &str = "destroy-generation";

impl Lifecycle {
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
    pub(super) fn evidence(&self, report: &DeletionReport) -> Option<Suspension> {
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

    pub(super) async fn suspend(&self, number: GenerationNumber, why: Suspension) {
        let Some(mut next) = self.keyring() else { return };
        self.spend_time(&mut next);
        next.suspend_deletion(number, why);
        let details = details(&next, number);
        let stored = self.roll_or_persist(next).await;
        fail::fail_point!("deletion.suspended");
        if self.shown(stored, |_| true).await.is_ok() {
            tracing::error!(generation = %number, why = suspended(number, &why), "a deletion is suspended");
            self.record(PART, "suspend-deletion", Phase::Event, details).await;
        }
    }

    async fn destroy(&self, number: GenerationNumber) {
        fail::fail_point!("deletion.due");
        let Some(mut next) = self.keyring() else { return };
        self.spend_time(&mut next);
        let details = details(&next, number);
        let slot = next.generation(number).and_then(|generation| self.slot(&generation.key_id));
        if let Err(error) = next.bury(number, unix_now()) {
            return tracing::warn!(%error, "a generation is not destroyed");
        }
        if !self.record(PART, ACTION, Phase::Intent, details.clone()).await {
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
            self.record(PART, ACTION, Phase::Failed, with(details, "reason", "decrypted at the last moment")).await;
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
                self.record(PART, ACTION, Phase::Failed, with(details, "reason", explain(&error))).await;
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
            self.record(PART, ACTION, Phase::Done, details).await;
            next.finish_deletion(number);
        }
        self.spend_time(&mut next);
        let stored = self.records.persist(next).await;
        fail::fail_point!("deletion.finished");
        // Else they are destroyed once more, which harms nothing.
        let _ = self.shown(stored, |_| true).await;
    }

    fn republish(&self) {
        if let Some(keyring) = self.keyring() {
            self.publish_keyring(Keys::new(keyring, self.keys.serving().keys.as_deref()));
        }
    }
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
