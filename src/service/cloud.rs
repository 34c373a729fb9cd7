//! The upstream as the service sees it: what is asked of it, when, and what is remembered of its answers.
//!
//! Asking changes nothing but this memory and the availability machine: it needs no disk and no custody, so that none of
//! them can delay what the upstream has to say. [`super::lease`] stores the memory, [`super::revocation`] acts on the worst.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use keystead_core::grant::GrantKey;
use keystead_core::keyring::{Generation, Keyring};
use keystead_core::lease::{Clocks, Lease, LeaseAlarm};
use keystead_core::upstream_state::{ConfigurationDigest, MAX_CODE_LEN, Revocation, UpstreamState};
use keystead_core::{FaultClass, Kek, WrappedKek};
use sha2::{Digest, Sha256};

use super::clock::{Clock, KnownTime, WithDevice};
use crate::upstream::contract::{Upstream, UpstreamError, UpstreamIdentity};

/// Our own word for a generation under another cloud key than the configuration's.
pub(super) const OTHER_ROOT: &str = "OtherRoot";
/// How often the newest key version is asked for where unwraps do not tell it.
const DESCRIBE_EVERY: u64 = 3600;
/// After an answer that is a refusal, this soon again at the latest: such calls are counted and paid for.
const REFUSED_AGAIN: Duration = Duration::from_secs(300);
/// Between tries to make missing copies, and to shred those of a revoked key.
const RESTORE_AGAIN: u64 = 60;
const SHRED_AGAIN: u64 = 2;

/// How the lease is kept up.
#[derive(Debug, Clone)]
pub struct CloudSettings {
    /// What a renewal fills the lease to.
    pub lease: Duration,
    pub renew_every: Duration,
    /// How often an upstream that gives no answer is asked again, at the latest.
    pub probe_interval: Duration,
    pub on_key_version: OnKeyVersion,
    /// Enrolled when a keyring first gets a root in the cloud; afterwards the record's counts.
    pub grant_key: Option<GrantKey>,
    /// Shared with whoever checks certificates.
    pub known_time: KnownTime,
}

impl CloudSettings {
    /// How long to wait after a failure.
    fn pause_after(&self, error: &UpstreamError) -> Duration {
        let own = match error.class {
            FaultClass::Unreachable => jittered(self.probe_interval, 0.6, 1.0),
            _ => jittered(self.renew_every.min(REFUSED_AGAIN), 0.8, 1.0),
        };
        // Nobody on the way may silence us for longer than between two renewals: a revocation is to be heard in that time.
        own.max(error.retry_after.unwrap_or_default().min(self.renew_every))
    }
}

/// What a new version of the cloud key leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnKeyVersion {
    /// A new generation.
    Follow,
    /// A word in status.
    Announce,
}

/// An upstream, its settings, and what is known of it.
pub(super) struct Cloud {
    pub upstream: Arc<dyn Upstream>,
    pub settings: CloudSettings,
    pub clock: WithDevice,
    pub digest: ConfigurationDigest,
    memory: Mutex<Memory>,
}

/// What is known now. The record follows; while this process lives, this is what counts.
#[derive(Default)]
pub(super) struct Memory {
    /// `None` before a record was read.
    pub lease: Option<Lease>,
    pub server_time: u64,
    /// What a new boot has cost is not stored yet in an epoch of its own, nor made up for by the upstream: until it is,
    /// nothing may be served from an offline copy.
    pub boot_unstored: bool,
    /// A version of the key that no generation was made for.
    pub pending_version: Option<String>,
    pub revocation: Option<Revocation>,
    /// The upstream gave back what it had revoked; the record does not say so yet.
    pub restore: bool,
    /// Something that should be stored at once.
    pub dirty: bool,
    /// Boot time of the last store, and before which the next one is not tried.
    pub stored: Option<u64>,
    pub store_not_before: u64,
    pub alarm: Option<LeaseAlarm>,
    pub last_fault: Option<LastFault>,
    /// Boot times.
    pub last_contact: Option<u64>,
    described: Option<u64>,
    pub follow_not_before: u64,
    restore_not_before: u64,
    shred_not_before: u64,
    /// The revocation is in the record, and its copies are gone.
    pub shredded: bool,
    /// Boot time; not asked before.
    pub ask_at: Duration,
}

/// The upstream's last failure, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastFault {
    pub class: FaultClass,
    pub code: String,
    pub detail: String,
}

/// The cloud side at one instant, for status and metrics.
#[derive(Debug, Clone)]
pub struct CloudReport {
    pub identity: UpstreamIdentity,
    pub lease_left: Duration,
    pub lease_length: Duration,
    pub alarm: LeaseAlarm,
    /// Seconds since the upstream last opened the key; `None` if not since the start.
    pub last_contact: Option<Duration>,
    /// Seconds since it first failed, and how it last did.
    pub fault: Option<(Duration, FaultClass)>,
    pub last_fault: Option<LastFault>,
    /// This very configuration has opened the key before.
    pub proven: bool,
    /// Refusals that are not yet a revocation.
    pub denials: u32,
    pub revoked: Option<Revocation>,
    /// A version of the key for which there is no generation yet.
    pub pending_version: Option<String>,
    /// Every generation that decrypts has an offline copy or does not need one: a restart without the cloud would find
    /// them all.
    pub copies_complete: bool,
    /// What memory knows and the record does not yet.
    pub unstored: bool,
}

impl Cloud {
    pub fn new(upstream: Arc<dyn Upstream>, settings: CloudSettings, clock: Arc<dyn Clock>) -> Self {
        let digest = configuration_digest(upstream.identity());
        Self { upstream, settings, clock: WithDevice::new(clock), digest, memory: Mutex::default() }
    }

    /// Never held across an `.await`, nor while anything blocks.
    pub fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// [`open`] by this upstream.
    pub async fn open(&self, keyring: &Keyring, generation: &Generation) -> Result<Opened, UpstreamError> {
        open(&*self.upstream, keyring, generation).await
    }

    /// The newest version of the key, where unwraps do not tell it and it is time to ask.
    pub async fn described_version(&self, now: &Clocks) -> Option<String> {
        {
            let mut memory = self.memory();
            if memory.described.is_some_and(|last| now.boot_time.saturating_sub(last) < DESCRIBE_EVERY) {
                return None;
            }
            memory.described = Some(now.boot_time);
        }
        // Nothing hangs on it: the unwrap is what counts.
        self.upstream.describe().await.ok()?.key_version
    }

    /// Takes over what the record says of the past, once: afterwards memory knows better.
    pub fn adopt(&self, state: &UpstreamState, now: Clocks) {
        self.settings.known_time.passed(state.server_time);
        let mut memory = self.memory();
        if memory.lease.is_some() {
            return;
        }
        let mut lease = state.lease.clone();
        let counted = lease.count(now);
        tracing::info!(
            taken_seconds = counted.taken,
            new_boot = counted.new_boot,
            left_seconds = lease.left().as_secs(),
            "lease read"
        );
        memory.stored = Some(state.lease.seen().boot_time).filter(|_| !counted.new_boot);
        memory.boot_unstored = counted.new_boot;
        memory.server_time = state.server_time;
        memory.revocation = state.revoked.clone();
        memory.shredded = state.revoked.is_some() && state.copies.is_empty();
        memory.lease = Some(lease);
    }

    /// Refills the lease.
    pub fn note_success(&self, opened: &Opened, state: Option<&UpstreamState>, now: Clocks) {
        let pause = jittered(self.settings.renew_every, 0.8, 1.2);
        let mut memory = self.memory();
        memory.ask_at = Duration::from_secs(now.boot_time) + pause;
        memory.last_contact = Some(now.boot_time);
        if memory.last_fault.take().is_some() || state.is_some_and(|state| state.proven != Some(self.digest)) {
            memory.dirty = true;
        }
        memory.alarm = None;
        memory.boot_unstored = false;
        if let Some(time) = opened.server_time {
            self.settings.known_time.passed(time);
            memory.server_time = time;
        }
        match &mut memory.lease {
            Some(lease) => lease.renew(self.settings.lease, now),
            None => memory.lease = Some(Lease::full(self.settings.lease, now)),
        }
    }

    /// Remembers a version of the key that is not known yet.
    pub fn note_version(&self, version: Option<&str>, state: Option<&UpstreamState>) {
        let (Some(version), Some(state)) = (version, state) else { return };
        let known = &state.key_versions;
        if known.is_empty() || known.iter().any(|each| each == version) {
            return;
        }
        let mut memory = self.memory();
        if memory.pending_version.as_deref() != Some(version) {
            tracing::warn!(version, policy = ?self.settings.on_key_version, "the cloud key has a new version");
            memory.pending_version = Some(version.to_owned());
        }
    }

    pub fn note_failure(&self, error: &UpstreamError, now: &Clocks) {
        let pause = self.settings.pause_after(error);
        let fault = LastFault { class: error.class, code: cut(&error.code), detail: error.detail.clone() };
        let mut memory = self.memory();
        memory.ask_at = Duration::from_secs(now.boot_time) + pause;
        if memory.last_fault.as_ref() != Some(&fault) {
            tracing::warn!(class = %error.class, code = error.code, detail = error.detail, "the upstream did not open the key");
            // The first refusal is worth a write: a restart must not forget it.
            memory.dirty |= error.class == FaultClass::Denied;
            memory.last_fault = Some(fault);
        }
    }

    /// What took the key away, for the record.
    pub fn note_revocation(&self, error: &UpstreamError, now: &Clocks) {
        let revocation = Revocation { since: now.wall, class: error.class, code: cut(&error.code) };
        self.memory().revocation.get_or_insert(revocation);
    }

    /// Brings the countdown to `now`; `None` before a record was read.
    pub fn count_lease(&self, now: Clocks) -> Option<Lease> {
        let mut memory = self.memory();
        let lease = memory.lease.as_mut()?;
        let counted = lease.count(now);
        let lease = lease.clone();
        if let Some(seconds) = counted.stepped {
            tracing::warn!(seconds, "the wall clock stepped; the lease goes by boot time and is not moved by it");
        }
        if memory.alarm.is_some_and(|before| lease.alarm() > before) || memory.alarm.is_none() {
            if lease.alarm() > LeaseAlarm::None {
                tracing::error!(used = ?lease.alarm(), left_seconds = lease.left().as_secs(), "lease alarm");
            }
            memory.alarm = Some(lease.alarm());
        }
        Some(lease)
    }

    /// Whether to try again to make the copies that are missing; each try may cost a call a generation.
    pub fn may_restore(&self, now: &Clocks) -> bool {
        let mut memory = self.memory();
        let may = now.boot_time >= memory.restore_not_before;
        if may {
            memory.restore_not_before = now.boot_time + RESTORE_AGAIN;
        }
        may
    }

    /// Whether to try (again) to shred what the record still holds.
    pub fn may_shred(&self, now: &Clocks) -> bool {
        let mut memory = self.memory();
        let may = !memory.shredded && now.boot_time >= memory.shred_not_before;
        if may {
            memory.shred_not_before = now.boot_time + SHRED_AGAIN;
        }
        may
    }
}

impl Memory {
    pub fn note_stored(&mut self, now: u64) {
        self.stored = Some(now);
        self.dirty = false;
        self.store_not_before = 0;
    }

    /// In a new epoch: no record that knows less of the lease is believed any more.
    pub fn note_rolled(&mut self, now: u64) {
        self.note_stored(now);
        self.boot_unstored = false;
    }

    /// The record says that the key is not revoked any more, and the marker is down.
    pub fn given_back(&mut self) {
        self.restore = false;
        self.revocation = None;
        self.shredded = false;
        self.restore_not_before = 0;
    }
}

/// What the upstream gave.
pub(super) struct Opened {
    pub kek: Kek,
    pub key_version: Option<String>,
    /// Unix seconds.
    pub server_time: Option<u64>,
}

/// Has the upstream open a generation, and holds the KEK against its commitment. Remembers nothing.
pub(super) async fn open(
    upstream: &dyn Upstream,
    keyring: &Keyring,
    generation: &Generation,
) -> Result<Opened, UpstreamError> {
    let identity = upstream.identity();
    let is_root = |wrap: &&WrappedKek| (wrap.root_kind, &wrap.root_id) == (identity.kind, &identity.root_id);
    let wrap = generation.upstream_wrap().filter(is_root).ok_or_else(|| {
        let detail = "the generation is wrapped under another cloud key than the one configured";
        UpstreamError::new(FaultClass::Unclassified, OTHER_ROOT, detail)
    })?;
    let context = generation.wrap_context(&keyring.keyring, wrap);
    let unwrapped = upstream.unwrap(&wrap.bytes, &context).await?;
    if unwrapped.kek.commitment() != generation.commitment {
        let detail = "the cloud answered with a key that is not this generation's";
        return Err(UpstreamError::new(FaultClass::Corrupt, "OtherKey", detail));
    }
    let server_time = unwrapped.server_time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    Ok(Opened {
        kek: unwrapped.kek,
        key_version: unwrapped.key_version,
        server_time: server_time.map(|time| time.as_secs()),
    })
}

/// The cloud's side of a keyring that gets its first root there.
pub(super) fn first_state(
    identity: &UpstreamIdentity,
    lease: Duration,
    grant_key: Option<GrantKey>,
    now: Clocks,
) -> UpstreamState {
    UpstreamState {
        root_kind: identity.kind,
        root_id: identity.root_id.clone(),
        proven: None,
        grant_key,
        lease: Lease::full(lease, now),
        server_time: 0,
        denials: None,
        revoked: None,
        key_versions: Vec::new(),
        copies: Vec::new(),
    }
}

/// What makes two configurations the same: the key, its account and instance, and where it is asked for.
pub fn configuration_digest(identity: &UpstreamIdentity) -> ConfigurationDigest {
    let mut digest = Sha256::new().chain_update(b"keystead-upstream\x01").chain_update([u8::from(identity.kind)]);
    let (named, region, endpoint) = (&identity.named, &identity.region, &identity.endpoint);
    for field in [identity.root_id.as_bytes(), named.as_bytes(), region.as_bytes(), endpoint.as_bytes()] {
        digest.update((field.len() as u16).to_be_bytes());
        digest.update(field);
    }
    ConfigurationDigest(digest.finalize().into())
}

/// Between `low` and `high` times `pause`, so that sites that lost the cloud together do not come back together.
fn jittered(pause: Duration, low: f64, high: f64) -> Duration {
    let mut bytes = [0; 4];
    // Without randomness the pause is the longest allowed.
    let random = match getrandom::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 1.0,
    };
    pause.mul_f64(low + (high - low) * random)
}

/// A service's code, short and printable.
fn cut(code: &str) -> String {
    code.chars().filter(|each| each.is_ascii_graphic()).take(MAX_CODE_LEN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_that_wants_to_be_left_alone_is_for_no_longer_than_between_two_renewals() {
        let settings = CloudSettings {
            lease: Duration::from_secs(72 * 3600),
            renew_every: Duration::from_secs(600),
            probe_interval: Duration::from_secs(15),
            on_key_version: OnKeyVersion::Announce,
            grant_key: None,
            known_time: KnownTime::new(0),
        };
        let pause = |class, retry_after| {
            let retry_after = Some(Duration::from_secs(retry_after));
            settings
                .pause_after(&UpstreamError { retry_after, ..UpstreamError::new(class, "Throttling", "") })
                .as_secs()
        };
        assert!((9..=15).contains(&pause(FaultClass::Unreachable, 0)));
        assert_eq!(pause(FaultClass::Unreachable, 60), 60);
        assert_eq!(pause(FaultClass::Unreachable, 86_400), 600);
        assert!((240..=300).contains(&pause(FaultClass::Denied, 60)), "it shortens nothing");
    }

    #[test]
    fn pauses_stay_within_their_bounds_and_differ() {
        let pause = Duration::from_secs(15);
        let drawn: Vec<_> = (0..200).map(|_| jittered(pause, 0.6, 1.0)).collect();
        assert!(drawn.iter().all(|each| (pause.mul_f64(0.6)..=pause).contains(each)));
        assert!(drawn.iter().min() < drawn.iter().max());
    }

    /// Whatever may be mistyped makes another configuration of it, which can revoke nothing.
    #[test]
    fn configurations_differ_by_key_name_region_endpoint_and_by_where_one_ends() {
        let identity = |id: &str, named: &str, region: &str, endpoint: &str| UpstreamIdentity {
            kind: keystead_core::RootKind::IbmKeyProtect,
            root_id: keystead_core::RootId::new(id.as_bytes()).unwrap(),
            named: named.into(),
            provider: "test",
            region: region.into(),
            endpoint: endpoint.into(),
        };
        let all = [
            identity("key", "instance/key", "eu", "https://a"),
            identity("kez", "instance/key", "eu", "https://a"),
            identity("key", "instancf/key", "eu", "https://a"),
            identity("key", "instance/key", "us", "https://a"),
            identity("key", "instance/key", "eu", "https://b"),
            identity("key", "instance/ke", "yeu", "https://a"),
        ];
        let digests: std::collections::BTreeSet<_> = all.iter().map(|each| configuration_digest(each).0).collect();
        assert_eq!(digests.len(), all.len());
        let aws = UpstreamIdentity { kind: keystead_core::RootKind::AwsKms, ..all[0].clone() };
        assert_ne!(configuration_digest(&aws).0, configuration_digest(&all[0]).0);
    }

    #[test]
    fn codes_are_cut_and_cleaned() {
        assert_eq!(cut("Forbidden.KeyNotFound"), "Forbidden.KeyNotFound");
        assert_eq!(cut("a\nb\u{1b}c é"), "abc");
        assert_eq!(cut(&"x".repeat(1000)).len(), MAX_CODE_LEN);
    }
}
