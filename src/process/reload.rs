//! The configuration read again while the daemon runs (docs/adr/0011-reload-and-schedule.md).
//!
//! The supervisor reads and judges, for it can: the server resolves no name and opens no file. What may change goes to the
//! server in a sealed memory file; the server records it, applies it at one go and says so, and only then the supervisor
//! holds it for the truth, for children to come as well.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::config_copy::{ConfigCopy, read_sealed, sealed};
use crate::config::{Change, Judged, Live, Settings, Site, Source, judge};
use crate::service::explain::explain;
use crate::telemetry::log::Verbosity;

/// Who asked for a reload: this number is nobody on the admin socket, but a signal.
pub const BY_SIGNAL: u32 = 0;

/// What the supervisor tells the server about a file that it has read again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// The server's number for whoever asked, or [`BY_SIGNAL`].
    pub ticket: u32,
    pub ruling: Ruling,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Ruling {
    Apply { live: Box<Live>, changes: Vec<Change>, sha256: [u8; 32] },
    Invalid(String),
    NeedsRestart(String),
    NotNow(String),
}

/// The supervisor's side.
#[derive(Debug, Clone)]
pub struct Reader {
    /// As the daemon runs now.
    pub settings: Settings,
    pub verbosity: Verbosity,
}

/// Read and judged, and with the server: not in force before that says so.
#[derive(Debug)]
pub struct Pending {
    pub ticket: u32,
    settings: Settings,
    copy: ConfigCopy,
}

impl Verdict {
    pub fn to_memory_file(&self) -> io::Result<OwnedFd> {
        sealed(&serde_json::to_vec(self)?)
    }

    pub fn from_memory_file(fd: OwnedFd) -> io::Result<Self> {
        Ok(serde_json::from_slice(&read_sealed(fd)?)?)
    }
}

impl Reader {
    /// Reads the file that `running` came from. Blocks on the disk.
    pub fn read(&self, running: &ConfigCopy, ticket: u32) -> (Verdict, Option<Pending>) {
        let verdict = |ruling| Verdict { ticket, ruling };
        let source = match again(running.path.as_deref()) {
            Ok(source) => source,
            Err(message) => return (verdict(Ruling::Invalid(message)), None),
        };
        let settings = match Settings::from_source(&source, &Site::this_machine()) {
            Ok(settings) => settings,
            Err(error) => return (verdict(Ruling::Invalid(explain(&error))), None),
        };
        match judge(&self.settings, &settings) {
            Judged::NeedsRestart(changes) => (verdict(Ruling::NeedsRestart(cannot(&changes))), None),
            Judged::Live(changes) => {
                let (live, sha256) = (Box::new(Live::of(&settings)), digest(source.text()));
                let copy = super::start::config_copy(&source);
                (verdict(Ruling::Apply { live, changes, sha256 }), Some(Pending { ticket, settings, copy }))
            }
        }
    }

    /// The server has applied it: so does this process, and children that are started from now on.
    pub fn commit(&mut self, pending: Pending, running: &mut ConfigCopy) {
        self.verbosity.set(pending.settings.log.level);
        self.settings = pending.settings;
        *running = pending.copy;
    }
}

/// As it would be found at a start. A pipe or a device has its text once, and would hold up whoever opens it.
fn again(path: Option<&Path>) -> Result<Source, String> {
    if let Some(path) = path
        && std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file())
    {
        return Err(format!("{} is no file that can be read again: restart the daemon", path.display()));
    }
    path.map_or_else(|| Source::find(None), Source::read).map_err(|error| explain(&error))
}

fn cannot(changes: &[Change]) -> String {
    let keys: Vec<String> = changes.iter().map(Change::spelt).collect();
    let verb = if keys.len() == 1 { "needs" } else { "need" };
    format!("{} {verb} a restart of the daemon: nothing was applied. Restart it, or put the file back", keys.join(", "))
}

pub fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::log;

    fn reader(path: &Path) -> (Reader, ConfigCopy) {
        let (source, settings) = Settings::load(Some(path)).unwrap();
        (Reader { settings, verbosity: log::detached() }, super::super::start::config_copy(&source))
    }

    #[test]
    fn changed_file_is_read_judged_and_taken_over_once_the_server_has() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, "node = \"n\"\n").unwrap();
        let (mut reader, mut running) = reader(&path);
        let changed = "node = \"n\"\n[kms]\nmax_plaintext = \"8KiB\"\n";
        std::fs::write(&path, changed).unwrap();
        let (verdict, pending) = reader.read(&running, 7);
        let Ruling::Apply { live, changes, sha256 } = &verdict.ruling else { panic!("{verdict:?}") };
        assert_eq!((live.kms_max_plaintext, changes.len(), *sha256), (8192, 1, digest(changed)));
        assert_eq!(Verdict::from_memory_file(verdict.to_memory_file().unwrap()).unwrap(), verdict);
        reader.commit(pending.unwrap(), &mut running);
        assert_eq!(running.text, changed);
        let (again, _) = reader.read(&running, 8);
        assert!(matches!(again.ruling, Ruling::Apply { changes, .. } if changes.is_empty()));
    }

    #[test]
    fn what_is_no_configuration_or_another_daemon_s_is_refused_and_nothing_is_pending() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, "node = \"n\"\n").unwrap();
        let (reader, running) = reader(&path);
        std::fs::write(&path, "node = \"n\"\n[kms]\nmax_plaintexts = \"8KiB\"\n").unwrap();
        let (verdict, pending) = reader.read(&running, 1);
        assert!(pending.is_none());
        let Ruling::Invalid(message) = verdict.ruling else { panic!("{verdict:?}") };
        assert!(message.contains("config.toml:3") && message.contains("did you mean `max_plaintext`"), "{message}");
        std::fs::write(&path, "node = \"m\"\n[log]\nlevel = \"debug\"\n").unwrap();
        let (verdict, pending) = reader.read(&running, 1);
        assert!(pending.is_none());
        let Ruling::NeedsRestart(message) = verdict.ruling else { panic!("{verdict:?}") };
        assert!(message.starts_with("node (\"n\" to \"m\") needs a restart"), "{message}");
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(reader.read(&running, 1).0.ruling, Ruling::Invalid(_)));
        std::fs::create_dir(&path).unwrap();
        let Ruling::Invalid(message) = reader.read(&running, 1).0.ruling else { panic!() };
        assert!(message.contains("restart the daemon"), "{message}");
    }

    #[test]
    fn nonsense_in_a_memory_file_is_no_verdict() {
        for bytes in [&b""[..], b"{}", b"{\"ticket\":1,\"ruling\":{\"apply\":{}}}"] {
            assert!(Verdict::from_memory_file(sealed(bytes).unwrap()).is_err());
        }
    }
}
