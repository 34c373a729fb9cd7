//! The Kubernetes side, read by the command line with the operator's rights: what an etcd snapshot says of our generations.
//!
//! Everything in a snapshot is hostile: whoever can write etcd has written it. It is read bounded, in one pass, and says
//! only what was seen ([`keystead_core::recovery::Sighting`]); what of it can be believed is judged elsewhere. The
//! daemon never comes here.

mod bbolt;
mod objects;
mod snapshot;
mod survey;

pub use snapshot::{Snapshot, SnapshotError};
pub use survey::{Survey, survey};
