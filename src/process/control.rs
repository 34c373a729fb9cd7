//! The channel between supervisor and server: packets on a socketpair, with a descriptor where one is handed over.
//!
//! The kernel keeps packets whole (SOCK_SEQPACKET), so that there is nothing to reassemble. Neither side ever blocks on
//! the other: a packet that does not fit is an error of whoever sends it.

mod frame;
mod server_end;
mod supervisor_end;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

pub use server_end::{ControlReporter, ControlServerEnd};
pub use supervisor_end::ControlSupervisorEnd;

/// What the supervisor tells the server.
#[derive(Debug)]
pub enum Order {
    /// A fresh custodian; one that came before is gone or doomed.
    NewCustodian { stream: UnixStream, restarts: u32 },
    /// Finish what is running and end; the server keeps its own deadline.
    Drain,
    /// Answer this with [`Report::Alive`].
    Ask,
    /// The answer to [`Report::AskLogin`]; no user where the kernel was not told or this process may not know.
    Login { pid: i32, uid: Option<u32> },
    /// The configuration was read again: a [`Verdict`](super::reload::Verdict) in a memory file.
    Reload { verdict: OwnedFd },
}

/// What the server tells the supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The sockets are served.
    Ready,
    /// The custodian that came with this number of restarts does not answer: replace it.
    CustodianHung { restarts: u32 },
    /// The answer to [`Order::Ask`]: the runtime still runs what it is given.
    Alive,
    /// An admin wants the custodian replaced, whichever it is: it ends by itself, as its connection is closed.
    ReplaceCustodian,
    /// Which user this process logged in as: the server cannot read /proc.
    AskLogin { pid: i32 },
    /// An admin wants the configuration read again; the verdict names this ticket.
    Reload { ticket: u32 },
    /// What came of a verdict.
    Reloaded { ticket: u32, applied: bool },
    /// One line for the service manager.
    Status(String),
}

/// Both ends; the second is for a child.
pub fn pair() -> io::Result<(ControlSupervisorEnd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    Ok((ControlSupervisorEnd::new(ours), theirs))
}

#[cfg(test)]
mod tests;
