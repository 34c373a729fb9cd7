//! gRPC channels over unix sockets.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tonic::transport::{Channel, Endpoint, Error};

use crate::daemon::{DEADLINE, Daemon, Kms, Site};

pub async fn channel(socket: PathBuf) -> Channel {
    try_channel(socket).await.expect("the socket is served")
}

/// Its connection is driven beside the test, which waits for commands and thereby stands still: GOAWAY is heard, and a
/// connection whose client was dropped ends.
pub async fn try_channel(socket: PathBuf) -> Result<Channel, Error> {
    static DRIVER: LazyLock<Runtime> =
        LazyLock::new(|| Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime"));

    // The authority is never looked up; the apiserver sends this one.
    let endpoint = Endpoint::from_static("http://localhost");
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    DRIVER.spawn(async move { endpoint.connect_with_connector(connector).await }).await.expect("it does not panic")
}

/// The code of a Status call, from a daemon that may not serve. Its socket is listened to in every state, but a moment
/// after the file is there.
pub async fn kms_code(site: &Site) -> tonic::Code {
    let started = Instant::now();
    let channel = loop {
        match try_channel(site.kms_socket()).await {
            Ok(channel) => break channel,
            Err(error) => assert!(started.elapsed() < DEADLINE, "nobody listens: {error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    match Kms::new(channel).status(keystead_wire::kms::v2::StatusRequest {}).await {
        Ok(_) => tonic::Code::Ok,
        Err(status) => status.code(),
    }
}

/// GET over plain HTTP/1.1 from the daemon's telemetry address: status line and body.
pub async fn get(daemon: &Daemon, path: &str) -> (String, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = daemon.status().await.metrics_address;
    let mut stream = tokio::net::TcpStream::connect(&address).await.expect("the metrics address answers");
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
}

pub async fn metrics(daemon: &Daemon) -> String {
    let (status, body) = get(daemon, "/metrics").await;
    assert!(status.contains("200"), "{status}");
    body
}

/// Sum of the samples of `name` whose labels contain `label`.
pub fn sample(metrics: &str, name: &str, label: &str) -> f64 {
    metrics
        .lines()
        .filter(|line| line.starts_with(name) && line.contains(label))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}
