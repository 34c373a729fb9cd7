//! What the configuration asks of the machine it runs on: who runs it, and what files say about names.
//!
//! Every path is looked up below `root`, so that tests bring a machine of their own.

use std::fs;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone)]
pub struct Site {
    pub root: PathBuf,
    /// Effective user of this process: the daemon's, when the daemon asks.
    pub uid: u32,
    /// `$CREDENTIALS_DIRECTORY`, which systemd sets for services with credentials.
    pub credentials: Option<PathBuf>,
}

impl Site {
    /// The machine as it is.
    pub fn this_machine() -> Self {
        Self {
            root: PathBuf::from("/"),
            uid: rustix::process::geteuid().as_raw(),
            credentials: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
        }
    }

    /// `absolute` below the root.
    pub fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// The number of a local user.
    pub fn uid_of(&self, name: &str) -> Option<u32> {
        super::accounts::uid(self, name)
    }

    /// The number of a local group.
    pub fn gid_of(&self, name: &str) -> Option<u32> {
        super::accounts::gid(self, name)
    }

    pub(super) fn exists(&self, absolute: &str) -> bool {
        self.path(absolute).exists()
    }

    /// A small system file; `None` when it is absent or cannot be read.
    pub(super) fn read(&self, absolute: &str) -> Option<String> {
        fs::read_to_string(self.path(absolute)).ok()
    }
}

/// `path` seen from `base`: unchanged if absolute.
pub(super) fn resolve(base: &Path, path: &Path) -> PathBuf {
    base.join(path)
}
