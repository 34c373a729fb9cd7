//! The end of a generation: retired → pending deletion → destroyed, and the way back while it waits.
//!
//! Nothing here asks what time it is: the wait is a countdown ([`WaitingPeriod`]), the proof that nothing needs the
//! generation any more is a scan of etcd's bytes ([`crate::scan`]). What hints that it is needed after all suspends
//! the deletion until a person decides.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Generation, GenerationState, Keyring};
use crate::id::{GenerationNumber, RootId, RootKind};
use crate::scan::NotRewritten;
use crate::waiting_period::WaitingPeriod;

/// Generations named in a message; there may be a thousand.
const NAMED: usize = 10;

/// A deletion that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pending {
    /// Unix seconds. For people.
    pub scheduled: u64,
    /// The user who asked for it; `None` where nobody could tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<u32>,
    pub wait: WaitingPeriod,
    /// Something still needs the generation: it is not destroyed, however long it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended: Option<Suspension>,
}

/// What showed that a generation is needed after all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Suspension {
    /// Data under it was decrypted while it waited.
    Decrypts { since: u64 },
    /// A scan found objects under it.
    Objects { since: u64, objects: u64 },
}

/// What stays of a destroyed generation besides its number, key ID and commitment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tombstone {
    /// Unix seconds, both.
    pub scheduled: u64,
    pub destroyed: u64,
    /// The user who asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<u32>,
    /// CMKs that are still to be destroyed; absent once they are, and that is recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<Vec<RootId>>,
}

/// Why a deletion was not scheduled, cancelled or carried out. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeletionError {
    #[error("there is no generation {wanted}; there are: {known}")]
    Unknown { wanted: String, known: String },
    #[error("generation {number} is {state}; only a retired generation can be scheduled: {allowed}")]
    NotRetired { number: GenerationNumber, state: GenerationState, allowed: String },
    #[error("generation {0} waits for its deletion already; to change the wait, cancel it first")]
    Waits(GenerationNumber),
    #[error("generation {number} is {state}; only one that is pending deletion can be cancelled: {allowed}")]
    NotPending { number: GenerationNumber, state: GenerationState, allowed: String },
    #[error(
        "generation {number} may still be needed ({why}). Rewrite every Secret, then run `keystead etcd scan` over all \
         keys"
    )]
    Needed { number: GenerationNumber, why: NotRewritten },
    #[error("the deletion of generation {0} is suspended")]
    Suspended(GenerationNumber),
    #[error("the waiting period of generation {0} is not over")]
    NotOver(GenerationNumber),
}

impl Keyring {
    /// By number or full key ID, as a person names it.
    pub fn named(&self, wanted: &str) -> Result<&Generation, DeletionError> {
        let is_it = |each: &&Generation| each.key_id.as_str() == wanted || each.number.0.to_string().as_str() == wanted;
        self.generations.iter().find(is_it).ok_or_else(|| DeletionError::Unknown {
            wanted: wanted.chars().filter(|letter| !letter.is_control()).take(100).collect(),
            known: listed(self.generations.iter().map(|each| format!("{} ({})", each.number, each.state))),
        })
    }

    /// Generations whose deletion was asked for and is not carried out.
    pub fn pending(&self) -> impl Iterator<Item = (&Generation, &Pending)> {
        self.generations.iter().filter_map(|each| Some((each, each.pending.as_ref()?)))
    }

    /// Whether [`Self::schedule_deletion`] would be done. A suspended one may be scheduled anew.
    pub fn may_schedule(&self, number: GenerationNumber) -> Result<(), DeletionError> {
        let generation = self.named(&number.0.to_string())?;
        match (generation.state, &generation.pending) {
            (GenerationState::Retired, _) | (_, Some(Pending { suspended: Some(_), .. })) => {}
            (GenerationState::PendingDeletion, _) => return Err(DeletionError::Waits(number)),
            (state, _) => {
                let allowed = self.numbers(GenerationState::Retired);
                return Err(DeletionError::NotRetired { number, state, allowed });
            }
        }
        self.unneeded(number).map_err(|why| DeletionError::Needed { number, why })
    }

    /// Begins the waiting period of a retired generation that a scan proved to be unneeded. It decrypts meanwhile.
    pub fn schedule_deletion(
        &mut self,
        number: GenerationNumber,
        wait: Duration,
        by: Option<u32>,
        now: u64,
    ) -> Result<(), DeletionError> {
        self.may_schedule(number)?;
        let pending = Pending { scheduled: now, by, wait: WaitingPeriod::of(wait), suspended: None };
        self.change(number, |generation| {
            generation.state = GenerationState::PendingDeletion;
            generation.pending = Some(pending);
        });
        Ok(())
    }

    /// Back to retired.
    pub fn cancel_deletion(&mut self, number: GenerationNumber) -> Result<(), DeletionError> {
        let state = self.named(&number.0.to_string())?.state;
        if state != GenerationState::PendingDeletion {
            let allowed = self.numbers(GenerationState::PendingDeletion);
            return Err(DeletionError::NotPending { number, state, allowed });
        }
        self.change(number, |generation| {
            generation.state = GenerationState::Retired;
            generation.pending = None;
        });
        Ok(())
    }

    /// So many seconds were served: they count for every wait that is not suspended.
    pub fn pass(&mut self, served: u64) {
        for pending in self.generations.iter_mut().filter_map(|generation| generation.pending.as_mut()) {
            if pending.suspended.is_none() {
                pending.wait.pass(served);
            }
        }
    }

    /// What the newest scan says against a deletion: objects under the generation.
    pub fn contradiction(&self, number: GenerationNumber, now: u64) -> Option<Suspension> {
        let objects = self.scan.as_ref()?.objects(number).filter(|objects| *objects > 0)?;
        Some(Suspension::Objects { since: now, objects })
    }

    /// Stops a deletion until a person decides: cancels it, or schedules it anew. A scan that Decrypts have contradicted
    /// proves nothing any more, also to a rotation, and is dropped.
    pub fn suspend_deletion(&mut self, number: GenerationNumber, why: Suspension) {
        self.change(number, |generation| {
            if let Some(pending) = &mut generation.pending {
                pending.suspended.get_or_insert(why);
            }
        });
        // Also of one that is suspended already: by this scan it must not be scheduled anew.
        if matches!(why, Suspension::Decrypts { .. }) {
            self.scan = None;
        }
    }

    /// Leaves a tombstone: no wrap, no offline copy. Names the CMKs that are to be destroyed once this is durable.
    ///
    /// # Errors
    /// It still waits, is suspended, or is no longer proven to be unneeded.
    pub fn bury(&mut self, number: GenerationNumber, now: u64) -> Result<(), DeletionError> {
        let generation = self.named(&number.0.to_string())?;
        let state = generation.state;
        let Some(pending) = generation.pending.clone() else {
            let allowed = self.numbers(GenerationState::PendingDeletion);
            return Err(DeletionError::NotPending { number, state, allowed });
        };
        if pending.suspended.is_some() {
            return Err(DeletionError::Suspended(number));
        }
        if !pending.wait.is_over() {
            return Err(DeletionError::NotOver(number));
        }
        self.unneeded(number).map_err(|why| DeletionError::Needed { number, why })?;
        let left = generation.wraps.iter().filter(|wrap| matches!(wrap.root_kind, RootKind::Pkcs11 | RootKind::Tpm));
        let left = left.map(|wrap| wrap.root_id.clone()).filter(|root| !self.is_named(root, number)).collect();
        let tombstone = Tombstone { scheduled: pending.scheduled, destroyed: now, by: pending.by, left: Some(left) };
        self.change(number, |generation| {
            generation.state = GenerationState::Destroyed;
            generation.wraps.clear();
            generation.pending = None;
            generation.tombstone = Some(tombstone);
        });
        if let Some(upstream) = &mut self.upstream {
            upstream.copies.retain(|copy| copy.generation != number);
        }
        Ok(())
    }

    /// Tombstones whose CMKs may still be on the token.
    pub fn unfinished(&self) -> impl Iterator<Item = (&Generation, &[RootId])> {
        self.generations.iter().filter_map(|each| Some((each, each.tombstone.as_ref()?.left.as_deref()?)))
    }

    /// The CMKs of a tombstone are destroyed, and that is recorded.
    pub fn finish_deletion(&mut self, number: GenerationNumber) {
        self.change(number, |generation| {
            if let Some(tombstone) = &mut generation.tombstone {
                tombstone.left = None;
            }
        });
    }

    /// What [`Keyring::check`] has to say of deletions.
    pub(super) fn deletion_problem(&self) -> Option<&'static str> {
        for generation in &self.generations {
            let (pending, destroyed) = (&generation.pending, generation.state == GenerationState::Destroyed);
            if pending.is_some() != (generation.state == GenerationState::PendingDeletion) {
                return Some("a generation is pending deletion without a waiting period, or the other way round");
            }
            if pending.as_ref().is_some_and(|pending| !pending.wait.is_sound()) {
                return Some("a waiting period that cannot be");
            }
            if destroyed != generation.wraps.is_empty() || (generation.tombstone.is_some() && !destroyed) {
                return Some("a destroyed generation has wraps, or one that is not has none");
            }
        }
        // What a tombstone names is destroyed.
        let mut left =
            self.unfinished().flat_map(|(generation, left)| left.iter().map(|root| (generation.number, root)));
        left.any(|(number, root)| self.is_named(root, number))
            .then_some("a tombstone names a CMK that a generation depends on")
    }

    /// Whether another generation, or the rotation under way, depends on this root.
    fn is_named(&self, root: &RootId, but_for: GenerationNumber) -> bool {
        let others = self.generations.iter().filter(|each| each.number != but_for);
        others.flat_map(|each| &each.wraps).any(|wrap| wrap.root_id == *root)
            || self.rotation.as_ref().is_some_and(|intent| intent.root_id == *root)
    }

    fn change(&mut self, number: GenerationNumber, change: impl FnOnce(&mut Generation)) {
        if let Some(generation) = self.generations.iter_mut().find(|generation| generation.number == number) {
            change(generation);
        }
    }

    fn numbers(&self, state: GenerationState) -> String {
        listed(self.generations.iter().filter(|each| each.state == state).map(|each| each.number.to_string()))
    }
}

/// The last few, for a message.
fn listed(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    let shown = items[items.len().saturating_sub(NAMED)..].join(", ");
    match items.len() {
        0 => "there is none".to_owned(),
        few if few <= NAMED => shown,
        _ => format!("…, {shown}"),
    }
}

#[cfg(test)]
mod tests;
