//! The lock beside a socket: between probing a stale socket and binding the new one nobody else may do the same.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::SocketError;

/// Held as long as the socket is served. The kernel lets go of it when the process dies, however it dies.
#[derive(Debug)]
pub(super) struct SocketLock {
    path: PathBuf,
    _file: OwnedFd,
}

impl SocketLock {
    pub(super) fn take(socket: &Path) -> Result<Self, SocketError> {
        let mut path = OsString::from(socket);
        path.push(".lock");
        let path = PathBuf::from(path);
        let failed = |errno: Errno| SocketError::Io { action: "lock", path: path.clone(), source: errno.into() };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        loop {
            let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(SocketError::InUse { path: socket.to_owned() }),
                Err(errno) => return Err(failed(errno)),
            }
            // The former holder removes the file at its end: a lock on a file without a name excludes nobody.
            let ours = rustix::fs::fstat(&file).map_err(failed)?;
            match rustix::fs::lstat(&path) {
                Ok(named) if (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino) => {
                    return Ok(Self { path, _file: file });
                }
                Ok(_) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
    }
}

impl Drop for SocketLock {
    fn drop(&mut self) {
        // While the lock is held the name is ours; a name that stays behind does no harm.
        let _ = rustix::fs::unlink(&self.path);
    }
}
