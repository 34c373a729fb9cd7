//! Custody: the CMKs and epoch secrets, behind a process boundary.
//!
//! The server process holds a [`client`]; [`frames`] go between it and the custodian process. Nothing here starts a
//! process, reads a configuration file or touches the store.

pub mod client;
pub mod contract;
mod counters;
mod fields;
pub mod frames;
pub mod settings;

pub use client::CustodyClient;
pub use counters::OperationCount;
pub use settings::CustodySettings;
