//! Descriptors that the process was started with: takes the promised ones, passes none of the others on
//! (docs/adr/0004-unsafe-code.md).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

use rustix::io::FdFlags;

/// One descriptor must not get two owners.
static TAKEN: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

/// Takes descriptor `number`, once.
///
/// Only for numbers at which whoever started this process promised a descriptor: by the arguments of a hidden
/// subcommand, or by LISTEN_FDS with our process ID. Call it before anything opens files of its own.
///
/// # Errors
/// `NotFound` when nothing is open there, `AlreadyExists` when it was taken before.
pub(super) fn take(number: RawFd) -> io::Result<OwnedFd> {
    let mut taken = TAKEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if number <= 2 || taken.contains(&number) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    // Shows that it is open; the path names a descriptor of ours whatever it refers to.
    std::fs::symlink_metadata(format!("/proc/self/fd/{number}"))?;
    taken.push(number);
    // SAFETY: it is open, was not taken before, and by this function's contract belongs to nobody else: the process
    // got it from outside, so no code of this process has an owner for it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// Sees to it that no child gets a descriptor that somebody left open for us: a sandbox does not close what is open.
///
/// What this process opens itself is closed on exec anyway.
pub(super) fn keep_from_children() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
        if number > 2 {
            // SAFETY: borrowed for this one call, which does no more than set a flag; if another thread closes it
            // meanwhile, the call fails or sets the flag on a descriptor that has it already.
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            // Closed meanwhile, as the listing's own descriptor will be: nothing is passed on.
            let _ = rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC);
        }
    }
    Ok(())
}
