//! What a configuration that is well-formed still lacks on this machine: files, folders, permissions. Looks at metadata only;
//! the PIN is never read.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::settings::Settings;
use super::site::Site;
use super::units::show_mode;
use crate::custody::settings::PinSource;
use crate::rpc::peer::PeerPolicy;
use crate::rpc::socket::SocketSettings;

/// Something that was found, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    pub key: &'static str,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// `serve` will not work, or not safely.
    Problem,
    /// Works; worth knowing.
    Note,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Problem => "problem",
            Self::Note => "note",
        }
    }
}

/// Everything found, in the order of the file's keys. Run it as the daemon's user: permissions are judged for the caller.
pub fn check(settings: &Settings, site: &Site) -> Vec<Finding> {
    let mut findings = Vec::new();
    let report = &mut findings;
    let keys = match &settings.custody.tpm {
        None => {
            module(&settings.custody.module, report);
            PIN
        }
        Some(tpm) => {
            device(&tpm.tcti, report);
            AUTH
        }
    };
    environment(settings, report);
    match &settings.custody.pin {
        PinSource::File(file) => pin_file(&keys, file, report),
        PinSource::Credential(name) => credential(keys.credential, name, site, report),
    }
    store(&settings.store.path, report);
    socket(&settings.kms.socket, &settings.kms.peers, ["kms.socket", "kms.allow_uids"], report);
    socket(&settings.admin.socket, &settings.admin.peers, ["admin.socket", "admin.allow_uids"], report);
    if !settings.sandbox.landlock {
        note(report, "sandbox.landlock", "is off: the server process could open the PIN file".into());
    }
    if !settings.sandbox.seccomp {
        note(report, "sandbox.seccomp", "is off: the processes could start programs and make sockets".into());
    }
    findings
}

/// What a secret is called, by the kind of custody.
struct SecretKeys {
    file: &'static str,
    credential: &'static str,
    /// How one comes by it.
    remedy: &'static str,
}

const PIN: SecretKeys = SecretKeys {
    file: "custody.pin_file",
    credential: "custody.pin_credential",
    remedy: "write the token's user PIN into it",
};
const AUTH: SecretKeys = SecretKeys {
    file: "custody.auth_file",
    credential: "custody.auth_credential",
    remedy: "run `keystead tpm provision`",
};

fn device(tcti: &str, report: &mut Vec<Finding>) {
    let key = "custody.tcti";
    if !cfg!(feature = "tpm") {
        problem(report, key, "this keystead was built without TPM support (feature `tpm`)".into());
    }
    let Some(path) = tcti.strip_prefix("device:") else { return };
    match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            problem(report, key, format!("{path} does not exist; enable the TPM in the firmware setup"));
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            problem(report, key, format!("{path}: {error}; put this user into the group that owns it (often `tss`)"));
        }
        // In use: somebody holds a device without resource manager.
        Err(error) => note(report, key, format!("{path}: {error}")),
    }
}

fn problem(report: &mut Vec<Finding>, key: &'static str, message: String) {
    report.push(Finding { severity: Severity::Problem, key, message });
}

fn note(report: &mut Vec<Finding>, key: &'static str, message: String) {
    report.push(Finding { severity: Severity::Note, key, message });
}

fn module(path: &Path, report: &mut Vec<Finding>) {
    let key = "custody.module";
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let remedy = "install the HSM's PKCS#11 module (SoftHSM: `apt install softhsm2`) or set its path";
            problem(report, key, format!("{} does not exist; {remedy}", path.display()));
        }
        Err(error) => problem(report, key, format!("{}: {error}", path.display())),
        Ok(metadata) if !metadata.is_file() => problem(report, key, format!("{} is not a file", path.display())),
        Ok(metadata) if metadata.mode() & 0o002 != 0 => {
            problem(report, key, format!("{} may be changed by everyone: `chmod o-w` it", path.display()));
        }
        Ok(_) => {}
    }
}

/// A variable that holds a path to nothing is the usual reason for a module that shows no token.
fn environment(settings: &Settings, report: &mut Vec<Finding>) {
    for (name, value) in &settings.custody.environment {
        if value.starts_with('/') && !Path::new(value).exists() {
            note(report, "custody.environment", format!("{name} names {value}, which does not exist"));
        }
    }
}

fn credential(key: &'static str, name: &str, site: &Site, report: &mut Vec<Finding>) {
    match &site.credentials {
        None => note(report, key, "$CREDENTIALS_DIRECTORY is not set: systemd sets it for the service only".into()),
        Some(folder) => match fs::metadata(folder.join(name)) {
            Ok(metadata) if metadata.len() == 0 => problem(report, key, format!("credential {name} is empty")),
            Ok(_) => {}
            Err(error) => problem(report, key, format!("credential {name}: {error}; see LoadCredential= in the unit")),
        },
    }
}

fn pin_file(keys: &SecretKeys, path: &Path, report: &mut Vec<Finding>) {
    let (key, remedy) = (keys.file, keys.remedy);
    let shown = path.display();
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            problem(report, key, format!("{shown} does not exist; {remedy}, mode 0400"));
            return;
        }
        Err(error) => {
            problem(report, key, format!("{shown}: {error}"));
            return;
        }
    };
    if !metadata.is_file() {
        problem(report, key, format!("{shown} is not a file"));
        return;
    }
    if metadata.len() == 0 {
        problem(report, key, format!("{shown} is empty; {remedy}"));
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o037 != 0 {
        let mode = show_mode(mode);
        problem(
            report,
            key,
            format!("{shown} has mode {mode}: only owner and group may read it; `chmod 0400 {shown}`"),
        );
    }
    if rustix::fs::access(path, rustix::fs::Access::READ_OK).is_err() {
        problem(report, key, format!("{shown} cannot be read by this user; run the check as the daemon's user"));
    }
}

fn store(path: &Path, report: &mut Vec<Finding>) {
    let key = "store.path";
    let shown = path.display();
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            note(report, key, format!("{shown} does not exist yet; `keystead init` makes it"));
        }
        Err(error) => problem(report, key, format!("{shown}: {error}")),
        Ok(metadata) if !metadata.is_dir() => problem(report, key, format!("{shown} is not a folder")),
        Ok(metadata) => {
            if metadata.mode() & 0o077 != 0 {
                let mode = show_mode(metadata.mode() & 0o777);
                problem(
                    report,
                    key,
                    format!("{shown} has mode {mode}: it is the daemon's alone; `chmod 0700 {shown}`"),
                );
            }
            if rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_err() {
                problem(report, key, format!("{shown} cannot be written by this user"));
            }
        }
    }
}

fn socket(socket: &SocketSettings, peers: &PeerPolicy, [key, peers_key]: [&'static str; 2], report: &mut Vec<Finding>) {
    if peers.uids.is_empty() && peers.gids.is_empty() {
        problem(report, peers_key, "neither a user nor a group is allowed: every peer would be refused".into());
    }
    let folder = socket.path.parent().unwrap_or(Path::new("/"));
    let shown = folder.display();
    match fs::metadata(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && folder.parent().is_some_and(Path::is_dir) => {
            note(report, key, format!("the folder {shown} does not exist yet; `keystead serve` makes it"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let remedy = "create it (systemd: `RuntimeDirectory=keystead`)";
            problem(report, key, format!("the folder {shown} does not exist; {remedy}"));
        }
        Err(error) => problem(report, key, format!("{shown}: {error}")),
        Ok(metadata) if !metadata.is_dir() => problem(report, key, format!("{shown} is not a folder")),
        Ok(metadata) if replaceable_by_others(&metadata) => {
            problem(report, key, format!("others may write to the folder {shown} and so replace the socket"));
        }
        Ok(_) => {}
    }
    if fs::symlink_metadata(&socket.path).is_ok_and(|metadata| !metadata.file_type().is_socket()) {
        problem(report, key, format!("{} exists and is not a socket; it will not be replaced", socket.path.display()));
    }
}

/// With the sticky bit only an entry's owner may rename or remove it.
fn replaceable_by_others(folder: &Metadata) -> bool {
    folder.mode() & 0o002 != 0 && folder.mode() & 0o1000 == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    /// A configuration below a temporary folder in which everything is as it should be.
    struct Rig {
        folder: tempfile::TempDir,
        site: Site,
        settings: Settings,
    }

    fn rig() -> Rig {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("module.so"), "module").unwrap();
        fs::write(at("pin"), "1234").unwrap();
        fs::create_dir(at("store")).unwrap();
        fs::create_dir(at("run")).unwrap();
        for (name, mode) in [("module.so", 0o644), ("pin", 0o400), ("store", 0o700), ("run", 0o755)] {
            fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
        }
        let text = "node = 'n'\n[custody]\nmodule = 'module.so'\npin_file = 'pin'\n[store]\npath = 'store'\n\
                    [kms]\nsocket = 'run/kms.sock'\n[admin]\nsocket = 'run/admin.sock'\n";
        let source = Source::from_parts(Some(at("config.toml")), text.into());
        let site = Site { root: "/".into(), uid: 0, credentials: None };
        let settings = Settings::from_source(&source, &site).unwrap();
        Rig { folder, site, settings }
    }

    impl Rig {
        fn found(&self) -> Vec<(&'static str, Severity)> {
            check(&self.settings, &self.site).into_iter().map(|finding| (finding.key, finding.severity)).collect()
        }
    }

    #[test]
    fn sound_site_has_no_findings() {
        assert_eq!(check(&rig().settings, &Site::this_machine()), []);
    }

    #[test]
    fn missing_files_are_named() {
        let rig = rig();
        for name in ["module.so", "pin"] {
            fs::remove_file(rig.folder.path().join(name)).unwrap();
        }
        for name in ["store", "run"] {
            fs::remove_dir(rig.folder.path().join(name)).unwrap();
        }
        let expected = [
            ("custody.module", Severity::Problem),
            ("custody.pin_file", Severity::Problem),
            ("store.path", Severity::Note),
            ("kms.socket", Severity::Note),
            ("admin.socket", Severity::Note),
        ];
        assert_eq!(rig.found(), expected);
    }

    #[test]
    fn pin_file_that_others_may_read_or_that_is_empty_is_a_problem() {
        for mode in [0o404, 0o444, 0o420, 0o666] {
            let rig = rig();
            fs::set_permissions(rig.folder.path().join("pin"), Permissions::from_mode(mode)).unwrap();
            assert_eq!(rig.found(), [("custody.pin_file", Severity::Problem)], "{mode:o}");
        }
        let rig = rig();
        fs::remove_file(rig.folder.path().join("pin")).unwrap();
        fs::write(rig.folder.path().join("pin"), "").unwrap();
        fs::set_permissions(rig.folder.path().join("pin"), Permissions::from_mode(0o440)).unwrap();
        assert_eq!(rig.found(), [("custody.pin_file", Severity::Problem)]);
    }

    #[test]
    fn folders_open_to_others_are_problems() {
        let rig = rig();
        fs::set_permissions(rig.folder.path().join("store"), Permissions::from_mode(0o750)).unwrap();
        fs::set_permissions(rig.folder.path().join("run"), Permissions::from_mode(0o777)).unwrap();
        let keys: Vec<_> = rig.found().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["store.path", "kms.socket", "admin.socket"]);
    }

    #[test]
    fn file_in_the_socket_s_place_and_missing_credential_are_problems() {
        let mut rig = rig();
        fs::write(rig.folder.path().join("run/kms.sock"), "").unwrap();
        rig.settings.custody.pin = PinSource::Credential("keystead-pin".into());
        rig.site.credentials = Some(rig.folder.path().to_owned());
        let expected = [("custody.pin_credential", Severity::Problem), ("kms.socket", Severity::Problem)];
        assert_eq!(rig.found(), expected);
        rig.site.credentials = None;
        assert_eq!(rig.found()[0], ("custody.pin_credential", Severity::Note));
    }

    #[test]
    fn socket_that_admits_nobody_is_a_problem() {
        let mut rig = rig();
        rig.settings.kms.peers.uids.clear();
        rig.settings.sandbox.landlock = false;
        let expected = [("kms.allow_uids", Severity::Problem), ("sandbox.landlock", Severity::Note)];
        assert_eq!(rig.found(), expected);
    }
}
