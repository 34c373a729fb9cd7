//! A PIN or auth value in a file: read anew each time, believed only if nobody but its owner could have written it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use zeroize::Zeroizing;

use super::contract::CustodyError;
use super::settings::PinSource;

/// What a mode may grant at most: 0640.
const TOO_OPEN: u32 = 0o037;

pub(super) struct CredentialFile {
    pub(super) path: PathBuf,
    pub(super) content: Zeroizing<Vec<u8>>,
}

/// At most `longest` bytes and one more, by which a caller sees that there are too many.
///
/// # Errors
/// `PinUnreadable`, saying what to change.
pub(super) fn read(source: &PinSource, longest: usize) -> Result<CredentialFile, CustodyError> {
    let path = path(source)?;
    read_file(&path, longest).map_err(|problem| unreadable(format!("{}: {problem}", path.display())))
}

impl CredentialFile {
    pub(super) fn unreadable(&self, problem: &str) -> CustodyError {
        unreadable(format!("{}: {problem}", self.path.display()))
    }
}

fn path(source: &PinSource) -> Result<PathBuf, CustodyError> {
    match source {
        PinSource::File(path) => Ok(path.clone()),
        PinSource::Credential(name) => {
            if name.is_empty() || name.contains('/') || name.starts_with('.') {
                return Err(unreadable(format!("{name:?} is no name of a credential")));
            }
            let folder = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                unreadable(format!(
                    "no credential {name}: the unit sets none (LoadCredential=, SetCredentialEncrypted=)"
                ))
            })?;
            Ok(PathBuf::from(folder).join(name))
        }
    }
}

fn read_file(path: &Path, longest: usize) -> Result<CredentialFile, String> {
    // Non-blocking, so that a FIFO in the file's place is refused instead of waited for.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| error.to_string())?;
    let status = rustix::fs::fstat(&file).map_err(|error| error.to_string())?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err("it is not a regular file".into());
    }
    let mode = status.st_mode & 0o777;
    if mode & TOO_OPEN != 0 {
        return Err(format!("its mode is {mode:04o}; make it 0640 or narrower"));
    }
    let mut content = Zeroizing::new(Vec::with_capacity(longest + 1));
    File::from(file).take(longest as u64 + 1).read_to_end(&mut content).map_err(|error| error.to_string())?;
    Ok(CredentialFile { path: path.to_owned(), content })
}

fn unreadable(detail: String) -> CustodyError {
    CustodyError::PinUnreadable { detail }
}
