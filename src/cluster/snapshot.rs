//! An etcd snapshot file: a database with the SHA-256 of itself behind it, and in its bucket `key` every revision of every key.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use prost::Message;
use sha2::{Digest, Sha256};

use super::bbolt::{BoltError, Database};

const TRAILER: u64 = 32;
/// `etcdctl` tells a snapshot from a bare database by this: pages are multiples of it.
const SECTOR: u64 = 512;
/// Main and sub revision with a `_` between them; deletions have a `t` behind.
const REVISION: usize = 17;

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("cannot read {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the snapshot {}", path.display())]
    Database {
        path: PathBuf,
        #[source]
        source: BoltError,
    },
    #[error(
        "the snapshot {} has no checksum behind it: it was cut short, or copied from etcd's folder. If it is such a copy, made \
         while etcd was stopped, say --skip-hash-check",
        .0.display()
    )]
    NoChecksum(PathBuf),
    #[error("the snapshot {} does not match its checksum: it is damaged", .0.display())]
    WrongChecksum(PathBuf),
    #[error("{} is a database, but not etcd's: it has no bucket of keys", .0.display())]
    NotEtcd(PathBuf),
}

/// A snapshot whose checksum is right.
#[derive(Debug)]
pub struct Snapshot {
    path: PathBuf,
    database: Database,
    sha256: [u8; 32],
}

/// One revision of one key.
#[derive(Debug)]
pub enum Change<'a> {
    Put {
        key: &'a [u8],
        value: &'a [u8],
    },
    Delete {
        key: &'a [u8],
    },
    /// No key-value pair.
    Malformed,
}

/// etcd's `mvccpb.KeyValue`, as far as it is of use here.
#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    value: Vec<u8>,
}

impl Snapshot {
    /// Reads the file once to check it. `skip_hash_check`: take a database whose checksum is missing or wrong.
    pub fn open(path: &Path, skip_hash_check: bool) -> Result<Self, SnapshotError> {
        let io = |source| SnapshotError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        let has_trailer = len % SECTOR == TRAILER;
        let body = if has_trailer { len - TRAILER } else { len };
        if !has_trailer && !skip_hash_check {
            return Err(SnapshotError::NoChecksum(path.to_owned()));
        }
        let sha256 = digest(&file, body).map_err(io)?;
        if has_trailer && !skip_hash_check {
            let mut trailer = [0; TRAILER as usize];
            file.read_exact_at(&mut trailer, body).map_err(io)?;
            if sha256 != trailer {
                return Err(SnapshotError::WrongChecksum(path.to_owned()));
            }
        }
        let database =
            Database::open(file, body).map_err(|source| SnapshotError::Database { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), database, sha256 })
    }

    /// Of the database, without the checksum behind it.
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// Every revision there is, oldest first. Returns the number of the newest.
    pub fn changes(&self, mut each: impl FnMut(Change<'_>)) -> Result<u64, SnapshotError> {
        let mut newest = 0;
        let found = self.database.walk::<BoltError>(b"key", &mut |revision, bytes| {
            newest = revision.first_chunk().map_or(0, |main| u64::from_be_bytes(*main)).max(newest);
            match KeyValue::decode(bytes) {
                Ok(pair) if revision.len() == REVISION => each(Change::Put { key: &pair.key, value: &pair.value }),
                Ok(pair) if revision.len() == REVISION + 1 && revision.ends_with(b"t") => {
                    each(Change::Delete { key: &pair.key });
                }
                _ => each(Change::Malformed),
            }
            Ok(())
        });
        match found {
            Ok(true) => Ok(newest),
            Ok(false) => Err(SnapshotError::NotEtcd(self.path.clone())),
            Err(source) => Err(SnapshotError::Database { path: self.path.clone(), source }),
        }
    }
}

fn digest(file: &File, len: u64) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < len {
        let count = usize::try_from(len - offset).unwrap_or(usize::MAX).min(chunk.len());
        file.read_exact_at(&mut chunk[..count], offset)?;
        hash.update(&chunk[..count]);
        offset += count as u64;
    }
    Ok(hash.finalize().into())
}
