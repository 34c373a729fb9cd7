//! Custody: the CMKs and epoch secrets, behind a process boundary.
//!
//! The server process holds a [`client`], the custodian process runs a [`worker`] on one device; [`frames`] go between
//! them. Nothing here starts a process, reads a configuration file or touches the store.

pub mod client;
pub mod contract;
mod counters;
mod credential_file;
mod epoch_key;
mod fields;
pub mod frames;
mod latch;
pub mod pkcs11;
pub mod settings;
#[cfg(feature = "tpm")]
pub mod tpm;
pub mod worker;

pub use client::CustodyClient;
pub use counters::OperationCount;
pub use latch::rejected_by;
pub use settings::CustodySettings;
