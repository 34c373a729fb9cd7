//! Where a service is: scheme, host and port, parsed once.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use http::Uri;

/// `https://host[:port][/path]`, without user, query or fragment. Parsing refuses plain HTTP, except by [`Endpoint::metadata`].
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    tls: bool,
    host: String,
    port: u16,
    /// Empty, or with a leading and no trailing slash.
    base_path: String,
}

/// Says what is wrong with an address; the address itself is in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidEndpoint(&'static str);

impl Endpoint {
    /// A platform's own metadata service: plain HTTP on a link-local address, never through a proxy.
    pub fn metadata(text: &str) -> Result<Self, InvalidEndpoint> {
        Self::parse(text, "http")
    }

    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Without brackets, also for an IPv6 address.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// As in a `Host` header: the port only if it is not the scheme's own.
    pub fn authority(&self) -> String {
        let default = if self.tls { 443 } else { 80 };
        if self.port == default { self.bracketed() } else { format!("{}:{}", self.bracketed(), self.port) }
    }

    /// `host:port`, as a CONNECT request and a resolver want it.
    pub fn host_and_port(&self) -> String {
        format!("{}:{}", self.bracketed(), self.port)
    }

    /// The path below the base, which starts with a slash.
    pub fn path(&self, path: &str) -> String {
        format!("{}{path}", self.base_path)
    }

    fn bracketed(&self) -> String {
        if self.host.parse::<Ipv6Addr>().is_ok() { format!("[{}]", self.host) } else { self.host.clone() }
    }

    fn parse(text: &str, scheme: &'static str) -> Result<Self, InvalidEndpoint> {
        let uri: Uri = text.parse().map_err(|_| InvalidEndpoint("is no address of the form https://host[:port]"))?;
        if uri.scheme_str() != Some(scheme) {
            return Err(InvalidEndpoint(if scheme == "https" {
                "must begin with https://"
            } else {
                "must begin with http://"
            }));
        }
        let authority = uri.authority().ok_or(InvalidEndpoint("has no host"))?;
        if authority.as_str().contains('@') {
            return Err(InvalidEndpoint("must not hold a user or password"));
        }
        if uri.query().is_some() || text.contains('#') {
            return Err(InvalidEndpoint("must not hold a query or fragment"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        if host.is_empty() {
            return Err(InvalidEndpoint("has no host"));
        }
        // A port that is no number is dropped by `port_u16`, not refused.
        let port = match (authority.port_u16(), authority.as_str().ends_with(authority.host())) {
            (Some(0), _) | (None, false) => return Err(InvalidEndpoint("has a port that is none")),
            (Some(port), _) => port,
            (None, true) if scheme == "https" => 443,
            (None, true) => 80,
        };
        Ok(Self { tls: scheme == "https", host, port, base_path: uri.path().trim_end_matches('/').to_owned() })
    }
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        Self::parse(text, "https")
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.base_path)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_shown_as_it_was_meant() {
        for (text, shown, connect) in [
            (
                "https://KMS.cn-hangzhou.aliyuncs.com",
                "https://kms.cn-hangzhou.aliyuncs.com",
                "kms.cn-hangzhou.aliyuncs.com:443",
            ),
            ("https://127.0.0.1:8443/", "https://127.0.0.1:8443", "127.0.0.1:8443"),
            ("https://[::1]:8443/base/", "https://[::1]:8443/base", "[::1]:8443"),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!((endpoint.to_string(), endpoint.host_and_port()), (shown.to_owned(), connect.to_owned()));
        }
        assert_eq!("https://h/base".parse::<Endpoint>().unwrap().path("/x"), "/base/x");
    }

    #[test]
    fn anything_but_an_https_address_is_refused() {
        for bad in [
            "",
            "kms.example",
            "http://kms.example",
            "ftp://kms.example",
            "https://",
            "https://user:pass@kms.example",
            "https://kms.example?x=1",
            "https://kms.example#x",
            "https://kms.example:0",
            "https://kms.example:99999",
            "https://kms.example:",
            "https:// kms.example",
            "//kms.example",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad:?} was accepted");
        }
        assert!(Endpoint::metadata("http://100.100.100.200").is_ok());
        assert!(Endpoint::metadata("https://100.100.100.200").is_err());
    }
}
