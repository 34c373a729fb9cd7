//! The use cases: serve keys, start from the store, initialise, rotate, disable and enable, keep scans, rescue, restore, recover.
//!
//! [`keys::KeyService`] is the hot path and holds what is served; [`lifecycle::Lifecycle`] changes it, always in the order
//! persist, publish, reply. Knows custody and store, not gRPC: rpc translates.

pub mod clock;
pub mod cloud;
pub mod cloud_view;
pub mod disable;
pub mod epoch;
pub mod explain;
mod identity;
pub mod init;
pub mod keys;
pub mod lease;
pub mod lifecycle;
mod machine;
mod markers;
pub mod notices;
mod offline;
pub mod recover;
pub mod renewal;
pub mod rescue;
pub mod restore;
mod revocation;
pub mod rotation;
pub mod scan;
pub mod spending;
#[cfg(feature = "cloud")]
pub mod upstream_check;
pub mod watch;

#[cfg(test)]
mod cloud_tests;
