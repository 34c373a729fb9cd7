//! What a scan of etcd has shown, as the record keeps it, and what that proves.
//!
//! A scan proves that a generation is no longer needed only by what it saw itself: an object under the generation that is
//! active now can have been written only after its activation. No clock is asked, and an older snapshot, another
//! cluster's etcd or an empty one prove nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::hex;
use crate::id::{GenerationNumber, KeyId};
use crate::keyring::Keyring;

/// What was read, as reported to whoever keeps the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings {
    pub source: Source,
    /// etcd's, up to which keys were read.
    pub revision: u64,
    /// Not every key was looked at.
    pub restricted: bool,
    /// Objects under each key ID of the keyring.
    pub objects: BTreeMap<KeyId, u64>,
    /// Objects that could not be read: which generation they need is not known.
    pub unknown: u64,
}

/// Which bytes were read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Source {
    /// A running etcd.
    Etcd { cluster: u64, member: u64 },
    /// A snapshot file.
    Snapshot {
        #[serde(with = "hex")]
        sha256: [u8; 32],
    },
}

/// The newest scan, in the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scan {
    /// Unix seconds. For people.
    pub recorded: u64,
    pub source: Source,
    pub revision: u64,
    /// The active generation when it was recorded.
    pub active: GenerationNumber,
    pub restricted: bool,
    /// Ascending; a generation that is not listed had none.
    pub objects: Vec<Scanned>,
    /// Objects of this keyring under key IDs that the record does not hold.
    pub unlisted: u64,
    pub unknown: u64,
    /// Since when scans of this active generation prove that every object is under it. Unix seconds, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proven: Option<u64>,
}

/// Objects under one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scanned {
    pub number: GenerationNumber,
    pub objects: u64,
}

/// Why an older generation may still be needed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotRewritten {
    #[error("no scan of etcd was recorded since generation {0} became active")]
    NoScan(GenerationNumber),
    #[error("the scan did not look at every key")]
    Restricted,
    #[error("objects under generation {number}: {objects}")]
    StillNeeded { number: GenerationNumber, objects: u64 },
    #[error("objects that cannot be read, so that nobody knows which generation they need: {0}")]
    Unknown(u64),
    #[error(
        "the scan saw no object under generation {0}, which is active: it is of another cluster's etcd, or older than the \
         rotation, or nothing was written since"
    )]
    NothingNew(GenerationNumber),
}

impl Scan {
    /// Objects under a generation. `None`: it became active later, so that the scan says nothing of it.
    pub fn objects(&self, number: GenerationNumber) -> Option<u64> {
        let known = self.objects.iter().find(|scanned| scanned.number == number).map(|scanned| scanned.objects);
        known.or((number <= self.active).then_some(0))
    }
}

impl Keyring {
    /// Keeps `findings` as the newest scan.
    pub fn record_scan(&mut self, findings: Findings, now: u64) {
        let mut objects: BTreeMap<GenerationNumber, u64> = BTreeMap::new();
        let mut unlisted = 0u64;
        for (key_id, count) in findings.objects {
            match self.by_key_id(&key_id).map(|generation| generation.number) {
                Some(number) => {
                    let known = objects.entry(number).or_default();
                    *known = known.saturating_add(count);
                }
                None => unlisted = unlisted.saturating_add(count),
            }
        }
        let active = self.active().map_or(GenerationNumber(0), |active| active.number);
        let before = self.scan.take().filter(|scan| scan.active == active).and_then(|scan| scan.proven);
        self.scan = Some(Scan {
            recorded: now,
            source: findings.source,
            revision: findings.revision,
            active,
            restricted: findings.restricted,
            objects: objects.into_iter().map(|(number, objects)| Scanned { number, objects }).collect(),
            unlisted,
            unknown: findings.unknown,
            proven: None,
        });
        let proven = self.rewritten().is_ok().then_some(before.unwrap_or(now));
        if let Some(scan) = &mut self.scan {
            scan.proven = proven;
        }
    }

    /// Whether every object is proven to be under the active generation.
    ///
    /// # Errors
    /// Why that is not proven. With no older generation that decrypts there is nothing to prove.
    pub fn rewritten(&self) -> Result<(), NotRewritten> {
        let Some(active) = self.active().map(|active| active.number) else { return Ok(()) };
        let older = self.generations.iter().filter(|each| each.decrypts() && each.number != active);
        let older: Vec<GenerationNumber> = older.map(|each| each.number).collect();
        if older.is_empty() { Ok(()) } else { self.clears(active, &older) }
    }

    /// Whether no object is proven to be under one generation, whatever is under others.
    ///
    /// # Errors
    /// Why that is not proven.
    pub fn unneeded(&self, number: GenerationNumber) -> Result<(), NotRewritten> {
        match self.active().map(|active| active.number) {
            Some(active) if active != number => self.clears(active, &[number]),
            _ => Err(NotRewritten::NoScan(number)),
        }
    }

    /// Whether the newest scan looked everywhere, since `active` became active, and saw none of `generations`.
    fn clears(&self, active: GenerationNumber, generations: &[GenerationNumber]) -> Result<(), NotRewritten> {
        let scan = self.scan.as_ref().filter(|scan| scan.active == active).ok_or(NotRewritten::NoScan(active))?;
        let under = |number| scan.objects(number).unwrap_or(0);
        let needed = generations.iter().map(|number| (*number, under(*number))).find(|(_, objects)| *objects > 0);
        match needed {
            Some((number, objects)) => Err(NotRewritten::StillNeeded { number, objects }),
            None if under(active) == 0 => Err(NotRewritten::NothingNew(active)),
            None if scan.unknown > 0 => Err(NotRewritten::Unknown(scan.unknown)),
            None if scan.restricted => Err(NotRewritten::Restricted),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::KeyringId;
    use crate::keyring::{Generation, GenerationState, RecoveryRoot, TokenIdentity};
    use crate::secret::KeyCommitment;

    fn generation(keyring: &KeyringId, number: u64, state: GenerationState) -> Generation {
        let number = GenerationNumber(number);
        Generation {
            number,
            key_id: KeyId::mint(keyring, number, [1; 16]),
            state,
            created: 0,
            activated: None,
            forced: None,
            commitment: KeyCommitment::from_bytes([0; 32]),
            wraps: Vec::new(),
            pending: None,
            tombstone: None,
        }
    }

    fn keyring(states: &[GenerationState]) -> Keyring {
        let name: KeyringId = "edge".parse().unwrap();
        let generations = (1..).zip(states).map(|(number, state)| generation(&name, number, *state)).collect();
        Keyring {
            revision: 1,
            last_number: GenerationNumber(states.len() as u64),
            generations,
            ..Keyring::empty(
                name,
                "n1".parse().unwrap(),
                TokenIdentity { serial: "1".into(), label: "a".into() },
                RecoveryRoot::Declined,
            )
        }
    }

    fn findings(keyring: &Keyring, objects: &[(u64, u64)]) -> Findings {
        let key_id = |number| KeyId::mint(&keyring.keyring, GenerationNumber(number), [1; 16]);
        Findings {
            source: Source::Etcd { cluster: 7, member: 8 },
            revision: 100,
            restricted: false,
            objects: objects.iter().map(|(number, objects)| (key_id(*number), *objects)).collect(),
            unknown: 0,
        }
    }

    #[test]
    fn single_generation_has_nothing_older_to_lose() {
        assert_eq!(keyring(&[GenerationState::Active]).rewritten(), Ok(()));
        assert_eq!(keyring(&[GenerationState::Destroyed, GenerationState::Active]).rewritten(), Ok(()));
    }

    #[test]
    fn only_a_whole_scan_that_saw_the_active_generation_and_no_older_one_proves() {
        use GenerationState::{Active, PendingDeletion, Retired};
        let mut ring = keyring(&[PendingDeletion, Retired, Active]);
        let active = GenerationNumber(3);
        assert_eq!(ring.rewritten(), Err(NotRewritten::NoScan(active)));
        let mut outcome = |objects: &[(u64, u64)], change: fn(&mut Findings)| {
            let mut findings = findings(&ring, objects);
            change(&mut findings);
            ring.record_scan(findings, 5);
            ring.rewritten()
        };
        let still = |number, objects| Err(NotRewritten::StillNeeded { number: GenerationNumber(number), objects });
        assert_eq!(outcome(&[(3, 9)], |_| ()), Ok(()));
        assert_eq!(outcome(&[(3, 9), (2, 4)], |_| ()), still(2, 4));
        assert_eq!(outcome(&[(3, 9), (1, 1)], |_| ()), still(1, 1));
        assert_eq!(outcome(&[], |_| ()), Err(NotRewritten::NothingNew(active)));
        assert_eq!(outcome(&[(3, 9)], |findings| findings.unknown = 2), Err(NotRewritten::Unknown(2)));
        assert_eq!(outcome(&[(3, 9)], |findings| findings.restricted = true), Err(NotRewritten::Restricted));
        // A key ID that the record does not hold is nobody's here to open.
        assert_eq!(outcome(&[(3, 9), (8, 1)], |_| ()), Ok(()));
        assert_eq!(ring.scan.as_ref().unwrap().unlisted, 1);
    }

    #[test]
    fn rewrite_is_proven_since_the_first_scan_that_shows_it_and_not_beyond_one_that_does_not() {
        use GenerationState::{Active, Retired};
        let mut ring = keyring(&[Retired, Active]);
        let mut since = |objects: &[(u64, u64)], now| {
            ring.record_scan(findings(&ring, objects), now);
            ring.scan.as_ref().unwrap().proven
        };
        assert_eq!(since(&[(1, 1), (2, 9)], 5), None);
        assert_eq!([since(&[(2, 9)], 6), since(&[(2, 8)], 7)], [Some(6); 2]);
        assert_eq!(since(&[(1, 1), (2, 9)], 8), None);
        assert_eq!(since(&[(2, 9)], 9), Some(9));
    }

    #[test]
    fn scan_proves_nothing_once_another_generation_is_active() {
        use GenerationState::{Active, Retired};
        let mut ring = keyring(&[Retired, Active, GenerationState::Destroyed]);
        ring.record_scan(findings(&ring, &[(2, 9)]), 5);
        assert_eq!(ring.rewritten(), Ok(()));
        ring.generations[1].state = Retired;
        ring.generations[2].state = Active;
        assert_eq!(ring.rewritten(), Err(NotRewritten::NoScan(GenerationNumber(3))));
    }
}
