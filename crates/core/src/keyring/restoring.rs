//! A record that was refused as rolled back, taken over by a person's word. Nobody vouches for what it says: what gives
//! rights is not taken from it, and it never comes back in service by itself.

use super::{Disabling, Generation, GenerationState, Keyring, RecoveryRoot, TokenIdentity};
use crate::backup::Backup;
use crate::id::{GenerationNumber, KeyId};
use crate::recovery::last_number;
use crate::upstream_state::UpstreamState;

/// What a record that is taken over does not say for itself.
#[derive(Debug, Clone)]
pub struct Takeover {
    /// Above every one that custody knows.
    pub epoch: u64,
    pub token: TokenIdentity,
    /// As the person says: an old record could name a recovery key of somebody else.
    pub recovery: RecoveryRoot,
    /// Of the cloud root as it is configured, with no copy and no lease of the past.
    pub upstream: Option<UpstreamState>,
    /// Generation numbers seen anywhere else: on the token, in etcd.
    pub seen: Vec<GenerationNumber>,
    pub disabled: Disabling,
}

impl Keyring {
    /// The keyring that goes on from this record: its generations decrypt, none encrypts, and the whole key is disabled. The
    /// next generation's number is above every one that was seen. `opens`: those whose key was opened just now.
    pub fn taken_over(&self, takeover: Takeover, opens: impl Fn(&KeyId) -> bool) -> Self {
        let opened = self.generations.iter().filter(|each| opens(&each.key_id)).map(|each| each.number);
        let named = self.generations.iter().map(|each| each.number).chain([self.last_number]);
        let last_number = last_number(opened, named.chain(takeover.seen.iter().copied()));
        let goes_on = |each: &&Generation| each.state != GenerationState::Prepared && each.number <= last_number;
        let generations = self.generations.iter().filter(goes_on).cloned().map(|mut each| {
            if matches!(each.state, GenerationState::Active | GenerationState::PendingDeletion) {
                each.state = GenerationState::Retired;
            }
            // Nothing is destroyed on the word of a record that nobody vouches for.
            each.pending = None;
            if let Some(tombstone) = &mut each.tombstone {
                tombstone.left = None;
            }
            each
        });
        let known = |backup: &&Backup| backup.generations.iter().all(|number| *number <= last_number);
        let backups = self.backups.iter().filter(known).cloned().collect();
        let custody_only = self.custody_only && takeover.upstream.is_none();
        Self {
            keyring: self.keyring.clone(),
            node: self.node.clone(),
            revision: 1,
            epoch: takeover.epoch,
            token: takeover.token,
            recovery: takeover.recovery,
            custody_only,
            last_number,
            rotation: None,
            // Older than what it would be asked for.
            scan: None,
            upstream: takeover.upstream,
            disabled: Some(takeover.disabled),
            backups,
            generations: generations.collect(),
            audit: None,
        }
    }
}
