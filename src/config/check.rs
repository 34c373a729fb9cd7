//! What a configuration that is well-formed still lacks on this machine: files, folders, permissions. Looks at metadata only;
//! the PIN is never read.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use super::settings::Settings;
use super::site::Site;
use super::units::{show_duration, show_mode};
use super::upstream::UpstreamTable;
use crate::custody::settings::PinSource;
use crate::process::users::{User, Users};
use crate::rpc::peer::PeerPolicy;
use crate::rpc::socket::SocketSettings;
use crate::store::writable_by_others;

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
            device(&tpm.tcti, settings.users.as_ref().map(|users| &users.custodian), report);
            AUTH
        }
    };
    environment(settings, report);
    match &settings.custody.pin {
        PinSource::File(file) => pin_file(&keys, file, settings.users.as_ref(), report),
        PinSource::Credential(name) => credential(keys.credential, name, site, report),
    }
    let users = settings.users.as_ref();
    if users.is_some() {
        folder("custody.state_path", &settings.custody.latch_folder, users.map(|users| &users.custodian), report);
    }
    folder("store.path", &settings.store.path, users.map(|users| &users.server), report);
    if let Some(trail) = settings.trail_apart() {
        folder("audit.path", trail, users.map(|users| &users.server), report);
    }
    socket(&settings.kms.socket, &settings.kms.peers, ["kms.socket", "kms.allow_uids"], report);
    socket(&settings.admin.socket, &settings.admin.peers, ["admin.socket", "admin.allow_uids"], report);
    if let Some(table) = &settings.upstream {
        upstream(table, settings, report);
    }
    if !settings.sandbox.landlock && settings.users.is_none() {
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

/// `user` is the custodian's where it is another one than the caller.
fn device(tcti: &str, user: Option<&User>, report: &mut Vec<Finding>) {
    let key = "custody.tcti";
    if !cfg!(feature = "tpm") {
        problem(report, key, "this keystead was built without TPM support (feature `tpm`)".into());
    }
    let Some(path) = tcti.strip_prefix("device:") else { return };
    match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => {
            if let (Some(user), Ok(metadata)) = (user, file.metadata())
                && !granted(&metadata, user, 0o6)
            {
                let (uid, gid) = (user.uid, metadata.gid());
                let remedy = format!("put that user into the group that owns it ({gid}, often `tss`)");
                problem(report, key, format!("{path} may not be read and written by user {uid}; {remedy}"));
            }
        }
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

fn pin_file(keys: &SecretKeys, path: &Path, users: Option<&Users>, report: &mut Vec<Finding>) {
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
    match users {
        Some(users) if !readable(&metadata, &users.custodian) => {
            let uid = users.custodian.uid;
            problem(report, key, format!("{shown} cannot be read by the custodian; `chown {uid} {shown}`"));
        }
        Some(users) if readable(&metadata, &users.server) => {
            problem(report, key, format!("{shown} can be read by the server's user; `chmod 0400 {shown}`"));
        }
        None if rustix::fs::access(path, rustix::fs::Access::READ_OK).is_err() => {
            problem(report, key, format!("{shown} cannot be read by this user; run the check as the daemon's user"));
        }
        Some(_) | None => {}
    }
}

/// A folder of the daemon's: the store's, or the one of the custodian's notes where that has a user of its own.
fn folder(key: &'static str, path: &Path, owner: Option<&User>, report: &mut Vec<Finding>) {
    let shown = path.display();
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            note(report, key, format!("{shown} does not exist yet; it is made when it is needed"));
        }
        Err(error) => problem(report, key, format!("{shown}: {error}")),
        Ok(metadata) if !metadata.is_dir() => problem(report, key, format!("{shown} is not a folder")),
        Ok(metadata) => {
            let mode = show_mode(metadata.mode() & 0o777);
            if writable_by_others(path).unwrap_or(false) {
                let harm = "others may put old files there";
                problem(report, key, format!("{shown} has mode {mode}: {harm}; `chmod 0700 {shown}`"));
            } else if metadata.mode() & 0o055 != 0 {
                note(report, key, format!("{shown} has mode {mode}: others may look into it; `chmod 0700 {shown}`"));
            }
            match owner {
                Some(User { uid, gid, .. }) if metadata.uid() != *uid => {
                    let found = metadata.uid();
                    let remedy = format!("`chown -R {uid}:{gid} {shown}`");
                    problem(report, key, format!("{shown} belongs to user {found} and not to {uid}; {remedy}"));
                }
                None if rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_err() => {
                    problem(report, key, format!("{shown} cannot be written by this user"));
                }
                Some(_) | None => {}
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

fn readable(file: &Metadata, user: &User) -> bool {
    granted(file, user, 0o4)
}

/// By owner, group and others, in the kernel's order. `wanted` as in the last digit of a mode.
fn granted(file: &Metadata, user: &User, wanted: u32) -> bool {
    let place = if file.uid() == user.uid {
        6
    } else if file.gid() == user.gid || user.groups.contains(&file.gid()) {
        3
    } else {
        0
    };
    file.mode() >> place & wanted == wanted
}

fn upstream(table: &UpstreamTable, settings: &Settings, report: &mut Vec<Finding>) {
    if let Some(file) = &table.ca_file {
        upstream_file("upstream.ca_file", file, "put the CA certificates of the endpoint there, in PEM", report);
    }
    if let Some(file) = &table.credentials_file {
        let key = "upstream.credentials_file";
        upstream_file(key, file, "put the credentials there, mode 0400 (docs/configuration.md has their form)", report);
        if fs::metadata(file).is_ok_and(|metadata| metadata.mode() & 0o037 != 0) {
            let shown = file.display();
            problem(report, key, format!("others than owner and group may read {shown}: `chmod 0400 {shown}`"));
        }
    }
    if let Some(file) = &table.grant_key {
        upstream_file("upstream.grant_key", file, "put the public key of the lease grants there, in PEM", report);
    }
    // A new file in the PIN's folder cannot be opened by the confined server.
    let pin_folder = match &settings.custody.pin {
        PinSource::File(pin) => pin.parent(),
        PinSource::Credential(_) => None,
    };
    for (key, file) in [("upstream.ca_file", &table.ca_file), ("upstream.credentials_file", &table.credentials_file)] {
        if let Some(file) = file
            && pin_folder.is_some_and(|folder| file.parent().is_some_and(|parent| folder.starts_with(parent)))
        {
            let remedy = "put it into a folder of its own, as /etc/keystead/upstream";
            note(report, key, format!("lies in a folder with the PIN: once replaced it cannot be read; {remedy}"));
        }
    }
    if table.lease < Duration::from_secs(3600) {
        let lease = show_duration(table.lease);
        note(report, "upstream.lease", format!("is {lease}: an outage of that length ends the service"));
    }
    let renewals = Duration::from_secs(86_400).as_millis() / table.renew_every.as_millis().max(1);
    if renewals > u128::from(table.daily_call_budget) {
        let message = format!("is less than the {renewals} renewals of a day: the alarm would never be silent");
        note(report, "upstream.daily_call_budget", message);
    }
}

fn upstream_file(key: &'static str, path: &Path, remedy: &str, report: &mut Vec<Finding>) {
    let shown = path.display();
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            problem(report, key, format!("{shown} does not exist; {remedy}"));
        }
        Err(error) => problem(report, key, format!("{shown}: {error}")),
        Ok(metadata) if !metadata.is_file() => problem(report, key, format!("{shown} is not a file")),
        Ok(metadata) if metadata.len() == 0 => problem(report, key, format!("{shown} is empty; {remedy}")),
        Ok(_) if rustix::fs::access(path, rustix::fs::Access::READ_OK).is_err() => {
            problem(report, key, format!("{shown} cannot be read by this user; run the check as the daemon's user"));
        }
        Ok(_) => {}
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
        fs::set_permissions(rig.folder.path().join("store"), Permissions::from_mode(0o757)).unwrap();
        fs::set_permissions(rig.folder.path().join("run"), Permissions::from_mode(0o777)).unwrap();
        let keys: Vec<_> = rig.found().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["store.path", "kms.socket", "admin.socket"]);
    }

    /// `init` takes such a folder, too.
    #[test]
    fn store_that_others_may_only_look_into_is_a_note() {
        let rig = rig();
        for mode in [0o755, 0o750, 0o711] {
            fs::set_permissions(rig.folder.path().join("store"), Permissions::from_mode(mode)).unwrap();
            assert_eq!(rig.found(), [("store.path", Severity::Note)], "{mode:o}");
        }
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
    #[test]
    fn upstream_s_files_are_looked_at_and_a_lease_too_short_is_noted() {
        let mut rig = rig();
        let at = |name: &str| rig.folder.path().join(name);
        let text = "node = 'n'\n[upstream]\nkind = 'alibaba'\nkey = 'a'\nregion = 'b'\nca_file = 'cloud/ca.pem'\n\
                    credentials_file = 'credentials'\nrenew_every = '1s'\nlease = '1m'\n";
        let source = Source::from_parts(Some(at("config.toml")), text.into());
        rig.settings.upstream = Settings::from_source(&source, &rig.site).unwrap().upstream;
        fs::write(at("credentials"), "secret").unwrap();
        fs::set_permissions(at("credentials"), Permissions::from_mode(0o644)).unwrap();
        let expected = [
            ("upstream.ca_file", Severity::Problem),
            ("upstream.credentials_file", Severity::Problem),
            ("upstream.credentials_file", Severity::Note),
            ("upstream.lease", Severity::Note),
            ("upstream.daily_call_budget", Severity::Note),
        ];
        assert_eq!(rig.found(), expected);
        fs::set_permissions(at("credentials"), Permissions::from_mode(0o400)).unwrap();
        fs::create_dir(at("cloud")).unwrap();
        fs::write(at("cloud/ca.pem"), "pem").unwrap();
        assert!(rig.found().iter().all(|(_, severity)| *severity == Severity::Note), "{:?}", rig.found());
    }
}
