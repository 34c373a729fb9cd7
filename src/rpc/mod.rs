//! gRPC on unix sockets: the KMS v2 plugin service, and the admin service with health and reflection beside it.

pub mod admin;
pub mod admission;
pub mod audited;
mod authority;
pub mod authorized;
mod backups;
pub mod connection;
mod deletion;
pub mod health;
pub mod incoming;
pub mod kms_v2;
pub mod limited;
pub mod login;
pub mod metrics;
pub mod outlook;
pub mod peer;
mod peer_options;
mod refusals;
pub mod reload;
pub mod roles;
mod rotation;
mod scan;
pub mod serve;
pub mod services;
pub mod socket;
pub mod status_map;
mod upstream;
