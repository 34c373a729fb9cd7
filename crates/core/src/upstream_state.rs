//! What the record keeps of a keyring's cloud root: which one it is, how much of the lease is left, what was refused, and
//! the offline copies. Absent in the record of a keyring that never had one.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::grant::GrantKey;
use crate::hex;
use crate::id::{GenerationNumber, RootId, RootKind};
use crate::lease::Lease;
use crate::offline_copy::OfflineCopy;
use crate::upstream::FaultClass;

/// Key versions that are remembered as seen.
const MAX_VERSIONS: usize = 16;
/// Of a service's error code, longest kept.
pub const MAX_CODE_LEN: usize = 128;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamState {
    /// The key that the newest generation in the cloud is wrapped under.
    pub root_kind: RootKind,
    pub root_id: RootId,
    /// The configuration that has opened the key before, by digest: only that one can revoke.
    pub proven: Option<ConfigurationDigest>,
    /// Signs lease grants; absent if none was enrolled.
    pub grant_key: Option<GrantKey>,
    pub lease: Lease,
    /// The cloud's clock at the last contact, in Unix seconds; 0 if it never said. Certificates are checked at that time at
    /// least: a clock that fell back to 1970 then does not lock the site out, nor bring an expired certificate back.
    pub server_time: u64,
    /// Refusals that are not yet a revocation.
    pub denials: Option<Denials>,
    pub revoked: Option<Revocation>,
    /// Versions of the cloud key that were seen, the newest last. Each makes one new generation at most.
    pub key_versions: Vec<String>,
    /// Sealed under the record's epoch. None while revoked.
    pub copies: Vec<OfflineCopy>,
}

/// SHA-256 over what makes two configurations of an upstream the same; see docs/envelope-format.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ConfigurationDigest(#[serde(with = "hex")] pub [u8; 32]);

/// `Denied` answers so far, none of them taken back by a success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Denials {
    pub count: u32,
    /// Seconds between the first and the last, as far as one boot's clock could measure them.
    pub spread: u64,
}

/// Why the key may not be used until the cloud opens it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocation {
    /// Unix seconds; for people.
    pub since: u64,
    pub class: FaultClass,
    /// The service's own code, cut to [`MAX_CODE_LEN`].
    pub code: String,
}

impl Denials {
    pub fn spread(&self) -> Duration {
        Duration::from_secs(self.spread)
    }
}

impl UpstreamState {
    /// Remembers a version of the key; true if it was not known and is not the first.
    pub fn note_version(&mut self, version: &str) -> bool {
        if self.key_versions.iter().any(|known| known == version) {
            return false;
        }
        let is_new = !self.key_versions.is_empty();
        self.key_versions.push(version.to_owned());
        let excess = self.key_versions.len().saturating_sub(MAX_VERSIONS);
        self.key_versions.drain(..excess);
        is_new
    }

    pub fn copy_of(&self, generation: GenerationNumber) -> Option<&OfflineCopy> {
        self.copies.iter().find(|copy| copy.generation == generation)
    }

    /// Files a copy in the place of the one there was.
    pub fn put_copy(&mut self, copy: OfflineCopy) {
        self.copies.retain(|each| each.generation != copy.generation);
        self.copies.push(copy);
    }

    /// What is wrong with it, if anything: run on every record that is read.
    pub fn problem(&self) -> Option<&'static str> {
        if !self.root_kind.is_upstream() {
            return Some("its upstream root is of a kind that no cloud has");
        }
        if !self.lease.is_sound() {
            return Some("its lease is longer than it can be");
        }
        if self.revoked.is_some() && !self.copies.is_empty() {
            return Some("it is revoked and still has offline copies");
        }
        if self.key_versions.len() > MAX_VERSIONS {
            return Some("it remembers more key versions than it can");
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::Clocks;

    fn state() -> UpstreamState {
        let now = Clocks { boot: "b".into(), boot_time: 0, wall: 0, device: None, resets: None };
        UpstreamState {
            root_kind: RootKind::from(16),
            root_id: RootId::new(b"key").unwrap(),
            proven: None,
            grant_key: None,
            lease: Lease::full(Duration::from_secs(60), now),
            server_time: 0,
            denials: None,
            revoked: None,
            key_versions: Vec::new(),
            copies: Vec::new(),
        }
    }

    #[test]
    fn key_version_counts_as_new_once_and_never_for_the_first() {
        let mut state = state();
        assert!(!state.note_version("1"), "the first is where it begins");
        assert!(state.note_version("2"));
        // Answers of replicas that lag behind.
        for _ in 0..20 {
            assert!(!state.note_version("1") && !state.note_version("2"));
        }
        for number in 3..100 {
            assert!(state.note_version(&number.to_string()));
            assert!(state.problem().is_none());
        }
    }

    #[test]
    fn revoked_state_with_copies_is_no_sound_one() {
        let mut state = state();
        state.put_copy(OfflineCopy { generation: GenerationNumber(1), sealed: vec![1] });
        state.put_copy(OfflineCopy { generation: GenerationNumber(1), sealed: vec![2] });
        assert_eq!(state.copies.len(), 1);
        assert!(state.problem().is_none());
        state.revoked = Some(Revocation { since: 1, class: FaultClass::KeyDisabled, code: "x".into() });
        assert!(state.problem().is_some());
        state.copies.clear();
        assert!(state.problem().is_none());
        assert!(UpstreamState { root_kind: RootKind::Pkcs11, ..state }.problem().is_some());
    }
}
