//! Upstream: the CMK in a cloud KMS, behind one contract.
//!
//! `service` holds an [`Upstream`] and nothing else of this room. A provider sorts its own service's codes into
//! [`keystead_core::FaultClass`] and signs its own requests; [`transport`] is the only way out, and what fails there is
//! `Unreachable`. Nothing here knows the store, custody, the lease or the configuration file.

pub mod alibaba;
pub mod answer;
pub mod calls;
mod connect;
pub mod contract;
pub mod dates;
pub mod endpoint;
pub mod retry;
pub mod settings;
pub mod skew;
pub mod transport;
pub mod trust;
pub mod watched;
mod x509;

use std::sync::Arc;
use std::time::SystemTime;

pub use contract::{Upstream, UpstreamError};
pub use settings::UpstreamSettings;

/// What time it is for certificates and signatures.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;
