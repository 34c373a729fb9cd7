//! gRPC on unix sockets: the KMS v2 plugin service and the admin service.

pub mod admin;
pub mod audited;
mod authority;
pub mod authorized;
pub mod connection;
mod disable;
pub mod incoming;
pub mod kms_v2;
pub mod metrics;
pub mod outlook;
pub mod peer;
mod peer_groups;
mod restore;
pub mod roles;
mod scan;
pub mod serve;
pub mod socket;
pub mod status_map;
mod upstream;
