//! SO_PEERGROUPS: the supplementary groups of a peer, which no safe wrapper offers (docs/adr/0004-unsafe-code.md).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// NGROUPS_MAX of Linux.
const MOST_GROUPS: usize = 65_536;
/// Enough for nearly everybody, so that one call suffices.
const FIRST_GUESS: usize = 64;

/// Empty where the kernel (before 4.13) does not know the option.
pub(super) fn of(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
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
