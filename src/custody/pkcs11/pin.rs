//! The user PIN: read at each login from a file that only its owner can write, wiped right after.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use cryptoki::types::AuthPin;
use rustix::fs::{FileType, Mode, OFlags};
use zeroize::Zeroizing;

use crate::custody::contract::CustodyError;
use crate::custody::settings::PinSource;

/// PKCS#11 tokens take PINs far shorter than this.
const MAX_LEN: usize = 256;
/// What a mode may grant at most: 0640.
const TOO_OPEN: u32 = 0o037;

/// # Errors
/// `PinUnreadable`, saying what to change.
pub(super) fn read(source: &PinSource) -> Result<AuthPin, CustodyError> {
    let path = path(source)?;
    read_file(&path).map_err(|problem| unreadable(format!("{}: {problem}", path.display())))
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

fn read_file(path: &Path) -> Result<AuthPin, String> {
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
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_LEN + 2));
    File::from(file).take(MAX_LEN as u64 + 2).read_to_end(&mut text).map_err(|error| error.to_string())?;
    let pin = text.strip_suffix(b"\n").unwrap_or(&text);
    if pin.is_empty() || pin.len() > MAX_LEN {
        return Err(format!("it must hold a PIN of 1 to {MAX_LEN} bytes"));
    }
    let pin = std::str::from_utf8(pin).map_err(|_| "it is not UTF-8".to_owned())?;
    // An editor's leavings, not a PIN: finding out at the token would cost a try.
    if pin.trim() != pin || pin.starts_with('\u{feff}') || pin.chars().any(char::is_control) {
        return Err("it has blanks or control characters around the PIN (a carriage return, a second line?)".into());
    }
    Ok(AuthPin::from(Box::<str>::from(pin)))
}

fn unreadable(detail: String) -> CustodyError {
    CustodyError::PinUnreadable { detail }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use secrecy::ExposeSecret;

    use super::*;

    fn written(content: &[u8], mode: u32) -> (tempfile::TempDir, PinSource) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pin");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (folder, PinSource::File(path))
    }

    #[test]
    fn trailing_newline_is_no_part_of_the_pin() {
        for content in ["1234", "1234\n"] {
            let (_folder, source) = written(content.as_bytes(), 0o640);
            assert_eq!(read(&source).unwrap().expose_secret(), "1234");
        }
    }

    #[test]
    fn pin_file_that_others_may_touch_is_refused() {
        for mode in [0o644, 0o660, 0o604, 0o602, 0o650, 0o777] {
            let (_folder, source) = written(b"1234", mode);
            assert!(matches!(read(&source), Err(CustodyError::PinUnreadable { .. })), "mode {mode:o} was accepted");
        }
    }

    #[test]
    fn pin_of_wrong_length_or_encoding_is_refused() {
        for content in [&b""[..], b"\n", &[b'1'; 257], &[b'1'; 5000], &[0xff, 0xfe]] {
            let (_folder, source) = written(content, 0o600);
            assert!(matches!(read(&source), Err(CustodyError::PinUnreadable { .. })));
        }
        let (_folder, source) = written(&[b'1'; 256], 0o600);
        assert!(read(&source).is_ok());
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::from(0o600)).unwrap();
        for path in [folder.path().to_owned(), fifo, folder.path().join("missing")] {
            assert!(matches!(read(&PinSource::File(path)), Err(CustodyError::PinUnreadable { .. })));
        }
    }

    #[test]
    fn message_names_the_file_and_never_the_pin() {
        let (_folder, source) = written(b"31415926", 0o644);
        let message = read(&source).err().unwrap().to_string();
        assert!(message.contains("/pin: its mode is 0644") && !message.contains("31415926"), "{message}");
    }

    #[test]
    fn credential_name_cannot_leave_its_folder() {
        for name in ["", "../pin", "a/b", ".."] {
            assert!(matches!(read(&PinSource::Credential(name.into())), Err(CustodyError::PinUnreadable { .. })));
        }
    }
}
