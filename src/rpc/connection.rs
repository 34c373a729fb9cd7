//! One accepted connection: a unix stream that knows its caller, holds a slot, and must open HTTP/2 in time.
//!
//! Once the handshake is through it adds one branch to each read and nothing to writes.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use super::admission::Verdict;
use super::incoming::Slot;
use super::peer::Caller;

/// The HTTP/2 preface and the head of the SETTINGS frame that must follow it (RFC 9113, 3.4).
const HANDSHAKE_BYTES: usize = 24 + 9;

#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    verdict: Arc<Verdict>,
    /// `None` once the handshake is through.
    handshake: Option<Handshake>,
    slot: Slot,
}

#[derive(Debug)]
struct Handshake {
    deadline: Pin<Box<Sleep>>,
    awaited: usize,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, verdict: Verdict, slot: Slot, deadline: Duration) -> Self {
        let awaited = if verdict.at_first().admitted { HANDSHAKE_BYTES } else { usize::MAX };
        let handshake = Handshake { deadline: Box::pin(tokio::time::sleep(deadline)), awaited };
        Self { stream, verdict: Arc::new(verdict), handshake: Some(handshake), slot }
    }

    /// On its peer, for as long as there are requests of his.
    pub(super) fn verdict(&self) -> Arc<Verdict> {
        Arc::clone(&self.verdict)
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(handshake) = &mut self.handshake else {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        };
        if handshake.deadline.as_mut().poll(cx).is_ready() {
            self.slot.expired();
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        handshake.awaited = handshake.awaited.saturating_sub(buffer.filled().len() - before);
        if handshake.awaited == 0 {
            self.handshake = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.verdict.caller()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.handshake.is_some() {
            return self.poll_handshake(cx, buffer);
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
