//! Alibaba Cloud KMS, API version 2016-01-20: symmetric keys (`Aliyun_AES_256`), software or hardware, on the shared gateways
//! and on dedicated instances.
//!
//! Decrypt takes no key ID: whichever key of the account made the ciphertext opens it. So the answer's key ID is compared with
//! the configured one. The wrap is `0x10 ‖ CiphertextBlob`, the blob decoded from base64.

mod credential_file;
mod credentials;
mod faults;
mod rpc;
mod settings;
mod sign;

use std::sync::Arc;
use std::time::SystemTime;

use base64ct::{Base64, Encoding};
use futures_util::future::BoxFuture;
use keystead_core::wrap::MAX_WRAP_LEN;
use keystead_core::{FaultClass, Kek, RootKind, WrapContext, WrappedKek};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

pub use settings::{AlibabaKey, AlibabaSettings, CredentialSource, default_endpoint, default_sts_endpoint};

use super::answer;
use super::calls::Calls;
use super::contract::{
    CallCounts, Expiry, Generated, KeyDescription, KeyState, Unwrapped, Upstream, UpstreamError, UpstreamIdentity,
    Wrapped,
};
use super::dates;
use super::endpoint::Endpoint;
use super::secret_text::{SecretText, decode_kek, encode_kek};
use super::transport::{Transport, codes};
use credentials::Credentials;
use rpc::{Call, KMS, Rpc, SharedRpc};

/// First byte of a wrap.
const CONSTRUCTION: u8 = 0x10;
const BILLED: [&str; 5] = ["GenerateDataKey", "Encrypt", "Decrypt", "DescribeKey", "ListKeyVersions"];
const FREE: [&str; 2] = ["AssumeRole", "AssumeRoleWithOIDC"];

/// A key in Alibaba Cloud KMS.
pub struct Alibaba {
    settings: AlibabaSettings,
    identity: UpstreamIdentity,
    rpc: SharedRpc,
    credentials: Credentials,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Encrypted {
    ciphertext_blob: String,
    key_id: String,
    key_version_id: Option<String>,
}

/// Of Decrypt and, with the wrap beside it, of GenerateDataKey.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Decrypted {
    key_id: String,
    plaintext: SecretText,
}

#[derive(Deserialize)]
struct DataKey {
    #[serde(flatten)]
    encrypted: Encrypted,
    #[serde(rename = "Plaintext")]
    plaintext: SecretText,
}

#[derive(Deserialize)]
struct Described {
    #[serde(rename = "KeyMetadata")]
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Metadata {
    key_id: String,
    key_state: String,
    primary_key_version: Option<String>,
    protection_level: Option<String>,
    automatic_rotation: Option<String>,
    delete_date: Option<String>,
}

#[derive(Deserialize)]
struct Listed {
    #[serde(rename = "KeyVersions")]
    versions: Versions,
}

#[derive(Deserialize)]
struct Versions {
    #[serde(rename = "KeyVersion")]
    list: Vec<Version>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    key_version_id: String,
    creation_date: String,
}

impl Alibaba {
    /// Makes no call and opens no file.
    pub fn new(settings: AlibabaSettings, transport: Transport) -> Self {
        let rpc: SharedRpc = Arc::new(Rpc::new(transport, Calls::new(&BILLED, &FREE)));
        let identity = UpstreamIdentity {
            kind: RootKind::AlibabaKms,
            root_id: settings.key.root_id().clone(),
            named: settings.key.request_id().to_owned(),
            provider: KMS.name,
            region: settings.region.clone(),
            endpoint: settings.endpoint.to_string(),
        };
        Self { credentials: Credentials::new(&settings, Arc::clone(&rpc)), settings, identity, rpc }
    }

    /// One call with the credential in force; with a new session if the service has given up the one in use.
    async fn call<T: DeserializeOwned>(
        &self,
        endpoint: &Endpoint,
        action: &'static str,
        parameters: &[(&str, &str)],
        deadline: Instant,
    ) -> Result<(T, Option<SystemTime>), UpstreamError> {
        let mut replaced = false;
        loop {
            let credential = self.credentials.get(deadline);
            let lent = timeout_at(deadline, credential).await.map_err(|_| late_credential())??;
            let call = Call { service: KMS, endpoint, action, parameters, credential: Some(&lent.value) };
            match self.rpc.call(&call, deadline).await {
                Err(error) if faults::is_about_session(&error.code) && !lent.fresh && !replaced => {
                    self.credentials.reject(&lent.value).await;
                    replaced = true;
                }
                outcome => return outcome,
            }
        }
    }

    async fn generated(&self, context: &WrapContext) -> Result<Generated, UpstreamError> {
        let bound = self.bound(context)?;
        let parameters =
            [("KeyId", self.settings.key.request_id()), ("KeySpec", "AES_256"), ("EncryptionContext", &bound)];
        let deadline = self.rpc.transport.deadline();
        let (made, _): (DataKey, _) =
            self.call(&self.settings.endpoint, "GenerateDataKey", &parameters, deadline).await?;
        Ok(Generated { wrapped: self.wrapped(made.encrypted)?, kek: kek(&made.plaintext)? })
    }

    async fn wrapped_kek(&self, kek: &Kek, context: &WrapContext) -> Result<Wrapped, UpstreamError> {
        let bound = self.bound(context)?;
        let plaintext = encode_kek(kek);
        let parameters = [
            ("KeyId", self.settings.key.request_id()),
            ("Plaintext", plaintext.as_str()),
            ("EncryptionContext", &bound),
        ];
        let deadline = self.rpc.transport.deadline();
        let (encrypted, _) = self.call(&self.settings.endpoint, "Encrypt", &parameters, deadline).await?;
        self.wrapped(encrypted)
    }

    async fn unwrapped(&self, wrap: &[u8], context: &WrapContext) -> Result<Unwrapped, UpstreamError> {
        let bound = self.bound(context)?;
        let blob = match wrap.split_first() {
            Some((&CONSTRUCTION, blob)) if !blob.is_empty() && wrap.len() <= MAX_WRAP_LEN => {
                Base64::encode_string(blob)
            }
            _ => return Err(corrupt("wrap-malformed", "the wrapped key is not one that Alibaba Cloud KMS made")),
        };
        let parameters = [("CiphertextBlob", blob.as_str()), ("EncryptionContext", &bound)];
        let deadline = self.rpc.transport.deadline();
        let (opened, server_time): (Decrypted, _) =
            self.call(&self.settings.endpoint, "Decrypt", &parameters, deadline).await?;
        self.check_key(&opened.key_id)?;
        // Decrypt names the version that the ciphertext is under, which says nothing about a newer one.
        Ok(Unwrapped { kek: kek(&opened.plaintext)?, key_version: None, server_time })
    }

    async fn described(&self) -> Result<KeyDescription, UpstreamError> {
        let deadline = self.rpc.transport.deadline();
        let parameters = [("KeyId", self.settings.key.request_id())];
        let endpoint = &self.settings.management_endpoint;
        let (described, server_time): (Described, _) =
            self.call(endpoint, "DescribeKey", &parameters, deadline).await?;
        let metadata = described.metadata;
        self.check_key(&metadata.key_id)?;
        let key_version = match metadata.primary_key_version.filter(|version| !version.is_empty()) {
            Some(version) => Some(version),
            None => self.newest_version(deadline).await?,
        };
        Ok(KeyDescription {
            key_id: answer::printable(&metadata.key_id, 128),
            state: match metadata.key_state.as_str() {
                "Enabled" => KeyState::Enabled,
                "Disabled" => KeyState::Disabled,
                "PendingDeletion" => KeyState::PendingDeletion,
                other => KeyState::Other(answer::printable(other, 32)),
            },
            key_version: key_version.map(|version| answer::printable(&version, 128)),
            protection: metadata.protection_level.map(|level| answer::printable(&level, 32)),
            automatic_rotation: metadata.automatic_rotation.map(|rotation| rotation == "Enabled"),
            deletion: metadata.delete_date.as_deref().and_then(dates::parse_iso8601),
            server_time,
        })
    }

    /// For keys whose description names no primary version.
    async fn newest_version(&self, deadline: Instant) -> Result<Option<String>, UpstreamError> {
        let parameters = [("KeyId", self.settings.key.request_id()), ("PageNumber", "1"), ("PageSize", "100")];
        let endpoint = &self.settings.management_endpoint;
        let (listed, _): (Listed, _) = self.call(endpoint, "ListKeyVersions", &parameters, deadline).await?;
        // Dates of one spelling sort as text.
        Ok(listed
            .versions
            .list
            .into_iter()
            .max_by(|a, b| a.creation_date.cmp(&b.creation_date))
            .map(|newest| newest.key_version_id))
    }

    /// The vendor's additional data: flat JSON, compared as a map.
    fn bound(&self, context: &WrapContext) -> Result<String, UpstreamError> {
        if context.root_kind != self.identity.kind || context.root_id != self.identity.root_id {
            return Err(corrupt("wrong-root", "the wrapped key belongs to another root"));
        }
        let bound = serde_json::json!({
            "keyring": context.keyring.as_str(),
            "generation": context.generation.to_string(),
            "key_id": context.key_id.as_str(),
        });
        Ok(bound.to_string())
    }

    fn wrapped(&self, encrypted: Encrypted) -> Result<Wrapped, UpstreamError> {
        self.check_key(&encrypted.key_id)?;
        let blob = Base64::decode_vec(&encrypted.ciphertext_blob)
            .ok()
            .filter(|blob| !blob.is_empty() && blob.len() < MAX_WRAP_LEN);
        let blob = blob.ok_or_else(|| malformed("a ciphertext that is empty, too long or no base64"))?;
        let bytes = [&[CONSTRUCTION], blob.as_slice()].concat();
        let wrap = WrappedKek { root_kind: self.identity.kind, root_id: self.identity.root_id.clone(), bytes };
        Ok(Wrapped { wrap, key_version: encrypted.key_version_id.map(|version| answer::printable(&version, 128)) })
    }

    /// # Errors
    /// `Corrupt` when another key than the configured one has answered.
    fn check_key(&self, answered: &str) -> Result<(), UpstreamError> {
        let key = &self.settings.key;
        if answered == key.bare_id() || answered == key.request_id() {
            return Ok(());
        }
        let detail = format!("the answer is of key {}, not of {}", answer::printable(answered, 128), key.bare_id());
        Err(UpstreamError::new(FaultClass::Corrupt, "other-key", detail))
    }
}

impl Upstream for Alibaba {
    fn identity(&self) -> &UpstreamIdentity {
        &self.identity
    }

    fn generate<'a>(&'a self, context: &'a WrapContext) -> BoxFuture<'a, Result<Generated, UpstreamError>> {
        Box::pin(self.generated(context))
    }

    fn wrap<'a>(&'a self, kek: &'a Kek, context: &'a WrapContext) -> BoxFuture<'a, Result<Wrapped, UpstreamError>> {
        Box::pin(self.wrapped_kek(kek, context))
    }

    fn unwrap<'a>(
        &'a self,
        wrap: &'a [u8],
        context: &'a WrapContext,
    ) -> BoxFuture<'a, Result<Unwrapped, UpstreamError>> {
        Box::pin(self.unwrapped(wrap, context))
    }

    fn describe(&self) -> BoxFuture<'_, Result<KeyDescription, UpstreamError>> {
        Box::pin(self.described())
    }

    fn expiries(&self) -> Vec<Expiry> {
        self.rpc.transport.expiries().into_iter().chain(self.credentials.expiry()).collect()
    }

    fn calls(&self) -> CallCounts {
        self.rpc.calls.snapshot()
    }
}

fn kek(plaintext: &SecretText) -> Result<Kek, UpstreamError> {
    decode_kek(plaintext).ok_or_else(|| {
        let detail = format!("{} answered with something that is no 32-byte key", KMS.name);
        UpstreamError::new(FaultClass::Corrupt, "not-a-key", detail)
    })
}

/// A success that cannot be one: not the service's doing, as far as anybody can tell.
fn malformed(what: &str) -> UpstreamError {
    UpstreamError::new(FaultClass::Unreachable, codes::FOREIGN, format!("{} answered with {what}", KMS.name))
}

fn late_credential() -> UpstreamError {
    let detail = "no credential could be had in time: its file's disk or the service that hands it out hangs";
    UpstreamError::new(FaultClass::Unreachable, codes::TIMEOUT, detail)
}

fn corrupt(code: &'static str, detail: &str) -> UpstreamError {
    UpstreamError::new(FaultClass::Corrupt, code, detail)
}
