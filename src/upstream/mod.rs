//! Upstream: the CMK in a cloud KMS, behind one contract.
//!
//! `service` holds an [`Upstream`] and nothing else of this room. A provider sorts its own service's codes into
//! [`keystead_core::FaultClass`] and signs its own requests; [`transport`] is the only way out, and what fails there is
//! `Unreachable`. Nothing here knows the store, custody, the lease or the configuration file. Without the feature `cloud`
//! only the contract is left, which has no network code.

#[cfg(feature = "cloud")]
pub mod alibaba;
#[cfg(feature = "cloud")]
pub mod answer;
pub mod calls;
#[cfg(feature = "cloud")]
mod connect;
pub mod contract;
#[cfg(feature = "cloud")]
pub mod dates;
#[cfg(feature = "cloud")]
pub mod endpoint;
#[cfg(feature = "cloud")]
pub mod retry;
#[cfg(feature = "cloud")]
pub mod settings;
#[cfg(feature = "cloud")]
pub mod skew;
#[cfg(feature = "cloud")]
pub mod transport;
#[cfg(feature = "cloud")]
pub mod trust;
#[cfg(feature = "cloud")]
pub mod watched;
#[cfg(feature = "cloud")]
mod x509;

use std::sync::Arc;
use std::time::SystemTime;

pub use contract::{Upstream, UpstreamError};
#[cfg(feature = "cloud")]
pub use settings::UpstreamSettings;

/// What time it is for certificates and signatures.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;
