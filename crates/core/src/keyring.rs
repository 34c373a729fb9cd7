//! The keyring: one cluster's generations in order, and the transitions they may make.
//!
//! A [`Keyring`] is the content of the store's record. Its methods change it in memory and refuse what may not be; the
//! service persists the result before anyone sees it.

mod deletion;
mod disabling;
mod restoring;
mod roots;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use disabling::Disabling;
pub use restoring::Takeover;

use crate::annotation::{Annotation, AnnotationError};
use crate::audit::Position;
use crate::backup::Backup;
use crate::context::{EnvelopeContext, WrapContext};
use crate::hex;
use crate::hpke_p256::P256PublicKey;
use crate::id::{GenerationNumber, KeyId, KeyringId, NodeId, RootId, RootKind};
use crate::reason::Reason;
use crate::scan::Scan;
use crate::secret::KeyCommitment;
use crate::upstream_state::UpstreamState;
use crate::wrap::WrappedKek;

pub use deletion::{DeletionError, Pending, Suspension, Tombstone};
pub use roots::{Objects, RootUse, RootsChoice};

/// One cluster's key: generations in ascending order, and what binds them to this node and token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keyring {
    pub keyring: KeyringId,
    pub node: NodeId,
    /// Grows by one with every write; compare-and-swap goes by it.
    pub revision: u64,
    /// Number of the epoch secret that authenticates this record.
    pub epoch: u64,
    pub token: TokenIdentity,
    pub recovery: RecoveryRoot,
    /// New generations have their root in custody, also where the configuration names an upstream.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub custody_only: bool,
    /// Numbers handed out so far, also to generations that were rolled back: a number is never used twice.
    pub last_number: GenerationNumber,
    /// A rotation under way: written before the token is touched, so that what it leaves there has a name.
    pub rotation: Option<RotationIntent>,
    /// The newest scan of etcd: which generations are still needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scan: Option<Scan>,
    /// The cloud root's side; absent, also in the stored form, while no generation ever had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<UpstreamState>,
    /// An admin switched the key off; absent while it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<Disabling>,
    pub generations: Vec<Generation>,
    /// Backups of etcd that were registered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backups: Vec<Backup>,
    /// How far the audit trail had come when this was written: it may be longer, never shorter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<Position>,
}

/// The token that holds the CMKs, as it named itself at `init`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenIdentity {
    pub serial: String,
    pub label: String,
}

/// What `init` was told about recovery. Said explicitly either way: a keyring on one durable root is a choice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum RecoveryRoot {
    Declined,
    PublicKey {
        /// Uncompressed P-256 point.
        #[serde(with = "hex")]
        point: Vec<u8>,
    },
}

/// The first journal entry of a rotation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotationIntent {
    pub number: GenerationNumber,
    pub key_id: KeyId,
    /// The new CMK's `CKA_ID`: if the rotation dies, this object may be destroyed and no other.
    pub root_id: RootId,
    /// Unix seconds.
    pub started: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forced: Option<Reason>,
    /// The roots that its generation is made with, if they are others than the keyring's; the keyring's once it is active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roots: Option<RootsChoice>,
}

/// One version of the key: a CMK version, its KEK's wraps, and the key ID the apiserver stores.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    pub number: GenerationNumber,
    pub key_id: KeyId,
    pub state: GenerationState,
    /// Unix seconds.
    pub created: u64,
    /// Unix seconds; absent until it was activated.
    pub activated: Option<u64>,
    /// Why it was made although older ones were not proven to be rewritten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forced: Option<Reason>,
    pub commitment: KeyCommitment,
    /// One per durable root, fixed at creation.
    pub wraps: Vec<WrappedKek>,
    /// Its deletion was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
    /// It is destroyed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tombstone: Option<Tombstone>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GenerationState {
    /// Wrapped and stored; its key ID has not been shown to anyone.
    Prepared,
    /// Encrypts and decrypts. Exactly one.
    Active,
    /// Decrypts.
    Retired,
    /// Decrypts until its waiting period ends.
    PendingDeletion,
    /// A tombstone: its wraps are gone, its number and key ID stay taken.
    Destroyed,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransitionError {
    #[error("a rotation to generation {0} is already under way")]
    RotationUnderWay(GenerationNumber),
    #[error("no rotation is under way")]
    NoRotation,
    #[error("generation {number} is {state:?}, not prepared")]
    NotPrepared { number: GenerationNumber, state: GenerationState },
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    #[error("the keyring is inconsistent: {0}")]
    Inconsistent(&'static str),
}

impl Keyring {
    /// Before its first generation and its first write.
    pub fn empty(keyring: KeyringId, node: NodeId, token: TokenIdentity, recovery: RecoveryRoot) -> Self {
        Self {
            keyring,
            node,
            revision: 0,
            epoch: 1,
            token,
            recovery,
            custody_only: false,
            last_number: GenerationNumber(0),
            rotation: None,
            scan: None,
            upstream: None,
            disabled: None,
            generations: Vec::new(),
            backups: Vec::new(),
            audit: None,
        }
    }

    pub fn generation(&self, number: GenerationNumber) -> Option<&Generation> {
        self.generations.iter().find(|generation| generation.number == number)
    }

    /// By the full key ID: the number alone is not unique over a store's restorations.
    pub fn by_key_id(&self, key_id: &KeyId) -> Option<&Generation> {
        self.generations.iter().find(|generation| generation.key_id == *key_id)
    }

    pub fn active(&self) -> Option<&Generation> {
        self.generations.iter().find(|generation| generation.state == GenerationState::Active)
    }

    pub fn prepared(&self) -> Option<&Generation> {
        self.generations.iter().find(|generation| generation.state == GenerationState::Prepared)
    }

    /// All but the tombstones.
    pub fn alive(&self) -> impl Iterator<Item = &Generation> {
        self.generations.iter().filter(|generation| generation.state != GenerationState::Destroyed)
    }

    pub fn recovery_key(&self) -> Option<P256PublicKey> {
        self.recovery.key()
    }

    /// What a new KEK of the rotation under way is bound to in custody, whose roots are of kind `custody`.
    pub fn wrap_context(&self, intent: &RotationIntent, custody: RootKind) -> WrapContext {
        self.wrap_context_under(intent, custody, intent.root_id.clone())
    }

    /// What a new KEK of the rotation under way is bound to under one root.
    pub fn wrap_context_under(&self, intent: &RotationIntent, root_kind: RootKind, root_id: RootId) -> WrapContext {
        WrapContext {
            keyring: self.keyring.clone(),
            generation: intent.number,
            key_id: intent.key_id.clone(),
            root_kind,
            root_id,
        }
    }

    /// Journals the start of a rotation. `key_random` and `root_random` must be fresh.
    pub fn begin_rotation(
        &mut self,
        key_random: [u8; 16],
        root_random: [u8; 16],
        now: u64,
    ) -> Result<RotationIntent, TransitionError> {
        if let Some(rotation) = &self.rotation {
            return Err(TransitionError::RotationUnderWay(rotation.number));
        }
        let number = self.last_number.next();
        let intent = RotationIntent {
            number,
            key_id: KeyId::mint(&self.keyring, number, key_random),
            root_id: RootId::new(&root_random).expect("16 bytes are a root ID"),
            started: now,
            forced: None,
            roots: None,
        };
        self.last_number = number;
        self.rotation = Some(intent.clone());
        Ok(intent)
    }

    /// Adds the new generation as `prepared`.
    ///
    /// # Errors
    /// [`TransitionError::RotationUnderWay`] if it was added already: go on to [`Keyring::activate`] or roll back.
    pub fn prepare(
        &mut self,
        commitment: KeyCommitment,
        wraps: Vec<WrappedKek>,
        now: u64,
    ) -> Result<(), TransitionError> {
        let intent = self.rotation.as_ref().ok_or(TransitionError::NoRotation)?;
        if self.generation(intent.number).is_some() {
            return Err(TransitionError::RotationUnderWay(intent.number));
        }
        let generation = Generation {
            number: intent.number,
            key_id: intent.key_id.clone(),
            state: GenerationState::Prepared,
            created: now,
            activated: None,
            forced: intent.forced.clone(),
            commitment,
            wraps,
            pending: None,
            tombstone: None,
        };
        generation.annotation()?;
        self.generations.push(generation);
        Ok(())
    }

    /// Makes the prepared generation the active one and retires the one before it, in one step. Refused, it changes nothing.
    pub fn activate(&mut self, now: u64) -> Result<KeyId, TransitionError> {
        let intent = self.rotation.as_ref().ok_or(TransitionError::NoRotation)?;
        let Some(new) = self.generations.iter().position(|generation| generation.number == intent.number) else {
            return Err(TransitionError::Inconsistent("the rotation's generation is missing"));
        };
        let Generation { number, state, .. } = self.generations[new];
        if state != GenerationState::Prepared {
            return Err(TransitionError::NotPrepared { number, state });
        }
        // Nothing is changed before this line: a refusal must not retire the generation that serves.
        for generation in &mut self.generations {
            if generation.state == GenerationState::Active {
                generation.state = GenerationState::Retired;
            }
        }
        let roots = self.rotation.take().and_then(|intent| intent.roots);
        self.adopt_roots(roots);
        let new = &mut self.generations[new];
        new.state = GenerationState::Active;
        new.activated = Some(now);
        Ok(new.key_id.clone())
    }

    /// Forgets a rotation that cannot be finished. Its number stays used; the root ID to destroy is returned.
    pub fn roll_back_rotation(&mut self) -> Result<RotationIntent, TransitionError> {
        let intent = self.rotation.take().ok_or(TransitionError::NoRotation)?;
        self.generations
            .retain(|generation| generation.number != intent.number || generation.state != GenerationState::Prepared);
        if let Some(upstream) = &mut self.upstream {
            upstream.copies.retain(|copy| copy.generation != intent.number);
        }
        Ok(intent)
    }

    /// Checks what the types alone cannot: run on every record that is read.
    pub fn check(&self) -> Result<(), TransitionError> {
        let wrong = |what| Err(TransitionError::Inconsistent(what));
        if !self.generations.is_sorted_by(|a, b| a.number < b.number) {
            return wrong("generations are not in ascending order");
        }
        if self.generations.iter().any(|generation| generation.number > self.last_number || generation.number.0 == 0) {
            return wrong("a generation has a number that was never handed out");
        }
        if self.generations.iter().filter(|generation| generation.state == GenerationState::Active).count() > 1 {
            return wrong("more than one generation is active");
        }
        if self.generations.iter().any(|generation| generation.key_id.generation() != generation.number) {
            return wrong("a key ID names another generation");
        }
        if self.generations.iter().any(|generation| generation.key_id.keyring() != self.keyring.as_str()) {
            return wrong("a key ID names another keyring");
        }
        let prepared = |generation: &&Generation| generation.state == GenerationState::Prepared;
        if self
            .generations
            .iter()
            .filter(prepared)
            .any(|generation| self.rotation.as_ref().is_none_or(|intent| intent.key_id != generation.key_id))
        {
            return wrong("a generation is prepared without a rotation");
        }
        if let Some(intent) = &self.rotation {
            if intent.number != self.last_number
                || intent.key_id.generation() != intent.number
                || intent.key_id.keyring() != self.keyring.as_str()
            {
                return wrong("the rotation under way is not of the newest number");
            }
            // Rolling back destroys the CMK that the rotation names.
            if self.generations.iter().filter(|generation| !prepared(generation)).any(|generation| {
                generation.number == intent.number || generation.wraps.iter().any(|wrap| wrap.root_id == intent.root_id)
            }) {
                return wrong("the rotation under way names a CMK that a generation depends on");
            }
        }
        if self.scan.as_ref().is_some_and(|scan| !scan.objects.is_sorted_by(|a, b| a.number < b.number)) {
            return wrong("a scan's generations are not in ascending order");
        }
        if let Some(problem) = self.deletion_problem().or_else(|| self.backup_problem()) {
            return wrong(problem);
        }
        let unreadable = |root: &RecoveryRoot| *root != RecoveryRoot::Declined && root.key().is_none();
        if unreadable(&self.recovery) || unreadable(&self.next_roots().recovery) {
            return wrong("the recovery key is not a P-256 point");
        }
        if let Some(upstream) = &self.upstream {
            if let Some(problem) = upstream.problem() {
                return wrong(problem);
            }
            let mut numbers: Vec<_> = upstream.copies.iter().map(|copy| copy.generation).collect();
            numbers.sort_unstable();
            if numbers.windows(2).any(|pair| pair[0] == pair[1]) {
                return wrong("a generation has two offline copies");
            }
            // Of a generation that opens by another root, a copy would outlive the lease unseen.
            let has_root = |number: &GenerationNumber| {
                self.generation(*number).is_some_and(|generation| generation.upstream_wrap().is_some())
            };
            if !numbers.iter().all(has_root) {
                return wrong("an offline copy stands in for no upstream's wrap");
            }
        }
        Ok(())
    }
}

impl GenerationState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Active => "active",
            Self::Retired => "retired",
            Self::PendingDeletion => "pending-deletion",
            Self::Destroyed => "destroyed",
        }
    }
}

impl fmt::Display for GenerationState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Generation {
    /// Whether data under this generation may be decrypted.
    pub fn decrypts(&self) -> bool {
        matches!(self.state, GenerationState::Active | GenerationState::Retired | GenerationState::PendingDeletion)
    }

    pub fn envelope_context(&self, keyring: &KeyringId) -> EnvelopeContext {
        EnvelopeContext::new(keyring, self.number, &self.key_id)
    }

    pub fn wrap_context(&self, keyring: &KeyringId, wrap: &WrappedKek) -> WrapContext {
        self.context(keyring, wrap.root_kind, &wrap.root_id)
    }

    /// What a wrap of this generation under one root is bound to.
    pub fn context(&self, keyring: &KeyringId, root_kind: RootKind, root_id: &RootId) -> WrapContext {
        WrapContext {
            keyring: keyring.clone(),
            generation: self.number,
            key_id: self.key_id.clone(),
            root_kind,
            root_id: root_id.clone(),
        }
    }

    /// The wrap by the CMK in custody.
    pub fn custody_wrap(&self) -> Option<&WrappedKek> {
        self.wraps.iter().find(|wrap| matches!(wrap.root_kind, RootKind::Pkcs11 | RootKind::Tpm))
    }

    /// The wrap by a key in a cloud KMS.
    pub fn upstream_wrap(&self) -> Option<&WrappedKek> {
        self.wraps.iter().find(|wrap| wrap.root_kind.is_upstream())
    }

    /// What every Encrypt answer of this generation carries.
    pub fn annotation(&self) -> Result<Vec<u8>, AnnotationError> {
        Annotation { key_id: self.key_id.clone(), commitment: self.commitment, wraps: self.wraps.clone() }.encode()
    }
}
