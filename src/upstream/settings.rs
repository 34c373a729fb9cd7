//! What the configuration decides about an upstream: the way to it here, the rest in the provider's own room.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::alibaba::AlibabaSettings;
use super::aws::AwsSettings;
use super::endpoint::{Endpoint, InvalidEndpoint};
use super::ibm::IbmSettings;

/// Which cloud, which key, and how to get there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamSettings {
    pub provider: ProviderSettings,
    pub transport: TransportSettings,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderSettings {
    Alibaba(AlibabaSettings),
    Ibm(IbmSettings),
    Aws(AwsSettings),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransportSettings {
    /// For name, TCP, proxy and TLS together.
    pub connect_timeout: Duration,
    /// For a whole call, credentials and retries included.
    pub timeout: Duration,
    /// PEM file of the CAs that alone are believed; `None` for the system's.
    pub ca_file: Option<PathBuf>,
    pub proxy: Option<Proxy>,
}

impl Default for TransportSettings {
    fn default() -> Self {
        Self { connect_timeout: Duration::from_secs(3), timeout: Duration::from_secs(10), ca_file: None, proxy: None }
    }
}

/// An HTTP proxy that is asked to CONNECT. TLS goes through it untouched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    pub(super) address: Endpoint,
    spared: Vec<String>,
}

impl Proxy {
    /// `address` is `http://host:port`; `no_proxy` lists hosts that are reached without it, `.example.com` with all below it.
    pub fn new(address: &str, no_proxy: &[String]) -> Result<Self, InvalidEndpoint> {
        let spared = no_proxy.iter().map(|host| host.trim().to_ascii_lowercase()).filter(|host| !host.is_empty());
        Ok(Self { address: Endpoint::metadata(address)?, spared: spared.collect() })
    }

    pub(super) fn spares(&self, host: &str) -> bool {
        self.spared.iter().any(|spared| {
            let domain = spared.trim_start_matches("*.").trim_start_matches('.');
            host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.') && spared != domain)
        })
    }
}

/// Which of a provider's networks its default endpoint is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    #[default]
    Public,
    /// The cloud's own: Alibaba's VPC, IBM's private network, AWS's VPC endpoint by its usual name.
    Private,
}

impl FromStr for Network {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "public" => Ok(Self::Public),
            "vpc" | "private" => Ok(Self::Private),
            _ => Err("must be public, vpc or private"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_is_left_out_for_the_hosts_named() {
        let no_proxy =
            ["kms.example".to_owned(), ".corp.example".to_owned(), "*.wild.example".to_owned(), " ".to_owned()];
        let proxy = Proxy::new("http://10.0.0.1:3128", &no_proxy).unwrap();
        for spared in ["kms.example", "corp.example", "a.corp.example", "a.b.corp.example", "a.wild.example"] {
            assert!(proxy.spares(spared), "{spared}");
        }
        for not in ["akms.example", "a.kms.example", "acorp.example", "example", ""] {
            assert!(!proxy.spares(not), "{not}");
        }
        assert!(Proxy::new("https://10.0.0.1:3128", &[]).is_err());
    }
}
