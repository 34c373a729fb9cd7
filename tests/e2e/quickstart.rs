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

    fn run(&self, arguments: &str) -> Output {
        Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/quickstart"))
            .args(arguments.split(' '))
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
        let _ = std::fs::remove_file(self.state().join("rig/running"));
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

#[cfg(feature = "tpm")]
#[test]
fn quickstart_of_the_cloud_profile_runs_on_a_software_tpm_too() {
    let quickstart = Quickstart::new();
    let told = quickstart.run("start --custody tpm --profile cloud").expect_success();
    for step in ["The TPM is ready", "restarted without the cloud", "service is back"] {
        assert!(told.contains(step), "no {step:?} in:\n{told}");
    }
    let status = quickstart.shell("keystead status").expect_success();
    // The TPM holds the offline copy, the cloud the root.
    assert!(status.contains("swtpm:host=") && status.contains("alibaba"), "{status}");
    let rig = |name: &str| Command::new(quickstart.state().join("rig").join(name)).output().unwrap();
    rig("cloud-end").expect_success();
}

#[test]
fn quickstart_of_the_cloud_profile_tells_the_whole_story_and_leaves_scripts_that_act_on_it() {
    let quickstart = Quickstart::new();
    let told = quickstart.run("start --profile cloud").expect_success();
    println!("{told}");
    for step in [
        "noticed; the lease runs",
        "restarted without the cloud",
        "online again",
        "refused: Status, Encrypt and Decrypt fail",
        "service is back",
    ] {
        let line = told.lines().find(|line| line.contains(step)).unwrap_or_else(|| panic!("no {step:?} in:\n{told}"));
        assert!(line.ends_with(" s"), "{line} has no time");
    }
    let rig = |name: &str| Command::new(quickstart.state().join("rig").join(name)).current_dir("/").output().unwrap();
    let availability = "keystead status --output json | sed -n 's/^  \"availability\": \"\\(.*\\)\",$/\\1/p'";
    let until = |wanted: &str| {
        let wait =
            format!("for _ in $(seq 600); do [[ $({availability}) == {wanted} ]] && exit 0; sleep 0.05; done; exit 1");
        quickstart.shell(&wait).expect_success();
    };
    until("online");
    rig("cloud-down").expect_success();
    until("degraded");
    rig("restart").expect_success();
    until("degraded");
    quickstart.shell("printf seed | keystead kms encrypt | keystead kms decrypt | grep -q seed").expect_success();
    rig("cloud-up").expect_success();
    rig("key-disable").expect_success();
    until("revoked");
    assert!(!quickstart.shell("keystead kms status").status.success());
    rig("key-enable").expect_success();
    until("online");
    // In any order, also those that change nothing; and the story once more, from how that has left it.
    for name in ["cloud-down", "key-disable", "cloud-down", "restart", "cloud-up", "restart"] {
        rig(name).expect_success();
    }
    until("revoked");
    let again = quickstart.run("start --profile cloud").expect_success();
    assert!(again.contains("runs already") && again.contains("service is back"), "{again}");
    let other = quickstart.run("start --profile local");
    assert!(String::from_utf8_lossy(&other.stderr).contains("cloud profile"));
    quickstart.run("stop").expect_success();
    quickstart.run("start").expect_success();
    rig("cloud-end").expect_success();
}
