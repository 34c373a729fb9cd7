//! Software TPMs, each a process of its own on free ports, stopped with the test that started it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A chip in a folder.
pub struct Swtpm {
    folder: PathBuf,
    pub tcti: String,
}

impl Swtpm {
    pub fn start(folder: &Path) -> Self {
        let output = script("start", folder);
        assert!(output.status.success(), "no TPM: {}", String::from_utf8_lossy(&output.stderr));
        Self { folder: folder.to_owned(), tcti: String::from_utf8(output.stdout).unwrap().trim().to_owned() }
    }

    /// Pulls it out; its state stays.
    pub fn stop(&self) {
        assert!(script("stop", &self.folder).status.success());
    }

    /// Puts it back, under the same TCTI: nobody else takes the port within a test.
    pub fn start_again(&self) {
        assert_eq!(Self::start(&self.folder).tcti(), self.tcti);
    }

    fn tcti(self) -> String {
        let tcti = self.tcti.clone();
        std::mem::forget(self);
        tcti
    }

    /// A command of tpm2-tools on this TPM.
    pub fn tool(&self, arguments: &[&str]) -> Output {
        Command::new("tpm2")
            .args(arguments)
            .args(["-T", &self.tcti])
            .current_dir(&self.folder)
            .env("TSS2_LOG", "all+NONE")
            .output()
            .expect("tpm2 cannot be run; install the package tpm2-tools (scripts/test does)")
    }

    #[track_caller]
    pub fn tool_does(&self, arguments: &[&str]) -> String {
        let output = self.tool(arguments);
        assert!(output.status.success(), "tpm2 {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        script("stop", &self.folder);
    }
}

fn script(verb: &str, folder: &Path) -> Output {
    Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/rigs/swtpm"))
        .arg(verb)
        .arg(folder)
        .output()
        .expect("scripts/rigs/swtpm runs")
}
