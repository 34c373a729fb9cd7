//! When the daemon may serve: a pure state machine. What happened goes in, the next state and what to do about it come out.
//!
//! Losing custody never takes a loaded KEK away unless the site set a grace period; it may be the last copy. In the cloud
//! profile the upstream has the last word as well: it revokes, and only a real unwrap by it gives back what it took. That
//! it cannot be reached takes nothing but time, which the [lease](crate::lease) counts. Where the active generation's root is
//! in custody, the upstream's word counts for the older generations only that are rooted there. `docs/availability.md` draws
//! this machine and is held against it by a test.

use std::time::Duration;

use crate::upstream::FaultClass;
use crate::upstream_state::Denials;

/// Seconds on a clock that counts suspend time and never steps (`CLOCK_BOOTTIME`).
pub type Instant = Duration;

/// So often must the upstream deny before it counts as a revocation: rights take their time to spread through a cloud.
pub const DENIALS: u32 = 3;
/// And over so long a time.
pub const DENIED_FOR: Duration = Duration::from_secs(30 * 60);

/// What the outside sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// No key may be used. Status, Encrypt and Decrypt answer UNAVAILABLE.
    Sealed(SealReason),
    Online,
    /// Serving as if online; rotation is refused.
    Degraded {
        since: Instant,
        cause: Cause,
    },
    /// The lease is used up: FAILED_PRECONDITION until the upstream answers or a grant is applied.
    Expired,
    /// The upstream took the key away: FAILED_PRECONDITION until it opens it again. No class if only the marker tells of it.
    Revoked {
        class: Option<FaultClass>,
    },
    /// An admin switched the key off: FAILED_PRECONDITION.
    Disabled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealReason {
    Starting,
    /// The store's record is damaged, stale or foreign.
    RecordRejected,
    /// Custody was away for longer than the site allows.
    GraceOver,
    /// Neither the upstream nor an offline copy could open the active key.
    NothingOpens,
}

/// What is wrong while serving goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Restarting now would lose the loaded keys.
    Custody,
    /// The lease runs.
    Upstream(FaultClass),
    /// The upstream refuses, but this configuration has never opened the key: it is taken for a mistake in it. The lease runs.
    Configuration(FaultClass),
    /// Both: the lease runs, and restarting now would lose the loaded keys.
    Both(FaultClass),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observation {
    /// The record is authentic and the active generation's KEK is in memory.
    Loaded(Source),
    RecordRejected,
    /// What an authentic record, or the marker, says of the past. Gives nothing back.
    Remembered(Past),
    CustodyLost,
    CustodyAnswered,
    /// The upstream has just opened the active generation's wrap, also while an admin keeps the key switched off.
    Renewed,
    UpstreamFailed(FaultClass),
    /// No offline copy may or can stand in for the upstream.
    NothingOpens,
    LeaseUsedUp,
    /// A grant was applied.
    LeaseExtended,
    /// An admin switched the key off: just now, or as the record or the marker tells.
    Disabled,
    /// An admin switched it on.
    Enabled,
    /// The active generation has its durable root here: at the start, and after each rotation.
    Rooted(Root),
    /// Time has passed.
    Tick,
}

/// Where the active generation's durable root is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// The upstream is asked for older generations only, if there are such.
    Custody,
    Upstream,
}

/// What opened the active generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The CMK in custody is its durable root.
    Custody,
    Upstream,
    OfflineCopy,
}

/// What was known when the record was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Past {
    /// This very configuration has opened the key before.
    pub proven: bool,
    pub denials: Option<Denials>,
    /// When that was written, if it was in this boot: the time since then counts as well.
    pub written: Option<Instant>,
    /// Revoked, by what if that is known.
    pub revoked: Option<Option<FaultClass>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Wipe every KEK from memory.
    WipeKeks,
    /// Load the record and the active KEK anew.
    Load,
    /// Wipe every KEK that the upstream gave, then raise the marker, then shred the offline copies by an epoch roll. In that
    /// order, and whatever of it fails is tried again.
    Revoke,
    /// The upstream gave the key back: store that, seal offline copies anew, take the marker down.
    Restore,
}

/// The machine. Its parts are independent of one another; [`Self::availability`] says what they come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    root: Root,
    loaded: bool,
    sealed: SealReason,
    custody_lost: Option<Instant>,
    disabled: bool,
    proven: bool,
    fault: Option<Fault>,
    denials: Option<Denied>,
    /// By what, if that is known.
    revoked: Option<Option<FaultClass>>,
    expired: bool,
}

/// The upstream's failures since its last success: since when, and the last one's class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fault {
    since: Instant,
    class: FaultClass,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Denied {
    count: u32,
    spread: Duration,
    /// `None` if it was before this boot.
    last: Option<Instant>,
}

impl Availability {
    pub fn serves(&self) -> bool {
        matches!(self, Self::Online | Self::Degraded { .. })
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            // The one whose word counts for more.
            root: Root::Upstream,
            loaded: false,
            sealed: SealReason::Starting,
            custody_lost: None,
            disabled: false,
            proven: false,
            fault: None,
            denials: None,
            revoked: None,
            expired: false,
        }
    }
}

impl State {
    pub fn availability(&self) -> Availability {
        let in_cloud = self.root == Root::Upstream;
        if let Some(class) = self.revoked.filter(|_| in_cloud) {
            return Availability::Revoked { class };
        }
        if self.disabled {
            return Availability::Disabled;
        }
        if self.expired && in_cloud {
            return Availability::Expired;
        }
        if !self.loaded {
            return Availability::Sealed(self.sealed);
        }
        let (since, cause) = match (self.custody_lost, self.fault.filter(|_| in_cloud)) {
            (None, None) => return Availability::Online,
            (Some(lost), None) => (lost, Cause::Custody),
            (None, Some(Fault { since, class })) if revokes(class) && !self.proven => {
                (since, Cause::Configuration(class))
            }
            (None, Some(Fault { since, class })) => (since, Cause::Upstream(class)),
            (Some(lost), Some(Fault { since, class })) => (lost.min(since), Cause::Both(class)),
        };
        Availability::Degraded { since, cause }
    }

    pub fn serves(&self) -> bool {
        self.availability().serves()
    }

    pub fn is_revoked(&self) -> bool {
        self.revoked.is_some()
    }

    /// Whether generations whose root is in the cloud may be used, be the active one among them or not.
    pub fn opens_cloud(&self) -> bool {
        !self.is_revoked() && !self.expired
    }

    /// Also while something else has the last word on it.
    pub fn is_disabled(&self) -> bool {
        self.disabled
    }

    /// Whether this configuration has opened the key.
    pub fn is_proven(&self) -> bool {
        self.proven
    }

    /// Since when the upstream has not opened the key, and why.
    pub fn upstream_fault(&self) -> Option<(Instant, FaultClass)> {
        self.fault.map(|fault| (fault.since, fault.class))
    }

    /// For the record.
    pub fn denials(&self) -> Option<Denials> {
        self.denials.map(|denied| Denials { count: denied.count, spread: denied.spread.as_secs() })
    }

    /// The upstream opened the key: all that it held against us is forgiven.
    fn opened_by_upstream(&mut self) {
        self.proven = true;
        self.fault = None;
        self.denials = None;
        self.revoked = None;
        self.expired = false;
    }

    fn failed(&mut self, class: FaultClass, now: Instant) {
        let since = self.fault.map_or(now, |fault| fault.since);
        self.fault = Some(Fault { since, class });
    }

    /// Counts a refusal; true once there have been enough of them for long enough.
    fn denied(&mut self, now: Instant) -> bool {
        let before = self.denials.unwrap_or(Denied { count: 0, spread: Duration::ZERO, last: None });
        let passed = before.last.map_or(Duration::ZERO, |last| now.saturating_sub(last));
        let denied = Denied { count: before.count.saturating_add(1), spread: before.spread + passed, last: Some(now) };
        self.denials = Some(denied);
        denied.count >= DENIALS && denied.spread >= DENIED_FOR
    }
}

/// Whether answers of this class can take the key away.
fn revokes(class: FaultClass) -> bool {
    matches!(class, FaultClass::Denied | FaultClass::KeyDisabled | FaultClass::KeyGone)
}

/// One step. `grace` is how long custody may be away before loaded KEKs are given up; `None`, the default, is for ever.
pub fn step(state: &State, observation: Observation, now: Instant, grace: Option<Duration>) -> (State, Option<Effect>) {
    let mut next = state.clone();
    let effect = next.take(observation, now, grace);
    // Whatever the reason, nothing that may not be used stays in memory.
    if next.loaded && !next.availability().serves() {
        next.loaded = false;
    }
    if !next.loaded {
        next.custody_lost = None;
    }
    let effect = effect.or((state.loaded && !next.loaded).then_some(Effect::WipeKeks));
    (next, effect)
}

impl State {
    fn take(&mut self, observation: Observation, now: Instant, grace: Option<Duration>) -> Option<Effect> {
        match observation {
            Observation::Loaded(source) => self.take_loaded(source, now),
            Observation::Renewed => {
                // Without a key in memory there is nothing to go on with: a start comes first, and asks again. A disabled key
                // has no start before it is enabled; but what was revoked is given back by a start alone.
                let was_revoked = self.is_revoked();
                if self.loaded || (self.disabled && !was_revoked) {
                    self.opened_by_upstream();
                }
                (was_revoked && !self.is_revoked()).then_some(Effect::Restore)
            }
            Observation::UpstreamFailed(class) => self.take_failure(class, now),
            Observation::Remembered(past) => {
                self.proven |= past.proven;
                if let (None, Some(denials)) = (self.denials, past.denials) {
                    self.denials = Some(Denied { count: denials.count, spread: denials.spread(), last: past.written });
                }
                if let Some(class) = past.revoked {
                    self.revoked = Some(self.revoked.flatten().or(class));
                }
                None
            }
            // A record that is rejected while keys are loaded is the store's fault, not theirs: they go on serving.
            Observation::RecordRejected if !self.loaded => {
                self.sealed = SealReason::RecordRejected;
                None
            }
            Observation::NothingOpens if !self.loaded => {
                self.sealed = SealReason::NothingOpens;
                None
            }
            Observation::CustodyLost if self.loaded => {
                self.custody_lost.get_or_insert(now);
                None
            }
            Observation::CustodyAnswered if self.loaded => {
                self.custody_lost = None;
                None
            }
            Observation::CustodyAnswered if matches!(self.availability(), Availability::Sealed(_)) => {
                Some(Effect::Load)
            }
            Observation::LeaseUsedUp => {
                self.expired = true;
                None
            }
            Observation::LeaseExtended => {
                let waited = std::mem::take(&mut self.expired);
                (waited && !self.loaded && !self.is_revoked() && !self.disabled).then(|| {
                    self.sealed = SealReason::Starting;
                    Effect::Load
                })
            }
            Observation::Disabled => {
                self.disabled = true;
                None
            }
            Observation::Enabled => {
                let was = std::mem::take(&mut self.disabled);
                (was && !self.is_revoked() && !self.expired).then(|| {
                    self.sealed = SealReason::Starting;
                    Effect::Load
                })
            }
            Observation::Rooted(root) => {
                self.root = root;
                None
            }
            Observation::Tick => {
                let over = |since: Instant| grace.is_some_and(|grace| now.saturating_sub(since) >= grace);
                if self.custody_lost.is_some_and(over) {
                    self.loaded = false;
                    self.sealed = SealReason::GraceOver;
                }
                None
            }
            Observation::RecordRejected
            | Observation::NothingOpens
            | Observation::CustodyLost
            | Observation::CustodyAnswered => None,
        }
    }

    fn take_loaded(&mut self, source: Source, now: Instant) -> Option<Effect> {
        match source {
            Source::Upstream => {
                let was_revoked = self.is_revoked();
                self.opened_by_upstream();
                self.loaded = true;
                self.custody_lost = None;
                was_revoked.then_some(Effect::Restore)
            }
            Source::OfflineCopy => {
                // It stands in for an upstream that gave no answer, whoever forgot to say so.
                if self.fault.is_none() {
                    self.failed(FaultClass::Unreachable, now);
                }
                self.loaded = true;
                self.custody_lost = None;
                None
            }
            Source::Custody => {
                self.loaded = true;
                self.custody_lost = None;
                None
            }
        }
    }

    fn take_failure(&mut self, class: FaultClass, now: Instant) -> Option<Effect> {
        self.failed(class, now);
        let confirmed = match class {
            FaultClass::KeyDisabled | FaultClass::KeyGone => self.proven,
            FaultClass::Denied => self.proven && self.denied(now),
            FaultClass::Unreachable
            | FaultClass::CredentialFault
            | FaultClass::Billing
            | FaultClass::Corrupt
            | FaultClass::Unclassified => false,
        };
        if !confirmed {
            return None;
        }
        let known = self.is_revoked();
        self.revoked = Some(Some(class));
        (!known).then_some(Effect::Revoke)
    }
}
