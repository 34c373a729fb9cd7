//! Alibaba Cloud KMS, API version 2016-01-20.

mod settings;

pub use settings::{AlibabaKey, AlibabaSettings, CredentialSource, default_endpoint, default_sts_endpoint};
