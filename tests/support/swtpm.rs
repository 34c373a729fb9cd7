//! Rigs with a software TPM in place of a token.

use std::path::PathBuf;

use keystead::custody::settings::{PinSource, TpmSettings};
use keystead::custody::tpm::provision;

use super::chip::Swtpm;
use super::rig::Rig;

/// A TPM that was provisioned; labels mean nothing to it.
pub fn rig(_: &[&str]) -> Rig {
    let rig = bare();
    rig.provision();
    rig
}

/// A TPM as it comes from the factory.
pub fn bare() -> Rig {
    let folder = tempfile::tempdir().unwrap();
    let chip = Swtpm::start(&folder.path().join("tpm"));
    let environment = [("TSS2_LOG".to_owned(), "all+NONE".to_owned())].into();
    Rig { name: "swtpm", module: PathBuf::new(), environment, label: "tpm".into(), folder, tpm: Some(chip) }
}

impl Rig {
    pub fn chip(&self) -> &Swtpm {
        self.tpm.as_ref().expect("a rig with a TPM")
    }

    pub fn tpm_settings(&self) -> TpmSettings {
        TpmSettings {
            tcti: self.chip().tcti.clone(),
            auth: PinSource::File(self.pin_file()),
            approvals: self.folder.path().join("approvals"),
            boot: None,
        }
    }

    /// As `keystead tpm provision` does it, for the names that the cases use.
    pub fn provision(&self) {
        let (keyring, node) = ("default".parse().unwrap(), "edge-1".parse().unwrap());
        provision(&self.tpm_settings(), &self.pin_file(), None, &keyring, &node).unwrap();
    }
}
