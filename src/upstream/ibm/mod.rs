//! IBM Key Protect and Hyper Protect Crypto Services, API version 2: wrap, unwrap and rewrap with additional data.
//!
//! The vendor's client is what its requests are held against; docs/upstream-ibm.md says what an operator sets up.

mod credentials;
mod errors;
mod iam;
mod settings;

use std::time::Duration;

use base64ct::{Base64, Encoding};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use keystead_core::wrap::MAX_WRAP_LEN;
use keystead_core::{FaultClass, Kek, RootKind, WrapContext, WrappedKek};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use zeroize::Zeroizing;

use self::iam::Iam;
pub use self::settings::{CredentialSource, IbmId, IbmSettings, default_endpoint, default_iam_endpoint};
use super::answer::{foreign, json, printable};
use super::calls::Calls;
use super::contract::{
    CallCounts, Expiry, Generated, KeyDescription, KeyState, Unwrapped, Upstream, UpstreamError, UpstreamIdentity,
    Wrapped,
};
use super::dates;
use super::retry::Retry;
use super::secret_text::{SecretText, decode_kek, encode_kek};
use super::transport::{Reply, Request, Transport};

/// First byte of a wrap; the rest is the vendor's ciphertext, its base64 taken off.
const CONSTRUCTION: u8 = 0x11;
const PROVIDER: &str = "IBM Key Protect";
/// A deleted key can be brought back for this long.
const RESTORABLE: Duration = Duration::from_secs(30 * 86_400);
const INSTANCE: HeaderName = Request::header_name("bluemix-instance");

/// A root key of IBM Key Protect.
pub struct Ibm {
    settings: IbmSettings,
    identity: UpstreamIdentity,
    transport: Transport,
    iam: Iam,
    calls: Calls,
}

#[derive(Clone, Copy)]
enum Action {
    Wrap,
    Unwrap,
    Rewrap,
}

#[derive(Serialize)]
struct ActionBody<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    plaintext: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ciphertext: Option<&'a str>,
    aad: [String; 3],
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ActionAnswer {
    plaintext: Option<SecretText>,
    ciphertext: Option<String>,
    key_version: Option<Version>,
    rewrapped_key_version: Option<Version>,
}

#[derive(Deserialize)]
struct Version {
    id: String,
}

#[derive(Deserialize)]
struct Described {
    resources: Vec<Key>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Key {
    id: String,
    state: u8,
    key_version: Option<Version>,
    deletion_date: Option<String>,
}

impl Ibm {
    pub fn new(settings: IbmSettings, transport: Transport) -> Self {
        let identity = UpstreamIdentity {
            kind: RootKind::IbmKeyProtect,
            root_id: settings.key.root_id(),
            named: format!("{}/{}", settings.instance, settings.key),
            provider: PROVIDER,
            region: settings.region.clone(),
            endpoint: settings.endpoint.to_string(),
        };
        let iam = Iam::new(&settings, transport.clone());
        let calls = Calls::new(&["wrap", "unwrap", "rewrap", "metadata"], &[iam::TOKEN]);
        Self { settings, identity, transport, iam, calls }
    }

    /// The same KEK under the key's newest version, without it ever being here.
    ///
    /// # Errors
    /// As [`Upstream::unwrap`].
    pub async fn rewrap(&self, wrap: &[u8], context: &WrapContext) -> Result<Wrapped, UpstreamError> {
        let ciphertext = ciphertext_of(wrap)?;
        let body = ActionBody { plaintext: None, ciphertext: Some(&ciphertext), aad: self.bound(context)? };
        let (answer, reply) = self.act(Action::Rewrap, &body).await?;
        self.wrapped(&reply, answer.ciphertext, answer.rewrapped_key_version)
    }

    async fn act(&self, action: Action, body: &ActionBody<'_>) -> Result<(ActionAnswer, Reply), UpstreamError> {
        // Room for all of it, so that a KEK is never moved by growth.
        let mut text = Zeroizing::new(Vec::with_capacity(2048));
        serde_json::to_writer(&mut *text, body).map_err(|_| unusable("a request that cannot be written"))?;
        let path = format!("/api/v2/keys/{}/actions/{}", self.settings.key, action.name());
        let reply = self.call(action.name(), Method::POST, &path, Some((action.content_type(), &text))).await?;
        Ok((json(&reply, PROVIDER)?, reply))
    }

    async fn call(
        &self,
        operation: &'static str,
        method: Method,
        path: &str,
        body: Option<(&'static str, &[u8])>,
    ) -> Result<Reply, UpstreamError> {
        let deadline = self.transport.deadline();
        let mut retry = Retry::new(deadline);
        let mut renewed = false;
        loop {
            let token = match self.iam.token(&self.calls, deadline).await {
                Ok(token) => token,
                Err(error) => {
                    retry.wait_after(error).await?;
                    continue;
                }
            };
            let outcome = self.attempt(method.clone(), path, body, &token.value.header, deadline).await;
            self.calls.count(operation, outcome.is_ok());
            match outcome {
                // An old token may be refused for its age, which the service does not tell from a missing right.
                Err(error) if concerns_the_token(error.class) && !token.fresh && !renewed => {
                    self.iam.reject(&token.value).await;
                    renewed = true;
                }
                Err(error) => retry.wait_after(error).await?,
                Ok(reply) => return Ok(reply),
            }
        }
    }

    async fn attempt(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, &[u8])>,
        bearer: &HeaderValue,
        deadline: Instant,
    ) -> Result<Reply, UpstreamError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, bearer.clone());
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(INSTANCE, Request::header(self.settings.instance.as_str())?);
        let mut content = Zeroizing::new(Vec::new());
        if let Some((content_type, bytes)) = body {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
            content = Zeroizing::new(bytes.to_vec());
        }
        let endpoint = &self.settings.endpoint;
        let path = endpoint.path(path);
        let reply =
            self.transport.send(Request { method, endpoint, path: &path, headers, body: content }, deadline).await?;
        if reply.status.is_success() { Ok(reply) } else { Err(errors::from_key_protect(&reply)) }
    }

    /// The additional data of a wrap: each item within the vendor's 255 characters.
    fn bound(&self, context: &WrapContext) -> Result<[String; 3], UpstreamError> {
        if context.root_kind != self.identity.kind || context.root_id != self.identity.root_id {
            let detail = "this context is of another root than the configured key";
            return Err(UpstreamError::new(FaultClass::Corrupt, "wrong-root", detail));
        }
        Ok([
            format!("keyring={}", context.keyring.as_str()),
            format!("generation={}", context.generation.0),
            format!("key_id={}", context.key_id.as_str()),
        ])
    }

    fn wrapped(
        &self,
        reply: &Reply,
        ciphertext: Option<String>,
        version: Option<Version>,
    ) -> Result<Wrapped, UpstreamError> {
        let ciphertext = ciphertext.ok_or_else(|| foreign(reply, PROVIDER))?;
        let blob = Base64::decode_vec(&ciphertext).map_err(|_| unusable("a ciphertext that is no base64"))?;
        let bytes = [&[CONSTRUCTION], blob.as_slice()].concat();
        if bytes.len() > MAX_WRAP_LEN {
            return Err(unusable("a ciphertext that is longer than a wrap may be"));
        }
        let wrap = WrappedKek { root_kind: self.identity.kind, root_id: self.identity.root_id.clone(), bytes };
        Ok(Wrapped { wrap, key_version: version.map(shown) })
    }
}

impl Upstream for Ibm {
    fn identity(&self) -> &UpstreamIdentity {
        &self.identity
    }

    fn generate<'a>(&'a self, context: &'a WrapContext) -> BoxFuture<'a, Result<Generated, UpstreamError>> {
        async move {
            let body = ActionBody { plaintext: None, ciphertext: None, aad: self.bound(context)? };
            let (answer, reply) = self.act(Action::Wrap, &body).await?;
            let kek = kek_of(&reply, answer.plaintext)?;
            Ok(Generated { kek, wrapped: self.wrapped(&reply, answer.ciphertext, answer.key_version)? })
        }
        .boxed()
    }

    fn wrap<'a>(&'a self, kek: &'a Kek, context: &'a WrapContext) -> BoxFuture<'a, Result<Wrapped, UpstreamError>> {
        async move {
            let plaintext = encode_kek(kek);
            let body = ActionBody { plaintext: Some(&plaintext), ciphertext: None, aad: self.bound(context)? };
            let (answer, reply) = self.act(Action::Wrap, &body).await?;
            self.wrapped(&reply, answer.ciphertext, answer.key_version)
        }
        .boxed()
    }

    fn unwrap<'a>(
        &'a self,
        wrap: &'a [u8],
        context: &'a WrapContext,
    ) -> BoxFuture<'a, Result<Unwrapped, UpstreamError>> {
        async move {
            let ciphertext = ciphertext_of(wrap)?;
            let body = ActionBody { plaintext: None, ciphertext: Some(&ciphertext), aad: self.bound(context)? };
            let (answer, reply) = self.act(Action::Unwrap, &body).await?;
            let kek = kek_of(&reply, answer.plaintext)?;
            // After a rotation the answer also names the version that would wrap now.
            let newest = answer.rewrapped_key_version.or(answer.key_version);
            Ok(Unwrapped { kek, key_version: newest.map(shown), server_time: reply.date })
        }
        .boxed()
    }

    fn describe(&self) -> BoxFuture<'_, Result<KeyDescription, UpstreamError>> {
        async move {
            let path = format!("/api/v2/keys/{}/metadata", self.settings.key);
            let reply = self.call("metadata", Method::GET, &path, None).await?;
            let described: Described = json(&reply, PROVIDER)?;
            let key = described.resources.into_iter().next().ok_or_else(|| foreign(&reply, PROVIDER))?;
            if key.id != self.settings.key.as_str() {
                let detail = "IBM Key Protect described another key than the one asked for";
                return Err(UpstreamError::new(FaultClass::Corrupt, "other-key", detail));
            }
            Ok(KeyDescription {
                key_id: key.id,
                state: state_of(key.state),
                key_version: key.key_version.map(shown),
                // Root keys are made and used in IBM's HSMs, always.
                protection: Some("HSM".into()),
                automatic_rotation: None,
                deletion: key.deletion_date.and_then(|date| dates::parse_iso8601(&date)?.checked_add(RESTORABLE)),
                server_time: reply.date,
            })
        }
        .boxed()
    }

    fn expiries(&self) -> Vec<Expiry> {
        self.transport.expiries().into_iter().chain(self.iam.expiry()).collect()
    }

    fn calls(&self) -> CallCounts {
        self.calls.snapshot()
    }
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
            Self::Rewrap => "rewrap",
        }
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::Wrap => "application/vnd.ibm.kms.key_action_wrap+json",
            Self::Unwrap => "application/vnd.ibm.kms.key_action_unwrap+json",
            Self::Rewrap => "application/vnd.ibm.kms.key_action_rewrap+json",
        }
    }
}

fn ciphertext_of(wrap: &[u8]) -> Result<String, UpstreamError> {
    match wrap.split_first() {
        Some((&CONSTRUCTION, blob)) if !blob.is_empty() && wrap.len() <= MAX_WRAP_LEN => {
            Ok(Base64::encode_string(blob))
        }
        _ => Err(UpstreamError::new(FaultClass::Corrupt, "not-a-wrap", "this is no wrap of IBM Key Protect")),
    }
}

fn kek_of(reply: &Reply, plaintext: Option<SecretText>) -> Result<Kek, UpstreamError> {
    let plaintext = plaintext.ok_or_else(|| foreign(reply, PROVIDER))?;
    decode_kek(&plaintext).ok_or_else(|| {
        UpstreamError::new(
            FaultClass::Corrupt,
            "not-a-key",
            "IBM Key Protect answered with something that is no 32-byte key",
        )
    })
}

fn unusable(what: &str) -> UpstreamError {
    UpstreamError::new(FaultClass::Unclassified, "unusable-answer", format!("{PROVIDER}: {what}"))
}

fn shown(version: Version) -> String {
    printable(&version.id, 64)
}

fn concerns_the_token(class: FaultClass) -> bool {
    matches!(class, FaultClass::Denied | FaultClass::CredentialFault)
}

/// NIST SP 800-57, as the vendor numbers the states.
fn state_of(state: u8) -> KeyState {
    match state {
        1 => KeyState::Enabled,
        2 => KeyState::Disabled,
        3 => KeyState::Other("deactivated".into()),
        // Deleted, and can be restored for a while.
        5 => KeyState::PendingDeletion,
        other => KeyState::Other(format!("state {other}")),
    }
}
