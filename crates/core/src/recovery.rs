//! Recovery: what a backup says of a generation, and which of the keys that came out of it may be believed.
//!
//! Whoever can write etcd can put an annotation there with a KEK of his own, wrapped to a public key. So a key that came
//! out of a public-key wrap is *unproven*: it is taken only if it opens objects, and if no second key does.

use crate::annotation::Annotation;
use crate::context::{EnvelopeContext, WrapContext};
use crate::envelope::EnvelopeKey;
use crate::id::{GenerationNumber, KeyId, KeyringId, RootKind};
use crate::secret::{Kek, KeyCommitment};
use crate::wrap::{Construction, WrappedKek};

/// How far above the newest opened generation a number may lie to be taken for one that was handed out.
const PLAUSIBLE_GAP: u64 = 1_000_000;

/// One key ID as seen in a backup. Nothing in it is authentic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    pub key_id: KeyId,
    /// Objects that stand under it now.
    pub objects: u64,
    /// Distinct ones.
    pub annotations: Vec<Annotation>,
    /// Distinct ciphertexts of seeds, each with the number of objects that carry it.
    pub envelopes: Vec<(Vec<u8>, u64)>,
    /// There were more annotations than were kept.
    pub incomplete: bool,
}

/// A key that came out of a wrap and matches the commitment beside it.
#[derive(Debug)]
pub struct Candidate {
    pub kek: Kek,
    /// The wrap it came out of.
    pub wrap: WrappedKek,
    /// The others of the same annotation; not looked into.
    pub others: Vec<WrappedKek>,
}

/// How much is known of where a key came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Out of a wrap that only the token itself can have made.
    Proven,
    /// Out of a public-key wrap: anybody can have made it.
    Unproven,
}

/// The key of one generation.
#[derive(Debug)]
pub struct Recovered {
    pub candidate: Candidate,
    pub origin: Origin,
    /// Objects whose seeds it opens.
    pub opens: u64,
}

/// Why a generation has no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    #[error("it has no wrap for a root that is here")]
    NoRoot,
    #[error("no wrap opens: {0}")]
    WouldNotOpen(String),
    #[error("what came out of its wraps opens none of its objects: the annotation is damaged or forged")]
    OpensNothing,
    #[error(
        "more than one key claims to be it, each opening some objects: somebody has written to etcd. Name the right one with \
         --trust: {}", list(.0)
    )]
    Contested(Vec<KeyCommitment>),
    #[error("its number is taken by {0}, which comes before it")]
    NumberTaken(KeyId),
    #[error("another key ID of unproven origin has the same number. Name the right one with --trust {}", list(&[*.0]))]
    NumberContested(KeyCommitment),
}

fn list(commitments: &[KeyCommitment]) -> String {
    let texts: Vec<String> = commitments.iter().map(|commitment| crate::hex::encode(commitment.as_bytes())).collect();
    texts.join(", ")
}

impl Sighting {
    /// The keyring that the key ID names.
    pub fn keyring(&self) -> KeyringId {
        // A key ID is parsed with its keyring's name.
        self.key_id.keyring().parse().expect("a key ID holds a keyring name")
    }

    pub fn wrap_context(&self, wrap: &WrappedKek) -> WrapContext {
        WrapContext {
            keyring: self.keyring(),
            generation: self.key_id.generation(),
            key_id: self.key_id.clone(),
            root_kind: wrap.root_kind,
            root_id: wrap.root_id.clone(),
        }
    }

    /// Objects whose seeds open under `kek`.
    pub fn opened_by(&self, kek: &Kek) -> u64 {
        let context = EnvelopeContext::new(&self.keyring(), self.key_id.generation(), &self.key_id);
        let key = EnvelopeKey::new(kek);
        let opened = self.envelopes.iter().filter(|(envelope, _)| key.decrypt(&context, envelope).is_ok());
        opened.map(|(_, objects)| objects).sum()
    }

    /// Picks the generation's key from what its wraps gave. `trusted`: commitments that a person vouches for.
    ///
    /// # Errors
    /// [`Loss::OpensNothing`], [`Loss::Contested`], [`Loss::NoRoot`] without candidates.
    pub fn judge(&self, candidates: Vec<Candidate>, trusted: &[KeyCommitment]) -> Result<Recovered, Loss> {
        let mut distinct: Vec<Recovered> = Vec::new();
        for candidate in candidates {
            let origin = candidate.origin();
            let commitment = candidate.kek.commitment();
            match distinct.iter_mut().find(|known| known.candidate.kek.commitment() == commitment) {
                Some(known) if known.origin == Origin::Unproven && origin == Origin::Proven => {
                    known.candidate = candidate;
                    known.origin = origin;
                }
                Some(_) => {}
                None => distinct.push(Recovered { opens: self.opened_by(&candidate.kek), candidate, origin }),
            }
        }
        if distinct.is_empty() {
            return Err(Loss::NoRoot);
        }
        let vouched = |each: &Recovered| trusted.contains(&each.candidate.kek.commitment());
        if let Some(index) = distinct.iter().position(vouched) {
            return Ok(distinct.swap_remove(index));
        }
        if distinct.iter().any(|each| each.origin == Origin::Proven) {
            distinct.retain(|each| each.origin == Origin::Proven);
        } else if !self.envelopes.is_empty() {
            distinct.retain(|each| each.opens > 0);
        }
        if distinct.len() > 1 {
            return Err(Loss::Contested(distinct.iter().map(|each| each.candidate.kek.commitment()).collect()));
        }
        distinct.pop().ok_or(Loss::OpensNothing)
    }
}

impl Candidate {
    pub fn origin(&self) -> Origin {
        Origin::of(&self.wrap)
    }
}

impl Origin {
    /// Only a secret-key wrap shows that its maker had the CMK. A token's own public key wraps for anybody who knows it.
    pub fn of(wrap: &WrappedKek) -> Self {
        match (wrap.root_kind, Construction::parse(&wrap.bytes)) {
            (RootKind::Pkcs11, Ok(Construction::AesGcm { .. })) => Self::Proven,
            // A cloud wraps by a secret key as well, and only for who has a credential.
            (kind, _) if kind.is_upstream() => Self::Proven,
            _ => Self::Unproven,
        }
    }
}

/// The number to count on from: above everything opened and everything seen, unless that is absurdly far above: whoever
/// writes a huge number into etcd must not use up all there are.
pub fn last_number(
    opened: impl IntoIterator<Item = GenerationNumber>,
    seen: impl IntoIterator<Item = GenerationNumber>,
) -> GenerationNumber {
    let opened = opened.into_iter().max().unwrap_or(GenerationNumber(0));
    let bound = GenerationNumber(opened.0.saturating_add(PLAUSIBLE_GAP));
    seen.into_iter().filter(|number| *number <= bound).max().unwrap_or(opened).max(opened)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RootId;

    fn kek(byte: u8) -> Kek {
        Kek::take(&mut [byte; 32])
    }

    fn candidate(byte: u8, kind: RootKind, construction: Construction) -> Candidate {
        let root_id = RootId::new(&[byte]).unwrap();
        let wrap = WrappedKek { root_kind: kind, root_id, bytes: construction.to_bytes() };
        Candidate { kek: kek(byte), wrap, others: Vec::new() }
    }

    fn by_token(byte: u8) -> Candidate {
        candidate(byte, RootKind::Pkcs11, Construction::AesGcm { iv: [1; 12], sealed: [0; 48] })
    }

    fn by_public_key(byte: u8) -> Candidate {
        candidate(byte, RootKind::Recovery, Construction::HpkeP256 { encapsulated: [4; 65], sealed: [0; 48] })
    }

    /// Objects under the KEKs of these bytes.
    fn sighting(under: &[u8]) -> Sighting {
        let keyring: KeyringId = "edge".parse().unwrap();
        let key_id = KeyId::mint(&keyring, GenerationNumber(3), [9; 16]);
        let context = EnvelopeContext::new(&keyring, GenerationNumber(3), &key_id);
        let envelopes = under
            .iter()
            .map(|&byte| (EnvelopeKey::new(&kek(byte)).encrypt(&context, [byte; 24], b"seed"), 5))
            .collect();
        Sighting { key_id, objects: 5 * under.len() as u64, annotations: Vec::new(), envelopes, incomplete: false }
    }

    #[test]
    fn forged_annotation_that_opens_nothing_is_passed_over() {
        let found = sighting(&[1]).judge(vec![by_public_key(66), by_public_key(1)], &[]).unwrap();
        assert_eq!((found.candidate.kek.commitment(), found.opens), (kek(1).commitment(), 5));
        assert_eq!(found.origin, Origin::Unproven);
        assert_eq!(sighting(&[1]).judge(vec![by_public_key(66)], &[]).unwrap_err(), Loss::OpensNothing);
    }

    #[test]
    fn two_keys_that_both_open_objects_need_a_persons_word() {
        let both = || vec![by_public_key(66), by_public_key(1)];
        let Err(Loss::Contested(names)) = sighting(&[1, 66, 66]).judge(both(), &[]) else { panic!("was decided") };
        assert_eq!(names.len(), 2);
        let found = sighting(&[1, 66, 66]).judge(both(), &[kek(1).commitment()]).unwrap();
        assert_eq!((found.candidate.kek.commitment(), found.opens), (kek(1).commitment(), 5));
    }

    #[test]
    fn key_that_only_the_token_can_have_wrapped_wins_over_any_other() {
        let found = sighting(&[1, 66, 66]).judge(vec![by_public_key(66), by_token(1)], &[]).unwrap();
        assert_eq!((found.candidate.kek.commitment(), found.origin), (kek(1).commitment(), Origin::Proven));
        // The same key out of two wraps is one key, and proven if one of them proves it.
        let found = sighting(&[1]).judge(vec![by_public_key(1), by_token(1)], &[]).unwrap();
        assert_eq!((found.origin, found.candidate.wrap.root_kind), (Origin::Proven, RootKind::Pkcs11));
    }

    #[test]
    fn without_objects_a_single_key_is_taken_and_two_are_not() {
        assert!(sighting(&[]).judge(vec![by_public_key(1)], &[]).is_ok());
        assert!(matches!(sighting(&[]).judge(vec![by_public_key(1), by_public_key(2)], &[]), Err(Loss::Contested(_))));
        assert_eq!(sighting(&[1]).judge(Vec::new(), &[]).unwrap_err(), Loss::NoRoot);
    }

    #[test]
    fn numbers_go_on_above_everything_plausible() {
        let numbers = |list: &[u64]| list.iter().map(|&number| GenerationNumber(number)).collect::<Vec<_>>();
        assert_eq!(last_number(numbers(&[2, 3]), numbers(&[2, 3, 7])), GenerationNumber(7));
        assert_eq!(last_number(numbers(&[2, 3]), numbers(&[3, u64::MAX])), GenerationNumber(3));
        assert_eq!(last_number(numbers(&[]), numbers(&[])), GenerationNumber(0));
    }
}
