//! The use cases: serve keys, start from the store, initialise, rotate, change roots, disable and enable, keep scans, delete
//! generations, rescue, restore, recover.
//!
//! [`keys::KeyService`] is the hot path and holds what is served; [`lifecycle::Lifecycle`] changes it, always in the order
//! persist, publish, reply. Knows custody and store, not gRPC: rpc translates.

pub mod backups;
pub mod clock;
pub mod cloud;
pub mod cloud_view;
pub mod custody_state;
pub mod deletion;
mod destruction;
pub mod disable;
mod disk;
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
mod older_in_cloud;
pub mod recover;
pub mod renewal;
pub mod rescue;
pub mod restore;
mod revocation;
pub mod roots;
pub mod rotation;
pub mod scan;
pub mod schedule;
pub mod spending;
mod start;
mod unasked;
#[cfg(feature = "cloud")]
pub mod upstream_check;
pub mod watch;

#[cfg(test)]
mod cloud_tests;
