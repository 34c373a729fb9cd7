//! Who may come in through one socket and what they may do there, as it is now: a reload replaces it under open connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use super::peer::{Caller, Peer, PeerPolicy};
use super::roles::RolePolicy;

/// The site's word on one socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    pub max_connections: usize,
    pub policy: PeerPolicy,
    /// What those who come in may do; the default, on the KMS socket, makes no difference between them.
    pub roles: RolePolicy,
}

/// The same, shared by the socket and all its connections.
#[derive(Debug)]
pub struct LiveAdmission {
    current: ArcSwap<Admission>,
    /// Grows with each replacement, so that a connection knows for one load that its verdict still stands.
    version: AtomicU64,
}

/// One connection's peer, judged when it came and anew after every change.
#[derive(Debug)]
pub struct Verdict {
    peer: Peer,
    caller: Caller,
    version: u64,
    admission: Arc<LiveAdmission>,
}

impl LiveAdmission {
    pub fn new(admission: Admission) -> Self {
        Self { current: ArcSwap::from_pointee(admission), version: AtomicU64::new(0) }
    }

    /// Holds from the next request on, also for connections that are open.
    pub fn replace(&self, admission: Admission) {
        self.current.store(Arc::new(admission));
        self.version.fetch_add(1, Ordering::Release);
    }

    pub fn max_connections(&self) -> usize {
        self.current.load().max_connections
    }

    pub(super) fn judge(self: &Arc<Self>, peer: Peer) -> Verdict {
        // Before the policy: one that is replaced in between leaves a verdict that is known to be old.
        let version = self.version.load(Ordering::Acquire);
        Verdict { caller: self.caller(&peer), peer, version, admission: self.clone() }
    }

    fn caller(&self, peer: &Peer) -> Caller {
        let current = self.current.load();
        current.policy.judge(peer, &current.roles)
    }
}

impl Verdict {
    /// As of now.
    pub fn caller(&self) -> Caller {
        if self.admission.version.load(Ordering::Acquire) == self.version {
            self.caller
        } else {
            self.admission.caller(&self.peer)
        }
    }

    /// As of when the connection was made.
    pub(super) fn at_first(&self) -> Caller {
        self.caller
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::roles::{Action, Role};

    fn admission(uids: &[u32], role: Option<Role>) -> Admission {
        let members = PeerPolicy { uids: vec![7], gids: vec![] };
        let grants = role.map(|role| vec![(role, members)]);
        let policy = PeerPolicy { uids: uids.to_vec(), gids: vec![] };
        Admission { max_connections: 1, policy, roles: RolePolicy { grants, denials: vec![] } }
    }

    #[test]
    fn connection_that_is_open_is_judged_by_what_holds_now() {
        let live = Arc::new(LiveAdmission::new(admission(&[7], Some(Role::CryptoAdmin))));
        let verdict = live.judge(Peer { uid: 7, gid: 7, pid: None, groups: vec![] });
        assert!(verdict.caller().admitted && verdict.caller().rights.allow(Action::Rotate));
        live.replace(admission(&[7], Some(Role::Viewer)));
        assert!(verdict.caller().admitted && !verdict.caller().rights.allow(Action::Rotate));
        live.replace(admission(&[8], Some(Role::Viewer)));
        assert!(verdict.caller().admitted, "a role admits");
        live.replace(Admission {
            roles: RolePolicy { grants: Some(vec![]), denials: vec![] },
            ..admission(&[8], None)
        });
        assert!(!verdict.caller().admitted);
        live.replace(admission(&[7], Some(Role::CryptoAdmin)));
        assert!(verdict.caller().rights.allow(Action::Rotate));
        assert_eq!(verdict.at_first(), verdict.caller());
    }
}
