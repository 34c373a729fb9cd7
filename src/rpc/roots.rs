//! Roots on the wire: what each opens and what is still needed of it, changes of them, and the progress of the rotation that
//! every change is.

use std::sync::Arc;

use keystead_core::hpke_p256::P256PublicKey;
use keystead_core::keyring::{Generation, GenerationState, Keyring, RootUse as Use};
use keystead_core::reason::Reason;
use keystead_core::wrap::{Construction, WrappedKek};
use keystead_core::{RootId, RootKind};
use keystead_wire::admin::v1::change_roots_request::Change;
use keystead_wire::admin::v1::{ChangeRootsRequest, ListRootsResponse, Root, RootUse, RotateProgress};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;
use tonic::{Response, Status};

use super::admin::describe;
use super::audited::Audited;
use super::scan;
use super::status_map::rotation_error;
use crate::service::keys::Closed;
use crate::service::lifecycle::Lifecycle;
use crate::service::roots::RootsChange;
use crate::service::rotation::{RotationError, RotationStep};

/// A reason to go on although older generations may be needed; empty is none.
pub(super) fn forced(reason: &str) -> Result<Option<Reason>, Status> {
    match reason {
        "" => Ok(None),
        reason => reason.parse().map(Some).map_err(|error| invalid(&error)),
    }
}

/// What is asked for, and what the trail says of it.
pub(super) fn change(request: &ChangeRootsRequest) -> Result<(RootsChange, Option<Reason>, Value), Status> {
    let force = forced(&request.force)?;
    let change = request.change.as_ref().ok_or_else(|| Status::invalid_argument("it does not say which root"))?;
    let (change, mut details) = match change {
        Change::AddRecovery(add) => {
            let key = P256PublicKey::from_pem(&add.recovery_key).map_err(|error| invalid(&error))?;
            let details = json!({"add": "recovery", "root": key.recovery_root_id().to_string()});
            (RootsChange::AddRecovery { key, replace: add.replace }, details)
        }
        Change::RemoveRecovery(remove) => {
            (RootsChange::RemoveRecovery { leave_one_root: remove.leave_one_root }, json!({"remove": "recovery"}))
        }
        Change::AddUpstream(_) => (RootsChange::AddUpstream, json!({"add": "upstream"})),
        Change::RemoveUpstream(_) => (RootsChange::RemoveUpstream, json!({"remove": "upstream"})),
    };
    if let Some(reason) = &force {
        details["force"] = json!(reason.to_string());
    }
    Ok((change, force, details))
}

fn invalid(error: &impl ToString) -> Status {
    Status::invalid_argument(error.to_string())
}

/// What a rotation tells its steps to.
pub(super) type Progress = Box<dyn Fn(RotationStep) + Send + Sync>;

/// Carries a rotation out and tells its steps. In a task of its own: a client that hangs up does not stop it half-way.
pub(super) fn follow<R>(
    lifecycle: Arc<Lifecycle>,
    audited: Audited,
    rotate: impl FnOnce(Arc<Lifecycle>, Progress) -> R,
) -> Response<BoxStream<RotateProgress>>
where
    R: Future<Output = Result<Generation, RotationError>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(4);
    let steps = sender.clone();
    let progress = move |step| {
        let step = match step {
            RotationStep::Prepared => "prepared",
            RotationStep::Verified => "verified",
            // Told together with the generation, below.
            RotationStep::Activated => return,
        };
        let _ = steps.try_send(Ok(RotateProgress { step: step.into(), generation: None }));
    };
    let rotated = rotate(lifecycle.clone(), Box::new(progress));
    tokio::spawn(async move {
        let outcome = rotated.await.map_err(|error| rotation_error(&error));
        let made = |made: &Generation| json!({"generation": made.number.0, "key_id": made.key_id.as_str()});
        let last = audited.outcome(outcome, made).await.map(|generation| {
            let serving = lifecycle.keys().serving();
            let generation = serving.keys.as_ref().map(|keys| describe(keys, &generation));
            RotateProgress { step: "activated".into(), generation }
        });
        let _ = sender.send(last).await;
    });
    Response::new(Box::pin(ReceiverStream::new(receiver)))
}

/// One wrap of one generation.
pub(super) fn root(wrap: &WrappedKek) -> Root {
    let construction = match Construction::parse(&wrap.bytes) {
        Ok(Construction::AesGcm { .. }) => "aes-gcm",
        Ok(Construction::HpkeP256 { .. }) => "hpke-p256",
        Ok(Construction::RsaOaep { .. }) => "rsa-oaep",
        Ok(Construction::TpmEcdh { .. }) => "tpm-ecdh-p256",
        Ok(Construction::TpmRsaOaep { .. }) => "tpm-rsa-oaep",
        // Its inside is the cloud's affair.
        Err(_) if wrap.root_kind.is_upstream() => "cloud",
        Err(_) => "unknown",
    };
    Root { kind: wrap.root_kind.to_string(), id: id(wrap.root_kind, &wrap.root_id), construction: construction.into() }
}

/// As the cloud's console shows it, or in hex.
fn id(kind: RootKind, id: &RootId) -> String {
    match kind.is_upstream() {
        true => String::from_utf8_lossy(id.as_bytes()).into_owned(),
        false => id.to_string(),
    }
}

/// Every root of the keyring.
pub(super) fn list(keyring: &Keyring) -> ListRootsResponse {
    let removed = keyring.removed_roots();
    let shown = |root: Use| {
        let mut constructions: Vec<String> = Vec::new();
        let wraps = keyring.generations.iter().flat_map(|generation| &generation.wraps);
        for wrap in wraps.filter(|wrap| wrap.root_kind == root.kind && wrap.root_id == root.id) {
            let construction = self::root(wrap).construction;
            if !constructions.contains(&construction) {
                constructions.push(construction);
            }
        }
        RootUse {
            kind: root.kind.to_string(),
            id: id(root.kind, &root.id),
            constructions,
            removed: removed.contains(&root),
            generations: root.generations.iter().map(|number| number.0).collect(),
            opens_active: root.opens_active,
            objects: root.objects.map(|objects| objects.count),
            at_least: root.objects.is_some_and(|objects| objects.at_least),
        }
    };
    let alive = || keyring.generations.iter().filter(|generation| generation.state != GenerationState::Destroyed);
    ListRootsResponse {
        roots: keyring.root_uses().into_iter().map(shown).collect(),
        scan: scan::shown(keyring),
        generations: alive().map(|generation| generation.number.0).collect(),
        on_one_root: alive().filter(|each| each.wraps.len() < 2).map(|each| each.number.0).collect(),
    }
}

/// A line for each root that was taken from the key and that objects in etcd may need.
pub(super) fn warnings(keyring: &Keyring) -> Vec<String> {
    let mut custody: Option<Use> = None;
    let mut warnings = Vec::new();
    for root in keyring.removed_roots() {
        // One line for the token, however many versions of the CMK there were.
        if matches!(root.kind, RootKind::Pkcs11 | RootKind::Tpm) {
            match &mut custody {
                None => custody = Some(root),
                Some(known) => {
                    known.generations.extend(root.generations);
                    if let (Some(known), Some(more)) = (&mut known.objects, root.objects) {
                        known.count = known.count.saturating_add(more.count);
                    }
                }
            }
            continue;
        }
        let name = format!("{} {}", root.kind, id(root.kind, &root.id));
        warnings.extend(warning(&name, &root));
    }
    let token = custody.and_then(|root| warning(&format!("the CMK in the token ({})", root.kind), &root));
    warnings.extend(token);
    warnings
}

/// That generations rooted in the cloud are shut, and why.
pub(super) fn closed(keyring: &Keyring, closed: Option<&Closed>) -> Option<String> {
    closed.map(|closed| format!("{} cannot be opened: {}", in_cloud(keyring), closed.reason))
}

/// Where configuration and record do not say the same of the cloud: a line of what that means. A record that needs the cloud
/// while the configuration names none says so by what is sealed or shut.
pub(super) fn disagreement(keyring: &Keyring, configured: Option<(RootKind, RootId)>) -> Option<String> {
    let (kind, root_id) = configured?;
    let active = keyring.active()?;
    let named = format!("[upstream] names {kind} {}", id(kind, &root_id));
    if let Some(wrap) = active.upstream_wrap().filter(|_| active.is_rooted_in_cloud()) {
        let same = (wrap.root_kind, &wrap.root_id) == (kind, &root_id);
        let root = id(wrap.root_kind, &wrap.root_id);
        let moves = "`keystead roots add upstream` moves the key";
        return (!same).then(|| format!("{named}, but the active generation's root is {root}: {moves}"));
    }
    Some(match (keyring.custody_only, keyring.needs_cloud()) {
        (false, _) => format!(
            "{named}, but the active generation's root is in custody: the next rotation, or `keystead roots add upstream`, moves \
             the key to the cloud"
        ),
        (true, true) if keyring.rewritten().is_err() => format!(
            "{named}, but new generations stay in custody (`keystead roots remove upstream`): it is needed for {} until \
             every Secret is rewritten",
            in_cloud(keyring)
        ),
        (true, _) => format!(
            "{named}, but new generations stay in custody (`keystead roots remove upstream`), and no object in etcd needs it any \
             more: take [upstream] out of the configuration"
        ),
    })
}

/// `generation 2`, `generations 2, 3`: those that decrypt and are rooted in the cloud.
fn in_cloud(keyring: &Keyring) -> String {
    let generations = keyring.generations.iter().filter(|each| each.decrypts() && each.is_rooted_in_cloud());
    let numbers: Vec<_> = generations.map(|generation| generation.number.to_string()).collect();
    format!("generation{} {}", if numbers.len() == 1 { "" } else { "s" }, numbers.join(", "))
}

/// `None`: nothing in etcd needs it, and nothing was passed over.
fn warning(name: &str, root: &Use) -> Option<String> {
    let opens = match root.objects {
        None => {
            "opens an unknown number of objects: no scan since the last activation (`keystead etcd scan`)".to_owned()
        }
        Some(objects) if objects.count == 0 && !objects.at_least => return None,
        Some(objects) => {
            let about = if objects.at_least { "at least " } else { "" };
            format!("opens {about}{} objects in etcd", objects.count)
        }
    };
    Some(format!("root {name} was taken from the key and still {opens}. Keep it until every Secret is rewritten"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use keystead_core::keyring::{Generation, RecoveryRoot, TokenIdentity};
    use keystead_core::scan::{Findings, Source};
    use keystead_core::{GenerationNumber, KeyCommitment, KeyId};

    type Wraps = &'static [(RootKind, &'static [u8])];

    /// The last one is active.
    fn keyring(generations: &[Wraps]) -> Keyring {
        let name: keystead_core::KeyringId = "edge".parse().unwrap();
        let count = generations.len() as u64;
        let made = (1..).zip(generations).map(|(number, wraps)| Generation {
            number: GenerationNumber(number),
            key_id: KeyId::mint(&name, GenerationNumber(number), [1; 16]),
            state: if number == count { GenerationState::Active } else { GenerationState::Retired },
            created: 1,
            activated: Some(1),
            forced: None,
            pending: None,
            tombstone: None,
            commitment: KeyCommitment::from_bytes([0; 32]),
            wraps: wraps
                .iter()
                .map(|(kind, id)| WrappedKek { root_kind: *kind, root_id: RootId::new(id).unwrap(), bytes: vec![0] })
                .collect(),
        });
        Keyring {
            keyring: name.clone(),
            node: "n".parse().unwrap(),
            revision: 1,
            epoch: 1,
            token: TokenIdentity { serial: "1".into(), label: "a".into() },
            recovery: RecoveryRoot::Declined,
            custody_only: false,
            last_number: GenerationNumber(count),
            rotation: None,
            scan: None,
            upstream: None,
            disabled: None,
            backups: vec![],
            generations: made.collect(),
            audit: None,
        }
    }

    fn scanned(keyring: &mut Keyring, objects: &[u64], unknown: u64) {
        let found = keyring.generations.iter().map(|each| each.key_id.clone()).zip(objects.iter().copied());
        let findings = Findings {
            source: Source::Etcd { cluster: 1, member: 1 },
            revision: 1,
            restricted: false,
            objects: found.collect(),
            unknown,
        };
        keyring.record_scan(findings, 9);
    }

    const TOKEN_THEN_CLOUD: &[Wraps] = &[
        &[(RootKind::Pkcs11, b"a1"), (RootKind::Recovery, b"r1")],
        &[(RootKind::Pkcs11, b"a2"), (RootKind::Recovery, b"r1")],
        &[(RootKind::AlibabaKms, b"key-1"), (RootKind::Recovery, b"r2")],
    ];

    #[test]
    fn objects_are_counted_by_root_once_a_scan_was_recorded_since_the_activation() {
        let mut ring = keyring(TOKEN_THEN_CLOUD);
        assert!(list(&ring).roots.iter().all(|root| root.objects.is_none()));
        scanned(&mut ring, &[3, 4, 5], 0);
        let opens: Vec<_> =
            list(&ring).roots.into_iter().map(|root| (root.id, root.objects, root.removed, root.generations)).collect();
        let hex = |text: &str| RootId::new(text.as_bytes()).unwrap().to_string();
        assert_eq!(
            opens,
            [
                (hex("a1"), Some(3), true, vec![1]),
                (hex("a2"), Some(4), true, vec![2]),
                (hex("r1"), Some(7), true, vec![1, 2]),
                (hex("r2"), Some(5), false, vec![3]),
                ("key-1".to_owned(), Some(5), false, vec![3]),
            ]
        );
        // What a scan saw before the activation says nothing of what was written since.
        ring.scan.as_mut().unwrap().active = GenerationNumber(2);
        assert!(list(&ring).roots.iter().all(|root| root.objects.is_none()));
    }

    #[test]
    fn removed_root_is_warned_of_until_the_rewrite_is_proven() {
        let mut ring = keyring(TOKEN_THEN_CLOUD);
        assert_eq!(warnings(&ring).len(), 2, "{:?}", warnings(&ring));
        assert!(warnings(&ring).iter().all(|line| line.contains("no scan since the last activation")));
        scanned(&mut ring, &[3, 4, 5], 0);
        let told = warnings(&ring);
        assert!(told[0].contains("recovery") && told[0].contains("opens 7 objects"), "{told:?}");
        assert!(told[1].contains("token") && told[1].contains("opens 7 objects"), "{told:?}");
        // Nobody knows what those need that cannot be read.
        scanned(&mut ring, &[0, 0, 5], 2);
        assert!(warnings(&ring)[0].contains("at least 0"), "{:?}", warnings(&ring));
        scanned(&mut ring, &[0, 0, 5], 0);
        assert_eq!(warnings(&ring), Vec::<String>::new());
        assert_eq!(list(&ring).scan.unwrap().rewritten_since, 9);
    }

    #[test]
    fn configuration_and_record_that_differ_are_told_in_a_line() {
        let named = |key: &[u8]| Some((RootKind::AlibabaKms, RootId::new(key).unwrap()));
        let (one, two) = (named(b"key-1"), named(b"key-2"));
        const LOCAL: Wraps = &[(RootKind::Pkcs11, b"a1")];
        const CLOUD: Wraps = &[(RootKind::AlibabaKms, b"key-1")];
        let told = |ring: &Keyring, named| disagreement(ring, named).unwrap_or_default();
        let ring = keyring(&[LOCAL, CLOUD]);
        assert_eq!(told(&ring, one.clone()), "");
        assert!(told(&ring, two.clone()).contains("roots add upstream"), "{}", told(&ring, two.clone()));
        let mut ring = keyring(&[CLOUD, LOCAL]);
        assert!(told(&ring, one.clone()).contains("the next rotation"), "{}", told(&ring, one.clone()));
        ring.custody_only = true;
        assert!(told(&ring, one.clone()).contains("needed for generation 1 until"), "{}", told(&ring, one.clone()));
        scanned(&mut ring, &[0, 5], 0);
        assert!(told(&ring, one.clone()).contains("take [upstream] out"), "{}", told(&ring, one.clone()));
        assert_eq!(told(&ring, None), "");
    }

    #[test]
    fn older_versions_of_the_cmk_in_the_token_are_no_removed_roots() {
        let ring = keyring(&[&[(RootKind::Pkcs11, b"a1")], &[(RootKind::Pkcs11, b"a2")]]);
        assert!(ring.removed_roots().is_empty() && warnings(&ring).is_empty());
        assert!(list(&ring).roots.iter().all(|root| !root.removed));
    }
}
