//! Disabling and enabling on the wire: what is taken from a client, how it is recorded, how a disabled key is shown.

use std::sync::Arc;

use keystead_core::availability::Availability;
use keystead_core::keyring::Disabling;
use keystead_core::reason::Reason;
use keystead_wire::admin::v1::{DisableRequest, DisableResponse, Disabled as Shown, EnableRequest, EnableResponse};
use serde_json::json;
use tonic::{Request, Response, Status};

use super::audited::AdminAudit;
use super::outlook::CACHED;
use super::peer::Caller;
use super::status_map::switch_error;
use crate::service::clock::unix_now;
use crate::service::disable::{Disabled, SwitchedOff, SwitchedOn};
use crate::service::lifecycle::Lifecycle;

pub async fn disable(
    lifecycle: &Arc<Lifecycle>,
    audit: &AdminAudit,
    request: Request<DisableRequest>,
) -> Result<Response<DisableResponse>, Status> {
    let reason = match request.get_ref().reason.as_str() {
        "" => None,
        reason => Some(reason.parse::<Reason>().map_err(|error| Status::invalid_argument(error.to_string()))?),
    };
    let caller = request.extensions().get::<Caller>().copied();
    let (uid, login_uid) = (caller.map(|caller| caller.uid), caller.and_then(|caller| caller.login_uid));
    let details = reason.as_ref().map_or_else(|| json!({}), |reason| json!({"reason": reason.to_string()}));
    let audited = audit.intent_to_refuse("disable", &request, details).await;
    let order = Disabling { since: unix_now(), uid, login_uid, reason };
    let lifecycle = lifecycle.clone();
    // A task of its own: a client that hangs up leaves nothing half done.
    let off = tokio::spawn(async move {
        let off = lifecycle.disable(order).await.map_err(|error| switch_error(&error));
        let told = |off: &SwitchedOff| json!({"changed": off.changed, "recorded": off.disabled.recorded});
        audited.outcome(off, told).await
    });
    let off = off.await.map_err(|_| Status::internal("the change was broken off"))??;
    Ok(Response::new(DisableResponse { changed: off.changed, disabled: Some(shown(off.disabled)) }))
}

pub async fn enable(
    lifecycle: &Arc<Lifecycle>,
    audit: &AdminAudit,
    request: Request<EnableRequest>,
) -> Result<Response<EnableResponse>, Status> {
    let audited = audit.intent("enable", &request, json!({})).await?;
    let lifecycle = lifecycle.clone();
    // A task of its own: a client that hangs up leaves nothing half done.
    let on = tokio::spawn(async move {
        let on = lifecycle.enable().await.map_err(|error| switch_error(&error));
        let told = |on: &SwitchedOn| json!({"changed": on.changed, "availability": word(&on.availability)});
        audited.outcome(on, told).await
    });
    let on = on.await.map_err(|_| Status::internal("the change was broken off"))??;
    let availability = word(&on.availability).into();
    Ok(Response::new(EnableResponse { changed: on.changed, availability, reason: on.reason }))
}

/// How a disabled key is shown.
pub fn shown(disabled: Disabled) -> Shown {
    let Disabled { disabling, recorded } = disabled;
    Shown {
        since: disabling.since,
        uid: disabling.uid,
        login_uid: disabling.login_uid,
        reason: disabling.reason.map(String::from).unwrap_or_default(),
        recorded,
        consequence: format!("an admin has disabled the key: nothing is served before it is enabled. {CACHED}"),
    }
}

/// An availability in one word, the same for status and for every answer.
pub fn word(availability: &Availability) -> &'static str {
    match availability {
        Availability::Sealed(_) => "sealed",
        Availability::Online => "online",
        Availability::Degraded { .. } => "degraded",
        Availability::Expired => "expired",
        Availability::Revoked { .. } => "revoked",
        Availability::Disabled => "disabled",
    }
}
