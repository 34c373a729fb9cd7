//! The auth file: 32 random bytes that every key and NV index of ours asks for, and the name of the storage root key that the
//! TPM had when they were made.
//!
//! Text: `keystead-tpm-auth 1`, `auth <64 hex digits>`, `srk <hex of the SRK's name>`, a line each. With it, a snapshot and the TPM
//! everything is recovered; without it nothing is, so it belongs into a backup of its own.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tss_esapi::structures::Auth;
use zeroize::Zeroizing;

use super::srk::SrkName;
use crate::custody::contract::CustodyError;
use crate::custody::credential_file;
use crate::custody::settings::PinSource;

const FORMAT: &str = "keystead-tpm-auth 1";
const LEN: usize = 32;
/// The three lines with the longest name there is have 240 bytes.
const LONGEST_FILE: usize = 512;

pub(super) struct AuthFile {
    pub(super) value: AuthValue,
    /// Of the storage root key that the value was made for; none is asked for in a trial.
    pub(super) srk: Option<SrkName>,
    pub(super) path: String,
}

#[derive(Clone, PartialEq)]
pub(super) struct AuthValue(Zeroizing<[u8; LEN]>);

impl AuthFile {
    /// Of no file, for keys that live as long as a trial. Fits any TPM.
    pub(super) fn for_trial(value: &[u8; LEN]) -> Self {
        Self { value: AuthValue(Zeroizing::new(*value)), srk: None, path: String::new() }
    }
}

impl AuthValue {
    pub(super) fn as_bytes(&self) -> &[u8] {
        self.0.as_slice()
    }

    /// As the TSS takes it; wiped by it when dropped.
    pub(super) fn for_tss(&self) -> Auth {
        Auth::try_from(self.0.as_slice()).expect("32 bytes are a valid auth value")
    }
}

/// # Errors
/// `PinUnreadable`, saying what to change.
pub(super) fn read(source: &PinSource) -> Result<AuthFile, CustodyError> {
    let file = credential_file::read(source, LONGEST_FILE).map_err(|error| match error {
        CustodyError::PinUnreadable { detail } => {
            CustodyError::PinUnreadable { detail: format!("{detail}. `keystead tpm provision` makes the auth file") }
        }
        other => other,
    })?;
    let (value, srk) =
        parse(&file.content).ok_or_else(|| file.unreadable("it is not what `keystead tpm provision` writes"))?;
    Ok(AuthFile { value, srk: Some(srk), path: file.path.display().to_string() })
}

fn parse(content: &[u8]) -> Option<(AuthValue, SrkName)> {
    let text = std::str::from_utf8(content).ok()?;
    let mut lines = text.lines();
    if lines.next()? != FORMAT {
        return None;
    }
    let mut value = Zeroizing::new([0; LEN]);
    let digits = lines.next()?.strip_prefix("auth ")?.as_bytes();
    if digits.len() != 2 * LEN {
        return None;
    }
    for (byte, pair) in value.iter_mut().zip(digits.chunks(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    let srk = lines.next()?.strip_prefix("srk ")?.parse().ok()?;
    lines.next().is_none().then_some((AuthValue(value), srk))
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Writes a new file, readable by its owner only. One that is there is never overwritten: keys may depend on it.
pub(super) fn write(path: &Path, value: &[u8; LEN], srk: &SrkName) -> std::io::Result<()> {
    let mut text = Zeroizing::new(String::with_capacity(LONGEST_FILE));
    let _ = write!(text, "{FORMAT}\nauth ");
    for byte in value {
        let _ = write!(text, "{byte:02x}");
    }
    let _ = writeln!(text, "\nsrk {srk}");
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> SrkName {
        format!("000b{}", "ab".repeat(32)).parse().unwrap()
    }

    #[test]
    fn file_reads_back_as_it_was_written_and_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("auth");
        write(&path, &[0x5a; LEN], &name()).unwrap();
        let read = read(&PinSource::File(path.clone())).unwrap();
        assert_eq!((read.value.0.as_slice(), &read.srk), ([0x5a; LEN].as_slice(), &Some(name())));
        assert_eq!(write(&path, &[1; LEN], &name()).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn anything_else_is_refused_with_the_way_to_a_right_one() {
        let digits = "5a".repeat(LEN);
        for text in [
            String::new(),
            format!("auth {digits}\nsrk {}\n", name()),
            format!("{FORMAT}\nauth {digits}\n"),
            format!("{FORMAT}\nauth {}\nsrk {}\n", &digits[1..], name()),
            format!("{FORMAT}\nauth {}\nsrk {}\n", digits.to_uppercase(), name()),
            format!("{FORMAT}\nauth {digits}\nsrk 000b\n"),
            format!("{FORMAT}\nauth {digits}\nsrk {}\nmore\n", name()),
        ] {
            assert!(parse(text.as_bytes()).is_none(), "{text:?} was accepted");
        }
        let error = read(&PinSource::File("/nonexistent".into())).err().unwrap().to_string();
        assert!(error.contains("keystead tpm provision"), "{error}");
    }
}
