//! A running etcd, read page by page at one revision with its v3 API.
//!
//! Until the first page has come, any failure is one of address, certificate or right, and is told at once. After that a
//! lost connection is waited for, and a revision that is compacted meanwhile makes the reading begin anew.
//!
//! Source: etcd's API reference (KV.Range) and `etcdserverpb/rpc.proto`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use keystead_wire::etcd::kv_client::KvClient;
use keystead_wire::etcd::{RangeRequest, RangeResponse};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};
use zeroize::Zeroizing;

use super::Prefixes;
use super::source::{Origin, Provenance, Reader};

/// Keys asked for at once. What an answer may hold bounds the memory it takes; an answer that would be longer is asked
/// for again with fewer keys.
const PAGE: i64 = 500;
const MAX_ANSWER: usize = 32 << 20;
/// kube-apiserver has etcd compacted every five minutes.
const ROUNDS: u32 = 3;
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// etcd takes pings more often than every 5 s for an attack.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(2);

/// Who asks, and whose answers are believed. Files in PEM.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// Certificates of the authorities that etcd's own may be signed by. The system's are not used.
    pub authorities: Option<PathBuf>,
    /// The client's certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    #[error("{address:?} is no address of an etcd: {reason}")]
    Address { address: String, reason: &'static str },
    #[error("cannot read {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the certificates or the key for {address} cannot be used")]
    Certificates {
        address: String,
        #[source]
        source: tonic::transport::Error,
    },
    #[error("cannot connect to etcd at {address}")]
    Connect {
        address: String,
        #[source]
        source: tonic::transport::Error,
    },
    /// In TLS 1.3 a server looks at the client's certificate after the connection stands, and may not get to say why.
    #[error("etcd at {address} broke off before its first answer: {message}")]
    BrokeOff { address: String, message: String },
    #[error("etcd at {address} refuses: {message}")]
    Refused { address: String, message: String },
    /// With what the last try met, if anything.
    #[error("no answer from etcd at {address} for {} s{}", patience.as_secs(), last.as_ref().map_or_else(String::new, |last| format!(": {last}")))]
    NoAnswer { address: String, patience: Duration, last: Option<String> },
    #[error("etcd at {0} was compacted faster than it could be read, {ROUNDS} times")]
    Compacted(String),
    #[error("one object in etcd at {0} is longer than 32 MiB")]
    TooLong(String),
    #[error("etcd at {0} became another cluster's while it was read")]
    OtherCluster(String),
    #[error("{0} does not answer as etcd does: {1}")]
    Nonsense(String, &'static str),
}

/// A connection.
pub struct Etcd {
    address: String,
    client: KvClient<Channel>,
    patience: Duration,
    page: i64,
    has_answered: bool,
}

/// One pass ended: with the last page, or because its revision is gone.
enum Pass {
    Complete(Provenance),
    Compacted,
}

impl Etcd {
    /// Connects to `https://host:port`, `http://` on the loopback interface, or `unix:///path`. `patience`: how long one
    /// page may take, lost connections in between included.
    pub async fn connect(address: &str, credentials: &Credentials, patience: Duration) -> Result<Self, EtcdError> {
        let endpoint = endpoint(address, credentials)?
            .connect_timeout(CONNECT_WITHIN.min(patience))
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .initial_stream_window_size(2 << 20)
            .initial_connection_window_size(4 << 20);
        let channel =
            endpoint.connect().await.map_err(|source| EtcdError::Connect { address: address.to_owned(), source })?;
        let client = KvClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        Ok(Self { address: address.to_owned(), client, patience, page: PAGE, has_answered: false })
    }

    pub(super) async fn read<R: Reader>(
        &mut self,
        prefixes: &Prefixes,
        reader: &mut R,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Provenance, EtcdError> {
        for _ in 0..ROUNDS {
            if let Pass::Complete(provenance) = self.pass(prefixes, reader, progress).await? {
                return Ok(provenance);
            }
            reader.start_anew();
        }
        Err(EtcdError::Compacted(self.address.clone()))
    }

    async fn pass<R: Reader>(
        &mut self,
        prefixes: &Prefixes,
        reader: &mut R,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Pass, EtcdError> {
        let mut read = 0;
        let mut provenance: Option<Provenance> = None;
        for (start, range_end) in prefixes.ranges() {
            let mut key = start;
            loop {
                let revision = provenance.as_ref().map_or(0, |known| known.revision.cast_signed());
                let request = RangeRequest { key: key.clone(), range_end: range_end.clone(), limit: 0, revision };
                let Some(page) = self.page(request).await? else { return Ok(Pass::Compacted) };
                provenance = Some(self.same_cluster(provenance, &page)?);
                for pair in &page.kvs {
                    // What went back would be counted twice, or be asked for without end.
                    if pair.key < key || (range_end != [0] && pair.key >= range_end) {
                        return Err(self.nonsense("keys out of order"));
                    }
                    key.clone_from(&pair.key);
                    key.push(0);
                    let holds = reader.look(&pair.key, &pair.value);
                    reader.settle(&pair.key, holds);
                }
                read += page.kvs.len() as u64;
                progress(read);
                match (page.more, page.kvs.is_empty()) {
                    (false, _) => break,
                    (true, true) => return Err(self.nonsense("more keys, but none here")),
                    (true, false) => {}
                }
            }
        }
        provenance.map(Pass::Complete).ok_or_else(|| self.nonsense("no range was read"))
    }

    /// Held to the cluster and the revision of the first page.
    fn same_cluster(&self, known: Option<Provenance>, page: &RangeResponse) -> Result<Provenance, EtcdError> {
        let header = page.header.as_ref().ok_or_else(|| self.nonsense("no header"))?;
        let revision = u64::try_from(header.revision).map_err(|_| self.nonsense("a negative revision"))?;
        match known {
            None if revision == 0 => Err(self.nonsense("no revision")),
            None => {
                let origin = Origin::Etcd { cluster: header.cluster_id, member: header.member_id };
                Ok(Provenance { origin, revision })
            }
            Some(Provenance { origin: Origin::Etcd { cluster, .. }, .. }) if cluster != header.cluster_id => {
                Err(EtcdError::OtherCluster(self.address.clone()))
            }
            Some(known) => Ok(known),
        }
    }

    /// One page, waited for over lost connections. `None`: its revision is compacted.
    async fn page(&mut self, mut request: RangeRequest) -> Result<Option<RangeResponse>, EtcdError> {
        let deadline = Instant::now() + self.patience;
        let mut pause = RETRY_FIRST;
        let mut last = None;
        loop {
            request.limit = self.page;
            let status = match timeout_at(deadline, self.client.range(request.clone())).await {
                Ok(Ok(answer)) => {
                    self.has_answered = true;
                    return Ok(Some(answer.into_inner()));
                }
                Ok(Err(status)) => status,
                Err(_) => {
                    return Err(EtcdError::NoAnswer { address: self.address.clone(), patience: self.patience, last });
                }
            };
            match (Trouble::of(&status), self.page) {
                (Trouble::Compacted, _) => return Ok(None),
                (Trouble::TooLong, 1) => return Err(EtcdError::TooLong(self.address.clone())),
                (Trouble::TooLong, page) => {
                    self.page = (page / 4).max(1);
                    continue;
                }
                (Trouble::Lost, _) if self.has_answered => {}
                (trouble, _) => {
                    let (address, message) = (self.address.clone(), with_causes(&status));
                    return Err(match trouble {
                        Trouble::Lost => EtcdError::BrokeOff { address, message },
                        _ => EtcdError::Refused { address, message },
                    });
                }
            }
            last = Some(with_causes(&status));
            // Beyond the deadline the next call ends at once, with what is known.
            let _ = timeout_at(deadline, sleep(pause)).await;
            pause = (pause * 2).min(RETRY_LAST);
        }
    }

    fn nonsense(&self, what: &'static str) -> EtcdError {
        EtcdError::Nonsense(self.address.clone(), what)
    }
}

/// What a failed call means for the next one.
#[derive(Debug, PartialEq, Eq)]
enum Trouble {
    Compacted,
    TooLong,
    /// The connection broke, or etcd has no leader now.
    Lost,
    Refused,
}

impl Trouble {
    fn of(status: &Status) -> Self {
        match status.code() {
            Code::OutOfRange if status.message().contains("compacted") => Self::Compacted,
            // Our own bound, by the name it has in the library; or that of a proxy in between.
            Code::OutOfRange | Code::ResourceExhausted if status.message().contains("larg") => Self::TooLong,
            // The last two are what the library makes of a connection that breaks within an answer.
            Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Internal | Code::Unknown => Self::Lost,
            _ => Self::Refused,
        }
    }
}

/// The status and what it came from, in one line.
fn with_causes(status: &Status) -> String {
    let mut text = match status.message() {
        "" => format!("{:?}", status.code()),
        message => message.to_owned(),
    };
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

fn endpoint(address: &str, credentials: &Credentials) -> Result<Endpoint, EtcdError> {
    let wrong = |reason| EtcdError::Address { address: address.to_owned(), reason };
    let malformed = |_| wrong("it is malformed");
    if let Some(path) = address.strip_prefix("unix:") {
        if !path.trim_start_matches("//").starts_with('/') {
            return Err(wrong("a socket is named by its absolute path, as unix:///run/etcd.sock"));
        }
        return match credentials {
            Credentials { authorities: None, identity: None } => {
                Endpoint::from_shared(address.to_owned()).map_err(malformed)
            }
            _ => Err(wrong("a socket is spoken to without certificates")),
        };
    }
    let uri: Uri = address.parse().map_err(|_| wrong("it is malformed"))?;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    if uri.port_u16().is_none() || host.is_empty() || uri.authority().is_some_and(|all| all.as_str().contains('@')) {
        return Err(wrong("it is to be like https://127.0.0.1:2379"));
    }
    if !matches!(uri.path_and_query().map(http::uri::PathAndQuery::as_str), None | Some("/" | "")) {
        return Err(wrong("it has a path"));
    }
    let plain = Endpoint::from_shared(address.to_owned()).map_err(malformed)?;
    match (uri.scheme_str(), credentials) {
        (Some("http"), _) if !is_loopback(host) => {
            Err(wrong("beyond this machine only https:// is spoken: Secrets would pass in the clear"))
        }
        (Some("http"), Credentials { authorities: None, identity: None }) => Ok(plain),
        (Some("http"), _) => Err(wrong("certificates are of use with https:// only")),
        (Some("https"), Credentials { authorities: None, .. }) => {
            Err(wrong("https:// needs the certificate of etcd's authority: --etcd-cacert FILE"))
        }
        (Some("https"), Credentials { authorities: Some(authorities), identity }) => {
            let mut tls = ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(file(authorities)?))
                .timeout(CONNECT_WITHIN);
            if let Some((certificate, key)) = identity {
                tls = tls.identity(Identity::from_pem(file(certificate)?, file(key)?));
            }
            plain.tls_config(tls).map_err(|source| EtcdError::Certificates { address: address.to_owned(), source })
        }
        _ => Err(wrong("it is to begin with https://, http:// or unix://")),
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn file(path: &Path) -> Result<Zeroizing<Vec<u8>>, EtcdError> {
    let bytes = std::fs::read(path).map_err(|source| EtcdError::File { path: path.to_owned(), source })?;
    Ok(Zeroizing::new(bytes))
}

#[cfg(test)]
#[path = "etcd_tests.rs"]
mod tests;
