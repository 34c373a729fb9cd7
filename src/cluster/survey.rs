//! One pass over a source: which key IDs its objects name, with what annotations and envelopes.
//!
//! Wraps are taken from every revision, objects are counted as they stand at the newest one.

use std::collections::{BTreeMap, HashMap};

use keystead_core::annotation::{self, Annotation};
use keystead_core::recovery::Sighting;
use keystead_core::{KeyId, KeyringId};

use super::objects::{EncryptedObject, Stored, parse};
use super::source::Reader;

/// Distinct annotations kept of one key ID. An honest one has a single one for ever.
const MAX_ANNOTATIONS: usize = 64;
/// Distinct envelopes kept of one key ID. An honest apiserver makes one a start.
const MAX_ENVELOPES: usize = 10_000;
/// Key IDs kept. One is made a rotation.
const MAX_KEY_IDS: usize = 10_000;
/// Longest envelope that is looked at: the apiserver's seeds have 32 bytes.
const MAX_ENVELOPE: usize = 4096;

/// What a source holds.
#[derive(Debug, Default)]
pub struct Survey {
    /// Of the keyring that was asked for, by number and key ID.
    pub sightings: Vec<Sighting>,
    /// Objects of other keyrings, by name.
    pub foreign: BTreeMap<String, u64>,
    /// Objects of KMS v2 plugins that are not Keystead.
    pub other_plugins: u64,
    /// Keys in the clear or of other providers.
    pub other: u64,
    /// Objects behind our prefix that could not be read, and entries that are no key-value pairs.
    pub malformed: u64,
    /// Key IDs beyond the bound, that were passed over.
    pub passed_over: u64,
}

/// What a key holds, so that a later revision can take it back.
#[derive(Clone, PartialEq, Eq)]
pub enum Holds {
    Ours { key_id: KeyId, envelope: Vec<u8> },
    Foreign(String),
    OtherPlugin,
    Other,
    Malformed,
}

#[derive(Default)]
struct Seen {
    annotations: Vec<Annotation>,
    incomplete: bool,
}

/// A survey under way.
pub struct Surveyor<'a> {
    keyring: &'a KeyringId,
    provider: Option<&'a str>,
    seen: HashMap<KeyId, Seen>,
    envelopes: HashMap<KeyId, HashMap<Vec<u8>, u64>>,
    objects: HashMap<KeyId, u64>,
    survey: Survey,
}

impl Survey {
    /// Looks for `keyring`; with `provider`, only at objects of that provider's name.
    pub fn of<'a>(keyring: &'a KeyringId, provider: Option<&'a str>) -> Surveyor<'a> {
        Surveyor {
            keyring,
            provider,
            seen: HashMap::new(),
            envelopes: HashMap::new(),
            objects: HashMap::new(),
            survey: Self::default(),
        }
    }
}

impl Reader for Surveyor<'_> {
    type Holds = Holds;

    fn look(&mut self, _key: &[u8], value: &[u8]) -> Holds {
        match parse(value) {
            Stored::Kms { provider: name, object } if self.provider.is_none_or(|wanted| wanted == name) => {
                look_at(object, self.keyring, &mut self.seen, &mut self.survey.passed_over)
            }
            Stored::Kms { .. } => Holds::OtherPlugin,
            Stored::Malformed => Holds::Malformed,
            Stored::Other { .. } | Stored::Plain => Holds::Other,
        }
    }

    fn settle(&mut self, _key: &[u8], holds: Holds) {
        match holds {
            Holds::Ours { key_id, envelope } => {
                *self.objects.entry(key_id.clone()).or_default() += 1;
                let known = self.envelopes.entry(key_id).or_default();
                if known.len() < MAX_ENVELOPES || known.contains_key(&envelope) {
                    *known.entry(envelope).or_default() += 1;
                }
            }
            Holds::Foreign(name) => *self.survey.foreign.entry(name).or_default() += 1,
            Holds::OtherPlugin => self.survey.other_plugins += 1,
            Holds::Other => self.survey.other += 1,
            Holds::Malformed => self.survey.malformed += 1,
        }
    }

    fn malformed(&mut self) {
        self.survey.malformed += 1;
    }

    fn start_anew(&mut self) {
        *self = Survey::of(self.keyring, self.provider);
    }
}

impl Surveyor<'_> {
    pub fn finish(self) -> Survey {
        let Self { seen, mut envelopes, mut objects, mut survey, .. } = self;
        survey.sightings = seen
            .into_iter()
            .map(|(key_id, seen)| Sighting {
                objects: objects.remove(&key_id).unwrap_or(0),
                envelopes: envelopes.remove(&key_id).unwrap_or_default().into_iter().collect(),
                annotations: seen.annotations,
                incomplete: seen.incomplete,
                key_id,
            })
            .collect();
        survey.sightings.sort_by(|a, b| (a.key_id.generation(), &a.key_id).cmp(&(b.key_id.generation(), &b.key_id)));
        survey
    }
}

fn look_at(
    object: EncryptedObject,
    keyring: &KeyringId,
    seen: &mut HashMap<KeyId, Seen>,
    passed_over: &mut u64,
) -> Holds {
    let Ok(key_id) = object.key_id.parse::<KeyId>() else { return Holds::OtherPlugin };
    if key_id.keyring() != keyring.as_str() {
        return Holds::Foreign(key_id.keyring().to_owned());
    }
    if object.encrypted_dek_source.len() > MAX_ENVELOPE {
        return Holds::Malformed;
    }
    if !seen.contains_key(&key_id) && seen.len() >= MAX_KEY_IDS {
        *passed_over += 1;
        return Holds::Malformed;
    }
    let entry = seen.entry(key_id.clone()).or_default();
    let annotation = object.annotations.get(annotation::KEY).and_then(|bytes| Annotation::decode(bytes).ok());
    // One that names another key ID was put there by hand.
    if let Some(annotation) = annotation.filter(|annotation| annotation.key_id == key_id)
        && !entry.annotations.contains(&annotation)
    {
        if entry.annotations.len() < MAX_ANNOTATIONS {
            entry.annotations.push(annotation);
        } else {
            entry.incomplete = true;
        }
    }
    Holds::Ours { key_id, envelope: object.encrypted_dek_source }
}
