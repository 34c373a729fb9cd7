//! Configuration: one TOML file, read once, made into the settings that each room owns.
//!
//! [`Source`] finds and reads the file, [`raw`] is its schema, [`Settings`] is what the rooms get: defaults filled in, paths
//! absolute, names resolved, every value within its bounds. Only the composition roots and the command line call this;
//! the rooms do not know that a file exists. The keys are described for people in `docs/configuration.md`.

mod accounts;
mod audit;
mod builder;
mod check;
mod custody;
mod effective;
mod error;
mod holders;
mod live;
mod node;
mod raw;
pub mod roles;
mod rotation;
mod settings;
mod site;
mod source;
pub mod units;
mod upstream;

pub use check::{Finding, Severity, check};
pub use effective::{Effective, Origin};
pub use error::{ConfigError, Fault};
pub use holders::Holders;
pub use live::{Change, Judged, LIVE_KEYS, Live, judge, unchanged};
pub use settings::{AdminSettings, KmsSettings, SandboxSettings, Settings, StoreSettings};
pub use site::Site;
pub use source::Source;
pub use upstream::{CredentialSource, Network, OnKeyVersion, Price, UpstreamKind, UpstreamTable};
