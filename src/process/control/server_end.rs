//! The server's end: async to listen, immediate to report.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::net::UnixDatagram;

use super::{Order, Report, frame};

/// tokio knows no packet sockets: of this one only the descriptor and its readiness are used.
type Socket = UnixDatagram;

/// Listens to the supervisor.
#[derive(Debug)]
pub struct ControlServerEnd(Arc<Socket>);

/// Reports to the supervisor; cheap to clone.
#[derive(Debug, Clone)]
pub struct ControlReporter(Arc<Socket>);

impl ControlServerEnd {
    /// Call it within a tokio runtime.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self(Arc::new(Socket::from_std(fd.into())?)))
    }

    pub fn reporter(&self) -> ControlReporter {
        ControlReporter(Arc::clone(&self.0))
    }

    /// The next order; nothing when the supervisor is gone. May be cancelled without losing one.
    pub async fn next(&mut self) -> io::Result<Option<Order>> {
        let received = self.0.async_io(Interest::READABLE, || frame::receive(self.0.as_fd())).await?;
        received.map(|(bytes, fd)| frame::decode_order(&bytes, fd)).transpose()
    }
}

impl ControlReporter {
    /// The sockets are served.
    pub fn ready(&self) -> io::Result<()> {
        self.report(&Report::Ready)
    }

    /// The custodian that came with `restarts` is to be replaced. Naming it keeps a report that comes late from
    /// hitting its successor.
    pub fn custodian_hung(&self, restarts: u32) -> io::Result<()> {
        self.report(&Report::CustodianHung { restarts })
    }

    /// The answer to [`Order::Ask`].
    pub fn alive(&self) -> io::Result<()> {
        self.report(&Report::Alive)
    }

    /// The custodian is to be replaced; close its connection afterwards.
    pub fn replace_custodian(&self) -> io::Result<()> {
        self.report(&Report::ReplaceCustodian)
    }

    /// Which user this process logged in as; the answer is [`Order::Login`].
    pub fn ask_login(&self, pid: i32) -> io::Result<()> {
        self.report(&Report::AskLogin { pid })
    }

    /// Has the configuration read again for whoever has this ticket.
    pub fn reload(&self, ticket: u32) -> io::Result<()> {
        self.report(&Report::Reload { ticket })
    }

    /// What came of the verdict on it.
    pub fn reloaded(&self, ticket: u32, applied: bool) -> io::Result<()> {
        self.report(&Report::Reloaded { ticket, applied })
    }

    /// One line for the service manager; cut at 512 bytes.
    pub fn status(&self, text: &str) -> io::Result<()> {
        self.report(&Report::Status(text.to_owned()))
    }

    fn report(&self, report: &Report) -> io::Result<()> {
        frame::send(self.0.as_fd(), &frame::encode_report(report), None)
    }
}
