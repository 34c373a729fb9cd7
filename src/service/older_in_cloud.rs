//! The active generation's root is in custody, and older ones have theirs in the cloud: the key came back from there, and not
//! every Secret is rewritten yet. What is served goes by custody alone. The older generations go by the cloud, the lease and
//! the marker as ever; they are shut off, and wiped, where the whole key would be.

use std::time::Duration;

use keystead_core::FaultClass;
use keystead_core::availability::{Observation, Past, Root};
use keystead_core::keyring::{Generation, Keyring};
use keystead_core::upstream_state::UpstreamState;

use super::cloud::Cloud;
use super::keys::{Closed, Keys};
use super::lifecycle::Lifecycle;

const NO_UPSTREAM: &str = "the root is in the cloud, and the configuration has no [upstream]. `keystead roots list` says \
     whether objects in etcd need them; if so, put [upstream] back";
const NOT_ASKED: &str = "the root is in the cloud, which is asked first";

impl Lifecycle {
    /// Begins as [`Self::start_in_cloud`] does, for the older generations alone: nothing here can keep the active one from
    /// being served. They stay shut until the cloud has been asked once.
    pub(super) fn remember_cloud(&self, keyring: &Keyring) {
        self.observe(Observation::Rooted(Root::Custody), String::new(), None);
        let state = keyring.upstream.as_ref().filter(|_| keyring.needs_cloud());
        let held = match (&self.cloud, state) {
            (_, None) => None,
            (None, Some(_)) => Some(Closed { reason: NO_UPSTREAM.into(), passes: false }),
            (Some(cloud), Some(state)) => {
                self.marker.prepare();
                cloud.adopt(state, cloud.clock.now());
                let (past, told) = self.past(cloud, state);
                self.observe(Observation::Remembered(past), told, None);
                self.check_older_lease(cloud);
                Some(Closed { reason: NOT_ASKED.into(), passes: true })
            }
        };
        self.machine.hold_cloud(held);
    }

    /// What record and marker say of the past, and in words what of a revocation.
    pub(super) fn past(&self, cloud: &Cloud, state: &UpstreamState) -> (Past, String) {
        let revoked = match &state.revoked {
            Some(revocation) => Some(Some(revocation.class)),
            None => self.marker.is_raised().then_some(None),
        };
        let (now, written) = (cloud.clock.now(), state.lease.seen());
        let same_boot = now.boot == written.boot && now.boot_time >= written.boot_time;
        let past = Past {
            proven: state.proven == Some(cloud.digest),
            denials: state.denials,
            written: same_boot.then(|| Duration::from_secs(written.boot_time)),
            revoked,
        };
        let told = match &state.revoked {
            Some(revocation) => format!("{}: {}", revocation.class, revocation.code),
            None => "told by the marker in the store's folder".to_owned(),
        };
        (past, told)
    }

    fn check_older_lease(&self, cloud: &Cloud) {
        if cloud.count_lease(cloud.clock.now()).is_none_or(|lease| lease.is_used_up()) {
            self.observe(Observation::LeaseUsedUp, String::new(), None);
        }
    }

    /// Opens what was shut at the start, once the cloud has answered, or given no answer: then its offline copies stand in
    /// for it, after what this boot has cost is stored. Needs the turn.
    pub(super) async fn release_cloud(&self) {
        let Some(cloud) = self.cloud.as_ref().filter(|_| self.machine.holds_cloud()) else { return };
        let Some(keyring) = self.keyring() else { return };
        let (fault, asked, unstored) = {
            let memory = cloud.memory();
            (memory.last_fault.clone(), memory.last_contact.is_some(), memory.boot_unstored)
        };
        match fault {
            None if !asked && keyring.needs_cloud() => return,
            Some(fault) if fault.class == FaultClass::Corrupt => {
                // Not an upstream that is away: what it was sent, or what it answered, is wrong.
                let reason = format!("the root is in the cloud, which does not open them: {}", fault.detail);
                return self.machine.hold_cloud(Some(Closed { reason, passes: false }));
            }
            _ => {}
        }
        if unstored
            && keyring.needs_cloud()
            && self.machine.state().opens_cloud()
            && !self.store_boot(cloud, keyring).await
        {
            return;
        }
        self.machine.hold_cloud(None);
    }

    /// Shows what a revocation has left in the record. The active generation, if it is served, is served on.
    pub(super) fn show_shredded(&self, next: Keyring) {
        let serving = self.keys.serving();
        let earlier = serving.keys.as_deref().filter(|_| serving.availability.serves());
        let active = |keyring: &Keyring| keyring.active().map(|active| active.key_id.clone());
        match earlier {
            Some(earlier) if active(&earlier.keyring) != active(&next) => {
                // A change that failed half-way is settled first: no door is opened to a key that is not in memory.
                self.reload_needed.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            earlier => self.publish_keyring(Keys::new(next, earlier)),
        }
    }

    /// Whether a generation may be opened by what is here.
    pub(super) fn may_open(&self, generation: &Generation) -> bool {
        generation.decrypts() && !(generation.is_rooted_in_cloud() && self.keys.serving().cloud_closed.is_some())
    }
}
