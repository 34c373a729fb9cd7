//! The marker of a revocation: a file whose mere presence refuses.
//!
//! It is made ahead of time and only renamed when it is needed, so that neither a full disk nor a custody that is away can
//! keep a revoked key in service. What it says is of no weight: who it revokes stands in the record, as soon as that can be
//! written.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::StoreError;

const RAISED: &str = "revoked";
const SPARE: &str = "revoked.spare";
const TEXT: &str =
    "While this file is called 'revoked', Keystead serves no key before the cloud has opened it again.\n";

/// The marker in one store's folder. Cheap to clone; every method blocks for a few system calls.
#[derive(Debug, Clone)]
pub struct Marker {
    folder: PathBuf,
}

impl Marker {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Whatever lies there under that name, and whenever it cannot be said that nothing does.
    pub fn is_raised(&self) -> bool {
        !matches!(self.folder.join(RAISED).symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound)
    }

    /// Makes the spare file, unless it is there.
    pub fn prepare(&self) -> Result<(), StoreError> {
        let path = self.folder.join(SPARE);
        if self.is_raised() || path.symlink_metadata().is_ok() {
            return Ok(());
        }
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).and_then(|mut file| {
            io::Write::write_all(&mut file, TEXT.as_bytes())?;
            file.sync_all()
        });
        made.map_err(|source| StoreError::io("create", &path, source))?;
        self.sync()
    }

    /// Durable when it returns; also without the spare file, if the disk has room for a name.
    pub fn raise(&self) -> Result<(), StoreError> {
        let path = self.folder.join(RAISED);
        if !self.is_raised() {
            std::fs::rename(self.folder.join(SPARE), &path)
                .or_else(|_| OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map(drop))
                .map_err(|source| StoreError::io("create", &path, source))?;
        }
        self.sync()
    }

    /// Only after a real unwrap by the upstream, and when the record says so.
    pub fn take_down(&self) -> Result<(), StoreError> {
        let path = self.folder.join(RAISED);
        match std::fs::rename(&path, self.folder.join(SPARE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(StoreError::io("take down", &path, source)),
            Ok(()) => self.sync(),
        }
    }

    fn sync(&self) -> Result<(), StoreError> {
        File::open(&self.folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|source| StoreError::io("sync", &self.folder, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marker() -> (tempfile::TempDir, Marker) {
        let folder = tempfile::tempdir().unwrap();
        let marker = Marker::new(folder.path());
        (folder, marker)
    }

    #[test]
    fn raised_marker_stays_until_it_is_taken_down() {
        let (_folder, marker) = marker();
        marker.prepare().unwrap();
        assert!(!marker.is_raised());
        marker.raise().unwrap();
        marker.raise().unwrap();
        marker.prepare().unwrap();
        assert!(marker.is_raised());
        marker.take_down().unwrap();
        marker.take_down().unwrap();
        assert!(!marker.is_raised());
        marker.raise().unwrap();
        assert!(marker.is_raised(), "the same file serves again");
    }

    #[test]
    fn marker_without_its_spare_file_is_raised_all_the_same() {
        let (_folder, marker) = marker();
        marker.raise().unwrap();
        assert!(marker.is_raised());
    }

    #[test]
    fn anything_of_that_name_refuses() {
        let (folder, marker) = marker();
        std::os::unix::fs::symlink("/nowhere", folder.path().join(RAISED)).unwrap();
        assert!(marker.is_raised());
        std::fs::remove_file(folder.path().join(RAISED)).unwrap();
        std::fs::create_dir(folder.path().join(RAISED)).unwrap();
        assert!(marker.is_raised());
        std::fs::remove_dir(folder.path().join(RAISED)).unwrap();
        assert!(!marker.is_raised());
        // A folder that cannot be looked into says nothing, and so refuses.
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert!(Marker::new(&folder.path().join("file")).is_raised());
    }
}
