//! Scans of etcd on the wire: what is taken from a client, and how one is shown.

use std::collections::BTreeMap;

use keystead_core::KeyId;
use keystead_core::keyring::Keyring;
use keystead_core::scan::{Findings, Source};
use keystead_wire::admin::v1::{RecordScanRequest, Scan, ScanSource, ScannedKeyId};
use tonic::Status;

/// One is made a rotation.
const MAX_KEY_IDS: usize = 10_000;
/// An etcd holds fewer; sums stay far from the end of numbers.
const MAX_OBJECTS: u64 = 1 << 40;

/// Held to its bounds, and to the keyring that is served.
pub fn findings(request: RecordScanRequest, keyring: &str) -> Result<Findings, Status> {
    let wrong = |what: &str| Status::invalid_argument(format!("this is no scan: {what}"));
    let from = request.source.ok_or_else(|| wrong("it does not say of what"))?;
    let source = match (from.cluster_id, from.snapshot_sha256.len()) {
        (cluster, 0) if cluster != 0 => Source::Etcd { cluster, member: from.member_id },
        (0, _) => {
            let sha256 = from.snapshot_sha256.try_into().map_err(|_| wrong("a SHA-256 has 32 bytes"))?;
            Source::Snapshot { sha256 }
        }
        _ => return Err(wrong("it is of either a running etcd or a snapshot")),
    };
    if from.revision == 0 || from.revision > i64::MAX.cast_unsigned() {
        return Err(wrong("etcd has no such revision"));
    }
    if request.unknown > MAX_OBJECTS {
        return Err(wrong("it counts more than there can be"));
    }
    let objects = counted(&request.objects, keyring).map_err(wrong)?;
    Ok(Findings { source, revision: from.revision, restricted: request.restricted, objects, unknown: request.unknown })
}

/// Objects by key ID, each of this keyring and counted once.
pub fn counted(objects: &[ScannedKeyId], keyring: &str) -> Result<BTreeMap<KeyId, u64>, &'static str> {
    if objects.len() > MAX_KEY_IDS {
        return Err("it counts more than there can be");
    }
    let mut counted = BTreeMap::new();
    for each in objects {
        let key_id: KeyId = each.key_id.parse().map_err(|_| "it names a malformed key ID")?;
        if key_id.keyring() != keyring {
            return Err("it names a key ID of another keyring");
        }
        if each.objects > MAX_OBJECTS || counted.insert(key_id, each.objects).is_some() {
            return Err("it counts a key ID twice, or more than there can be");
        }
    }
    Ok(counted)
}

/// The newest scan, and what it proves.
pub fn shown(keyring: &Keyring) -> Option<Scan> {
    let scan = keyring.scan.as_ref()?;
    let revision = scan.revision;
    let source = match &scan.source {
        Source::Etcd { cluster, member } => {
            ScanSource { revision, cluster_id: *cluster, member_id: *member, ..ScanSource::default() }
        }
        Source::Snapshot { sha256 } => {
            ScanSource { revision, snapshot_sha256: sha256.to_vec(), ..ScanSource::default() }
        }
    };
    let rewritten = keyring.rewritten();
    Some(Scan {
        recorded: scan.recorded,
        source: Some(source),
        active_generation: scan.active.0,
        restricted: scan.restricted,
        unlisted: scan.unlisted,
        unknown: scan.unknown,
        rewritten: rewritten.is_ok(),
        rewritten_since: scan.proven.filter(|_| rewritten.is_ok()).unwrap_or(0),
        detail: rewritten.err().map(|why| why.to_string()).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn request() -> RecordScanRequest {
        let key_id =
            |number| ScannedKeyId { key_id: format!("ks1.edge.{number}.{}", "ab".repeat(16)), objects: number };
        RecordScanRequest {
            source: Some(ScanSource { revision: 9, cluster_id: 7, member_id: 8, ..ScanSource::default() }),
            restricted: false,
            objects: vec![key_id(1), key_id(2)],
            unknown: 3,
        }
    }

    #[test]
    fn scan_of_this_keyring_is_taken_as_it_is() {
        let taken = findings(request(), "edge").unwrap();
        assert_eq!((taken.source, taken.revision, taken.unknown), (Source::Etcd { cluster: 7, member: 8 }, 9, 3));
        assert_eq!(taken.objects.into_values().collect::<Vec<_>>(), [1, 2]);
        let mut snapshot = request();
        snapshot.source = Some(ScanSource { revision: 9, snapshot_sha256: vec![1; 32], ..ScanSource::default() });
        assert_eq!(findings(snapshot, "edge").unwrap().source, Source::Snapshot { sha256: [1; 32] });
    }

    #[test]
    fn what_is_no_scan_is_refused() {
        type Change = fn(&mut RecordScanRequest);
        let changes: [(&str, Change); 11] = [
            ("no source", |scan| scan.source = None),
            ("neither", |scan| scan.source.as_mut().unwrap().cluster_id = 0),
            ("both", |scan| scan.source.as_mut().unwrap().snapshot_sha256 = vec![0; 32]),
            ("short hash", |scan| {
                scan.source = Some(ScanSource { revision: 1, snapshot_sha256: vec![0; 31], ..ScanSource::default() });
            }),
            ("no revision", |scan| scan.source.as_mut().unwrap().revision = 0),
            ("negative revision", |scan| scan.source.as_mut().unwrap().revision = u64::MAX),
            ("malformed", |scan| scan.objects[0].key_id.push('x')),
            ("foreign", |scan| scan.objects[0].key_id = scan.objects[0].key_id.replace("edge", "core")),
            ("twice", |scan| scan.objects[0].key_id = scan.objects[1].key_id.clone()),
            ("endless", |scan| scan.objects[0].objects = u64::MAX),
            ("many", |scan| scan.objects = vec![scan.objects[0].clone(); MAX_KEY_IDS + 1]),
        ];
        for (name, change) in changes {
            let mut bad = request();
            change(&mut bad);
            assert_eq!(findings(bad, "edge").unwrap_err().code(), Code::InvalidArgument, "{name}");
        }
    }
}
