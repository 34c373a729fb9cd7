//! Which etcd a command reads, and how: a snapshot file, or a running etcd with client certificates.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;

use super::exit::{Exit, Failure};
use super::report::{Format, progress};
#[cfg(feature = "cluster")]
use crate::cluster::{Credentials, Etcd, EtcdError};
use crate::cluster::{Prefixes, Provenance, Reader, Snapshot, Source, SourceError};

/// The command that takes them has an argument group `source`, which says whether one is needed.
#[derive(Debug, Args)]
pub struct EtcdSource {
    /// What `etcdctl snapshot save` wrote
    #[arg(long, value_name = "FILE", group = "source")]
    snapshot: Option<PathBuf>,
    /// Read a copy of etcd's database file that has no checksum
    #[arg(long)]
    skip_hash_check: bool,
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    running: Running,
    /// Only keys that begin so, as kube-apiserver's --etcd-prefix; may be given again [default: all keys]
    #[arg(long, value_name = "PREFIX")]
    prefix: Vec<String>,
}

#[cfg(feature = "cluster")]
#[derive(Debug, Args)]
struct Running {
    /// A running etcd: https://HOST:PORT, http://127.0.0.1:PORT or unix:///PATH
    #[arg(long, value_name = "URL", group = "source", conflicts_with_all = ["snapshot", "skip_hash_check"])]
    etcd: Option<String>,
    /// Certificate of the authority that signed etcd's (PEM)
    #[arg(long, value_name = "FILE", requires = "etcd")]
    etcd_cacert: Option<PathBuf>,
    /// Client certificate (PEM)
    #[arg(long, value_name = "FILE", requires_all = ["etcd_cacert", "etcd_key"])]
    etcd_cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires = "etcd_cert")]
    etcd_key: Option<PathBuf>,
    /// Seconds to wait for a page of keys before giving up
    #[arg(long, value_name = "SECONDS", requires = "etcd", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    etcd_timeout: u64,
}

impl EtcdSource {
    /// Whether one was named at all.
    pub fn is_some(&self) -> bool {
        #[cfg(feature = "cluster")]
        if self.running.etcd.is_some() {
            return true;
        }
        self.snapshot.is_some()
    }

    /// Whether keys may have been left out.
    pub fn is_restricted(&self) -> bool {
        !self.prefixes().are_all_keys()
    }

    fn prefixes(&self) -> Prefixes {
        Prefixes::new(self.prefix.iter().cloned())
    }

    /// Reads it from beginning to end, and tells a person who waits how far it is.
    pub async fn read<R: Reader>(&self, reader: &mut R, format: Format) -> Result<Provenance, Failure> {
        let mut source = self.open(format).await?;
        let mut told = Instant::now();
        let mut tell = |entries: u64| {
            if told.elapsed() >= Duration::from_secs(1) {
                told = Instant::now();
                progress(format, &format!("{entries} entries read…"));
            }
        };
        source.read(&self.prefixes(), reader, &mut tell).await.map_err(failed)
    }

    async fn open(&self, format: Format) -> Result<Source, Failure> {
        #[cfg(feature = "cluster")]
        if let Some(address) = &self.running.etcd {
            return self.running.open(address, format).await;
        }
        match &self.snapshot {
            Some(path) => {
                progress(format, "reading the snapshot…");
                let opened = Snapshot::open(path, self.skip_hash_check).map_err(SourceError::from);
                opened.map(Source::Snapshot).map_err(failed)
            }
            None => Err(Failure::new(Exit::Usage, "no source is named")),
        }
    }
}

#[cfg(feature = "cluster")]
impl Running {
    async fn open(&self, address: &str, format: Format) -> Result<Source, Failure> {
        let credentials = Credentials {
            authorities: self.etcd_cacert.clone(),
            identity: self.etcd_cert.clone().zip(self.etcd_key.clone()),
        };
        progress(format, "reading etcd…");
        let patience = Duration::from_secs(self.etcd_timeout);
        let etcd = Etcd::connect(address, &credentials, patience).await.map_err(SourceError::from).map_err(failed)?;
        Ok(Source::Etcd(etcd))
    }
}

fn failed(error: SourceError) -> Failure {
    let failure = |exit| Failure::from_error(exit, &error);
    match &error {
        SourceError::Snapshot(_) => failure(Exit::Failed),
        #[cfg(feature = "cluster")]
        SourceError::Etcd(EtcdError::Address { .. } | EtcdError::File { .. } | EtcdError::Certificates { .. }) => {
            failure(Exit::Usage)
        }
        #[cfg(feature = "cluster")]
        SourceError::Etcd(EtcdError::Compacted(_)) => {
            failure(Exit::Failed).next("take a snapshot with `etcdctl snapshot save`, and read that: --snapshot FILE")
        }
        #[cfg(feature = "cluster")]
        SourceError::Etcd(_) => {
            let failure = failure(Exit::Failed);
            match remedy(&failure.message) {
                Some(next) => failure.next(next),
                None if matches!(error, SourceError::Etcd(EtcdError::BrokeOff { .. })) => failure.next(
                    "if etcd wants a client certificate, name one of its own authority: --etcd-cert FILE --etcd-key FILE",
                ),
                None => failure,
            }
        }
    }
}

/// What TLS calls the usual mistakes.
#[cfg(feature = "cluster")]
fn remedy(message: &str) -> Option<&'static str> {
    const REMEDIES: [(&str, &str); 8] = [
        ("UnknownIssuer", "etcd's certificate is not signed by --etcd-cacert: name the authority of etcd itself"),
        ("NotValidForName", "etcd's certificate is not for this host: name one of those in it, as 127.0.0.1"),
        ("NotValidYet", "is the clock of this machine right?"),
        ("Expired", "etcd's certificate has expired, or the clock of this machine is wrong"),
        ("CertificateRequired", "etcd wants a client certificate: --etcd-cert FILE --etcd-key FILE"),
        (
            "BadCertificate",
            "etcd does not take this client certificate: --etcd-cert FILE --etcd-key FILE of its own authority",
        ),
        ("UnknownCA", "etcd does not know who signed this client certificate: use one of etcd's own authority"),
        ("onnection refused", "is etcd running, and is this its client address?"),
    ];
    REMEDIES.iter().find(|(word, _)| message.contains(word)).map(|(_, next)| *next)
}
