//! The commands that are more than a client: what starts processes, opens the token or makes a key. The only file of the
//! command line that names the composition roots.

use std::path::{Path, PathBuf};

use keystead_core::hpke_p256::P256PublicKey;
use keystead_core::recovery::Sighting;
use keystead_core::recovery_key::RecoveryKey;
use keystead_core::{GenerationNumber, KeyCommitment};

use super::exit::{Exit, Failure};
use super::remedy::Remedy;
use super::status;
use crate::config::{Settings, Source, UpstreamTable};
use crate::custody::contract::TokenSummary;
#[cfg(feature = "cloud")]
use crate::process::cloud::{self, CloudError};
use crate::process::once::with_custodian;
use crate::process::start;
use crate::service::init::{self, InitCloud, InitError, InitRequest, Initialized};
use crate::service::recover::{self, Openers, RebuildRequest, Rebuilt, RecoverError, Summary};
#[cfg(feature = "cloud")]
use crate::service::upstream_check::{Step, check};
use crate::store::{Store, StoreError, writable_by_others};

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
        cloud: settings.upstream.as_ref().map(init_cloud).transpose()?,
    };
    let config = start::config_copy(source);
    let outcome = with_custodian(settings, &config, |custody| async move {
        guarded(&settings.store.path)?;
        // In here, for it may have to be made, and by the server's user.
        let store = match Store::open(&settings.store.path) {
            Err(StoreError::InUse(_)) if order.if_needed => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        let initialized = if order.if_needed {
            init::init_if_needed(request, store, &custody).await
        } else {
            init::init(request, store, &custody).await
        };
        initialized.map(Some).map_err(|error: InitError| failed(error))
    });
    match outcome.map_err(failed)?? {
        Some(initialized) => Ok(described(&initialized)),
        None => served(settings),
    }
}

/// The cloud key that is to be the durable root.
#[cfg(feature = "cloud")]
fn init_cloud(table: &UpstreamTable) -> Result<InitCloud, Failure> {
    cloud::init_parts(table).map_err(|error| Failure::from_error(Exit::Usage, &error))
}

#[cfg(not(feature = "cloud"))]
fn init_cloud(_: &UpstreamTable) -> Result<InitCloud, Failure> {
    let failure = Failure::new(Exit::Usage, "the configuration has an [upstream], and this build has no cloud in it");
    Err(failure.next("install a build with the feature `cloud`, or take [upstream] out"))
}

/// The key of the daemon that has the store open.
fn served(settings: &Settings) -> Result<InitOutcome, Failure> {
    let status = status::ask(&settings.admin.socket.path)?;
    if status.active_key_id.is_empty() {
        let message = format!("the daemon that has the store open serves no key: {}", status.reason);
        return Err(Failure::new(Exit::Failed, message).next("`keystead status` says what to do"));
    }
    let custody = status.custody.unwrap_or_default();
    Ok(InitOutcome {
        created: false,
        keyring: status.keyring,
        node: status.node,
        key_id: status.active_key_id,
        generation: status.active_generation,
        token_label: custody.token_label,
        token_serial: custody.token_serial,
        mechanism: custody.mechanism,
        durable_roots: status.durable_roots,
    })
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

/// What `recover` is asked for.
#[derive(Debug)]
pub struct RecoverOrder {
    pub sightings: Vec<Sighting>,
    pub private: Option<RecoveryKey>,
    pub trusted: Vec<KeyCommitment>,
    pub dry_run: bool,
    /// A public key in PEM; `None` is `--no-recovery`.
    pub recovery: Option<PathBuf>,
    pub epoch_seen: u64,
    pub number_seen: GenerationNumber,
    pub replace_store: bool,
}

/// What `recover` found, and the store it wrote.
#[derive(Debug)]
pub struct RecoverOutcome {
    pub findings: Summary,
    pub dry_run: bool,
    /// `None` after a dry run, or when nothing opened.
    pub store: Option<RecoveredStore>,
}

#[derive(Debug)]
pub struct RecoveredStore {
    pub keyring: String,
    pub key_id: String,
    pub generation: u64,
    pub token_label: String,
    pub token_serial: String,
    pub durable_roots: Vec<String>,
    pub set_aside: Option<PathBuf>,
    /// The record that was replaced said so.
    pub disabled: bool,
}

/// Opens what can be opened and, unless it is a dry run, writes the store.
pub fn recover(order: RecoverOrder, settings: &Settings, source: &Source) -> Result<RecoverOutcome, Failure> {
    let RecoverOrder { sightings, private, trusted, .. } = order;
    if order.dry_run && private.is_some() {
        // Offline: no token is asked for.
        let openers = Openers { custody: None, upstream: None, private: private.as_ref(), trusted: &trusted };
        let findings = super::connection::runtime()?.block_on(recover::open(sightings, &openers)).map_err(failed)?;
        return Ok(RecoverOutcome { findings: findings.summary(), dry_run: true, store: None });
    }
    let recovery = order.recovery.as_deref().map(recovery_key).transpose()?;
    let request = RebuildRequest {
        keyring: settings.keyring.clone(),
        node: settings.node.clone(),
        recovery,
        epoch_seen: order.epoch_seen,
        number_seen: order.number_seen,
        replace_store: order.replace_store,
    };
    let config = start::config_copy(source);
    let cloud = settings.upstream.as_ref().map(init_cloud).transpose()?;
    let outcome = with_custodian(settings, &config, |custody| async move {
        if !order.dry_run {
            guarded(&settings.store.path)?;
        }
        // In here, for it may have to be made, and by the server's user.
        let store = if order.dry_run { None } else { Some(Store::open(&settings.store.path).map_err(failed)?) };
        if let Some(store) = &store
            && !store.is_empty()
            && !order.replace_store
        {
            // Before anything is asked of the token.
            return Err(failed(RecoverError::StoreIsThere));
        }
        let upstream = cloud.as_ref().map(|cloud| &*cloud.upstream);
        let openers = Openers { custody: Some(&custody), upstream, private: private.as_ref(), trusted: &trusted };
        let findings = recover::open(sightings, &openers).await.map_err(failed)?;
        let summary = findings.summary();
        let rebuilt = match &store {
            Some(store) if !summary.opened.is_empty() => {
                Some(recover::rebuild(&request, findings, store, &custody, cloud.as_ref()).await.map_err(failed)?)
            }
            _ => None,
        };
        Ok((summary, rebuilt))
    });
    let (findings, rebuilt) = outcome.map_err(failed)??;
    Ok(RecoverOutcome { findings, dry_run: order.dry_run, store: rebuilt.map(recovered_store) })
}

fn recovered_store(rebuilt: Rebuilt) -> RecoveredStore {
    let active = rebuilt.keyring.active();
    RecoveredStore {
        keyring: format!("{} on node {}", rebuilt.keyring.keyring, rebuilt.keyring.node),
        key_id: active.map(|generation| generation.key_id.to_string()).unwrap_or_default(),
        generation: active.map_or(0, |generation| generation.number.0),
        token_label: rebuilt.token.token.label,
        token_serial: rebuilt.token.token.serial,
        durable_roots: active
            .map(|generation| generation.wraps.iter().map(|wrap| wrap.root_kind.to_string()).collect())
            .unwrap_or_default(),
        set_aside: rebuilt.set_aside,
        disabled: rebuilt.keyring.disabled.is_some(),
    }
}

fn recovery_key(path: &Path) -> Result<P256PublicKey, Failure> {
    const NEXT: &str = "name the file that `keystead recovery keygen --public-out` wrote";
    let pem = std::fs::read_to_string(path)
        .map_err(|error| Failure::new(Exit::Usage, format!("cannot read {}: {error}", path.display())).next(NEXT))?;
    P256PublicKey::from_pem(&pem)
        .map_err(|error| Failure::new(Exit::Usage, format!("{}: {error}", path.display())).next(NEXT))
}

/// What `upstream check` found.
#[cfg(feature = "cloud")]
#[derive(Debug)]
pub struct Checked {
    pub provider: String,
    pub key: String,
    pub endpoint: String,
    pub steps: Vec<Step>,
}

/// Tries the way to the cloud key from this process, with the files that the daemon would read.
#[cfg(feature = "cloud")]
pub fn check_upstream(settings: &Settings) -> Result<Checked, Failure> {
    let Some(table) = &settings.upstream else {
        let failure = Failure::new(Exit::Usage, "the configuration has no [upstream]: there is no cloud to ask");
        return Err(failure.next("docs/configuration.md has the keys, hsm-configs/cloud-*.toml whole examples"));
    };
    let unusable = |error: &CloudError| Failure::from_error(Exit::Usage, error);
    let upstream = cloud::client(table, cloud::command_clock()).map_err(|error| unusable(&error))?;
    let endpoint = upstream.identity().endpoint.clone();
    let hop = cloud::first_hop(table, &endpoint).map_err(|error| unusable(&error))?;
    let steps = super::connection::runtime()?.block_on(check(upstream.as_ref(), &hop, &settings.keyring));
    Ok(Checked { provider: upstream.identity().provider.to_owned(), key: table.key.clone(), endpoint, steps })
}

/// Runs the daemon; returns when it has ended as asked.
pub fn serve(settings: &Settings, source: &Source) -> Result<(), Failure> {
    start::serve(settings, source).map_err(|error| {
        Failure::from_error(Exit::Failed, &error).next("`keystead doctor` looks at everything that the daemon needs")
    })
}

/// Every token of the module, asked of a custodian of its own: the module stays out of this process.
pub fn list_tokens(settings: &Settings, source: &Source) -> Result<Vec<TokenSummary>, Failure> {
    let config = start::config_copy(source);
    let outcome = with_custodian(settings, &config, |custody| async move { custody.list_tokens().await });
    outcome.map_err(failed)?.map_err(failed)
}

/// Where others may write, a record can be taken away and an old one put back.
fn guarded(folder: &Path) -> Result<(), Failure> {
    if !writable_by_others(folder).unwrap_or(false) {
        return Ok(());
    }
    let message = format!("others than its owner may write to the store folder {}", folder.display());
    Err(Failure::new(Exit::Failed, message).next(format!("`chmod 0700 {}`, then run it again", folder.display())))
}

fn failed(error: impl Remedy) -> Failure {
    error.failure()
}
