//! The Kubernetes side, read by the command line with the operator's rights: what an etcd, or a snapshot of it, says of our
//! generations.
//!
//! Everything in an etcd is hostile: whoever can write it has written it. It is read bounded, in one pass, and says
//! only what was seen ([`keystead_core::recovery::Sighting`], [`Scan`]); what of it can be believed is judged elsewhere. The
//! daemon never comes here.

mod bbolt;
#[cfg(feature = "cluster")]
mod etcd;
mod objects;
mod prefixes;
mod scan;
mod snapshot;
mod source;
mod survey;

#[cfg(feature = "cluster")]
pub use etcd::{Credentials, Etcd, EtcdError};
pub use prefixes::Prefixes;
pub use scan::{Group, Scan};
pub use snapshot::{Snapshot, SnapshotError};
pub use source::{Origin, Provenance, Reader, Source, SourceError};
pub use survey::Survey;
