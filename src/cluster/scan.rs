//! One pass over a source: how many objects stand under each of our key IDs, and what is not ours.
//!
//! Whoever rotates or deletes a generation goes by it. So whatever could not be looked at is counted too.

use std::collections::BTreeMap;

use keystead_core::{KeyId, KeyringId};

use super::objects::{Stored, parse};
use super::source::Reader;

/// Key IDs kept. One is made a rotation.
const MAX_KEY_IDS: usize = 10_000;
/// Names of providers or of other keyrings, and kinds of objects in one group, told apart.
const MAX_NAMES: usize = 100;
const MAX_KINDS: usize = 20;
/// Names of objects kept of each group, the first ones.
const SAMPLES: usize = 5;
const MAX_NAME: usize = 200;
const REST: &str = "others";

/// What stands in an etcd.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    pub keys: u64,
    /// Objects under each key ID of the keyring that was asked for.
    pub ours: BTreeMap<KeyId, Group>,
    /// Objects of other keyrings, by name.
    pub foreign: BTreeMap<String, Group>,
    /// Objects of other providers, as `aescbc:v1`, and of other KMS v2 plugins, as `kms:v2:name`.
    pub others: BTreeMap<String, Group>,
    /// Secrets in the clear.
    pub plain_secrets: Group,
    /// Objects behind the KMS v2 prefix that cannot be read, entries that are no key-value pairs, and objects of key IDs
    /// beyond the bound: which generation they need is not known.
    pub unknown: Group,
}

/// Objects that have one thing in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    pub objects: u64,
    /// By resource, as `secrets` or `example.org/widgets`.
    pub kinds: BTreeMap<String, u64>,
    /// The first few, as `secrets/default/db`. Whoever writes etcd has chosen them.
    pub samples: Vec<String>,
}

/// A scan under way.
pub struct Scanner<'a> {
    keyring: &'a KeyringId,
    scan: Scan,
}

/// What a key holds, so that a later revision can take it back.
pub enum Holds {
    Ours(KeyId),
    Foreign(String),
    Other(String),
    Unknown,
    Plain,
}

impl Scan {
    pub fn of(keyring: &KeyringId) -> Scanner<'_> {
        Scanner { keyring, scan: Self::default() }
    }
}

impl Scanner<'_> {
    pub fn finish(self) -> Scan {
        self.scan
    }
}

impl Reader for Scanner<'_> {
    type Holds = Holds;

    fn look(&mut self, _key: &[u8], value: &[u8]) -> Holds {
        match parse(value) {
            Stored::Kms { provider, object } => match object.key_id.parse::<KeyId>() {
                Ok(key_id) if key_id.keyring() == self.keyring.as_str() => Holds::Ours(key_id),
                Ok(key_id) => Holds::Foreign(key_id.keyring().to_owned()),
                Err(_) => Holds::Other(format!("kms:v2:{provider}")),
            },
            Stored::Malformed => Holds::Unknown,
            Stored::Other { scheme } => Holds::Other(scheme.to_owned()),
            Stored::Plain => Holds::Plain,
        }
    }

    fn settle(&mut self, key: &[u8], holds: Holds) {
        let scan = &mut self.scan;
        scan.keys += 1;
        let group = match holds {
            Holds::Ours(key_id) if scan.ours.len() < MAX_KEY_IDS || scan.ours.contains_key(&key_id) => {
                scan.ours.entry(key_id).or_default()
            }
            Holds::Ours(_) | Holds::Unknown => &mut scan.unknown,
            Holds::Foreign(name) => bounded(&mut scan.foreign, name, MAX_NAMES),
            Holds::Other(name) => bounded(&mut scan.others, name, MAX_NAMES),
            // A ConfigMap in the clear is as it should be.
            Holds::Plain if kind_and_name(key).0 == "secrets" => &mut scan.plain_secrets,
            Holds::Plain => return,
        };
        group.add(key);
    }

    fn malformed(&mut self) {
        self.scan.unknown.objects += 1;
    }

    fn start_anew(&mut self) {
        self.scan = Scan::default();
    }
}

impl Group {
    fn add(&mut self, key: &[u8]) {
        self.objects += 1;
        let (kind, name) = kind_and_name(key);
        if self.samples.len() < SAMPLES {
            self.samples.push(cut(&format!("{kind}/{name}")));
        }
        *bounded(&mut self.kinds, kind, MAX_KINDS) += 1;
    }
}

fn bounded<T: Default>(map: &mut BTreeMap<String, T>, name: String, most: usize) -> &mut T {
    let name = cut(&name);
    let name = if map.len() < most || map.contains_key(&name) { name } else { REST.to_owned() };
    map.entry(name).or_default()
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_NAME).collect()
}

/// Resource and the rest of the key: `/registry/secrets/default/db`, `/registry/example.org/widgets/default/db`. The first
/// part is the apiserver's prefix.
fn kind_and_name(key: &[u8]) -> (String, String) {
    let text = String::from_utf8_lossy(key);
    let mut parts = text.strip_prefix('/').unwrap_or(&text).splitn(3, '/').skip(1);
    let (first, rest) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    match rest.split_once('/') {
        // Only the group of a custom resource has a dot.
        Some((resource, name)) if first.contains('.') => (format!("{first}/{resource}"), name.to_owned()),
        _ if first.is_empty() => ("unknown".to_owned(), text.into_owned()),
        _ => (first.to_owned(), rest.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::objects::EncryptedObject;
    use keystead_core::GenerationNumber;
    use prost::Message;

    fn stored(key_id: &str) -> Vec<u8> {
        let object = EncryptedObject { key_id: key_id.into(), ..EncryptedObject::default() };
        [b"k8s:enc:kms:v2:edge:".as_slice(), &object.encode_to_vec()].concat()
    }

    fn scanned(pairs: &[(&str, &[u8])]) -> Scan {
        let keyring = "edge".parse().unwrap();
        let mut scanner = Scan::of(&keyring);
        for (key, value) in pairs {
            let holds = scanner.look(key.as_bytes(), value);
            scanner.settle(key.as_bytes(), holds);
        }
        scanner.finish()
    }

    #[test]
    fn objects_are_counted_by_what_they_need() {
        let keyring: KeyringId = "edge".parse().unwrap();
        let key_id = KeyId::mint(&keyring, GenerationNumber(2), [1; 16]);
        let (ours, foreign) = (stored(key_id.as_str()), stored(&key_id.as_str().replace("edge", "core")));
        let scan = scanned(&[
            ("/registry/example.org/widgets/a/b", &ours),
            ("/registry/secrets/default/a", &ours),
            ("/registry/secrets/default/aescbc", b"k8s:enc:aescbc:v1:key1:x"),
            ("/registry/secrets/default/b", b"k8s\0"),
            ("/registry/secrets/default/c", &foreign),
            ("/registry/secrets/default/d", &stored("other")),
            ("/registry/secrets/default/e", b"k8s:enc:kms:v2:edge:\xff"),
            ("/registry/configmaps/default/f", b"{}"),
        ]);
        assert_eq!(scan.keys, 8);
        assert_eq!(scan.ours[&key_id].objects, 2);
        assert_eq!(scan.ours[&key_id].samples, ["example.org/widgets/a/b", "secrets/default/a"]);
        assert_eq!(scan.ours[&key_id].kinds["example.org/widgets"], 1);
        assert_eq!(scan.foreign["core"].objects, 1);
        assert_eq!((scan.others["aescbc:v1"].objects, scan.others["kms:v2:edge"].objects), (1, 1));
        assert_eq!((scan.plain_secrets.objects, scan.unknown.objects), (1, 1));
    }

    #[test]
    fn names_that_a_forger_invents_are_bounded() {
        let values: Vec<(String, Vec<u8>)> = (0..1000)
            .map(|number| {
                (format!("/registry/kind{number}/{}", "n".repeat(5000)), format!("k8s:enc:p{number}:v1:").into())
            })
            .collect();
        let pairs: Vec<(&str, &[u8])> = values.iter().map(|(key, value)| (key.as_str(), value.as_slice())).collect();
        let scan = scanned(&pairs);
        assert_eq!(scan.others.len(), MAX_NAMES + 1);
        assert_eq!(scan.others[REST].objects, 900);
        assert!(scan.others.values().all(|group| group.kinds.len() <= MAX_KINDS + 1));
        assert!(scan.others.values().flat_map(|group| &group.samples).all(|name| name.len() <= MAX_NAME));
    }

    #[test]
    fn keys_of_any_form_have_a_kind() {
        for (key, kind, name) in [
            ("/registry/secrets/a/b", "secrets", "a/b"),
            ("kubernetes.io/secrets/a/b", "secrets", "a/b"),
            ("/registry/apps.example/x/a/b", "apps.example/x", "a/b"),
            ("/registry/apps.example/x", "apps.example", "x"),
            ("compact_rev_key", "unknown", "compact_rev_key"),
            ("", "unknown", ""),
            ("///", "unknown", "///"),
        ] {
            assert_eq!(kind_and_name(key.as_bytes()), (kind.to_owned(), name.to_owned()), "{key}");
        }
    }
}
