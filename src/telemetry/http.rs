//! The HTTP server for `/metrics`, `/livez` and `/readyz`, on a loopback address.
//!
//! Everybody on the machine can reach it, so it is stingy: few connections, one request each, little time, only GET and HEAD,
//! bodies not read. Not reachable is no reason to stop serving keys: its caller logs and goes on.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::health::{Health, Readiness};
use super::metrics::{self, Metrics};

/// What the server shows.
pub struct Pages {
    pub metrics: Metrics,
    pub health: Box<dyn Health>,
}

/// How much of itself the server gives.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; one more is closed unread.
    pub connections: usize,
    /// For the request's head.
    pub head: Duration,
    /// For a connection as a whole: also a reader that never reads ends.
    pub connection: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 16, head: Duration::from_secs(5), connection: Duration::from_secs(15) }
    }
}

/// Serves until `shutdown` completes, then drops what is open. Must run on a tokio runtime.
///
/// # Errors
/// If the listener cannot be taken over. A connection that fails ends alone.
pub async fn serve(
    listener: TcpListener,
    pages: Arc<Pages>,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let slots = Arc::new(Semaphore::new(limits.connections));
    // Dropped at the end, which aborts the connections in it.
    let mut connections = tokio::task::JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let stream = tokio::select! {
            () = &mut shutdown => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: the backlog keeps the client, a pause keeps the processor.
                    tracing::warn!(%error, "metrics connection not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        while connections.try_join_next().is_some() {}
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
        let pages = Arc::clone(&pages);
        connections.spawn(async move {
            connection(stream, pages, limits).await;
            drop(slot);
        });
    }
}

async fn connection(stream: TcpStream, pages: Arc<Pages>, limits: Limits) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(request.method(), request.uri().path(), &pages);
        async move { Ok::<_, Infallible>(response) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .keep_alive(false)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(limits.connection, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "metrics connection ended early"),
        Err(_) => tracing::debug!("metrics connection took too long"),
    }
}

fn respond(method: &Method, path: &str, pages: &Pages) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    if !matches!(path, "/metrics" | "/livez" | "/readyz") {
        return page(StatusCode::NOT_FOUND, TEXT, "not found; there are /metrics, /livez and /readyz\n".into());
    }
    // hyper leaves the body of an answer to HEAD out by itself.
    if method != Method::GET && method != Method::HEAD {
        let mut refusal = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET\n".into());
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    match path {
        "/metrics" => match pages.metrics.render() {
            Ok(text) => page(StatusCode::OK, metrics::CONTENT_TYPE, text),
            Err(std::fmt::Error) => page(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "metrics cannot be shown\n".into()),
        },
        "/livez" => page(StatusCode::OK, TEXT, "ok\n".into()),
        _ => match pages.health.readiness() {
            Readiness::Ready => page(StatusCode::OK, TEXT, "ok\n".into()),
            Readiness::NotReady { reason } => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{reason}\n")),
        },
    }
}

fn page(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    // A cached probe would answer for a daemon that is gone.
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    struct Running {
        address: SocketAddr,
        ready: Arc<AtomicBool>,
        stop: oneshot::Sender<()>,
        server: JoinHandle<io::Result<()>>,
    }

    fn start(limits: Limits) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ready = Arc::new(AtomicBool::new(true));
        let seen = Arc::clone(&ready);
        let health = move || match seen.load(Ordering::SeqCst) {
            true => Readiness::Ready,
            false => Readiness::NotReady { reason: "sealed: starting".into() },
        };
        let pages = Arc::new(Pages { metrics: Metrics::new(), health: Box::new(health) });
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(serve(listener, pages, limits, async {
            let _ = stopped.await;
        }));
        Running { address, ready, stop, server }
    }

    /// Sends `request`, reads until the server closes.
    async fn exchange(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A reset after the answer is the server's way to drop what it did not read.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        exchange(address, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await
    }

    #[tokio::test]
    async fn pages_answer_and_the_server_stops_when_told() {
        let running = start(Limits::default());
        let metrics = get(running.address, "/metrics").await;
        assert!(metrics.starts_with("HTTP/1.1 200") && metrics.contains("openmetrics-text"), "{metrics}");
        assert!(metrics.ends_with("# EOF\n"), "{metrics}");
        assert!(get(running.address, "/livez").await.starts_with("HTTP/1.1 200"));
        assert!(get(running.address, "/readyz").await.starts_with("HTTP/1.1 200"));
        running.stop.send(()).unwrap();
        running.server.await.unwrap().unwrap();
        assert!(TcpStream::connect(running.address).await.is_err());
    }

    #[tokio::test]
    async fn sealed_daemon_is_live_but_not_ready_and_says_why() {
        let running = start(Limits::default());
        running.ready.store(false, Ordering::SeqCst);
        let answer = get(running.address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("sealed: starting\n"), "{answer}");
        assert!(get(running.address, "/livez").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn other_paths_and_methods_are_refused() {
        let running = start(Limits::default());
        for path in ["/", "/metrics/", "/livez/../metrics", "/metricsx"] {
            assert!(get(running.address, path).await.starts_with("HTTP/1.1 404"), "{path}");
        }
        let post = exchange(running.address, "POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc").await;
        assert!(post.starts_with("HTTP/1.1 405") && post.contains("allow: GET, HEAD"), "{post}");
        let head = exchange(running.address, "HEAD /livez HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[tokio::test]
    async fn garbage_and_oversized_heads_end_their_own_connection_only() {
        let running = start(Limits::default());
        exchange(running.address, "\u{1}\u{2} garbage\r\n\r\n").await;
        let long = format!("GET /livez HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(64 * 1024));
        assert!(!exchange(running.address, &long).await.starts_with("HTTP/1.1 200"));
        assert!(get(running.address, "/livez").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn request_that_never_ends_is_cut_off() {
        let short = Duration::from_millis(50);
        let running = start(Limits { head: short, ..Limits::default() });
        // Returns only because the server closes.
        assert!(!exchange(running.address, "GET /livez HT").await.starts_with("HTTP/1.1 200"));
        let running = start(Limits { connection: short, ..Limits::default() });
        assert_eq!(exchange(running.address, "").await, "");
    }

    #[tokio::test]
    async fn connection_above_the_limit_is_closed_and_the_held_one_goes_on() {
        let running = start(Limits { connections: 1, ..Limits::default() });
        let mut held = TcpStream::connect(running.address).await.unwrap();
        held.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
        assert_eq!(get(running.address, "/livez").await, "");
        held.write_all(b"Host: a\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        held.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}
