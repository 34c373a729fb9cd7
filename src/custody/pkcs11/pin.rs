//! The user PIN: read at each login from a file that only its owner can write, wiped right after.

use cryptoki::types::AuthPin;

use crate::custody::contract::CustodyError;
use crate::custody::credential_file;
use crate::custody::settings::PinSource;

/// PKCS#11 tokens take PINs far shorter than this.
const MAX_LEN: usize = 256;

/// # Errors
/// `PinUnreadable`, saying what to change.
pub(super) fn read(source: &PinSource) -> Result<AuthPin, CustodyError> {
    let file = credential_file::read(source, MAX_LEN + 1)?;
    parse(&file.content).map_err(|problem| file.unreadable(&problem))
}

fn parse(content: &[u8]) -> Result<AuthPin, String> {
    let pin = content.strip_suffix(b"\n").unwrap_or(content);
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use rustix::fs::Mode;

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
