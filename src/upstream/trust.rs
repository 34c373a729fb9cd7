//! Whom TLS believes: the CAs pinned in a file, or the system's; at which time; and when each certificate ends.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore};

use super::Clock;
use super::contract::Expiry;
use super::watched::{FileFault, Secrecy, Watched};
use super::x509;

/// Where distributions keep their CA bundle; the first that exists counts. A sandbox must let these be read.
pub const SYSTEM_BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Distributions' bundles have about 220 KiB.
const MAX_BUNDLE: u64 = 2 * 1024 * 1024;

/// CA certificates in one file, read again when it changes. Several at once are all believed: that is how a CA is changed.
pub struct Trust {
    pinned: bool,
    tls: Watched<Tls>,
}

/// TLS as one state of the file makes it.
struct Tls {
    config: Arc<ClientConfig>,
    /// Ends of the pinned CAs in their order; of the system's nobody wants to know.
    not_after: Vec<SystemTime>,
}

impl Trust {
    /// `clock` decides whether a certificate is valid.
    pub fn new(ca_file: Option<&Path>, clock: Clock) -> Self {
        let pinned = ca_file.is_some();
        let path = ca_file.map_or_else(system_bundle, Path::to_path_buf);
        let parse = move |pem: &[u8]| Tls::parse(pem, pinned, &clock);
        Self { pinned, tls: Watched::new(path, MAX_BUNDLE, Secrecy::AnyMode, parse) }
    }

    pub(super) async fn config(&self) -> Result<Arc<ClientConfig>, FileFault> {
        Ok(Arc::clone(&self.tls.get().await?.config))
    }

    pub(super) fn expiries(&self) -> Vec<Expiry> {
        let Some(tls) = self.tls.last().filter(|_| self.pinned) else { return Vec::new() };
        let file = self.tls.path().display();
        let named = |(index, &not_after): (usize, &SystemTime)| Expiry {
            what: format!("CA certificate {} in {file}", index + 1),
            not_after,
        };
        tls.not_after.iter().enumerate().map(named).collect()
    }
}

fn system_bundle() -> PathBuf {
    let found = SYSTEM_BUNDLES.iter().find(|path| Path::new(path).exists());
    PathBuf::from(found.unwrap_or(&SYSTEM_BUNDLES[0]))
}

impl Tls {
    fn parse(pem: &[u8], pinned: bool, clock: &Clock) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        let mut not_after = Vec::new();
        for (index, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
            let number = index + 1;
            let certificate = certificate.map_err(|_| format!("certificate {number} is no PEM"))?;
            let end = x509::not_after(&certificate);
            match (roots.add(certificate), end) {
                (Ok(()), Some(end)) => not_after.push(end),
                // One odd CA among the system's hundred and forty takes nothing from the others.
                _ if !pinned => {}
                _ => return Err(format!("certificate {number} is no usable X.509 certificate")),
            }
        }
        if roots.is_empty() {
            return Err("it holds no certificate; it must hold CA certificates in PEM".into());
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_details(provider, Arc::new(CertificateTime(Arc::clone(clock))))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), not_after })
    }
}

/// The time at which certificates are checked.
struct CertificateTime(Clock);

impl TimeProvider for CertificateTime {
    fn current_time(&self) -> Option<UnixTime> {
        let since_1970 = (self.0)().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Some(UnixTime::since_unix_epoch(since_1970))
    }
}

impl fmt::Debug for CertificateTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificateTime")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::dates;

    /// A CA that lives to the end of 2099, which DER writes in its longer form.
    const CA: &str = "\
-----BEGIN CERTIFICATE-----
MIIBNjCB3aADAgECAgEHMAoGCCqGSM49BAMCMBgxFjAUBgNVBAMMDUtleXN0ZWFk
IHRlc3QwIBcNMjAwMTAxMDAwMDAwWhgPMjA5OTEyMzEyMzU5NTlaMBgxFjAUBgNV
BAMMDUtleXN0ZWFkIHRlc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAARTWbwe
yQUoI1WmRnbCMESp/uxFUxzCeGr7h3VsRDppzrhkov5ZsD3Q2s11cXC1CjjyfK7i
tbFspeZL3hQiXmV7oxYwFDASBgNVHRMBAf8ECDAGAQH/AgEAMAoGCCqGSM49BAMC
A0gAMEUCIQDIcWctavIuQn9Gj11cT/9CAt8Aubu1CSPvMfMI6d4yPAIgJuwK8lnN
eWOh0vsi9wlHjpF7RQX8n1+B+ZKQ7xcD7vc=
-----END CERTIFICATE-----
";
    const ODD: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";

    fn parse(pem: &str, pinned: bool) -> Result<Tls, String> {
        Tls::parse(pem.as_bytes(), pinned, &(Arc::new(SystemTime::now) as Clock))
    }

    #[test]
    fn end_of_each_pinned_ca_is_told() {
        let tls = parse(&format!("{CA}{CA}"), true).map_err(|problem| panic!("{problem}")).unwrap();
        let ends: Vec<String> = tls.not_after.iter().map(|&end| dates::iso8601(end)).collect();
        assert_eq!(ends, ["2099-12-31T23:59:59Z", "2099-12-31T23:59:59Z"]);
    }

    #[test]
    fn odd_certificate_spoils_a_pinned_file_but_not_the_systems_bundle() {
        assert!(parse(&format!("{CA}{ODD}"), true).is_err_and(|problem| problem.contains("certificate 2")));
        assert!(parse(&format!("{ODD}{CA}"), false).is_ok());
        for empty in ["", "no PEM", ODD, "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n"] {
            assert!(parse(empty, true).is_err(), "{empty:?}");
            assert!(parse(empty, false).is_err(), "{empty:?}");
        }
    }
}
