//! User and group names → numbers, from /etc/passwd and /etc/group.
//!
//! Local accounts only: a daemon that must start on an edge box without a network does not ask a directory service. The
//! error for a name that is not there says to write the number instead.

use super::raw::Account;
use super::site::Site;
use crate::process::users::User;

pub fn uid(site: &Site, name: &str) -> Option<u32> {
    lookup(&site.read("/etc/passwd")?, name)
}

pub fn gid(site: &Site, name: &str) -> Option<u32> {
    lookup(&site.read("/etc/group")?, name)
}

pub fn has_uid(site: &Site, uid: u32) -> bool {
    has(site.read("/etc/passwd"), uid)
}

pub fn has_gid(site: &Site, gid: u32) -> bool {
    has(site.read("/etc/group"), gid)
}

fn has(database: Option<String>, number: u32) -> bool {
    let number = number.to_string();
    database.is_some_and(|database| database.lines().any(|line| line.split(':').nth(2) == Some(number.as_str())))
}

/// With primary and supplementary groups. A number needs no account: its group is then of the same number.
pub fn user(site: &Site, account: &Account) -> Option<User> {
    let passwd = site.read("/etc/passwd").unwrap_or_default();
    let line = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| match account {
        Account::Name(name) => fields.first() == Some(&name.as_str()),
        Account::Id(id) => fields.get(2).is_some_and(|uid| uid.parse() == Ok(*id)),
    });
    match (line, account) {
        (Some(fields), _) => {
            let number = |index: usize| fields.get(index)?.parse().ok();
            let groups = site.read("/etc/group").map(|group| groups(&group, fields[0])).unwrap_or_default();
            Some(User { uid: number(2)?, gid: number(3)?, groups })
        }
        (None, Account::Id(id)) => Some(User { uid: *id, gid: *id, groups: Vec::new() }),
        (None, Account::Name(_)) => None,
    }
}

/// Groups that list the user; fields of a line: name, password, number, members between commas.
fn groups(database: &str, user: &str) -> Vec<u32> {
    let of = |line: &str| {
        let fields: Vec<_> = line.split(':').collect();
        fields.get(3)?.split(',').any(|member| member == user).then(|| fields[2].parse().ok())?
    };
    database.lines().filter_map(of).collect()
}

/// Both files have the name first and the number third, between colons (passwd(5), group(5)).
fn lookup(database: &str, name: &str) -> Option<u32> {
    database.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_has_its_groups_by_name_and_by_number() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("etc")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("etc/passwd", "root:x:0:0::/root:/bin/sh\nhsm:x:997:996::/:/bin/false\nbroken:x:no:1\n");
        write("etc/group", "root:x:0:\nhsm:x:996:\ntss:x:110:other,hsm\nusb:x:46:hsm2\nbroken:x\nplug:x:47:hsm\n");
        let site = Site { root: folder.path().to_owned(), uid: 0, credentials: None };
        let hsm = User { uid: 997, gid: 996, groups: vec![110, 47] };
        assert_eq!(user(&site, &Account::Name("hsm".into())), Some(hsm.clone()));
        assert_eq!(user(&site, &Account::Id(997)), Some(hsm));
        assert_eq!(user(&site, &Account::Id(54)), Some(User { uid: 54, gid: 54, groups: vec![] }));
        for absent in ["hs", "broken", ""] {
            assert_eq!(user(&site, &Account::Name(absent.into())), None, "{absent:?}");
        }
    }

    #[test]
    fn names_are_found_whole_or_not_at_all() {
        let group = "root:x:0:\n# kms:x:1:\nkms:x:998:alice,bob\nbroken\nkms2:x:many:\n";
        assert_eq!(lookup(group, "root"), Some(0));
        assert_eq!(lookup(group, "kms"), Some(998));
        for absent in ["km", "alice", "kms2", "broken", "", "x"] {
            assert_eq!(lookup(group, absent), None, "{absent:?}");
        }
    }
}
