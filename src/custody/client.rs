//! The server's handle to custody: async, cheap to clone, bounded, with a deadline on every call.
//!
//! It outlives custodians: a new one's connection is attached in place of the old one's. It knows nothing of processes;
//! whoever owns them watches [`CustodyClient::hung`] and [`CustodyClient::disconnected`] and brings a new connection.

mod link;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keystead_core::{Kek, KeyringId, NodeId, RootId, WrapContext, WrappedKek};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, watch};
use zeroize::Zeroizing;

use self::link::Slot;
use super::contract::{
    Answer, CmkObject, CustodyError, EpochPurpose, EpochRef, GivenKek, ProcessReport, Request, TokenDescription,
    TokenSummary,
};
use super::counters::{Counters, OperationCount};
use super::frames::{self, Reply};

/// Making a key pair may take an HSM many seconds without being a hang: a request that makes one has this many deadlines.
const KEY_GENERATION_DEADLINES: u32 = 4;
/// So may opening a token: login, negotiation, on some an RSA trial key. A custodian's first answer has this many.
const OPENING_DEADLINES: u32 = 4;

/// The one before gets seconds to end in good order, then the next has to start.
const REPLACED_WITHIN: Duration = Duration::from_secs(10);

/// A handle to the custodian of the moment.
#[derive(Clone)]
pub struct CustodyClient {
    shared: Arc<Shared>,
}

struct Shared {
    timeout: Duration,
    /// One permit a call in flight.
    permits: Semaphore,
    queue: usize,
    next_id: AtomicU64,
    slot: Arc<Slot>,
    counters: Counters,
    hung: watch::Sender<u64>,
    replacements: watch::Sender<u64>,
}

impl CustodyClient {
    /// `timeout` is the deadline of a call; `queue` bounds the calls in flight. Starts without a connection: every call
    /// fails with `Gone` until [`Self::attach`].
    pub fn new(timeout: Duration, queue: usize) -> Self {
        let queue = queue.max(1);
        Self {
            shared: Arc::new(Shared {
                timeout,
                permits: Semaphore::new(queue),
                queue,
                next_id: AtomicU64::new(1),
                slot: Arc::default(),
                counters: Counters::default(),
                hung: watch::Sender::new(0),
                replacements: watch::Sender::new(0),
            }),
        }
    }

    /// Talks to a new custodian over `stream`; calls still waiting for the one before fail with `Gone`. Call within a
    /// tokio runtime.
    pub fn attach(&self, stream: UnixStream) {
        Slot::attach(&self.shared.slot, stream, self.shared.queue);
    }

    /// As [`Self::attach`], for a socket that came from a socketpair.
    pub fn attach_std(&self, stream: std::os::unix::net::UnixStream) -> std::io::Result<()> {
        stream.set_nonblocking(true)?;
        self.attach(UnixStream::from_std(stream)?);
        Ok(())
    }

    /// Whether there is a connection to a custodian.
    pub fn is_attached(&self) -> bool {
        self.shared.slot.is_attached()
    }

    /// What the custodian of the moment said of its process, if there is one and it has.
    pub fn process(&self) -> Option<ProcessReport> {
        self.shared.slot.report()
    }

    /// Counts the custodians that let a deadline pass, one for each however many calls it failed. A change means: kill
    /// it and attach another.
    pub fn hung(&self) -> watch::Receiver<u64> {
        self.shared.hung.subscribe()
    }

    /// Counts the connections that were lost (not those replaced by [`Self::attach`]).
    pub fn disconnected(&self) -> watch::Receiver<u64> {
        self.shared.slot.lost.subscribe()
    }

    /// Counts what [`Self::replace`] asked for. A change means: see to another custodian, then [`Self::detach`] this one.
    pub fn replacements(&self) -> watch::Receiver<u64> {
        self.shared.replacements.subscribe()
    }

    /// Connections attached so far.
    pub fn attachments(&self) -> u64 {
        *self.shared.slot.attached.borrow()
    }

    /// Asks for another custodian and waits until it is attached, or for long enough that it will not come.
    pub async fn replace(&self) {
        let mut attached = self.shared.slot.attached.subscribe();
        let before = *attached.borrow_and_update();
        self.shared.replacements.send_modify(|count| *count += 1);
        if tokio::time::timeout(REPLACED_WITHIN, attached.wait_for(|now| *now != before)).await.is_err() {
            self.shared.slot.give_up();
        }
    }

    /// Lets go of the custodian, which ends by itself. Calls wait for its successor, within their deadlines.
    pub fn detach(&self) {
        self.shared.slot.detach();
    }

    /// Operations since the start, by kind and outcome.
    pub fn operations(&self) -> Vec<OperationCount> {
        self.shared.counters.snapshot()
    }

    /// Asks custody. Returns within the deadline; a call given up by its caller is forgotten.
    ///
    /// # Errors
    /// `Busy` at once when too many calls are in flight, `Gone` without a custodian or when it is lost meanwhile,
    /// `TimedOut` at the deadline; else what the custodian says.
    pub async fn call(&self, request: Request) -> Result<Answer, CustodyError> {
        let kind = (&request).into();
        let reply = self.exchange(request).await;
        self.shared.counters.count(kind, &reply);
        reply
    }

    async fn exchange(&self, request: Request) -> Reply {
        let shared = &*self.shared;
        let _permit = shared.permits.try_acquire().map_err(|_| CustodyError::Busy)?;
        let started = tokio::time::Instant::now();
        if shared.slot.is_expecting() {
            let mut attached = shared.slot.attached.subscribe();
            let _ = tokio::time::timeout(shared.timeout, attached.wait_for(|_| !shared.slot.is_expecting())).await;
        }
        let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
        let mut waiting = shared.slot.send(id, frames::encode_request(id, &request))?;
        let deadline = match request {
            Request::NewKek { .. } | Request::WrapKek { .. } => shared.timeout * KEY_GENERATION_DEADLINES,
            // Opens the token as a first one does.
            Request::Reopen => shared.timeout * OPENING_DEADLINES,
            _ if waiting.is_first() => shared.timeout * OPENING_DEADLINES,
            _ => shared.timeout,
        };
        match tokio::time::timeout_at(started + deadline, waiting.reply()).await {
            Ok(reply) => reply,
            Err(_) => {
                if shared.slot.mark_hung(&waiting) {
                    shared.hung.send_modify(|count| *count += 1);
                }
                Err(CustodyError::TimedOut)
            }
        }
    }

    pub async fn describe(&self) -> Result<TokenDescription, CustodyError> {
        match self.call(Request::Describe).await? {
            Answer::Token(description) => Ok(description),
            other => Err(unexpected(&other)),
        }
    }

    pub async fn list_tokens(&self) -> Result<Vec<TokenSummary>, CustodyError> {
        match self.call(Request::ListTokens).await? {
            Answer::Tokens(tokens) => Ok(tokens),
            other => Err(unexpected(&other)),
        }
    }

    pub async fn list_cmks(&self) -> Result<Vec<CmkObject>, CustodyError> {
        match self.call(Request::ListCmks).await? {
            Answer::Cmks(cmks) => Ok(cmks),
            other => Err(unexpected(&other)),
        }
    }

    /// See [`Request::NewKek`]. The answer is checked to be of the root that was asked for.
    pub async fn new_kek(&self, context: WrapContext) -> Result<(WrappedKek, Kek), CustodyError> {
        let root = (context.root_kind, context.root_id.clone());
        match self.call(Request::NewKek { context }).await? {
            Answer::NewKek { wrap, kek } if (wrap.root_kind, &wrap.root_id) == (root.0, &root.1) => Ok((wrap, kek)),
            other => Err(unexpected(&other)),
        }
    }

    /// See [`Request::WrapKek`]. The answer is checked to be of the root that was asked for.
    pub async fn wrap_kek(&self, context: WrapContext, kek: Arc<Kek>) -> Result<WrappedKek, CustodyError> {
        let root = (context.root_kind, context.root_id.clone());
        match self.call(Request::WrapKek { context, kek: GivenKek(kek) }).await? {
            Answer::Wrapped(wrap) if (wrap.root_kind, &wrap.root_id) == (root.0, &root.1) => Ok(wrap),
            other => Err(unexpected(&other)),
        }
    }

    pub async fn unwrap(&self, context: WrapContext, wrap: Vec<u8>) -> Result<Kek, CustodyError> {
        match self.call(Request::Unwrap { context, wrap }).await? {
            Answer::Kek(kek) => Ok(kek),
            other => Err(unexpected(&other)),
        }
    }

    pub async fn list_epochs(&self, keyring: KeyringId, node: NodeId) -> Result<Vec<u64>, CustodyError> {
        match self.call(Request::ListEpochs { keyring, node }).await? {
            Answer::Epochs(numbers) => Ok(numbers),
            other => Err(unexpected(&other)),
        }
    }

    pub async fn create_epoch(&self, epoch: EpochRef) -> Result<(), CustodyError> {
        self.done(Request::CreateEpoch(epoch)).await
    }

    pub async fn derive_epoch_key(
        &self,
        epoch: EpochRef,
        purpose: EpochPurpose,
    ) -> Result<Zeroizing<[u8; 32]>, CustodyError> {
        match self.call(Request::DeriveEpochKey { epoch, purpose }).await? {
            Answer::EpochKey(key) => Ok(key),
            other => Err(unexpected(&other)),
        }
    }

    pub async fn destroy_epoch(&self, epoch: EpochRef) -> Result<(), CustodyError> {
        self.done(Request::DestroyEpoch(epoch)).await
    }

    pub async fn destroy_cmk(&self, root_id: RootId) -> Result<(), CustodyError> {
        self.done(Request::DestroyCmk { root_id }).await
    }

    /// See [`Request::Reopen`].
    pub async fn reopen(&self) -> Result<(), CustodyError> {
        self.done(Request::Reopen).await
    }

    pub async fn probe(&self) -> Result<(), CustodyError> {
        self.done(Request::Probe).await
    }

    async fn done(&self, request: Request) -> Result<(), CustodyError> {
        match self.call(request).await? {
            Answer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }
}

/// A custodian that answers another question than it was asked is broken, and so is whatever it says.
fn unexpected(_: &Answer) -> CustodyError {
    CustodyError::Device { detail: "the custodian answered another question".to_owned() }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
