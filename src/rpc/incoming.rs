//! The connections of one socket as tonic takes them: limited in number, each with its caller, never spinning.
//!
//! Who comes beyond the limit is accepted, told so in HTTP/2 and closed, so that nobody waits in the backlog for a
//! slot that may not come.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::SendFlags;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Sleep;
use tokio_stream::Stream;

use super::admission::{Admission, LiveAdmission};
use super::connection::Connection;
use super::peer::Peer;

/// SETTINGS (empty), then GOAWAY with ENHANCE_YOUR_CALM: a gRPC client shows the text to whoever reads its errors.
const REFUSAL: &[u8] = b"\0\0\0\x04\0\0\0\0\0\
    \0\0\x1c\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0btoo many connections";

/// Connections of peers that are not admitted, at once: they are told no, and take no place from those who are.
const MAX_STRANGERS: usize = 8;

const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What one socket admits.
#[derive(Debug, Clone)]
pub struct IncomingSettings {
    /// A connection that has not opened HTTP/2 by then is closed. So is, whatever it does, one whose peer is not
    /// admitted: it can be told no and nothing else, and must not hold a slot for ever.
    pub handshake_deadline: Duration,
    pub admission: Admission,
}

/// What happened on one socket since it was opened; `open` is how many are connected now.
#[derive(Debug, Default)]
pub struct ConnectionCounters {
    pub open: AtomicU64,
    strangers: AtomicU64,
    pub accepted: AtomicU64,
    /// Beyond `max_connections`, or one stranger too many.
    pub refused: AtomicU64,
    /// Closed by the handshake deadline.
    pub expired: AtomicU64,
    /// By peers that are not admitted.
    pub unadmitted: AtomicU64,
}

impl ConnectionCounters {
    fn taken(&self, admitted: bool) -> &AtomicU64 {
        if admitted { &self.open } else { &self.strangers }
    }
}

/// Give this to tonic's `serve_with_incoming_shutdown`. Yields no errors and does not end.
#[derive(Debug)]
pub struct Incoming {
    listener: UnixListener,
    handshake_deadline: Duration,
    admission: Arc<LiveAdmission>,
    counters: Arc<ConnectionCounters>,
    pause: Option<Pin<Box<Sleep>>>,
    next_pause: Duration,
}

impl Incoming {
    pub fn new(listener: UnixListener, settings: IncomingSettings) -> Self {
        let IncomingSettings { handshake_deadline, admission } = settings;
        let admission = Arc::new(LiveAdmission::new(admission));
        Self {
            listener,
            handshake_deadline,
            admission,
            counters: Arc::default(),
            pause: None,
            next_pause: SHORTEST_PAUSE,
        }
    }

    /// To change while connections are open.
    pub fn admission(&self) -> Arc<LiveAdmission> {
        Arc::clone(&self.admission)
    }

    /// For the metrics.
    pub fn counters(&self) -> Arc<ConnectionCounters> {
        Arc::clone(&self.counters)
    }

    /// `None`: refused, and already closed.
    fn admit(&self, stream: UnixStream) -> Option<Connection> {
        let verdict = match Peer::of(&stream) {
            Ok(peer) => self.admission.judge(peer),
            Err(error) => {
                tracing::warn!(%error, "a peer's credentials cannot be read: its connection is closed");
                return None;
            }
        };
        let caller = verdict.at_first();
        let most = if caller.admitted { self.admission.max_connections() } else { MAX_STRANGERS };
        let Some(slot) = Slot::take(&self.counters, caller.admitted, most) else {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            // A fresh socket's buffer takes these few bytes; if the peer is gone already, nobody misses them.
            let _ = rustix::net::send(&stream, REFUSAL, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            return None;
        };
        self.counters.accepted.fetch_add(1, Ordering::Relaxed);
        if !caller.admitted {
            self.counters.unadmitted.fetch_add(1, Ordering::Relaxed);
        }
        Some(Connection::new(stream, verdict, slot, self.handshake_deadline))
    }

    fn pause_after(&mut self, error: &io::Error) {
        tracing::warn!(%error, pause = ?self.next_pause, "connections cannot be accepted at the moment");
        self.pause = Some(Box::pin(tokio::time::sleep(self.next_pause)));
        self.next_pause = (self.next_pause * 2).min(LONGEST_PAUSE);
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(cx)) {
                Ok((stream, _)) => {
                    self.next_pause = SHORTEST_PAUSE;
                    if let Some(connection) = self.admit(stream) {
                        return Poll::Ready(Some(Ok(connection)));
                    }
                }
                Err(error) if concerns_one_connection(&error) => {}
                // Out of descriptors or memory: trying again at once would only burn the processor.
                Err(error) => self.pause_after(&error),
            }
        }
    }
}

fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

/// One of `max_connections`, or of those for strangers, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    counters: Arc<ConnectionCounters>,
    admitted: bool,
}

impl Slot {
    fn take(counters: &Arc<ConnectionCounters>, admitted: bool, most: usize) -> Option<Self> {
        let take = |open| (open < most as u64).then_some(open + 1);
        counters.taken(admitted).fetch_update(Ordering::AcqRel, Ordering::Acquire, take).ok()?;
        Some(Self { counters: Arc::clone(counters), admitted })
    }

    pub(super) fn expired(&self) {
        self.counters.expired.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.counters.taken(self.admitted).fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tonic_tests;
