//! The note that a token has rejected the PIN: kept over restarts, so that a wrong PIN costs one try and no more.
//!
//! One file, `pin-rejected`: the token's serial and which state of the PIN file was tried. Nothing of the PIN. A changed
//! PIN file, or another token, makes it void.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::credential_file::Identity;
use crate::custody::contract::CustodyError;

const FORMAT: &str = "keystead-pin-rejected 1";

/// Rejections of this process, for a disk that could not take the note.
static REJECTED: Mutex<Vec<String>> = Mutex::new(Vec::new());

pub(super) struct Latch {
    folder: PathBuf,
}

/// A note ready to be put down: opened before the login, as afterwards it must not fail for want of a folder.
pub(super) struct Prepared<'a> {
    latch: &'a Latch,
    file: File,
    text: String,
}

impl Latch {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Whether this token has rejected the PIN from this very source.
    pub(super) fn holds(&self, serial: &str, source: Identity) -> Result<bool, CustodyError> {
        if rejected().contains(&note(serial, source)) {
            return Ok(true);
        }
        match fs::read_to_string(self.path()) {
            Ok(text) => Ok(text == note(serial, source)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            // Without knowing, a login might be the try too many.
            Err(error) => Err(self.unusable(&error)),
        }
    }

    pub(super) fn prepare(&self, serial: &str, source: Identity) -> Result<Prepared<'_>, CustodyError> {
        // A draft left behind is nobody's; made anew, it cannot be a link to somewhere else.
        let _ = fs::remove_file(self.draft());
        let file = File::create_new(self.draft()).map_err(|error| self.unusable(&error))?;
        Ok(Prepared { latch: self, file, text: note(serial, source) })
    }

    fn path(&self) -> PathBuf {
        self.folder.join("pin-rejected")
    }

    fn draft(&self) -> PathBuf {
        self.folder.join("pin-rejected.new")
    }

    fn unusable(&self, error: &io::Error) -> CustodyError {
        let folder = self.folder.display();
        CustodyError::PinUnreadable {
            detail: format!("no login without a place to note a rejected PIN, which {folder} is not: {error}"),
        }
    }
}

impl Prepared<'_> {
    /// The token has rejected the PIN. Durable before anybody hears of it.
    pub(super) fn put_down(mut self) -> io::Result<()> {
        self.file.write_all(self.text.as_bytes())?;
        self.file.sync_all()?;
        fs::rename(self.latch.draft(), self.latch.path())?;
        File::open(&self.latch.folder)?.sync_all()
    }

    /// The token has not; a note of an earlier source is void too.
    pub(super) fn discard(self) {
        // Left behind, neither does harm: the draft is overwritten, and a void note stays void.
        let _ = fs::remove_file(self.latch.draft());
        let _ = fs::remove_file(self.latch.path());
    }
}

/// The token has rejected the PIN: not tried again in this process, whatever the disk holds.
pub(super) fn remember(serial: &str, source: Identity) {
    rejected().push(note(serial, source));
}

fn rejected() -> MutexGuard<'static, Vec<String>> {
    REJECTED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn note(serial: &str, source: Identity) -> String {
    let Identity { device, inode, modified_ns, size } = source;
    format!("{FORMAT}\nserial {serial:?}\nsource {device} {inode} {modified_ns} {size}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: Identity = Identity { device: 1, inode: 2, modified_ns: 3, size: 4 };

    #[test]
    fn note_put_down_holds_for_that_token_and_that_source_only() {
        let folder = tempfile::tempdir().unwrap();
        Latch::new(folder.path()).prepare("s1", SOURCE).unwrap().put_down().unwrap();
        let latch = Latch::new(folder.path());
        assert_eq!(latch.holds("s1", SOURCE), Ok(true));
        assert_eq!(latch.holds("s2", SOURCE), Ok(false));
        for changed in [
            Identity { device: 9, ..SOURCE },
            Identity { inode: 9, ..SOURCE },
            Identity { modified_ns: 9, ..SOURCE },
            Identity { size: 9, ..SOURCE },
        ] {
            assert_eq!(latch.holds("s1", changed), Ok(false));
        }
    }

    #[test]
    fn accepted_pin_leaves_no_note() {
        let folder = tempfile::tempdir().unwrap();
        let latch = Latch::new(folder.path());
        latch.prepare("s1", SOURCE).unwrap().put_down().unwrap();
        latch.prepare("s1", Identity { inode: 9, ..SOURCE }).unwrap().discard();
        assert_eq!(latch.holds("s1", SOURCE), Ok(false));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn folder_that_cannot_hold_the_note_prevents_the_login() {
        let folder = tempfile::tempdir().unwrap();
        let latch = Latch::new(&folder.path().join("missing"));
        assert!(matches!(latch.prepare("s1", SOURCE), Err(CustodyError::PinUnreadable { .. })));
    }
}
