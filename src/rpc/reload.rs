//! The configuration that the daemon runs by, and the reload that an admin asks for. What is read and judged is the composition
//! root's affair: here it is asked for, recorded and told.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use keystead_wire::admin::v1::{Configuration, ConfigurationChange, ReloadRequest, ReloadResponse};
use serde_json::{Map, Value};
use tonic::{Code, Request, Response, Status};

use super::audited::AdminAudit;

/// What the daemon runs by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Loaded {
    /// `None`: built-in defaults.
    pub file: Option<PathBuf>,
    pub sha256: [u8; 32],
    /// Unix seconds.
    pub at: u64,
    /// Why the last reload was refused; empty if none was since.
    pub refused: String,
}

/// All that was changed is in force.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reloaded {
    /// Key, before, after; as JSON.
    pub applied: Vec<[String; 3]>,
    pub unchanged: Vec<String>,
    pub sha256: [u8; 32],
}

/// Nothing was applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReloadError {
    /// There is no such file, or it is no configuration.
    #[error("{0}")]
    Invalid(String),
    /// It is one, for another daemon.
    #[error("{0}")]
    NeedsRestart(String),
    #[error("{0}")]
    NotNow(String),
}

/// Whoever reads the configuration again.
pub trait Reloads: fmt::Debug + Send + Sync {
    fn reload(&self) -> BoxFuture<'static, Result<Reloaded, ReloadError>>;
    fn loaded(&self) -> Loaded;
}

pub(super) async fn reload(
    audit: &AdminAudit,
    configuration: &Arc<dyn Reloads>,
    request: Request<ReloadRequest>,
) -> Result<Response<ReloadResponse>, Status> {
    let audited = audit.intent("reload", &request, Value::Null).await?;
    let reload = configuration.reload();
    // A task of its own: a client that hangs up leaves nothing half told.
    let told = tokio::spawn(async move {
        let outcome = reload.await.map_err(|error| refused(&error));
        audited.outcome(outcome, recorded).await
    });
    let reloaded = told.await.map_err(|_| Status::internal("the reload was broken off"))??;
    Ok(Response::new(ReloadResponse {
        applied: reloaded
            .applied
            .into_iter()
            .map(|[key, before, after]| ConfigurationChange { key, before, after })
            .collect(),
        unchanged: reloaded.unchanged,
    }))
}

/// What the audit trail keeps of it: each key with what it was and is.
pub fn recorded(reloaded: &Reloaded) -> Value {
    let changed =
        reloaded.applied.iter().map(|[key, before, after]| (key.clone(), format!("{before} to {after}").into()));
    let text = [("sha256".to_owned(), hex(&reloaded.sha256).into())];
    Value::Object(text.into_iter().chain(changed).collect::<Map<String, Value>>())
}

pub fn refused(error: &ReloadError) -> Status {
    let code = match error {
        ReloadError::Invalid(_) => Code::InvalidArgument,
        ReloadError::NeedsRestart(_) => Code::FailedPrecondition,
        ReloadError::NotNow(_) => Code::Aborted,
    };
    Status::new(code, error.to_string())
}

pub(super) fn shown(loaded: Loaded) -> Configuration {
    Configuration {
        file: loaded.file.map(|file| file.display().to_string()).unwrap_or_default(),
        sha256: loaded.sha256.to_vec(),
        loaded: loaded.at,
        refused: loaded.refused,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
