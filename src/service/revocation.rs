//! Revocation, in the order that no fault can turn round: refuse and wipe at once, in memory; raise the marker, which needs
//! neither space nor custody; roll the epoch without offline copies, which shreds them. What fails is tried again for as
//! long as it takes. Nothing here is undone but by a real unwrap.

use keystead_core::FaultClass;
use keystead_core::availability::{Effect, Observation};
use keystead_core::upstream_state::Revocation;

use super::explain::explain;
use super::lifecycle::Lifecycle;
use crate::upstream::contract::UpstreamError;

impl Lifecycle {
    /// Tells the machine of a failure of the upstream, and acts if it takes the key away. Needs neither turn nor custody.
    pub(super) async fn upstream_failed(&self, error: &UpstreamError) {
        let Some(cloud) = &self.cloud else { return };
        let now = cloud.clock.now();
        cloud.note_failure(error, &now);
        let reason = format!("the cloud does not open the key: {error}");
        let effect = self.machine.observe(Observation::UpstreamFailed(error.class), reason, None, self.now());
        if effect != Some(Effect::Revoke) {
            return;
        }
        tracing::error!(class = %error.class, code = error.code, "the cloud has revoked the key: refused, and wiped from memory");
        cloud.note_revocation(error, &now);
        cloud.memory().shredded = false;
        fail::fail_point!("revocation.refused");
        self.marker.raise().await;
        fail::fail_point!("revocation.marked");
        self.wake.notify_one();
    }

    /// Brings disk and custody to what memory knows already: the marker, then the roll. Needs the turn.
    pub(super) async fn shred(&self) {
        let Some(cloud) = &self.cloud else { return };
        if !self.machine.state().is_revoked() || !cloud.may_shred(&cloud.clock.now()) {
            return;
        }
        self.marker.raise().await;
        let mut next = match self.records.load().await {
            Ok(keyring) => keyring,
            Err(error) => {
                return tracing::warn!(
                    error = explain(&error),
                    "the offline copies cannot be shredded yet; it is tried again"
                );
            }
        };
        let revocation = cloud.memory().revocation.clone();
        let Some(state) = &mut next.upstream else { return };
        if state.revoked.is_none() || !state.copies.is_empty() {
            let unknown = || Revocation {
                since: cloud.clock.now().wall,
                class: FaultClass::Unclassified,
                code: "marker".to_owned(),
            };
            state.revoked = Some(revocation.or(state.revoked.clone()).unwrap_or_else(unknown));
            state.denials = None;
            state.copies.clear();
            // A prepared generation has lost its copy as well; it is settled when the key is back.
            next = match self.records.roll(next).await {
                Ok(keyring) => keyring,
                Err(error) => {
                    return tracing::warn!(
                        error = explain(&error),
                        "the offline copies cannot be shredded yet; it is tried again"
                    );
                }
            };
            fail::fail_point!("revocation.shredded");
            tracing::warn!(epoch = next.epoch, "the offline copies are shredded");
        }
        self.records.settle_debt(&next).await;
        self.show_shredded(next);
        cloud.memory().shredded = true;
    }

    /// Whether the key is revoked, and disk and custody do not know it yet.
    pub(super) fn owes_shredding(&self) -> bool {
        self.machine.state().is_revoked() && self.cloud.as_ref().is_some_and(|cloud| !cloud.memory().shredded)
    }

    /// Unless the upstream has revoked anew since: checked under the lock that raising takes.
    pub(super) fn take_marker_down(&self) {
        match self.marker.take_down_if(|| !self.machine.state().is_revoked()) {
            Ok(true) => {
                if let Some(cloud) = &self.cloud {
                    cloud.memory().given_back();
                }
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(error = explain(&error), "the revocation's marker cannot be taken down yet"),
        }
    }
}
