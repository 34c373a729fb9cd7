//! The admin service: what the command line asks of a running daemon. Peers are checked before a request comes here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use keystead_core::hpke_p256::P256PublicKey;
use keystead_core::keyring::Keyring;
use keystead_wire::admin::v1::admin_server::Admin;
use keystead_wire::admin::v1::{
    AuditLine, CancelDeletionRequest, CancelDeletionResponse, ChangeRootsRequest, DisableRequest, DisableResponse,
    EnableRequest, EnableResponse, ExtendLeaseRequest, ExtendLeaseResponse, ForgetBackupRequest, ForgetBackupResponse,
    Generation, GetStatusRequest, GetStatusResponse, ListBackupsRequest, ListBackupsResponse, ListGenerationsRequest,
    ListGenerationsResponse, ListRootsRequest, ListRootsResponse, QueryAuditRequest, RecordScanRequest,
    RecordScanResponse, RegisterBackupRequest, RegisterBackupResponse, ReloadRequest, ReloadResponse, RescueRequest,
    RescueResponse, RestartCustodianRequest, RestartCustodianResponse, RestoreStoreRequest, RestoreStoreResponse,
    RotateProgress, RotateRequest, Sandbox, ScheduleDeletionRequest, ScheduleDeletionResponse, VerifyAuditRequest,
    VerifyAuditResponse,
};
use serde_json::json;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::audited::AdminAudit;
use super::reload::{self, Reloads};
use super::status_map::{extend_error, rescue_error, scan_error};
use super::{backups, deletion, disable, restore, roots, scan, trail};
use crate::service::custody_state::CustodyState;
use crate::service::keys::Keys;
use crate::service::lifecycle::Lifecycle;
use crate::service::rescue::Rescued;
use crate::service::spending::Spending;

/// What the process knows and the rooms below do not.
#[derive(Debug, Clone)]
pub struct DaemonFacts {
    pub started: Instant,
    pub sandbox: Sandbox,
    pub custodian_restarts: Arc<AtomicU32>,
    /// Where metrics are served, if they are.
    pub metrics_address: String,
    /// What the cloud was called for; `None` in the local profile.
    pub spending: Option<Arc<Spending>>,
    /// The site wants an audit trail, and there is none.
    pub unrecorded: bool,
    pub configuration: Arc<dyn Reloads>,
}

/// Serves the admin socket.
pub struct AdminService {
    pub(super) lifecycle: Arc<Lifecycle>,
    pub(super) facts: DaemonFacts,
    pub(super) audit: AdminAudit,
}

impl AdminService {
    pub fn new(lifecycle: Arc<Lifecycle>, facts: DaemonFacts, audit: AdminAudit) -> Self {
        Self { lifecycle, facts, audit }
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn get_status(&self, _request: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        Ok(Response::new(self.status()))
    }

    async fn list_generations(
        &self,
        _request: Request<ListGenerationsRequest>,
    ) -> Result<Response<ListGenerationsResponse>, Status> {
        let serving = self.lifecycle.keys().serving();
        let keys = serving.keys.as_ref().ok_or_else(|| no_keyring(&serving.reason))?;
        let mut generations: Vec<_> = keys.keyring.generations.iter().map(|each| describe(keys, each)).collect();
        for (shown, generation) in generations.iter_mut().zip(&keys.keyring.generations) {
            if let Some(why) = serving.closed_to(generation) {
                shown.fault.clone_from(&why.reason);
            }
        }
        for report in self.lifecycle.deletions() {
            let waiting = generations.iter_mut().find(|each| each.number == report.generation.number.0);
            waiting.into_iter().for_each(|each| each.deletion = Some(deletion::shown(&report)));
        }
        Ok(Response::new(ListGenerationsResponse { generations }))
    }

    async fn list_roots(&self, _request: Request<ListRootsRequest>) -> Result<Response<ListRootsResponse>, Status> {
        let serving = self.lifecycle.keys().serving();
        let keys = serving.keys.as_ref().ok_or_else(|| no_keyring(&serving.reason))?;
        Ok(Response::new(roots::list(&keys.keyring)))
    }

    async fn rotate(&self, request: Request<RotateRequest>) -> Result<Response<BoxStream<RotateProgress>>, Status> {
        let force = roots::forced(&request.get_ref().force)?;
        let details = force.as_ref().map_or_else(|| json!({}), |reason| json!({"force": reason.to_string()}));
        let audited = self.audit.intent("rotate", &request, details).await?;
        Ok(roots::follow(self.lifecycle.clone(), audited, |lifecycle, progress| async move {
            lifecycle.rotate(force, progress).await
        }))
    }

    async fn change_roots(
        &self,
        request: Request<ChangeRootsRequest>,
    ) -> Result<Response<BoxStream<RotateProgress>>, Status> {
        let (change, force, details) = roots::change(request.get_ref())?;
        let audited = self.audit.intent("change-roots", &request, details).await?;
        Ok(roots::follow(self.lifecycle.clone(), audited, |lifecycle, progress| async move {
            lifecycle.change_roots(change, force, progress).await
        }))
    }

    async fn rescue(&self, request: Request<RescueRequest>) -> Result<Response<RescueResponse>, Status> {
        let key = P256PublicKey::from_pem(&request.get_ref().recovery_key)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let audited = self.audit.intent("rescue", &request, json!({"to": key.recovery_root_id().to_string()})).await?;
        let rescued = self.lifecycle.rescue(&key).map_err(|error| rescue_error(&error));
        let count = |rescued: &Rescued| json!({"generations": rescued.file.generations.len()});
        let rescued = audited.outcome(rescued, count).await?;
        Ok(Response::new(RescueResponse {
            file: rescued.file.to_bytes(),
            rescued: rescued.file.generations.iter().map(|generation| generation.key_id.to_string()).collect(),
            not_loaded: rescued.not_loaded.iter().map(ToString::to_string).collect(),
        }))
    }

    async fn record_scan(&self, request: Request<RecordScanRequest>) -> Result<Response<RecordScanResponse>, Status> {
        // What is no scan at all is no action either.
        let findings = scan::findings(request.get_ref().clone(), self.lifecycle.settings().keyring.as_str())?;
        let audited = self.audit.intent("record-scan", &request, json!({})).await?;
        let lifecycle = self.lifecycle.clone();
        // A task of its own: a client that hangs up leaves nothing half settled.
        let kept = tokio::spawn(async move { lifecycle.record_scan(findings).await })
            .await
            .map_err(|_| Status::internal("the change was broken off"))
            .and_then(|kept| kept.map_err(|error| scan_error(&error)));
        let keyring = audited.outcome(kept, |keyring: &Keyring| json!({"store_revision": keyring.revision})).await?;
        Ok(Response::new(RecordScanResponse { scan: scan::shown(&keyring) }))
    }

    async fn restart_custodian(
        &self,
        request: Request<RestartCustodianRequest>,
    ) -> Result<Response<RestartCustodianResponse>, Status> {
        let audited = self.audit.intent("restart-custodian", &request, json!({})).await?;
        let lifecycle = self.lifecycle.clone();
        // A task of its own: a client that hangs up leaves no custodian half replaced.
        let state = tokio::spawn(async move { lifecycle.restart_custodian().await })
            .await
            .map_err(|_| Status::internal("the restart was broken off"));
        let state = audited.outcome(state, |state: &CustodyState| json!({"custody": state.name()})).await?;
        Ok(Response::new(RestartCustodianResponse { custody: Some(self.custody(state)) }))
    }

    async fn extend_lease(
        &self,
        request: Request<ExtendLeaseRequest>,
    ) -> Result<Response<ExtendLeaseResponse>, Status> {
        let audited = self.audit.intent("extend-lease", &request, json!({})).await?;
        let lifecycle = self.lifecycle.clone();
        let grant = request.into_inner().grant;
        // A task of its own: a client that hangs up does not leave a grant half applied.
        let left = tokio::spawn(async move { lifecycle.extend_lease(&grant).await })
            .await
            .map_err(|_| Status::internal("the grant was broken off"))
            .and_then(|left| left.map_err(|error| extend_error(&error)));
        let left = audited.outcome(left, |left| json!({"lease_remaining_seconds": left.as_secs()})).await?;
        Ok(Response::new(ExtendLeaseResponse { lease_remaining_seconds: left.as_secs() }))
    }

    async fn reload(&self, request: Request<ReloadRequest>) -> Result<Response<ReloadResponse>, Status> {
        reload::reload(&self.audit, &self.facts.configuration, request).await
    }

    async fn schedule_deletion(
        &self,
        request: Request<ScheduleDeletionRequest>,
    ) -> Result<Response<ScheduleDeletionResponse>, Status> {
        deletion::schedule(&self.lifecycle, &self.audit, request).await.map(Response::new)
    }

    async fn cancel_deletion(
        &self,
        request: Request<CancelDeletionRequest>,
    ) -> Result<Response<CancelDeletionResponse>, Status> {
        deletion::cancel(&self.lifecycle, &self.audit, request).await.map(Response::new)
    }

    async fn register_backup(
        &self,
        request: Request<RegisterBackupRequest>,
    ) -> Result<Response<RegisterBackupResponse>, Status> {
        backups::register(&self.lifecycle, &self.audit, request).await.map(Response::new)
    }

    async fn list_backups(&self, _: Request<ListBackupsRequest>) -> Result<Response<ListBackupsResponse>, Status> {
        backups::list(&self.lifecycle).map(Response::new)
    }

    async fn forget_backup(
        &self,
        request: Request<ForgetBackupRequest>,
    ) -> Result<Response<ForgetBackupResponse>, Status> {
        backups::forget(&self.lifecycle, &self.audit, request).await.map(Response::new)
    }

    async fn disable(&self, request: Request<DisableRequest>) -> Result<Response<DisableResponse>, Status> {
        disable::disable(&self.lifecycle, &self.audit, request).await
    }

    async fn restore_store(
        &self,
        request: Request<RestoreStoreRequest>,
    ) -> Result<Response<RestoreStoreResponse>, Status> {
        restore::restore(&self.lifecycle, &self.audit, request).await
    }

    async fn enable(&self, request: Request<EnableRequest>) -> Result<Response<EnableResponse>, Status> {
        disable::enable(&self.lifecycle, &self.audit, request).await
    }

    async fn verify_audit(
        &self,
        _request: Request<VerifyAuditRequest>,
    ) -> Result<Response<VerifyAuditResponse>, Status> {
        trail::verify(&self.audit).await
    }

    async fn query_audit(&self, request: Request<QueryAuditRequest>) -> Result<Response<BoxStream<AuditLine>>, Status> {
        trail::query(&self.audit, request.into_inner()).await
    }
}

fn no_keyring(reason: &str) -> Status {
    Status::unavailable(format!("there is no authentic keyring: {reason}"))
}

pub(super) fn describe(keys: &Keys, generation: &keystead_core::keyring::Generation) -> Generation {
    let slot = keys.slot_of(generation);
    Generation {
        number: generation.number.0,
        key_id: generation.key_id.to_string(),
        state: generation.state.to_string(),
        created: generation.created,
        activated: generation.activated.unwrap_or(0),
        loaded: slot.is_some_and(|slot| slot.is_loaded()),
        roots: generation.wraps.iter().map(roots::root).collect(),
        encrypts: slot.map_or(0, |slot| slot.encrypts.load(Ordering::Relaxed)),
        decrypts: slot.map_or(0, |slot| slot.decrypts.load(Ordering::Relaxed)),
        // Retired generations of a recovered store may carry more roots than an annotation holds.
        annotation: generation.annotation().unwrap_or_default(),
        objects: keys.keyring.scan.as_ref().and_then(|scan| scan.objects(generation.number)),
        forced: generation.forced.as_ref().map(ToString::to_string).unwrap_or_default(),
        deletion: None,
        tombstone: generation.tombstone.as_ref().map(deletion::tombstone),
        fault: slot.and_then(|slot| slot.fault()).unwrap_or_default(),
    }
}
