//! User and group names → numbers, from /etc/passwd and /etc/group.
//!
//! Local accounts only: a daemon that must start on an edge box without a network does not ask a directory service. The
//! error for a name that is not there says to write the number instead.

use super::site::Site;

pub fn uid(site: &Site, name: &str) -> Option<u32> {
    lookup(&site.read("/etc/passwd")?, name)
}

pub fn gid(site: &Site, name: &str) -> Option<u32> {
    lookup(&site.read("/etc/group")?, name)
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
    fn names_are_found_whole_or_not_at_all() {
        let group = "root:x:0:\n# kms:x:1:\nkms:x:998:alice,bob\nbroken\nkms2:x:many:\n";
        assert_eq!(lookup(group, "root"), Some(0));
        assert_eq!(lookup(group, "kms"), Some(998));
        for absent in ["km", "alice", "kms2", "broken", "", "x"] {
            assert_eq!(lookup(group, absent), None, "{absent:?}");
        }
    }
}
