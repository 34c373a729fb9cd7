//! The connection of the moment: who waits for which reply, and the two tasks that move frames.
//!
//! The lock is held for a look into a table, never over an `.await`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use zeroize::Zeroizing;

use crate::custody::contract::{Answer, CustodyError, ProcessReport};
use crate::custody::frames::{self, Frame, FrameError, Reply};

/// Holds the connection of the moment, if there is one.
pub(super) struct Slot {
    link: Mutex<State>,
    /// Connections that ended on their own.
    pub(super) lost: watch::Sender<u64>,
    /// Connections that were attached.
    pub(super) attached: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// Counts attachments, so that the tasks of an old connection do not touch the new one.
    number: u64,
    link: Option<Link>,
    /// Detached on purpose: another one is on its way.
    expecting: bool,
}

struct Link {
    outgoing: mpsc::Sender<Frame>,
    waiting: HashMap<u64, oneshot::Sender<Reply>>,
    /// Replies that came, whoever waited for them.
    answers: u64,
    hung: bool,
    /// What the custodian said of its process.
    report: Option<ProcessReport>,
}

impl Default for Slot {
    fn default() -> Self {
        Self { link: Mutex::default(), lost: watch::Sender::new(0), attached: watch::Sender::new(0) }
    }
}

impl Slot {
    /// Replaces the connection. Dropping the old one's senders fails its calls with `Gone` and ends its tasks.
    pub(super) fn attach(slot: &Arc<Self>, stream: UnixStream, queue: usize) {
        let (incoming, outgoing) = stream.into_split();
        let (sender, frames) = mpsc::channel(queue);
        let mut state = slot.state();
        state.number += 1;
        state.link = Some(Link { outgoing: sender, waiting: HashMap::new(), answers: 0, hung: false, report: None });
        state.expecting = false;
        tokio::spawn(write(outgoing, frames));
        tokio::spawn(read(incoming, Arc::clone(slot), state.number));
        slot.attached.send_replace(state.number);
    }

    /// Closes the connection, which is the order to its custodian to end; calls wait for the next one from now on.
    pub(super) fn detach(&self) {
        let mut state = self.state();
        state.link = None;
        state.expecting = true;
    }

    /// The one expected did not come.
    pub(super) fn give_up(&self) {
        self.state().expecting = false;
    }

    pub(super) fn is_expecting(&self) -> bool {
        self.state().expecting
    }

    pub(super) fn is_attached(&self) -> bool {
        self.state().link.is_some()
    }

    pub(super) fn report(&self) -> Option<ProcessReport> {
        self.state().link.as_ref()?.report
    }

    pub(super) fn send(self: &Arc<Self>, id: u64, frame: Frame) -> Result<Waiting, CustodyError> {
        let mut state = self.state();
        let number = state.number;
        let link = state.link.as_mut().ok_or(CustodyError::Gone)?;
        link.outgoing.try_send(frame).map_err(|error| match error {
            // Frames of calls that were given up still wait for a custodian that does not read.
            mpsc::error::TrySendError::Full(_) => CustodyError::Busy,
            mpsc::error::TrySendError::Closed(_) => CustodyError::Gone,
        })?;
        let (sender, reply) = oneshot::channel();
        link.waiting.insert(id, sender);
        Ok(Waiting { slot: Arc::clone(self), number, id, answers: link.answers, reply })
    }

    /// Whether this is the first sign that the custodian which `waiting` asked hangs: it has answered nobody since. One
    /// that answers others is busy, not hung.
    pub(super) fn mark_hung(&self, waiting: &Waiting) -> bool {
        let mut state = self.state();
        let current = state.number == waiting.number;
        match &mut state.link {
            Some(link) if current && link.answers == waiting.answers => !std::mem::replace(&mut link.hung, true),
            _ => false,
        }
    }

    fn deliver(&self, number: u64, id: u64, reply: Reply) {
        let mut state = self.state();
        if state.number != number {
            return;
        }
        let Some(link) = &mut state.link else { return };
        if let (frames::UNASKED, Ok(Answer::Process(report))) = (id, &reply) {
            link.report = Some(*report);
            return;
        }
        link.answers += 1;
        // Nobody waits any more for a reply that came after its deadline.
        if let Some(sender) = link.waiting.remove(&id) {
            let _ = sender.send(reply);
        }
    }

    fn disconnect(&self, number: u64) {
        let mut state = self.state();
        if state.number == number && state.link.take().is_some() {
            drop(state);
            self.lost.send_modify(|count| *count += 1);
        }
    }

    /// The table is consistent after every statement, so a panic elsewhere in a holder does not spoil it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call in flight. Dropping it, at the deadline or because the caller gave up, forgets the call.
pub(super) struct Waiting {
    slot: Arc<Slot>,
    number: u64,
    id: u64,
    /// Replies of the custodian when this call was sent.
    answers: u64,
    reply: oneshot::Receiver<Reply>,
}

impl Waiting {
    /// Whether the custodian had not answered anybody yet: it opens the token first.
    pub(super) fn is_first(&self) -> bool {
        self.answers == 0
    }

    pub(super) async fn reply(&mut self) -> Reply {
        (&mut self.reply).await.unwrap_or(Err(CustodyError::Gone))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.slot.state();
        if state.number == self.number
            && let Some(link) = &mut state.link
        {
            link.waiting.remove(&self.id);
        }
    }
}

/// Ends when the link is dropped or the custodian is gone; the reader notices the latter.
async fn write(mut outgoing: OwnedWriteHalf, mut frames: mpsc::Receiver<Frame>) {
    while let Some(frame) = frames.recv().await {
        if outgoing.write_all(&frame).await.is_err() {
            return;
        }
    }
}

async fn read(mut incoming: OwnedReadHalf, slot: Arc<Slot>, number: u64) {
    loop {
        match next(&mut incoming).await {
            Ok((id, reply)) => slot.deliver(number, id, reply),
            Err(error) => {
                if let ReadError::Frame(error) = error {
                    tracing::error!(%error, "the custodian sent a frame that is none; its connection is dropped");
                }
                slot.disconnect(number);
                return;
            }
        }
    }
}

enum ReadError {
    Closed,
    Frame(FrameError),
}

async fn next(incoming: &mut OwnedReadHalf) -> Result<(u64, Reply), ReadError> {
    let mut prefix = [0; frames::LENGTH];
    incoming.read_exact(&mut prefix).await.map_err(|_| ReadError::Closed)?;
    let len = frames::body_len(prefix, frames::MAX_REPLY).map_err(ReadError::Frame)?;
    let mut body = Zeroizing::new(vec![0; len]);
    incoming.read_exact(&mut body).await.map_err(|_| ReadError::Closed)?;
    frames::decode_reply(&body).map_err(ReadError::Frame)
}
