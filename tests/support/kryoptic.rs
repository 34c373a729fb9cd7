//! Kryoptic tokens: the second, independent implementation.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use super::rig::{PIN, Rig, init_token};

/// Names the module; scripts/test sets it to what `scripts/rigs/kryoptic build` prints.
pub const MODULE: &str = "KEYSTEAD_TEST_KRYOPTIC";

/// Makes one token a label; the rig names the first.
pub fn rig(labels: &[&str]) -> Rig {
    let folder = tempfile::tempdir().unwrap();
    let mut text = String::new();
    for slot in 0..labels.len() {
        let store = folder.path().join(format!("token-{slot}.sql"));
        writeln!(text, "[[slots]]\nslot = {slot}\ndbtype = \"sqlite\"\ndbargs = \"{}\"", store.display()).unwrap();
    }
    let configuration = folder.path().join("token.conf");
    fs::write(&configuration, text).unwrap();
    let environment = BTreeMap::from([("KRYOPTIC_CONF".to_owned(), configuration.display().to_string())]);
    let module = module();
    // softhsm2-util reads SoftHSM's own configuration too, and an ordinary user cannot read the system's.
    let util = folder.path().join("softhsm2-util.conf");
    fs::write(&util, format!("directories.tokendir = {}\nlog.level = ERROR\n", folder.path().display())).unwrap();
    let mut util_environment = environment.clone();
    util_environment.insert("SOFTHSM2_CONF".to_owned(), util.display().to_string());
    labels.iter().for_each(|label| init_token(&module, &util_environment, label));
    let rig = Rig {
        name: "Kryoptic",
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

fn module() -> PathBuf {
    let module = std::env::var_os(MODULE).unwrap_or_else(|| {
        panic!("{MODULE} is not set: run scripts/test, or export {MODULE}=$(scripts/rigs/kryoptic build)")
    });
    PathBuf::from(module)
}
