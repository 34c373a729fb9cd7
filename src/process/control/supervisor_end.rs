//! The supervisor's end: polled, never blocking.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::{Report, frame};

#[derive(Debug)]
pub struct ControlSupervisorEnd(OwnedFd);

impl ControlSupervisorEnd {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Hands `stream` over; the custodian has the other end of it.
    pub fn new_custodian(&self, stream: UnixStream, restarts: u32) -> io::Result<()> {
        frame::send(self.as_fd(), &frame::encode_new_custodian(restarts), Some(stream.as_fd()))
    }

    /// Hands over what a configuration that was read again comes to.
    pub fn verdict(&self, verdict: OwnedFd) -> io::Result<()> {
        frame::send(self.as_fd(), &frame::encode_verdict(), Some(verdict.as_fd()))
    }

    pub fn drain(&self) -> io::Result<()> {
        frame::send(self.as_fd(), &frame::encode_drain(), None)
    }

    /// Asks whether the server still runs; the answer is [`Report::Alive`].
    pub fn ask(&self) -> io::Result<()> {
        frame::send(self.as_fd(), &frame::encode_ask(), None)
    }

    /// The answer to [`Report::AskLogin`].
    pub fn login(&self, pid: i32, uid: Option<u32>) -> io::Result<()> {
        frame::send(self.as_fd(), &frame::encode_login(pid, uid), None)
    }

    /// The next report. Nothing when the server is gone, `WouldBlock` when it has said nothing.
    pub fn receive(&self) -> io::Result<Option<Report>> {
        // A descriptor that comes along is closed: the server has none to give.
        frame::receive(self.as_fd())?.map(|(bytes, _)| frame::decode_report(&bytes)).transpose()
    }
}

impl AsFd for ControlSupervisorEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
