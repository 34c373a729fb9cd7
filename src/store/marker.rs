//! Markers: files whose mere presence refuses, one for a key that the cloud revoked and one for a key that an admin
//! disabled.
//!
//! Each is made ahead of time and only renamed when it is needed, so that neither a full disk nor a custody that is away can
//! keep a refused key in service. What it says is of no weight: why it was raised stands in the record, as soon as that can
//! be written.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::StoreError;

/// What a marker stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    Revoked,
    Disabled,
}

/// A marker in one store's folder. Cheap to clone; every method blocks for a few system calls.
#[derive(Debug, Clone)]
pub struct Marker {
    folder: PathBuf,
    mark: Mark,
}

impl Mark {
    fn raised(self) -> &'static str {
        match self {
            Self::Revoked => "revoked",
            Self::Disabled => "disabled",
        }
    }

    fn spare(self) -> &'static str {
        match self {
            Self::Revoked => "revoked.spare",
            Self::Disabled => "disabled.spare",
        }
    }

    /// For whoever finds the file.
    fn text(self) -> &'static str {
        match self {
            Self::Revoked => {
                "While this file is called 'revoked', Keystead serves no key before the cloud has opened it again.\n"
            }
            Self::Disabled => {
                "While this file is called 'disabled', Keystead serves no key before `keystead key enable`.\n"
            }
        }
    }
}

impl Marker {
    pub(super) fn new(folder: &Path, mark: Mark) -> Self {
        Self { folder: folder.to_owned(), mark }
    }

    /// Whatever lies there under that name, and whenever it cannot be said that nothing does.
    pub fn is_raised(&self) -> bool {
        !matches!(self.folder.join(self.mark.raised()).symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound)
    }

    /// Makes the spare file, unless it is there.
    pub fn prepare(&self) -> Result<(), StoreError> {
        let path = self.folder.join(self.mark.spare());
        if self.is_raised() || path.symlink_metadata().is_ok() {
            return Ok(());
        }
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).and_then(|mut file| {
            io::Write::write_all(&mut file, self.mark.text().as_bytes())?;
            file.sync_all()
        });
        made.map_err(|source| StoreError::io("create", &path, source))?;
        self.sync()
    }

    /// Durable when it returns; also without the spare file, if the disk has room for a name.
    pub fn raise(&self) -> Result<(), StoreError> {
        let path = self.folder.join(self.mark.raised());
        if !self.is_raised() {
            std::fs::rename(self.folder.join(self.mark.spare()), &path)
                .or_else(|_| OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map(drop))
                .map_err(|source| StoreError::io("create", &path, source))?;
        }
        self.sync()
    }

    /// Only when the record says what holds: of a revoked key, that the upstream has really opened it again; of a disabled
    /// one, that it is disabled, or that an admin has enabled it.
    pub fn take_down(&self) -> Result<(), StoreError> {
        let path = self.folder.join(self.mark.raised());
        match std::fs::rename(&path, self.folder.join(self.mark.spare())) {
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
        let marker = Marker::new(folder.path(), Mark::Revoked);
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
    fn one_marker_says_nothing_of_the_other() {
        let (folder, revoked) = marker();
        let disabled = Marker::new(folder.path(), Mark::Disabled);
        for marker in [&revoked, &disabled] {
            marker.prepare().unwrap();
        }
        disabled.raise().unwrap();
        assert!(disabled.is_raised() && !revoked.is_raised());
        revoked.raise().unwrap();
        disabled.take_down().unwrap();
        assert!(!disabled.is_raised() && revoked.is_raised());
    }

    #[test]
    fn anything_of_that_name_refuses() {
        let (folder, marker) = marker();
        std::os::unix::fs::symlink("/nowhere", folder.path().join("revoked")).unwrap();
        assert!(marker.is_raised());
        std::fs::remove_file(folder.path().join("revoked")).unwrap();
        std::fs::create_dir(folder.path().join("revoked")).unwrap();
        assert!(marker.is_raised());
        std::fs::remove_dir(folder.path().join("revoked")).unwrap();
        assert!(!marker.is_raised());
        // A folder that cannot be looked into says nothing, and so refuses.
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert!(Marker::new(&folder.path().join("file"), Mark::Disabled).is_raised());
    }
}
