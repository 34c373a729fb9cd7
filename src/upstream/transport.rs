//! The one HTTPS client: a connection for each request, bounded in time and size, no redirects, cookies or compression.
//!
//! Whatever goes wrong here is [`FaultClass::Unreachable`]: as long as no answer is surely the service's, nothing is revoked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use keystead_core::FaultClass;
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

use super::Clock;
use super::connect::{self, AbortOnDrop, Stream};
use super::contract::{Expiry, UpstreamError};
use super::endpoint::Endpoint;
use super::settings::TransportSettings;
use super::trust::Trust;
use super::{answer, dates};

/// Longest body read.
pub const MAX_BODY: usize = 64 * 1024;
/// Longest status line with headers, and the most headers, read.
const MAX_HEAD: usize = 32 * 1024;
const MAX_HEADERS: usize = 64;

/// [`UpstreamError::code`] where no service answered: which stage failed.
pub mod codes {
    pub const DNS: &str = "dns";
    pub const TCP: &str = "tcp";
    pub const PROXY: &str = "proxy";
    pub const TLS: &str = "tls";
    pub const CA_FILE: &str = "ca-file";
    /// The connection broke, also within a TLS handshake, or what came is no HTTP.
    pub const HTTP: &str = "http";
    pub const TIMEOUT: &str = "timeout";
    pub const REDIRECT: &str = "redirect";
    pub const TOO_LONG: &str = "answer-too-long";
    /// An answer, but not the service's: HTML, foreign JSON.
    pub const FOREIGN: &str = "foreign-answer";
}

/// Cheap to clone; one for all of an upstream's services.
#[derive(Clone)]
pub struct Transport(Arc<Inner>);

struct Inner {
    settings: TransportSettings,
    trust: Trust,
    clock: Clock,
    /// When the certificate of each host met so far ends.
    certificates: Mutex<BTreeMap<String, SystemTime>>,
}

/// One request. `Host` and `Content-Length` are added.
pub struct Request<'a> {
    pub method: Method,
    pub endpoint: &'a Endpoint,
    /// With a query, if any; begins with a slash. Never holds a secret: proxies and services log it.
    pub path: &'a str,
    pub headers: HeaderMap,
    pub body: Zeroizing<Vec<u8>>,
}

/// An answer that TLS says is from the host asked (from a metadata endpoint: that the link says so).
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Zeroizing<Vec<u8>>,
    /// The service's clock.
    pub date: Option<SystemTime>,
    /// How long the service asks not to be called.
    pub retry_after: Option<Duration>,
}

impl Transport {
    /// Opens nothing yet. `clock` decides whether certificates are valid and what time requests are signed at: the greatest of wall clock, last recorded wall clock and build time.
    pub fn new(settings: TransportSettings, clock: Clock) -> Self {
        let trust = Trust::new(settings.ca_file.as_deref(), Arc::clone(&clock));
        Self(Arc::new(Inner { settings, trust, clock, certificates: Mutex::default() }))
    }

    pub fn now(&self) -> SystemTime {
        (self.0.clock)()
    }

    /// When a call that begins now must have ended, retries included.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.0.settings.timeout
    }

    /// Sends one request on a connection of its own and reads the whole answer.
    ///
    /// # Errors
    /// `Unreachable` with one of [`codes`]: no answer by `deadline`, or a redirect.
    pub async fn send(&self, request: Request<'_>, deadline: Instant) -> Result<Reply, UpstreamError> {
        let endpoint = request.endpoint;
        let stream = self.connect(endpoint, deadline).await?;
        let host = endpoint.host();
        match timeout_at(deadline, exchange(stream, request)).await {
            Ok(Ok(reply)) if reply.status.is_redirection() => Err(unreachable(
                codes::REDIRECT,
                format!("{host}: it redirects elsewhere, which a KMS does not; is a captive portal in the way?"),
            )),
            Ok(reply) => reply,
            Err(_) => Err(unreachable(codes::TIMEOUT, format!("{host}: no complete answer in time"))),
        }
    }

    /// Ends of the pinned CAs and of the certificate of each host met so far.
    pub fn expiries(&self) -> Vec<Expiry> {
        let certificates = self.0.certificates.lock().unwrap_or_else(PoisonError::into_inner);
        let met =
            certificates.iter().map(|(host, &not_after)| Expiry { what: format!("certificate of {host}"), not_after });
        self.0.trust.expiries().into_iter().chain(met).collect()
    }

    async fn connect(&self, endpoint: &Endpoint, deadline: Instant) -> Result<Stream, UpstreamError> {
        let settings = &self.0.settings;
        let deadline = deadline.min(Instant::now() + settings.connect_timeout);
        let proxy = settings.proxy.as_ref().filter(|proxy| endpoint.is_tls() && !proxy.spares(endpoint.host()));
        if !endpoint.is_tls() {
            return connect::open(endpoint, None, deadline).await;
        }
        let config = timeout_at(deadline, self.0.trust.config())
            .await
            .map_err(|_| unreachable(codes::CA_FILE, "the file of CA certificates cannot be read in time".into()))?
            .map_err(|fault| unreachable(codes::CA_FILE, fault.to_string()))?;
        let stream = connect::open(endpoint, proxy, deadline).await?;
        let (stream, end) = connect::tls(stream, endpoint, config, deadline).await?;
        if let Some(end) = end {
            let mut certificates = self.0.certificates.lock().unwrap_or_else(PoisonError::into_inner);
            certificates.insert(endpoint.host().to_owned(), end);
        }
        Ok(stream)
    }
}

impl Request<'_> {
    /// A value that no log or Debug shows.
    ///
    /// # Errors
    /// `CredentialFault` if it cannot stand in a header, which no credential's does.
    pub fn secret_header(value: &str) -> Result<HeaderValue, UpstreamError> {
        let mut value = Self::header(value)?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// # Errors
    /// `CredentialFault` if it cannot stand in a header; what comes from a credential is all that could not.
    pub fn header(value: &str) -> Result<HeaderValue, UpstreamError> {
        HeaderValue::from_str(value).map_err(|_| {
            let detail = "the credential holds characters that no header can carry";
            UpstreamError::new(FaultClass::CredentialFault, "credential-unusable", detail)
        })
    }

    /// A lower-case name known when the code was written.
    pub const fn header_name(name: &'static str) -> HeaderName {
        HeaderName::from_static(name)
    }
}

async fn exchange(stream: Stream, request: Request<'_>) -> Result<Reply, UpstreamError> {
    let host = request.endpoint.host();
    let broken = |error: &dyn std::fmt::Display| unreachable(codes::HTTP, format!("{host}: {error}"));
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(&error))?;
    // Ends with the request, also when that is given up half-way.
    let _connection = AbortOnDrop(tokio::spawn(connection));
    let authority = Request::header(&request.endpoint.authority())?;
    let mut message = http::Request::new(Full::new(Bytes::from(std::mem::take(&mut *{ request.body }))));
    *message.method_mut() = request.method;
    *message.uri_mut() = request.path.parse().map_err(|error: http::uri::InvalidUri| broken(&error))?;
    *message.headers_mut() = request.headers;
    message.headers_mut().insert(header::HOST, authority);
    let (head, body) = sender.send_request(message).await.map_err(|error| broken(&error))?.into_parts();
    let body = read(body, host).await?;
    let date = head.headers.get(header::DATE).and_then(|value| dates::parse_http(value.to_str().ok()?));
    let retry_after =
        head.headers.get(header::RETRY_AFTER).and_then(|value| answer::retry_after(value.to_str().ok()?, date));
    Ok(Reply { status: head.status, headers: head.headers, body, date, retry_after })
}

async fn read(body: Incoming, host: &str) -> Result<Zeroizing<Vec<u8>>, UpstreamError> {
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => Ok(Zeroizing::new(body.to_bytes().to_vec())),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(unreachable(codes::TOO_LONG, format!("{host}: its answer is longer than {MAX_BODY} bytes")))
        }
        Err(error) => Err(unreachable(codes::HTTP, format!("{host}: {error}"))),
    }
}

fn unreachable(code: &'static str, detail: String) -> UpstreamError {
    UpstreamError::new(FaultClass::Unreachable, code, detail)
}
