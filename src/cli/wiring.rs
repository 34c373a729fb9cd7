//! The commands that are more than a client: what starts processes, opens the token or makes a key. The only file of the
//! command line that names the composition roots.

use std::path::{Path, PathBuf};

use keystead_core::hpke_p256::P256PublicKey;

use super::exit::{Exit, Failure};
use crate::config::{Settings, Source};
use crate::custody::contract::TokenSummary;
use crate::process::once::with_custodian;
use crate::process::start;
use crate::service::init::{self, InitError, InitRequest, Initialized};
use crate::store::Store;

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

/// Makes the key. With `if_needed`, a key that is there already is shown instead.
pub fn init(order: &InitOrder, settings: &Settings, source: &Source) -> Result<InitOutcome, Failure> {
    let request = InitRequest {
        keyring: settings.keyring.clone(),
        node: settings.node.clone(),
        recovery: order.recovery.as_deref().map(recovery_key).transpose()?,
        abandon_lost_store: order.abandon_lost_store,
    };
    let store = match Store::open(&settings.store.path) {
        // A daemon that serves has the store open: then there is a key.
        Err(crate::store::StoreError::InUse(_)) if order.if_needed => {
            return Ok(in_use(settings));
        }
        opened => opened.map_err(failed)?,
    };
    let config = start::config_copy(source);
    let outcome = with_custodian(settings, &config, |custody| async move {
        if order.if_needed {
            init::init_if_needed(request, store, &custody).await
        } else {
            init::init(request, store, &custody).await
        }
    });
    let initialized = outcome.map_err(failed)?.map_err(|error: InitError| failed(error))?;
    Ok(described(&initialized))
}

/// What can be said without opening the store: `keystead status` says the rest.
fn in_use(settings: &Settings) -> InitOutcome {
    InitOutcome {
        created: false,
        keyring: settings.keyring.to_string(),
        node: settings.node.to_string(),
        key_id: String::new(),
        generation: 0,
        token_label: String::new(),
        token_serial: String::new(),
        mechanism: String::new(),
        durable_roots: Vec::new(),
    }
}

fn described(initialized: &Initialized) -> InitOutcome {
    let keyring = &initialized.keyring;
    let active = keyring.active();
    InitOutcome {
        created: initialized.created,
        keyring: keyring.keyring.to_string(),
        node: keyring.node.to_string(),
        key_id: active.map(|generation| generation.key_id.to_string()).unwrap_or_default(),
        generation: active.map_or(0, |generation| generation.number.0),
        token_label: initialized.token.token.label.clone(),
        token_serial: initialized.token.token.serial.clone(),
        mechanism: initialized.token.mechanism.clone(),
        durable_roots: active
            .map(|generation| generation.wraps.iter().map(|wrap| wrap.root_kind.to_string()).collect())
            .unwrap_or_default(),
    }
}

fn recovery_key(path: &Path) -> Result<P256PublicKey, Failure> {
    let pem = std::fs::read_to_string(path)
        .map_err(|error| Failure::new(Exit::Usage, format!("cannot read {}: {error}", path.display())))?;
    P256PublicKey::from_pem(&pem).map_err(|error| Failure::new(Exit::Usage, format!("{}: {error}", path.display())))
}

/// Runs the daemon; returns when it has ended as asked.
pub fn serve(settings: &Settings, source: &Source) -> Result<(), Failure> {
    start::serve(settings, source).map_err(|error| Failure::from_error(Exit::Failed, &error))
}

/// Every token of the module, asked of a custodian of its own: the module stays out of this process.
pub fn list_tokens(settings: &Settings, source: &Source) -> Result<Vec<TokenSummary>, Failure> {
    let config = start::config_copy(source);
    let outcome = with_custodian(settings, &config, |custody| async move { custody.list_tokens().await });
    outcome.map_err(failed)?.map_err(failed)
}

fn failed(error: impl std::error::Error) -> Failure {
    Failure::from_error(Exit::Failed, &error)
}
