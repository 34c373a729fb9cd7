//! The trail's folder: `audit.log` is written, `audit-<number of its first line>.log` are closed. All of them in order are the trail.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use keystead_core::audit::{MAX_LINE, Position};
use rustix::fs::{Mode, OFlags};

const OPEN: &str = "audit.log";

/// Makes the trail's folder (0700) if it is missing.
pub fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// The files of a folder, oldest first; the open one last, if there is one.
pub(super) fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut closed = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let path = folder.join(name);
        if let Some(first) = first_in_name(&path) {
            closed.push((first, path));
        }
    }
    closed.sort();
    let mut files: Vec<PathBuf> = closed.into_iter().map(|(_, path)| path).collect();
    let open = folder.join(OPEN);
    if open.exists() {
        files.push(open);
    }
    Ok(files)
}

/// The number of the first line, in the name of a closed file.
pub(super) fn first_in_name(path: &Path) -> Option<u64> {
    let digits = path.file_name()?.to_str()?.strip_prefix("audit-")?.strip_suffix(".log")?;
    (digits.len() == 20).then(|| digits.parse().ok())?
}

/// Opens a file of the trail for reading, if it is one: whoever can write the folder must not make us read another.
pub(super) fn open_to_read(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    regular(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

fn regular(file: File) -> io::Result<File> {
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(file)
}

/// The file that lines are added to.
#[derive(Debug)]
pub(super) struct OpenFile {
    file: File,
    folder: PathBuf,
    bytes: u64,
    /// Number of its first line; `None` while it is empty.
    first: Option<u64>,
    opened: SystemTime,
    /// Of a write that failed, something may be in the file that could not be taken away yet.
    torn: bool,
}

/// What opening found.
pub(super) struct Opened {
    pub file: OpenFile,
    /// After the last line there is, or `None` without any.
    pub last: Option<Position>,
    /// Bytes of a last line that a power cut left unfinished; they are gone.
    pub cut: u64,
}

impl OpenFile {
    /// Opens the folder's trail where it ended.
    pub(super) fn open(folder: &Path) -> io::Result<Opened> {
        make_folder(folder)?;
        let flags =
            OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = regular(File::from(rustix::fs::open(folder.join(OPEN), flags, Mode::from(0o600))?))?;
        let metadata = file.metadata()?;
        let whole = whole_lines(&file, metadata.len())?;
        let cut = metadata.len() - whole;
        if cut > 0 {
            file.set_len(whole)?;
        }
        let mut last = last_line(&file, whole)?;
        let first = match whole {
            0 => None,
            _ => first_line(&file)?.and_then(|line| Position::at(&line).ok()).map(|position| position.sequence),
        };
        if last.is_none()
            && let Some(closed) = list(folder)?.iter().rev().nth(1)
        {
            let closed = open_to_read(closed)?;
            let bytes = closed.metadata()?.len();
            last = last_line(&closed, bytes)?;
        }
        let last = last.map(|line| Position::at(&line)).transpose().map_err(io::Error::other)?;
        let opened = metadata.created().or_else(|_| metadata.modified()).unwrap_or_else(|_| SystemTime::now());
        Ok(Opened {
            file: Self { file, folder: folder.to_owned(), bytes: whole, first, opened, torn: false },
            last,
            cut,
        })
    }

    /// Adds whole lines, of which the first has the number `first`: all of them, or none.
    pub(super) fn write(&mut self, lines: &[u8], first: u64) -> io::Result<()> {
        // What is there of lines that failed would hide those that follow.
        if self.torn {
            self.file.set_len(self.bytes)?;
            self.torn = false;
        }
        if let Err(error) = self.file.write_all(lines) {
            self.torn = self.file.set_len(self.bytes).is_err();
            return Err(error);
        }
        self.first.get_or_insert(first);
        self.bytes += lines.len() as u64;
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        fail::fail_point!(crate::failpoint::AUDIT);
        self.file.sync_data()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn opened(&self) -> SystemTime {
        self.opened
    }

    /// Closes the file under the name of its first line and begins the next; of the closed ones the newest `keep` stay.
    pub(super) fn rotate(&mut self, keep: usize) -> io::Result<()> {
        let Some(first) = self.first else { return Ok(()) };
        self.file.sync_data()?;
        let (path, closed) = (self.folder.join(OPEN), self.folder.join(format!("audit-{first:020}.log")));
        match fs::rename(&path, &closed) {
            // It was closed before, and then there was no descriptor or no space to begin the next one.
            Err(error) if error.kind() == io::ErrorKind::NotFound && closed.exists() => {}
            renamed => renamed?,
        }
        self.file = OpenOptions::new().append(true).read(true).create_new(true).mode(0o600).open(&path)?;
        (self.bytes, self.first, self.opened) = (0, None, SystemTime::now());
        File::open(&self.folder)?.sync_all()?;
        let files = list(&self.folder)?;
        for old in files.iter().take(files.len().saturating_sub(keep + 1)) {
            fs::remove_file(old)?;
        }
        Ok(())
    }
}

/// Length of the file up to and with its last line end.
fn whole_lines(file: &File, bytes: u64) -> io::Result<u64> {
    let tail = tail(file, bytes)?;
    match tail.iter().rposition(|&byte| byte == b'\n') {
        Some(end) => Ok(bytes - tail.len() as u64 + end as u64 + 1),
        // No line is longer than the tail: there is none.
        None if tail.len() as u64 == bytes => Ok(0),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "the file does not end in a line of an audit trail")),
    }
}

fn last_line(file: &File, whole: u64) -> io::Result<Option<Vec<u8>>> {
    let tail = tail(file, whole)?;
    let Some(lines) = tail.strip_suffix(b"\n") else { return Ok(None) };
    let start = lines.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    Ok(Some(lines[start..].to_vec()))
}

fn first_line(file: &File) -> io::Result<Option<Vec<u8>>> {
    let mut file = file;
    file.seek(SeekFrom::Start(0))?;
    let mut head = Vec::new();
    file.take(MAX_LINE as u64 + 1).read_to_end(&mut head)?;
    Ok(head.iter().position(|&byte| byte == b'\n').map(|end| head[..end].to_vec()))
}

/// The last bytes, at least two lines of the longest if there are.
fn tail(file: &File, bytes: u64) -> io::Result<Vec<u8>> {
    let start = bytes.saturating_sub(2 * MAX_LINE as u64 + 2);
    let mut file = file;
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.take(bytes - start).read_to_end(&mut tail)?;
    Ok(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rest_of_a_write_that_failed_is_gone_before_the_next_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = OpenFile::open(folder.path()).unwrap().file;
        file.write(b"one\n", 1).unwrap();
        // What a write leaves behind that failed half-way, where it could not be taken back either.
        (&file.file).write_all(b"tw").unwrap();
        file.torn = true;
        file.write(b"two\n", 2).unwrap();
        assert_eq!(fs::read(folder.path().join(OPEN)).unwrap(), b"one\ntwo\n");
    }
}
