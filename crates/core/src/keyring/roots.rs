//! Roots over the life of a keyring: which ones the next generation gets, and what each of them still opens.
//!
//! The roots of a generation are fixed when it is made. So a changed choice takes effect with a new generation or not at
//! all: it travels in the intent of a rotation, and becomes the keyring's when that generation becomes active.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Generation, Keyring, RecoveryRoot, TransitionError};
use crate::hpke_p256::P256PublicKey;
use crate::id::{GenerationNumber, RootId, RootKind};

/// The roots that new generations get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootsChoice {
    pub recovery: RecoveryRoot,
    /// The CMK in custody is the root, also where the configuration names an upstream.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub custody_only: bool,
}

/// One root over all generations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootUse {
    pub kind: RootKind,
    pub id: RootId,
    /// Those that it opens, ascending; destroyed ones have no wraps.
    pub generations: Vec<GenerationNumber>,
    pub opens_active: bool,
    /// `None`: no scan was recorded since the active generation became that.
    pub objects: Option<Objects>,
}

/// How many objects in etcd, by the newest scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Objects {
    pub count: u64,
    /// Some could not be read, or not every key was looked at: there may be more.
    pub at_least: bool,
}

impl RecoveryRoot {
    pub fn of(key: Option<&P256PublicKey>) -> Self {
        match key {
            None => Self::Declined,
            Some(key) => Self::PublicKey { point: key.as_sec1().to_vec() },
        }
    }

    /// `None` if there is none.
    pub fn key(&self) -> Option<P256PublicKey> {
        match self {
            Self::Declined => None,
            Self::PublicKey { point } => P256PublicKey::from_sec1(point).ok(),
        }
    }
}

impl Generation {
    /// Whether only the cloud, or its offline copy, opens it here.
    pub fn is_rooted_in_cloud(&self) -> bool {
        self.upstream_wrap().is_some() && self.custody_wrap().is_none()
    }
}

impl Keyring {
    /// What the newest generation was made with.
    pub fn roots_choice(&self) -> RootsChoice {
        RootsChoice { recovery: self.recovery.clone(), custody_only: self.custody_only }
    }

    /// What the next generation is made with: the intent's choice while a rotation is under way.
    pub fn next_roots(&self) -> RootsChoice {
        self.rotation.as_ref().and_then(|intent| intent.roots.clone()).unwrap_or_else(|| self.roots_choice())
    }

    /// Has the rotation that was just begun change the roots. Nothing else is changed before it is activated.
    ///
    /// # Errors
    /// No rotation is under way, or its generation is made already.
    pub fn intend_roots(&mut self, roots: RootsChoice) -> Result<(), TransitionError> {
        let prepared = self.prepared().is_some();
        let intent = self.rotation.as_mut().filter(|_| !prepared).ok_or(TransitionError::NoRotation)?;
        intent.roots = Some(roots);
        Ok(())
    }

    /// The choice that the intent carried is in force from now on.
    pub(super) fn adopt_roots(&mut self, roots: Option<RootsChoice>) {
        if let Some(RootsChoice { recovery, custody_only }) = roots {
            self.recovery = recovery;
            self.custody_only = custody_only;
        }
    }

    /// Whether the active generation is.
    pub fn is_rooted_in_cloud(&self) -> bool {
        self.active().is_some_and(Generation::is_rooted_in_cloud)
    }

    /// Whether a generation that decrypts hangs on the cloud, though the active one may not.
    pub fn needs_cloud(&self) -> bool {
        self.newest_in_cloud().is_some()
    }

    /// Of the generations that decrypt and are rooted in the cloud the active one, else the newest.
    pub fn newest_in_cloud(&self) -> Option<&Generation> {
        let in_cloud = |generation: &&Generation| generation.decrypts() && generation.is_rooted_in_cloud();
        self.active().filter(in_cloud).or_else(|| self.generations.iter().rev().find(in_cloud))
    }

    /// Every root that opens a generation, by kind and ID, and what it still opens in etcd.
    pub fn root_uses(&self) -> Vec<RootUse> {
        let active = self.active().map(|active| active.number);
        let scan = self.scan.as_ref().filter(|scan| Some(scan.active) == active);
        let nothing = || scan.map(|scan| Objects { count: 0, at_least: scan.unknown > 0 || scan.restricted });
        let mut uses: BTreeMap<(u8, Vec<u8>), RootUse> = BTreeMap::new();
        for generation in &self.generations {
            for wrap in &generation.wraps {
                let key = (u8::from(wrap.root_kind), wrap.root_id.as_bytes().to_vec());
                let entry = uses.entry(key).or_insert_with(|| RootUse {
                    kind: wrap.root_kind,
                    id: wrap.root_id.clone(),
                    generations: Vec::new(),
                    opens_active: false,
                    objects: nothing(),
                });
                if entry.generations.last() == Some(&generation.number) {
                    continue;
                }
                entry.generations.push(generation.number);
                entry.opens_active |= Some(generation.number) == active;
                if let (Some(objects), Some(scan)) = (&mut entry.objects, scan) {
                    objects.count = objects.count.saturating_add(scan.objects(generation.number).unwrap_or(0));
                }
            }
        }
        uses.into_values().collect()
    }

    /// Roots that the active generation no longer has, and that older ones may need. Versions of a CMK in custody count
    /// only once the active generation has none there: a rotation replaces them without taking the token away.
    pub fn removed_roots(&self) -> Vec<RootUse> {
        let Some(active) = self.active() else { return Vec::new() };
        let stays = |root: &RootUse| {
            root.opens_active
                || (matches!(root.kind, RootKind::Pkcs11 | RootKind::Tpm) && active.custody_wrap().is_some())
        };
        let opens = |root: &RootUse| {
            let decrypts = |number: &GenerationNumber| self.generation(*number).is_some_and(Generation::decrypts);
            root.generations.iter().any(decrypts)
        };
        self.root_uses().into_iter().filter(|root| !stays(root) && opens(root)).collect()
    }
}
