//! The handle that everyone records through: a bounded queue to the writer's thread, and how the trail fares.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use keystead_core::KeyringId;
use keystead_core::audit::{Checkpoint, Position};
use keystead_core::record::Authenticator;
use tokio::sync::oneshot;

use super::files::OpenFile;
use super::lines::{AdminRecord, RequestRecord, Requests};
use super::settings::{AuditSettings, FailurePolicy, Level};
use super::verify::{Verified, VerifyError, verify};
use super::writer::Writer;

/// Requests that may wait for the writer: a tenth of a second of the most that one server does.
const MAX_QUEUE: usize = 8192;
/// A disk that has not answered for so long counts as one that cannot be written.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often that is looked at while somebody waits.
const LOOK: Duration = Duration::from_millis(500);

/// A keyring's trail. Cheap to share; ends its writer, with everything written and synced, when the last one is dropped.
#[derive(Clone)]
pub struct Trail {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    /// [`Level::Requests`] is in force, else [`Level::Admin`].
    requests: AtomicBool,
    failure: FailurePolicy,
    folder: PathBuf,
    keyring: KeyringId,
    key: Mutex<Option<AuditKey>>,
    writer: Option<JoinHandle<()>>,
}

/// Between the handle and the writer.
pub(super) struct Shared {
    pub queue: Mutex<Queue>,
    /// The writer sleeps until it is woken.
    pub idle: AtomicBool,
    /// The last write failed.
    pub failing: AtomicBool,
    /// Since when the writer has been at what it does now.
    pub at_work: Since,
    pub counts: Counters,
    /// After the last line that is on the disk.
    pub synced: Mutex<Position>,
}

/// A moment, or none.
pub(super) struct Since {
    origin: Instant,
    /// Milliseconds after the origin; 0: none.
    millis: AtomicU64,
}

#[derive(Default)]
pub(super) struct Queue {
    pub requests: Requests,
    pub admin: Vec<Job>,
    pub ended: bool,
}

/// What the writer does at once, in this order, after the requests that wait.
pub(super) enum Job {
    Record(Box<AdminRecord>, oneshot::Sender<Result<Position, AuditError>>),
    Key(AuditKey),
    /// The store's word on how far the trail had come.
    Expect(Position),
    /// Writes a checkpoint if there is anything new, and syncs.
    Checkpoint(oneshot::Sender<Result<Position, AuditError>>),
}

/// The key for checkpoints, derived from an epoch secret.
#[derive(Clone)]
pub struct AuditKey {
    pub epoch: u64,
    pub key: Arc<dyn Authenticator + Send + Sync>,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub written: AtomicU64,
    pub lost: AtomicU64,
    pub sequence: AtomicU64,
    pub failures: AtomicU64,
}

/// For status and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub written: u64,
    /// Not recorded although done; the trail says so as well.
    pub lost: u64,
    pub failures: u64,
    /// Number of the last line.
    pub sequence: u64,
    pub failing: bool,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum AuditError {
    #[error(
        "the audit trail cannot be written: {0}. Free some space or mend its folder; audit.failure says what goes on meanwhile"
    )]
    Write(Arc<str>),
    #[error(
        "the audit trail's disk has not answered for {} seconds; audit.failure says what goes on meanwhile", PATIENCE.as_secs()
    )]
    Stuck,
    #[error("the audit trail does not keep up; try again")]
    Full,
    #[error("the audit trail has ended")]
    Ended,
}

impl Trail {
    /// Opens the trail in its folder where it ended, or begins it. Lines are forwarded by `outlet`, which
    /// [`outlet`](super::outlet) makes.
    ///
    /// # Errors
    /// The folder cannot be used, or holds what is no audit trail.
    pub fn open(settings: &AuditSettings, keyring: &KeyringId, outlet: Option<UnixDatagram>) -> std::io::Result<Self> {
        let opened = OpenFile::open(&settings.folder)?;
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            idle: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            at_work: Since { origin: Instant::now(), millis: AtomicU64::new(0) },
            counts: Counters::default(),
            synced: Mutex::new(Position::start(keyring)),
        });
        let writer = Writer::new(settings, keyring, opened, shared.clone(), outlet);
        let writer = thread::Builder::new().name("audit".into()).spawn(move || writer.run())?;
        Ok(Self {
            inner: Arc::new(Inner {
                shared,
                requests: AtomicBool::new(settings.level >= Level::Requests),
                failure: settings.failure,
                folder: settings.folder.clone(),
                keyring: keyring.clone(),
                key: Mutex::default(),
                writer: Some(writer),
            }),
        })
    }

    /// Whether requests are recorded at all.
    pub fn wants_requests(&self) -> bool {
        self.inner.requests.load(Ordering::Relaxed)
    }

    /// From the next request on.
    pub fn set_level(&self, level: Level) {
        self.inner.requests.store(level >= Level::Requests, Ordering::Relaxed);
    }

    /// Whether a request may be served now. Asked before it is; costs a load, and a look at the clock on a site that
    /// refuses what is not recorded.
    ///
    /// # Errors
    /// What cannot be recorded is refused, by the site's choice.
    pub fn admits_requests(&self) -> Result<(), AuditError> {
        let shared = &self.inner.shared;
        if self.inner.failure != FailurePolicy::Stop || !self.wants_requests() {
            return Ok(());
        }
        if shared.failing.load(Ordering::Relaxed) {
            return Err(AuditError::Write("the last write failed".into()));
        }
        if shared.is_stuck() { Err(AuditError::Stuck) } else { Ok(()) }
    }

    /// Records a request that was served, or refused. Never waits.
    ///
    /// # Errors
    /// [`AuditError::Full`] if what cannot be recorded is to be refused; else it is counted as lost.
    pub fn record_request(&self, record: RequestRecord<'_>) -> Result<(), AuditError> {
        let shared = &self.inner.shared;
        let mut queue = shared.lock();
        if queue.requests.len() >= MAX_QUEUE {
            drop(queue);
            self.wake();
            if self.inner.failure == FailurePolicy::Stop {
                return Err(AuditError::Full);
            }
            shared.counts.lost.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        queue.requests.push(record);
        drop(queue);
        if shared.idle.load(Ordering::Relaxed) {
            self.wake();
        }
        Ok(())
    }

    /// Records an admin action; on the disk when it returns.
    ///
    /// # Errors
    /// It is not recorded. Whoever asked decides by [`Self::stops`] whether the action may go on.
    pub async fn record(&self, record: AdminRecord) -> Result<Position, AuditError> {
        self.ask(|reply| Job::Record(Box::new(record), reply)).await
    }

    /// [`Self::record`], without waiting for how it ended.
    pub fn note(&self, record: AdminRecord) {
        self.push(Job::Record(Box::new(record), oneshot::channel().0));
    }

    /// Whether what cannot be recorded must not be done.
    pub fn stops(&self) -> bool {
        self.inner.failure == FailurePolicy::Stop
    }

    /// The key for checkpoints from now on. A checkpoint is written by it at once: those of an epoch that is gone can no
    /// longer be checked.
    pub fn set_key(&self, key: AuditKey) {
        *self.inner.key.lock().unwrap_or_else(PoisonError::into_inner) = Some(key.clone());
        self.push(Job::Key(key));
    }

    /// How far the store's authentic record says that the trail had come: it must not have been shorter when it was opened.
    pub fn expect(&self, end: Position) {
        self.push(Job::Expect(end));
    }

    /// After the last line that is on the disk.
    pub fn position(&self) -> Position {
        *self.inner.shared.synced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a checkpoint, if there is a key and anything new.
    pub async fn checkpoint(&self) -> Result<Position, AuditError> {
        self.ask(Job::Checkpoint).await
    }

    pub fn folder(&self) -> &Path {
        &self.inner.folder
    }

    /// Reads the whole trail: it must go through the last line that this daemon synced, and the last checkpoint must be one that
    /// custody vouches for now. Blocks.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn verify(&self) -> Result<Verified, VerifyError> {
        // From before the reading: what is written meanwhile makes the trail longer, never shorter.
        let written = self.position();
        let verified = verify(&self.inner.folder, &self.inner.keyring, Some(written))?;
        let key = self.inner.key.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let vouched = |checkpoint: &Checkpoint| {
            key.as_ref().is_some_and(|key| key.epoch == checkpoint.epoch && checkpoint.is_authentic(&*key.key))
        };
        match &verified.checkpoint {
            Some(checkpoint) if vouched(checkpoint) => Ok(verified),
            _ => Err(VerifyError::NotVouched),
        }
    }

    pub fn counts(&self) -> Counts {
        let shared = &self.inner.shared;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            written: read(&shared.counts.written),
            lost: read(&shared.counts.lost),
            failures: read(&shared.counts.failures),
            sequence: read(&shared.counts.sequence),
            failing: shared.failing.load(Ordering::Relaxed) || shared.is_stuck(),
        }
    }

    async fn ask(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<Position, AuditError>>) -> Job,
    ) -> Result<Position, AuditError> {
        let (reply, mut answer) = oneshot::channel();
        // What is not waited for any more is written all the same, should the disk come back.
        self.push(job(reply));
        loop {
            if self.inner.shared.is_stuck() {
                tracing::error!(policy = ?self.inner.failure, "the audit trail's disk does not answer");
                return Err(AuditError::Stuck);
            }
            if let Ok(answer) = tokio::time::timeout(LOOK, &mut answer).await {
                return answer.unwrap_or(Err(AuditError::Ended));
            }
        }
    }

    fn push(&self, job: Job) {
        self.inner.shared.lock().admin.push(job);
        self.wake();
    }

    fn wake(&self) {
        if let Some(writer) = &self.inner.writer {
            wake(&self.inner.shared, writer.thread());
        }
    }
}

impl Shared {
    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stuck(&self) -> bool {
        self.at_work.is_longer_ago_than(PATIENCE)
    }
}

impl Since {
    pub fn now(&self) {
        let millis = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.millis.store(millis.max(1), Ordering::Relaxed);
    }

    pub fn clear(&self) {
        self.millis.store(0, Ordering::Relaxed);
    }

    fn is_longer_ago_than(&self, span: Duration) -> bool {
        let millis = self.millis.load(Ordering::Relaxed);
        millis > 0 && self.origin.elapsed().saturating_sub(Duration::from_millis(millis)) > span
    }
}

fn wake(shared: &Shared, writer: &Thread) {
    shared.idle.store(false, Ordering::Relaxed);
    writer.unpark();
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        if let Some(writer) = self.writer.take() {
            wake(&self.shared, writer.thread());
            let _ = writer.join();
        }
    }
}
