//! What the server can still reach by name: its store's folder and the audit trail's, and nothing else; in the cloud profile also the way to the
//! cloud. Besides, what it can ask of the kernel.
//!
//! By Landlock and a filter of system calls, which bind the calling thread and those it starts later: confine first, start the runtime afterwards.
//! Descriptors that are open already stay usable, so sockets come first as well. What stops working: reading
//! /proc/self, resolving users (in the local profile also hosts), loading locales, and symbols in backtraces.

use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, NetPort, PathBeneath, PathFd, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::egress::Egress;
use super::seccomp::{Filter, Filtering, filter_system_calls};

/// Files, devices, TCP, abstract sockets, signals: what Linux 6.12 and later enforce.
const WANTED: ABI = ABI::V6;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxSettings {
    /// Must exist.
    pub store: PathBuf,
    /// The audit trail's folder, where it does not lie within the store; one that does not exist is left out.
    pub trail: Option<PathBuf>,
    /// `false`: the site switched Landlock off.
    pub landlock: bool,
    /// `false`: the site switched the filter of system calls off.
    pub seccomp: bool,
    /// What the server must not be able to open; checked, not trusted.
    pub pin: Option<PathBuf>,
    /// The way to the cloud; `None` in the local profile.
    pub egress: Option<Egress>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confinement {
    Full,
    /// The kernel is older than 6.12 and enforces a part.
    Partial,
    /// The kernel has no Landlock.
    Unavailable,
    Off,
}

/// For `status` to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SandboxReport {
    pub confinement: Confinement,
    pub system_calls: Filtering,
    /// Whether the PIN file could be opened after all; `None` without a file to try.
    pub pin_reachable: Option<bool>,
}

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("the store's folder {} cannot be opened. Run `keystead init`", folder.display())]
    Store { folder: PathBuf, source: landlock::PathFdError },
    #[error("the kernel refused the sandbox. Set `landlock = false` in [sandbox] to run without it")]
    Landlock(#[from] RulesetError),
}

/// Confines this thread and all that it starts. There is no way back.
pub fn confine_server(settings: &SandboxSettings) -> Result<SandboxReport, SandboxError> {
    let confinement = if settings.landlock { restrict(settings)? } else { Confinement::Off };
    let pin_reachable = settings.pin.as_deref().map(can_be_opened);
    // Last: Landlock takes system calls of its own to set up.
    let filter = if settings.egress.is_some() { Filter::CloudServer } else { Filter::Server };
    let system_calls = filter_system_calls(filter, settings.seccomp);
    Ok(SandboxReport { confinement, system_calls, pin_reachable })
}

fn restrict(settings: &SandboxSettings) -> Result<Confinement, SandboxError> {
    let SandboxSettings { store, trail, egress, .. } = settings;
    let egress = egress.as_ref();
    let folder = PathFd::new(store).map_err(|source| SandboxError::Store { folder: store.clone(), source })?;
    // Neither executing nor making devices, sockets, pipes or links.
    let store_access = AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::RemoveFile;
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(WANTED))?
        .handle_access(AccessNet::from_all(WANTED))?
        .scope(Scope::from_all(WANTED))?
        .create()?
        .add_rule(PathBeneath::new(folder, store_access))?;
    if let Some(folder) = trail.as_ref().and_then(|trail| PathFd::new(trail).ok()) {
        ruleset = ruleset.add_rule(PathBeneath::new(folder, store_access))?;
    }
    for path in egress.into_iter().flat_map(|egress| &egress.readable) {
        // Not every distribution has every file, and credentials may come later, in a folder that is there.
        let Ok(opened) = PathFd::new(path) else { continue };
        let access =
            if path.is_dir() { AccessFs::ReadFile | AccessFs::ReadDir } else { BitFlags::from(AccessFs::ReadFile) };
        ruleset = ruleset.add_rule(PathBeneath::new(opened, access))?;
    }
    for port in egress.into_iter().flat_map(|egress| &egress.ports) {
        ruleset = ruleset.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
    }
    let status = ruleset.restrict_self()?;
    // Connecting to sockets by path is enforced from Linux 7.1 on: as a layer of its own, so that its absence on
    // today's kernels is not reported as a lack.
    Ruleset::default().handle_access(AccessFs::ResolveUnix)?.create()?.restrict_self()?;
    Ok(confinement(&status))
}

fn confinement(status: &RestrictionStatus) -> Confinement {
    match status.ruleset {
        RulesetStatus::FullyEnforced => Confinement::Full,
        RulesetStatus::PartiallyEnforced => Confinement::Partial,
        RulesetStatus::NotEnforced => Confinement::Unavailable,
    }
}

/// Anything but a refusal counts as reachable. Of a file that is not there yet, the folder that would hold it is tried.
fn can_be_opened(path: &Path) -> bool {
    path.ancestors().find_map(|path| match std::fs::File::open(path) {
        Ok(_) => Some(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(error.kind() != io::ErrorKind::PermissionDenied),
    }) != Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// On a thread of its own, for Landlock binds the thread for ever.
    fn confined<T: Send>(settings: &SandboxSettings, then: impl FnOnce(SandboxReport) -> T + Send) -> T {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    rustix::thread::set_no_new_privs(true).unwrap();
                    then(confine_server(settings).unwrap())
                })
                .join()
                .unwrap()
        })
    }

    #[test]
    fn confined_server_reaches_its_store_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (store, pin) = (folder.path().join("store"), folder.path().join("pin"));
        let trail = folder.path().join("trail");
        fs::create_dir(&store).unwrap();
        fs::create_dir(&trail).unwrap();
        fs::write(&pin, "1234").unwrap();
        let socket = folder.path().join("elsewhere.sock");
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = tcp.local_addr().unwrap();
        let settings = SandboxSettings {
            store: store.clone(),
            trail: Some(trail.clone()),
            landlock: true,
            seccomp: false,
            pin: Some(pin.clone()),
            egress: None,
        };
        confined(&settings, |report| {
            if report.confinement == Confinement::Unavailable {
                return;
            }
            assert_eq!(report.pin_reachable, Some(false));
            assert!(!can_be_opened(&folder.path().join("not/there/yet")));
            let fresh = store.join("keyring.store.new");
            fs::write(&fresh, "a").unwrap();
            fs::rename(&fresh, store.join("keyring.store")).unwrap();
            assert_eq!(fs::read(store.join("keyring.store")).unwrap(), b"a");
            fs::File::open(&store).unwrap().sync_all().unwrap();
            assert_eq!(fs::read_dir(&store).unwrap().count(), 1);
            fs::remove_file(store.join("keyring.store")).unwrap();
            fs::write(trail.join("audit.log"), "a").unwrap();

            assert!(fs::read(&pin).is_err());
            assert!(fs::read("/etc/passwd").is_err());
            assert!(fs::read("/proc/self/environ").is_err());
            assert!(fs::read_dir("/").is_err());
            assert!(fs::write(folder.path().join("new"), "").is_err());
            assert!(fs::OpenOptions::new().write(true).open("/dev/null").is_err());
            assert!(std::os::unix::fs::symlink("a", store.join("link")).is_err());
            assert!(std::os::unix::net::UnixListener::bind(store.join("socket")).is_err());
            assert!(std::os::unix::net::UnixListener::bind(&socket).is_err());
            assert!(std::process::Command::new("/proc/self/exe").spawn().is_err());
            if report.confinement == Confinement::Full {
                assert!(std::net::TcpStream::connect(tcp).is_err());
                assert!(std::net::TcpListener::bind("127.0.0.1:0").is_err());
            }
        });
        assert!(fs::read(&pin).is_ok(), "the other threads are as they were");
    }

    #[test]
    fn cloud_profile_opens_the_ports_and_files_it_names_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["store", "cloud"] {
            fs::create_dir(at(name)).unwrap();
        }
        for name in ["pin", "cloud/credentials"] {
            fs::write(at(name), "1234").unwrap();
        }
        let [cloud, other] = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let [cloud_at, other_at] = [&cloud, &other].map(|listener| listener.local_addr().unwrap());
        let egress = Egress {
            ports: vec![cloud_at.port()],
            readable: vec![at("cloud"), "/etc/hosts".into(), "/nonexistent/on/this/machine".into()],
        };
        let (store, pin) = (at("store"), Some(at("pin")));
        let settings = SandboxSettings { store, trail: None, landlock: true, seccomp: true, pin, egress: Some(egress) };
        confined(&settings, |report| {
            if report.confinement == Confinement::Unavailable {
                return;
            }
            assert_eq!(report.pin_reachable, Some(false));
            assert_eq!(fs::read(at("cloud/credentials")).unwrap(), b"1234");
            assert!(fs::read("/etc/hosts").is_ok() && fs::read("/etc/passwd").is_err());
            assert!(fs::write(at("cloud/credentials"), "").is_err() && fs::write(at("cloud/new"), "").is_err());
            assert!(std::net::TcpStream::connect(cloud_at).is_ok());
            if report.confinement == Confinement::Full {
                let denied = std::net::TcpStream::connect(other_at).unwrap_err();
                assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
            }
        });
    }

    #[test]
    fn runtime_started_afterwards_works_and_is_confined() {
        let folder = tempfile::tempdir().unwrap();
        let settings = SandboxSettings {
            store: folder.path().to_owned(),
            trail: None,
            landlock: true,
            seccomp: true,
            pin: None,
            egress: None,
        };
        confined(&settings, |report| {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let read = runtime.block_on(async {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                tokio::spawn(async { fs::read("/etc/passwd").is_ok() }).await.unwrap()
            });
            assert_eq!(read, report.confinement == Confinement::Unavailable);
        });
    }

    #[test]
    fn switched_off_is_said_so_and_the_pin_shown_as_reachable() {
        let folder = tempfile::tempdir().unwrap();
        let pin = folder.path().join("pin");
        fs::write(&pin, "1234").unwrap();
        let settings = SandboxSettings {
            store: folder.path().to_owned(),
            trail: None,
            landlock: false,
            seccomp: false,
            pin: Some(pin),
            egress: None,
        };
        let report = confine_server(&settings).unwrap();
        let expected =
            SandboxReport { confinement: Confinement::Off, system_calls: Filtering::Off, pin_reachable: Some(true) };
        assert_eq!(report, expected);
    }

    #[test]
    fn missing_store_is_an_error_that_says_what_to_do() {
        let settings = SandboxSettings {
            store: "/nonexistent".into(),
            trail: None,
            landlock: true,
            seccomp: false,
            pin: None,
            egress: None,
        };
        let error = std::thread::scope(|scope| scope.spawn(|| confine_server(&settings)).join().unwrap()).unwrap_err();
        assert!(error.to_string().contains("keystead init"));
    }
}
