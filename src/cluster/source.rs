//! Where a cluster's objects are read from: a snapshot file, or a running etcd. Either way one pass, key by key.

use std::collections::BTreeMap;

use super::Prefixes;
#[cfg(feature = "cluster")]
use super::etcd::{Etcd, EtcdError};
use super::snapshot::{Change, Snapshot, SnapshotError};

/// Keys between two calls that tell how far it is.
const TELL_EVERY: u64 = 1024;

/// What is made of a source's keys.
pub trait Reader {
    /// What is kept of a key for as long as a later revision may replace it.
    type Holds;

    /// Looks at one revision of one key.
    fn look(&mut self, key: &[u8], value: &[u8]) -> Self::Holds;

    /// What the key holds at the revision that counts. Ascending by key.
    fn settle(&mut self, key: &[u8], holds: Self::Holds);

    /// An entry that is no key-value pair.
    fn malformed(&mut self);

    /// The source is read from its beginning again: forget what was seen.
    fn start_anew(&mut self);
}

/// An opened source.
pub enum Source {
    /// Every revision that is in the file, oldest first.
    Snapshot(Snapshot),
    /// One revision, the newest when reading began.
    #[cfg(feature = "cluster")]
    Etcd(Etcd),
}

/// Which bytes were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    pub origin: Origin,
    /// etcd's, up to which the keys were read.
    pub revision: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// SHA-256 of the database in the file.
    Snapshot {
        sha256: [u8; 32],
    },
    Etcd {
        cluster: u64,
        member: u64,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[cfg(feature = "cluster")]
    #[error(transparent)]
    Etcd(#[from] EtcdError),
}

impl Source {
    /// Gives every key below `prefixes` to `reader`. `progress` is told now and then how many entries were read.
    pub async fn read<R: Reader>(
        &mut self,
        prefixes: &Prefixes,
        reader: &mut R,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Provenance, SourceError> {
        match self {
            Self::Snapshot(snapshot) => Ok(read_history(snapshot, prefixes, reader, progress)?),
            #[cfg(feature = "cluster")]
            Self::Etcd(etcd) => Ok(etcd.read(prefixes, reader, progress).await?),
        }
    }
}

fn read_history<R: Reader>(
    snapshot: &Snapshot,
    prefixes: &Prefixes,
    reader: &mut R,
    progress: &mut dyn FnMut(u64),
) -> Result<Provenance, SnapshotError> {
    // Ordered, so that a report of the same file is the same report.
    let mut live: BTreeMap<Vec<u8>, R::Holds> = BTreeMap::new();
    let mut entries = 0u64;
    let revision = snapshot.changes(|change| {
        entries += 1;
        if entries.is_multiple_of(TELL_EVERY) {
            progress(entries);
        }
        match change {
            Change::Put { key, value } if prefixes.admit(key) => {
                let holds = reader.look(key, value);
                live.insert(key.to_vec(), holds);
            }
            Change::Delete { key } => {
                live.remove(key);
            }
            Change::Put { .. } => {}
            Change::Malformed => reader.malformed(),
        }
    })?;
    for (key, holds) in live {
        reader.settle(&key, holds);
    }
    Ok(Provenance { origin: Origin::Snapshot { sha256: snapshot.sha256() }, revision })
}
