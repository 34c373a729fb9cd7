//! The files that the configuration names: itself, the module and what its environment points to, or the TPM's device, and
//! the PIN or auth value. Metadata only: neither is read.

use std::path::{Path, PathBuf};

use super::finding::Finding;
use super::look::{self, Entry, Kind, Look, User};
use super::scene::Scene;
use super::trail;
use super::unit::Unit;
use crate::config::units::show_mode;
use crate::custody::settings::PinSource;

struct Facts<'a> {
    configuration: Option<(&'a Path, Look<Entry>)>,
    device: Device<'a>,
    /// Variables of the module's process that hold a path to nothing.
    dangling: Vec<(&'a str, &'a str)>,
    pin: Pin,
    secret: &'static Secret,
    user: Option<User>,
}

enum Device<'a> {
    Module(&'a Path, Look<Entry>),
    Tpm(&'a Path, Look<Entry>),
    /// A TPM that is reached through another program.
    Elsewhere(&'a str),
}

/// What the device asks for, by the kind of custody.
struct Secret {
    name: &'static str,
    missing: &'static str,
    remedy: &'static str,
    default: &'static str,
}

const PIN: Secret = Secret {
    name: "PIN",
    missing: "without the PIN there is no login: the next start of daemon or custodian does not get at the keys",
    remedy: "write the token's user PIN into it, mode 0400",
    default: "/etc/keystead/pin",
};
const AUTH: Secret = Secret {
    name: "auth",
    missing: "without the auth value the TPM opens nothing: the next start of daemon or custodian does not get at the keys",
    remedy: "put its backup back; on a TPM without keys, `keystead tpm provision` makes one",
    default: "/etc/keystead/tpm-auth",
};

enum Pin {
    File(PathBuf, Look<Entry>),
    /// A credential, and the file that the unit takes it from.
    Credential {
        name: String,
        origin: Origin,
    },
}

enum Origin {
    /// No unit is installed here: whoever starts the daemon hands it over.
    NoUnit,
    /// The unit does not mention the credential.
    Unnamed,
    /// Kept in the unit, or found by systemd itself.
    Inherent,
    File(PathBuf, Look<Entry>),
}

const AT_THE_KEY: &str =
    "whoever may change it decides what code runs beside the device's secret and what the daemon believes";

pub fn check(scene: &Scene<'_>) -> Vec<Finding> {
    let custody = &scene.settings.custody;
    let dangling = |(name, value): (&'_ String, &'_ String)| {
        (value.starts_with('/') && look::at(Path::new(value)) == Look::Missing).then_some(())?;
        custody.environment.get_key_value(name).map(|(name, value)| (name.as_str(), value.as_str()))
    };
    let mut findings = judge(&Facts {
        configuration: scene.config_file.map(|file| (file, look::at(file))),
        device: match &custody.tpm {
            None => Device::Module(&custody.module, look::at(&custody.module)),
            Some(tpm) => match tpm.tcti.strip_prefix("device:") {
                Some(path) => Device::Tpm(Path::new(path), look::at(Path::new(path))),
                None => Device::Elsewhere(&tpm.tcti),
            },
        },
        secret: if custody.tpm.is_some() { &AUTH } else { &PIN },
        dangling: custody.environment.iter().filter_map(dangling).collect(),
        pin: match &custody.pin {
            PinSource::File(file) => Pin::File(file.clone(), look::at(file)),
            PinSource::Credential(name) => Pin::Credential { name: name.clone(), origin: origin(scene, name) },
        },
        user: scene.daemon_user(),
    });
    findings.extend(trail::check(scene));
    findings
}

fn origin(scene: &Scene<'_>, name: &str) -> Origin {
    let Some(unit) = Unit::find(&scene.site, "keystead.service") else { return Origin::NoUnit };
    let named = |key| {
        let words = unit.words(key).into_iter().map(|word| {
            word.split_once(':')
                .map_or((word.clone(), String::new()), |(name, rest)| (name.to_owned(), rest.to_owned()))
        });
        words.into_iter().find(|(known, _)| known == name).map(|(_, path)| path)
    };
    let file = |path: String| Origin::File(scene.site.path(&path), look::at(&scene.site.path(&path)));
    match (named("LoadCredential"), named("LoadCredentialEncrypted")) {
        (Some(path), _) if path.starts_with('/') => file(path),
        (None, Some(path)) if path.starts_with('/') => match file(path) {
            // Encrypted: others may read it, but not change it.
            Origin::File(path, Look::Found(entry)) => {
                Origin::File(path, Look::Found(Entry { mode: entry.mode & !0o044, ..entry }))
            }
            other => other,
        },
        (None, None) if named("SetCredential").or_else(|| named("SetCredentialEncrypted")).is_none() => Origin::Unnamed,
        _ => Origin::Inherent,
    }
}

fn judge(facts: &Facts<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some((file, Look::Found(entry))) = &facts.configuration {
        findings.extend(guarded("files.configuration", file, entry, facts.user));
    }
    findings.push(match &facts.device {
        Device::Module(path, entry) => module(path, entry, facts.user),
        Device::Tpm(path, entry) => tpm(path, entry),
        Device::Elsewhere(tcti) => Finding::ok("files.tpm", format!("the TPM is reached as {tcti}")),
    });
    for (name, value) in &facts.dangling {
        let what = format!("custody.environment sets {name} to {value}, which does not exist");
        let why = "the usual reason for a module that shows no token";
        findings.push(Finding::warning(
            "files.environment",
            what,
            why,
            "mend the path, then `keystead custodian restart`",
        ));
    }
    findings.push(match &facts.pin {
        Pin::File(file, entry) => pin(facts.secret, file, entry),
        Pin::Credential { name, origin } => credential(facts.secret, name, origin),
    });
    findings
}

fn guarded(id: &'static str, file: &Path, entry: &Entry, user: Option<User>) -> Option<Finding> {
    let shown = file.display();
    if entry.writable_by_others(user) {
        let what = format!("{shown} may be changed by others than its owner (mode {})", show_mode(entry.mode));
        return Some(Finding::critical(id, what, AT_THE_KEY, format!("`chmod go-w {shown}`")));
    }
    entry.foreign(user).then(|| {
        let what = format!("{shown} belongs to user {}, who is neither root nor the daemon's", entry.uid);
        Finding::critical(id, what, AT_THE_KEY, format!("`chown root {shown}`"))
    })
}

fn tpm(path: &Path, entry: &Look<Entry>) -> Finding {
    let shown = path.display();
    match entry {
        Look::Found(_) => Finding::ok("files.tpm", format!("TPM {shown}")),
        Look::Missing => {
            let why = "without it there are no keys, and the next start does not serve";
            let next = "enable the TPM in the firmware setup, or set custody.tcti";
            Finding::critical("files.tpm", format!("{shown} does not exist"), why, next)
        }
        Look::Forbidden => {
            Finding::unchecked("files.tpm", format!("{shown} is not open to this user"), "run it as root")
        }
        Look::Failed(error) => Finding::unchecked("files.tpm", format!("{shown}: {error}"), "run it as root"),
    }
}

fn module(path: &Path, entry: &Look<Entry>, user: Option<User>) -> Finding {
    let shown = path.display();
    let no_token = "without it there is no token, and the next start does not serve";
    match entry {
        Look::Found(entry) if entry.kind != Kind::File => Finding::critical(
            "files.module",
            format!("{shown} is not a file"),
            no_token,
            "set custody.module to the vendor's PKCS#11 module",
        ),
        Look::Found(entry) => guarded("files.module", path, entry, user)
            .unwrap_or_else(|| Finding::ok("files.module", format!("PKCS#11 module {shown}"))),
        Look::Missing => {
            let next = "install the vendor's module (SoftHSM: `apt install softhsm2`), or set custody.module";
            Finding::critical("files.module", format!("{shown} does not exist"), no_token, next)
        }
        Look::Forbidden => {
            Finding::unchecked("files.module", format!("{shown} is not open to this user"), "run it as root")
        }
        Look::Failed(error) => Finding::unchecked("files.module", format!("{shown}: {error}"), "run it as root"),
    }
}

fn pin(secret: &Secret, file: &Path, entry: &Look<Entry>) -> Finding {
    let shown = file.display();
    let Secret { name, missing, remedy, .. } = secret;
    let id = "files.pin";
    match entry {
        Look::Missing => Finding::critical(id, format!("the {name} file {shown} does not exist"), missing, *remedy),
        Look::Forbidden => {
            Finding::unchecked(id, format!("the {name} file {shown} is not open to this user"), "run it as root")
        }
        Look::Failed(error) => Finding::unchecked(id, format!("{shown}: {error}"), "run it as root"),
        Look::Found(entry) if entry.kind != Kind::File => {
            Finding::critical(id, format!("the {name} file {shown} is not a file"), missing, *remedy)
        }
        Look::Found(entry) if entry.size == 0 => {
            Finding::critical(id, format!("the {name} file {shown} is empty"), missing, *remedy)
        }
        // What the custodian accepts at most: 0640.
        Look::Found(entry) if entry.mode & 0o037 != 0 => {
            let what = format!("the {name} file {shown} has mode {}", show_mode(entry.mode & 0o777));
            let why =
                "the custodian refuses one that others may read or change, and whoever has read it can use the device";
            Finding::critical(id, what, why, format!("`chmod 0400 {shown}`, and change it if others had access"))
        }
        Look::Found(entry) => Finding::ok(id, format!("{name} file {shown}, mode {}", show_mode(entry.mode & 0o777))),
    }
}

fn credential(secret: &Secret, name: &str, origin: &Origin) -> Finding {
    let id = "files.pin";
    let Secret { name: kind, missing, default, .. } = secret;
    match origin {
        Origin::NoUnit => Finding::unchecked(
            id,
            format!("the {kind} comes as credential {name}; there is no unit keystead.service"),
            "look into whatever starts the daemon",
        ),
        Origin::Unnamed => {
            let what = format!("keystead.service hands over no credential {name}");
            Finding::critical(id, what, missing, format!("`systemctl edit keystead`: LoadCredential={name}:{default}"))
        }
        Origin::Inherent => Finding::ok(id, format!("the {kind} is credential {name} of keystead.service")),
        Origin::File(file, Look::Found(entry)) if entry.size > 0 && entry.mode & 0o037 == 0 => {
            Finding::ok(id, format!("the {kind} is credential {name}, from {}", file.display()))
        }
        Origin::File(file, entry) => pin(secret, file, entry),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity::{self, Critical, Info, Ok, Warning};
    use super::*;

    fn entry(kind: Kind, mode: u32, size: u64) -> Look<Entry> {
        Look::Found(Entry { kind, mode, uid: 0, gid: 0, size, modified: 0 })
    }

    fn module(entry: Look<Entry>) -> Device<'static> {
        Device::Module(Path::new("/usr/lib/m.so"), entry)
    }

    fn found(change: impl FnOnce(&mut Facts<'_>)) -> Vec<(&'static str, Severity)> {
        let mut facts = Facts {
            configuration: Some((Path::new("/etc/keystead/config.toml"), entry(Kind::File, 0o644, 9))),
            device: module(entry(Kind::File, 0o644, 9)),
            secret: &PIN,
            dangling: Vec::new(),
            pin: Pin::File("/etc/keystead/pin".into(), entry(Kind::File, 0o400, 9)),
            user: Some(User { uid: 998, gid: 998 }),
        };
        change(&mut facts);
        judge(&facts)
            .into_iter()
            .map(|finding| (finding.id, finding.severity))
            .filter(|(_, severity)| *severity != Ok)
            .collect()
    }

    #[test]
    fn sound_files_have_nothing_but_ok() {
        assert_eq!(found(|_| {}), []);
        assert_eq!(found(|facts| facts.configuration = None), []);
    }

    #[test]
    fn files_that_others_may_change_are_critical() {
        let open = entry(Kind::File, 0o666, 9);
        assert_eq!(found(|facts| facts.device = module(open.clone())), [("files.module", Critical)]);
        assert_eq!(
            found(|facts| facts.configuration = Some((Path::new("/c"), open))),
            [("files.configuration", Critical)]
        );
        let foreign = Look::Found(Entry { kind: Kind::File, mode: 0o644, uid: 1000, gid: 1000, size: 9, modified: 0 });
        assert_eq!(found(|facts| facts.device = module(foreign)), [("files.module", Critical)]);
    }

    #[test]
    fn missing_module_dangling_variable_and_bad_pins_are_named() {
        assert_eq!(found(|facts| facts.device = module(Look::Missing)), [("files.module", Critical)]);
        assert_eq!(found(|facts| facts.device = module(entry(Kind::Folder, 0o755, 9))), [("files.module", Critical)]);
        assert_eq!(
            found(|facts| facts.dangling = vec![("SOFTHSM2_CONF", "/nowhere")]),
            [("files.environment", Warning)]
        );
        let pins = [
            Look::Missing,
            entry(Kind::File, 0o400, 0),
            entry(Kind::File, 0o444, 9),
            entry(Kind::File, 0o420, 9),
            entry(Kind::Other, 0o600, 9),
        ];
        for pin in pins {
            assert_eq!(
                found(|facts| facts.pin = Pin::File("/pin".into(), pin.clone())),
                [("files.pin", Critical)],
                "{pin:?}"
            );
        }
        assert_eq!(found(|facts| facts.pin = Pin::File("/pin".into(), Look::Forbidden)), [("files.pin", Info)]);
    }

    #[test]
    fn site_on_a_tpm_is_asked_for_its_device_and_never_for_a_module() {
        let tpm = |entry| {
            move |facts: &mut Facts<'_>| {
                facts.device = Device::Tpm(Path::new("/dev/tpmrm0"), entry);
                facts.secret = &AUTH;
            }
        };
        assert_eq!(found(tpm(entry(Kind::Other, 0o660, 0))), []);
        assert_eq!(found(tpm(Look::Missing)), [("files.tpm", Critical)]);
        assert_eq!(found(tpm(Look::Forbidden)), [("files.tpm", Info)]);
        assert_eq!(found(|facts| facts.device = Device::Elsewhere("tabrmd:bus_type=system")), []);
    }

    #[test]
    fn credential_is_followed_to_the_file_that_the_unit_names() {
        let credential =
            |origin| move |facts: &mut Facts<'_>| facts.pin = Pin::Credential { name: "pin".into(), origin };
        let file = |entry| Origin::File("/etc/keystead/pin".into(), entry);
        assert_eq!(found(credential(file(entry(Kind::File, 0o600, 4)))), []);
        assert_eq!(found(credential(Origin::Inherent)), []);
        assert_eq!(found(credential(file(Look::Missing))), [("files.pin", Critical)]);
        assert_eq!(found(credential(file(Look::Forbidden))), [("files.pin", Info)]);
        assert_eq!(found(credential(Origin::Unnamed)), [("files.pin", Critical)]);
        assert_eq!(found(credential(Origin::NoUnit)), [("files.pin", Info)]);
    }
}
