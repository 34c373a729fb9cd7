//! A SoftHSM token of one's own, made by the script that quickstart uses.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder with a token, its configuration and its PINs.
pub struct Token {
    pub folder: PathBuf,
}

impl Token {
    pub fn new(folder: &Path, label: &str) -> Self {
        let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/rigs/softhsm"))
            .args(["new".as_ref(), folder.as_os_str(), label.as_ref()])
            .output()
            .expect("scripts/rigs/softhsm runs");
        assert!(output.status.success(), "no token: {}", String::from_utf8_lossy(&output.stderr));
        Self { folder: folder.to_owned() }
    }

    pub fn conf(&self) -> PathBuf {
        self.folder.join("softhsm2.conf")
    }

    pub fn pin_file(&self) -> PathBuf {
        self.folder.join("pin")
    }

    /// The `[custody]` table that reaches this token.
    pub fn custody(&self, label: &str) -> String {
        format!(
            "[custody]\ntoken_label = \"{label}\"\npin_file = \"{}\"\ntimeout = \"2s\"\nenvironment = {{ SOFTHSM2_CONF = \"{}\" }}\n",
            self.pin_file().display(),
            self.conf().display()
        )
    }
}
