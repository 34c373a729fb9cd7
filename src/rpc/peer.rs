//! Who is at the other end of a connection, as the kernel says, and whether he may come in.
//!
//! Asked once a connection, when it is accepted; a process that changes its identity later keeps what it connected as.

use std::io;
use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use super::peer_options;
use super::roles::{Rights, RolePolicy};

/// The process that connected, at the moment it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// `None` where the peer lives in a process namespace that this one cannot see.
    pub pid: Option<i32>,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Who may come in. Nobody, if both are empty.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerPolicy {
    pub uids: Vec<u32>,
    /// Primary or supplementary.
    pub gids: Vec<u32>,
}

/// What each request carries: who asks, and the verdict on him. The services answer PERMISSION_DENIED to those who
/// are not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub pid: Option<i32>,
    /// The user that the peer's session was opened by, whoever it became since; on the admin socket, as far as it is known.
    pub login_uid: Option<u32>,
    pub admitted: bool,
    /// On the admin socket.
    pub rights: Rights,
}

impl Peer {
    /// By SO_PEERCRED and SO_PEERGROUPS.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        Ok(Self {
            uid: credentials.uid(),
            gid: credentials.gid(),
            pid: credentials.pid().filter(|pid| *pid != 0),
            groups: peer_options::groups(stream.as_fd())?,
        })
    }
}

impl PeerPolicy {
    pub fn allows(&self, peer: &Peer) -> bool {
        self.uids.contains(&peer.uid)
            || self.gids.contains(&peer.gid)
            || peer.groups.iter().any(|group| self.gids.contains(group))
    }

    pub(super) fn judge(&self, peer: &Peer, roles: &RolePolicy) -> Caller {
        let rights = roles.rights(peer);
        // Whoever holds a role must be able to come in and use it.
        let admitted = self.allows(peer) || (roles.grants.is_some() && !rights.is_empty());
        Caller { uid: peer.uid, gid: peer.gid, pid: peer.pid, login_uid: None, admitted, rights }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, gid: u32, groups: &[u32]) -> Peer {
        Peer { uid, gid, pid: Some(1), groups: groups.to_vec() }
    }

    #[test]
    fn policy_knows_uid_primary_and_supplementary_group() {
        let policy = PeerPolicy { uids: vec![0], gids: vec![50] };
        assert!(policy.allows(&peer(0, 7, &[])));
        assert!(policy.allows(&peer(7, 50, &[])));
        assert!(policy.allows(&peer(7, 7, &[8, 50])));
        assert!(!policy.allows(&peer(50, 7, &[8])), "a uid is no gid");
        assert!(!policy.allows(&peer(7, 0, &[0])), "a gid is no uid");
    }

    #[test]
    fn empty_policy_lets_nobody_in_not_even_root() {
        assert!(!PeerPolicy::default().allows(&peer(0, 0, &[0])));
    }

    #[tokio::test]
    async fn peer_of_a_pair_is_this_process() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = Peer::of(&one).unwrap();
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(peer.gid, rustix::process::getegid().as_raw());
        assert_eq!(peer.pid, Some(std::process::id().try_into().unwrap()));
        let ours: Vec<u32> = rustix::process::getgroups().unwrap().iter().map(|group| group.as_raw()).collect();
        assert_eq!(peer.groups, ours);
    }
}
