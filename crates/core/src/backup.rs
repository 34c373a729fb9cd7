//! Backups of etcd that somebody told the keyring of: which generations each needs, so that whoever has one destroyed is told
//! what he can no longer read. A list that people keep; a backup that is not in it is none the less a backup.

use serde::{Deserialize, Serialize};

use crate::hex;
use crate::id::{GenerationNumber, KeyId};
use crate::keyring::Keyring;
use crate::reason::Reason;

/// Registered at a time.
pub const MAX_BACKUPS: usize = 256;
/// Characters of a name.
pub const MAX_NAME: usize = 64;

/// A backup as registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    /// At most [`MAX_NAME`] characters; no two are alike.
    pub name: Reason,
    /// Unix seconds. For people.
    pub registered: u64,
    /// The snapshot file that was read; `None`: a person said what it needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// Ascending.
    pub generations: Vec<GenerationNumber>,
    /// Objects in it that cannot be read: which generations they need is not known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unknown: u64,
}

/// Which file, and how far it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    #[serde(with = "hex")]
    pub sha256: [u8; 32],
    /// etcd's.
    pub revision: u64,
}

/// Why a backup was not registered or forgotten.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    #[error("a backup named {0:?} is registered already; `keystead backup forget` it first, or take another name")]
    NameTaken(String),
    #[error("the name of a backup has at most {MAX_NAME} characters")]
    NameTooLong,
    #[error("{MAX_BACKUPS} backups are registered, and no more can be: forget those that are gone")]
    TooMany,
    #[error("no backup named {0:?} is registered; `keystead backup list` shows which are")]
    NoSuch(String),
    #[error("there is no generation {0}; `keystead key list` shows which there are")]
    NoSuchGeneration(GenerationNumber),
}

impl Keyring {
    /// Adds a backup; its generations are put in order.
    pub fn register_backup(&mut self, mut backup: Backup) -> Result<(), BackupError> {
        if backup.name.as_str().chars().count() > MAX_NAME {
            return Err(BackupError::NameTooLong);
        }
        if self.backups.iter().any(|each| each.name == backup.name) {
            return Err(BackupError::NameTaken(backup.name.to_string()));
        }
        if self.backups.len() >= MAX_BACKUPS {
            return Err(BackupError::TooMany);
        }
        if let Some(number) = backup.generations.iter().find(|number| self.generation(**number).is_none()) {
            return Err(BackupError::NoSuchGeneration(*number));
        }
        backup.generations.sort_unstable();
        backup.generations.dedup();
        self.backups.push(backup);
        Ok(())
    }

    pub fn forget_backup(&mut self, name: &str) -> Result<Backup, BackupError> {
        let index = self.backups.iter().position(|each| each.name.as_str() == name);
        let no_such =
            || BackupError::NoSuch(name.chars().filter(|letter| !letter.is_control()).take(MAX_NAME).collect());
        index.map(|index| self.backups.remove(index)).ok_or_else(no_such)
    }

    /// Numbers of those key IDs that the record holds, and how many it does not.
    pub fn numbers_of<'a>(&self, key_ids: impl Iterator<Item = &'a KeyId>) -> (Vec<GenerationNumber>, u64) {
        let (mut numbers, mut unlisted) = (Vec::new(), 0);
        for key_id in key_ids {
            match self.by_key_id(key_id) {
                Some(generation) => numbers.push(generation.number),
                None => unlisted += 1,
            }
        }
        (numbers, unlisted)
    }

    /// Registered backups that need a generation, or may.
    pub fn backups_of(&self, number: GenerationNumber) -> impl Iterator<Item = &Backup> {
        self.backups.iter().filter(move |backup| backup.generations.contains(&number) || backup.unknown > 0)
    }

    /// What [`Keyring::check`] has to say of backups.
    pub(crate) fn backup_problem(&self) -> Option<&'static str> {
        if self.backups.len() > MAX_BACKUPS {
            return Some("more backups than can be registered");
        }
        for (index, backup) in self.backups.iter().enumerate() {
            if backup.name.as_str().chars().count() > MAX_NAME
                || self.backups[..index].iter().any(|other| other.name == backup.name)
            {
                return Some("two backups have one name, or one that is too long");
            }
            let known = backup.generations.iter().all(|number| *number <= self.last_number);
            if !known || !backup.generations.is_sorted_by(|a, b| a < b) {
                return Some("a backup's generations are not in ascending order, or were never handed out");
            }
        }
        None
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyring::{RecoveryRoot, TokenIdentity};
    use crate::secret::KeyCommitment;
    use crate::{RootId, RootKind, WrappedKek};

    fn keyring() -> Keyring {
        let mut keyring = Keyring {
            revision: 1,
            ..Keyring::empty(
                "edge".parse().unwrap(),
                "n1".parse().unwrap(),
                TokenIdentity { serial: "1".into(), label: "a".into() },
                RecoveryRoot::Declined,
            )
        };
        for byte in 1..=3 {
            let intent = keyring.begin_rotation([byte; 16], [byte; 16], 1).unwrap();
            let wrap =
                WrappedKek { root_kind: RootKind::Pkcs11, root_id: RootId::new(&[byte; 16]).unwrap(), bytes: vec![1] };
            assert_eq!(intent.number.0, u64::from(byte));
            keyring.prepare(KeyCommitment::from_bytes([byte; 32]), vec![wrap], 2).unwrap();
            keyring.activate(3).unwrap();
        }
        keyring
    }

    fn backup(name: &str, generations: &[u64]) -> Backup {
        let generations = generations.iter().map(|number| GenerationNumber(*number)).collect();
        Backup { name: name.parse().unwrap(), registered: 9, snapshot: None, generations, unknown: 0 }
    }

    #[test]
    fn generation_names_the_backups_that_need_it_or_may() {
        let mut ring = keyring();
        ring.register_backup(backup("friday", &[2, 1, 2])).unwrap();
        ring.register_backup(backup("saturday", &[2])).unwrap();
        ring.register_backup(Backup { unknown: 1, ..backup("torn", &[]) }).unwrap();
        assert_eq!(ring.check(), Ok(()));
        let of = |number| ring.backups_of(GenerationNumber(number)).map(|each| each.name.as_str()).collect::<Vec<_>>();
        assert_eq!((of(1), of(2), of(3)), (vec!["friday", "torn"], vec!["friday", "saturday", "torn"], vec!["torn"]));
    }

    #[test]
    fn names_are_unique_and_bounded_and_generations_known() {
        let mut ring = keyring();
        ring.register_backup(backup("friday", &[1])).unwrap();
        assert!(matches!(ring.register_backup(backup("friday", &[2])), Err(BackupError::NameTaken(_))));
        assert_eq!(ring.register_backup(backup("x", &[1, 9])), Err(BackupError::NoSuchGeneration(GenerationNumber(9))));
        assert_eq!(ring.register_backup(backup(&"x".repeat(65), &[])), Err(BackupError::NameTooLong));
        assert!(matches!(ring.forget_backup("saturday\u{1b}"), Err(BackupError::NoSuch(name)) if name == "saturday"));
        ring.forget_backup("friday").unwrap();
        for number in 0..MAX_BACKUPS {
            ring.register_backup(backup(&format!("b{number}"), &[1])).unwrap();
        }
        assert_eq!(ring.register_backup(backup("one too many", &[])), Err(BackupError::TooMany));
        assert_eq!(ring.check(), Ok(()));
        for change in [
            (|ring: &mut Keyring| ring.backups[1].name = ring.backups[0].name.clone()) as fn(&mut Keyring),
            |ring| ring.backups[1].generations = vec![GenerationNumber(2), GenerationNumber(1)],
            |ring| ring.backups[1].generations = vec![GenerationNumber(4)],
            |ring| ring.backups.push(ring.backups[0].clone()),
        ] {
            let mut ring = ring.clone();
            change(&mut ring);
            assert!(ring.check().is_err());
        }
    }
}
