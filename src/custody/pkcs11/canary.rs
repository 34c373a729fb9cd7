//! The canary: does the device still open what it is known to have sealed? Only a dead canary means a dead device.
//!
//! Without it, whoever can put damaged wraps before us could make us believe that the token is down: tokens give the
//! same code for both.

use keystead_core::id::{GenerationNumber, KeyId, RootKind};
use keystead_core::wrap::Construction;
use keystead_core::{Kek, RootId, WrapContext};

use super::cmk::{Cmk, Mechanism};
use super::failure::Failure;
use super::random;
use super::session::Session;

/// A known answer under a key made for it, kept from the negotiation.
pub(super) struct Canary {
    pub(super) key: Cmk,
    pub(super) wrap: Construction,
    pub(super) kek: Kek,
}

impl Canary {
    pub(super) fn sing(&self, session: &Session) -> Result<(), Failure> {
        same(&self.key.open(session, &context(1), &self.wrap)?, &self.kek)
    }
}

/// Seals under a CMK and opens again.
pub(super) fn round_trip(session: &Session, cmk: &Cmk, mechanism: Mechanism) -> Result<(), Failure> {
    let kek = Kek::take(&mut *random::kernel()?);
    let wrap = cmk.seal(session, mechanism, &context(1), &kek)?;
    same(&cmk.open(session, &context(1), &wrap)?, &kek)
}

/// A context that no generation has: `canary` wraps open nothing but canaries.
pub(super) fn context(generation: u64) -> WrapContext {
    let keyring = "canary".parse().expect("a constant of the right alphabet");
    let generation = GenerationNumber(generation);
    WrapContext {
        key_id: KeyId::mint(&keyring, generation, [0; 16]),
        keyring,
        generation,
        root_kind: RootKind::Pkcs11,
        root_id: RootId::new(b"keystead-canary").expect("15 bytes are a root ID"),
    }
}

fn same(opened: &Kek, known: &Kek) -> Result<(), Failure> {
    if opened.commitment() == known.commitment() {
        return Ok(());
    }
    Err(Failure::device("the token opened a wrap to another key than was sealed"))
}
