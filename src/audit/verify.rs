//! Reads a whole trail and says whether it is what was written: every line, every file, every checkpoint that can be checked.

use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use keystead_core::KeyringId;
use keystead_core::audit::{ChainError, Checkpoint, MAX_LINE, Position};

use super::files::{first_in_name, list, open_to_read};

/// What a trail turned out to be.
#[derive(Debug)]
pub struct Verified {
    pub files: usize,
    pub lines: u64,
    /// Number of the first line there is; above 1 where older files were removed by age.
    pub first: u64,
    /// After the last line.
    pub end: Position,
    /// The last checkpoint: everything before it stands or falls with its tag.
    pub checkpoint: Option<Checkpoint>,
    /// Bytes of a last line that is not finished (a power cut, or a write under way).
    pub unfinished: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("{} line {line}: {source}", path.display())]
    Line { path: PathBuf, line: u64, source: ChainError },
    #[error("cannot read {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "its last checkpoint is not one that custody vouches for: it was replaced, or custody could not be asked when it was \
         written"
    )]
    NotVouched,
    #[error("there is no audit trail in {}", .0.display())]
    Missing(PathBuf),
    #[error(
        "it ends at line {found}, and {written} lines were written: the last ones were taken out, or the file was replaced"
    )]
    Short { found: u64, written: u64 },
    #[error("line {0} is not the one that was written")]
    Changed(u64),
}

/// Follows every line of the trail in `folder`, which must go through `written`, if that is known. The tag of the last checkpoint is left to whoever has the key.
///
/// # Errors
/// The first line that does not follow: file, number of the line in it, and why.
pub fn verify(folder: &Path, keyring: &KeyringId, written: Option<Position>) -> Result<Verified, VerifyError> {
    let mut found = false;
    let verified = read(&files_of(folder)?, keyring, |here| found |= Some(here) == written)?;
    match written.map_or(0, |written| written.sequence) {
        _ if verified.lines == 0 => Err(VerifyError::Missing(folder.to_owned())),
        0 => Ok(verified),
        written if verified.end.sequence < written => Err(VerifyError::Short { found: verified.end.sequence, written }),
        written if !found => Err(VerifyError::Changed(written)),
        _ => Ok(verified),
    }
}

/// The newest files of a trail: enough of it for a look beside a running daemon, which may be adding to it.
#[derive(Debug)]
pub struct Newest {
    pub verified: Verified,
    /// Whether it goes through the position that was asked for; `None` where that lies in files that were not read.
    pub passes: Option<bool>,
}

/// As [`verify`], of no more than about `most` bytes at the end, and whether they go through `expected`.
///
/// # Errors
/// The first line that does not follow. A file that is closed meanwhile looks like that, too: try again once.
pub fn verify_newest(
    folder: &Path,
    keyring: &KeyringId,
    most: u64,
    expected: Option<Position>,
) -> Result<Newest, VerifyError> {
    let files = files_of(folder)?;
    let mut bytes = 0;
    let fits = |path: &&PathBuf| {
        bytes += path.symlink_metadata().map_or(0, |metadata| metadata.len());
        bytes <= most
    };
    // The last one may have been begun just now, and be empty.
    let newest = files.iter().rev().take_while(fits).count().max(2).min(files.len());
    let mut found = false;
    let verified = read(&files[files.len() - newest..], keyring, |here| found |= Some(here) == expected)?;
    let passes = match expected {
        _ if verified.lines == 0 => return Err(VerifyError::Missing(folder.to_owned())),
        None | Some(Position { sequence: 0, .. }) => Some(true),
        Some(expected) if expected.sequence < verified.first => None,
        Some(_) => Some(found),
    };
    Ok(Newest { verified, passes })
}

fn read(files: &[PathBuf], keyring: &KeyringId, mut each: impl FnMut(Position)) -> Result<Verified, VerifyError> {
    let mut verified = Verified {
        files: files.len(),
        lines: 0,
        first: 0,
        end: Position::start(keyring),
        checkpoint: None,
        unfinished: 0,
    };
    verified.unfinished = walk(files, keyring, |position, checkpoint| {
        if verified.first == 0 {
            verified.first = position.sequence;
        }
        verified.lines += 1;
        verified.end = position;
        verified.checkpoint = checkpoint.or(verified.checkpoint.take());
        each(position);
    })?;
    Ok(verified)
}

/// Whether the trail in `folder` went through `position`, and all its lines from there on follow. Reads no file that ended
/// before.
pub(super) fn went_through(folder: &Path, keyring: &KeyringId, position: Position) -> Result<bool, VerifyError> {
    if position.sequence == 0 {
        return Ok(true);
    }
    let files = files_of(folder)?;
    let later = |path: &PathBuf| first_in_name(path).is_none_or(|first| first > position.sequence);
    let first = files.iter().position(later).unwrap_or(files.len()).saturating_sub(1);
    let mut found = false;
    walk(&files[first..], keyring, |here, _| found |= here == position)?;
    Ok(found)
}

fn files_of(folder: &Path) -> Result<Vec<PathBuf>, VerifyError> {
    list(folder).map_err(|source| VerifyError::Io { path: folder.to_owned(), source })
}

/// Follows the lines of `files`, which follow each other; the bytes of an unfinished last line are returned.
fn walk(
    files: &[PathBuf],
    keyring: &KeyringId,
    mut each: impl FnMut(Position, Option<Checkpoint>),
) -> Result<u64, VerifyError> {
    let mut position: Option<Position> = None;
    // The one that is written first: closed under another name while the others are read, it is still the one that follows them.
    let mut last = files.last().map(|path| open_to_read(path));
    for (at, path) in files.iter().enumerate() {
        let failed = |source| VerifyError::Io { path: path.clone(), source };
        let file = last.take_if(|_| at + 1 == files.len()).unwrap_or_else(|| open_to_read(path));
        let mut reader = BufReader::new(file.map_err(failed)?);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            // A line without end must not fill the memory.
            let read = (&mut reader).take(MAX_LINE as u64 + 2).read_until(b'\n', &mut line).map_err(failed)?;
            if read == 0 {
                break;
            }
            let wrong = |source| VerifyError::Line { path: path.clone(), line: number, source };
            if line.pop_if(|byte| *byte == b'\n').is_none() {
                if at + 1 == files.len() && line.len() <= MAX_LINE {
                    return Ok(line.len() as u64);
                }
                return Err(wrong(ChainError::Malformed));
            }
            let named = first_in_name(path).filter(|_| number == 1);
            if let Some(expected) = named
                && Position::at(&line).is_ok_and(|found| found.sequence != expected)
            {
                let found = Position::at(&line).map_or(0, |found| found.sequence);
                return Err(wrong(ChainError::Sequence { expected, found }));
            }
            let here = match &mut position {
                Some(position) => position,
                None => position.insert(start(&line, keyring).map_err(wrong)?),
            };
            let checkpoint = here.follow(&line).map_err(wrong)?;
            each(*here, checkpoint);
        }
    }
    Ok(0)
}

/// Line 1 follows the keyring's name; a later one is believed where it stands, since age takes the files before it.
fn start(line: &[u8], keyring: &KeyringId) -> Result<Position, ChainError> {
    let before = Position::before(line)?;
    Ok(if before.sequence == 0 { Position::start(keyring) } else { before })
}
