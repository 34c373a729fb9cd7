//! A PKCS#11 module that passes everything on to a real one, but for one fault. Written in C (faulty.c), built by the test.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::rig::Rig;

/// Puts the faulty module before the rig's own. `fault` is a name that faulty.c knows.
pub fn with_fault(mut rig: Rig, fault: &str) -> Rig {
    let faulty = rig.folder.path().join("libfaulty.so");
    build(&faulty);
    let real = std::mem::replace(&mut rig.module, faulty);
    rig.environment.insert("FAULTY_MODULE".into(), real.display().to_string());
    rig.environment.insert("FAULTY_LOGINS".into(), login_log(&rig).display().to_string());
    rig.environment.insert("FAULTY_TRIGGER".into(), rig.folder.path().join("trigger").display().to_string());
    rig.environment.insert("FAULTY_FAULT".into(), fault.into());
    rig
}

/// Lets a fault begin that waits for it.
pub fn trigger(rig: &Rig) {
    std::fs::write(rig.folder.path().join("trigger"), "").unwrap();
}

/// Logins that the real module was asked for.
pub fn logins(rig: &Rig) -> usize {
    std::fs::read_to_string(login_log(rig)).map_or(0, |log| log.lines().count())
}

fn login_log(rig: &Rig) -> PathBuf {
    rig.folder.path().join("logins")
}

fn build(module: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/faulty.c");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .args([module, &source])
        .status()
        .expect("cc cannot be run; install gcc");
    assert!(status.success(), "{} does not compile", source.display());
}
