//! The store: the keyring's record in one file, crash-safe at every byte.
//!
//! Owns the file and nothing of its meaning: the service authenticates what it reads and tags what it writes. A write is
//! a new file, synced, renamed over the old one, and the folder synced: after a power cut there is the old record or the
//! new one. One process at a time, by a lock.

mod marker;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use keystead_core::record::{MAX_LEN, RecordError, UnverifiedRecord};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};

pub use marker::{Mark, Marker};

const RECORD: &str = "keyring.store";
const NEW_RECORD: &str = "keyring.store.new";
const LOCK: &str = "lock";

/// An opened store; holds its lock until dropped.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    _lock: File,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the store folder {} is in use by another keystead process", .0.display())]
    InUse(PathBuf),
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Somebody else wrote: read again before trying again.
    #[error("the store is at revision {found}, not {expected}: another writer was faster")]
    Conflict { expected: u64, found: u64 },
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl Store {
    /// Opens the store in `folder`, making the folder (0700) if it is missing.
    ///
    /// # Errors
    /// [`StoreError::InUse`] while another process has it; [`StoreError::Io`] for a folder that cannot be used.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        if !folder.is_dir() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(|source| StoreError::io("create the store folder", folder, source))?;
        }
        let path = folder.join(LOCK);
        let lock = open_lock(&path).map_err(|source| StoreError::io("open", &path, source))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { folder: folder.to_owned(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::InUse(folder.to_owned())),
            Err(errno) => Err(StoreError::io("lock", &path, errno.into())),
        }
    }

    /// The record as it stands, parsed but not believed; `None` before `init`.
    pub fn load(&self) -> Result<Option<UnverifiedRecord>, StoreError> {
        Self::peek(&self.folder)
    }

    /// As [`Self::load`], without opening the store: for a look beside a running daemon. Takes no lock, writes nothing.
    pub fn peek(folder: &Path) -> Result<Option<UnverifiedRecord>, StoreError> {
        let path = folder.join(RECORD);
        let file = match open_record(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::io("open", &path, source)),
        };
        let mut bytes = Vec::new();
        // One byte more than allowed, so that a longer file is refused and not cut.
        file.take(MAX_LEN as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| StoreError::io("read", &path, source))?;
        Ok(Some(UnverifiedRecord::parse(&bytes)?))
    }

    /// Replaces the record of revision `expected` (`None`: there must be none) by `bytes`. Durable when it returns.
    ///
    /// # Errors
    /// [`StoreError::Conflict`], or [`StoreError::Io`] with the old record in place.
    pub fn replace(&self, expected: Option<u64>, bytes: &[u8]) -> Result<(), StoreError> {
        let found = self.load()?.map(|record| record.claims().revision);
        if found != expected {
            return Err(StoreError::Conflict { expected: expected.unwrap_or(0), found: found.unwrap_or(0) });
        }
        let new = self.folder.join(NEW_RECORD);
        let outcome = self.write_new(&new, bytes);
        if outcome.is_err() {
            // A full disk needs the space back, and a half-written file is of use to nobody.
            let _ = std::fs::remove_file(&new);
        }
        outcome
    }

    /// Moves the record aside under a name that no other file has, and returns that name; `None` if there is no record.
    /// Nothing is destroyed: a person has asked for a new record in its place.
    pub fn set_aside(&self, now: u64) -> Result<Option<PathBuf>, StoreError> {
        let path = self.folder.join(RECORD);
        if !path.exists() {
            return Ok(None);
        }
        let free =
            (0..).map(|count| self.folder.join(format!("{RECORD}.aside-{now}-{count}"))).find(|name| !name.exists());
        // There are more numbers than files.
        let Some(aside) = free else { return Ok(None) };
        std::fs::rename(&path, &aside).map_err(|source| StoreError::io("move aside", &path, source))?;
        Ok(Some(aside))
    }

    /// Gives the record a second name that no other file has, and returns that name; `None` if there is no record. The
    /// record stays where it is until it is replaced.
    pub fn keep_aside(&self, now: u64) -> Result<Option<PathBuf>, StoreError> {
        let path = self.folder.join(RECORD);
        for count in 0..1000 {
            let aside = self.folder.join(format!("{RECORD}.aside-{now}-{count}"));
            match std::fs::hard_link(&path, &aside) {
                Ok(()) => return Ok(Some(aside)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(source) => return Err(StoreError::io("keep a second name of", &path, source)),
            }
        }
        Ok(None)
    }

    /// A marker that lies beside the record.
    pub fn marker(&self, mark: Mark) -> Marker {
        Marker::new(&self.folder, mark)
    }

    /// Whether there is a record, readable or not.
    pub fn is_empty(&self) -> bool {
        !self.folder.join(RECORD).exists()
    }

    fn write_new(&self, new: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        fail::fail_point!("store.before-write", |_| Err(StoreError::io("write", new, rustix::io::Errno::NOSPC.into())));
        // One left by a power cut is of no use; made anew, the file cannot be a link to somewhere else.
        let _ = std::fs::remove_file(new);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(new)
            .map_err(|source| StoreError::io("create", new, source))?;
        let (first, second) = bytes.split_at(bytes.len() / 2);
        let written = file.write_all(first).and_then(|()| {
            fail::fail_point!("store.half-written");
            file.write_all(second)
        });
        written.map_err(|source| StoreError::io("write", new, source))?;
        fail::fail_point!("store.before-sync");
        file.sync_all().map_err(|source| StoreError::io("sync", new, source))?;
        fail::fail_point!("store.before-rename");
        let path = self.folder.join(RECORD);
        std::fs::rename(new, &path).map_err(|source| StoreError::io("rename to", &path, source))?;
        fail::fail_point!("store.before-folder-sync");
        self.sync_folder()
    }

    /// Makes durable what [`Self::load`] reads: after a crash it may so far be in the page cache only.
    pub fn sync(&self) -> Result<(), StoreError> {
        let path = self.folder.join(RECORD);
        open_record(&path).and_then(|file| file.sync_all()).map_err(|source| StoreError::io("sync", &path, source))?;
        self.sync_folder()
    }

    fn sync_folder(&self) -> Result<(), StoreError> {
        File::open(&self.folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|source| StoreError::io("sync", &self.folder, source))
    }
}

/// Whether somebody else than this process's user may change what is in `folder`: remove the record, put an old one back.
/// Root's group and a group of one's own hold nobody who could not do it anyway.
pub fn writable_by_others(folder: &Path) -> io::Result<bool> {
    let stat = std::fs::metadata(folder)?;
    let own_group = stat.gid() == 0 || stat.gid() == rustix::process::getegid().as_raw();
    Ok(stat.mode() & 0o002 != 0 || (stat.mode() & 0o020 != 0 && !own_group))
}

/// A regular file in the folder itself: whoever can write the folder must not make us read, or wait for, another.
fn open_record(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(file)
}

/// Opened for reading: a lock needs no more, and a disk that turned read-only can still be served from.
fn open_lock(path: &Path) -> io::Result<File> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
            File::open(path)
        }
        opened => opened,
    }
}

impl StoreError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests;
