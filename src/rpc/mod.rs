//! gRPC services on unix sockets: KMS v2 and admin.

pub mod connection;
pub mod incoming;
pub mod peer;
mod peer_groups;
pub mod socket;
