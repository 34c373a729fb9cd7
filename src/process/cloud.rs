//! From the `[upstream]` table to the client of one cloud: the only place that names the providers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use keystead_core::grant::GrantKey;

use super::daemon::CloudParts;
use crate::config::{CredentialSource, Network, OnKeyVersion, UpstreamKind, UpstreamTable};
use crate::service::clock::{KnownTime, SystemClock};
use crate::service::cloud::{self, CloudSettings};
use crate::service::init::InitCloud;
use crate::service::spending::Budget;
use crate::service::upstream_check::FirstHop;
use crate::upstream::alibaba::{self, AlibabaKey, AlibabaSettings};
use crate::upstream::aws::{self, AwsKey, AwsSettings};
use crate::upstream::endpoint::Endpoint;
use crate::upstream::ibm::{self, IbmSettings};
use crate::upstream::settings::{Network as Side, ProviderSettings, Proxy, TransportSettings};
use crate::upstream::{self, Clock, Upstream, UpstreamSettings};

/// Why there is no client for a table that was accepted.
#[derive(Debug, thiserror::Error)]
pub enum CloudError {
    #[error("upstream.{key}: {problem}")]
    Setting { key: &'static str, problem: String },
    #[error(
        "upstream.credentials: the platform does not set the variable {0}: is the pod's service account tied to a role?"
    )]
    Variable(&'static str),
    #[error("this boot has no name: is /proc mounted?")]
    Clock(#[source] std::io::Error),
}

/// Variables by which platforms name roles and token files. No secrets: the token is in the file.
pub const PLATFORM_VARIABLES: &[&str] = &[
    "ALIBABA_CLOUD_ROLE_ARN",
    "ALIBABA_CLOUD_OIDC_PROVIDER_ARN",
    "ALIBABA_CLOUD_OIDC_TOKEN_FILE",
    "ALIBABA_CLOUD_ROLE_SESSION_NAME",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_SESSION_NAME",
];

/// When this was built, in Unix seconds: no clock that is right says less.
const BUILT: u64 = 1_795_305_600;

/// What the daemon adds in the cloud profile. Call it before the sandbox is closed.
pub fn parts(table: &UpstreamTable) -> Result<CloudParts, CloudError> {
    let known_time = KnownTime::new(BUILT);
    // Enrolled at `init`, and where a rotation moves the root to the cloud: without it the daemon serves all the same.
    let grant_key = table
        .grant_key
        .as_deref()
        .and_then(|path| grant_key(path).map_err(|error| tracing::warn!(%error, "the grant key cannot be read")).ok());
    let settings = CloudSettings {
        lease: table.lease,
        grant_key,
        renew_every: table.renew_every,
        probe_interval: table.probe_interval,
        on_key_version: match table.on_key_version {
            OnKeyVersion::Follow => cloud::OnKeyVersion::Follow,
            OnKeyVersion::Announce => cloud::OnKeyVersion::Announce,
        },
        known_time: known_time.clone(),
    };
    let budget = Budget {
        daily_calls: table.daily_call_budget,
        per_10k_calls: table.price.per_10k_calls,
        currency: table.price.currency.clone(),
    };
    let upstream = client(table, Arc::new(move || known_time.now()))?;
    Ok(CloudParts { upstream, settings, clock: Arc::new(SystemClock::new().map_err(CloudError::Clock)?), budget })
}

/// What `init` adds in the cloud profile.
pub fn init_parts(table: &UpstreamTable) -> Result<InitCloud, CloudError> {
    let grant_key = table.grant_key.as_deref().map(grant_key).transpose()?;
    let clock = Arc::new(SystemClock::new().map_err(CloudError::Clock)?);
    Ok(InitCloud { upstream: client(table, command_clock())?, lease: table.lease, grant_key, clock })
}

fn grant_key(path: &Path) -> Result<GrantKey, CloudError> {
    let pem = std::fs::read_to_string(path).map_err(setting("grant_key"))?;
    GrantKey::from_pem(&pem).map_err(setting("grant_key"))
}

/// For a command that has no daemon's memory of the time.
pub fn command_clock() -> Clock {
    let known_time = KnownTime::new(BUILT);
    Arc::new(move || known_time.now())
}

/// The client. Opens nothing yet.
pub fn client(table: &UpstreamTable, clock: Clock) -> Result<Arc<dyn Upstream>, CloudError> {
    let provider = match table.kind {
        UpstreamKind::Alibaba => ProviderSettings::Alibaba(alibaba(table)?),
        UpstreamKind::Ibm => ProviderSettings::Ibm(ibm(table)?),
        UpstreamKind::Aws => ProviderSettings::Aws(aws(table)?),
    };
    Ok(upstream::open(UpstreamSettings { provider, transport: transport(table)? }, clock))
}

/// The file that the platform puts its token into, if credentials come by one.
pub fn token_file(table: &UpstreamTable) -> Option<PathBuf> {
    let name = match (table.credentials, table.kind) {
        (CredentialSource::Oidc, UpstreamKind::Alibaba) => "ALIBABA_CLOUD_OIDC_TOKEN_FILE",
        (CredentialSource::Oidc, UpstreamKind::Aws) => "AWS_WEB_IDENTITY_TOKEN_FILE",
        _ => return None,
    };
    std::env::var_os(name).map(PathBuf::from)
}

/// Where the first connection of a call for the key goes.
pub fn first_hop(table: &UpstreamTable, endpoint: &str) -> Result<FirstHop, CloudError> {
    let (place, is_proxy) = match &table.proxy {
        Some(proxy) => (Endpoint::metadata(proxy).map_err(setting("proxy"))?, true),
        None => (endpoint.parse().map_err(setting("endpoint"))?, false),
    };
    Ok(FirstHop { host: place.host().to_owned(), port: place.port(), is_proxy, timeout: table.connect_timeout })
}

fn transport(table: &UpstreamTable) -> Result<TransportSettings, CloudError> {
    let proxy = table.proxy.as_ref().map(|address| Proxy::new(address, &table.no_proxy));
    Ok(TransportSettings {
        connect_timeout: table.connect_timeout,
        timeout: table.timeout,
        ca_file: table.ca_file.clone(),
        proxy: proxy.transpose().map_err(setting("proxy"))?,
    })
}

fn alibaba(table: &UpstreamTable) -> Result<AlibabaSettings, CloudError> {
    let region = table.region.clone().unwrap_or_default();
    let side = side(table.network);
    let instance = table.instance.as_deref();
    let default = |instance| alibaba::default_endpoint(&region, side, instance).map_err(setting("region"));
    let endpoint = given(&table.endpoint, "endpoint")?;
    Ok(AlibabaSettings {
        key: table.key.parse::<AlibabaKey>().map_err(setting("key"))?,
        // A dedicated instance describes no keys, wherever it is.
        management_endpoint: match (&endpoint, instance) {
            (Some(endpoint), None) => endpoint.clone(),
            _ => default(None)?,
        },
        endpoint: endpoint.map_or_else(|| default(instance), Ok)?,
        sts_endpoint: given(&table.token_endpoint, "token_endpoint")?
            .map_or_else(|| alibaba::default_sts_endpoint(&region, side), Ok)
            .map_err(setting("region"))?,
        metadata_endpoint: Endpoint::metadata(AlibabaSettings::METADATA).map_err(setting("credentials"))?,
        credentials: match table.credentials {
            CredentialSource::File => alibaba::CredentialSource::File(credentials_file(table)?),
            CredentialSource::Metadata => alibaba::CredentialSource::EcsMetadata { role: None },
            CredentialSource::Oidc => alibaba::CredentialSource::oidc_from(variable).map_err(CloudError::Variable)?,
        },
        region,
    })
}

fn ibm(table: &UpstreamTable) -> Result<IbmSettings, CloudError> {
    let region = table.region.clone().unwrap_or_default();
    let side = side(table.network);
    let instance = table.instance.as_deref().unwrap_or_default();
    Ok(IbmSettings {
        key: table.key.parse().map_err(setting("key"))?,
        instance: instance.parse().map_err(setting("instance"))?,
        endpoint: given(&table.endpoint, "endpoint")?
            .map_or_else(|| ibm::default_endpoint(&region, side), Ok)
            .map_err(setting("region"))?,
        iam_endpoint: given(&table.token_endpoint, "token_endpoint")?
            .map_or_else(|| ibm::default_iam_endpoint(side), Ok)
            .map_err(setting("token_endpoint"))?,
        credentials: ibm::CredentialSource::File(credentials_file(table)?),
        region,
    })
}

fn aws(table: &UpstreamTable) -> Result<AwsSettings, CloudError> {
    let key = table.key.parse::<AwsKey>().map_err(setting("key"))?;
    let region = table.region.clone().or_else(|| key.region().map(str::to_owned)).unwrap_or_default();
    Ok(AwsSettings {
        endpoint: given(&table.endpoint, "endpoint")?
            .map_or_else(|| aws::default_endpoint(&region), Ok)
            .map_err(setting("region"))?,
        sts_endpoint: given(&table.token_endpoint, "token_endpoint")?
            .map_or_else(|| aws::default_sts_endpoint(&region), Ok)
            .map_err(setting("region"))?,
        metadata_endpoint: Endpoint::metadata(AwsSettings::METADATA).map_err(setting("credentials"))?,
        credentials: match table.credentials {
            CredentialSource::File => aws::CredentialSource::File(credentials_file(table)?),
            CredentialSource::Metadata => aws::CredentialSource::InstanceMetadata,
            CredentialSource::Oidc => {
                aws::CredentialSource::web_identity_from(variable).map_err(CloudError::Variable)?
            }
        },
        key,
        region,
    })
}

fn given(address: &Option<String>, key: &'static str) -> Result<Option<Endpoint>, CloudError> {
    address.as_ref().map(|address| address.parse().map_err(setting(key))).transpose()
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn credentials_file(table: &UpstreamTable) -> Result<PathBuf, CloudError> {
    let missing = || CloudError::Setting { key: "credentials_file", problem: "is missing".into() };
    table.credentials_file.clone().ok_or_else(missing)
}

fn side(network: Network) -> Side {
    match network {
        Network::Public => Side::Public,
        Network::Vpc | Network::Private => Side::Private,
    }
}

fn setting<E: ToString>(key: &'static str) -> impl Fn(E) -> CloudError {
    move |error| CloudError::Setting { key, problem: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Settings, Site, Source};

    fn table(text: &str) -> UpstreamTable {
        let text = format!("node = 'n'\n[upstream]\nkind = 'alibaba'\nkey = 'key-1'\nregion = 'cn-hangzhou'\n{text}");
        let source = Source::from_parts(None, text);
        Settings::from_source(&source, &Site::this_machine()).unwrap().upstream.unwrap()
    }

    #[test]
    fn endpoints_follow_region_network_and_instance() {
        for (text, endpoint, management, sts) in [
            (
                "",
                "https://kms.cn-hangzhou.aliyuncs.com",
                "https://kms.cn-hangzhou.aliyuncs.com",
                "https://sts.cn-hangzhou.aliyuncs.com",
            ),
            (
                "network = 'vpc'\ninstance = 'kst-1'",
                "https://kst-1.cryptoservice.kms.aliyuncs.com",
                "https://kms-vpc.cn-hangzhou.aliyuncs.com",
                "https://sts-vpc.cn-hangzhou.aliyuncs.com",
            ),
            ("endpoint = 'https://a:1'\ntoken_endpoint = 'https://b:2'", "https://a:1", "https://a:1", "https://b:2"),
        ] {
            let settings = alibaba(&table(text)).unwrap();
            assert_eq!(settings.endpoint.to_string(), endpoint);
            assert_eq!(settings.management_endpoint.to_string(), management);
            assert_eq!(settings.sts_endpoint.to_string(), sts);
        }
    }

    #[test]
    fn examples_lead_to_the_vendors_addresses() {
        for (name, endpoint) in [
            ("alibaba", "https://kms.cn-hangzhou.aliyuncs.com"),
            ("ibm", "https://eu-de.kms.cloud.ibm.com"),
            ("aws", "https://kms.eu-central-1.amazonaws.com"),
        ] {
            let file = format!("{}/hsm-configs/cloud-{name}.toml", env!("CARGO_MANIFEST_DIR"));
            let source = Source::read(Path::new(&file)).unwrap();
            let table = Settings::from_source(&source, &Site::this_machine()).unwrap().upstream.unwrap();
            let client = client(&table, command_clock()).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(client.identity().endpoint, endpoint);
        }
    }

    #[test]
    fn first_hop_is_the_proxy_where_there_is_one() {
        let hop = |text: &str| first_hop(&table(text), "https://kms.example.com").unwrap();
        assert_eq!((hop("").host.as_str(), hop("").port, hop("").is_proxy), ("kms.example.com", 443, false));
        let proxied = hop("proxy = 'http://10.0.0.1:3128'");
        assert_eq!((proxied.host.as_str(), proxied.port, proxied.is_proxy), ("10.0.0.1", 3128, true));
    }

    #[test]
    fn clock_never_goes_before_the_build() {
        assert!(command_clock()() >= std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(BUILT));
    }
}
