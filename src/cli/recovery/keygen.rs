//! `keystead recovery keygen`.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use keystead_core::recovery_key::RecoveryKey;
use serde_json::json;
use zeroize::Zeroizing;

use crate::cli::exit::{Exit, Failure};
use crate::cli::report::Report;
use crate::cli::table;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Where the private key goes (PKCS#8 PEM, not encrypted, mode 0600); must not exist
    #[arg(long, value_name = "PRIVATE.pem")]
    out: PathBuf,
    /// Where the public key goes, for `init --recovery`; must not exist [default: only printed]
    #[arg(long, value_name = "PUBLIC.pem")]
    public_out: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Result<Report, Failure> {
    let key = draw()?;
    create_new(&arguments.out, 0o600, key.to_pem().as_bytes())?;
    let public = key.public_pem();
    if let Some(path) = &arguments.public_out {
        create_new(path, 0o644, public.as_bytes())?;
    }
    let root = key.public().recovery_root_id();
    let rows = table::fields(&[("Private key", arguments.out.display().to_string()), ("Root ID", root.to_string())]);
    let text = format!(
        "{rows}\n{public}\nKeep the private key offline, twice, apart from the machines it is to recover. Next, with the\n\
         public key: `keystead init --recovery PUBLIC.pem`\n"
    );
    let json = json!({ "private_key": arguments.out, "public_key": public, "root_id": root.to_string() });
    Ok(Report::done(text, json))
}

fn draw() -> Result<RecoveryKey, Failure> {
    loop {
        let mut random = Zeroizing::new([0; 32]);
        getrandom::fill(random.as_mut_slice())
            .map_err(|error| Failure::new(Exit::Failed, format!("no randomness: {error}")))?;
        if let Some(key) = RecoveryKey::from_random(&random) {
            return Ok(key);
        }
    }
}

/// Never over a file that is there: it may be the only copy of another key. On disk when it returns.
pub fn create_new(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), Failure> {
    let written = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            Failure::new(Exit::Usage, format!("{} exists and is not overwritten", path.display()))
                .next("give another name, or move that file away if it is not needed")
        }
        _ => Failure::new(Exit::Failed, format!("cannot write {}: {error}", path.display())),
    })
}
