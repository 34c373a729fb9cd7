//! Takes `:authority` out of the requests on a connection, on their way to h2. Knows nothing of gRPC.
//!
//! kube-apiserver up to 1.31 names the socket's path there, gRPC's C core the same percent-encoded, others nothing, and h2
//! resets a request whose authority is not a host. On a unix socket it says nothing, so it goes, whatever it says: one
//! path for all clients, and nothing to decode (docs/adr/0006-old-apiservers.md).
//!
//! Bytes are edited where h2 wants them. What is kept here is a header block that was not read in one go, never a byte of
//! a DATA frame, which may be part of a seed.

mod block;
mod frames;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use block::Table;
use frames::Found;

/// "PRI * HTTP/2.0" and so on (RFC 9113, 3.4), before the first frame.
const PREFACE_BYTES: usize = 24;

/// A stream whose reader sees no `:authority`. Writes go straight through.
///
/// What HTTP/2 does not allow is passed on, for h2 to answer, and the next read fails with `InvalidData`.
#[derive(Debug)]
pub(super) struct WithoutAuthority<T> {
    stream: T,
    editor: Editor,
}

impl<T> WithoutAuthority<T> {
    pub fn new(stream: T) -> Self {
        let held = Held { bytes: Vec::new(), served: None };
        Self { stream, editor: Editor { passing: PREFACE_BYTES, table: Table::default(), held, is_refused: false } }
    }
}

/// What is known at one point of the stream of bytes.
#[derive(Debug)]
struct Editor {
    /// So many bytes are of no interest: the rest of the preface, or of a frame without headers.
    passing: usize,
    table: Table,
    held: Held,
    /// The client sent what nobody may; nothing after that is understood.
    is_refused: bool,
}

/// The head of a frame or a part of a header block, until the rest of it is read. At most one block.
#[derive(Debug)]
struct Held {
    bytes: Vec<u8>,
    /// How much of it the reader has; `None` while it is incomplete.
    served: Option<usize>,
}

impl Editor {
    /// Edits bytes that were just read, in place. Returns how many of them the reader gets; those behind are held, or
    /// follow what is refused.
    ///
    /// Nothing but header blocks is touched: bytes of DATA frames, which may be seeds, are not even moved.
    fn edit(&mut self, bytes: &mut [u8]) -> usize {
        let mut read = 0;
        loop {
            let passing = self.passing.min(bytes.len() - read);
            read += passing;
            self.passing -= passing;
            if read == bytes.len() {
                return read;
            }
            match frames::look(&bytes[read..]) {
                Found::Other { bytes } => self.passing = bytes,
                Found::Block { bytes: len } => {
                    let outcome = frames::rewrite(&mut bytes[read..read + len], &mut self.table);
                    read += len;
                    if outcome.is_err() {
                        self.is_refused = true;
                        return read;
                    }
                }
                Found::Short { .. } => {
                    self.held.bytes.extend_from_slice(&bytes[read..]);
                    return read;
                }
                Found::Refused => {
                    self.is_refused = true;
                    return bytes.len();
                }
            }
        }
    }

    /// How many more bytes are needed to judge what is held; `None` once it is judged and being served.
    fn settle(&mut self) -> Option<usize> {
        match frames::look(&self.held.bytes) {
            Found::Short { missing } => return Some(missing),
            Found::Other { bytes } => self.passing = bytes - self.held.bytes.len(),
            Found::Block { .. } => {
                self.is_refused = frames::rewrite(&mut self.held.bytes, &mut self.table).is_err();
            }
            Found::Refused => self.is_refused = true,
        }
        self.held.served = Some(0);
        None
    }
}

impl Held {
    /// Gives the reader what it takes.
    fn serve(&mut self, buffer: &mut ReadBuf<'_>) {
        let served = self.served.unwrap_or(0);
        let len = buffer.remaining().min(self.bytes.len() - served);
        buffer.put_slice(&self.bytes[served..served + len]);
        if served + len < self.bytes.len() {
            self.served = Some(served + len);
        } else {
            // Blocks are seldom split, and clients many: no memory is kept for the next one.
            *self = Self { bytes: Vec::new(), served: None };
        }
    }
}

impl<T: AsyncRead + Unpin> WithoutAuthority<T> {
    /// Reads on until what is held can be served. Never more than belongs to it: nothing behind a header block gets here.
    fn poll_complete(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(missing) = self.editor.settle() {
            let held = &mut self.editor.held;
            let len = held.bytes.len();
            held.bytes.resize(len + missing, 0);
            let mut rest = ReadBuf::new(&mut held.bytes[len..]);
            let outcome = Pin::new(&mut self.stream).poll_read(cx, &mut rest);
            let read = rest.filled().len();
            held.bytes.truncate(len + read);
            ready!(outcome)?;
            if read == 0 {
                // The end, in the middle of a frame: as it is.
                held.served = Some(0);
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for WithoutAuthority<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.editor.held.bytes.is_empty() {
                if this.editor.held.served.is_none() {
                    ready!(this.poll_complete(cx))?;
                }
                this.editor.held.serve(buffer);
                return Poll::Ready(Ok(()));
            }
            if this.editor.is_refused {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            let before = buffer.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
            let bytes = &mut buffer.filled_mut()[before..];
            if bytes.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let left = this.editor.edit(bytes);
            buffer.set_filled(before + left);
            // Nothing left is not the end: all of it is held.
            if left > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for WithoutAuthority<T> {
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

#[cfg(test)]
mod tests;
