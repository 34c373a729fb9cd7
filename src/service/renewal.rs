//! The renewal loop: a real unwrap of the active generation every few minutes while it is served, or disabled by an admin. It waits for no disk and
//! no custody; when nothing is served, a start asks instead (see [`super::lifecycle`]).

use std::sync::Arc;
use std::time::Duration;

use keystead_core::availability::{Availability, Effect, Observation};
use keystead_core::keyring::Keyring;

use super::cloud::{Cloud, OnKeyVersion, Opened};
use super::lifecycle::Lifecycle;
use crate::upstream::contract::UpstreamError;

/// The lease is looked at this often.
const LOOK: Duration = Duration::from_secs(1);
/// A new generation for a new key version is tried this often.
const FOLLOW_AGAIN: u64 = 300;

/// Runs for the life of the server; at once over if there is no upstream.
pub async fn renew(lifecycle: Arc<Lifecycle>) {
    while let Some(pause) = lifecycle.renew_once().await {
        tokio::time::sleep(pause).await;
    }
}

impl Lifecycle {
    /// Looks at the lease, and asks the upstream if it is time to. Returns how long to wait; `None` without an upstream.
    pub async fn renew_once(&self) -> Option<Duration> {
        let cloud = self.cloud.as_ref()?;
        self.check_lease();
        let serving = self.keys.serving();
        // A disabled key is asked for as well: the lease is kept, and a revocation is heard.
        let asks = serving.availability.serves() || serving.availability == Availability::Disabled;
        let Some(keys) = serving.keys.as_ref().filter(|_| asks) else { return Some(LOOK) };
        let wait = cloud.memory().ask_at.saturating_sub(self.now());
        if !keys.keyring.needs_cloud() || !wait.is_zero() {
            return Some(wait.clamp(Duration::from_millis(50), LOOK));
        }
        match self.ask(cloud, &keys.keyring).await {
            Ok(_) => {
                fail::fail_point!("renewal.answered");
                if self.machine.observe(Observation::Renewed, String::new(), None, self.now()) == Some(Effect::Restore)
                {
                    // Of older generations, while the active one is served: else a start finds out.
                    cloud.memory().restore = true;
                    self.wake.notify_one();
                }
                let availability = self.keys.serving().availability;
                if !availability.serves() && availability != Availability::Disabled {
                    // The lease ran out meanwhile, and its keys are gone: a start is to ask again at once.
                    cloud.memory().ask_at = Duration::ZERO;
                    self.wake.notify_one();
                }
            }
            Err(error) => self.upstream_failed(&error).await,
        }
        if self.machine.holds_cloud() {
            self.wake.notify_one();
        }
        self.check_lease();
        Some(LOOK.min(Duration::from_millis(50).max(cloud.memory().ask_at.saturating_sub(self.now()))))
    }

    /// Has the upstream open the newest generation that is rooted there, the active one as a rule, and remembers that it did. A
    /// failure is the caller's to tell.
    pub(super) async fn ask(&self, cloud: &Cloud, keyring: &Keyring) -> Result<Opened, UpstreamError> {
        let newest = keyring.newest_in_cloud().ok_or_else(|| {
            UpstreamError::new(keystead_core::FaultClass::Unclassified, "NoGeneration", "no generation is rooted there")
        })?;
        let opened = cloud.open(keyring, newest).await?;
        let now = cloud.clock.now();
        cloud.note_success(&opened, keyring.upstream.as_ref(), now.clone());
        if !keyring.is_rooted_in_cloud() {
            // New versions matter to new generations, which are made elsewhere.
            return Ok(opened);
        }
        let version = match &opened.key_version {
            Some(version) => Some(version.clone()),
            None => cloud.described_version(&now).await,
        };
        cloud.note_version(version.as_deref(), keyring.upstream.as_ref());
        Ok(opened)
    }

    /// [`Self::ask`], and a failure is told and acted upon. Before it is time to ask again, the last failure still stands.
    pub(super) async fn ask_or_remember(&self, cloud: &Cloud, keyring: &Keyring) -> Result<Opened, UpstreamError> {
        let remembered = {
            let memory = cloud.memory();
            memory.last_fault.clone().filter(|_| memory.ask_at > self.now())
        };
        if let Some(fault) = remembered {
            return Err(UpstreamError::new(fault.class, fault.code, fault.detail));
        }
        let outcome = self.ask(cloud, keyring).await;
        if let Err(error) = &outcome {
            self.upstream_failed(error).await;
        }
        outcome
    }

    /// Makes a new generation if the cloud key has a new version, and the site wants to follow. Called beside [`Self::tend`].
    pub async fn follow_key_version(&self) {
        let Some(cloud) = &self.cloud else { return };
        let now = cloud.clock.now().boot_time;
        {
            let mut memory = cloud.memory();
            let rotates = self.keys.serving().keys.as_ref().is_some_and(|keys| keys.keyring.is_rooted_in_cloud());
            let follows = cloud.settings.on_key_version == OnKeyVersion::Follow;
            let wanted = follows && rotates && memory.pending_version.is_some();
            if !wanted || now < memory.follow_not_before || self.keys.serving().availability != Availability::Online {
                return;
            }
            memory.follow_not_before = now + FOLLOW_AGAIN;
        }
        match self.rotate(None, |_| ()).await {
            Ok(generation) => tracing::info!(generation = %generation.number, "followed the cloud key's new version"),
            Err(error) => tracing::warn!(%error, "the cloud key's new version is not followed yet; it is tried again"),
        }
    }
}
