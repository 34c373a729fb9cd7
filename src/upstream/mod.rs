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
#[cfg(feature = "cloud")]
pub mod aws;
pub mod calls;
#[cfg(feature = "cloud")]
mod connect;
pub mod contract;
#[cfg(feature = "cloud")]
pub mod dates;
#[cfg(feature = "cloud")]
pub mod endpoint;
#[cfg(feature = "cloud")]
pub mod form;
#[cfg(feature = "cloud")]
pub mod ibm;
#[cfg(feature = "cloud")]
pub mod renewed;
#[cfg(feature = "cloud")]
pub mod retry;
#[cfg(feature = "cloud")]
pub mod secret_text;
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

#[cfg(feature = "cloud")]
use settings::ProviderSettings;
#[cfg(feature = "cloud")]
use transport::Transport;

/// What time it is for certificates and signatures.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// The upstream that `settings` describe. Makes no call and opens no file.
#[cfg(feature = "cloud")]
pub fn open(settings: UpstreamSettings, clock: Clock) -> Arc<dyn Upstream> {
    let transport = Transport::new(settings.transport, clock);
    match settings.provider {
        ProviderSettings::Alibaba(settings) => Arc::new(alibaba::Alibaba::new(settings, transport)),
        ProviderSettings::Ibm(settings) => Arc::new(ibm::Ibm::new(settings, transport)),
        ProviderSettings::Aws(settings) => Arc::new(aws::Aws::new(settings, transport)),
    }
}
