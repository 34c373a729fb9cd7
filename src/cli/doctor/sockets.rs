//! The two sockets and the folders they are in: there, listening, with the right mode, and nobody else's to replace.

use std::path::Path;

use super::finding::Finding;
use super::look::{self, Entry, Kind, Look, User};
use super::reach::{Reach, bound_by_us, reach};
use super::scene::{Daemon, Scene};
use crate::config::units::show_mode;

struct Facts<'a> {
    path: &'a Path,
    /// As configured.
    mode: u32,
    group: Option<u32>,
    folder: Look<Entry>,
    /// Of the folder's own folder.
    parent_exists: bool,
    entry: Look<Entry>,
    reach: Reach,
    /// The daemon made the socket, not the service manager: the configured mode and group are its own.
    ours: bool,
    /// The daemon answers on its admin socket.
    runs: bool,
    user: Option<User>,
    /// Who is let in: `None` where the uid of the apiserver does not matter.
    admits_root: Option<bool>,
    admits_nobody: bool,
}

const REPLACED: &str = "whoever puts a socket of his own there receives every Secret key that kube-apiserver asks for";

pub fn check(scene: &Scene<'_>) -> Vec<Finding> {
    let (kms, admin) = (&scene.settings.kms, &scene.settings.admin);
    let common = |path, reach| Facts {
        path,
        reach,
        mode: 0,
        group: None,
        folder: look::at(folder_of(path)),
        parent_exists: folder_of(path).parent().is_some_and(Path::is_dir),
        entry: look::at(path),
        ours: bound_by_us(path),
        runs: matches!(scene.daemon, Daemon::Answers(_)),
        user: scene.daemon_user(),
        admits_root: None,
        admits_nobody: false,
    };
    let kms_path: &Path = &kms.socket.path;
    let kms = Facts {
        mode: kms.socket.mode,
        group: kms.socket.group.map(|group| group.as_raw()),
        admits_root: Some(kms.peers.uids.contains(&0) || kms.peers.gids.contains(&0)),
        admits_nobody: kms.peers.uids.is_empty() && kms.peers.gids.is_empty(),
        ..common(kms_path, reach(kms_path, &scene.site, !scene.servers.is_empty()))
    };
    let admin = Facts {
        mode: admin.socket.mode,
        group: admin.socket.group.map(|group| group.as_raw()),
        admits_nobody: admin.peers.uids.is_empty() && admin.peers.gids.is_empty(),
        ..common(&admin.socket.path, scene.admin.clone())
    };
    [judge(&kms), judge(&admin)].concat()
}

fn folder_of(socket: &Path) -> &Path {
    socket.parent().unwrap_or(Path::new("/"))
}

fn judge(facts: &Facts<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let path = facts.path.display();
    if let Some(finding) = folder(facts) {
        let go_on = finding.severity == super::finding::Severity::Critical && facts.folder.found().is_some();
        findings.push(finding);
        if !go_on {
            return findings;
        }
    }
    match &facts.entry {
        Look::Found(entry) => findings.extend(socket(facts, entry)),
        Look::Missing if facts.runs => findings.push(Finding::critical(
            "sockets.missing",
            format!("{path} is gone, while the daemon runs"),
            "somebody removed it: nobody can connect any more, and the daemon does not notice",
            "restart the daemon while custody is ready (systemd: `systemctl restart keystead-kms.socket keystead-admin.socket keystead`)",
        )),
        // That the daemon is down is said by its own group.
        Look::Missing => {}
        Look::Forbidden => findings.push(Finding::unchecked("sockets.forbidden", format!("{path} is not open to this user"), "run it as root")),
        Look::Failed(error) => findings.push(Finding::unchecked("sockets.forbidden", format!("{path}: {error}"), "run it as root")),
    }
    if facts.admits_nobody {
        let what = format!("{path} admits neither a user nor a group");
        let next = "set allow_uids or allow_gids of that socket, then restart the daemon";
        findings.push(Finding::critical("sockets.nobody", what, "every peer is refused", next));
    } else if facts.admits_root == Some(false) {
        let what = format!("{path} does not admit root");
        let why = "kube-apiserver runs as root in most distributions, and is refused then";
        findings.push(Finding::info("sockets.root", what, why, "if yours does: add 0 to kms.allow_uids"));
    }
    findings
}

fn folder(facts: &Facts<'_>) -> Option<Finding> {
    let folder = folder_of(facts.path).display();
    let entry = match &facts.folder {
        Look::Found(entry) => entry,
        Look::Missing if facts.parent_exists => {
            let what = format!("the folder {folder} does not exist");
            return Some(Finding::info(
                "sockets.no-folder",
                what,
                "it goes with each boot, if it is in /run",
                "nothing: `keystead serve` makes it",
            ));
        }
        Look::Missing => {
            let what = format!("the folder {folder} does not exist, nor does the one that it is in");
            return Some(Finding::critical(
                "sockets.no-folder",
                what,
                "the daemon makes one folder, not two: it cannot start",
                format!("`mkdir -p {folder}`, or choose another path"),
            ));
        }
        Look::Forbidden => {
            let what = format!("the folder {folder} is not open to this user");
            return Some(Finding::unchecked("sockets.forbidden", what, "run it as root"));
        }
        Look::Failed(error) => {
            return Some(Finding::unchecked("sockets.forbidden", format!("{folder}: {error}"), "run it as root"));
        }
    };
    if entry.kind != Kind::Folder {
        let next = "remove what is there, or choose another path";
        return Some(Finding::critical(
            "sockets.folder",
            format!("{folder} is not a folder"),
            "no socket can be made in it",
            next,
        ));
    }
    if entry.replaceable(facts.user) {
        let what = format!("others than its owner may write to the folder {folder} (mode {})", show_mode(entry.mode));
        return Some(Finding::critical("sockets.folder", what, REPLACED, format!("`chmod go-w {folder}`")));
    }
    if entry.foreign(facts.user) {
        let what = format!("the folder {folder} belongs to user {}, who is neither root nor the daemon's", entry.uid);
        return Some(Finding::critical("sockets.folder", what, REPLACED, format!("`chown root {folder}`")));
    }
    None
}

fn socket(facts: &Facts<'_>, entry: &Entry) -> Option<Finding> {
    let path = facts.path.display();
    if entry.kind != Kind::Socket {
        let what = format!("{path} is not a socket");
        let next = "look at what it is, then remove it, or choose another path";
        return Some(Finding::critical(
            "sockets.occupied",
            what,
            "the daemon replaces nothing that is not its own: it cannot start",
            next,
        ));
    }
    match &facts.reach {
        Reach::Refused => {
            let what = format!("{path} is stale: nobody listens on it");
            return Some(if facts.runs {
                Finding::critical(
                    "sockets.stale",
                    what,
                    "the daemon that runs listens elsewhere, and whoever connects here is refused",
                    "restart the daemon while custody is ready",
                )
            } else {
                Finding::info(
                    "sockets.stale",
                    what,
                    "a daemon ended without tidying up: a power cut, or kill -9",
                    "nothing: `keystead serve` replaces it",
                )
            });
        }
        Reach::Crowded => {
            let what = format!("so many wait on {path} that there is no room for one more");
            return Some(Finding::critical(
                "sockets.crowded",
                what,
                "the daemon takes no connections: it hangs, or is flooded",
                "look at its log",
            ));
        }
        _ => {}
    }
    let (mode, wanted) = (entry.mode & 0o777, facts.mode);
    let group = facts.group;
    if facts.ours && (mode != wanted || group.is_some_and(|group| group != entry.gid)) {
        let what = format!(
            "{path} has mode {}, group {}; the configuration says {}{}",
            show_mode(mode),
            entry.gid,
            show_mode(wanted),
            group.map(|group| format!(", group {group}")).unwrap_or_default()
        );
        let why = "somebody changed it, or the configuration was changed since the daemon started";
        return Some(Finding::warning(
            "sockets.mode",
            what,
            why,
            format!("`chmod {} {path}`, or restart the daemon while custody is ready", show_mode(wanted)),
        ));
    }
    if mode & 0o002 != 0 {
        let what = format!("{path} is open to every user (mode {})", show_mode(mode));
        let why = "whom allow_uids does not name is still refused, but may take up connections";
        return Some(Finding::warning(
            "sockets.mode",
            what,
            why,
            "narrow `mode` of that socket, or SocketMode= in its unit",
        ));
    }
    matches!(facts.reach, Reach::Listens { .. }).then(|| {
        let bytes = facts.path.as_os_str().len();
        Finding::ok(
            "sockets.listening",
            format!("{path} listens, mode {}; {bytes} of 107 bytes of path", show_mode(mode)),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity::{self, Critical, Info, Ok, Warning};
    use super::*;

    fn entry(kind: Kind, mode: u32) -> Look<Entry> {
        Look::Found(Entry { kind, mode, uid: 0, gid: 0, size: 0, modified: 0 })
    }

    fn sound() -> Facts<'static> {
        Facts {
            path: Path::new("/run/keystead/kms.sock"),
            mode: 0o600,
            group: None,
            folder: entry(Kind::Folder, 0o755),
            parent_exists: true,
            entry: entry(Kind::Socket, 0o600),
            reach: Reach::Listens { pid: None },
            ours: true,
            runs: true,
            user: Some(User { uid: 998, gid: 998 }),
            admits_root: Some(true),
            admits_nobody: false,
        }
    }

    fn found(change: impl FnOnce(&mut Facts<'_>)) -> Vec<(&'static str, Severity)> {
        let mut facts = sound();
        change(&mut facts);
        judge(&facts).into_iter().map(|finding| (finding.id, finding.severity)).collect()
    }

    #[test]
    fn sound_socket_is_ok() {
        assert_eq!(found(|_| {}), [("sockets.listening", Ok)]);
    }

    #[test]
    fn each_fault_of_the_socket_is_named_alone() {
        assert_eq!(found(|facts| facts.entry = Look::Missing), [("sockets.missing", Critical)]);
        assert_eq!(found(|facts| facts.entry = entry(Kind::File, 0o600)), [("sockets.occupied", Critical)]);
        assert_eq!(found(|facts| facts.entry = Look::Forbidden), [("sockets.forbidden", Info)]);
        assert_eq!(found(|facts| facts.reach = Reach::Refused), [("sockets.stale", Critical)]);
        assert_eq!(found(|facts| facts.reach = Reach::Crowded), [("sockets.crowded", Critical)]);
        assert_eq!(found(|facts| facts.entry = entry(Kind::Socket, 0o660)), [("sockets.mode", Warning)]);
        let open = |facts: &mut Facts<'_>| (facts.ours, facts.entry) = (false, entry(Kind::Socket, 0o666));
        assert_eq!(found(open), [("sockets.mode", Warning)]);
        let systemd = |facts: &mut Facts<'_>| (facts.ours, facts.entry) = (false, entry(Kind::Socket, 0o660));
        assert_eq!(found(systemd), [("sockets.listening", Ok)], "systemd's mode is systemd's business");
        assert_eq!(found(|facts| facts.admits_root = Some(false))[1], ("sockets.root", Info));
        assert_eq!(found(|facts| facts.admits_nobody = true)[1], ("sockets.nobody", Critical));
    }

    #[test]
    fn leftovers_of_a_daemon_that_is_down_are_no_fault_of_their_own() {
        let down =
            |reach, entry| move |facts: &mut Facts<'_>| (facts.runs, facts.reach, facts.entry) = (false, reach, entry);
        assert_eq!(found(down(Reach::Missing, Look::Missing)), []);
        assert_eq!(found(down(Reach::Refused, entry(Kind::Socket, 0o600))), [("sockets.stale", Info)]);
        assert_eq!(found(down(Reach::Asleep, entry(Kind::Socket, 0o600))), []);
    }

    #[test]
    fn folder_that_others_may_change_is_critical() {
        for mode in [0o777, 0o757, 0o702] {
            let findings = found(|facts| facts.folder = entry(Kind::Folder, mode));
            assert_eq!(findings, [("sockets.folder", Critical), ("sockets.listening", Ok)], "{mode:o}");
        }
        assert_eq!(found(|facts| facts.folder = entry(Kind::Folder, 0o1777)), [("sockets.listening", Ok)]);
        // Root's group holds nobody else.
        assert_eq!(found(|facts| facts.folder = entry(Kind::Folder, 0o775)), [("sockets.listening", Ok)]);
        let foreign = Look::Found(Entry { kind: Kind::Folder, mode: 0o755, uid: 1000, gid: 0, size: 0, modified: 0 });
        assert_eq!(found(|facts| facts.folder = foreign)[0], ("sockets.folder", Critical));
        let daemons = Look::Found(Entry { kind: Kind::Folder, mode: 0o755, uid: 998, gid: 998, size: 0, modified: 0 });
        assert_eq!(found(|facts| facts.folder = daemons), [("sockets.listening", Ok)]);
    }

    #[test]
    fn missing_and_closed_folders_end_the_look() {
        assert_eq!(found(|facts| facts.folder = Look::Missing), [("sockets.no-folder", Info)]);
        let neither = |facts: &mut Facts<'_>| (facts.folder, facts.parent_exists) = (Look::Missing, false);
        assert_eq!(found(neither), [("sockets.no-folder", Critical)]);
        assert_eq!(found(|facts| facts.folder = Look::Forbidden), [("sockets.forbidden", Info)]);
    }
}
