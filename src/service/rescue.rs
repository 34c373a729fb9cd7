//! Rescue: while the token is dead, the KEKs in memory are wrapped to a public key, so that they outlive this process.
//!
//! Touches neither custody nor disk, and no KEK leaves the process but inside a wrap. Whoever may ask holds the admin socket and
//! chooses the key: rescue is as strong a right as reading every Secret.

use keystead_core::hpke_p256::P256PublicKey;
use keystead_core::rescue::{Rescue, RescuedGeneration};
use keystead_core::{KeyId, RootKind};
use rand_core::UnwrapErr;

use super::clock::unix_now;
use super::lifecycle::Lifecycle;
use super::rotation::random;

/// A rescue file and what is missing in it.
#[derive(Debug)]
pub struct Rescued {
    pub file: Rescue,
    /// Generations that decrypt but are not in memory.
    pub not_loaded: Vec<KeyId>,
}

#[derive(Debug, thiserror::Error)]
pub enum RescueError {
    #[error(
        "there is no key in memory to rescue: {0}. If the token is lost for good, use the recovery key and an etcd snapshot"
    )]
    NothingLoaded(String),
    #[error("the system's random source failed")]
    NoRandomness,
}

impl Lifecycle {
    /// Wraps every KEK in memory to `key`.
    pub fn rescue(&self, key: &P256PublicKey) -> Result<Rescued, RescueError> {
        let serving = self.keys.serving();
        let nothing = || RescueError::NothingLoaded(serving.reason.clone());
        let keys = serving.keys.as_ref().ok_or_else(nothing)?;
        // Checked once, so that the generator inside the HPKE seal cannot fail half-way.
        random::<1>().map_err(|_| RescueError::NoRandomness)?;
        let keyring = &keys.keyring;
        let mut rescued = Rescued {
            file: Rescue {
                keyring: keyring.keyring.clone(),
                node: keyring.node.clone(),
                written: unix_now(),
                epoch: keyring.epoch,
                last_number: keyring.last_number,
                generations: Vec::new(),
            },
            not_loaded: Vec::new(),
        };
        for generation in keyring.generations.iter().filter(|generation| generation.decrypts()) {
            let root_id = key.recovery_root_id();
            let context = generation.context(&keyring.keyring, RootKind::Recovery, &root_id);
            let wrap = keys.slot_of(generation).and_then(|slot| {
                slot.wrap_loaded(|kek| key.recovery_wrap(context, kek, &mut UnwrapErr(getrandom::SysRng)))
            });
            let Some(wrap) = wrap else {
                rescued.not_loaded.push(generation.key_id.clone());
                continue;
            };
            rescued.file.generations.push(RescuedGeneration {
                key_id: generation.key_id.clone(),
                created: generation.created,
                commitment: generation.commitment,
                wraps: std::iter::once(wrap).chain(generation.wraps.iter().cloned()).collect(),
            });
        }
        if rescued.file.generations.is_empty() {
            return Err(nothing());
        }
        tracing::warn!(
            recovery_root = %key.recovery_root_id(),
            generations = rescued.file.generations.len(),
            not_loaded = rescued.not_loaded.len(),
            "the keys in memory were wrapped to a recovery key by an admin's order"
        );
        Ok(rescued)
    }
}
