//! The server's wiring: every room put together, from the control channel to the sockets.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use keystead_core::KeyringId;
use keystead_core::availability::{Availability, SealReason};
use keystead_wire::admin::v1::admin_server::AdminServer;
use keystead_wire::admin::v1::{GetStatusResponse, Sandbox};
use keystead_wire::health::v1::health_server::HealthServer;
use tokio::sync::{Notify, watch};

use super::config_copy::ConfigCopy;
use super::control::{ControlReporter, ControlServerEnd};
use super::kms_thread::KmsThread;
use super::reload::digest;
use super::sandbox::Confinement;
use super::seccomp::Filtering;
use super::server::{Listeners, LiveParts, LockdownReport, Reloader, follow_orders};
use crate::audit::settings::{AuditSettings, FailurePolicy};
use crate::audit::{Counts, Trail};
use crate::config::Settings;
use crate::custody::client::CustodyClient;
use crate::memory;
use crate::rpc::admin::{AdminService, DaemonFacts};
use crate::rpc::admission::Admission;
use crate::rpc::audited::{AdminAudit, RequestAudit};
use crate::rpc::authorized::Authorized;
use crate::rpc::health::HealthService;
use crate::rpc::incoming::{ConnectionCounters, Incoming, IncomingSettings};
use crate::rpc::kms_v2::{KmsLimits, KmsV2};
use crate::rpc::limited::LimitedKms;
use crate::rpc::login::Logins;
use crate::rpc::metrics::RequestMetrics;
use crate::rpc::peer::PeerPolicy;
use crate::rpc::roles::RolePolicy;
use crate::rpc::serve::{ServeSettings, serve};
use crate::rpc::services::{Services, reflection};
use crate::service::clock::Clock;
use crate::service::cloud::CloudSettings;
use crate::service::keys::KeyService;
use crate::service::lifecycle::{KeySettings, Lifecycle};
use crate::service::renewal::renew;
use crate::service::schedule::follow as follow_schedule;
use crate::service::spending::{Budget, Spending};
use crate::service::watch::watch as watch_custody;
use crate::store::Store;
use crate::telemetry::health::Readiness;
use crate::telemetry::http::{self, Limits, Pages};
use crate::telemetry::log::Verbosity;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::state::{self, State};
use crate::upstream::Upstream;

/// How long the start of what comes after the daemon may be held up by a slow token.
const SETTLE_PATIENCE: Duration = Duration::from_secs(10);
const SETTLE_LOOK: Duration = Duration::from_millis(5);
/// How long a connection may take to open HTTP/2.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a connection that carried seeds may rest before its buffers are given up.
const RECYCLE_AFTER: Duration = Duration::from_secs(2);
/// Longest admin message: a record of 1,000 generations to be restored, or the scan of an etcd on as many.
const MAX_ADMIN_MESSAGE: usize = 1 << 20;
/// Admin clients at once: people and their scripts.
const MAX_ADMIN_CONNECTIONS: usize = 16;

/// How often calls to the cloud are counted into their hour.
const COUNT_EVERY: Duration = Duration::from_secs(60);

/// What the cloud profile adds, opened before the sandbox was closed.
pub struct CloudParts {
    pub upstream: Arc<dyn Upstream>,
    pub settings: CloudSettings,
    pub clock: Arc<dyn Clock>,
    pub budget: Budget,
}

/// What was opened and read before the sandbox was closed.
pub struct Opened {
    pub store: Store,
    pub audit_outlet: Option<UnixDatagram>,
    pub verbosity: Verbosity,
    pub config: ConfigCopy,
}

/// Serves until the supervisor orders the end or is gone. Without `cloud` it is the local profile.
pub async fn run(
    settings: Settings,
    cloud: Option<CloudParts>,
    opened: Opened,
    listeners: Listeners,
    control: ControlServerEnd,
    lockdown: LockdownReport,
) -> std::io::Result<()> {
    let Opened { store, audit_outlet, verbosity, config } = opened;
    let custody = CustodyClient::new(settings.custody.timeout, settings.custody.queue);
    let keys = Arc::new(KeyService::new(custody.clone(), settings.custody.sessions));
    let key_settings = KeySettings {
        keyring: settings.keyring,
        node: settings.node,
        custody_grace: settings.custody_grace,
        probe_interval: settings.custody_probe_interval,
        min_deletion_wait: settings.min_deletion_wait,
    };
    let trail = open_trail(settings.audit.as_ref(), &key_settings.keyring, audit_outlet)?;
    let unrecorded = settings.audit.is_some() && trail.is_none();
    let mut lifecycle = Lifecycle::new(key_settings, store, custody.clone(), keys.clone(), trail.clone());
    let mut spending = None;
    if let Some(CloudParts { upstream, settings, clock, budget }) = cloud {
        lifecycle = lifecycle.in_cloud(upstream, settings, clock);
        spending = Some(Arc::new(Spending::new(budget)));
    }
    let lifecycle = Arc::new(lifecycle);
    lifecycle.set_schedule(settings.rotation);
    let restarts = Arc::new(AtomicU32::new(0));
    let (ending, end) = watch::channel(false);
    let watched = end.clone();
    let ended = move || {
        let mut ended = watched.clone();
        async move {
            // Also when the sender is gone.
            let _ = ended.wait_for(|ended| *ended).await;
        }
    };

    let kms_thread = KmsThread::start()?;
    let kms = {
        let _there = kms_thread.handle().enter();
        incoming(listeners.kms, settings.kms.max_connections, settings.kms.peers, RolePolicy::default())?
    };
    let admin = incoming(listeners.admin, MAX_ADMIN_CONNECTIONS, settings.admin.peers, settings.admin.roles)?;
    let limits = Arc::new(KmsLimits::new(settings.kms.max_plaintext));
    let audit = AdminAudit::new(trail.clone());
    let live = LiveParts {
        kms: kms.admission(),
        admin: admin.admission(),
        admin_connections: MAX_ADMIN_CONNECTIONS,
        limits: limits.clone(),
        trail: trail.clone(),
        lifecycle: lifecycle.clone(),
        verbosity,
    };
    let reporter = control.reporter();
    let reloader = Reloader::new(live, reporter.clone(), audit.clone(), config.path, digest(&config.text));
    let requests = Arc::new(RequestMetrics::default());
    let metrics_address = match &listeners.metrics {
        Some(listener) => listener.local_addr()?.to_string(),
        None => String::new(),
    };
    let facts = DaemonFacts {
        started: Instant::now(),
        sandbox: sandbox(lockdown),
        custodian_restarts: restarts.clone(),
        metrics_address,
        spending: spending.clone(),
        unrecorded,
        configuration: Arc::new(reloader.clone()),
    };
    let admin_api = Arc::new(AdminService::new(lifecycle.clone(), facts, audit.clone()));
    if let Some(listener) = listeners.metrics {
        let sockets = [("kms", kms.counters()), ("admin", admin.counters())];
        let audit = trail.clone();
        let audit = move || match &audit {
            Some(trail) => Some(audit_state(trail)),
            None => unrecorded.then(|| state::Audit { failing: true, ..state::Audit::default() }),
        };
        let pages = Arc::new(pages(&lifecycle, &admin_api, &requests, restarts.clone(), &custody, sockets, audit));
        let until = ended();
        tokio::spawn(async move {
            if let Err(error) = http::serve(listener, pages, Limits::default(), until).await {
                tracing::error!(%error, "metrics are not served");
            }
        });
    }

    let changed = Arc::new(Notify::new());
    let watched = (lifecycle.clone(), changed.clone());
    tokio::spawn(async move {
        // The keys in memory may be the last copy: a fault of the watch must end neither them nor itself.
        while let Err(error) = tokio::spawn(watch_custody(watched.0.clone(), watched.1.clone())).await {
            tracing::error!(%error, "the watch over custody failed and is started anew");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let scheduled = lifecycle.clone();
    tokio::spawn(async move {
        while let Err(error) = tokio::spawn(follow_schedule(scheduled.clone())).await {
            tracing::error!(%error, "the watch over the schedule failed and is started anew");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    if let Some(spending) = spending {
        keep_lease(lifecycle.clone(), spending);
    }
    tokio::spawn(follow_disconnects(custody.clone(), changed.clone()));
    tokio::spawn(follow_replacements(custody.clone(), reporter.clone()));
    let counted = restarts.clone();
    let hung = custody.hung();
    let asking = reporter.clone();
    let logins = Arc::new(Logins::new(move |pid| asking.ask_login(pid)));
    let answered = logins.clone();
    let answers = kms_thread.handle().clone();
    tokio::spawn(async move {
        let attach = |stream, count| {
            counted.store(count, Ordering::Relaxed);
            custody.attach_std(stream)?;
            changed.notify_one();
            Ok(())
        };
        if let Err(error) =
            follow_orders(control, answers, hung, answered, attach, |verdict| reloader.heed(verdict)).await
        {
            tracing::error!(%error, "the supervisor cannot be understood");
        }
        ending.send_replace(true);
    });

    let health = HealthServer::new(HealthService::new(keys.clone(), trail.clone(), end))
        .max_decoding_message_size(MAX_ADMIN_MESSAGE);
    let kms_service = KmsV2::new(keys, limits.clone(), requests, RequestAudit::new(trail));
    let kms_service = LimitedKms::new(Arc::new(kms_service), limits);
    let reflection = settings.admin.reflection.then(reflection).transpose().map_err(std::io::Error::other)?;
    let admin_service = Services {
        admin: AdminServer::from_arc(admin_api).max_decoding_message_size(MAX_ADMIN_MESSAGE),
        health,
        reflection: reflection.map(|service| service.max_decoding_message_size(MAX_ADMIN_MESSAGE)),
    };
    let admin_service = Authorized::new(admin_service, audit.clone());
    let kms_ends = ServeSettings {
        drain_timeout: settings.kms.drain_timeout,
        recycle_after: Some(RECYCLE_AFTER),
        harmless: "/v2.KeyManagementService/Status",
        logins: None,
    };
    let admin_ends = ServeSettings { recycle_after: None, logins: Some(logins), ..kms_ends.clone() };
    let ready = reporter.clone();
    tokio::spawn(async move {
        settled(lifecycle).await;
        memory::release_startup_code();
        if let Err(error) = ready.ready() {
            tracing::warn!(%error, "the supervisor cannot be told that the sockets are served");
        }
    });
    let kms = kms_thread.handle().spawn(serve(kms, kms_service, kms_ends, ended()));
    let admin = async {
        serve(admin, admin_service, admin_ends, ended()).await;
        Ok(())
    };
    tokio::try_join!(admin, async { kms.await.map_err(std::io::Error::other) })?;
    audit.tell_refusals().await;
    // Until here the channel is open: its end would tell the supervisor that this process is gone.
    drop(reporter);
    Ok(())
}

/// A trail that cannot even be opened stops the start only where the site wants nothing done that is not recorded.
fn open_trail(
    settings: Option<&AuditSettings>,
    keyring: &KeyringId,
    outlet: Option<UnixDatagram>,
) -> std::io::Result<Option<Trail>> {
    let Some(settings) = settings else { return Ok(None) };
    match Trail::open(settings, keyring, outlet) {
        Ok(trail) => Ok(Some(trail)),
        Err(error) if settings.failure == FailurePolicy::ContinueWithAlarm => {
            tracing::error!(%error, folder = %settings.folder.display(), "the audit trail cannot be opened: nothing is recorded");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn incoming(
    listener: std::os::unix::net::UnixListener,
    max_connections: usize,
    policy: PeerPolicy,
    roles: RolePolicy,
) -> std::io::Result<Incoming> {
    listener.set_nonblocking(true)?;
    let admission = Admission { max_connections, policy, roles };
    let settings = IncomingSettings { handshake_deadline: HANDSHAKE_DEADLINE, admission };
    Ok(Incoming::new(tokio::net::UnixListener::from_std(listener)?, settings))
}

/// Until the key is served, or it is known why not: a service manager that orders others after the daemon then starts
/// them when their first request is answered. The sockets are served all the while.
async fn settled(lifecycle: Arc<Lifecycle>) {
    let starting = || {
        lifecycle.keys().serving().availability == Availability::Sealed(SealReason::Starting)
            && lifecycle.custody_state().fault.is_none_or(|fault| fault.may_pass())
    };
    let settle = async {
        while starting() {
            tokio::time::sleep(SETTLE_LOOK).await;
        }
    };
    if tokio::time::timeout(SETTLE_PATIENCE, settle).await.is_err() {
        tracing::warn!("custody takes its time: the service manager is told to go on without the key");
    }
}

/// The lease's renewals, and the count of what they cost.
fn keep_lease(lifecycle: Arc<Lifecycle>, spending: Arc<Spending>) {
    let renewed = lifecycle.clone();
    tokio::spawn(async move {
        // Without it the lease would run out under a daemon that could reach the cloud.
        while let Err(error) = tokio::spawn(renew(renewed.clone())).await {
            tracing::error!(%error, "the renewal of the lease failed and is started anew");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    tokio::spawn(async move {
        while lifecycle.note_spending(&spending).is_some() {
            tokio::time::sleep(COUNT_EVERY).await;
        }
    });
}

async fn follow_disconnects(custody: CustodyClient, changed: Arc<Notify>) {
    let mut disconnected = custody.disconnected();
    while disconnected.changed().await.is_ok() {
        changed.notify_one();
    }
}

/// The supervisor first: a custodian that ends before it has heard would count as crashed.
async fn follow_replacements(custody: CustodyClient, reporter: ControlReporter) {
    let mut replacements = custody.replacements();
    while replacements.changed().await.is_ok() {
        match reporter.replace_custodian() {
            Ok(()) => custody.detach(),
            Err(error) => tracing::error!(%error, "the supervisor cannot be asked for another custodian"),
        }
    }
}

fn sandbox(lockdown: LockdownReport) -> Sandbox {
    Sandbox {
        landlock: matches!(lockdown.sandbox.confinement, Confinement::Full | Confinement::Partial),
        no_new_privs: lockdown.hardening.no_new_privs,
        dumpable: lockdown.hardening.dumpable,
        // Filled in when status is asked for.
        keys_locked: false,
        system_calls_filtered: lockdown.sandbox.system_calls == Filtering::On,
        server_can_read_pin: lockdown.sandbox.pin_reachable.unwrap_or(false),
        uid: rustix::process::geteuid().as_raw(),
    }
}

fn pages(
    lifecycle: &Arc<Lifecycle>,
    admin: &Arc<AdminService>,
    requests: &RequestMetrics,
    restarts: Arc<AtomicU32>,
    custody: &CustodyClient,
    sockets: [(&'static str, Arc<ConnectionCounters>); 2],
    audit: impl Fn() -> Option<state::Audit> + Send + Sync + 'static,
) -> Pages {
    let mut metrics = Metrics::new();
    requests.register(metrics.registry());
    let (source, custody, admin) = (lifecycle.clone(), custody.clone(), admin.clone());
    state::register(metrics.registry(), move || {
        let mut state = State::of(&source, &custody);
        state.upstream = cloud_state(admin.status());
        state.custodian_restarts = restarts.load(Ordering::Relaxed).into();
        state.audit = audit();
        state.sockets = sockets.iter().map(|(name, counters)| socket(name, counters)).collect();
        state
    });
    let source = lifecycle.clone();
    let health = move || {
        let serving = source.keys().serving();
        match serving.availability.serves() {
            true => Readiness::Ready,
            false => Readiness::NotReady { reason: serving.reason.clone() },
        }
    };
    Pages { metrics, health: Box::new(health) }
}

/// The same that status shows.
fn cloud_state(status: GetStatusResponse) -> Option<state::Upstream> {
    let upstream = status.upstream?;
    let calls = upstream.calls.into_iter().map(|calls| state::Calls {
        operation: calls.operation,
        succeeded: calls.succeeded,
        failed: calls.failed,
    });
    Some(state::Upstream {
        up: upstream.up,
        last_contact: upstream.last_contact,
        lease_remaining: upstream.lease_remaining_seconds,
        lease_total: upstream.lease_total_seconds,
        fault_class: (!upstream.up && !upstream.fault_class.is_empty()).then_some(upstream.fault_class),
        calls: calls.collect(),
        calls_today: upstream.calls_today,
        call_budget: upstream.call_budget,
        cost_today: upstream.cost_today,
        currency: upstream.currency,
        not_after: upstream.expiries.into_iter().map(|expiry| (expiry.what, expiry.not_after)).collect(),
        new_version: !upstream.pending_version.is_empty(),
        reboot_survives: status.reboot.is_some_and(|reboot| reboot.survives),
    })
}

fn audit_state(trail: &Trail) -> state::Audit {
    let Counts { written, lost, failures, failing, .. } = trail.counts();
    state::Audit { written, lost, failures, failing }
}

fn socket(name: &'static str, counters: &ConnectionCounters) -> state::Socket {
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    state::Socket {
        name,
        open: read(&counters.open),
        accepted: read(&counters.accepted),
        refused: vec![
            ("limit", read(&counters.refused)),
            ("peer", read(&counters.unadmitted)),
            ("handshake", read(&counters.expired)),
        ],
    }
}
