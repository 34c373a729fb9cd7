//! The note that a token has rejected a PIN, or a TPM an auth value: kept over restarts, so that a wrong PIN costs one try and no more.
//!
//! One file, `pin-rejected`: serial numbers, and a slow salted digest of each PIN that was rejected. By the PIN itself and
//! not by the state of its file, which a service manager makes anew at every start (docs/adr/0010-rejected-pins.md).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use argon2::{Algorithm, Argon2, Params, Version};
use base64ct::{Base64Unpadded, Encoding};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::contract::CustodyError;

const FORMAT: &str = "keystead-pin-rejected 2";
/// Of the format: another cost is another format. 16 MiB and about a tenth of a second, paid only for a PIN that was
/// rejected.
const COST: (u32, u32, u32) = (16 << 10, 3, 1);
const SALT_LEN: usize = 16;
const DIGEST_LEN: usize = 32;
/// PINs remembered; of more, the oldest is forgotten.
const MOST: usize = 16;
/// Far above what [`MOST`] lines take.
const MAX_LEN: u64 = 8 << 10;

/// Rejections that the disk could not take.
static UNWRITTEN: Mutex<Option<Note>> = Mutex::new(None);

/// Not even memory could take one: this process logs in no more.
static EVERY_PIN: AtomicBool = AtomicBool::new(false);

/// The digest computed last, so that a custodian which looks every second computes it once.
static LAST: Mutex<Option<Memo>> = Mutex::new(None);

pub(super) struct Latch {
    folder: PathBuf,
}

/// A note ready to be put down: opened before the login, as afterwards it must not fail for want of a folder.
pub(super) struct Prepared<'a> {
    latch: &'a Latch,
    file: File,
    note: Option<Note>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Note {
    salt: [u8; SALT_LEN],
    /// Serial number as the file spells it, and digest; oldest first.
    rejected: Vec<(String, [u8; DIGEST_LEN])>,
}

struct Memo {
    /// Under a key of this process, which is nowhere else.
    key: [u8; 64],
    tag: [u8; 32],
    salt: [u8; SALT_LEN],
    digest: [u8; DIGEST_LEN],
}

impl Latch {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Whether this token has rejected this very PIN.
    pub(super) fn holds(&self, serial: &str, pin: &[u8]) -> Result<bool, CustodyError> {
        if EVERY_PIN.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let unwritten = unwritten().clone();
        for note in [unwritten, self.read()?].into_iter().flatten() {
            if note.holds(serial, pin).map_err(|error| self.unusable(&error))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn prepare(&self) -> Result<Prepared<'_>, CustodyError> {
        let note = self.read()?;
        // A draft left behind is nobody's; made anew, it cannot be a link to somewhere else.
        let _ = fs::remove_file(self.draft());
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.draft())
            .map_err(|error| self.unusable(&error))?;
        Ok(Prepared { latch: self, file, note })
    }

    fn read(&self) -> Result<Option<Note>, CustodyError> {
        let mut text = String::new();
        let read = File::open(self.path())
            .and_then(|file| io::Read::read_to_string(&mut io::Read::take(file, MAX_LEN), &mut text));
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // Without knowing, a login might be the try too many.
            Err(error) => Err(self.unusable(&error)),
            Ok(_) => Note::parse(&text).map(Some).ok_or_else(|| CustodyError::PinUnreadable {
                detail: format!(
                    "no login: the note of a rejected PIN in {} is damaged or of another version. If the PIN is right, \
                     remove it",
                    self.path().display()
                ),
            }),
        }
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
    pub(super) fn put_down(mut self, serial: &str, pin: &[u8]) -> io::Result<()> {
        let mut note = self.note.take().map_or_else(Note::fresh, Ok)?;
        note.add(serial, pin)?;
        self.write(&note)
    }

    /// The token has taken a PIN: what it rejected before cost it nothing, and may be its PIN tomorrow.
    pub(super) fn discard(mut self, serial: &str) {
        let note = self.note.take().map(|note| note.without(serial)).filter(|note| !note.rejected.is_empty());
        // Left behind, neither does harm: the draft is made anew, and the PIN that was taken is in no note.
        let _ = match note {
            Some(note) => self.write(&note),
            None => fs::remove_file(self.latch.draft()).and_then(|()| fs::remove_file(self.latch.path())),
        };
        let mut unwritten = unwritten();
        *unwritten = unwritten.take().map(|note| note.without(serial));
    }

    fn write(&mut self, note: &Note) -> io::Result<()> {
        self.file.write_all(note.to_text().as_bytes())?;
        self.file.sync_all()?;
        fs::rename(self.latch.draft(), self.latch.path())?;
        File::open(&self.latch.folder)?.sync_all()
    }
}

/// Not tried again in this process, where the disk could not take the note.
pub(super) fn remember(serial: &str, pin: &[u8]) {
    let mut unwritten = unwritten();
    let noted = unwritten.take().map_or_else(Note::fresh, Ok).and_then(|mut note| {
        note.add(serial, pin)?;
        *unwritten = Some(note);
        Ok(())
    });
    if let Err(error) = noted {
        tracing::error!(%error, "a rejected PIN cannot be remembered: there is no other login until the custodian is replaced");
        EVERY_PIN.store(true, Ordering::Relaxed);
    }
}

/// Serial numbers of the tokens whose rejection of some PIN is on record in `folder`: for a look from beside the custodian,
/// which knows no PIN.
pub fn rejected_by(folder: &Path) -> io::Result<Vec<String>> {
    let latch = Latch::new(folder);
    let note = latch.read().map_err(|error| match File::open(latch.path()) {
        Ok(_) => io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
        Err(error) => error,
    })?;
    let mut serials: Vec<String> = Vec::new();
    for (serial, _) in note.into_iter().flat_map(|note| note.rejected) {
        let serial = serial.trim_matches('"').to_owned();
        if !serials.contains(&serial) {
            serials.push(serial);
        }
    }
    Ok(serials)
}

fn unwritten() -> MutexGuard<'static, Option<Note>> {
    UNWRITTEN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Note {
    fn fresh() -> io::Result<Self> {
        Ok(Self { salt: random()?, rejected: Vec::new() })
    }

    fn holds(&self, serial: &str, pin: &[u8]) -> io::Result<bool> {
        let serial = spelt(serial);
        // Nothing is computed for a token that has rejected nothing.
        if self.rejected.iter().all(|(other, _)| *other != serial) {
            return Ok(false);
        }
        let entry = (serial, digest(pin, &self.salt)?);
        Ok(self.rejected.contains(&entry))
    }

    fn add(&mut self, serial: &str, pin: &[u8]) -> io::Result<()> {
        let entry = (spelt(serial), digest(pin, &self.salt)?);
        if !self.rejected.contains(&entry) {
            self.rejected.push(entry);
        }
        self.rejected.drain(..self.rejected.len().saturating_sub(MOST));
        Ok(())
    }

    fn without(mut self, serial: &str) -> Self {
        let serial = spelt(serial);
        self.rejected.retain(|(other, _)| *other != serial);
        self
    }

    fn to_text(&self) -> String {
        let salt = Base64Unpadded::encode_string(&self.salt);
        let mut text = format!("{FORMAT}\n{salt}\n");
        for (serial, digest) in &self.rejected {
            text.push_str(&format!("{} {serial}\n", Base64Unpadded::encode_string(digest)));
        }
        text
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.split('\n');
        if lines.next()? != FORMAT {
            return None;
        }
        let salt = decode(lines.next()?)?;
        let rejected = lines.map(|line| {
            let (digest, serial) = line.split_once(' ')?;
            Some((serial.to_owned(), decode(digest)?))
        });
        Some(Self { salt, rejected: rejected.collect::<Option<_>>()? })
    }
}

/// On one line, whatever a token calls itself.
fn spelt(serial: &str) -> String {
    format!("{serial:?}")
}

fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    (Base64Unpadded::decode(text, &mut bytes).ok()?.len() == N).then_some(bytes)
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

fn digest(pin: &[u8], salt: &[u8; SALT_LEN]) -> io::Result<[u8; DIGEST_LEN]> {
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(memo) = &*last
        && memo.salt == *salt
        && memo.tag == tag(&memo.key, pin)
    {
        return Ok(memo.digest);
    }
    let (memory, passes, lanes) = COST;
    let params = Params::new(memory, passes, lanes, Some(DIGEST_LEN)).map_err(io::Error::other)?;
    let mut digest = [0; DIGEST_LEN];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(pin, salt, &mut digest)
        .map_err(io::Error::other)?;
    let key = random()?;
    *last = Some(Memo { key, tag: tag(&key, pin), salt: *salt, digest });
    Ok(digest)
}

fn tag(key: &[u8; 64], pin: &[u8]) -> [u8; 32] {
    let mut mac = <Hmac<Sha256> as KeyInit>::new(key.into());
    mac.update(pin);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reject(latch: &Latch, serial: &str, text: &str) {
        latch.prepare().unwrap().put_down(serial, text.as_bytes()).unwrap();
    }

    #[test]
    fn note_put_down_holds_for_that_token_and_that_pin_only() {
        let folder = tempfile::tempdir().unwrap();
        reject(&Latch::new(folder.path()), "s1", "1234");
        let latch = Latch::new(folder.path());
        assert_eq!(latch.holds("s1", b"1234"), Ok(true));
        assert_eq!(latch.holds("s2", b"1234"), Ok(false));
        for changed in ["1235", "123", "12345", "1234 "] {
            assert_eq!(latch.holds("s1", changed.as_bytes()), Ok(false), "{changed:?}");
        }
    }

    #[test]
    fn every_rejected_pin_of_every_token_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let latch = Latch::new(folder.path());
        let rejected = [("s1", "1111"), ("s\n2 \"", "2222"), ("s1", "3333")];
        for (serial, text) in rejected {
            reject(&latch, serial, text);
        }
        for (serial, text) in rejected {
            assert_eq!(latch.holds(serial, text.as_bytes()), Ok(true), "{serial:?}");
        }
        // One that was taken voids the rejections of its own token.
        latch.prepare().unwrap().discard("s1");
        assert_eq!(latch.holds("s1", b"1111"), Ok(false));
        assert_eq!(latch.holds("s\n2 \"", b"2222"), Ok(true));
    }

    #[test]
    fn of_too_many_the_oldest_is_forgotten() {
        let entry = |number: u8| (spelt("s1"), [number; DIGEST_LEN]);
        let mut note = Note { salt: [1; SALT_LEN], rejected: (0..MOST as u8).map(entry).collect() };
        note.add("s1", b"1234").unwrap();
        assert_eq!(note.rejected.len(), MOST);
        assert_eq!(note.rejected[0], entry(1));
        assert!(note.holds("s1", b"1234").unwrap());
        assert!(note.to_text().len() < MAX_LEN as usize);
        assert_eq!(Note::parse(&note.to_text()), Some(note));
    }

    #[test]
    fn note_holds_neither_the_pin_nor_the_same_bytes_twice() {
        let texts = [0, 1].map(|_| {
            let folder = tempfile::tempdir().unwrap();
            let latch = Latch::new(folder.path());
            reject(&latch, "s1", "31415926");
            let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(latch.path()).unwrap());
            assert_eq!(mode & 0o777, 0o600);
            fs::read_to_string(latch.path()).unwrap()
        });
        assert!(!texts[0].contains("31415926"));
        assert_ne!(texts[0], texts[1], "salted");
    }

    #[test]
    fn accepted_pin_leaves_no_note() {
        let folder = tempfile::tempdir().unwrap();
        let latch = Latch::new(folder.path());
        reject(&latch, "s1", "1234");
        latch.prepare().unwrap().discard("s1");
        assert_eq!(latch.holds("s1", b"1234"), Ok(false));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_noted_or_read_prevents_the_login() {
        let folder = tempfile::tempdir().unwrap();
        let latch = Latch::new(&folder.path().join("missing"));
        assert!(matches!(latch.prepare(), Err(CustodyError::PinUnreadable { .. })));
        let latch = Latch::new(folder.path());
        reject(&latch, "s1", "1234");
        let whole = fs::read_to_string(latch.path()).unwrap();
        let (without_last, _) = whole.trim_end().rsplit_once('\n').unwrap();
        for damaged in
            ["", "\n", "keystead-pin-rejected 1\n", without_last, whole.trim_end(), &whole.replace('\n', " ")]
        {
            fs::write(latch.path(), damaged).unwrap();
            let refused = latch.holds("s1", b"1234").unwrap_err();
            assert!(refused.to_string().contains("pin-rejected"), "{damaged:?}: {refused}");
        }
    }

    #[test]
    fn disk_that_took_no_note_is_made_up_for_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let latch = Latch::new(folder.path());
        remember("unwritten", b"1234");
        assert_eq!(latch.holds("unwritten", b"1234"), Ok(true));
        assert_eq!(latch.holds("unwritten", b"1235"), Ok(false));
    }
}
