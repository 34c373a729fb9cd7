//! What an upstream promises, whatever the cloud: four calls, and one class for each reaction to a failure.
//!
//! Lease renewal and rotation speak this; every provider passes tests/upstream.

use std::fmt;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use keystead_core::{FaultClass, Kek, RootId, RootKind, WrapContext, WrappedKek};

pub use super::calls::CallCounts;

/// A key in a cloud KMS. Every call stays within the configured total time-out, retries included, and may be dropped at any await.
pub trait Upstream: Send + Sync {
    /// The key as configured. Makes no call.
    fn identity(&self) -> &UpstreamIdentity;

    /// A fresh KEK, made by the cloud and wrapped under the key, `context` bound into the wrap.
    ///
    /// `context.root_kind` and `context.root_id` must be this upstream's own.
    fn generate<'a>(&'a self, context: &'a WrapContext) -> BoxFuture<'a, Result<Generated, UpstreamError>>;

    /// Wraps a KEK that exists already: recovery and a change of roots move KEKs.
    fn wrap<'a>(&'a self, kek: &'a Kek, context: &'a WrapContext) -> BoxFuture<'a, Result<Wrapped, UpstreamError>>;

    /// Opens what [`Upstream::generate`] or [`Upstream::wrap`] made under the same context. A success proves that the key may be used now; an
    /// answer that another key gave is [`FaultClass::Corrupt`]. The caller compares the KEK's commitment.
    fn unwrap<'a>(
        &'a self,
        wrap: &'a [u8],
        context: &'a WrapContext,
    ) -> BoxFuture<'a, Result<Unwrapped, UpstreamError>>;

    /// State and newest version of the key. Proves nothing about the right to use it: a disabled key is described as well.
    fn describe(&self) -> BoxFuture<'_, Result<KeyDescription, UpstreamError>>;

    /// When each certificate and credential that is in use ends. Makes no call.
    fn expiries(&self) -> Vec<Expiry>;

    /// Calls made since the start. Makes no call.
    fn calls(&self) -> CallCounts;
}

/// Which key this is; safe to log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamIdentity {
    pub kind: RootKind,
    /// The bare key ID's ASCII bytes.
    pub root_id: RootId,
    /// All that the configuration says to tell this key from others: an ARN with region and account, an instance.
    pub named: String,
    /// For people: `Alibaba Cloud KMS`.
    pub provider: &'static str,
    pub region: String,
    /// `https://host[:port]` that calls for the key go to.
    pub endpoint: String,
}

#[derive(Debug)]
pub struct Generated {
    pub kek: Kek,
    pub wrapped: Wrapped,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrapped {
    pub wrap: WrappedKek,
    /// The version of the key it is wrapped under, where the service says so.
    pub key_version: Option<String>,
}

#[derive(Debug)]
pub struct Unwrapped {
    pub kek: Kek,
    /// The key's *newest* version, where the answer names it (IBM). Elsewhere only [`Upstream::describe`] does.
    pub key_version: Option<String>,
    /// The service's clock, from its `Date` header.
    pub server_time: Option<SystemTime>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyDescription {
    /// As the service spells it.
    pub key_id: String,
    pub state: KeyState,
    /// The version that wraps now. Opaque: compare for equality only.
    pub key_version: Option<String>,
    /// The service's own word: `HSM`, `SOFTWARE`, …
    pub protection: Option<String>,
    /// Whether the cloud rotates the key by itself.
    pub automatic_rotation: Option<bool>,
    /// When a key that is pending deletion goes.
    pub deletion: Option<SystemTime>,
    pub server_time: Option<SystemTime>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyState {
    Enabled,
    Disabled,
    PendingDeletion,
    /// Any other word of the service, printable and short.
    Other(String),
}

/// One end that should be seen coming.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiry {
    /// `certificate of <host>`, `CA certificate in <file>`, `STS credential`, … Stable: it is a metric's label.
    pub what: String,
    pub not_after: SystemTime,
}

/// Why a call failed. Every field is safe to log; Display says what to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamError {
    pub class: FaultClass,
    /// The service's own error code, or one of [`super::transport::codes`] where no service answered.
    pub code: String,
    /// For people: who said what. Never an answer's body.
    pub detail: String,
    /// The service asked not to be called again before this has passed.
    pub retry_after: Option<Duration>,
}

impl UpstreamError {
    pub fn new(class: FaultClass, code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { class, code: code.into(), detail: detail.into(), retry_after: None }
    }
}

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}: {}). {}", self.detail, self.class, self.code, remedy(self.class))
    }
}

impl std::error::Error for UpstreamError {}

fn remedy(class: FaultClass) -> &'static str {
    match class {
        FaultClass::Unreachable => {
            "It is tried again by itself; `keystead upstream check` shows where the way to the cloud ends"
        }
        FaultClass::CredentialFault => {
            "Put a valid credential into the credentials file (no restart is needed), or check the platform's role"
        }
        FaultClass::Billing => "Settle the cloud account's balance, or renew the KMS subscription",
        FaultClass::Denied => {
            "Give the credential the right to encrypt, decrypt and describe this key; look at network access rules too"
        }
        FaultClass::KeyDisabled => {
            "Enable the key, or cancel its deletion, in the cloud console; service then comes back by itself"
        }
        FaultClass::KeyGone => "Check upstream.key, upstream.region and the account; a key that was deleted stays gone",
        FaultClass::Corrupt => {
            "What was sent does not belong to this key, or the answer is not this key's: compare upstream.key with the keyring's root"
        }
        FaultClass::Unclassified => "Look the code up in the provider's documentation and report it",
    }
}
