//! The writer's thread: takes what waits, makes lines of it, chains and writes them, closes files that are full.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use keystead_core::KeyringId;
use keystead_core::audit::Position;
use serde_json::{Map, Value, json};

use super::files::{OpenFile, Opened};
use super::forward::Forwarder;
use super::lines::{AdminRecord, Phase, Requests, time};
use super::settings::AuditSettings;
use super::trail::{AuditError, AuditKey, Job, Queue, Shared};
use super::verify::went_through;

/// How long requests gather while they keep coming.
const BATCH: Duration = Duration::from_millis(20);
/// How often lines that are not vouched for yet get a checkpoint.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(900);
/// How often a trail that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Bytes of a queue that is kept for the next batch: several times what requests fill in one at full load.
const KEPT_QUEUE: usize = 1 << 20;

pub(super) struct Writer {
    settings: AuditSettings,
    keyring: KeyringId,
    file: OpenFile,
    position: Position,
    key: Option<AuditKey>,
    /// Lines since the last checkpoint, and when that was.
    unvouched: u64,
    vouched: Instant,
    /// Losses that the trail tells of, and those that the lines in the making tell of.
    lost_told: u64,
    lost_telling: u64,
    compared: bool,
    failed: Option<Instant>,
    forwarder: Option<Forwarder>,
    shared: Arc<Shared>,
    /// Kept, so that a busy trail allocates nothing.
    lines: Vec<u8>,
    members: String,
}

impl Writer {
    pub(super) fn new(
        settings: &AuditSettings,
        keyring: &KeyringId,
        opened: Opened,
        shared: Arc<Shared>,
        outlet: Option<UnixDatagram>,
    ) -> Self {
        let Opened { file, last, cut } = opened;
        let mut writer = Self {
            settings: settings.clone(),
            keyring: keyring.clone(),
            file,
            position: last.unwrap_or_else(|| Position::start(keyring)),
            key: None,
            unvouched: 0,
            vouched: Instant::now(),
            lost_told: 0,
            lost_telling: 0,
            compared: false,
            failed: None,
            forwarder: settings.forward.zip(outlet).map(|(to, outlet)| Forwarder::new(to, outlet)),
            shared,
            lines: Vec::new(),
            members: String::new(),
        };
        if cut > 0 {
            writer.event("trail-repaired", json!({"unfinished_bytes": cut}));
            tracing::warn!(bytes = cut, "the audit trail ended in an unfinished line, which was taken away");
        }
        writer.event("trail-opened", json!({"version": env!("CARGO_PKG_VERSION")}));
        writer
    }

    pub(super) fn run(mut self) {
        loop {
            let Queue { mut requests, admin, ended } = self.take();
            self.shared.at_work.now();
            let busy = requests.len() > 0;
            // Requests first: whoever asks for a checkpoint means those before it, too.
            self.write_requests(&requests);
            for job in admin {
                self.work(job);
            }
            if busy {
                requests.clear();
                self.give_back(requests);
            }
            if self.unvouched > 0 && self.vouched.elapsed() > CHECKPOINT_EVERY {
                let _ = self.checkpoint();
            }
            if ended {
                let _ = self.checkpoint();
                return;
            }
            self.shared.at_work.clear();
            self.rest(busy);
        }
    }

    fn take(&self) -> Queue {
        let mut queue = self.shared.lock();
        Queue {
            requests: std::mem::take(&mut queue.requests),
            admin: std::mem::take(&mut queue.admin),
            ended: queue.ended,
        }
    }

    /// The emptied buffer serves the next batch, unless one has begun, or it has grown beyond use.
    fn give_back(&self, requests: Requests) {
        let mut queue = self.shared.lock();
        if queue.requests.footprint() == 0 && requests.footprint() <= KEPT_QUEUE {
            queue.requests = requests;
        }
    }

    /// While requests come, they are let gather; then this thread sleeps until it is woken.
    fn rest(&self, busy: bool) {
        if busy {
            return thread::park_timeout(BATCH);
        }
        self.shared.idle.store(true, Ordering::SeqCst);
        let queue = self.shared.lock();
        let nothing = queue.requests.len() == 0 && queue.admin.is_empty() && !queue.ended;
        drop(queue);
        match (nothing, self.failed.is_some()) {
            (true, true) => thread::park_timeout(RETRY),
            (true, false) if self.unvouched > 0 => thread::park_timeout(CHECKPOINT_EVERY),
            (true, false) => thread::park(),
            (false, _) => {}
        }
        self.shared.idle.store(false, Ordering::SeqCst);
    }

    fn work(&mut self, job: Job) {
        match job {
            Job::Record(record, reply) => {
                let members = record.members();
                let _ = reply.send(self.write_synced(&members));
            }
            Job::Key(key) => {
                self.key = Some(key);
                self.unvouched = self.unvouched.max(1);
                let _ = self.checkpoint();
            }
            Job::Expect(end) => self.compare(end),
            Job::Checkpoint(reply) => {
                let _ = reply.send(self.checkpoint());
            }
        }
    }

    /// Holds the trail as it was found against what the store says: it must go through there, unchanged.
    fn compare(&mut self, end: Position) {
        // Once, of the trail as it was found; what is added since is this writer's own.
        if std::mem::replace(&mut self.compared, true) {
            return;
        }
        let problem = match went_through(&self.settings.folder, &self.keyring, end) {
            Ok(true) => return,
            Ok(false) => format!("line {} is not the one that the store knows, or is missing", end.sequence),
            Err(error) => error.to_string(),
        };
        tracing::error!(problem, "the audit trail is not what it was: run `keystead audit verify`");
        self.event("trail-changed", json!({"expected": end.sequence, "problem": problem}));
    }

    fn write_requests(&mut self, requests: &Requests) {
        if requests.len() == 0 && (self.failed.is_none() || self.told_all()) {
            return;
        }
        let before = self.position;
        let mut lines = std::mem::take(&mut self.lines);
        lines.clear();
        self.tell_losses(&mut lines);
        for request in requests.iter() {
            request.members(&mut self.members);
            self.position.append(&self.members, &mut lines);
        }
        if self.put(before, &lines).is_err() {
            self.shared.counts.lost.fetch_add(requests.len() as u64, Ordering::Relaxed);
        }
        self.lines = lines;
        self.members.clear();
    }

    fn told_all(&self) -> bool {
        self.shared.counts.lost.load(Ordering::Relaxed) == self.lost_told
            && self.failed.is_none_or(|at| at.elapsed() < RETRY)
    }

    /// A line on what is missing, as soon as one can be written.
    fn tell_losses(&mut self, lines: &mut Vec<u8>) {
        let lost = self.shared.counts.lost.load(Ordering::Relaxed);
        if lost == self.lost_told && self.failed.is_none() {
            return;
        }
        self.lost_telling = lost;
        self.position.append(&event("trail-resumed", json!({"lost": lost - self.lost_told})), lines);
    }

    fn event(&mut self, action: &'static str, details: Value) {
        // A trail that cannot be written says so by itself, and is tried again.
        let _ = self.write_synced(&event(action, details));
    }

    fn write_synced(&mut self, members: &str) -> Result<Position, AuditError> {
        let before = self.position;
        let mut lines = Vec::new();
        self.tell_losses(&mut lines);
        self.position.append(members, &mut lines);
        self.put(before, &lines)?;
        self.sync()
    }

    fn sync(&mut self) -> Result<Position, AuditError> {
        self.file.sync().map_err(|error| self.fail(&error))?;
        *self.shared.synced.lock().unwrap_or_else(PoisonError::into_inner) = self.position;
        Ok(self.position)
    }

    fn checkpoint(&mut self) -> Result<Position, AuditError> {
        let Some(key) = self.key.clone().filter(|_| self.unvouched > 0) else { return Ok(self.position) };
        let before = self.position;
        let mut lines = Vec::new();
        self.tell_losses(&mut lines);
        self.position.checkpoint(&self.keyring, &time(SystemTime::now()).to_string(), key.epoch, &*key.key, &mut lines);
        self.put(before, &lines)?;
        self.sync()?;
        self.unvouched = 0;
        self.vouched = Instant::now();
        Ok(self.position)
    }

    /// Writes lines that follow `before`; without success the trail stands there again.
    fn put(&mut self, before: Position, lines: &[u8]) -> Result<(), AuditError> {
        let written = self.make_room().and_then(|()| self.file.write(lines, before.sequence + 1));
        if let Err(error) = written {
            self.position = before;
            return Err(self.fail(&error));
        }
        let count = self.position.sequence - before.sequence;
        self.unvouched += count;
        self.lost_told = self.lost_told.max(self.lost_telling);
        if self.failed.take().is_some() {
            self.shared.failing.store(false, Ordering::Relaxed);
            tracing::info!("the audit trail is written again");
        }
        self.shared.counts.written.fetch_add(count, Ordering::Relaxed);
        self.shared.counts.sequence.store(self.position.sequence, Ordering::Relaxed);
        if let Some(forwarder) = &mut self.forwarder {
            forwarder.send(lines);
        }
        Ok(())
    }

    fn make_room(&mut self) -> io::Result<()> {
        let age = self.file.opened().elapsed().unwrap_or_default();
        if self.file.bytes() >= self.settings.max_bytes || (self.file.bytes() > 0 && age >= self.settings.max_age) {
            self.file.rotate(self.settings.keep)?;
        }
        Ok(())
    }

    fn fail(&mut self, error: &io::Error) -> AuditError {
        self.shared.counts.failures.fetch_add(1, Ordering::Relaxed);
        self.shared.failing.store(true, Ordering::Relaxed);
        if self.failed.replace(Instant::now()).is_none() {
            tracing::error!(%error, policy = ?self.settings.failure, "the audit trail cannot be written");
        }
        AuditError::Write(error.to_string().into())
    }
}

/// What happened, as opposed to what was asked for.
fn event(action: &'static str, details: Value) -> String {
    let details = match details {
        Value::Object(details) => details,
        _ => Map::new(),
    };
    AdminRecord { at: SystemTime::now(), action, phase: Phase::Event, who: None, details }.members()
}
