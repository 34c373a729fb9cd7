//! Logs, metrics, health.
//!
//! Owns the log set-up, the metrics registry and the small HTTP server that shows both metrics and health. Each room owns its
//! own metrics and only registers them here; nothing in this room knows a key, a request or a device. Called by the
//! composition roots.

pub mod health;
pub mod http;
pub mod log;
pub mod metrics;
pub mod state;
mod stderr;
