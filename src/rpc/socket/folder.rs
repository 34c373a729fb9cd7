//! The folder that holds a socket: whoever may write to it may put a socket of his own in our place.

use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::fs::Gid;

use super::SocketError;

const WRITABLE_BY_GROUP: u32 = 0o020;
const WRITABLE_BY_OTHERS: u32 = 0o002;
const STICKY: u32 = 0o1000;
/// Group members may reach the socket, nobody but us may replace it.
const MODE_WHEN_MADE: u32 = 0o750;

/// Checks the folder of `socket`, and makes it (0750, of `group`) if only the last component is missing.
pub(super) fn prepare(socket: &Path, group: Option<Gid>) -> Result<(), SocketError> {
    let folder = parent(socket);
    match check(&folder) {
        Err(SocketError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            check(&parent(&folder))?;
            make(&folder, group)
        }
        outcome => outcome,
    }
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn check(folder: &Path) -> Result<(), SocketError> {
    // Follows symbolic links: /var/run is one on most systems.
    let stat = fs::metadata(folder).map_err(failed("look at", folder))?;
    let bad = |why| Err(SocketError::BadFolder { folder: folder.to_owned(), why });
    let us = rustix::process::geteuid().as_raw();
    if !stat.is_dir() {
        return bad("is not a folder");
    }
    if stat.uid() != us && stat.uid() != 0 {
        return bad("belongs to another user, who could put a socket of his own there");
    }
    let sticky = stat.mode() & STICKY != 0;
    if stat.mode() & WRITABLE_BY_OTHERS != 0 && !sticky {
        return bad("is writable by everybody. Run `chmod o-w` on it");
    }
    // A group of one's own (umask 002 on many systems) or root's adds nobody who could not do it anyway.
    let own_group = stat.gid() == 0 || stat.gid() == rustix::process::getegid().as_raw();
    if stat.mode() & WRITABLE_BY_GROUP != 0 && !sticky && !own_group {
        return bad("is writable by a group. Run `chmod g-w` on it");
    }
    Ok(())
}

fn make(folder: &Path, group: Option<Gid>) -> Result<(), SocketError> {
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        // Somebody was faster: then it is a folder like any other.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return check(folder),
        outcome => outcome.map_err(failed("make the folder", folder))?,
    }
    if let Some(group) = group {
        rustix::fs::chown(folder, None, Some(group))
            .map_err(|errno| failed("set the group of", folder)(errno.into()))?;
    }
    // Not by mkdir, whose mode the umask cuts.
    fs::set_permissions(folder, fs::Permissions::from_mode(MODE_WHEN_MADE)).map_err(failed("set the mode of", folder))
}

fn failed(action: &'static str, folder: &Path) -> impl FnOnce(io::Error) -> SocketError {
    move |source| SocketError::Io { action, path: folder.to_owned(), source }
}
