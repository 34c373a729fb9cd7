//! Taking over an old store on the wire: what is taken from a client, how it is recorded, what he is told.

use std::collections::BTreeMap;
use std::sync::Arc;

use keystead_core::KeyId;
use keystead_core::hpke_p256::P256PublicKey;
use keystead_core::recovery::Origin;
use keystead_wire::admin::v1::{
    LostGeneration, RestoreStoreRequest, RestoreStoreResponse, RestoredGeneration, ScannedKeyId,
};
use serde_json::json;
use tonic::{Request, Response, Status};

use super::audited::AdminAudit;
use super::peer::Caller;
use super::scan::counted;
use super::status_map::restore_error;
use crate::service::lifecycle::Lifecycle;
use crate::service::restore::{Recovery, RestoreRequest, Restored};

pub async fn restore(
    lifecycle: &Arc<Lifecycle>,
    audit: &AdminAudit,
    request: Request<RestoreStoreRequest>,
) -> Result<Response<RestoreStoreResponse>, Status> {
    let order = order(&request, lifecycle.settings().keyring.as_str())?;
    let given = if order.record.is_some() { "a file" } else { "the store" };
    let audited = audit.intent("restore-store", &request, json!({"record": given})).await?;
    let lifecycle = lifecycle.clone();
    // A task of its own: a client that hangs up leaves nothing half done.
    let restored = tokio::spawn(async move {
        let restored = lifecycle.restore_store(order).await.map_err(|error| restore_error(&error));
        audited.outcome(restored, told).await
    });
    let restored = restored.await.map_err(|_| Status::internal("the restoration was broken off"))??;
    Ok(Response::new(shown(&restored)))
}

fn order(request: &Request<RestoreStoreRequest>, keyring: &str) -> Result<RestoreRequest, Status> {
    let body = request.get_ref();
    let recovery = match (body.recovery_key.as_str(), body.no_recovery) {
        ("", false) => Recovery::Unsaid,
        ("", true) => Recovery::Declined,
        (pem, false) => {
            Recovery::Key(P256PublicKey::from_pem(pem).map_err(|error| Status::invalid_argument(error.to_string()))?)
        }
        (_, true) => return Err(Status::invalid_argument("a recovery key, and none at all, are asked for")),
    };
    let caller = request.extensions().get::<Caller>().copied();
    Ok(RestoreRequest {
        record: (!body.record.is_empty()).then(|| body.record.clone()),
        recovery,
        seen: seen(&body.seen, keyring)?,
        uid: caller.map(|caller| caller.uid),
        login_uid: caller.and_then(|caller| caller.login_uid),
    })
}

fn seen(objects: &[ScannedKeyId], keyring: &str) -> Result<BTreeMap<KeyId, u64>, Status> {
    counted(objects, keyring).map_err(|what| Status::invalid_argument(format!("this is no scan: {what}")))
}

fn told(restored: &Restored) -> serde_json::Value {
    let lost: Vec<u64> = restored.lost.iter().map(|each| each.number.0).collect();
    json!({"of_epoch": restored.of_epoch, "epoch": restored.keyring.epoch, "opened": restored.opened.len(), "lost": lost})
}

fn shown(restored: &Restored) -> RestoreStoreResponse {
    let active = restored.keyring.active();
    RestoreStoreResponse {
        key_id: active.map(|active| active.key_id.to_string()).unwrap_or_default(),
        generation: active.map_or(0, |active| active.number.0),
        of_epoch: restored.of_epoch,
        epoch: restored.keyring.epoch,
        opened: restored
            .opened
            .iter()
            .map(|(key_id, origin)| RestoredGeneration {
                key_id: key_id.to_string(),
                proven: *origin == Origin::Proven,
            })
            .collect(),
        unopened: restored.unopened.iter().map(ToString::to_string).collect(),
        lost: restored
            .lost
            .iter()
            .map(|each| LostGeneration {
                number: each.number.0,
                key_id: each.key_id.as_ref().map(ToString::to_string).unwrap_or_default(),
                objects: each.objects,
            })
            .collect(),
        set_aside: restored.set_aside.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
    }
}
