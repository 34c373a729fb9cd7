//! What the configuration decides about a root key in IBM Key Protect or Hyper Protect Crypto Services.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use keystead_core::RootId;

use crate::upstream::endpoint::{Endpoint, InvalidEndpoint};
use crate::upstream::settings::Network;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IbmSettings {
    pub key: IbmId,
    /// Of the service instance that holds the key; another account's is as good.
    pub instance: IbmId,
    pub region: String,
    /// [`default_endpoint`], or the base URL of an HPCS or dedicated instance.
    pub endpoint: Endpoint,
    /// Exchanges credentials for tokens: [`default_iam_endpoint`].
    pub iam_endpoint: Endpoint,
    pub credentials: CredentialSource,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialSource {
    /// A file with an API key, and the trusted profile to assume with it, if any: docs/upstream-ibm.md.
    File(PathBuf),
    /// The platform's compute resource token, such as a Kubernetes service account's, exchanged for a trusted profile.
    ComputeResource { token_file: PathBuf, profile: String },
}

/// A UUID in lower case: key or instance. No alias, which can be pointed at another key, and no CRN.
#[derive(Clone, PartialEq, Eq)]
pub struct IbmId(String);

impl IbmId {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn root_id(&self) -> RootId {
        // 36 ASCII bytes.
        RootId::new(self.0.as_bytes()).expect("a UUID is within a root ID's bounds")
    }
}

impl FromStr for IbmId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let shape = text.len() == 36
            && text.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
            });
        if shape { Ok(Self(text.to_owned())) } else { Err("must be a UUID in lower case, no alias and no CRN") }
    }
}

impl fmt::Debug for IbmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for IbmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a region's Key Protect is.
///
/// # Errors
/// For a region that cannot be part of a host name.
pub fn default_endpoint(region: &str, network: Network) -> Result<Endpoint, InvalidEndpoint> {
    format!("https://{}{region}.kms.cloud.ibm.com", prefix(network)).parse()
}

/// Where IAM is. There is one for all regions.
///
/// # Errors
/// None in practice: the address is fixed.
pub fn default_iam_endpoint(network: Network) -> Result<Endpoint, InvalidEndpoint> {
    format!("https://{}iam.cloud.ibm.com", prefix(network)).parse()
}

fn prefix(network: Network) -> &'static str {
    if network == Network::Public { "" } else { "private." }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_and_instance_are_named_by_uuid_only() {
        let id: IbmId = "02fd6835-6001-4482-a892-13bd2085f75d".parse().unwrap();
        assert_eq!(id.root_id().as_bytes(), b"02fd6835-6001-4482-a892-13bd2085f75d");
        for bad in [
            "",
            "my-alias",
            "02FD6835-6001-4482-A892-13BD2085F75D",
            "02fd683560014482a89213bd2085f75d",
            "02fd6835-6001-4482-a892-13bd2085f75d/",
            "crn:v1:bluemix:public:kms:us-south:a/f0:12e8c9c2:key:02fd6835",
        ] {
            assert!(bad.parse::<IbmId>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn endpoint_follows_region_and_network() {
        let shown = |network| {
            (
                default_endpoint("eu-de", network).unwrap().to_string(),
                default_iam_endpoint(network).unwrap().to_string(),
            )
        };
        assert_eq!(
            shown(Network::Public),
            ("https://eu-de.kms.cloud.ibm.com".into(), "https://iam.cloud.ibm.com".into())
        );
        assert_eq!(
            shown(Network::Private),
            ("https://private.eu-de.kms.cloud.ibm.com".into(), "https://private.iam.cloud.ibm.com".into())
        );
        assert!(default_endpoint("eu de", Network::Public).is_err());
    }
}
