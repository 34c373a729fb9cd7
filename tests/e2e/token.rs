//! A token of one's own, made by the scripts that quickstart and the contract suite use.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Whose token: two implementations that have nothing in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    SoftHsm,
    Kryoptic,
}

/// A folder with a token, its configuration and its PINs.
pub struct Token {
    pub folder: PathBuf,
    make: Make,
}

impl Token {
    pub fn new(folder: &Path, label: &str) -> Self {
        Self::made_by(Make::SoftHsm, folder, label)
    }

    pub fn made_by(make: Make, folder: &Path, label: &str) -> Self {
        let script = match make {
            Make::SoftHsm => concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/rigs/softhsm"),
            Make::Kryoptic => concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/rigs/kryoptic"),
        };
        let output = Command::new(script)
            .args(["new".as_ref(), folder.as_os_str(), label.as_ref()])
            .output()
            .unwrap_or_else(|error| panic!("{script}: {error}"));
        assert!(output.status.success(), "no token: {}", String::from_utf8_lossy(&output.stderr));
        Self { folder: folder.to_owned(), make }
    }

    pub fn make(&self) -> Make {
        self.make
    }

    pub fn module(&self) -> PathBuf {
        match self.make {
            Make::SoftHsm => {
                let places = ["softhsm", "x86_64-linux-gnu/softhsm", "aarch64-linux-gnu/softhsm"];
                let mut modules = places.iter().map(|place| PathBuf::from(format!("/usr/lib/{place}/libsofthsm2.so")));
                modules.find(|module| module.exists()).expect("SoftHSM is installed")
            }
            Make::Kryoptic => std::env::var_os("KEYSTEAD_TEST_KRYOPTIC")
                .expect("KEYSTEAD_TEST_KRYOPTIC is not set: run scripts/test")
                .into(),
        }
    }

    /// The variable by which the module finds the token.
    pub fn variable(&self) -> (&'static str, PathBuf) {
        match self.make {
            Make::SoftHsm => ("SOFTHSM2_CONF", self.folder.join("softhsm2.conf")),
            Make::Kryoptic => ("KRYOPTIC_CONF", self.folder.join("token.conf")),
        }
    }

    /// Everything that the token is: a folder or a file.
    pub fn storage(&self) -> PathBuf {
        self.folder.join(match self.make {
            Make::SoftHsm => "tokens",
            Make::Kryoptic => "token.sql",
        })
    }

    /// A tool of the security officer's, told where the token is.
    pub fn tool(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let (name, configuration) = self.variable();
        // softhsm2-util reads SoftHSM's own configuration, too, whatever the module.
        command.env("SOFTHSM2_CONF", self.folder.join("softhsm2-util.conf")).env(name, configuration);
        command.arg("--module").arg(self.module());
        command
    }

    pub fn pin_file(&self) -> PathBuf {
        self.folder.join("pin")
    }

    /// The `[custody]` table that reaches this token.
    pub fn custody(&self, label: &str) -> String {
        let (name, configuration) = self.variable();
        format!(
            "[custody]\ntoken_label = \"{label}\"\npin_file = \"{}\"\nenvironment = {{ {name} = \"{}\" }}\n",
            self.pin_file().display(),
            configuration.display()
        )
    }
}
