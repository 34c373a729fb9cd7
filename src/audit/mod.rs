//! The audit trail: who asked for what, and what became of it, in append-only files that cannot be changed unnoticed.
//!
//! Owns a folder of JSON lines, chained by [`keystead_core::audit`], and the one thread that writes them. Knows nothing of keys or
//! requests but the fields it is given; the service hands it the key for checkpoints. Recording costs a request one
//! short lock: lines are made, chained and written off its path. `docs/audit.md` is for people.

mod files;
mod forward;
mod lines;
pub mod query;
pub mod settings;
mod trail;
pub mod verify;
mod writer;

pub use files::make_folder;
pub use forward::outlet;
pub use lines::{AdminRecord, AuditedPeer, Outcome, Phase, RequestRecord, Who};
pub use trail::{AuditError, AuditKey, Counts, Trail};

#[cfg(test)]
mod tests;
