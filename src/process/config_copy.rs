//! The configuration as the supervisor read it, handed to its children in a sealed memory file.
//!
//! Not by path: all three processes must see the same text, also when the file is edited meanwhile, and a confined
//! server cannot open it. Not by arguments or environment: those are shown to everybody.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

/// Far above any configuration; a child reads no more than this.
const MOST_BYTES: u64 = 1 << 20;

/// What was read, and from where: paths in it are relative to its folder. No path: the defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigCopy {
    pub path: Option<PathBuf>,
    pub text: String,
}

impl ConfigCopy {
    /// Writes a memory file that nobody can change any more.
    pub fn to_memory_file(&self) -> io::Result<OwnedFd> {
        let path = self.path.as_deref().map_or(&[][..], |path| path.as_os_str().as_bytes());
        // No path holds a NUL, so that it ends one.
        sealed(&[path, &[0], self.text.as_bytes()].concat())
    }

    /// Reads what [`Self::to_memory_file`] wrote. By position: the children share the file's offset.
    pub fn from_memory_file(fd: OwnedFd) -> io::Result<Self> {
        let bytes = read_sealed(fd)?;
        let invalid = |why| io::Error::new(io::ErrorKind::InvalidData, why);
        let end = bytes.iter().position(|byte| *byte == 0).ok_or_else(|| invalid("no path before the text"))?;
        let path = (end > 0).then(|| Path::new(OsStr::from_bytes(&bytes[..end])).to_owned());
        let text = std::str::from_utf8(&bytes[end + 1..]).map_err(|_| invalid("the text is not UTF-8"))?;
        Ok(Self { path, text: text.to_owned() })
    }
}

/// A memory file with these bytes, which nobody can change any more.
pub(super) fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memory_file()?);
    file.write_all(bytes)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// Its bytes.
pub(super) fn read_sealed(fd: OwnedFd) -> io::Result<Vec<u8>> {
    let file = File::from(fd);
    let length = file.metadata()?.len();
    if length > MOST_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the configuration is larger than 1 MiB"));
    }
    // Bounded by the check above.
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn memory_file() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create("keystead-config", flags | MemfdFlags::NOEXEC_SEAL) {
        // Linux before 6.3 does not know NOEXEC_SEAL; later ones may insist on it.
        Err(Errno::INVAL) => Ok(rustix::fs::memfd_create("keystead-config", flags)?),
        outcome => Ok(outcome?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_arrives_with_and_without_a_path() {
        for path in [None, Some(PathBuf::from("/etc/keystead/config.toml"))] {
            let copy = ConfigCopy { path, text: "keyring = \"a\"\n# \0 é".to_owned() };
            assert_eq!(ConfigCopy::from_memory_file(copy.to_memory_file().unwrap()).unwrap(), copy);
        }
    }

    #[test]
    fn copy_cannot_be_changed_and_is_read_twice() {
        let copy = ConfigCopy { path: None, text: "a".to_owned() };
        let fd = copy.to_memory_file().unwrap();
        let again = fd.try_clone().unwrap();
        let file = File::from(fd.try_clone().unwrap());
        assert!(file.write_at(b"x", 0).is_err());
        assert!(file.set_len(0).is_err());
        assert_eq!(ConfigCopy::from_memory_file(fd).unwrap(), copy);
        assert_eq!(ConfigCopy::from_memory_file(again).unwrap(), copy);
    }

    #[test]
    fn nonsense_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.write_at(b"no end of a path", 0).unwrap();
        assert!(ConfigCopy::from_memory_file(file.into()).is_err());
    }
}
