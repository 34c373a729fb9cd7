//! The three composition roots (supervisor, server, custodian) and what holds them together.
//!
//! The only room that may name every other. The supervisor holds no key, no PIN and serves no request; the server holds
//! the KEKs and runs no vendor code; the custodian runs the vendor's module and knows the PIN.

pub mod activation;
pub mod backoff;
#[cfg(feature = "cloud")]
pub mod cloud;
pub mod config_copy;
pub mod control;
pub mod custodian;
pub mod daemon;
pub mod egress;
pub mod hardening;
mod inherited;
mod kms_thread;
pub mod once;
mod pid_file;
pub mod reload;
pub mod sandbox;
pub mod seccomp;
pub mod server;
mod signals;
pub mod spawn;
pub mod start;
pub mod supervisor;
pub mod users;
