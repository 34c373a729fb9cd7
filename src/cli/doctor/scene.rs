//! What every check is given: the configuration, the machine, and the daemon's own account of itself, asked for once.

use std::path::{Path, PathBuf};

use keystead_wire::admin::v1::GetStatusResponse;

use super::super::exit::{Exit, Failure};
use super::super::status;
use super::look::{self, Look, User};
use super::reach::{Reach, reach};
use super::unit::Unit;
use crate::config::{Settings, Site};

pub struct Scene<'a> {
    pub settings: &'a Settings,
    /// `None`: the built-in defaults.
    pub config_file: Option<&'a Path>,
    pub encryption_config: Option<&'a Path>,
    pub site: Site,
    /// Server processes of every daemon on this machine, as far as this user sees them.
    pub servers: Vec<Server>,
    pub admin: Reach,
    pub daemon: Daemon,
}

/// What came of asking for the status.
#[derive(Debug, Clone, PartialEq)]
pub enum Daemon {
    Answers(Box<GetStatusResponse>),
    /// Why it is known not to run.
    Down(String),
    /// It may run: this user may not ask.
    Forbidden(String),
    /// Something listens and gives no answer that makes sense.
    Silent(String),
}

impl Daemon {
    pub fn status(&self) -> Option<&GetStatusResponse> {
        match self {
            Self::Answers(status) => Some(status),
            _ => None,
        }
    }

    /// What it takes to hear what only the daemon knows.
    pub fn how_to_ask(&self) -> &'static str {
        match self {
            Self::Forbidden(_) => "run it as root or the daemon's user",
            _ => "start the daemon, then run it again",
        }
    }
}

/// A process that calls itself `keystead-server`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub parent: u32,
    pub user: User,
    /// The program's file was replaced or removed since the process started; `None` for who may not know.
    pub replaced: Option<bool>,
    /// Bytes that it may lock; `None` for who may not know, `u64::MAX` if it is not limited.
    pub memlock: Option<u64>,
}

impl<'a> Scene<'a> {
    /// Looks around. Connects to the admin socket, and only if that starts nothing.
    pub fn of(
        settings: &'a Settings,
        config_file: Option<&'a Path>,
        encryption_config: Option<&'a Path>,
        site: Site,
    ) -> Self {
        let servers = servers(&site);
        let admin = reach(&settings.admin.socket.path, &site, !servers.is_empty());
        let daemon = ask(&settings.admin.socket.path, &admin);
        Self { settings, config_file, encryption_config, site, servers, admin, daemon }
    }

    /// The server of this very daemon: its supervisor made the admin socket. With sockets of systemd's, the only server
    /// there is.
    pub fn server(&self) -> Option<&Server> {
        if let Reach::Listens { pid: Some(pid) } = self.admin
            && let Some(server) = self.servers.iter().find(|server| server.parent == pid)
        {
            return Some(server);
        }
        match (self.daemon.status(), self.servers.as_slice()) {
            (Some(_), [only]) => Some(only),
            _ => None,
        }
    }

    /// Whose files the daemon may rely on besides root's: its own user's. `None` while nothing tells who that is.
    pub fn daemon_user(&self) -> Option<User> {
        let of_unit = || {
            let name = Unit::find(&self.site, "keystead.service")?.words("User").pop()?;
            Some(User { uid: self.site.uid_of(&name)?, gid: self.site.gid_of(&name)? })
        };
        self.server().map(|server| server.user).or_else(of_unit)
    }

    pub fn store(&self) -> &Path {
        &self.settings.store.path
    }
}

fn ask(socket: &Path, reach: &Reach) -> Daemon {
    let shown = socket.display();
    match reach {
        Reach::Listens { .. } => match status::ask(socket) {
            Ok(status) => Daemon::Answers(Box::new(status)),
            Err(Failure { exit: Exit::Refused, message, .. }) => Daemon::Forbidden(message),
            Err(failure) => Daemon::Silent(failure.message),
        },
        Reach::Missing => Daemon::Down(format!("{shown} does not exist")),
        Reach::Refused => Daemon::Down(format!("{shown} was left behind, and nobody listens on it")),
        Reach::Asleep => Daemon::Down(format!("{shown} is held by the service manager, and no server process runs")),
        Reach::Forbidden => Daemon::Forbidden(format!("this user may not open {shown}")),
        Reach::Crowded => Daemon::Silent(format!("so many wait on {shown} that there is no room for one more")),
        Reach::Failed(error) => Daemon::Silent(format!("{shown}: {error}")),
    }
}

fn servers(site: &Site) -> Vec<Server> {
    let proc = site.path("/proc");
    let pids = look::names(&proc).into_iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    pids.filter_map(|pid| server(&proc.join(pid))).collect()
}

fn server(process: &Path) -> Option<Server> {
    let status = text(process.join("status"))?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
    if field("Name:")? != "keystead-server" {
        return None;
    }
    let program = std::fs::read_link(process.join("exe")).ok();
    Some(Server {
        parent: field("PPid:")?.parse().ok()?,
        user: User { uid: field("Uid:")?.parse().ok()?, gid: field("Gid:")?.parse().ok()? },
        replaced: program.map(|program| program.to_string_lossy().ends_with(" (deleted)")),
        memlock: match field("CapEff:").and_then(|set| u64::from_str_radix(set, 16).ok()) {
            Some(set) if set & CAP_IPC_LOCK != 0 => Some(u64::MAX),
            _ => text(process.join("limits")).and_then(|limits| memlock(&limits)),
        },
    })
}

/// Whoever has it is not held to the limit (capabilities(7)).
const CAP_IPC_LOCK: u64 = 1 << 14;

fn memlock(limits: &str) -> Option<u64> {
    let soft = limits.lines().find_map(|line| line.strip_prefix("Max locked memory")?.split_whitespace().next())?;
    if soft == "unlimited" { Some(u64::MAX) } else { soft.parse().ok() }
}

fn text(path: PathBuf) -> Option<String> {
    match look::read(&path) {
        Look::Found(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_found_among_processes_by_their_name() {
        let folder = tempfile::tempdir().unwrap();
        let put = |pid: &str, name: &str, text: &str| {
            let process = folder.path().join("proc").join(pid);
            std::fs::create_dir_all(&process).unwrap();
            std::fs::write(process.join(name), text).unwrap();
        };
        put("12", "status", "Name:\tkeystead-server\nPPid:\t7\nUid:\t998\t998\t998\t998\nGid:\t997\t997\t997\t997\n");
        put("12", "limits", "Max locked memory         8388608              8388608              bytes\n");
        std::os::unix::fs::symlink("/usr/bin/keystead (deleted)", folder.path().join("proc/12/exe")).unwrap();
        put("15", "status", "Name:\tkeystead-server\nPPid:\t1\nUid:\t0\nGid:\t0\nCapEff:\t000001ffffffffff\n");
        put("13", "status", "Name:\tkeystead-custod\nPPid:\t7\nUid:\t998\n");
        put("14", "status", "rubbish");
        put("self", "status", "Name:\tkeystead-server\nPPid:\t7\nUid:\t998\n");
        let site = Site { root: folder.path().to_owned(), uid: 0, credentials: None };
        let expected =
            Server { parent: 7, user: User { uid: 998, gid: 997 }, replaced: Some(true), memlock: Some(8_388_608) };
        let privileged = Server { parent: 1, user: User { uid: 0, gid: 0 }, replaced: None, memlock: Some(u64::MAX) };
        assert_eq!(servers(&site), [expected, privileged]);
        assert_eq!(memlock("Max locked memory unlimited unlimited bytes"), Some(u64::MAX));
    }
}
