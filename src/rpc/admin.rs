//! The admin service: what the command line asks of a running daemon. Peers are checked before a request comes here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

use keystead_core::RootKind;
use keystead_core::hpke_p256::P256PublicKey;
use keystead_core::keyring::Keyring;
use keystead_wire::admin::v1::admin_server::Admin;
use keystead_wire::admin::v1::{
    Audit, AuditLine, CancelDeletionRequest, CancelDeletionResponse, ChangeRootsRequest, CustodianProcess, Custody,
    DisableRequest, DisableResponse, EnableRequest, EnableResponse, ExtendLeaseRequest, ExtendLeaseResponse,
    ForgetBackupRequest, ForgetBackupResponse, Generation, GetStatusRequest, GetStatusResponse, ListBackupsRequest,
    ListBackupsResponse, ListGenerationsRequest, ListGenerationsResponse, ListRootsRequest, ListRootsResponse,
    QueryAuditRequest, RecordScanRequest, RecordScanResponse, RegisterBackupRequest, RegisterBackupResponse,
    ReloadRequest, ReloadResponse, RescueRequest, RescueResponse, RestartCustodianRequest, RestartCustodianResponse,
    RestoreStoreRequest, RestoreStoreResponse, RotateProgress, RotateRequest, Sandbox, ScheduleDeletionRequest,
    ScheduleDeletionResponse, Upstream, VerifyAuditRequest, VerifyAuditResponse,
};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::audited::AdminAudit;
use super::reload::{self, Reloads};
use super::status_map::{extend_error, rescue_error, scan_error};
use super::{backups, deletion, disable, outlook, restore, roots, rotation, scan, upstream};
use crate::audit::Trail;
use crate::audit::query::{Filter, query_last};
use crate::audit::verify::{Verified, VerifyError};
use crate::memory;
use crate::service::explain::explain;
use crate::service::keys::Keys;
use crate::service::lifecycle::{CustodyState, Lifecycle};
use crate::service::notices;
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
    lifecycle: Arc<Lifecycle>,
    facts: DaemonFacts,
    audit: AdminAudit,
}

impl AdminService {
    pub fn new(lifecycle: Arc<Lifecycle>, facts: DaemonFacts, audit: AdminAudit) -> Self {
        Self { lifecycle, facts, audit }
    }

    /// The daemon as it is now. Blocks on nothing.
    pub fn status(&self) -> GetStatusResponse {
        let serving = self.lifecycle.keys().serving();
        let settings = self.lifecycle.settings();
        let mut status = GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            keyring: settings.keyring.to_string(),
            node: settings.node.to_string(),
            availability: disable::word(&serving.availability).into(),
            disabled: self.lifecycle.disabled().map(disable::shown),
            reason: serving.reason.clone(),
            custody: Some(self.custody(self.lifecycle.custody_state())),
            metrics_address: self.facts.metrics_address.clone(),
            uptime_seconds: self.facts.started.elapsed().as_secs(),
            sandbox: Some(Sandbox { keys_locked: memory::keys_locked(), ..self.facts.sandbox }),
            audit: self.audit.trail().map(audit),
            configuration: Some(reload::shown(self.facts.configuration.loaded())),
            rotation: self.lifecycle.rotation_outlook().as_ref().map(rotation::shown),
            ..GetStatusResponse::default()
        };
        status.warnings.extend(status.audit.as_ref().filter(|audit| audit.failing).map(|audit| {
            let meanwhile =
                if audit.stops { "what cannot be recorded is refused" } else { "what is done is not recorded" };
            format!("{}: {meanwhile}. Free some space; the log says why", notices::UNWRITTEN)
        }));
        status.warnings.extend(status.rotation.iter().flat_map(rotation::warnings));
        if self.facts.unrecorded {
            status.warnings.push(notices::UNRECORDED.into());
        }
        if status.disabled.as_ref().is_some_and(|disabled| !disabled.recorded) {
            status.warnings.push(notices::DISABLED_UNRECORDED.into());
        }
        if let Some(keys) = &serving.keys {
            let keyring = &keys.keyring;
            status.epoch = keyring.epoch;
            status.store_revision = keyring.revision;
            status.generations = count(keyring.alive().count());
            status.generations_loaded = count(keys.loaded());
            if let Some(active) = keyring.active() {
                status.active_key_id = active.key_id.to_string();
                status.active_generation = active.number.0;
                status.durable_roots = active.wraps.iter().map(|wrap| wrap.root_kind.to_string()).collect();
            }
            status.scan = scan::shown(keyring);
            status.deletions = self.lifecycle.deletions().iter().map(deletion::shown).collect();
            let deletions = deletion::warnings(keyring, &status.deletions);
            status.warnings.extend(deletions);
            let known = warnings(keyring, &status);
            status.warnings.extend(known);
            if let Some(shut) = roots::closed(keyring, serving.cloud_closed.as_ref()) {
                // Where nothing needs them any more it is a fact, and no risk.
                status.warnings.extend(keyring.rewritten().is_err().then(|| shut.clone()));
                status.shut = shut;
            }
            status.warnings.extend(roots::disagreement(keyring, self.lifecycle.configured_root()));
            let open = keys.slots().filter(|slot| serving.closed_to(&slot.generation).is_none());
            let faults = open.filter_map(|slot| Some((slot.generation.number, slot.fault()?)));
            status
                .warnings
                .extend(faults.map(|(number, fault)| format!("generation {number} cannot be opened: {fault}")));
            if self.lifecycle.is_in_debt() {
                status.warnings.push(notices::UNSETTLED.into());
            }
        }
        status.upstream = self.facts.spending.as_ref().and_then(|spending| {
            let view = self.lifecycle.cloud_view(spending)?;
            if view.spent.over_budget() {
                status.warnings.push(format!(
                    "the cloud was called {} times in 24 hours, more than upstream.daily_call_budget ({})",
                    view.spent.calls, view.spent.budget
                ));
            }
            if view.report.unstored {
                status.warnings.push(
                    "the store does not hold yet what the cloud said last (the log says why): do not put older files back \
                     into it, and do not restart if it can wait"
                        .into(),
                );
            }
            let older_only = serving.keys.as_ref().is_some_and(|keys| !keys.keyring.is_rooted_in_cloud());
            Some(Upstream { older_only, ..upstream::describe(view) })
        });
        outlook::explain(&mut status);
        status
    }

    fn custody(&self, state: CustodyState) -> Custody {
        let mut custody = Custody {
            state: state.name().to_owned(),
            detail: state.fault.as_ref().map(ToString::to_string).unwrap_or_default(),
            restarts: self.facts.custodian_restarts.load(Ordering::Relaxed),
            process: self.lifecycle.custodian_process().map(|process| CustodianProcess {
                uid: process.uid,
                no_new_privs: process.no_new_privs,
                dumpable: process.dumpable,
                system_calls_filtered: process.system_calls_filtered,
            }),
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
        let trail = recorded(&self.audit)?;
        self.audit.tell_refusals().await;
        // What was written since the last one is vouched for first; a line that was changed breaks the chain before it.
        let _ = trail.checkpoint().await;
        let read = trail.clone();
        let outcome = tokio::task::spawn_blocking(move || read.verify())
            .await
            .map_err(|_| Status::internal("the audit trail could not be read to its end"))?;
        Ok(Response::new(verified(outcome, &trail)))
    }

    async fn query_audit(&self, request: Request<QueryAuditRequest>) -> Result<Response<BoxStream<AuditLine>>, Status> {
        let trail = recorded(&self.audit)?;
        let limit = usize::try_from(request.get_ref().limit).unwrap_or(usize::MAX);
        let filter = filter(request.into_inner());
        // What is counted, and what waits for the writer, is asked for, too.
        self.audit.tell_refusals().await;
        let _ = trail.checkpoint().await;
        let (sender, receiver) = mpsc::channel(64);
        tokio::task::spawn_blocking(move || {
            // A client that hangs up ends the reading.
            let send = |line: String| sender.blocking_send(Ok(AuditLine { json: line })).is_ok();
            if let Err(error) = query_last(trail.folder(), &filter, limit, send) {
                let _ =
                    sender.blocking_send(Err(Status::unavailable(format!("the audit trail cannot be read: {error}"))));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

fn no_keyring(reason: &str) -> Status {
    Status::unavailable(format!("there is no authentic keyring: {reason}"))
}

fn audit(trail: &Trail) -> Audit {
    let counts = trail.counts();
    Audit {
        last: counts.sequence,
        lost: counts.lost,
        failing: counts.failing,
        stops: trail.stops(),
        requests: trail.wants_requests(),
    }
}

/// The trail, or why there is none.
fn recorded(audit: &AdminAudit) -> Result<Trail, Status> {
    let off =
        || Status::failed_precondition("there is no audit trail: it is off (audit.level), or could not be opened");
    audit.trail().cloned().ok_or_else(off)
}

fn verified(outcome: Result<Verified, VerifyError>, trail: &Trail) -> VerifyAuditResponse {
    let answer = VerifyAuditResponse {
        lost: trail.counts().lost,
        folder: trail.folder().display().to_string(),
        ..VerifyAuditResponse::default()
    };
    match outcome {
        Err(error) => VerifyAuditResponse { problem: explain(&error), ..answer },
        Ok(verified) => VerifyAuditResponse {
            intact: true,
            files: verified.files as u64,
            lines: verified.lines,
            first: verified.first,
            last: verified.end.sequence,
            checkpoint: verified.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.seq),
            checkpoint_time: verified.checkpoint.map(|checkpoint| checkpoint.time).unwrap_or_default(),
            ..answer
        },
    }
}

fn filter(request: QueryAuditRequest) -> Filter {
    // What no clock can show is beyond every line.
    let last = Duration::from_secs(u32::MAX.into());
    let time = |seconds: u64| (seconds > 0).then(|| UNIX_EPOCH + Duration::from_secs(seconds).min(last));
    let text = |text: String| (!text.is_empty()).then_some(text);
    Filter {
        since: time(request.since),
        until: time(request.until),
        action: text(request.action),
        outcome: text(request.outcome),
        uid: request.uid,
        generation: request.generation,
    }
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

/// What an operator should know although everything works.
fn warnings(keyring: &Keyring, status: &GetStatusResponse) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(active) = keyring.active()
        && active.wraps.len() == 1
        && active.wraps.iter().all(|wrap| wrap.root_kind != RootKind::Recovery)
    {
        let in_cloud = active.upstream_wrap().is_some();
        warnings.push(if in_cloud { notices::ONE_CLOUD_ROOT } else { notices::ONE_ROOT }.into());
    }
    if status.custody.as_ref().is_some_and(|custody| custody.manufacturer.starts_with("SoftHSM")) {
        warnings.push(notices::SOFTHSM.into());
    }
    if status.sandbox.as_ref().is_some_and(|sandbox| !sandbox.keys_locked) {
        warnings.push(notices::KEYS_NOT_LOCKED.into());
    }
    if status.sandbox.as_ref().is_some_and(|sandbox| sandbox.server_can_read_pin) {
        warnings.push(notices::PIN_READABLE.into());
    }
    if keyring.rotation.is_some() {
        warnings.push(notices::ROTATION_CUT_OFF.into());
    }
    warnings.extend(roots::warnings(keyring));
    warnings
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
