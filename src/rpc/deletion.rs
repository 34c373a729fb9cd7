//! Deletions on the wire: what is asked for, and how one that waits, or is done, is shown.

use std::sync::Arc;
use std::time::Duration;

use keystead_core::keyring::{Generation, Keyring, Tombstone};
use keystead_core::{RootKind, WrappedKek};
use keystead_wire::admin::v1::{
    CancelDeletionRequest, CancelDeletionResponse, Deletion, RootFate, ScheduleDeletionRequest,
    ScheduleDeletionResponse, Tombstone as WireTombstone,
};
use serde_json::{Value, json};
use tonic::{Request, Status};

use super::admin::describe;
use super::audited::AdminAudit;
use super::peer::Caller;
use super::roots::root;
use super::status_map::deletion_error;
use crate::service::deletion::{DeletionReport, ScheduleRequest};
use crate::service::lifecycle::Lifecycle;
use crate::service::notices;

/// A key ID is shorter.
const MAX_NAME: usize = 128;

pub async fn schedule(
    lifecycle: &Arc<Lifecycle>,
    audit: &AdminAudit,
    request: Request<ScheduleDeletionRequest>,
) -> Result<ScheduleDeletionResponse, Status> {
    let caller = request.extensions().get::<Caller>().map(|caller| caller.uid);
    let asked = request.get_ref();
    let wanted = ScheduleRequest {
        generation: bounded(&asked.generation)?,
        wait: (asked.wait_seconds > 0).then(|| Duration::from_secs(asked.wait_seconds)),
        confirm: (!asked.preview).then(|| asked.confirm.clone()),
        by: caller,
    };
    if wanted.confirm.is_none() {
        // A question: nothing is done that could be recorded.
        let report = lifecycle.schedule_deletion(wanted).await.map_err(|error| deletion_error(&error))?;
        return Ok(answer(lifecycle, &report));
    }
    let mut details = named(lifecycle, &wanted.generation);
    if let Some(wait) = wanted.wait {
        details["wait_seconds"] = json!(wait.as_secs());
    }
    let audited = audit.intent("schedule-deletion", &request, details).await?;
    let worker = lifecycle.clone();
    // A task of its own: a client that hangs up leaves nothing half done.
    let report = tokio::spawn(async move { worker.schedule_deletion(wanted).await })
        .await
        .map_err(|_| Status::internal("the change was broken off"))
        .and_then(|report| report.map_err(|error| deletion_error(&error)));
    let made = |report: &DeletionReport| {
        let generation = &report.generation;
        json!({
            "generation": generation.number.0, "key_id": generation.key_id.as_str(),
            "wait_seconds": report.pending.wait.length().as_secs(),
        })
    };
    let report = audited.outcome(report, made).await?;
    Ok(answer(lifecycle, &report))
}

pub async fn cancel(
    lifecycle: &Arc<Lifecycle>,
    audit: &AdminAudit,
    request: Request<CancelDeletionRequest>,
) -> Result<CancelDeletionResponse, Status> {
    let wanted = bounded(&request.get_ref().generation)?;
    let audited = audit.intent("cancel-deletion", &request, named(lifecycle, &wanted)).await?;
    let worker = lifecycle.clone();
    // As above.
    let generation = tokio::spawn(async move { worker.cancel_deletion(&wanted).await })
        .await
        .map_err(|_| Status::internal("the change was broken off"))
        .and_then(|generation| generation.map_err(|error| deletion_error(&error)));
    let made =
        |generation: &Generation| json!({"generation": generation.number.0, "key_id": generation.key_id.as_str()});
    let generation = audited.outcome(generation, made).await?;
    let serving = lifecycle.keys().serving();
    Ok(CancelDeletionResponse { generation: serving.keys.as_ref().map(|keys| describe(keys, &generation)) })
}

fn bounded(name: &str) -> Result<String, Status> {
    match name.len() {
        1..=MAX_NAME => Ok(name.to_owned()),
        _ => Err(Status::invalid_argument("name a generation by its number or key ID")),
    }
}

/// For the trail: the generation that is meant, if there is one.
fn named(lifecycle: &Lifecycle, wanted: &str) -> Value {
    let serving = lifecycle.keys().serving();
    match serving.keys.as_ref().and_then(|keys| keys.keyring.named(wanted).ok().cloned()) {
        Some(generation) => json!({"generation": generation.number.0, "key_id": generation.key_id.as_str()}),
        None => json!({"wanted": wanted}),
    }
}

fn answer(lifecycle: &Lifecycle, report: &DeletionReport) -> ScheduleDeletionResponse {
    let serving = lifecycle.keys().serving();
    let shown_as = serving.keys.as_ref().map(|keys| describe(keys, &report.generation)).unwrap_or_default();
    ScheduleDeletionResponse {
        deletion: Some(shown(report)),
        objects: shown_as.objects.unwrap_or_default(),
        decrypts: shown_as.decrypts,
    }
}

pub fn shown(report: &DeletionReport) -> Deletion {
    let generation = &report.generation;
    Deletion {
        generation: generation.number.0,
        key_id: generation.key_id.to_string(),
        scheduled: report.pending.scheduled,
        by: report.pending.by,
        wait_seconds: report.pending.wait.length().as_secs(),
        remaining_seconds: report.left.as_secs(),
        state: report.standing.as_str().into(),
        detail: report.detail.clone(),
        decrypts: report.decrypts,
        roots: fates(generation),
        backups: report.backups.clone(),
    }
}

pub fn tombstone(tombstone: &Tombstone) -> WireTombstone {
    let left = tombstone.left.as_ref().map_or(0, Vec::len);
    WireTombstone {
        scheduled: tombstone.scheduled,
        destroyed: tombstone.destroyed,
        by: tombstone.by,
        objects_left: u32::try_from(left).unwrap_or(u32::MAX),
    }
}

/// What status warns of: each deletion that waits, and objects of destroyed generations that are still on the token.
pub fn warnings(keyring: &Keyring, deletions: &[Deletion]) -> Vec<String> {
    let waiting = deletions.iter().map(|each| {
        let left = Duration::from_secs(each.remaining_seconds);
        notices::deletion(each.generation, &each.state, &each.detail, left, &each.backups)
    });
    let left = keyring.unfinished().filter(|(_, left)| !left.is_empty());
    waiting.chain(left.map(|(generation, _)| notices::leftover(generation.number.0))).collect()
}

/// Which roots still open backups that hold a wrap of the generation, once it is destroyed here.
fn fates(generation: &Generation) -> Vec<RootFate> {
    let own = generation.custody_wrap();
    let fate = |wrap: &WrappedKek| {
        let (opens, why) = match wrap.root_kind {
            RootKind::Pkcs11 if own.is_some_and(|own| own == wrap) => {
                (false, "its object on the token is destroyed; a copy of the token made before still opens it")
            }
            RootKind::Pkcs11 => (true, "another token's: that token opens it, if it still exists"),
            RootKind::Tpm => {
                (true, "its key travels in its wraps: this TPM opens it until it is cleared, or the auth file is gone")
            }
            RootKind::Recovery => (true, "whoever has the private half of the recovery key opens it"),
            kind if kind.is_upstream() => (true, "the cloud key stays: it opens it until it is destroyed in the cloud"),
            _ => (true, "a root that this version does not know is taken to open it"),
        };
        RootFate { root: Some(root(wrap)), opens, why: why.into() }
    };
    generation.wraps.iter().map(fate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use keystead_core::{GenerationNumber, KeyCommitment, KeyId, RootId};

    fn generation(kinds: &[RootKind]) -> Generation {
        let wrap = |(byte, kind): (u8, &RootKind)| WrappedKek {
            root_kind: *kind,
            root_id: RootId::new(&[byte; 16]).unwrap(),
            bytes: vec![1; 61],
        };
        Generation {
            number: GenerationNumber(1),
            key_id: KeyId::mint(&"edge".parse().unwrap(), GenerationNumber(1), [1; 16]),
            state: keystead_core::keyring::GenerationState::Retired,
            created: 1,
            activated: Some(2),
            forced: None,
            commitment: KeyCommitment::from_bytes([0; 32]),
            wraps: (1..).zip(kinds).map(wrap).collect(),
            pending: None,
            tombstone: None,
        }
    }

    #[test]
    fn only_the_object_on_this_token_stops_opening() {
        for (kinds, opens) in [
            (&[RootKind::Pkcs11][..], &[false][..]),
            (&[RootKind::Pkcs11, RootKind::Recovery], &[false, true]),
            (&[RootKind::Pkcs11, RootKind::Pkcs11], &[false, true]),
            (&[RootKind::Tpm, RootKind::Recovery], &[true, true]),
            (&[RootKind::AwsKms, RootKind::Recovery], &[true, true]),
        ] {
            let fates = fates(&generation(kinds));
            assert_eq!(fates.iter().map(|fate| fate.opens).collect::<Vec<_>>(), opens, "{kinds:?}");
            assert!(fates.iter().all(|fate| !fate.why.is_empty()));
        }
    }
}
