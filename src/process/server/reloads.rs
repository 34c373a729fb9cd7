//! The server's side of a reload: asks the supervisor, records, applies at one go, and tells the supervisor.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::oneshot;

use crate::audit::settings::Level as AuditLevel;
use crate::audit::{Trail, Who};
use crate::config::{Live, unchanged};
use crate::process::control::ControlReporter;
use crate::process::reload::{BY_SIGNAL, Ruling, Verdict};
use crate::rpc::admission::{Admission, LiveAdmission};
use crate::rpc::audited::AdminAudit;
use crate::rpc::kms_v2::KmsLimits;
use crate::rpc::reload::{Loaded, ReloadError, Reloaded, Reloads, recorded, refused};
use crate::rpc::roles::RolePolicy;
use crate::service::clock::unix_now;
use crate::service::lifecycle::Lifecycle;
use crate::telemetry::log::Verbosity;

/// Everything that may change.
pub struct LiveParts {
    pub kms: Arc<LiveAdmission>,
    pub admin: Arc<LiveAdmission>,
    /// Of the admin socket; no setting.
    pub admin_connections: usize,
    pub limits: Arc<KmsLimits>,
    pub trail: Option<Trail>,
    pub lifecycle: Arc<Lifecycle>,
    pub verbosity: Verbosity,
}

/// Cheap to share.
#[derive(Clone)]
pub struct Reloader(Arc<Inner>);

struct Inner {
    parts: LiveParts,
    reporter: ControlReporter,
    audit: AdminAudit,
    /// Who asked on the admin socket and waits for the supervisor's verdict.
    waiting: Mutex<HashMap<u32, oneshot::Sender<Ruling>>>,
    last_ticket: AtomicU32,
    loaded: Mutex<Loaded>,
}

impl LiveParts {
    fn apply(&self, live: Live) {
        if let (Some(trail), Some(requests)) = (&self.trail, live.audit_requests) {
            trail.set_level(if requests { AuditLevel::Requests } else { AuditLevel::Admin });
        }
        self.lifecycle.set_schedule(live.rotation);
        self.verbosity.set(live.log_level);
        self.limits.set(live.kms_max_plaintext);
        let roles = RolePolicy::default();
        self.kms.replace(Admission { max_connections: live.kms_max_connections, policy: live.kms_peers, roles });
        self.admin.replace(Admission {
            max_connections: self.admin_connections,
            policy: live.admin_peers,
            roles: live.roles,
        });
    }
}

impl Reloader {
    pub fn new(
        parts: LiveParts,
        reporter: ControlReporter,
        audit: AdminAudit,
        file: Option<PathBuf>,
        sha256: [u8; 32],
    ) -> Self {
        Self(Arc::new(Inner {
            parts,
            reporter,
            audit,
            waiting: Mutex::default(),
            last_ticket: AtomicU32::new(BY_SIGNAL),
            loaded: Mutex::new(Loaded { file, sha256, at: unix_now(), refused: String::new() }),
        }))
    }

    /// The supervisor has read the file again.
    ///
    /// # Errors
    /// What it sent is no verdict.
    pub fn heed(&self, verdict: OwnedFd) -> std::io::Result<()> {
        let Verdict { ticket, ruling } = Verdict::from_memory_file(verdict)?;
        if ticket == BY_SIGNAL {
            tokio::spawn(self.clone().by_signal(ruling));
        } else if let Some(asker) = self.waiting().remove(&ticket) {
            // Whoever asked runs to its end, whatever becomes of his connection.
            let _ = asker.send(ruling);
        }
        Ok(())
    }

    /// SIGHUP: there is nobody to answer, but the log and the trail.
    async fn by_signal(self, ruling: Ruling) {
        let outcome = match self.0.audit.intent_of("reload", Some(Who::Daemon("signal")), Value::Null).await {
            Ok(audited) => {
                let outcome = self.settle(BY_SIGNAL, ruling).map_err(|error| refused(&error));
                audited.outcome(outcome, recorded).await
            }
            Err(status) => {
                self.told(BY_SIGNAL, false);
                Err(status)
            }
        };
        match outcome {
            Ok(reloaded) => {
                let keys: Vec<&str> = reloaded.applied.iter().map(|[key, ..]| key.as_str()).collect();
                let keys = if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") };
                self.say(&format!("Configuration reloaded; changed: {keys}"));
            }
            Err(status) => self.say(&format!("Reload refused: {}", status.message())),
        }
    }

    /// In force, or not: the supervisor hears which.
    fn settle(&self, ticket: u32, ruling: Ruling) -> Result<Reloaded, ReloadError> {
        let outcome = match ruling {
            Ruling::Apply { live, changes, sha256 } => {
                self.0.parts.apply(*live);
                fail::fail_point!("reload.applied");
                let file = self.loaded_now().file.clone();
                *self.loaded_now() = Loaded { file, sha256, at: unix_now(), refused: String::new() };
                let unchanged = unchanged(&changes).into_iter().map(ToOwned::to_owned).collect();
                let applied: Vec<[String; 3]> = changes
                    .into_iter()
                    .map(|change| [change.key, change.before.to_string(), change.after.to_string()])
                    .collect();
                tracing::info!(changed = ?applied.iter().map(|[key, ..]| key).collect::<Vec<_>>(), "configuration reloaded");
                Ok(Reloaded { applied, unchanged, sha256 })
            }
            Ruling::Invalid(message) => Err(ReloadError::Invalid(message)),
            Ruling::NeedsRestart(message) => Err(ReloadError::NeedsRestart(message)),
            Ruling::NotNow(message) => Err(ReloadError::NotNow(message)),
        };
        if let Err(error) = &outcome {
            tracing::error!(%error, "the configuration was not reloaded; the one before goes on");
            self.loaded_now().refused = error.to_string();
        }
        self.told(ticket, outcome.is_ok());
        outcome
    }

    fn told(&self, ticket: u32, applied: bool) {
        if let Err(error) = self.0.reporter.reloaded(ticket, applied) {
            tracing::error!(%error, "the supervisor cannot be told of a reload");
        }
    }

    fn say(&self, text: &str) {
        if let Err(error) = self.0.reporter.status(text) {
            tracing::warn!(%error, "the service manager cannot be told of a reload");
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u32, oneshot::Sender<Ruling>>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn loaded_now(&self) -> MutexGuard<'_, Loaded> {
        self.0.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(self) -> Result<Reloaded, ReloadError> {
        let ticket = self.0.last_ticket.fetch_add(1, Ordering::Relaxed).wrapping_add(1).max(BY_SIGNAL + 1);
        let (asker, ruling) = oneshot::channel();
        self.waiting().insert(ticket, asker);
        let gone = || ReloadError::NotNow("the supervisor does not answer: try again".into());
        if let Err(error) = self.0.reporter.reload(ticket) {
            tracing::error!(%error, "the supervisor cannot be asked for a reload");
            self.waiting().remove(&ticket);
            return Err(gone());
        }
        self.settle(ticket, ruling.await.map_err(|_| gone())?)
    }
}

impl Reloads for Reloader {
    fn reload(&self) -> BoxFuture<'static, Result<Reloaded, ReloadError>> {
        self.clone().ask().boxed()
    }

    fn loaded(&self) -> Loaded {
        self.loaded_now().clone()
    }
}

impl fmt::Debug for Reloader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reloader").field(&*self.loaded_now()).finish()
    }
}
