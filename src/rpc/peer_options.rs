//! SO_PEERGROUPS and SO_PEERPIDFD: the supplementary groups of a peer, and a hold on its process, which no safe wrapper offers
//! (docs/adr/0004-unsafe-code.md).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// NGROUPS_MAX of Linux.
const MOST_GROUPS: usize = 65_536;
/// Enough for nearly everybody, so that one call suffices.
const FIRST_GUESS: usize = 64;

/// The supplementary groups. Empty where the kernel (before 4.13) does not know the option.
pub(super) fn groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; FIRST_GUESS];
    loop {
        let mut bytes = size_of_val(groups.as_slice()) as libc::socklen_t;
        // SAFETY: the kernel writes at most `bytes` bytes to `groups`, whose length that is, and any bytes make a u32;
        // both pointers are valid for the call, and the descriptor is borrowed for longer than it.
        let outcome = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let count = bytes as usize / size_of::<u32>();
        if outcome == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // Too small: the kernel has said how much it takes.
            Some(libc::ERANGE) if count > groups.len() && count <= MOST_GROUPS => groups.resize(count, 0),
            // No groups were recorded, or the option is unknown.
            Some(libc::ENODATA | libc::ENOPROTOOPT) => return Ok(Vec::new()),
            _ => return Err(error),
        }
    }
}

/// A descriptor of the process that connected, which no other can be mistaken for. An error where that is gone, or the kernel is
/// older than 6.5.
pub(super) fn process(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut pidfd: libc::c_int = -1;
    let mut bytes = size_of_val(&pidfd) as libc::socklen_t;
    // SAFETY: the kernel writes at most `bytes` bytes to `pidfd`, whose size that is; both pointers are valid for the call, and the
    // descriptor is borrowed for longer than it.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERPIDFD,
            (&raw mut pidfd).cast(),
            &raw mut bytes,
        )
    };
    if outcome != 0 {
        return Err(io::Error::last_os_error());
    }
    if pidfd < 0 {
        return Err(io::ErrorKind::NotFound.into());
    }
    // SAFETY: the kernel has made this descriptor for this call, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
}
