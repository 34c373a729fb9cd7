//! Keystead: a hardware key service for Kubernetes edge masters. The rooms of the daemon; `docs/architecture.md` is the map.
#![deny(unsafe_code)]

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
