//! When the daemon may serve: a pure state machine. What happened goes in, the next state and what to do about it come out.
//!
//! This is the `local` profile: the custody CMK is the only online root. Losing custody never takes a loaded KEK away
//! unless the site set a grace period; it may be the last copy.

use std::time::Duration;

/// Seconds on a clock that counts suspend time and never steps (`CLOCK_BOOTTIME`).
pub type Instant = Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Availability {
    /// No key may be used. Status, Encrypt and Decrypt answer UNAVAILABLE.
    Sealed(SealReason),
    Online,
    /// Serving as if online; rotation is refused. Restarting now would lose the loaded keys.
    Degraded {
        since: Instant,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealReason {
    Starting,
    /// The store's record is damaged, stale or foreign.
    RecordRejected,
    /// Custody was away for longer than the site allows.
    GraceOver,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observation {
    /// The record is authentic and the active generation's KEK is in memory.
    Loaded,
    RecordRejected,
    CustodyLost,
    CustodyAnswered,
    /// Time has passed.
    Tick,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Wipe every KEK from memory.
    WipeKeks,
    /// Load the record and the active KEK anew.
    Load,
}

impl Availability {
    pub fn serves(&self) -> bool {
        matches!(self, Self::Online | Self::Degraded { .. })
    }
}

/// One step. `grace` is how long custody may be away before loaded KEKs are given up; `None`, the default, is for ever.
pub fn step(
    state: &Availability,
    observation: Observation,
    now: Instant,
    grace: Option<Duration>,
) -> (Availability, Option<Effect>) {
    use Availability::{Degraded, Online, Sealed};
    match (state, observation) {
        (Sealed(_), Observation::Loaded) => (Online, None),
        (Sealed(_), Observation::RecordRejected) => (Sealed(SealReason::RecordRejected), None),
        (Sealed(_), Observation::CustodyAnswered) => (state.clone(), Some(Effect::Load)),
        (Online, Observation::CustodyLost) => (Degraded { since: now }, None),
        (Degraded { .. }, Observation::CustodyAnswered | Observation::Loaded) => (Online, None),
        (Degraded { since }, Observation::Tick) if grace.is_some_and(|grace| now.saturating_sub(*since) >= grace) => {
            (Sealed(SealReason::GraceOver), Some(Effect::WipeKeks))
        }
        // A record that is rejected while keys are loaded is the store's fault, not theirs: they go on serving.
        (Sealed(_) | Online | Degraded { .. }, _) => (state.clone(), None),
    }
}
