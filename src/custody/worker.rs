//! The custodian's side of the connection: frames in, a fixed number of session threads, frames out. Blocking, no tokio.
//!
//! It knows a device only as something that serves requests on numbered seats. When the device crashes the process, or
//! a call into it never returns, that is for the process's owner to repair: nothing here tries to survive it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread;
use std::time::Duration;

use zeroize::Zeroizing;

use super::contract::{Answer, CustodyError, ProcessReport, Request};
use super::frames::{self, FrameError};
use super::pkcs11;
use super::settings::CustodySettings;
use crate::memory;

/// How long sessions may finish what they are doing once the server is gone; nobody reads their answers.
const FAREWELL: Duration = Duration::from_secs(2);

/// A device, as the session threads see it.
pub trait Custodian: Send + Sync + 'static {
    /// Serves one request on seat `seat` (from 0), which no other thread uses. Blocks as long as the device does.
    fn serve(&self, seat: usize, request: Request) -> Result<Answer, CustodyError>;

    /// Closes the device in good order; further requests may open it again.
    fn close(&self);
}

/// Why a custodian ended other than by its server closing the connection.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error("the connection to the server failed")]
    Connection(#[from] io::Error),
    #[error("the server sent something that is no request")]
    Protocol(#[from] FrameError),
}

/// Says `report`, then serves requests from `connection` until its other end is closed. Blocks; call it on the main thread, with the
/// module's environment set. The device is opened by the first request that needs it, and again after it was lost.
///
/// Returns also when a call into the module never does: the caller should then end the process.
///
/// # Errors
/// [`WorkerError`]. A device that cannot be used is no such error: each request is answered with why.
pub fn run(mut connection: UnixStream, report: ProcessReport, settings: CustodySettings) -> Result<(), WorkerError> {
    // A server that is gone already is noticed by the first read.
    let _ = connection.write_all(&frames::encode_reply(frames::UNASKED, &Ok(Answer::Process(report))));
    let (sessions, queue) = (settings.sessions, settings.queue);
    match settings.tpm.clone() {
        None => serve(connection, Arc::new(pkcs11::Device::new(settings)), sessions, queue),
        #[cfg(feature = "tpm")]
        Some(tpm) => serve(connection, Arc::new(super::tpm::Device::new(settings, tpm)), sessions, queue),
        #[cfg(not(feature = "tpm"))]
        Some(tpm) => serve(connection, Arc::new(NoTpmSupport(tpm.tcti)), sessions, queue),
    }
}

/// Says what is wrong where every other fault of custody is said.
#[cfg(not(feature = "tpm"))]
struct NoTpmSupport(String);

#[cfg(not(feature = "tpm"))]
impl Custodian for NoTpmSupport {
    fn serve(&self, _: usize, _: Request) -> Result<Answer, CustodyError> {
        let detail = "this keystead was built without TPM support; take a build with the feature `tpm`".to_owned();
        Err(CustodyError::TpmUnreachable { tcti: self.0.clone(), detail })
    }

    fn close(&self) {}
}

/// [`run`] with any device.
pub fn serve<C: Custodian>(
    mut connection: UnixStream,
    device: Arc<C>,
    sessions: usize,
    queue: usize,
) -> Result<(), WorkerError> {
    let replies = Arc::new(Mutex::new(connection.try_clone()?));
    let (requests, jobs) = sync_channel(queue.max(1));
    let jobs = Arc::new(Mutex::new(jobs));
    let (ended, farewells) = channel();
    for seat in 0..sessions.max(1) {
        let (device, jobs, replies, ended) =
            (Arc::clone(&device), Arc::clone(&jobs), Arc::clone(&replies), ended.clone());
        thread::Builder::new().name(format!("session-{seat}")).spawn(move || {
            let _ends_the_process = AbortOnPanic;
            work(seat, &*device, &jobs, &replies);
            let _ = ended.send(());
        })?;
    }

    let outcome = read_requests(&mut connection, &requests, &replies);
    drop(requests);
    if (0..sessions.max(1)).all(|_| farewells.recv_timeout(FAREWELL).is_ok()) {
        device.close();
    }
    outcome
}

type Job = (u64, Request);

fn read_requests(
    connection: &mut UnixStream,
    requests: &SyncSender<Job>,
    replies: &Mutex<UnixStream>,
) -> Result<(), WorkerError> {
    while let Some(body) = read_frame(connection)? {
        let job = frames::decode_request(&body)?;
        if let Err(TrySendError::Full((id, _)) | TrySendError::Disconnected((id, _))) = requests.try_send(job) {
            write_reply(replies, id, &Err(CustodyError::Busy))?;
        }
    }
    Ok(())
}

/// Ends when the queue is closed and empty, or nobody reads the answers any more.
fn work<C: Custodian>(seat: usize, device: &C, jobs: &Mutex<Receiver<Job>>, replies: &Mutex<UnixStream>) {
    static OPENED: Once = Once::new();
    loop {
        // The lock is held while waiting: one thread waits for a request, the others for the lock.
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((id, request)) = job else { return };
        let reply = device.serve(seat, request);
        if write_reply(replies, id, &reply).is_err() {
            return;
        }
        // The device is open: what that took is not needed again soon.
        OPENED.call_once(memory::release_startup_code);
    }
}

fn write_reply(replies: &Mutex<UnixStream>, id: u64, reply: &frames::Reply) -> io::Result<()> {
    let frame = frames::encode_reply(id, reply);
    replies.lock().unwrap_or_else(PoisonError::into_inner).write_all(&frame)
}

/// The next frame's body, or nothing when the server has closed the connection between two frames.
fn read_frame(connection: &mut UnixStream) -> Result<Option<Zeroizing<Vec<u8>>>, WorkerError> {
    let mut prefix = [0; frames::LENGTH];
    let first = loop {
        match connection.read(&mut prefix) {
            Ok(count) => break count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break 0,
            Err(error) => return Err(error.into()),
        }
    };
    if first == 0 {
        return Ok(None);
    }
    connection.read_exact(&mut prefix[first..])?;
    let mut body = Zeroizing::new(vec![0; frames::body_len(prefix, frames::MAX_REQUEST)?]);
    connection.read_exact(&mut body)?;
    Ok(Some(body))
}

/// A session thread that panics would leave its caller waiting and its seat empty; a new process is better.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
