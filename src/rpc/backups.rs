//! Registered backups on the wire: what is taken from a client, and how one is shown.

use std::sync::Arc;

use keystead_core::backup::{Backup, Snapshot};
use keystead_core::keyring::{GenerationState, Keyring};
use keystead_core::{GenerationNumber, KeyId};
use keystead_wire::admin::v1::{
    Backup as WireBackup, ForgetBackupRequest, ForgetBackupResponse, ListBackupsResponse, RegisterBackupRequest,
    RegisterBackupResponse, ScanSource,
};
use serde_json::json;
use tonic::{Request, Status};

use super::audited::AdminAudit;
use super::status_map::backups_error;
use crate::service::lifecycle::Lifecycle;

/// One is made a rotation.
const MAX_GENERATIONS: usize = 10_000;

/// A request within its bounds, and of this keyring.
struct Registered {
    backup: Backup,
    key_ids: Vec<KeyId>,
}

pub async fn register(
    lifecycle: &Arc<Lifecycle>,
    audit: &AdminAudit,
    request: Request<RegisterBackupRequest>,
) -> Result<RegisterBackupResponse, Status> {
    let Registered { backup, key_ids } = registered(request.get_ref(), lifecycle.settings().keyring.as_str())?;
    let name = backup.name.clone();
    let audited = audit.intent("register-backup", &request, json!({"name": name.to_string()})).await?;
    let worker = lifecycle.clone();
    let found = key_ids.clone();
    // A task of its own: a client that hangs up leaves nothing half done.
    let kept = tokio::spawn(async move {
        let make = |keyring: &Keyring| {
            let (numbers, _) = keyring.numbers_of(found.iter());
            let generations = backup.generations.iter().copied().chain(numbers).collect();
            Backup { generations, ..backup }
        };
        worker.register_backup(make).await
    });
    let kept = kept
        .await
        .map_err(|_| Status::internal("the change was broken off"))
        .and_then(|kept| kept.map_err(|error| backups_error(&error)));
    let of = |keyring: &Keyring| keyring.backups.iter().find(|backup| backup.name == name).cloned();
    let needs = |keyring: &Keyring| json!({"name": name.to_string(), "generations": of(keyring).map(|backup| backup.generations)});
    let keyring = audited.outcome(kept, needs).await?;
    let (_, unlisted) = keyring.numbers_of(key_ids.iter());
    Ok(RegisterBackupResponse { backup: of(&keyring).map(|backup| shown(&keyring, &backup)), unlisted })
}

pub async fn forget(
    lifecycle: &Arc<Lifecycle>,
    audit: &AdminAudit,
    request: Request<ForgetBackupRequest>,
) -> Result<ForgetBackupResponse, Status> {
    let name: String = request.get_ref().name.chars().take(200).collect();
    let audited = audit.intent("forget-backup", &request, json!({"name": name})).await?;
    let worker = lifecycle.clone();
    // As above.
    let forgotten = tokio::spawn(async move { worker.forget_backup(&name).await })
        .await
        .map_err(|_| Status::internal("the change was broken off"))
        .and_then(|forgotten| forgotten.map_err(|error| backups_error(&error)));
    audited.outcome(forgotten, |backup| json!({"name": backup.name.to_string()})).await?;
    Ok(ForgetBackupResponse {})
}

pub fn list(lifecycle: &Lifecycle) -> Result<ListBackupsResponse, Status> {
    let serving = lifecycle.keys().serving();
    let no_keyring = || Status::unavailable(format!("there is no authentic keyring: {}", serving.reason));
    let keyring = &serving.keys.as_ref().ok_or_else(no_keyring)?.keyring;
    Ok(ListBackupsResponse { backups: keyring.backups.iter().map(|backup| shown(keyring, backup)).collect() })
}

fn registered(request: &RegisterBackupRequest, keyring: &str) -> Result<Registered, Status> {
    let wrong = |what: &str| Status::invalid_argument(format!("this is no backup: {what}"));
    let name = request.name.parse().map_err(|_| wrong("a name has 1 to 64 printable characters"))?;
    if request.key_ids.len() > MAX_GENERATIONS || request.generations.len() > MAX_GENERATIONS {
        return Err(wrong("it needs more generations than there can be"));
    }
    let snapshot = match &request.source {
        None if request.key_ids.is_empty() && request.unknown == 0 => None,
        None => return Err(wrong("it does not say of which snapshot its key IDs are")),
        Some(source) => {
            let sha256 = source.snapshot_sha256.clone().try_into().map_err(|_| wrong("a SHA-256 has 32 bytes"))?;
            Some(Snapshot { sha256, revision: source.revision })
        }
    };
    let key_ids: Result<Vec<KeyId>, Status> = request
        .key_ids
        .iter()
        .map(|text| match text.parse::<KeyId>() {
            Ok(key_id) if key_id.keyring() == keyring => Ok(key_id),
            Ok(_) => Err(wrong("it names a key ID of another keyring")),
            Err(_) => Err(wrong("it names a malformed key ID")),
        })
        .collect();
    let generations = request.generations.iter().map(|number| GenerationNumber(*number)).collect();
    let backup = Backup { name, registered: 0, snapshot, generations, unknown: request.unknown };
    Ok(Registered { backup, key_ids: key_ids? })
}

fn shown(keyring: &Keyring, backup: &Backup) -> WireBackup {
    let is_destroyed = |number: &&GenerationNumber| {
        keyring.generation(**number).is_some_and(|generation| generation.state == GenerationState::Destroyed)
    };
    WireBackup {
        name: backup.name.to_string(),
        registered: backup.registered,
        source: backup.snapshot.as_ref().map(|snapshot| ScanSource {
            revision: snapshot.revision,
            snapshot_sha256: snapshot.sha256.to_vec(),
            ..ScanSource::default()
        }),
        generations: backup.generations.iter().map(|number| number.0).collect(),
        destroyed: backup.generations.iter().filter(is_destroyed).map(|number| number.0).collect(),
        unknown: backup.unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn request() -> RegisterBackupRequest {
        RegisterBackupRequest {
            name: "friday".into(),
            source: Some(ScanSource { revision: 9, snapshot_sha256: vec![1; 32], ..ScanSource::default() }),
            key_ids: vec![format!("ks1.edge.1.{}", "ab".repeat(16))],
            unknown: 2,
            generations: vec![],
        }
    }

    #[test]
    fn what_is_no_backup_is_refused() {
        assert!(registered(&request(), "edge").is_ok());
        type Change = fn(&mut RegisterBackupRequest);
        let changes: [(&str, Change); 8] = [
            ("no name", |backup| backup.name.clear()),
            ("control", |backup| backup.name = "a\u{1b}".into()),
            ("no source", |backup| backup.source = None),
            ("unknown without a source", |backup| (backup.source, backup.key_ids) = (None, vec![])),
            ("short hash", |backup| backup.source.as_mut().unwrap().snapshot_sha256 = vec![0; 31]),
            ("malformed", |backup| backup.key_ids[0].push('x')),
            ("foreign", |backup| backup.key_ids[0] = backup.key_ids[0].replace("edge", "core")),
            ("many", |backup| backup.generations = vec![1; MAX_GENERATIONS + 1]),
        ];
        for (name, change) in changes {
            let mut bad = request();
            change(&mut bad);
            assert_eq!(registered(&bad, "edge").err().map(|error| error.code()), Some(Code::InvalidArgument), "{name}");
        }
    }
}
