//! Looking at a path without disturbing what is there: metadata, and small regular files.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// Far more than any file that is read here has; whatever is larger is something else.
const MAX_BYTES: u64 = 1 << 20;

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look<T> {
    Missing,
    /// This user may not look.
    Forbidden,
    /// Neither; the system's own words.
    Failed(String),
    Found(T),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Folder,
    Socket,
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub kind: Kind,
    /// Permission bits with set-ID and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    /// Unix seconds.
    pub modified: i64,
}

/// A user and his own group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

/// `user` is the daemon's; `None` while nobody knows it, which counts in favour of what is there.
impl Entry {
    /// Somebody else than root and `user` may change it by its mode. Root's group and `user`'s own hold nobody else.
    pub fn writable_by_others(&self, user: Option<User>) -> bool {
        let by_group = self.mode & 0o020 != 0 && user.is_some_and(|user| ![0, user.gid].contains(&self.gid));
        self.mode & 0o002 != 0 || by_group
    }

    /// Of a folder: its entries may be replaced by somebody else. The sticky bit forbids that.
    pub fn replaceable(&self, user: Option<User>) -> bool {
        self.writable_by_others(user) && self.mode & 0o1000 == 0
    }

    pub fn foreign(&self, user: Option<User>) -> bool {
        user.is_some_and(|user| ![0, user.uid].contains(&self.uid))
    }
}

impl<T> Look<T> {
    pub fn found(&self) -> Option<&T> {
        match self {
            Self::Found(found) => Some(found),
            _ => None,
        }
    }

    fn from_error(error: &io::Error) -> Self {
        match error.kind() {
            // A file where a folder should be: nothing is behind it.
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::Missing,
            io::ErrorKind::PermissionDenied => Self::Forbidden,
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// Follows symbolic links, as whoever uses the path does.
pub fn at(path: &Path) -> Look<Entry> {
    fs::metadata(path).map_or_else(|error| Look::from_error(&error), |metadata| Look::Found(entry(&metadata)))
}

fn entry(metadata: &Metadata) -> Entry {
    let file_type = metadata.file_type();
    let kind = match () {
        () if file_type.is_file() => Kind::File,
        () if file_type.is_dir() => Kind::Folder,
        () if file_type.is_socket() => Kind::Socket,
        () => Kind::Other,
    };
    Entry {
        kind,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        size: metadata.size(),
        modified: metadata.mtime(),
    }
}

/// The text of a small regular file. A pipe or a device in its place is not waited for.
pub fn read(path: &Path) -> Look<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let read = || {
        let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        let mut text = String::new();
        file.take(MAX_BYTES + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is larger than 1 MiB"));
        }
        Ok(text)
    };
    read().map_or_else(|error| Look::from_error(&error), Look::Found)
}

/// Names in a folder, sorted; none if it cannot be read.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_folders_and_long_files_are_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        fs::write(at("long"), vec![b'x'; MAX_BYTES as usize + 1]).unwrap();
        fs::write(at("binary"), [0xff, 0xfe]).unwrap();
        for name in ["pipe", "long", "binary"] {
            assert!(matches!(read(&at(name)), Look::Failed(_)), "{name}: {:?}", read(&at(name)));
        }
        assert!(!matches!(read(folder.path()), Look::Found(_)));
        assert_eq!(read(&at("missing")), Look::Missing);
        assert_eq!(read(&at("long/inside")), Look::Missing);
        assert_eq!(super::at(&at("pipe")).found().unwrap().kind, Kind::Other);
    }
}
