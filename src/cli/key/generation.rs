//! One generation as programs read it: the same fields wherever a command shows one.

use base64ct::{Base64, Encoding};
use keystead_wire::admin::v1::{Generation, Scan, ScanSource};
use serde_json::{Value, json};

use super::deletion;
use crate::cli::time;

pub fn json(generation: &Generation) -> Value {
    json!({
        "number": generation.number,
        "key_id": generation.key_id,
        "state": generation.state,
        "created": time::rfc3339(generation.created),
        "activated": time::rfc3339(generation.activated),
        "loaded": generation.loaded,
        "objects": generation.objects,
        "fault": (!generation.fault.is_empty()).then_some(&generation.fault),
        "forced": (!generation.forced.is_empty()).then_some(&generation.forced),
        "deletion": generation.deletion.as_ref().map(deletion::as_json),
        "destroyed": generation.tombstone.as_ref().map(|tombstone| json!({
            "scheduled": time::rfc3339(tombstone.scheduled),
            "destroyed": time::rfc3339(tombstone.destroyed),
            "by": tombstone.by,
            "objects_left": tombstone.objects_left,
        })),
        "encrypts": generation.encrypts,
        "decrypts": generation.decrypts,
        "roots": generation.roots.iter().map(|root| json!({
            "kind": root.kind, "id": root.id, "construction": root.construction,
        })).collect::<Vec<_>>(),
        // Everything that recovery needs of this generation; `keystead recovery drill` reads it.
        "annotation": Base64::encode_string(&generation.annotation),
    })
}

/// A scan as programs read it.
pub fn scan(scan: &Scan) -> Value {
    json!({
        "recorded": time::rfc3339(scan.recorded),
        "source": scan.source.as_ref().map(scan_source),
        "active_generation": scan.active_generation,
        "restricted": scan.restricted,
        "unlisted": scan.unlisted,
        "unknown": scan.unknown,
        "rewritten": scan.rewritten,
        "rewritten_since": time::rfc3339(scan.rewritten_since),
        "detail": (!scan.detail.is_empty()).then_some(&scan.detail),
    })
}

/// Identities in hex, as etcd's own tools have them.
pub fn scan_source(source: &ScanSource) -> Value {
    let known = |id: u64| (source.cluster_id != 0).then(|| format!("{id:x}"));
    let sha256: String = source.snapshot_sha256.iter().map(|byte| format!("{byte:02x}")).collect();
    json!({
        "revision": source.revision,
        "cluster_id": known(source.cluster_id),
        "member_id": known(source.member_id),
        "snapshot_sha256": (!sha256.is_empty()).then_some(sha256),
    })
}
