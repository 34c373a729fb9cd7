//! What the configuration decides about a key in AWS KMS.

use std::path::PathBuf;
use std::str::FromStr;

use keystead_core::RootId;

use crate::upstream::endpoint::{Endpoint, InvalidEndpoint};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsSettings {
    pub key: AwsKey,
    /// Signatures are made for it. A key named by ARN must be of it: [`AwsKey::region`].
    pub region: String,
    /// [`default_endpoint`], or that of a VPC endpoint.
    pub endpoint: Endpoint,
    /// Exchanges a web identity for a session: [`default_sts_endpoint`].
    pub sts_endpoint: Endpoint,
    /// Of the machine Keystead runs on: [`AwsSettings::METADATA`], except in a test.
    pub metadata_endpoint: Endpoint,
    pub credentials: CredentialSource,
}

impl AwsSettings {
    pub const METADATA: &str = "http://169.254.169.254";
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialSource {
    /// A file with an access key, with a session token if it is a session's: docs/upstream-aws.md.
    File(PathBuf),
    /// The instance profile of the EC2 machine, by its metadata service (version 2 only).
    InstanceMetadata,
    /// A role assumed with a token of an OIDC provider, such as a Kubernetes service account's.
    WebIdentity { role_arn: String, token_file: PathBuf, session_name: String },
}

impl CredentialSource {
    /// Web identity as the platform says it: `AWS_ROLE_ARN`, `AWS_WEB_IDENTITY_TOKEN_FILE`, `AWS_ROLE_SESSION_NAME`.
    ///
    /// # Errors
    /// The name of the variable that is missing.
    pub fn web_identity_from(variable: impl Fn(&str) -> Option<String>) -> Result<Self, &'static str> {
        let needed = |name: &'static str| variable(name).filter(|value| !value.is_empty()).ok_or(name);
        Ok(Self::WebIdentity {
            role_arn: needed("AWS_ROLE_ARN")?,
            token_file: needed("AWS_WEB_IDENTITY_TOKEN_FILE")?.into(),
            session_name: needed("AWS_ROLE_SESSION_NAME").unwrap_or_else(|_| "keystead".into()),
        })
    }
}

/// A key ID or the key's ARN. No alias: it can be pointed at another key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsKey {
    request_id: String,
    root_id: RootId,
    bare_len: usize,
}

impl AwsKey {
    /// As requests name it.
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

    /// The region an ARN names.
    pub fn region(&self) -> Option<&str> {
        self.request_id.starts_with("arn:").then(|| self.request_id.split(':').nth(3))?
    }

    /// Whether `arn`, from an answer, is this key's.
    pub(super) fn is(&self, arn: &str, region: &str) -> bool {
        if self.region().is_some() {
            return arn == self.request_id;
        }
        arn.parse::<Self>()
            .is_ok_and(|answered| answered.region() == Some(region) && answered.bare_id() == self.bare_id())
    }
}

impl FromStr for AwsKey {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const SHAPE: &str = "must be a key ID or its ARN (arn:aws:kms:<region>:<account>:key/<key ID>), no alias";
        let bare = if text.starts_with("arn:") {
            let parts: Vec<&str> = text.split(':').collect();
            let &[_, partition, "kms", region, account, key] = parts.as_slice() else { return Err(SHAPE) };
            if ![partition, region, account].iter().all(|part| is_plain(part)) {
                return Err(SHAPE);
            }
            key.strip_prefix("key/").ok_or(SHAPE)?
        } else {
            text
        };
        let root_id = RootId::new(bare.as_bytes()).map_err(|_| SHAPE)?;
        if !is_plain(bare) {
            return Err(SHAPE);
        }
        Ok(Self { request_id: text.to_owned(), root_id, bare_len: bare.len() })
    }
}

fn is_plain(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Where a region's KMS is. In a VPC with an endpoint for KMS the same name leads there.
///
/// # Errors
/// For a region that cannot be part of a host name.
pub fn default_endpoint(region: &str) -> Result<Endpoint, InvalidEndpoint> {
    host("kms", region)
}

/// Where a region's STS is.
///
/// # Errors
/// As [`default_endpoint`].
pub fn default_sts_endpoint(region: &str) -> Result<Endpoint, InvalidEndpoint> {
    host("sts", region)
}

fn host(service: &str, region: &str) -> Result<Endpoint, InvalidEndpoint> {
    let china = if region.starts_with("cn-") { ".cn" } else { "" };
    format!("https://{service}.{region}.amazonaws.com{china}").parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "1234abcd-12ab-34cd-56ef-1234567890ab";

    fn arn(region: &str) -> String {
        format!("arn:aws:kms:{region}:111122223333:key/{ID}")
    }

    #[test]
    fn key_is_named_by_id_or_arn_only() {
        let key: AwsKey = arn("eu-central-1").parse().unwrap();
        assert_eq!((key.bare_id(), key.region()), (ID, Some("eu-central-1")));
        assert_eq!(key.root_id().as_bytes(), ID.as_bytes());
        let key: AwsKey = ID.parse().unwrap();
        assert_eq!((key.bare_id(), key.region()), (ID, None));
        assert!("mrk-1234abcd12ab34cd56ef1234567890ab".parse::<AwsKey>().is_ok());
        for bad in [
            "",
            "alias/mine",
            "key id",
            "arn:aws:kms:eu-central-1:111122223333:alias/mine",
            "arn:aws:s3:eu-central-1:111122223333:key/x",
            "arn:aws:kms::111122223333:key/x",
            "arn:aws:kms:eu-central-1:111122223333:key/",
            "arn:aws:kms:eu-central-1:111122223333:key/x:y",
            &"k".repeat(65),
        ] {
            assert!(bad.parse::<AwsKey>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn answer_of_another_key_account_or_region_is_told_apart() {
        let by_id: AwsKey = ID.parse().unwrap();
        let by_arn: AwsKey = arn("eu-central-1").parse().unwrap();
        for key in [&by_id, &by_arn] {
            assert!(key.is(&arn("eu-central-1"), "eu-central-1"));
            assert!(!key.is(&arn("us-east-1"), "eu-central-1"));
            assert!(!key.is("arn:aws:kms:eu-central-1:111122223333:key/other", "eu-central-1"));
            assert!(!key.is(ID, "eu-central-1"));
        }
        assert!(!by_arn.is(&arn("eu-central-1").replace("1111", "9999"), "eu-central-1"));
    }

    #[test]
    fn endpoint_follows_region() {
        assert_eq!(default_endpoint("eu-central-1").unwrap().to_string(), "https://kms.eu-central-1.amazonaws.com");
        assert_eq!(default_sts_endpoint("cn-north-1").unwrap().to_string(), "https://sts.cn-north-1.amazonaws.com.cn");
        assert!(default_endpoint("eu central").is_err());
    }

    #[test]
    fn missing_variable_is_named() {
        assert_eq!(CredentialSource::web_identity_from(|_| None).unwrap_err(), "AWS_ROLE_ARN");
    }
}
