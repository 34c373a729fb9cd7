//! The `[upstream]` table: with it a site has the cloud profile, without it there is no network at all.
//!
//! Schema and resolution together, for no other table needs either.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};
use toml::Spanned;

use super::builder::Builder;
use super::error::ConfigError;
use super::units::Span;

/// `[upstream]` as the file has it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawUpstream {
    kind: Option<UpstreamKind>,
    key: Option<Spanned<String>>,
    region: Option<Spanned<String>>,
    network: Option<Spanned<Network>>,
    endpoint: Option<Spanned<String>>,
    token_endpoint: Option<Spanned<String>>,
    instance: Option<Spanned<String>>,
    ca_file: Option<Spanned<PathBuf>>,
    proxy: Option<Spanned<String>>,
    no_proxy: Option<Vec<Spanned<String>>>,
    credentials: Option<Spanned<CredentialSource>>,
    credentials_file: Option<Spanned<PathBuf>>,
    connect_timeout: Option<Spanned<Span>>,
    timeout: Option<Spanned<Span>>,
    renew_every: Option<Spanned<Span>>,
    lease: Option<Spanned<Span>>,
    probe_interval: Option<Spanned<Span>>,
    on_key_version: Option<OnKeyVersion>,
    daily_call_budget: Option<Spanned<i64>>,
    grant_key: Option<Spanned<PathBuf>>,
    price: RawPrice,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawPrice {
    per_10k_calls: Option<Spanned<Amount>>,
    currency: Option<Spanned<String>>,
}

/// The cloud KMS that holds the CMK of record, and how long the site may live without it.
#[derive(Debug, Clone, PartialEq)]
pub struct UpstreamTable {
    pub kind: UpstreamKind,
    /// As configured: a key ID, for AWS perhaps an ARN.
    pub key: String,
    pub region: Option<String>,
    pub network: Network,
    /// `https://host[:port]`, without a path.
    pub endpoint: Option<String>,
    /// Where credentials are exchanged for tokens, if not at the vendor's public address.
    pub token_endpoint: Option<String>,
    pub instance: Option<String>,
    /// `None`: the system's roots.
    pub ca_file: Option<PathBuf>,
    /// `http://host:port`.
    pub proxy: Option<String>,
    pub no_proxy: Vec<String>,
    pub credentials: CredentialSource,
    /// Set where `credentials` reads one.
    pub credentials_file: Option<PathBuf>,
    pub connect_timeout: Duration,
    pub timeout: Duration,
    pub renew_every: Duration,
    pub lease: Duration,
    pub probe_interval: Duration,
    pub on_key_version: OnKeyVersion,
    pub daily_call_budget: u64,
    pub price: Price,
    /// Public key that lease grants are signed for; enrolled at `init`.
    pub grant_key: Option<PathBuf>,
}

/// What 10,000 calls cost, for the estimate.
#[derive(Debug, Clone, PartialEq)]
pub struct Price {
    pub per_10k_calls: f64,
    pub currency: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpstreamKind {
    Alibaba,
    Ibm,
    Aws,
}

/// Which of the vendor's addresses of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    Public,
    /// Alibaba: reachable from its VPCs only.
    Vpc,
    /// IBM: reachable from its private network only.
    Private,
}

/// Where the credentials come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CredentialSource {
    /// `credentials_file`, read again whenever it changes.
    File,
    /// The metadata service of the machine that the daemon runs on.
    Metadata,
    /// A token file that the platform keeps fresh, exchanged for credentials of a role; the platform's variables name both.
    Oidc,
}

/// What a new version of the cloud key leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnKeyVersion {
    /// A new generation.
    Follow,
    /// A warning in `keystead status`.
    Announce,
}

/// An amount of money: whole or not, never negative.
#[derive(Debug, Clone, Copy)]
struct Amount(f64);

impl UpstreamKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alibaba => "alibaba",
            Self::Ibm => "ibm",
            Self::Aws => "aws",
        }
    }
}

impl Network {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Vpc => "vpc",
            Self::Private => "private",
        }
    }
}

impl CredentialSource {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Metadata => "metadata",
            Self::Oidc => "oidc",
        }
    }
}

impl OnKeyVersion {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Follow => "follow",
            Self::Announce => "announce",
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

impl Builder<'_> {
    /// `table` is where `[upstream]` stands, for what is missing in it.
    pub(super) fn upstream(&self, raw: RawUpstream, table: Range<usize>) -> Result<UpstreamTable, ConfigError> {
        let missing = |key: &str, help: &str| self.place.fault(table.clone(), key, "is missing", Some(help));
        let kind = raw.kind.ok_or_else(|| missing("upstream.kind", "set it to \"alibaba\", \"ibm\" or \"aws\""))?;
        let key = raw.key.ok_or_else(|| missing("upstream.key", "the ID of the key in the cloud KMS"))?;
        let key = self.cloud_key(kind, key)?;
        let endpoint = raw.endpoint.map(|given| self.endpoint("upstream.endpoint", given)).transpose()?;
        let token_endpoint =
            raw.token_endpoint.map(|given| self.endpoint("upstream.token_endpoint", given)).transpose()?;
        let region = raw.region.map(|given| self.name("upstream.region", given)).transpose()?;
        let region_needed = match kind {
            // It is part of every signature.
            UpstreamKind::Aws => arn_region(&key).is_none(),
            UpstreamKind::Alibaba => true,
            UpstreamKind::Ibm => endpoint.is_none(),
        };
        if region_needed && region.is_none() {
            return Err(missing("upstream.region", "set the key's region, as the cloud's console names it"));
        }
        if let (Some(configured), Some(named)) = (&region, arn_region(&key))
            && configured != named
        {
            let problem = format_args!("is {configured}, but the key's ARN says {named}");
            return Err(self.place.fault(table, "upstream.region", problem, Some("leave region out")));
        }
        let network = self.network(kind, raw.network)?;
        let instance = raw.instance.map(|given| self.name("upstream.instance", given)).transpose()?;
        match (kind, &instance) {
            (UpstreamKind::Ibm, None) => {
                return Err(missing("upstream.instance", "the ID of the Key Protect instance, a UUID"));
            }
            (UpstreamKind::Aws, Some(_)) => {
                let help = "AWS KMS has no instances: leave it out";
                return Err(self.place.fault(table, "upstream.instance", "means nothing for aws", Some(help)));
            }
            _ => {}
        }
        let (credentials, credentials_file) = self.credentials(kind, raw.credentials, raw.credentials_file)?;
        let renew_every = self.span("upstream.renew_every", raw.renew_every, 600 * SECOND, SECOND / 10..=DAY)?;
        let lease_span = raw.lease.as_ref().map_or(table, Spanned::span);
        let lease = self.span("upstream.lease", raw.lease, 72 * HOUR, SECOND..=90 * DAY)?;
        if lease < 2 * renew_every {
            let problem = "is shorter than two renewals: one that fails would end it";
            let help = "make it at least twice renew_every; three days is usual";
            return Err(self.place.fault(lease_span, "upstream.lease", problem, Some(help)));
        }
        let timeout_span = raw.timeout.as_ref().map_or(0..0, Spanned::span);
        let timeout = self.span("upstream.timeout", raw.timeout, 10 * SECOND, SECOND / 10..=60 * SECOND)?;
        let connect = raw.connect_timeout;
        let connect_default = (3 * SECOND).min(timeout);
        let connect_timeout =
            self.span("upstream.connect_timeout", connect, connect_default, SECOND / 10..=60 * SECOND)?;
        if connect_timeout > timeout {
            let problem = "is shorter than connect_timeout, which it includes";
            return Err(self.place.fault(timeout_span, "upstream.timeout", problem, None));
        }
        Ok(UpstreamTable {
            kind,
            key,
            region,
            network,
            endpoint,
            token_endpoint,
            instance,
            ca_file: raw.ca_file.map(|file| self.path("upstream.ca_file", Some(file), "")).transpose()?,
            proxy: raw.proxy.map(|given| self.proxy(given)).transpose()?,
            no_proxy: raw
                .no_proxy
                .unwrap_or_default()
                .into_iter()
                .map(|host| self.short("upstream.no_proxy", host, 253))
                .collect::<Result<_, _>>()?,
            credentials,
            credentials_file,
            connect_timeout,
            timeout,
            renew_every,
            lease,
            probe_interval: self.span(
                "upstream.probe_interval",
                raw.probe_interval,
                15 * SECOND,
                SECOND / 10..=300 * SECOND,
            )?,
            on_key_version: raw.on_key_version.unwrap_or(OnKeyVersion::Follow),
            daily_call_budget: self.count("upstream.daily_call_budget", raw.daily_call_budget, 400, 1..=10_000_000)?
                as u64,
            price: self.price(kind, raw.price)?,
            grant_key: raw.grant_key.map(|file| self.path("upstream.grant_key", Some(file), "")).transpose()?,
        })
    }

    fn span(
        &self,
        key: &str,
        given: Option<Spanned<Span>>,
        default: Duration,
        bounds: std::ops::RangeInclusive<Duration>,
    ) -> Result<Duration, ConfigError> {
        self.duration(key, given.map(|spanned| (spanned.span(), spanned.into_inner().0)), default, bounds)
    }

    /// An alias is refused: whoever may move it could have the daemon unwrap under another key.
    fn cloud_key(&self, kind: UpstreamKind, given: Spanned<String>) -> Result<String, ConfigError> {
        let span = given.span();
        let wrong = |problem: &str, help| Err(self.place.fault(span.clone(), "upstream.key", problem, Some(help)));
        let key = given.into_inner();
        if key.starts_with("alias/") || key.contains(":alias/") {
            return wrong("is an alias, which can be moved to another key", "give the key's ID");
        }
        let id = match kind {
            // Of another account's key.
            UpstreamKind::Alibaba if key.starts_with("acs:kms:") => match key.split_once(":key/") {
                Some((arn, id)) if arn.split(':').count() == 4 => id,
                _ => return wrong("is not the ARN of a key", "as acs:kms:<region>:<account>:key/<id>"),
            },
            UpstreamKind::Aws if key.starts_with("arn:") => match (key.split(':').nth(2), key.split_once(":key/")) {
                (Some("kms"), Some((_, id))) if arn_region(&key).is_some() => id,
                _ => return wrong("is not the ARN of a key", "as arn:aws:kms:<region>:<account>:key/<id>"),
            },
            _ => key.as_str(),
        };
        if id.is_empty() || id.len() > 64 || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return wrong("is not a key ID: 1 to 64 letters, digits and -", "copy it from the cloud's console");
        }
        Ok(key)
    }

    fn network(&self, kind: UpstreamKind, given: Option<Spanned<Network>>) -> Result<Network, ConfigError> {
        let Some(given) = given else { return Ok(Network::Public) };
        let fits = match given.get_ref() {
            Network::Public => true,
            Network::Vpc => kind == UpstreamKind::Alibaba,
            Network::Private => kind == UpstreamKind::Ibm,
        };
        if fits {
            return Ok(*given.get_ref());
        }
        let problem = format_args!("{} has no such addresses", kind.as_str());
        let help = "alibaba: public or vpc; ibm: public or private; aws: public, or set endpoint";
        Err(self.place.fault(given.span(), "upstream.network", problem, Some(help)))
    }

    fn credentials(
        &self,
        kind: UpstreamKind,
        source: Option<Spanned<CredentialSource>>,
        file: Option<Spanned<PathBuf>>,
    ) -> Result<(CredentialSource, Option<PathBuf>), ConfigError> {
        let key = "upstream.credentials";
        let chosen = source.as_ref().map_or(CredentialSource::File, |source| *source.get_ref());
        let span = source.as_ref().map_or(0..0, Spanned::span);
        if kind == UpstreamKind::Ibm && chosen != CredentialSource::File {
            return Err(self.place.fault(
                span,
                key,
                "ibm takes an API key from a file only",
                Some("set it to \"file\""),
            ));
        }
        match (chosen, file) {
            (CredentialSource::File, file) => {
                let path = self.path("upstream.credentials_file", file, "/etc/keystead/upstream/credentials.toml")?;
                Ok((chosen, Some(path)))
            }
            (_, Some(file)) => {
                let help = "leave credentials_file out, or set credentials to \"file\"";
                let problem = format_args!("is not read with credentials = {:?}", chosen.as_str());
                Err(self.place.fault(file.span(), "upstream.credentials_file", problem, Some(help)))
            }
            (_, None) => Ok((chosen, None)),
        }
    }

    fn endpoint(&self, key: &str, given: Spanned<String>) -> Result<String, ConfigError> {
        let text = given.get_ref().trim_end_matches('/');
        match text.strip_prefix("https://") {
            Some(rest) if is_authority(rest) => Ok(text.to_owned()),
            _ => {
                let help = "as \"https://kms.example.com\", with a port if it is not 443; no path, user or query";
                Err(self.place.fault(given.span(), key, "is not an HTTPS address", Some(help)))
            }
        }
    }

    fn proxy(&self, given: Spanned<String>) -> Result<String, ConfigError> {
        let text = given.get_ref().trim_end_matches('/');
        match text.strip_prefix("http://") {
            Some(rest) if is_authority(rest) => Ok(text.to_owned()),
            _ => {
                let help = "as \"http://10.0.0.1:3128\"; TLS to the cloud goes through it unopened";
                Err(self.place.fault(given.span(), "upstream.proxy", "is not the address of a proxy", Some(help)))
            }
        }
    }

    fn name(&self, key: &str, given: Spanned<String>) -> Result<String, ConfigError> {
        let span = given.span();
        let name = self.short(key, given, 64)?;
        if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
            return Ok(name);
        }
        Err(self.place.fault(span, key, "may hold only letters, digits, - and _", None))
    }

    fn price(&self, kind: UpstreamKind, raw: RawPrice) -> Result<Price, ConfigError> {
        let per_10k_calls = match (raw.per_10k_calls, kind) {
            (Some(given), _) => given.get_ref().0,
            // List prices; Key Protect bills keys and not calls.
            (None, UpstreamKind::Alibaba | UpstreamKind::Aws) => 0.03,
            (None, UpstreamKind::Ibm) => 0.0,
        };
        let currency = match raw.currency {
            Some(currency) => self.short("upstream.price.currency", currency, 8)?,
            None => "USD".into(),
        };
        Ok(Price { per_10k_calls, currency })
    }
}

/// `host` or `host:port`, where host is a name, an IPv4 address or an IPv6 address in brackets.
fn is_authority(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, rest)) if address.parse::<std::net::Ipv6Addr>().is_ok() => ("v6", rest),
            _ => return false,
        },
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let host_fits = !host.is_empty()
        && host.len() <= 253
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    let port_fits =
        port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    host_fits && port_fits
}

/// The region that an AWS ARN names.
fn arn_region(key: &str) -> Option<&str> {
    key.strip_prefix("arn:")?.split(':').nth(2).filter(|region| !region.is_empty())
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AmountVisitor;
        impl Visitor<'_> for AmountVisitor {
            type Value = Amount;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount, as 0.03")
            }

            fn visit_f64<E: de::Error>(self, amount: f64) -> Result<Amount, E> {
                if amount.is_finite() && amount >= 0.0 {
                    return Ok(Amount(amount));
                }
                Err(E::custom("must be 0 or more"))
            }

            fn visit_i64<E: de::Error>(self, amount: i64) -> Result<Amount, E> {
                // Far below where a float loses whole numbers, for any price that somebody pays.
                self.visit_f64(amount as f64)
            }
        }
        deserializer.deserialize_any(AmountVisitor)
    }
}

#[cfg(test)]
mod tests;
