//! One session with what it has found: CMK handles are looked up once and die with the session.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cryptoki::context::Pkcs11;
use cryptoki::session::SessionState;
use cryptoki::slot::Slot;
use keystead_core::RootId;

use super::cmk::{self, Cmk};
use super::failure::Failure;

/// Counts what reaches the device: one for each operation (a find, a decrypt, a key generation), however many
/// `C_` functions it takes.
pub(super) type Operations = Arc<AtomicU64>;

pub(super) struct Session {
    raw: cryptoki::session::Session,
    operations: Operations,
    cmks: HashMap<RootId, Cmk>,
}

impl Session {
    pub(super) fn open(pkcs11: &Pkcs11, slot: Slot, operations: &Operations) -> Result<Self, Failure> {
        operations.fetch_add(1, Ordering::Relaxed);
        let raw = pkcs11.open_rw_session(slot)?;
        Ok(Self { raw, operations: Arc::clone(operations), cmks: HashMap::new() })
    }

    /// The session, for exactly one operation.
    pub(super) fn call(&self) -> &cryptoki::session::Session {
        self.operations.fetch_add(1, Ordering::Relaxed);
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

    /// To be asked before "nothing found" is believed: a session that is not logged in finds no private object, and no
    /// error says so.
    pub(super) fn require_login(&self) -> Result<(), Failure> {
        match self.call().get_session_info()?.session_state() {
            SessionState::RoUser | SessionState::RwUser => Ok(()),
            state => Err(Failure::Stale(format!("the token's login is gone (session state {state:?})"))),
        }
    }
}
