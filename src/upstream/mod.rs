//! Upstream: the CMK in a cloud KMS, behind one contract.
//!
//! `service` holds an [`Upstream`] and nothing else of this room. A provider sorts its own service's codes into
//! [`keystead_core::FaultClass`] and signs its own requests; [`transport`] is the only way out, and what fails there is
//! `Unreachable`. Nothing here knows the store, custody, the lease or the configuration file.

pub mod alibaba;
pub mod answer;
pub mod aws;
pub mod calls;
mod connect;
pub mod contract;
pub mod dates;
pub mod endpoint;
pub mod form;
pub mod ibm;
pub mod renewed;
pub mod retry;
pub mod secret_text;
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

use settings::ProviderSettings;
use transport::Transport;

/// What time it is for certificates and signatures.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// The upstream that `settings` describe. Makes no call and opens no file.
pub fn open(settings: UpstreamSettings, clock: Clock) -> Arc<dyn Upstream> {
    let transport = Transport::new(settings.transport, clock);
    match settings.provider {
        ProviderSettings::Alibaba(settings) => Arc::new(alibaba::Alibaba::new(settings, transport)),
        ProviderSettings::Ibm(settings) => Arc::new(ibm::Ibm::new(settings, transport)),
        ProviderSettings::Aws(settings) => Arc::new(aws::Aws::new(settings, transport)),
    }
}
