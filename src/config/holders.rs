//! What a site's roles come to on this machine: who is left to do what, for a person to look at. The daemon judges each peer anew.

use std::collections::BTreeSet;

use super::accounts;
use super::settings::AdminSettings;
use super::site::Site;
use crate::rpc::peer::Peer;
use crate::rpc::roles::{Action, Role};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holders {
    /// No grants: whoever is admitted to the socket may do everything that is not denied.
    pub open: bool,
    /// Roles that name nobody.
    pub vacant: Vec<&'static str>,
    /// Actions that somebody was granted, and that are denied to everybody who was.
    pub denied: Vec<&'static str>,
    /// Numbers that are no user or group of this machine.
    pub unknown: Vec<String>,
    /// Roles of user 0.
    pub of_root: Vec<&'static str>,
}

impl AdminSettings {
    /// Reads the machine's list of accounts.
    pub fn holders(&self, site: &Site) -> Holders {
        let grants = self.roles.grants.as_deref();
        let named = |role: Role| grants.into_iter().flatten().filter(move |(granted, _)| *granted == role);
        let vacant = |role: &Role| named(*role).all(|(_, members)| members.uids.is_empty() && members.gids.is_empty());
        let of_root = |role: &Role| named(*role).any(|(_, members)| members.uids.contains(&0));
        let names = |wanted: &dyn Fn(&Role) -> bool| match grants {
            Some(_) => Role::ALL.into_iter().filter(wanted).map(Role::name).collect(),
            None => Vec::new(),
        };
        Holders {
            open: grants.is_none(),
            vacant: names(&vacant),
            denied: self.denied(site),
            unknown: self.unknown(site),
            of_root: names(&of_root),
        }
    }

    fn denied(&self, site: &Site) -> Vec<&'static str> {
        let people = self.people(site);
        let granted = crate::rpc::roles::RolePolicy { denials: Vec::new(), ..self.roles.clone() };
        let nobody_left = |action: &Action| {
            people.iter().any(|peer| granted.rights(peer).allow(*action))
                && !people.iter().any(|peer| self.roles.rights(peer).allow(*action))
        };
        Action::ALL.into_iter().filter(nobody_left).map(Action::name).collect()
    }

    /// Whoever is named: users with their groups, and of each group one member of whom nothing else is known.
    fn people(&self, site: &Site) -> Vec<Peer> {
        let (uids, gids) = self.granted();
        let user = |uid: u32| {
            accounts::user(site, &super::raw::Account::Id(uid)).map(|user| Peer {
                uid,
                gid: user.gid,
                pid: None,
                groups: user.groups,
            })
        };
        let member = |gid: u32| Peer { uid: u32::MAX, gid, pid: None, groups: Vec::new() };
        uids.into_iter().filter_map(user).chain(gids.into_iter().map(member)).collect()
    }

    fn granted(&self) -> (BTreeSet<u32>, BTreeSet<u32>) {
        let members: Vec<_> = match &self.roles.grants {
            Some(grants) => grants.iter().map(|(_, members)| members).collect(),
            None => vec![&self.peers],
        };
        let all = |of: fn(&crate::rpc::roles::Members) -> &Vec<u32>| {
            members.iter().flat_map(|members| of(members).iter().copied()).collect()
        };
        (all(|members| &members.uids), all(|members| &members.gids))
    }

    fn unknown(&self, site: &Site) -> Vec<String> {
        let (mut uids, mut gids) = self.granted();
        for (_, members) in &self.roles.denials {
            uids.extend(&members.uids);
            gids.extend(&members.gids);
        }
        let users = uids.into_iter().filter(|uid| !accounts::has_uid(site, *uid)).map(|uid| format!("user {uid}"));
        let groups = gids.into_iter().filter(|gid| !accounts::has_gid(site, *gid)).map(|gid| format!("group {gid}"));
        users.chain(groups).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Settings, Source};

    fn holders(table: &str) -> Holders {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("etc")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("etc/passwd", "root:x:0:0::/:/bin/sh\nalice:x:1000:1000::/:/bin/sh\nbob:x:1001:1001::/:/bin/sh\n");
        write("etc/group", "root:x:0:\nalice:x:1000:\nbob:x:1001:\ncontractors:x:50:bob\n");
        let site = Site { root: folder.path().to_owned(), uid: 0, credentials: None };
        let source = Source::from_parts(None, format!("node = \"n\"\n{table}"));
        Settings::from_source(&source, &site).unwrap().admin.holders(&site)
    }

    #[test]
    fn roles_that_name_nobody_and_those_of_root_are_listed() {
        let found = holders("[roles]\nviewer = { uids = [0, 1000] }\ncrypto-admin = {}\nauditor = { gids = [50] }\n");
        assert_eq!((found.open, &found.vacant[..]), (false, &["operator", "crypto-admin"][..]));
        assert_eq!(found.of_root, ["viewer"]);
        assert!(found.unknown.is_empty() && found.denied.is_empty(), "{found:?}");
    }

    #[test]
    fn without_the_table_nobody_holds_a_role_and_none_is_vacant() {
        let found = holders("[admin]\nallow_uids = [1000]\n");
        assert_eq!(found, Holders { open: true, vacant: vec![], denied: vec![], unknown: vec![], of_root: vec![] });
        let found = holders("[admin]\nallow_uids = [1000]\n[[roles.deny]]\nactions = ['rescue']\nuids = [1000]\n");
        assert_eq!((found.open, &found.denied[..]), (true, &["rescue"][..]));
    }

    #[test]
    fn a_denial_that_leaves_nobody_is_seen_also_through_a_group_and_one_that_leaves_somebody_is_not() {
        let deny = "[[roles.deny]]\nactions = ['rotate']\ngids = [50]\n";
        let bob_alone = holders(&format!("[roles]\ncrypto-admin = {{ uids = ['bob'] }}\n{deny}"));
        assert_eq!(bob_alone.denied, ["rotate"]);
        let both = holders(&format!("[roles]\ncrypto-admin = {{ uids = ['bob', 'alice'] }}\n{deny}"));
        assert!(both.denied.is_empty(), "{both:?}");
        let by_group = holders(&format!("[roles]\ncrypto-admin = {{ gids = [50] }}\n{deny}"));
        assert_eq!(by_group.denied, ["rotate"]);
    }

    #[test]
    fn numbers_without_an_account_are_named() {
        let found = holders(
            "[roles]\nviewer = { uids = [4242], gids = [4343] }\n[[roles.deny]]\nactions = ['rotate']\nuids = [77]\n",
        );
        assert_eq!(found.unknown, ["user 77", "user 4242", "group 4343"]);
    }
}
