//! AWS KMS, API version 2014-11-01: four calls, signed by hand (docs/adr/0015-aws-requests.md).
//!
//! botocore is what its signatures are held against; docs/upstream-aws.md says what an operator sets up.

mod credentials;
mod errors;
mod settings;
mod sign;
mod xml;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use base64ct::{Base64, Encoding};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::Method;
use keystead_core::wrap::MAX_WRAP_LEN;
use keystead_core::{FaultClass, Kek, RootKind, WrapContext, WrappedKek};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use zeroize::Zeroizing;

use self::credentials::{Credential, Credentials};
pub use self::settings::{AwsKey, AwsSettings, CredentialSource, default_endpoint, default_sts_endpoint};
use super::answer::{json, printable};
use super::calls::Calls;
use super::contract::{
    CallCounts, Expiry, Generated, KeyDescription, KeyState, Unwrapped, Upstream, UpstreamError, UpstreamIdentity,
    Wrapped,
};
use super::retry::Retry;
use super::secret_text::{SecretText, decode_kek, encode_kek};
use super::skew::Skew;
use super::transport::{Reply, Request, Transport};

/// First byte of a wrap; the rest is the vendor's ciphertext blob.
const CONSTRUCTION: u8 = 0x12;
const PROVIDER: &str = "AWS KMS";
/// A signature that is refused is made again if the clock turns out to be off by more than this.
const RELEVANT_SKEW: u64 = 60;

/// A symmetric key of AWS KMS.
pub struct Aws {
    settings: AwsSettings,
    identity: UpstreamIdentity,
    transport: Transport,
    credentials: Credentials,
    skew: Skew,
    calls: Calls,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    GenerateDataKey,
    Encrypt,
    Decrypt,
    DescribeKey,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Question<'a> {
    key_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    encryption_context: Option<BTreeMap<&'static str, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    number_of_bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plaintext: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ciphertext_blob: Option<&'a str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DataKey {
    key_id: String,
    plaintext: SecretText,
    ciphertext_blob: String,
    key_material_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Encrypted {
    key_id: String,
    ciphertext_blob: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Decrypted {
    key_id: String,
    plaintext: SecretText,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Described {
    key_metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Metadata {
    arn: String,
    key_state: String,
    #[serde(default)]
    current_key_material_id: Option<String>,
    #[serde(default)]
    origin: Option<String>,
    /// Seconds since 1970.
    #[serde(default)]
    deletion_date: Option<f64>,
}

impl Aws {
    pub fn new(settings: AwsSettings, transport: Transport) -> Self {
        let identity = UpstreamIdentity {
            kind: RootKind::AwsKms,
            root_id: settings.key.root_id().clone(),
            named: settings.key.request_id().to_owned(),
            provider: PROVIDER,
            region: settings.region.clone(),
            endpoint: settings.endpoint.to_string(),
        };
        let credentials = Credentials::new(&settings, transport.clone());
        let used = [Operation::GenerateDataKey, Operation::Encrypt, Operation::Decrypt, Operation::DescribeKey];
        let calls = Calls::new(&used.map(Operation::name), &[credentials::WEB_IDENTITY, credentials::METADATA]);
        Self { settings, identity, transport, credentials, skew: Skew::default(), calls }
    }

    /// Asks until it is answered or refused for good, and looks at the key when the refusal leaves open what is wrong with it.
    async fn ask(&self, operation: Operation, question: &Question<'_>) -> Result<Reply, UpstreamError> {
        self.refuse_other_region()?;
        let deadline = self.transport.deadline();
        match self.call(operation, question, deadline).await {
            Err(error) if error.code == errors::INVALID_STATE && operation != Operation::DescribeKey => {
                Err(self.judged_by_state(error, deadline).await)
            }
            outcome => outcome,
        }
    }

    async fn call(
        &self,
        operation: Operation,
        question: &Question<'_>,
        deadline: Instant,
    ) -> Result<Reply, UpstreamError> {
        // Room for all of it, so that a KEK is never moved by growth.
        let mut body = Zeroizing::new(Vec::with_capacity(2048));
        serde_json::to_writer(&mut *body, question).map_err(|_| unusable("a request that cannot be written"))?;
        let mut retry = Retry::new(deadline);
        let mut corrected = false;
        loop {
            let lent = match self.credentials.get(&self.calls, deadline).await {
                Ok(lent) => lent,
                Err(error) => {
                    retry.wait_after(error).await?;
                    continue;
                }
            };
            let (outcome, clock_moved) = self.attempt(operation, &lent.value, &body, deadline).await;
            self.calls.count(operation.name(), outcome.is_ok());
            match outcome {
                // Once: a signature at the wrong time, or a session that ended early.
                Err(error) if errors::concerns_the_credential(&error) && !corrected && (clock_moved || !lent.fresh) => {
                    corrected = true;
                    if !clock_moved {
                        self.credentials.reject(&lent.value).await;
                    }
                }
                Err(error) => retry.wait_after(error).await?,
                Ok(reply) => return Ok(reply),
            }
        }
    }

    /// One request. Also says whether its answer shows that our clock was off when it was signed.
    async fn attempt(
        &self,
        operation: Operation,
        credential: &Credential,
        body: &[u8],
        deadline: Instant,
    ) -> (Result<Reply, UpstreamError>, bool) {
        let now = self.transport.now();
        let endpoint = &self.settings.endpoint;
        let region = &self.settings.region;
        let target = format!("TrentService.{}", operation.name());
        let headers = match sign::headers(credential, region, endpoint, &target, body, self.skew.apply(now)) {
            Ok(headers) => headers,
            Err(error) => return (Err(error), false),
        };
        let path = endpoint.path("/");
        let body = Zeroizing::new(body.to_vec());
        let request = Request { method: Method::POST, endpoint, path: &path, headers, body };
        match self.transport.send(request, deadline).await {
            Ok(reply) => {
                let moved = reply.date.is_some_and(|date| self.skew.learn(date, self.transport.now()) > RELEVANT_SKEW);
                if reply.status.is_success() { (Ok(reply), moved) } else { (Err(errors::from_kms(&reply)), moved) }
            }
            Err(error) => (Err(error), false),
        }
    }

    /// `KMSInvalidStateException` stands for a key that is pending deletion, but also for a key store that is not there now.
    async fn judged_by_state(&self, error: UpstreamError, deadline: Instant) -> UpstreamError {
        let question = self.question();
        let described = match self.call(Operation::DescribeKey, &question, deadline).await {
            Ok(reply) => json::<Described>(&reply, PROVIDER),
            Err(error) => Err(error),
        };
        let (class, state) = match described {
            Ok(described) => match described.key_metadata.key_state.as_str() {
                "Unavailable" | "Creating" | "Updating" | "Enabled" => {
                    (FaultClass::Unreachable, described.key_metadata.key_state)
                }
                _ => (FaultClass::KeyDisabled, described.key_metadata.key_state),
            },
            // Without the state nobody knows: an alarm, and no revocation.
            Err(_) => (FaultClass::Unclassified, "unknown".into()),
        };
        let detail = format!("{} (state of the key: {})", error.detail, printable(&state, 32));
        UpstreamError { class, detail, ..error }
    }

    fn refuse_other_region(&self) -> Result<(), UpstreamError> {
        match self.settings.key.region() {
            Some(region) if region != self.settings.region => {
                let detail = format!("the key's ARN is of {region}, upstream.region is {}", self.settings.region);
                Err(UpstreamError::new(FaultClass::Unclassified, "other-region", detail))
            }
            _ => Ok(()),
        }
    }

    fn question(&self) -> Question<'_> {
        Question {
            key_id: self.settings.key.request_id(),
            encryption_context: None,
            number_of_bytes: None,
            plaintext: None,
            ciphertext_blob: None,
        }
    }

    /// The encryption context of a wrap.
    fn bound(&self, context: &WrapContext) -> Result<BTreeMap<&'static str, String>, UpstreamError> {
        if context.root_kind != self.identity.kind || context.root_id != self.identity.root_id {
            let detail = "this context is of another root than the configured key";
            return Err(UpstreamError::new(FaultClass::Corrupt, "wrong-root", detail));
        }
        Ok(BTreeMap::from([
            ("keyring", context.keyring.as_str().to_owned()),
            ("generation", context.generation.0.to_string()),
            ("key_id", context.key_id.as_str().to_owned()),
        ]))
    }

    fn of_this_key(&self, arn: &str) -> Result<(), UpstreamError> {
        if self.settings.key.is(arn, &self.settings.region) {
            return Ok(());
        }
        let detail = format!("{PROVIDER} answered for another key: {}", printable(arn, 128));
        Err(UpstreamError::new(FaultClass::Corrupt, "other-key", detail))
    }

    fn wrapped(&self, blob: &str, key_version: Option<String>) -> Result<Wrapped, UpstreamError> {
        let blob = Base64::decode_vec(blob).map_err(|_| unusable("a ciphertext that is no base64"))?;
        let bytes = [&[CONSTRUCTION], blob.as_slice()].concat();
        if bytes.len() > MAX_WRAP_LEN {
            return Err(unusable("a ciphertext that is longer than a wrap may be"));
        }
        let wrap = WrappedKek { root_kind: self.identity.kind, root_id: self.identity.root_id.clone(), bytes };
        Ok(Wrapped { wrap, key_version: key_version.map(|version| printable(&version, 64)) })
    }
}

impl Upstream for Aws {
    fn identity(&self) -> &UpstreamIdentity {
        &self.identity
    }

    fn generate<'a>(&'a self, context: &'a WrapContext) -> BoxFuture<'a, Result<Generated, UpstreamError>> {
        async move {
            let question = Question {
                number_of_bytes: Some(Kek::LEN),
                encryption_context: Some(self.bound(context)?),
                ..self.question()
            };
            let reply = self.ask(Operation::GenerateDataKey, &question).await?;
            let answer: DataKey = json(&reply, PROVIDER)?;
            self.of_this_key(&answer.key_id)?;
            let kek = kek_of(&answer.plaintext)?;
            Ok(Generated { kek, wrapped: self.wrapped(&answer.ciphertext_blob, answer.key_material_id)? })
        }
        .boxed()
    }

    fn wrap<'a>(&'a self, kek: &'a Kek, context: &'a WrapContext) -> BoxFuture<'a, Result<Wrapped, UpstreamError>> {
        async move {
            let plaintext = encode_kek(kek);
            let question = Question {
                plaintext: Some(&plaintext),
                encryption_context: Some(self.bound(context)?),
                ..self.question()
            };
            let reply = self.ask(Operation::Encrypt, &question).await?;
            let answer: Encrypted = json(&reply, PROVIDER)?;
            self.of_this_key(&answer.key_id)?;
            // Encrypt does not say which key material it used.
            self.wrapped(&answer.ciphertext_blob, None)
        }
        .boxed()
    }

    fn unwrap<'a>(
        &'a self,
        wrap: &'a [u8],
        context: &'a WrapContext,
    ) -> BoxFuture<'a, Result<Unwrapped, UpstreamError>> {
        async move {
            let blob = match wrap.split_first() {
                Some((&CONSTRUCTION, blob)) if !blob.is_empty() && wrap.len() <= MAX_WRAP_LEN => {
                    Base64::encode_string(blob)
                }
                _ => return Err(UpstreamError::new(FaultClass::Corrupt, "not-a-wrap", "this is no wrap of AWS KMS")),
            };
            // With the key's name in it, a blob of another key is refused by the service itself.
            let question = Question {
                ciphertext_blob: Some(&blob),
                encryption_context: Some(self.bound(context)?),
                ..self.question()
            };
            let reply = self.ask(Operation::Decrypt, &question).await?;
            let answer: Decrypted = json(&reply, PROVIDER)?;
            self.of_this_key(&answer.key_id)?;
            // Decrypt names the material that the blob is under, not the newest.
            Ok(Unwrapped { kek: kek_of(&answer.plaintext)?, key_version: None, server_time: reply.date })
        }
        .boxed()
    }

    fn describe(&self) -> BoxFuture<'_, Result<KeyDescription, UpstreamError>> {
        async move {
            let reply = self.ask(Operation::DescribeKey, &self.question()).await?;
            let key = json::<Described>(&reply, PROVIDER)?.key_metadata;
            self.of_this_key(&key.arn)?;
            Ok(KeyDescription {
                key_id: printable(&key.arn, 256),
                state: state_of(&key.key_state),
                key_version: key.current_key_material_id.map(|version| printable(&version, 64)),
                // Where the key material comes from; all of it is in HSMs.
                protection: key.origin.map(|origin| format!("HSM ({})", printable(&origin, 32))),
                automatic_rotation: None,
                deletion: key.deletion_date.and_then(since_1970),
                server_time: reply.date,
            })
        }
        .boxed()
    }

    fn expiries(&self) -> Vec<Expiry> {
        let mut expiries = self.transport.expiries();
        expiries.extend(self.credentials.expiry());
        expiries
    }

    fn calls(&self) -> CallCounts {
        self.calls.snapshot()
    }
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::GenerateDataKey => "GenerateDataKey",
            Self::Encrypt => "Encrypt",
            Self::Decrypt => "Decrypt",
            Self::DescribeKey => "DescribeKey",
        }
    }
}

fn kek_of(plaintext: &SecretText) -> Result<Kek, UpstreamError> {
    decode_kek(plaintext).ok_or_else(|| {
        UpstreamError::new(FaultClass::Corrupt, "not-a-key", "AWS KMS answered with something that is no 32-byte key")
    })
}

fn unusable(what: &str) -> UpstreamError {
    UpstreamError::new(FaultClass::Unclassified, "unusable-answer", format!("{PROVIDER}: {what}"))
}

fn state_of(state: &str) -> KeyState {
    match state {
        "Enabled" => KeyState::Enabled,
        "Disabled" => KeyState::Disabled,
        "PendingDeletion" | "PendingReplicaDeletion" => KeyState::PendingDeletion,
        other => KeyState::Other(printable(other, 32)),
    }
}

fn since_1970(seconds: f64) -> Option<SystemTime> {
    let since = Duration::try_from_secs_f64(seconds).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(since)
}
