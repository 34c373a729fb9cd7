//! Who may do what on the admin socket: roles granted to users and groups, and denials that win over every grant.
//!
//! Judged once a connection, from what the kernel says of the peer, and carried with each of its requests as [`Rights`]. User 0
//! holds no role by itself.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::peer::{Peer, PeerPolicy};

/// One thing that can be asked of the admin service. The names are those of the audit trail and the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Status,
    ListGenerations,
    Rotate,
    Rescue,
    RestartCustodian,
    VerifyAudit,
    QueryAudit,
    RecordScan,
    ExtendLease,
    Reload,
    ScheduleDeletion,
    CancelDeletion,
    RegisterBackup,
    ForgetBackup,
    ChangeRoots,
    Disable,
    Enable,
    RestoreStore,
}

/// A set of actions.
#[derive(Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rights(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Looks.
    Viewer,
    /// Keeps it running: looks, replaces the custodian, has the configuration read again.
    Operator,
    /// Changes the key: looks, rotates, rescues, disables, enables, deletes.
    CryptoAdmin,
    /// Looks, and reads the audit trail, which says who did what.
    Auditor,
}

/// Whose rights these are, by user or by primary or supplementary group.
pub type Members = PeerPolicy;

/// The roles of a site.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolePolicy {
    /// `None`: the site has not said who holds which; whoever is admitted to the socket may do everything.
    pub grants: Option<Vec<(Role, Members)>>,
    pub denials: Vec<(Rights, Members)>,
}

impl Action {
    pub const ALL: [Self; 18] = [
        Self::Status,
        Self::ListGenerations,
        Self::Rotate,
        Self::Rescue,
        Self::RestartCustodian,
        Self::VerifyAudit,
        Self::QueryAudit,
        Self::RecordScan,
        Self::ExtendLease,
        Self::Reload,
        Self::ScheduleDeletion,
        Self::CancelDeletion,
        Self::RegisterBackup,
        Self::ForgetBackup,
        Self::ChangeRoots,
        Self::Disable,
        Self::Enable,
        Self::RestoreStore,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::ListGenerations => "list",
            Self::Rotate => "rotate",
            Self::Rescue => "rescue",
            Self::RestartCustodian => "restart-custodian",
            Self::VerifyAudit => "audit-verify",
            Self::QueryAudit => "audit-query",
            Self::RecordScan => "record-scan",
            Self::ExtendLease => "extend-lease",
            Self::Reload => "reload",
            Self::ScheduleDeletion => "schedule-deletion",
            Self::CancelDeletion => "cancel-deletion",
            Self::RegisterBackup => "register-backup",
            Self::ForgetBackup => "forget-backup",
            Self::ChangeRoots => "change-roots",
            Self::Disable => "disable",
            Self::Enable => "enable",
            Self::RestoreStore => "restore-store",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.name() == name)
    }

    /// What a method of a service on the admin socket does; by the path of its request.
    pub(super) fn of_path(path: &str) -> Option<Self> {
        // They tell less than Status does: whether keys are served, and what the interface looks like.
        if ["/grpc.health.", "/grpc.reflection."].iter().any(|service| path.starts_with(service)) {
            return Some(Self::Status);
        }
        Some(match path.strip_prefix("/keystead.admin.v1.Admin/")? {
            "GetStatus" => Self::Status,
            "ListGenerations" | "ListBackups" | "ListRoots" => Self::ListGenerations,
            "Rotate" => Self::Rotate,
            "Rescue" => Self::Rescue,
            "RestartCustodian" => Self::RestartCustodian,
            "VerifyAudit" => Self::VerifyAudit,
            "QueryAudit" => Self::QueryAudit,
            "RecordScan" => Self::RecordScan,
            "ExtendLease" => Self::ExtendLease,
            "Reload" => Self::Reload,
            "ScheduleDeletion" => Self::ScheduleDeletion,
            "CancelDeletion" => Self::CancelDeletion,
            "RegisterBackup" => Self::RegisterBackup,
            "ForgetBackup" => Self::ForgetBackup,
            "ChangeRoots" => Self::ChangeRoots,
            "Disable" => Self::Disable,
            "Enable" => Self::Enable,
            "RestoreStore" => Self::RestoreStore,
            _ => return None,
        })
    }
}

impl Rights {
    pub fn all() -> Self {
        Action::ALL.into_iter().collect()
    }

    pub fn allow(self, action: Action) -> bool {
        self.0 & 1 << action as u32 != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl FromIterator<Action> for Rights {
    fn from_iter<T: IntoIterator<Item = Action>>(actions: T) -> Self {
        Self(actions.into_iter().fold(0, |bits, action| bits | 1 << action as u32))
    }
}

impl fmt::Debug for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(Action::ALL.into_iter().filter(|action| self.allow(*action))).finish()
    }
}

impl Role {
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Operator, Self::CryptoAdmin, Self::Auditor];

    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::CryptoAdmin => "crypto-admin",
            Self::Auditor => "auditor",
        }
    }

    pub fn rights(self) -> Rights {
        use Action::{
            CancelDeletion, ChangeRoots, Disable, Enable, ExtendLease, ForgetBackup, ListGenerations, QueryAudit,
            RecordScan, RegisterBackup, Reload, Rescue, RestartCustodian, RestoreStore, Rotate, ScheduleDeletion,
            Status, VerifyAudit,
        };
        let more: &[Action] = match self {
            Self::Viewer => &[],
            Self::Operator => &[RestartCustodian, RecordScan, RegisterBackup, ForgetBackup, Reload],
            Self::CryptoAdmin => &[
                Rotate,
                Rescue,
                ExtendLease,
                ScheduleDeletion,
                CancelDeletion,
                ChangeRoots,
                Disable,
                Enable,
                RestoreStore,
            ],
            Self::Auditor => &[VerifyAudit, QueryAudit],
        };
        [Status, ListGenerations].iter().chain(more).copied().collect()
    }
}

impl RolePolicy {
    /// What this peer may do.
    pub fn rights(&self, peer: &Peer) -> Rights {
        let granted = match &self.grants {
            None => Rights::all(),
            Some(grants) => grants
                .iter()
                .filter(|(_, members)| members.allows(peer))
                .fold(Rights::default(), |rights, (role, _)| rights.with(role.rights())),
        };
        let denied = self.denials.iter().filter(|(_, members)| members.allows(peer));
        denied.fold(granted, |rights, (denied, _)| rights.without(*denied))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, groups: &[u32]) -> Peer {
        Peer { uid, gid: 1, pid: None, groups: groups.to_vec() }
    }

    fn users(uids: &[u32]) -> Members {
        Members { uids: uids.to_vec(), gids: vec![] }
    }

    fn policy() -> RolePolicy {
        RolePolicy {
            grants: Some(vec![
                (Role::Viewer, users(&[10])),
                (Role::Operator, users(&[20])),
                (Role::CryptoAdmin, Members { uids: vec![20, 30], gids: vec![7] }),
                (Role::Auditor, users(&[40])),
            ]),
            denials: vec![([Action::Rotate].into_iter().collect(), Members { uids: vec![], gids: vec![9] })],
        }
    }

    fn may(peer: &Peer) -> Vec<&'static str> {
        let rights = policy().rights(peer);
        Action::ALL.into_iter().filter(|action| rights.allow(*action)).map(Action::name).collect()
    }

    #[test]
    fn each_role_has_its_rights_and_roles_add_up() {
        let looks = ["status", "list"];
        let of_key = [
            "extend-lease",
            "schedule-deletion",
            "cancel-deletion",
            "change-roots",
            "disable",
            "enable",
            "restore-store",
        ];
        assert_eq!(may(&peer(10, &[])), looks);
        let mut both =
            [&looks[..], &["rotate", "rescue", "restart-custodian", "record-scan", "reload"], &of_key].concat();
        both.extend(["register-backup", "forget-backup"]);
        both.sort_by_key(|name| Action::ALL.iter().position(|action| action.name() == *name));
        assert_eq!(may(&peer(20, &[])), both);
        let crypto_admin = [&looks[..], &["rotate", "rescue"], &of_key].concat();
        assert_eq!(may(&peer(30, &[])), crypto_admin);
        assert_eq!(may(&peer(99, &[7])), crypto_admin);
        assert_eq!(may(&peer(40, &[])), ["status", "list", "audit-verify", "audit-query"]);
    }

    #[test]
    fn a_denial_wins_over_every_grant() {
        let rest = [
            "status",
            "list",
            "rescue",
            "extend-lease",
            "schedule-deletion",
            "cancel-deletion",
            "change-roots",
            "disable",
            "enable",
            "restore-store",
        ];
        assert_eq!(may(&peer(30, &[9])), rest);
        assert_eq!(may(&peer(99, &[7, 9])), rest);
    }

    #[test]
    fn root_holds_no_role_by_itself_once_roles_are_given_out() {
        assert!(policy().rights(&peer(0, &[0])).is_empty());
        assert_eq!(RolePolicy::default().rights(&peer(5, &[])), Rights::all());
    }

    #[test]
    fn names_are_unique_and_found_again() {
        for action in Action::ALL {
            assert_eq!(Action::from_name(action.name()), Some(action));
        }
        assert_eq!(Action::from_name("everything"), None);
    }

    /// A method that nobody thought of here would be refused to all; this says so before a user does.
    #[test]
    fn every_method_of_the_admin_service_is_an_action() {
        let proto = include_str!("../../proto/keystead/admin/v1/admin.proto");
        let methods: Vec<&str> =
            proto.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next()).collect();
        assert!(methods.len() >= Action::ALL.len());
        for method in methods {
            assert!(Action::of_path(&format!("/keystead.admin.v1.Admin/{method}")).is_some(), "{method}");
        }
        for method in ["health.v1.Health/Watch", "reflection.v1.ServerReflection/ServerReflectionInfo"] {
            assert_eq!(Action::of_path(&format!("/grpc.{method}")), Some(Action::Status));
        }
    }
}
