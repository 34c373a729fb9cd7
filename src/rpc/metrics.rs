//! What the KMS socket's requests cost and how they ended. Nothing is looked up on the hot path: every series is resolved once.

use std::fmt::Write;
use std::sync::OnceLock;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tonic::Code;

/// The KMS v2 methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    Status,
    Encrypt,
    Decrypt,
}

/// Requests by method and code, and latency by method.
#[derive(Debug)]
pub struct RequestMetrics {
    requests: Family<RequestLabels, Counter>,
    latency: Family<MethodLabel, Histogram, fn() -> Histogram>,
    resolved: [Resolved; 3],
}

#[derive(Debug, Default)]
struct Resolved {
    codes: [OnceLock<Counter>; CODES],
    latency: OnceLock<Histogram>,
}

/// gRPC has codes 0 to 16.
const CODES: usize = 17;

/// From 10 µs, what a request takes in memory, to 5 s, beyond the apiserver's time-out.
const BUCKETS: [f64; 12] = [10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 1e-3, 5e-3, 25e-3, 100e-3, 500e-3, 1.0, 5.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: Method,
    code: CodeLabel,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabel {
    method: Method,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct CodeLabel(Code);

impl Method {
    pub fn name(self) -> &'static str {
        match self {
            Self::Status => "Status",
            Self::Encrypt => "Encrypt",
            Self::Decrypt => "Decrypt",
        }
    }
}

impl EncodeLabelValue for Method {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(self.name())
    }
}

impl EncodeLabelValue for CodeLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        write!(encoder, "{:?}", self.0)
    }
}

impl Default for RequestMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            latency: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            resolved: Default::default(),
        }
    }
}

impl RequestMetrics {
    pub fn register(&self, registry: &mut Registry) {
        registry.register("keystead_kms_requests", "KMS v2 requests by method and gRPC code", self.requests.clone());
        registry.register(
            "keystead_kms_request_duration_seconds",
            "Time from a decoded request to its answer",
            self.latency.clone(),
        );
    }

    pub fn record(&self, method: Method, code: Code, latency: Duration) {
        let resolved = &self.resolved[method as usize];
        resolved.codes[code as usize]
            .get_or_init(|| self.requests.get_or_create(&RequestLabels { method, code: CodeLabel(code) }).clone())
            .inc();
        resolved
            .latency
            .get_or_init(|| self.latency.get_or_create(&MethodLabel { method }).clone())
            .observe(latency.as_secs_f64());
    }
}
