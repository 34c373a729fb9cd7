//! The pure core of Keystead: what a key is, how it is wrapped, and when it may serve.
//!
//! Owns identifiers, secrets, the envelope, wraps, the keyring with its record, and the availability state machine. Knows
//! no device, file, socket, clock or random source: `now` and random bytes are arguments, and custody reaches it only as
//! an [`Authenticator`]. Everything above it (custody, store, service, rpc) is built from these types.
//!
//! The byte formats are written down in `docs/envelope-format.md`.
#![forbid(unsafe_code)]

pub mod annotation;
pub mod audit;
pub mod availability;
pub mod backup;
pub mod context;
pub mod envelope;
pub mod grant;
mod hex;
pub mod hpke_p256;
pub mod id;
pub mod keyring;
pub mod lease;
pub mod offline_copy;
pub mod reason;
pub mod record;
pub mod recovery;
pub mod recovery_key;
pub mod rescue;
pub mod scan;
pub mod schedule;
pub mod secret;
pub mod upstream;
pub mod upstream_state;
pub mod waiting_period;
pub mod wrap;

pub use context::{EnvelopeContext, WrapContext};
pub use id::{GenerationNumber, KeyId, KeyringId, NodeId, RootId, RootKind};
pub use record::Authenticator;
pub use secret::{Kek, KeyCommitment};
pub use upstream::FaultClass;
pub use wrap::WrappedKek;
