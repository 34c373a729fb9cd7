//! What the configuration decides about a key in Alibaba Cloud KMS.

use std::path::PathBuf;
use std::str::FromStr;

use keystead_core::RootId;

use crate::upstream::endpoint::{Endpoint, InvalidEndpoint};
use crate::upstream::settings::Network;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlibabaSettings {
    pub key: AlibabaKey,
    pub region: String,
    /// Encrypts, decrypts and makes data keys: [`default_endpoint`], also a dedicated instance's.
    pub endpoint: Endpoint,
    /// Describes the key: [`default_endpoint`] without an instance. A dedicated instance does not.
    pub management_endpoint: Endpoint,
    /// Exchanges a role for a credential: [`default_sts_endpoint`].
    pub sts_endpoint: Endpoint,
    /// Of the machine Keystead runs on: [`AlibabaSettings::METADATA`], except in a test.
    pub metadata_endpoint: Endpoint,
    pub credentials: CredentialSource,
}

impl AlibabaSettings {
    pub const METADATA: &str = "http://100.100.100.200";
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialSource {
    /// A file with an access key, an STS credential, or an access key and a role to assume: docs/upstream-alibaba.md.
    File(PathBuf),
    /// The RAM role of the ECS instance, by its metadata service (version 2 only); `None` asks which role that is.
    EcsMetadata { role: Option<String> },
    /// A role assumed with a token of an OIDC provider, such as a Kubernetes service account's.
    Oidc { role_arn: String, provider_arn: String, token_file: PathBuf, session_name: String },
}

impl CredentialSource {
    /// OIDC as the platform says it: `ALIBABA_CLOUD_ROLE_ARN`, `…_OIDC_PROVIDER_ARN`, `…_OIDC_TOKEN_FILE`, `…_ROLE_SESSION_NAME`.
    ///
    /// # Errors
    /// The name of the variable that is missing.
    pub fn oidc_from(variable: impl Fn(&str) -> Option<String>) -> Result<Self, &'static str> {
        let needed = |name: &'static str| variable(name).filter(|value| !value.is_empty()).ok_or(name);
        Ok(Self::Oidc {
            role_arn: needed("ALIBABA_CLOUD_ROLE_ARN")?,
            provider_arn: needed("ALIBABA_CLOUD_OIDC_PROVIDER_ARN")?,
            token_file: needed("ALIBABA_CLOUD_OIDC_TOKEN_FILE")?.into(),
            session_name: needed("ALIBABA_CLOUD_ROLE_SESSION_NAME").unwrap_or_else(|_| "keystead".into()),
        })
    }
}

/// A key ID, or the ARN of another account's key. No alias: it can be pointed at another key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlibabaKey {
    /// As requests name it.
    request_id: String,
    root_id: RootId,
    bare_len: usize,
}

impl AlibabaKey {
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// The key ID alone.
    pub fn bare_id(&self) -> &str {
        &self.request_id[self.request_id.len() - self.bare_len..]
    }

    pub fn root_id(&self) -> &RootId {
        &self.root_id
    }
}

impl FromStr for AlibabaKey {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const SHAPE: &str =
            "must be a key ID (key-… or a UUID) or its ARN (acs:kms:<region>:<account>:key/<key ID>), no alias";
        let bare = match text.strip_prefix("acs:kms:") {
            None => text,
            Some(arn) => {
                let mut parts = arn.splitn(3, ':');
                let plain =
                    |part: Option<&str>| part.is_some_and(|part| !part.is_empty() && part.bytes().all(is_plain));
                if !plain(parts.next()) || !plain(parts.next()) {
                    return Err(SHAPE);
                }
                parts.next().and_then(|key| key.strip_prefix("key/")).ok_or(SHAPE)?
            }
        };
        let root_id = RootId::new(bare.as_bytes()).map_err(|_| SHAPE)?;
        if !bare.bytes().all(is_plain) {
            return Err(SHAPE);
        }
        Ok(Self { request_id: text.to_owned(), root_id, bare_len: bare.len() })
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

/// Where a region's KMS is, or a dedicated instance of it.
///
/// # Errors
/// For a region or instance that cannot be part of a host name.
pub fn default_endpoint(region: &str, network: Network, instance: Option<&str>) -> Result<Endpoint, InvalidEndpoint> {
    match (instance, network) {
        (Some(instance), _) => format!("https://{instance}.cryptoservice.kms.aliyuncs.com").parse(),
        (None, Network::Public) => format!("https://kms.{region}.aliyuncs.com").parse(),
        (None, Network::Private) => format!("https://kms-vpc.{region}.aliyuncs.com").parse(),
    }
}

/// Where a region's STS is.
///
/// # Errors
/// As [`default_endpoint`].
pub fn default_sts_endpoint(region: &str, network: Network) -> Result<Endpoint, InvalidEndpoint> {
    let service = if network == Network::Public { "sts" } else { "sts-vpc" };
    format!("https://{service}.{region}.aliyuncs.com").parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_named_by_id_or_arn_only() {
        let key: AlibabaKey = "acs:kms:cn-hangzhou:1234567890:key/key-hzz65f3a".parse().unwrap();
        assert_eq!((key.bare_id(), key.root_id().as_bytes()), ("key-hzz65f3a", b"key-hzz65f3a".as_slice()));
        let key: AlibabaKey = "0a1b2c3d-0a1b-2c3d-4e5f-0a1b2c3d4e5f".parse().unwrap();
        assert_eq!(key.bare_id(), key.request_id());
        for bad in [
            "",
            "alias/mine",
            "key hzz",
            "key/hzz",
            "acs:kms:cn-hangzhou:1:alias/mine",
            "acs:kms:cn-hangzhou:key/x",
            "acs:kms:::key/x",
            "acs:kms:cn-hangzhou:1:key/",
            &"k".repeat(65),
        ] {
            assert!(bad.parse::<AlibabaKey>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn endpoint_follows_region_network_and_instance() {
        let shown = |network, instance| default_endpoint("cn-hangzhou", network, instance).unwrap().to_string();
        assert_eq!(shown(Network::Public, None), "https://kms.cn-hangzhou.aliyuncs.com");
        assert_eq!(shown(Network::Private, None), "https://kms-vpc.cn-hangzhou.aliyuncs.com");
        assert_eq!(shown(Network::Private, Some("kst-hzz1")), "https://kst-hzz1.cryptoservice.kms.aliyuncs.com");
        assert_eq!(
            default_sts_endpoint("eu-central-1", Network::Private).unwrap().to_string(),
            "https://sts-vpc.eu-central-1.aliyuncs.com"
        );
        assert!(default_endpoint("cn hangzhou", Network::Public, None).is_err());
    }

    #[test]
    fn missing_variable_is_named() {
        assert_eq!(CredentialSource::oidc_from(|_| None).unwrap_err(), "ALIBABA_CLOUD_ROLE_ARN");
    }
}
