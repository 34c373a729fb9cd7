//! `scripts/quickstart` as a newcomer runs it, twice, with the binary under test.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::daemon::Finished;

/// Stops what it started, whatever happens.
struct Quickstart {
    folder: tempfile::TempDir,
}

impl Quickstart {
    fn new() -> Self {
        Self { folder: tempfile::Builder::new().prefix("ks-").tempdir().unwrap() }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn run(&self, argument: &str) -> Output {
        Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/quickstart"))
            .args(argument.split(' '))
            .env("KEYSTEAD_STATE", self.state())
            .env("KEYSTEAD_BIN", env!("CARGO_BIN_EXE_keystead"))
            .output()
            .unwrap()
    }

    /// In a shell that has sourced `env`, as the last lines of the output say.
    fn shell(&self, line: &str) -> Output {
        let script = format!("set -e; source '{}/env'; {line}", self.state().display());
        Command::new("bash").args(["-c", &script]).env_remove("KEYSTEAD_CONFIG").output().unwrap()
    }
}

impl Drop for Quickstart {
    fn drop(&mut self) {
        self.run("stop");
    }
}

#[test]
fn quickstart_serves_until_stopped_and_keeps_its_key() {
    let quickstart = Quickstart::new();
    assert_eq!(quickstart.run("status").status.code(), Some(3));
    let first = quickstart.run("start").expect_success();
    for part in ["gave the plaintext back", "kind: EncryptionConfiguration", "apiVersion: v2", "keystead key rotate"] {
        assert!(first.contains(part), "{part} is missing in:\n{first}");
    }
    let endpoint = format!("endpoint: unix://{}/run/kms.sock", quickstart.state().display());
    assert!(first.contains(&endpoint), "{first}");
    assert!(quickstart.state().join("run/admin.sock").exists());
    let pid = std::fs::read_to_string(quickstart.state().join("run/keystead.pid")).unwrap();

    let again = quickstart.run("start").expect_success();
    assert!(again.contains(&format!("pid {}", pid.trim())), "{again}");
    let key_id = quickstart.shell("keystead kms status --output json").expect_success();
    quickstart.run("status").expect_success();
    quickstart.shell("keystead key rotate --yes && keystead token list && keystead config check").expect_success();
    let rotated = quickstart.shell("keystead kms status --output json").expect_success();
    assert_ne!(key_id, rotated);

    quickstart.run("stop").expect_success();
    // Gone, or a zombie that this machine's init has not got round to.
    assert!(std::fs::read(format!("/proc/{}/cmdline", pid.trim())).unwrap_or_default().is_empty());
    quickstart.run("stop").expect_success();
    assert!(!quickstart.state().join("run/kms.sock").exists());
    quickstart.run("start").expect_success();
    assert_eq!(quickstart.shell("keystead kms status --output json").expect_success(), rotated);
}

#[cfg(feature = "tpm")]
#[test]
fn quickstart_serves_from_a_software_tpm_and_keeps_its_key() {
    let quickstart = Quickstart::new();
    let first = quickstart.run("start --custody tpm").expect_success();
    assert!(first.contains("gave the plaintext back") && first.contains("The TPM is ready"), "{first}");
    quickstart.shell("keystead key rotate --yes && keystead token list && keystead tpm info").expect_success();
    let key_id = quickstart.shell("keystead kms status --output json").expect_success();
    quickstart.run("start --custody softhsm").expect_failure(1);
    quickstart.run("stop").expect_success();
    // Without saying it again.
    quickstart.run("start").expect_success();
    assert_eq!(quickstart.shell("keystead kms status --output json").expect_success(), key_id);
}
