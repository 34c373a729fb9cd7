//! Serves one gRPC service on accepted connections: drains on shutdown, and ends connections that rest after carrying keys.
//!
//! tonic's own server would do, but for three things. HTTP/2 keeps a read and a write buffer for as long as a connection
//! lives, and kube-apiserver's lives for ever: the last seeds would lie there. A connection that carried a seed and then
//! rests is therefore told to go away (GOAWAY, which gRPC clients follow without a failed call), and its buffers are
//! freed, and freed memory is wiped. A request is answered where it was read (ADR 20). And shutdown has a deadline.

use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::{FutureExt, Stream, StreamExt};
use http::{Request, Response};
use hyper::body::Incoming as Body;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Status;
use tower::Service;

use super::authority::WithoutAuthority;
use super::connection::Connection;
use super::login::Logins;
use super::peer::Caller;

/// Streams that one connection may have open; kube-apiserver uses a handful.
const MAX_STREAMS: u32 = 200;
/// Bytes a peer may send ahead: what one request may take, and what one connection's requests may take together.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;

/// How connections end.
#[derive(Debug, Clone)]
pub struct ServeSettings {
    /// How long running requests may take after shutdown was asked for.
    pub drain_timeout: Duration,
    /// How long a connection that carried keys may rest before it is recycled; `None` keeps it.
    pub recycle_after: Option<Duration>,
    /// Path of the one method that carries no keys, and so does not make a connection one to recycle.
    pub harmless: &'static str,
    /// `None`: which user somebody logged in as makes no difference here.
    pub logins: Option<Arc<Logins>>,
}

/// Serves until `shutdown` completes, then drains.
pub async fn serve<S>(
    incoming: impl Stream<Item = io::Result<Connection>>,
    service: S,
    settings: ServeSettings,
    shutdown: impl Future<Output = ()>,
) where
    S: Service<Request<Body>, Response = Response<tonic::body::Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let (closing, closed) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut incoming = std::pin::pin!(incoming);
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            () = shutdown.as_mut() => break,
            Some(accepted) = incoming.next() => match accepted {
                Ok(io) => {
                    connections.spawn(connection(io, service.clone(), settings.clone(), closed.clone()));
                }
                Err(error) => tracing::warn!(%error, "a connection could not be accepted"),
            },
            // Ended connections are forgotten as they end.
            Some(_) = connections.join_next() => {}
        }
    }
    // Nobody left to tell is fine.
    let _ = closing.send(true);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(settings.drain_timeout, drained).await.is_err() {
        tracing::warn!(connections = connections.len(), "closed with requests still running");
    }
}

async fn connection<S>(io: Connection, service: S, settings: ServeSettings, mut closed: watch::Receiver<bool>)
where
    S: Service<Request<Body>, Response = Response<tonic::body::Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let verdict = io.verdict();
    let first = verdict.at_first();
    let login_uid = match (&settings.logins, first.pid) {
        (Some(logins), Some(pid)) => logins.of(io.as_fd(), pid).await,
        _ => None,
    };
    if !first.admitted {
        tracing::warn!(
            uid = first.uid,
            gid = first.gid,
            pid = first.pid,
            login_uid,
            "a peer that is not listed connected"
        );
    }
    let activity = Arc::new(Activity::new());
    let watched = activity.clone();
    let service = hyper::service::service_fn(move |mut request: Request<Body>| {
        let running = (request.uri().path() != settings.harmless).then(|| Running::new(&watched));
        let caller = Caller { login_uid, ..verdict.caller() };
        let answer = caller.admitted.then(|| {
            request.extensions_mut().insert(caller);
            service.clone().call(request)
        });
        async move {
            let _running = running;
            match answer {
                Some(answer) => answer.await,
                None => Ok(not_admitted()),
            }
        }
    });
    let mut connection = std::pin::pin!(
        http2::Builder::new(InPlace)
            .auto_date_header(false)
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .serve_connection(TokioIo::new(WithoutAuthority::new(io)), service)
    );
    let ended = |outcome: hyper::Result<()>| {
        if let Err(error) = outcome {
            tracing::debug!(%error, "a connection ended in error");
        }
    };
    tokio::select! {
        outcome = connection.as_mut() => return ended(outcome),
        _ = closed.wait_for(|closed| *closed) => {}
        () = activity.rested(settings.recycle_after) => {}
    }
    connection.as_mut().graceful_shutdown();
    // A client that does not answer the farewell is not waited for.
    if let Ok(outcome) = tokio::time::timeout(settings.drain_timeout, connection).await {
        ended(outcome);
    }
}

/// Runs a request where it was read, and gives it a task of its own only when it has to wait: most are answered from memory, in
/// less time than it takes to make a task and wake it.
#[derive(Clone)]
struct InPlace;

impl<F> Executor<F> for InPlace
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, request: F) {
        // As in a task of its own, a panic ends this request and no other.
        let mut request = Box::pin(AssertUnwindSafe(request).catch_unwind());
        // Whoever it waits for is told of the task's waker when that polls it first.
        if (&mut request).now_or_never().is_none() {
            tokio::spawn(request);
        }
    }
}

/// One sentence for all who are not listed: which uids are is nobody's business.
fn not_admitted() -> Response<tonic::body::Body> {
    Status::permission_denied("this user may not use this socket; see allow_uids and allow_gids in the configuration")
        .into_http()
}

/// Whether a connection carries keys, and when it last did.
struct Activity {
    since: Instant,
    running: AtomicUsize,
    /// When the last request that carried keys ended, in milliseconds; zero before the first.
    last_millis: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self { since: Instant::now(), running: AtomicUsize::new(0), last_millis: AtomicU64::new(0) }
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn is_rested(&self, limit: Duration) -> bool {
        let last = self.last_millis.load(Ordering::Relaxed);
        // A request may wait long for a device: that is no rest.
        last > 0
            && self.running.load(Ordering::Relaxed) == 0
            && Duration::from_millis(self.elapsed().saturating_sub(last)) >= limit
    }

    /// Completes when keys were carried, the last of them `limit` ago.
    async fn rested(&self, limit: Option<Duration>) {
        let Some(limit) = limit else { return std::future::pending().await };
        loop {
            tokio::time::sleep(limit).await;
            if self.is_rested(limit) {
                return;
            }
        }
    }
}

/// A request that carries keys, until it is answered or given up by its caller.
struct Running(Arc<Activity>);

impl Running {
    fn new(activity: &Arc<Activity>) -> Self {
        activity.running.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(activity))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.last_millis.store(self.0.elapsed().max(1), Ordering::Relaxed);
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(2);

    /// As if `age` had passed since the connection was accepted.
    fn aged(age: Duration) -> Arc<Activity> {
        Arc::new(Activity { since: Instant::now().checked_sub(age).unwrap(), ..Activity::new() })
    }

    #[tokio::test]
    async fn request_that_need_not_wait_is_over_at_once_and_another_gets_a_task() {
        let (reached, seen) = std::sync::mpsc::channel();
        InPlace.execute(async move { reached.send("at once").unwrap() });
        assert_eq!(seen.try_recv(), Ok("at once"));
        let (go, awaited) = tokio::sync::oneshot::channel();
        let (done, finished) = tokio::sync::oneshot::channel();
        InPlace.execute(async move { done.send(awaited.await).unwrap() });
        go.send("later").unwrap();
        assert_eq!(finished.await, Ok(Ok("later")));
    }

    #[tokio::test]
    async fn request_that_panics_takes_no_other_along() {
        InPlace.execute(async { panic!("for a test") });
        let (done, finished) = tokio::sync::oneshot::channel();
        InPlace.execute(async move { done.send(()).unwrap() });
        assert_eq!(finished.await, Ok(()));
    }

    #[test]
    fn connection_that_never_carried_keys_is_kept() {
        assert!(!aged(LIMIT * 10).is_rested(LIMIT));
    }

    #[test]
    fn connection_rests_from_its_last_answer_on() {
        let activity = aged(LIMIT * 10);
        drop(Running::new(&activity));
        assert!(!activity.is_rested(LIMIT), "it was answered just now");
        activity.last_millis.store(1, Ordering::Relaxed);
        assert!(activity.is_rested(LIMIT));
    }

    #[test]
    fn request_that_waits_for_a_device_is_no_rest() {
        let activity = aged(LIMIT * 10);
        drop(Running::new(&activity));
        activity.last_millis.store(1, Ordering::Relaxed);
        let running = Running::new(&activity);
        assert!(!activity.is_rested(LIMIT));
        drop(running);
        assert!(!activity.is_rested(LIMIT), "it was answered just now");
    }
}
