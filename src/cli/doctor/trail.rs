//! The audit trail's folder, where it is not the store's own. Metadata only.

use std::path::Path;

use super::finding::Finding;
use super::look::{self, Entry, Kind, Look, User};
use super::scene::Scene;

const ID: &str = "files.trail";
const UNRECORDED: &str = "what cannot be written is not recorded, or under audit.failure = \"stop\" not done";

pub fn check(scene: &Scene<'_>) -> Option<Finding> {
    let folder = scene.settings.trail_apart()?;
    Some(judge(folder, &look::at(folder), scene.daemon_user()))
}

fn judge(folder: &Path, entry: &Look<Entry>, user: Option<User>) -> Finding {
    let shown = folder.display();
    let warning = |what: String, why, next: String| Finding::warning(ID, what, why, next);
    match entry {
        Look::Missing => {
            let what = format!("the audit trail's folder {shown} does not exist");
            warning(what, UNRECORDED, format!("make {shown} for the daemon's user, mode 0700, and restart the daemon"))
        }
        Look::Found(entry) if entry.kind != Kind::Folder => {
            warning(format!("{shown} is not a folder"), UNRECORDED, "remove what is there, or set audit.path".into())
        }
        Look::Found(entry) if entry.writable_by_others(user) => {
            let what = format!("others than its owner may write to the audit trail's folder {shown}");
            let why = "they can remove what was recorded; only what was forwarded off the box would still show it";
            warning(what, why, format!("`chmod 0700 {shown}`"))
        }
        Look::Found(entry) if entry.foreign(user) => {
            let what = format!("the audit trail's folder {shown} belongs to user {}", entry.uid);
            warning(what, UNRECORDED, format!("`chown -R` {shown} to the daemon's user"))
        }
        Look::Found(_) => Finding::ok(ID, format!("audit trail in {shown}")),
        Look::Forbidden => Finding::unchecked(ID, format!("{shown} is not open to this user"), "run it as root"),
        Look::Failed(error) => Finding::unchecked(ID, format!("{shown}: {error}"), "run it as root"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity::{self, Info, Ok, Warning};
    use super::*;

    fn found(entry: Look<Entry>) -> Severity {
        let finding = judge(Path::new("/var/log/keystead"), &entry, Some(User { uid: 998, gid: 998 }));
        assert_eq!((finding.id, finding.next.is_empty()), (ID, finding.severity == Ok), "{finding:?}");
        finding.severity
    }

    #[test]
    fn folder_that_is_missing_open_or_foreign_is_a_warning() {
        let entry = |kind, mode, uid| Look::Found(Entry { kind, mode, uid, gid: 998, size: 0, modified: 0 });
        assert_eq!(found(entry(Kind::Folder, 0o700, 998)), Ok);
        for bad in [
            Look::Missing,
            entry(Kind::File, 0o700, 998),
            entry(Kind::Folder, 0o777, 998),
            entry(Kind::Folder, 0o700, 1000),
        ] {
            assert_eq!(found(bad), Warning);
        }
        assert_eq!(found(Look::Forbidden), Info);
    }
}
