//! The commands that are more than a client: what starts processes, opens the token or makes a key. The only file of the
//! command line that names the composition roots.

use std::path::PathBuf;

use super::exit::{Exit, Failure};
use crate::config::{Settings, Source};
use crate::custody::contract::TokenSummary;

/// What `init` is asked for.
#[derive(Debug, Clone)]
pub struct InitOrder {
    /// A public key in PEM; `None` is `--no-recovery`.
    pub recovery: Option<PathBuf>,
    pub if_needed: bool,
    pub abandon_lost_store: bool,
}

/// What `init` has made, or found made.
#[derive(Debug, Clone)]
pub struct InitOutcome {
    /// False with `--if-needed` on a key that was there.
    pub created: bool,
    pub keyring: String,
    pub node: String,
    pub key_id: String,
    pub generation: u64,
    pub token_label: String,
    pub token_serial: String,
    pub mechanism: String,
    /// Kinds, as `pkcs11`, `recovery`.
    pub durable_roots: Vec<String>,
}

pub fn init(_order: &InitOrder, _settings: &Settings, _source: &Source) -> Result<InitOutcome, Failure> {
    Err(missing())
}

/// Returns when the daemon has ended as asked.
pub fn serve(_settings: &Settings, _source: &Source) -> Result<(), Failure> {
    Err(missing())
}

pub fn server() -> Result<(), Failure> {
    Err(missing())
}

pub fn custodian() -> Result<(), Failure> {
    Err(missing())
}

/// Every token of the module, asked of a custodian of its own: the module stays out of this process.
pub fn list_tokens(_settings: &Settings, _source: &Source) -> Result<Vec<TokenSummary>, Failure> {
    Err(missing())
}

fn missing() -> Failure {
    Failure::new(Exit::Failed, "this build has no daemon")
}
