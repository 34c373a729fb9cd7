//! The health service of gRPC: says SERVING of the KMS service only while Encrypt and Decrypt would be served.
//!
//! Worked out when it is asked for, not kept: what is said is what holds. A watcher is told of a change when it happens, or a
//! second later where no other part tells of it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::unfold;
use keystead_wire::admin::v1::admin_server;
use keystead_wire::health::v1::health_check_response::ServingStatus;
use keystead_wire::health::v1::health_server::Health;
use keystead_wire::health::v1::{HealthCheckRequest, HealthCheckResponse};
use keystead_wire::kms::v2::key_management_service_server as kms_server;
use tokio::sync::watch;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::audit::Trail;
use crate::service::keys::KeyService;

/// How often a watched status is worked out anew, for what changes without a word: the trail's disk is full.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub struct HealthService {
    keys: Arc<KeyService>,
    audit: Option<Trail>,
    /// The daemon ends: nobody is told to come here any more, and watchers hold up nothing.
    ending: watch::Receiver<bool>,
}

#[derive(Clone, Copy)]
enum Watched {
    Keys,
    Admin,
    Nothing,
}

impl HealthService {
    pub fn new(keys: Arc<KeyService>, audit: Option<Trail>, ending: watch::Receiver<bool>) -> Self {
        Self { keys, audit, ending }
    }

    fn status(&self, watched: Watched) -> ServingStatus {
        let serves = match watched {
            Watched::Nothing => return ServingStatus::ServiceUnknown,
            Watched::Admin => true,
            Watched::Keys => {
                self.keys.ready().is_ok() && self.audit.as_ref().is_none_or(|trail| trail.admits_requests().is_ok())
            }
        };
        match serves && !*self.ending.borrow() {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        }
    }
}

impl Watched {
    /// The empty name is the daemon as a whole, which is there for its keys.
    fn named(service: &str) -> Self {
        match service {
            "" | kms_server::SERVICE_NAME => Self::Keys,
            admin_server::SERVICE_NAME => Self::Admin,
            _ => Self::Nothing,
        }
    }
}

/// What one watcher was told, and what he is told next.
struct Watcher {
    health: HealthService,
    watched: Watched,
    published: watch::Receiver<()>,
    told: Option<ServingStatus>,
}

impl Watcher {
    /// Nothing once the daemon ends and that was told.
    async fn next(&mut self) -> Option<ServingStatus> {
        loop {
            // Before the status is worked out: what ends afterwards wakes.
            let over = *self.health.ending.borrow_and_update();
            self.published.mark_unchanged();
            let status = self.health.status(self.watched);
            if self.told.replace(status) != Some(status) {
                return Some(status);
            }
            if over {
                return None;
            }
            tokio::select! {
                _ = self.published.changed() => {}
                changed = self.health.ending.changed() => changed.ok()?,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match self.status(Watched::named(&request.get_ref().service)) {
            ServingStatus::ServiceUnknown => Err(Status::not_found("there is no service of that name")),
            status => Ok(Response::new(HealthCheckResponse { status: status.into() })),
        }
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<BoxStream<HealthCheckResponse>>, Status> {
        let watcher = Watcher {
            health: self.clone(),
            watched: Watched::named(&request.get_ref().service),
            published: self.keys.published(),
            told: None,
        };
        let statuses = unfold(watcher, |mut watcher| async {
            let status = watcher.next().await?;
            Some((Ok(HealthCheckResponse { status: status.into() }), watcher))
        });
        Ok(Response::new(Box::pin(statuses)))
    }
}
