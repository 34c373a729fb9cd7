//! SoftHSM tokens in a folder of their own, never the system's.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::{fs, io};

use super::rig::{PIN, Rig, init_token};

/// Makes one token a label; the rig names the first.
pub fn rig(labels: &[&str]) -> Rig {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    fs::create_dir(&tokens).unwrap();
    let configuration = folder.path().join("softhsm2.conf");
    let text = format!("directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n", tokens.display());
    fs::write(&configuration, text).unwrap();
    let environment = BTreeMap::from([("SOFTHSM2_CONF".to_owned(), configuration.display().to_string())]);
    let module = module();
    labels.iter().for_each(|label| init_token(&module, &environment, label));
    let rig = Rig {
        name: "SoftHSM",
        module,
        environment,
        label: labels[0].to_owned(),
        folder,
        #[cfg(feature = "tpm")]
        tpm: None,
    };
    rig.write_pin(PIN);
    rig
}

/// Takes the tokens out, as if they were unplugged.
pub fn unplug(rig: &Rig) -> io::Result<()> {
    fs::rename(rig.folder.path().join("tokens"), rig.folder.path().join("unplugged"))?;
    fs::create_dir(rig.folder.path().join("tokens"))
}

pub fn plug_in(rig: &Rig) -> io::Result<()> {
    fs::remove_dir(rig.folder.path().join("tokens"))?;
    fs::rename(rig.folder.path().join("unplugged"), rig.folder.path().join("tokens"))
}

fn module() -> PathBuf {
    let places = [
        "/usr/lib/softhsm",
        "/usr/lib/x86_64-linux-gnu/softhsm",
        "/usr/lib/aarch64-linux-gnu/softhsm",
        "/usr/lib64/pkcs11",
    ];
    let mut modules = places.iter().map(|place| PathBuf::from(place).join("libsofthsm2.so"));
    modules
        .find(|module| module.exists())
        .expect("SoftHSM is not installed (package softhsm2; scripts/test installs it)")
}
