//! The admin service: what the command line asks of a running daemon. Peers are checked before a request comes here.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use futures_util::Stream;
use keystead_core::RootKind;
use keystead_core::availability::Availability;
use keystead_core::hpke_p256::P256PublicKey;
use keystead_core::keyring::{GenerationState, Keyring};
use keystead_core::wrap::{Construction, WrappedKek};
use keystead_wire::admin::v1::admin_server::Admin;
use keystead_wire::admin::v1::{
    Custody, Generation, GetStatusRequest, GetStatusResponse, ListGenerationsRequest, ListGenerationsResponse,
    RescueRequest, RescueResponse, RestartCustodianRequest, RestartCustodianResponse, Root, RotateProgress,
    RotateRequest, Sandbox,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::status_map::{rescue_error, rotation_error};
use crate::memory;
use crate::service::keys::Keys;
use crate::service::lifecycle::{CustodyState, Lifecycle};
use crate::service::rotation::RotationStep;

/// What the process knows and the rooms below do not.
#[derive(Debug, Clone)]
pub struct DaemonFacts {
    pub started: Instant,
    pub sandbox: Sandbox,
    pub custodian_restarts: Arc<AtomicU32>,
    /// Where metrics are served, if they are.
    pub metrics_address: String,
}

/// Serves the admin socket.
pub struct AdminService {
    lifecycle: Arc<Lifecycle>,
    facts: DaemonFacts,
}

impl AdminService {
    pub fn new(lifecycle: Arc<Lifecycle>, facts: DaemonFacts) -> Self {
        Self { lifecycle, facts }
    }

    fn custody(&self, state: CustodyState) -> Custody {
        let mut custody = Custody {
            state: state.name().to_owned(),
            detail: state.fault.as_ref().map(ToString::to_string).unwrap_or_default(),
            restarts: self.facts.custodian_restarts.load(Ordering::Relaxed),
            ..Custody::default()
        };
        if let Some(description) = state.description {
            custody.token_label = description.token.label;
            custody.token_serial = description.token.serial;
            custody.manufacturer = description.token.manufacturer;
            custody.model = description.token.model;
            custody.module = description.module;
            custody.mechanism = description.mechanism;
            custody.authentication = description.authentication;
            custody.device_operations = description.device_operations;
        }
        custody
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn get_status(&self, _request: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        let serving = self.lifecycle.keys().serving();
        let settings = self.lifecycle.settings();
        let mut status = GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            keyring: settings.keyring.to_string(),
            node: settings.node.to_string(),
            availability: match serving.availability {
                Availability::Sealed(_) => "sealed",
                Availability::Online => "online",
                Availability::Degraded { .. } => "degraded",
            }
            .into(),
            reason: serving.reason.clone(),
            custody: Some(self.custody(self.lifecycle.custody_state())),
            metrics_address: self.facts.metrics_address.clone(),
            uptime_seconds: self.facts.started.elapsed().as_secs(),
            sandbox: Some(Sandbox { keys_locked: memory::keys_locked(), ..self.facts.sandbox }),
            ..GetStatusResponse::default()
        };
        if let Some(keys) = &serving.keys {
            let keyring = &keys.keyring;
            status.epoch = keyring.epoch;
            status.store_revision = keyring.revision;
            status.generations = count(keyring.generations.len());
            status.generations_loaded = count(keys.loaded());
            if let Some(active) = keyring.active() {
                status.active_key_id = active.key_id.to_string();
                status.active_generation = active.number.0;
                status.durable_roots = active.wraps.iter().map(|wrap| wrap.root_kind.to_string()).collect();
            }
            status.warnings = warnings(keyring, &status);
            let faults = keys.slots().filter_map(|slot| Some((slot.generation.number, slot.fault()?)));
            status.warnings.extend(
                faults.map(|(number, fault)| format!("generation {number} cannot be opened by custody: {fault}")),
            );
            if self.lifecycle.is_in_debt() {
                status.warnings.push(
                    "a change of the key is not settled yet (the log says why): do not put older files back into the store, and \
                     do not restart if it can wait"
                        .into(),
                );
            }
        }
        Ok(Response::new(status))
    }

    async fn list_generations(
        &self,
        _request: Request<ListGenerationsRequest>,
    ) -> Result<Response<ListGenerationsResponse>, Status> {
        let serving = self.lifecycle.keys().serving();
        let keys = serving
            .keys
            .as_ref()
            .ok_or_else(|| Status::unavailable(format!("there is no authentic keyring: {}", serving.reason)))?;
        let generations = keys.keyring.generations.iter().map(|generation| describe(keys, generation)).collect();
        Ok(Response::new(ListGenerationsResponse { generations }))
    }

    type RotateStream = Pin<Box<dyn Stream<Item = Result<RotateProgress, Status>> + Send>>;

    async fn rotate(&self, _request: Request<RotateRequest>) -> Result<Response<Self::RotateStream>, Status> {
        let (sender, receiver) = mpsc::channel(4);
        let lifecycle = self.lifecycle.clone();
        // A task of its own: a client that hangs up does not stop a rotation half-way.
        tokio::spawn(async move {
            let progress = |step| {
                let step = match step {
                    RotationStep::Prepared => "prepared",
                    RotationStep::Verified => "verified",
                    // Told together with the generation, below.
                    RotationStep::Activated => return,
                };
                let _ = sender.try_send(Ok(RotateProgress { step: step.into(), generation: None }));
            };
            let outcome = lifecycle.rotate(progress).await;
            let last = outcome.map_err(|error| rotation_error(&error)).map(|generation| {
                let serving = lifecycle.keys().serving();
                let generation = serving.keys.as_ref().map(|keys| describe(keys, &generation));
                RotateProgress { step: "activated".into(), generation }
            });
            let _ = sender.send(last).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn rescue(&self, request: Request<RescueRequest>) -> Result<Response<RescueResponse>, Status> {
        let key = P256PublicKey::from_pem(&request.get_ref().recovery_key)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let rescued = self.lifecycle.rescue(&key).map_err(|error| rescue_error(&error))?;
        Ok(Response::new(RescueResponse {
            file: rescued.file.to_bytes(),
            rescued: rescued.file.generations.iter().map(|generation| generation.key_id.to_string()).collect(),
            not_loaded: rescued.not_loaded.iter().map(ToString::to_string).collect(),
        }))
    }

    async fn restart_custodian(
        &self,
        _request: Request<RestartCustodianRequest>,
    ) -> Result<Response<RestartCustodianResponse>, Status> {
        let lifecycle = self.lifecycle.clone();
        // A task of its own: a client that hangs up leaves no custodian half replaced.
        let state = tokio::spawn(async move { lifecycle.restart_custodian().await })
            .await
            .map_err(|_| Status::internal("the restart was broken off"))?;
        Ok(Response::new(RestartCustodianResponse { custody: Some(self.custody(state)) }))
    }
}

fn describe(keys: &Keys, generation: &keystead_core::keyring::Generation) -> Generation {
    let slot = keys.slot_of(generation);
    Generation {
        number: generation.number.0,
        key_id: generation.key_id.to_string(),
        state: match generation.state {
            GenerationState::Prepared => "prepared",
            GenerationState::Active => "active",
            GenerationState::Retired => "retired",
            GenerationState::PendingDeletion => "pending-deletion",
            GenerationState::Destroyed => "destroyed",
        }
        .into(),
        created: generation.created,
        activated: generation.activated.unwrap_or(0),
        loaded: slot.is_some_and(|slot| slot.is_loaded()),
        roots: generation.wraps.iter().map(root).collect(),
        encrypts: slot.map_or(0, |slot| slot.encrypts.load(Ordering::Relaxed)),
        decrypts: slot.map_or(0, |slot| slot.decrypts.load(Ordering::Relaxed)),
        // Retired generations of a recovered store may carry more roots than an annotation holds.
        annotation: generation.annotation().unwrap_or_default(),
    }
}

fn root(wrap: &WrappedKek) -> Root {
    let construction = match Construction::parse(&wrap.bytes) {
        Ok(Construction::AesGcm { .. }) => "aes-gcm",
        Ok(Construction::HpkeP256 { .. }) => "hpke-p256",
        Ok(Construction::RsaOaep { .. }) => "rsa-oaep",
        Ok(Construction::TpmEcdh { .. }) => "tpm-ecdh-p256",
        Ok(Construction::TpmRsaOaep { .. }) => "tpm-rsa-oaep",
        Err(_) => "unknown",
    };
    Root { kind: wrap.root_kind.to_string(), id: wrap.root_id.to_string(), construction: construction.into() }
}

/// What an operator should know although everything works.
fn warnings(keyring: &Keyring, status: &GetStatusResponse) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(active) = keyring.active()
        && active.wraps.len() == 1
        && active.wraps.iter().all(|wrap| wrap.root_kind != RootKind::Recovery)
    {
        warnings.push(
            "the keyring hangs on one durable root: if this token is lost, every Secret is lost. \
             Only a new keyring can have a second one: `keystead init --recovery PUBKEY`"
                .into(),
        );
    }
    if status.custody.as_ref().is_some_and(|custody| custody.manufacturer.starts_with("SoftHSM")) {
        warnings.push(
            "SoftHSM keeps its keys in files: whoever copies them with the PIN has the keys, and restoring them \
             undoes rollback protection. Use a hardware token in production"
                .into(),
        );
    }
    if status.sandbox.as_ref().is_some_and(|sandbox| !sandbox.keys_locked) {
        warnings.push("key pages are not locked into memory: raise LimitMEMLOCK (ulimit -l)".into());
    }
    if status.sandbox.as_ref().is_some_and(|sandbox| sandbox.server_can_read_pin) {
        warnings.push("the server process can read the PIN file: enable sandbox.landlock".into());
    }
    if keyring.rotation.is_some() {
        warnings.push("a rotation was cut off; it is settled at the next start or rotation".into());
    }
    warnings
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
