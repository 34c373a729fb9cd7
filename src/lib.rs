//! Keystead: a hardware key service for Kubernetes edge masters. The rooms of the daemon; `docs/architecture.md` is the map.
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod audit;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod custody;
pub mod failpoint;
pub mod memory;
pub mod process;
pub mod rpc;
pub mod service;
pub mod store;
pub mod telemetry;
pub mod upstream;
