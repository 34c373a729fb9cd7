//! `[roles]`: who holds which role on the admin socket, and what is denied to whom; and the table that `init` adds.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use toml::Spanned;

use super::builder::Builder;
use super::error::ConfigError;
use super::raw;
use super::source::Source;
use crate::rpc::roles::{Action, Members, Rights, Role, RolePolicy};

impl Builder<'_> {
    pub(super) fn roles(&self, raw: Option<raw::Roles>) -> Result<RolePolicy, ConfigError> {
        let Some(raw::Roles { viewer, operator, crypto_admin, auditor, deny }) = raw else {
            return Ok(RolePolicy::default());
        };
        let mut grants = Vec::new();
        let named = [
            (Role::Viewer, "roles.viewer", viewer),
            (Role::Operator, "roles.operator", operator),
            (Role::CryptoAdmin, "roles.crypto-admin", crypto_admin),
            (Role::Auditor, "roles.auditor", auditor),
        ];
        for (role, key, members) in named {
            if let Some(members) = members {
                grants.push((role, self.members(key, members)?));
            }
        }
        let mut denials = Vec::new();
        for denial in deny {
            let rights = denial.actions.into_iter().map(|name| self.action(name)).collect::<Result<Rights, _>>()?;
            denials.push((rights, self.members("roles.deny", denial.members)?));
        }
        // A table that says nothing grants nothing: a site that takes its last grant out does not open the door to all.
        let says_who = !grants.is_empty() || denials.is_empty();
        Ok(RolePolicy { grants: says_who.then_some(grants), denials })
    }

    fn members(&self, key: &str, raw: raw::Members) -> Result<Members, ConfigError> {
        Ok(Members { uids: self.uids(key, Some(raw.uids), &[])?, gids: self.gids(key, Some(raw.gids))? })
    }

    fn action(&self, name: Spanned<String>) -> Result<Action, ConfigError> {
        Action::from_name(name.get_ref()).ok_or_else(|| {
            let known = Action::ALL.map(Action::name).join(", ");
            let problem = format_args!("there is no action {:?}", name.get_ref());
            self.place.fault(name.span(), "roles.deny", problem, Some(&format!("actions are: {known}")))
        })
    }
}

/// What became of the table that `init` adds.
#[derive(Debug)]
pub enum Granted {
    /// All roles, to this user, in the file.
    Now { uid: u32 },
    /// The file gives out roles already.
    Before,
    /// There is no file, or it cannot be written: whoever is admitted to the admin socket may do everything.
    Nobody { why: String },
}

/// Adds a `[roles]` table to the configuration, which grants every role to `uid`, unless the file has such a table.
pub fn grant_all(source: &Source, uid: u32) -> Granted {
    match source.parse() {
        Ok(document) if document.raw.roles.is_some() => return Granted::Before,
        Ok(_) => {}
        Err(error) => return Granted::Nobody { why: error.to_string() },
    }
    let Some(file) = source.file() else {
        return Granted::Nobody { why: "there is no configuration file".into() };
    };
    let mut table =
        "\n# Written by `keystead init`: who may do what on the admin socket (docs/roles.md).\n[roles]\n".to_owned();
    for role in Role::ALL {
        table.push_str(&format!("{} = {{ uids = [{uid}] }}\n", role.name()));
    }
    match append(file, &table) {
        Ok(()) => Granted::Now { uid },
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            Granted::Nobody { why: format!("{} is a symbolic link, which is not written through", file.display()) }
        }
        Err(error) => Granted::Nobody { why: format!("{} cannot be written: {error}", file.display()) },
    }
}

/// A table can stand at the end of any TOML document. One write, so that the file is never seen half changed; half a table,
/// on a full disk, is taken away again: no daemon could read that file.
fn append(file: &std::path::Path, table: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).custom_flags(libc::O_NOFOLLOW).open(file)?;
    let before = file.metadata()?.len();
    file.write_all(table.as_bytes()).and_then(|()| file.sync_all()).inspect_err(|_| {
        let _ = file.set_len(before);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Settings, Site};

    fn policy(text: &str) -> Result<RolePolicy, ConfigError> {
        let source = Source::from_parts(None, format!("node = \"n\"\n{text}"));
        Settings::from_source(&source, &Site::this_machine()).map(|settings| settings.admin.roles)
    }

    #[test]
    fn without_the_table_nobody_is_told_apart() {
        assert_eq!(policy("").unwrap(), RolePolicy::default());
    }

    #[test]
    fn roles_and_denials_are_read_by_number_and_by_name() {
        let policy = policy(
            "[roles]\nviewer = { uids = [7] }\ncrypto-admin = { uids = [\"root\"], gids = [8] }\n\
             [[roles.deny]]\nactions = [\"rotate\", \"rescue\"]\nuids = [9]\n",
        )
        .unwrap();
        let grants = policy.grants.unwrap();
        assert_eq!(grants[0], (Role::Viewer, Members { uids: vec![7], gids: vec![] }));
        assert_eq!(grants[1], (Role::CryptoAdmin, Members { uids: vec![0], gids: vec![8] }));
        let (rights, members) = &policy.denials[0];
        assert!(rights.allow(Action::Rotate) && rights.allow(Action::Rescue) && !rights.allow(Action::Status));
        assert_eq!(members.uids, [9]);
    }

    #[test]
    fn a_table_that_says_nothing_grants_nothing() {
        for table in ["[roles]\n", "roles = {}\n", "[roles]\n# viewer = { uids = [7] }\n", "[roles]\nviewer = {}\n"] {
            let policy = policy(table).unwrap();
            assert!(policy.denials.is_empty(), "{table}");
            assert!(policy.grants.unwrap().iter().all(|(_, members)| members.uids.is_empty()), "{table}");
        }
    }

    #[test]
    fn a_denial_alone_takes_from_what_everybody_has() {
        let policy = policy("[[roles.deny]]\nactions = [\"rotate\"]\nuids = [9]\n").unwrap();
        assert!(policy.grants.is_none() && policy.denials.len() == 1);
    }

    #[test]
    fn mistakes_are_named_with_what_is_possible() {
        for (text, part) in [
            ("[roles]\nadmin = { uids = [1] }\n", "admin"),
            ("[roles]\nviewer = { users = [1] }\n", "users"),
            ("[roles]\nviewer = { uids = [\"nobody-of-that-name\"] }\n", "nobody-of-that-name"),
            ("[[roles.deny]]\nactions = [\"format-disk\"]\nuids = [1]\n", "restart-custodian"),
        ] {
            let error = policy(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_table_that_does_not_fit_on_the_disk_leaves_the_file_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let flags = rustix::mount::MountFlags::empty();
        if rustix::mount::mount("tmpfs", folder.path(), "tmpfs", flags, Some(c"size=4k")).is_err() {
            println!("no mount of its own here: the case on a full disk is run as root only");
            return;
        }
        let path = folder.path().join("config.toml");
        let full = format!("node = \"n\"\n#{}\n", "x".repeat(4096 - 40));
        std::fs::write(&path, &full).unwrap();
        let granted = grant_all(&Source::read(&path).unwrap(), 1);
        let left = std::fs::read_to_string(&path).unwrap();
        rustix::mount::unmount(folder.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
        assert!(matches!(granted, Granted::Nobody { .. }), "{granted:?}");
        assert_eq!(left, full);
    }

    #[test]
    fn init_s_table_is_added_once_and_gives_all_roles() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        // With the line ends of another system, without the last of them, and with a table that is still open.
        std::fs::write(&path, "node = \"n\"\r\n[store]\r\npath = \"/a\"").unwrap();
        assert!(matches!(grant_all(&Source::read(&path).unwrap(), 1234), Granted::Now { uid: 1234 }));
        let source = Source::read(&path).unwrap();
        let settings = Settings::from_source(&source, &Site::this_machine()).unwrap();
        assert_eq!(settings.store.path, std::path::Path::new("/a"));
        let grants = settings.admin.roles.grants.unwrap();
        assert!(grants.len() == 4 && grants.iter().all(|(_, members)| members.uids == [1234]));
        assert!(matches!(grant_all(&source, 1234), Granted::Before));
        assert!(matches!(grant_all(&Source::defaults(), 1), Granted::Nobody { .. }));
        let link = folder.path().join("link.toml");
        std::fs::write(folder.path().join("other.toml"), "node = \"n\"\n").unwrap();
        std::os::unix::fs::symlink(folder.path().join("other.toml"), &link).unwrap();
        let granted = grant_all(&Source::read(&link).unwrap(), 1);
        assert!(matches!(&granted, Granted::Nobody { why } if why.contains("symbolic link")), "{granted:?}");
    }
}
