//! Sockets against every obstacle that a folder can hold.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use super::*;

fn settings(path: impl Into<PathBuf>) -> SocketSettings {
    SocketSettings { path: path.into(), mode: 0o600, group: None }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn acquire_sets_mode_and_serves() {
    let folder = folder();
    let path = folder.path().join("kms.sock");
    let socket = ListeningSocket::acquire(&SocketSettings { mode: 0o660, ..settings(&path) }).unwrap();
    let stat = fs::symlink_metadata(&path).unwrap();
    assert!(stat.file_type().is_socket());
    assert_eq!(stat.mode() & 0o7777, 0o660);
    UnixStream::connect(&path).unwrap();
    drop(socket);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "socket and lock are both gone");
}

#[test]
fn acquire_sets_group_where_we_may() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = folder();
    let path = folder.path().join("run/kms.sock");
    let group = Some(Gid::from_raw(12_345));
    let _socket = ListeningSocket::acquire(&SocketSettings { group, ..settings(&path) }).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().gid(), 12_345);
    let made = fs::metadata(folder.path().join("run")).unwrap();
    assert_eq!((made.gid(), made.mode() & 0o7777), (12_345, 0o750));
}

#[test]
fn stale_socket_is_replaced() {
    let folder = folder();
    let path = folder.path().join("kms.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let _socket = ListeningSocket::acquire(&settings(&path)).unwrap();
    UnixStream::connect(&path).unwrap();
}

#[test]
fn live_socket_of_a_stranger_is_not_stolen() {
    let folder = folder();
    let path = folder.path().join("kms.sock");
    let stranger = UnixListener::bind(&path).unwrap();
    assert!(matches!(ListeningSocket::acquire(&settings(&path)), Err(SocketError::InUse { .. })));
    UnixStream::connect(&path).unwrap();
    stranger.accept().unwrap();
    assert!(!folder.path().join("kms.sock.lock").exists());
}

#[test]
fn live_socket_with_a_full_backlog_is_not_stolen() {
    let folder = folder();
    let path = folder.path().join("kms.sock");
    let address = SocketAddrUnix::new(&path).unwrap();
    let stranger = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&stranger, &address).unwrap();
    rustix::net::listen(&stranger, 0).unwrap();
    let _waiting = UnixStream::connect(&path).unwrap();
    assert_eq!(probe(&address), Err(Errno::AGAIN));
    assert!(matches!(ListeningSocket::acquire(&settings(&path)), Err(SocketError::InUse { .. })));
}

#[test]
fn our_own_live_socket_is_not_acquired_twice() {
    let folder = folder();
    let path = folder.path().join("kms.sock");
    let _first = ListeningSocket::acquire(&settings(&path)).unwrap();
    assert!(matches!(ListeningSocket::acquire(&settings(&path)), Err(SocketError::InUse { .. })));
    UnixStream::connect(&path).unwrap();
}

#[test]
fn anything_but_a_stream_socket_in_the_way_is_left_alone() {
    let folder = folder();
    let file = folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink("elsewhere.sock", &link).unwrap();
    let directory = folder.path().join("directory");
    fs::create_dir(&directory).unwrap();
    let datagram = folder.path().join("datagram");
    let _datagram = UnixDatagram::bind(&datagram).unwrap();
    for path in [&file, &link, &directory, &datagram] {
        let outcome = ListeningSocket::acquire(&settings(path));
        assert!(matches!(outcome, Err(SocketError::Occupied { .. })), "{path:?}: {outcome:?}");
        assert!(fs::symlink_metadata(path).is_ok());
    }
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    assert!(!folder.path().join("elsewhere.sock").exists());
}

#[test]
fn symlink_as_lock_file_is_not_followed() {
    let folder = folder();
    std::os::unix::fs::symlink("victim", folder.path().join("kms.sock.lock")).unwrap();
    let outcome = ListeningSocket::acquire(&settings(folder.path().join("kms.sock")));
    assert!(matches!(outcome, Err(SocketError::Io { action: "lock", .. })));
    assert!(!folder.path().join("victim").exists());
}

#[test]
fn abstract_empty_and_too_long_paths_are_refused() {
    for path in ["@keystead".to_owned(), "\0keystead".to_owned(), String::new(), format!("/tmp/{}", "x".repeat(103))] {
        let outcome = ListeningSocket::acquire(&settings(&path));
        assert!(matches!(outcome, Err(SocketError::BadPath { .. })), "{path:?}: {outcome:?}");
    }
}

#[test]
fn longest_path_is_accepted() {
    let folder = folder();
    let room = MAX_PATH_BYTES - folder.path().as_os_str().len() - 1;
    let path = folder.path().join("x".repeat(room));
    let _socket = ListeningSocket::acquire(&settings(&path)).unwrap();
    UnixStream::connect(&path).unwrap();
}

#[test]
fn missing_folder_is_made_but_not_its_ancestors() {
    let folder = folder();
    let _socket = ListeningSocket::acquire(&settings(folder.path().join("run/kms.sock"))).unwrap();
    assert_eq!(fs::metadata(folder.path().join("run")).unwrap().mode() & 0o7777, 0o750);
    let outcome = ListeningSocket::acquire(&settings(folder.path().join("a/b/kms.sock")));
    assert!(matches!(outcome, Err(SocketError::Io { .. })));
    assert!(!folder.path().join("a").exists());
}

#[test]
fn folder_that_others_may_write_is_refused_unless_sticky() {
    let folder = folder();
    let run = folder.path().join("run");
    fs::create_dir(&run).unwrap();
    fs::set_permissions(&run, fs::Permissions::from_mode(0o777)).unwrap();
    let outcome = ListeningSocket::acquire(&settings(run.join("kms.sock")));
    assert!(matches!(outcome, Err(SocketError::BadFolder { .. })));
    // Nor is a new folder made inside such a one.
    let outcome = ListeningSocket::acquire(&settings(run.join("deeper/kms.sock")));
    assert!(matches!(outcome, Err(SocketError::BadFolder { .. })));
    fs::set_permissions(&run, fs::Permissions::from_mode(0o1777)).unwrap();
    ListeningSocket::acquire(&settings(run.join("kms.sock"))).unwrap();
}

#[test]
fn folder_of_another_user_or_group_is_refused() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = folder();
    let run = folder.path().join("run");
    fs::create_dir(&run).unwrap();
    std::os::unix::fs::chown(&run, Some(12_345), None).unwrap();
    let outcome = ListeningSocket::acquire(&settings(run.join("kms.sock")));
    assert!(matches!(outcome, Err(SocketError::BadFolder { .. })));
    std::os::unix::fs::chown(&run, Some(0), Some(12_345)).unwrap();
    fs::set_permissions(&run, fs::Permissions::from_mode(0o770)).unwrap();
    let outcome = ListeningSocket::acquire(&settings(run.join("kms.sock")));
    assert!(matches!(outcome, Err(SocketError::BadFolder { .. })));
}

#[test]
fn folder_that_is_a_file_is_refused() {
    let folder = folder();
    fs::write(folder.path().join("run"), "").unwrap();
    let outcome = ListeningSocket::acquire(&settings(folder.path().join("run/kms.sock")));
    assert!(outcome.is_err());
}

#[test]
fn release_leaves_what_somebody_else_put_there() {
    let folder = folder();
    let path = folder.path().join("kms.sock");
    let socket = ListeningSocket::acquire(&settings(&path)).unwrap();
    fs::remove_file(&path).unwrap();
    let _stranger = UnixListener::bind(&path).unwrap();
    drop(socket);
    UnixStream::connect(&path).unwrap();
}

#[test]
fn adopt_takes_listening_stream_sockets_only() {
    let folder = folder();
    let path = folder.path().join("kms.sock");
    let adopted = ListeningSocket::adopt(UnixListener::bind(&path).unwrap().into()).unwrap();
    let listener = UnixListener::from(adopted.share().unwrap());
    assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    drop(adopted);
    assert!(path.exists(), "the service manager's socket is not ours to remove");

    let (pair, _other) = UnixStream::pair().unwrap();
    let not_listening = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let file = fs::File::open("/dev/null").unwrap();
    for fd in [OwnedFd::from(pair), not_listening, tcp.into(), file.into()] {
        assert!(matches!(ListeningSocket::adopt(fd), Err(SocketError::NotListening)));
    }
}
