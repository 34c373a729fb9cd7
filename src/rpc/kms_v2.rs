//! The Kubernetes KMS v2 plugin service: checks bounds, calls the key service, counts and logs each request once.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use keystead_core::annotation;
use keystead_wire::kms::v2::key_management_service_server::KeyManagementService;
use keystead_wire::kms::v2::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
};
use tonic::{Code, Request, Response, Status};

use super::audited::RequestAudit;
use super::metrics::{Method, RequestMetrics};
use super::status_map::serve_error;
use crate::service::keys::KeyService;

/// Longest request uid: kube-apiserver sends a 36-byte UUID.
pub const MAX_UID_LEN: usize = 256;
/// Longest key ID that the KMS v2 contract allows.
pub const MAX_KEY_ID_LEN: usize = 1024;
/// Keys and values together, by the KMS v2 contract.
pub const MAX_ANNOTATIONS_LEN: usize = 32 << 10;
/// Beyond the largest field: protobuf's own bytes.
const MESSAGE_SLACK: usize = 4 << 10;

/// Bounds that a site may set, also while requests are served.
#[derive(Debug)]
pub struct KmsLimits {
    max_plaintext: AtomicUsize,
}

impl KmsLimits {
    /// `max_plaintext`: the largest that Encrypt takes, in bytes.
    pub fn new(max_plaintext: usize) -> Self {
        Self { max_plaintext: AtomicUsize::new(max_plaintext) }
    }

    /// From the next request on.
    pub fn set(&self, max_plaintext: usize) {
        self.max_plaintext.store(max_plaintext, Ordering::Relaxed);
    }

    fn max_plaintext(&self) -> usize {
        self.max_plaintext.load(Ordering::Relaxed)
    }

    /// Largest envelope that Decrypt takes: what Encrypt can have made.
    fn max_ciphertext(&self) -> usize {
        self.max_plaintext() + keystead_core::envelope::OVERHEAD
    }

    /// Largest message read from the socket; a longer one is refused before it is read.
    pub fn max_message(&self) -> usize {
        self.max_ciphertext() + MAX_UID_LEN + MAX_KEY_ID_LEN + MAX_ANNOTATIONS_LEN + MESSAGE_SLACK
    }
}

/// Serves one key on the KMS socket.
pub struct KmsV2 {
    keys: Arc<KeyService>,
    limits: Arc<KmsLimits>,
    metrics: Arc<RequestMetrics>,
    audit: RequestAudit,
}

impl KmsV2 {
    pub fn new(
        keys: Arc<KeyService>,
        limits: Arc<KmsLimits>,
        metrics: Arc<RequestMetrics>,
        audit: RequestAudit,
    ) -> Self {
        Self { keys, limits, metrics, audit }
    }

    /// Counts a finished request and writes its one log line.
    fn finish<T>(
        &self,
        method: Method,
        uid: &str,
        key_id: &str,
        started: Instant,
        outcome: Result<T, Status>,
    ) -> Result<Response<T>, Status> {
        let latency = started.elapsed();
        let code = code(&outcome);
        self.metrics.record(method, code, latency);
        let outcome_text = outcome.as_ref().map_or_else(Status::message, |_| "ok");
        tracing::debug!(
            method = method.name(),
            // Both come from the peer: Debug quotes what is not printable.
            uid = ?printable(uid),
            key_id = ?printable(key_id),
            code = ?code,
            latency_us = latency.as_micros() as u64,
            outcome = outcome_text,
            "request"
        );
        outcome.map(Response::new)
    }

    fn check_encrypt(&self, request: &EncryptRequest) -> Result<(), Status> {
        check_uid(&request.uid)?;
        if request.plaintext.is_empty() {
            return Err(Status::invalid_argument("the plaintext is empty"));
        }
        let most = self.limits.max_plaintext();
        if request.plaintext.len() > most {
            return Err(too_long("plaintext", request.plaintext.len(), most));
        }
        Ok(())
    }

    fn check_decrypt(&self, request: &DecryptRequest) -> Result<(), Status> {
        check_uid(&request.uid)?;
        if request.ciphertext.is_empty() {
            return Err(Status::invalid_argument("the ciphertext is empty"));
        }
        let most = self.limits.max_ciphertext();
        if request.ciphertext.len() > most {
            return Err(too_long("ciphertext", request.ciphertext.len(), most));
        }
        if request.key_id.is_empty() {
            return Err(Status::invalid_argument("the key ID is empty"));
        }
        if request.key_id.len() > MAX_KEY_ID_LEN {
            return Err(too_long("key ID", request.key_id.len(), MAX_KEY_ID_LEN));
        }
        let annotations: usize = request.annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
        if annotations > MAX_ANNOTATIONS_LEN {
            return Err(too_long("annotations", annotations, MAX_ANNOTATIONS_LEN));
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl KeyManagementService for KmsV2 {
    async fn status(&self, _request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let started = Instant::now();
        let outcome = self
            .keys
            .status()
            .map(|key_id| StatusResponse { version: "v2".into(), healthz: "ok".into(), key_id })
            .map_err(|error| serve_error(&error));
        self.finish(Method::Status, "", "", started, outcome)
    }

    async fn encrypt(&self, request: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        let started = Instant::now();
        let caller = request.extensions().get().copied();
        let request = request.into_inner();
        let outcome = self.check_encrypt(&request).and_then(|()| self.audit.admit()).and_then(|()| {
            let encrypted = self.keys.encrypt(&request.plaintext).map_err(|error| serve_error(&error))?;
            Ok(EncryptResponse {
                ciphertext: encrypted.ciphertext,
                key_id: encrypted.key_id,
                annotations: HashMap::from([(annotation::KEY.to_owned(), encrypted.annotation)]),
            })
        });
        let key_id = outcome.as_ref().map_or("", |answer| answer.key_id.as_str());
        let (latency, code) = (started.elapsed(), code(&outcome));
        let recorded = self.audit.record(Method::Encrypt, caller, &request.uid, key_id, latency, code);
        let outcome = recorded.and(outcome);
        // Which key ID was used is only wanted where it is logged.
        let logged =
            tracing::enabled!(tracing::Level::DEBUG).then(|| outcome.as_ref().ok().map(|ok| ok.key_id.clone()));
        self.finish(Method::Encrypt, &request.uid, &logged.flatten().unwrap_or_default(), started, outcome)
    }

    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        let started = Instant::now();
        let caller = request.extensions().get().copied();
        let request = request.into_inner();
        let outcome = match self.check_decrypt(&request).and_then(|()| self.audit.admit()) {
            Err(status) => Err(status),
            Ok(()) => match self.keys.decrypt(&request.key_id, &request.ciphertext).await {
                Ok(mut plaintext) => Ok(DecryptResponse { plaintext: std::mem::take(&mut *plaintext) }),
                Err(error) => Err(serve_error(&error)),
            },
        };
        let (latency, code) = (started.elapsed(), code(&outcome));
        let recorded = self.audit.record(Method::Decrypt, caller, &request.uid, &request.key_id, latency, code);
        let outcome = recorded.and(outcome);
        self.finish(Method::Decrypt, &request.uid, &request.key_id, started, outcome)
    }
}

fn code<T>(outcome: &Result<T, Status>) -> Code {
    outcome.as_ref().map_or_else(Status::code, |_| Code::Ok)
}

fn check_uid(uid: &str) -> Result<(), Status> {
    if uid.len() > MAX_UID_LEN {
        return Err(too_long("uid", uid.len(), MAX_UID_LEN));
    }
    Ok(())
}

fn too_long(what: &str, len: usize, max: usize) -> Status {
    Status::invalid_argument(format!("the {what} has {len} bytes; at most {max} are allowed"))
}

/// At most 128 bytes of a peer's string, for the log.
fn printable(text: &str) -> &str {
    let mut end = text.len().min(128);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
