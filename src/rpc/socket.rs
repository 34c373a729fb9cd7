//! Acquires the unix sockets that the services listen on, and gives them back at the end.
//!
//! A socket never exists with a wrong mode, a stale one (left by a power cut) is replaced, a live one is never taken
//! from whoever serves it. Called by the supervisor only; it knows nothing of gRPC.

mod folder;
mod lock;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use rustix::fs::Gid;
use rustix::fs::{AtFlags, CWD, FileType, Mode};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use lock::SocketLock;

/// Connections that may wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// `sun_path` holds 108 bytes, the last of them NUL.
const MAX_PATH_BYTES: usize = 107;

/// How long a socket that answers is given to fall silent: a killed supervisor's children outlive it by an instant.
const LIVE_PATIENCE: Duration = Duration::from_millis(500);

/// Where a socket is and who may connect to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketSettings {
    pub path: PathBuf,
    /// Permission bits, as `0o600`.
    pub mode: u32,
    /// Group of the socket, and of its folder if that has to be made; the process's own if `None`.
    pub group: Option<Gid>,
}

/// A socket that listens. Dropping it unlinks what [`Self::acquire`] bound, if that is still there.
#[derive(Debug)]
pub struct ListeningSocket {
    fd: OwnedFd,
    /// `None` for one that the service manager owns.
    _bound: Option<Bound>,
}

/// Why a socket cannot be had. Each is for a person to act on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("{} cannot be a socket's path: {why}", path.display())]
    BadPath { path: PathBuf, why: &'static str },
    #[error("the folder of a socket, {}, {why}", folder.display())]
    BadFolder { folder: PathBuf, why: &'static str },
    #[error("{} is in use by a running process. Is another daemon running? It is left alone", path.display())]
    InUse { path: PathBuf },
    #[error("{} exists and is not a stream socket. Remove it, or choose another path", path.display())]
    Occupied { path: PathBuf },
    #[error("the service manager passed something else than a listening unix stream socket")]
    NotListening,
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl ListeningSocket {
    /// Binds and listens. Blocks for at most half a second, and only while somebody else answers on that path.
    pub fn acquire(settings: &SocketSettings) -> Result<Self, SocketError> {
        let address = address(&settings.path)?;
        folder::prepare(&settings.path, settings.group)?;
        let lock = SocketLock::take(&settings.path)?;
        clear_stale(&settings.path, &address)?;
        bind(settings, &address, lock)
    }

    /// Takes a socket that the service manager made; its path, mode and end are the manager's business.
    pub fn adopt(fd: OwnedFd) -> Result<Self, SocketError> {
        let listens = sockopt::socket_domain(&fd) == Ok(AddressFamily::UNIX)
            && sockopt::socket_type(&fd) == Ok(SocketType::STREAM)
            && sockopt::socket_acceptconn(&fd) == Ok(true);
        if !listens {
            return Err(SocketError::NotListening);
        }
        rustix::io::ioctl_fionbio(&fd, true).map_err(|_| SocketError::NotListening)?;
        Ok(Self { fd, _bound: None })
    }

    /// A second descriptor of the same socket, to be handed to the server process.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }
}

impl AsFd for ListeningSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn address(path: &Path) -> Result<SocketAddrUnix, SocketError> {
    let bad = |why| SocketError::BadPath { path: path.to_owned(), why };
    let bytes = path.as_os_str().as_bytes();
    if matches!(bytes.first(), None | Some(b'@' | 0)) {
        // Anybody on the machine may bind or connect to an abstract name: no folder and no mode guards it.
        return Err(bad("abstract sockets are not supported, give a path in the file system"));
    }
    if bytes.len() > MAX_PATH_BYTES {
        return Err(bad("it is longer than the 107 bytes that a socket address holds"));
    }
    SocketAddrUnix::new(path).map_err(|_| bad("it is not a file name"))
}

/// Removes a socket that nobody serves. The caller holds the lock.
fn clear_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), SocketError> {
    let failed = |action| move |errno: Errno| SocketError::Io { action, path: path.to_owned(), source: errno.into() };
    match rustix::fs::lstat(path) {
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(failed("look at")(errno)),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
            return Err(SocketError::Occupied { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    let give_up = Instant::now() + LIVE_PATIENCE;
    loop {
        match probe(address) {
            Err(Errno::CONNREFUSED) => break,
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::PROTOTYPE) => return Err(SocketError::Occupied { path: path.to_owned() }),
            // EAGAIN: somebody listens, and so many wait there that there is no room for the probe.
            Ok(()) | Err(Errno::AGAIN) if Instant::now() < give_up => std::thread::sleep(LIVE_PATIENCE / 20),
            Ok(()) | Err(Errno::AGAIN) => return Err(SocketError::InUse { path: path.to_owned() }),
            Err(errno) => return Err(failed("find out whether a daemon serves")(errno)),
        }
    }
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(failed("remove the stale socket")(errno)),
    }
}

fn probe(address: &SocketAddrUnix) -> rustix::io::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, address)
}

fn bind(settings: &SocketSettings, address: &SocketAddrUnix, lock: SocketLock) -> Result<ListeningSocket, SocketError> {
    let path = &settings.path;
    let failed = |action| {
        move |errno: Errno| match errno {
            Errno::ADDRINUSE => SocketError::InUse { path: path.to_owned() },
            errno => SocketError::Io { action, path: path.to_owned(), source: errno.into() },
        }
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(failed("make the socket"))?;
    // Linux gives the name the mode of the socket's own inode: with 0 nobody gets in before group and mode are set.
    rustix::fs::fchmod(&fd, Mode::empty()).map_err(failed("make the socket"))?;
    rustix::net::bind(&fd, address).map_err(failed("bind"))?;
    let stat = rustix::fs::lstat(path).map_err(failed("look at"))?;
    let bound = Bound { path: path.to_owned(), device: stat.st_dev, inode: stat.st_ino, _lock: lock };
    if settings.group.is_some() {
        rustix::fs::chownat(CWD, path, None, settings.group, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("set the group of"))?;
    }
    rustix::fs::chmod(path, Mode::from_raw_mode(settings.mode)).map_err(failed("set the mode of"))?;
    rustix::net::listen(&fd, BACKLOG).map_err(failed("listen on"))?;
    Ok(ListeningSocket { fd, _bound: Some(bound) })
}

/// A name in the file system that is ours to remove. The lock goes last: nobody binds before the name is gone.
#[derive(Debug)]
struct Bound {
    path: PathBuf,
    device: u64,
    inode: u64,
    _lock: SocketLock,
}

impl Drop for Bound {
    fn drop(&mut self) {
        // Somebody may have removed our socket and put another there: that one is not ours.
        if rustix::fs::lstat(&self.path).is_ok_and(|now| (now.st_dev, now.st_ino) == (self.device, self.inode))
            && let Err(errno) = rustix::fs::unlink(&self.path)
        {
            tracing::warn!(path = %self.path.display(), error = %errno, "the socket could not be removed");
        }
    }
}

#[cfg(test)]
mod tests;
