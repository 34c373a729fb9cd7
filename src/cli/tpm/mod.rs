//! `keystead tpm`: what an admin does to a TPM, and asks of it, besides the daemon.
//!
//! These commands talk to the TPM from their own process: they hold no KEK, and the daemon need not run.

#[cfg(feature = "tpm")]
mod boot;
#[cfg(feature = "tpm")]
mod info;
#[cfg(feature = "tpm")]
mod provision;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::exit::{Exit, Failure};
use super::report::{Format, Report};
use super::settings;
use crate::config::Settings;
use crate::custody::settings::TpmSettings;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Maker, firmware, algorithms, lockout, and how long an unwrap takes
    Info,
    /// Once on each machine: storage root key, NV indices, auth file
    Provision(ProvisionArguments),
    /// Draft an approval of this boot, or of the one after an update
    #[cfg(feature = "tpm")]
    Predict(boot::PredictArguments),
    /// Sign a draft, off the box; needs neither TPM nor configuration
    #[cfg(feature = "tpm")]
    Approve(boot::ApproveArguments),
    /// Which approvals fit this boot, and which component changed what
    #[cfg(feature = "tpm")]
    Preview(boot::PreviewArguments),
}

#[derive(Debug, Args)]
pub struct ProvisionArguments {
    /// File with the auth value of the TPM's owner, if one is set [default: none is]
    #[arg(long, value_name = "FILE")]
    owner_auth_file: Option<PathBuf>,
    /// Where the auth file goes [default: custody.auth_file]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub fn run(command: &Command, config: Option<&Path>, format: Format) -> Result<Report, Failure> {
    #[cfg(feature = "tpm")]
    if let Command::Approve(arguments) = command {
        return boot::approve(arguments);
    }
    let (_, settings) = settings(config)?;
    let tpm = configured(&settings)?;
    #[cfg(feature = "tpm")]
    {
        quiet_tss()?;
        match command {
            Command::Info => info::run(&tpm, format),
            Command::Provision(arguments) => provision::run(arguments, &tpm, &settings),
            Command::Predict(arguments) => boot::predict(arguments, &tpm, &settings),
            Command::Preview(arguments) => boot::preview(arguments, &tpm, &settings),
            Command::Approve(arguments) => boot::approve(arguments),
        }
    }
    #[cfg(not(feature = "tpm"))]
    {
        let (_, _, _) = (command, tpm, format);
        Err(Failure::new(Exit::Usage, "this keystead was built without TPM support")
            .next("take a build with the feature `tpm`"))
    }
}

fn configured(settings: &Settings) -> Result<TpmSettings, Failure> {
    settings.custody.tpm.clone().ok_or_else(|| {
        Failure::new(Exit::Usage, "custody.kind is \"pkcs11\": there is no TPM in this configuration")
            .next("set custody.kind = \"tpm\", or name another file with --config")
    })
}

/// The TSS prints its own lines to stderr unless its environment says otherwise, and that is read when it is first used:
/// so this process begins once more with it set.
#[cfg(feature = "tpm")]
fn quiet_tss() -> Result<(), Failure> {
    use std::os::unix::process::CommandExt;
    const LOG: &str = "TSS2_LOG";
    if std::env::var_os(LOG).is_some() {
        return Ok(());
    }
    let error =
        std::process::Command::new("/proc/self/exe").args(std::env::args_os().skip(1)).env(LOG, "all+NONE").exec();
    Err(Failure::from_error(Exit::Failed, &error))
}
