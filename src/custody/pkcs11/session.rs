//! One session with what it has found: CMK handles are looked up once and die with the session.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cryptoki::context::Pkcs11;
use cryptoki::object::Attribute;
use cryptoki::session::SessionState;
use cryptoki::slot::Slot;
use keystead_core::RootId;

use super::cmk::{self, Cmk};
use super::failure::Failure;

/// What the sessions of one opening share.
#[derive(Clone)]
pub(super) struct Opening {
    pub(super) pkcs11: Pkcs11,
    pub(super) slot: Slot,
    /// No token object has been seen or made since the opening.
    pub(super) empty: Arc<AtomicBool>,
    /// Counts what reaches the device: one for each operation (a find, a decrypt, a key generation), however many
    /// `C_` functions it takes.
    pub(super) operations: Arc<AtomicU64>,
}

pub(super) struct Session {
    raw: cryptoki::session::Session,
    opening: Opening,
    cmks: HashMap<RootId, Cmk>,
}

impl Session {
    pub(super) fn open(opening: &Opening) -> Result<Self, Failure> {
        opening.operations.fetch_add(1, Ordering::Relaxed);
        let raw = opening.pkcs11.open_rw_session(opening.slot)?;
        Ok(Self { raw, opening: opening.clone(), cmks: HashMap::new() })
    }

    /// The session, for exactly one operation.
    pub(super) fn call(&self) -> &cryptoki::session::Session {
        self.opening.operations.fetch_add(1, Ordering::Relaxed);
        &self.raw
    }

    /// The CMK of that root.
    ///
    /// # Errors
    /// `CmkMissing` only when the token is logged in and has none.
    pub(super) fn cmk(&mut self, root: &RootId) -> Result<Cmk, Failure> {
        if let Some(known) = self.cmks.get(root) {
            return Ok(known.clone());
        }
        let found = cmk::find(self, root)?.ok_or_else(|| cmk::missing(root))?;
        self.cmks.insert(root.clone(), found.clone());
        Ok(found)
    }

    pub(super) fn forget(&mut self, root: &RootId) {
        self.cmks.remove(root);
    }

    /// To be asked before "nothing found" is believed. A session that is not logged in finds no private object, one of a
    /// token that was unplugged finds none at all, and no error says so.
    pub(super) fn believe_nothing_found(&self) -> Result<(), Failure> {
        self.require_login()?;
        if self.opening.empty.load(Ordering::Relaxed) || self.shows_objects()? {
            return Ok(());
        }
        Err(Failure::Hollow)
    }

    /// Whether there is any object on the token.
    pub(super) fn shows_objects(&self) -> Result<bool, Failure> {
        let mut objects = self.call().iter_objects(&[Attribute::Token(true)])?;
        Ok(objects.next().transpose()?.is_some())
    }

    /// An object of ours is on the token: from now on it is not empty.
    pub(super) fn made_object(&self) {
        self.opening.empty.store(false, Ordering::Relaxed);
    }

    /// An object of ours was destroyed just now, so the token is there; it may have been its last.
    pub(super) fn destroyed_object(&self) -> Result<(), Failure> {
        self.opening.empty.store(!self.shows_objects()?, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn require_login(&self) -> Result<(), Failure> {
        match self.call().get_session_info()?.session_state() {
            SessionState::RoUser | SessionState::RwUser => Ok(()),
            state => Err(Failure::Stale(format!("the token's login is gone (session state {state:?})"))),
        }
    }
}
