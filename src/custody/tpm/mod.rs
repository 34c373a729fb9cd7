//! Custody in a TPM 2.0, through `tss-esapi`. Runs in the custodian process only; blocking throughout.
//!
//! A TPM holds next to nothing: CMKs ([`cmk`]) live in their wraps, encrypted under the TPM's storage root key ([`srk`]), and
//! only epoch secrets ([`epoch`]) take room of its own. A [`Device`] keeps one [`connection`] and makes it anew when it is
//! lost; [`failure`] says what a response code means.

pub mod approval;
mod auth;
mod boot;
mod cmk;
mod component;
mod connection;
mod device;
mod epoch;
pub mod event_log;
mod failure;
mod identity;
mod info;
pub mod pcr;
mod policy;
mod preview;
mod provision;
mod random;
mod srk;
#[cfg(test)]
#[path = "../../../tests/support/tcg_log.rs"]
#[allow(dead_code, reason = "the daemon's tests use the rest")]
mod tcg_log;
mod tcti;

pub use boot::{approvals, differing};
pub use device::Device;
pub use info::{Lockout, TpmInfo, Trial, info};
pub use preview::read_pcrs;
pub use provision::{Provisioned, provision};
