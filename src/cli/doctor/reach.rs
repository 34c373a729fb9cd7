//! Whether somebody listens on a unix socket, found out without waking a daemon: a connection to a socket that the service
//! manager holds would start one, and with it a login to the token.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt};

use crate::config::Site;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// With the process that made the socket listen, where the kernel says.
    Listens {
        pid: Option<u32>,
    },
    Missing,
    /// The name is there, and nobody behind it.
    Refused,
    /// The service manager holds it and no daemon runs; not connected to.
    Asleep,
    Forbidden,
    /// So many wait to be accepted that there is no room for one more.
    Crowded,
    Failed(String),
}

/// `servers`: whether any server process runs on this machine.
pub fn reach(path: &Path, site: &Site, servers: bool) -> Reach {
    if !servers && !bound_by_us(path) && listed(path, site) {
        return Reach::Asleep;
    }
    let probe = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(sockopt::socket_peercred(socket.as_fd()).ok())
    };
    match probe() {
        Ok(peer) => Reach::Listens { pid: peer.and_then(|peer| u32::try_from(peer.pid.as_raw_nonzero().get()).ok()) },
        Err(Errno::NOENT | Errno::NOTDIR) => Reach::Missing,
        // PROTOTYPE: another kind of socket. A plain file refuses, too.
        Err(Errno::CONNREFUSED | Errno::PROTOTYPE) => Reach::Refused,
        Err(Errno::ACCESS | Errno::PERM) => Reach::Forbidden,
        Err(Errno::AGAIN) => Reach::Crowded,
        Err(errno) => Reach::Failed(errno.to_string()),
    }
}

/// A daemon that bound the socket itself keeps a lock beside it.
pub fn bound_by_us(path: &Path) -> bool {
    let mut lock = OsString::from(path);
    lock.push(".lock");
    Path::new(&lock).exists()
}

/// Whether the kernel lists a listening socket of that name.
fn listed(path: &Path, site: &Site) -> bool {
    /// `__SO_ACCEPTCON`, as /proc/net/unix shows it.
    const LISTENS: &[u8] = b"00010000";
    let Ok(table) = File::open(site.path("/proc/net/unix")) else { return false };
    // As long as there are sockets, and with names that anybody may choose.
    BufReader::new(table).split(b'\n').map_while(Result::ok).any(|line| {
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        words.nth(3) == Some(LISTENS) && words.nth(3).is_some_and(|name| Path::new(OsStr::from_bytes(name)) == path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn socket_of_the_service_manager_is_not_connected_to_while_no_server_runs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let site = Site::this_machine();
        // Whoever may make a socket may give it a name that is no text.
        let _odd = UnixListener::bind(folder.path().join(OsStr::from_bytes(b"\xff.sock"))).unwrap();
        assert_eq!(reach(&path, &site, false), Reach::Missing);
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        assert_eq!(reach(&path, &site, false), Reach::Asleep);
        assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "somebody connected");
        let listens = Reach::Listens { pid: Some(std::process::id()) };
        assert_eq!(reach(&path, &site, true), listens);
        std::fs::write(folder.path().join("a.sock.lock"), "").unwrap();
        assert_eq!(reach(&path, &site, false), listens);
        drop(listener);
        assert_eq!(reach(&path, &site, false), Reach::Refused);
        std::fs::remove_file(folder.path().join("a.sock.lock")).unwrap();
        assert_eq!(reach(&path, &site, false), Reach::Refused);
    }

    #[test]
    fn other_things_in_its_place_do_not_listen() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(reach(&file, &Site::this_machine(), true), Reach::Refused);
        assert_eq!(reach(&file.join("below"), &Site::this_machine(), true), Reach::Missing);
    }
}
