//! Roots on the wire: what each opens, and what is still needed of it.

use keystead_core::keyring::{GenerationState, Keyring, RootUse as Use};
use keystead_core::wrap::{Construction, WrappedKek};
use keystead_core::{RootId, RootKind};
use keystead_wire::admin::v1::{ListRootsResponse, Root, RootUse};

use super::scan;

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
    fn older_versions_of_the_cmk_in_the_token_are_no_removed_roots() {
        let ring = keyring(&[&[(RootKind::Pkcs11, b"a1")], &[(RootKind::Pkcs11, b"a2")]]);
        assert!(ring.removed_roots().is_empty() && warnings(&ring).is_empty());
        assert!(list(&ring).roots.iter().all(|root| !root.removed));
    }
}
