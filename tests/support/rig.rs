//! A token made for one test, in a folder that goes with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use keystead::config::{Settings, Site, Source};
use keystead::custody::settings::{CustodySettings, MechanismChoice, PinSource, TokenSelector};
use keystead_core::RootKind;
use tempfile::TempDir;

/// Of tokens that live as long as a test: no secret.
pub const PIN: &str = "user-pin-1234";
const SO_PIN: &str = "officer-pin-1234";

pub struct Rig {
    pub name: &'static str,
    pub module: PathBuf,
    pub environment: BTreeMap<String, String>,
    pub label: String,
    /// A TPM, in place of module and label. It ends before its folder goes.
    #[cfg(feature = "tpm")]
    pub tpm: Option<super::chip::Swtpm>,
    pub folder: TempDir,
}

/// How to make a [`Rig`] with tokens of these labels.
pub type MakeRig = fn(labels: &[&str]) -> Rig;

impl Rig {
    /// Kind of the roots that it makes; a TPM's CMKs live in their wraps.
    pub fn root_kind(&self) -> RootKind {
        #[cfg(feature = "tpm")]
        if self.tpm.is_some() {
            return RootKind::Tpm;
        }
        RootKind::Pkcs11
    }

    pub fn pin_file(&self) -> PathBuf {
        self.folder.path().join("pin")
    }

    /// Puts another PIN where custody reads it; the token keeps its own.
    pub fn write_pin(&self, pin: &str) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(self.pin_file(), pin).unwrap();
        std::fs::set_permissions(self.pin_file(), std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// What hsm-configs/ ships for this token, with the paths of this rig: the suite is what makes it `verified-on`.
    pub fn settings(&self, mechanism: MechanismChoice) -> CustodySettings {
        let example = format!("{}/hsm-configs/{}.toml", env!("CARGO_MANIFEST_DIR"), self.name.to_lowercase());
        let source = Source::read(Path::new(&example)).unwrap();
        let shipped = Settings::from_source(&source, &Site::this_machine()).unwrap().custody;
        assert!(
            shipped.environment.keys().all(|name| self.environment.contains_key(name)),
            "{example} sets other variables"
        );
        CustodySettings {
            module: self.module.clone(),
            token: TokenSelector::Label(self.label.clone()),
            pin: PinSource::File(self.pin_file()),
            mechanism,
            // Generous: an RSA key pair on a busy machine takes its time.
            timeout: Duration::from_secs(30),
            environment: self.environment.clone(),
            latch_folder: self.folder.path().to_owned(),
            #[cfg(feature = "tpm")]
            tpm: self.tpm.as_ref().map(|_| self.tpm_settings()),
            ..shipped
        }
    }
}

/// Initialises the first blank token of `module` with `label`, [`PIN`] and a security officer's PIN.
pub fn init_token(module: &Path, environment: &BTreeMap<String, String>, label: &str) {
    let output = Command::new("softhsm2-util")
        .args(["--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", SO_PIN])
        .arg("--module")
        .arg(module)
        .envs(environment)
        .output()
        .expect("softhsm2-util cannot be run; install the package softhsm2 (scripts/test does)");
    assert!(
        output.status.success(),
        "no token could be made with {}: {}{}",
        module.display(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
