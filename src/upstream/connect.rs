//! The way to a service: name, TCP (straight or through a proxy's CONNECT), TLS. Each stage fails under a code of its own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use keystead_core::FaultClass;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::TlsConnector;

use super::contract::UpstreamError;
use super::endpoint::Endpoint;
use super::settings::Proxy;
use super::transport::codes;
use super::x509;

/// RFC 8305 §5: the next address is tried while the one before is still silent.
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);
/// A resolver's answer may be hostile.
const MAX_ADDRESSES: usize = 8;

pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub(super) type Stream = Box<dyn Io>;

/// A stream to `endpoint` or, with a proxy, one through it. No TLS yet.
pub(super) async fn open(
    endpoint: &Endpoint,
    proxy: Option<&Proxy>,
    deadline: Instant,
) -> Result<Stream, UpstreamError> {
    let Some(proxy) = proxy else {
        return Ok(Box::new(tcp(endpoint.host(), endpoint.port(), deadline).await?));
    };
    let address = &proxy.address;
    let through = |error: UpstreamError| UpstreamError { detail: format!("proxy: {}", error.detail), ..error };
    let stream = tcp(address.host(), address.port(), deadline).await.map_err(through)?;
    stage(codes::PROXY, address.host(), deadline, tunnel(stream, endpoint)).await
}

/// Speaks TLS on `stream`. Also tells when the first certificate of the peer's chain ends.
pub(super) async fn tls(
    stream: Stream,
    endpoint: &Endpoint,
    config: Arc<ClientConfig>,
    deadline: Instant,
) -> Result<(Stream, Option<SystemTime>), UpstreamError> {
    let name = ServerName::try_from(endpoint.host().to_owned())
        .map_err(|_| unreachable(codes::TLS, endpoint.host(), "it is no name that a certificate could have"))?;
    let handshake = TlsConnector::from(config).connect(name, stream);
    let stream = timeout_at(deadline, handshake)
        .await
        .map_err(|_| unreachable(codes::TIMEOUT, endpoint.host(), "no answer in time to a TLS handshake"))?
        .map_err(|error| unreachable(handshake_code(&error), endpoint.host(), &error.to_string()))?;
    let end = first_end(stream.get_ref().1);
    Ok((Box::new(stream), end))
}

/// What was said in a handshake lasts: it is somebody else's. That the connection broke in it may pass.
fn handshake_code(error: &io::Error) -> &'static str {
    if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) { codes::TLS } else { codes::HTTP }
}

fn first_end(connection: &ClientConnection) -> Option<SystemTime> {
    connection.peer_certificates()?.iter().filter_map(|certificate| x509::not_after(certificate)).min()
}

async fn tcp(host: &str, port: u16, deadline: Instant) -> Result<TcpStream, UpstreamError> {
    let found = stage(codes::DNS, host, deadline, lookup_host((host, port))).await?;
    let addresses: Vec<SocketAddr> = found.take(MAX_ADDRESSES).collect();
    if addresses.is_empty() {
        return Err(unreachable(codes::DNS, host, "its name has no address"));
    }
    // Not tried again within the call: a start without the cloud waits for one such silence, not for three.
    timeout_at(deadline, first_to_answer(&addresses))
        .await
        .map_err(|_| unreachable(codes::TIMEOUT, host, "nobody answers at its address"))?
        .map_err(|error| unreachable(codes::TCP, host, &error.to_string()))
}

/// Connects to the first address that answers, each one started a little after the one before.
async fn first_to_answer(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut attempts = FuturesUnordered::new();
    let mut waiting = addresses.iter();
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        match waiting.next() {
            Some(address) => attempts.push(TcpStream::connect(address)),
            None if attempts.is_empty() => return Err(failure),
            None => {}
        }
        tokio::select! {
            Some(outcome) = attempts.next() => match outcome {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Err(error) => failure = error,
            },
            () = sleep(NEXT_ADDRESS_AFTER), if waiting.len() > 0 => {}
        }
    }
}

/// Asks a proxy for a way to `endpoint` (RFC 9110 §9.3.6).
async fn tunnel(stream: TcpStream, endpoint: &Endpoint) -> io::Result<Stream> {
    let target = endpoint.host_and_port();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Has handed the stream over once the upgrade is there; before, nobody else would end it.
    let _connection = AbortOnDrop(tokio::spawn(connection.with_upgrades()));
    let request = http::Request::builder()
        .method(Method::CONNECT)
        .uri(&target)
        .header(header::HOST, HeaderValue::from_str(&target).map_err(io::Error::other)?)
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let answer = sender.send_request(request).await.map_err(io::Error::other)?;
    if answer.status() != StatusCode::OK {
        return Err(io::Error::other(format!("it answered {} to CONNECT {target}", answer.status())));
    }
    let upgraded = hyper::upgrade::on(answer).await.map_err(io::Error::other)?;
    Ok(Box::new(TokioIo::new(upgraded)))
}

/// A task that ends with whoever waits for it.
pub(super) struct AbortOnDrop(pub(super) JoinHandle<Result<(), hyper::Error>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs one stage until the deadline.
async fn stage<T>(
    code: &'static str,
    host: &str,
    deadline: Instant,
    work: impl Future<Output = io::Result<T>>,
) -> Result<T, UpstreamError> {
    match timeout_at(deadline, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(unreachable(code, host, &error.to_string())),
        Err(_) => Err(unreachable(code, host, "no answer in time")),
    }
}

fn unreachable(code: &'static str, host: &str, problem: &str) -> UpstreamError {
    UpstreamError::new(FaultClass::Unreachable, code, format!("{host}: {problem}"))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn proxy(listener: &TcpListener) -> Proxy {
        Proxy::new(&format!("http://{}", listener.local_addr().unwrap()), &[]).unwrap()
    }

    fn service() -> Endpoint {
        "https://kms.example:8443".parse().unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[tokio::test]
    async fn address_that_refuses_gives_way_to_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let here = listener.local_addr().unwrap();
        assert_eq!(first_to_answer(&[gone, here]).await.unwrap().peer_addr().unwrap(), here);
        assert_eq!(first_to_answer(&[gone, gone]).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn address_that_is_silent_is_a_time_out() {
        use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
        // Room for one in its queue, and nobody takes it out: the next is not answered at all.
        let listener = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&listener, &"127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
        listen(&listener, 0).unwrap();
        let address: SocketAddr = getsockname(&listener).unwrap().try_into().unwrap();
        let _first = TcpStream::connect(address).await.unwrap();
        let error = tcp("127.0.0.1", address.port(), Instant::now() + Duration::from_millis(500)).await.unwrap_err();
        assert_eq!(error.code, codes::TIMEOUT, "{error}");
    }

    #[tokio::test]
    async fn proxy_is_asked_for_the_service_and_then_out_of_the_way() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (proxy, there) = (proxy(&listener), service());
        let asked = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\nhello").await.unwrap();
            String::from_utf8(head).unwrap()
        };
        let (stream, head) = tokio::join!(open(&there, Some(&proxy), soon()), asked);
        let mut greeting = [0; 5];
        stream.unwrap().read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"hello");
        assert!(head.starts_with("CONNECT kms.example:8443 HTTP/1.1\r\n"), "{head}");
    }

    #[tokio::test]
    async fn proxy_that_never_answers_is_left_and_its_connection_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (proxy, there) = (proxy(&listener), service());
        let silent = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut received = Vec::new();
            // Returns when the client closes.
            stream.read_to_end(&mut received).await.unwrap();
        };
        let deadline = Instant::now() + Duration::from_millis(300);
        let (outcome, closed) = tokio::join!(open(&there, Some(&proxy), deadline), timeout_at(soon(), silent));
        assert_eq!(outcome.err().map(|error| error.code), Some(codes::PROXY.to_owned()));
        closed.expect("the connection is still open");
    }
}
