//! A site whose token is reached through the fault shim, with faults that come and go.

use std::fs;
use std::path::PathBuf;

use crate::daemon::{Finished, Site};
use crate::token::Make;

/// Built as a dependency of this test, so it lies beside it.
fn shim() -> PathBuf {
    let module = std::env::current_exe().unwrap().with_file_name("libkeystead_fault_shim.so");
    assert!(module.exists(), "{} was not built", module.display());
    module
}

impl Site {
    /// With a key on a token behind the shim, asked every second whether it is well.
    pub fn behind_shim(make: Make) -> Self {
        let site = Self::bare_on(make, "");
        site.configure(&site.custody_behind_shim(), "");
        site.keystead(["init", "--no-recovery"]).expect_success();
        site
    }

    fn custody_behind_shim(&self) -> String {
        let (variable, configuration) = self.token.variable();
        format!(
            "[custody]\nmodule = \"{}\"\ntoken_label = \"keystead\"\npin_file = \"{}\"\ntimeout = \"2s\"\nprobe_interval = \
             \"1s\"\nenvironment = {{ {variable} = \"{}\", KEYSTEAD_SHIM_MODULE = \"{}\", KEYSTEAD_SHIM_SCRIPT = \"{}\" \
             }}\n",
            shim().display(),
            self.token.pin_file().display(),
            configuration.display(),
            self.token.module().display(),
            self.script().display(),
        )
    }

    fn script(&self) -> PathBuf {
        self.path().join("script")
    }

    /// What the module does wrong from the next call on; nothing: all is well again.
    pub fn inject(&self, script: &str) {
        // In one piece: the shim may look at any moment.
        let draft = self.path().join("script.new");
        fs::write(&draft, script).unwrap();
        fs::rename(draft, self.script()).unwrap();
    }
}
