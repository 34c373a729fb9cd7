//! `keystead lease grant`: signs a grant with the private half of the key that was enrolled at `init`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use keystead_core::KeyId;
use keystead_core::grant::{Grant, GrantSigner};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::cli::exit::{Exit, Failure};
use crate::cli::recovery::keygen::create_new;
use crate::cli::report::Report;
use crate::cli::{table, time};
use crate::config::units::parse_duration;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Private key of the grants (P-256, PEM, not encrypted)
    #[arg(long, value_name = "PRIVATE.pem")]
    key: PathBuf,
    #[command(flatten)]
    site: Site,
    /// How much longer the lease becomes, as 72h or 7d
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    duration: Duration,
    /// Where the grant goes; must not exist
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Which site, and at which point of its life: a grant is good there once.
#[derive(Debug, Args)]
struct Site {
    /// What the site's `keystead status --output json` printed
    #[arg(long, value_name = "FILE", required_unless_present_all = ["key_id", "epoch"], conflicts_with_all = ["key_id", "epoch"])]
    status: Option<PathBuf>,
    /// Key ID that the site's status shows, where only a voice can be heard from it
    #[arg(long, value_name = "KEY_ID", requires = "epoch")]
    key_id: Option<KeyId>,
    /// Epoch that it shows
    #[arg(long, value_name = "NUMBER", requires = "key_id")]
    epoch: Option<u64>,
}

pub(super) fn run(arguments: &Arguments) -> Result<Report, Failure> {
    let (key_id, epoch) = match (&arguments.site.status, &arguments.site.key_id, arguments.site.epoch) {
        (Some(file), ..) => of_status(file)?,
        (None, Some(key_id), Some(epoch)) => (key_id.clone(), epoch),
        _ => return Err(Failure::new(Exit::Usage, "name the site: --status, or --key-id and --epoch")),
    };
    let pem = Zeroizing::new(read(&arguments.key)?);
    let unusable = |error| Failure::new(Exit::Usage, format!("{}: {error}", arguments.key.display()));
    let signer = GrantSigner::from_pem(&pem).map_err(unusable)?;
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(|error| Failure::new(Exit::Failed, format!("no randomness: {error}")))?;
    let keyring = key_id.keyring().parse().map_err(|error| Failure::new(Exit::Usage, format!("{key_id}: {error}")))?;
    let seconds = arguments.duration.as_secs();
    let grant = Grant { keyring, key_id, epoch, seconds, nonce };
    let bytes = grant.sign(&signer).map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    create_new(&arguments.out, 0o644, &bytes)?;
    let rows = table::fields(&[
        ("Grant", arguments.out.display().to_string()),
        ("Key ID", grant.key_id.to_string()),
        ("Epoch", epoch.to_string()),
        ("Adds", time::span(seconds)),
    ]);
    let text = format!("{rows}\nAt the site, before it starts anew offline: `keystead lease extend --grant FILE`\n");
    let json = json!({
        "file": arguments.out, "keyring": grant.keyring.as_str(), "key_id": grant.key_id.as_str(), "epoch": epoch,
        "seconds": seconds,
    });
    Ok(Report::done(text, json))
}

fn of_status(file: &Path) -> Result<(KeyId, u64), Failure> {
    let wrong = || {
        let message = format!("{} is not the output of `keystead status --output json`", file.display());
        Failure::new(Exit::Usage, message)
    };
    let status: Value = serde_json::from_str(&read(file)?).map_err(|_| wrong())?;
    let key_id = status["active_key_id"].as_str().and_then(|id| id.parse().ok()).ok_or_else(wrong)?;
    Ok((key_id, status["epoch"].as_u64().ok_or_else(wrong)?))
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::new(Exit::Usage, format!("cannot read {}: {error}", path.display())))
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use keystead_core::recovery_key::RecoveryKey;
    use std::fs;

    fn arguments(folder: &Path, site: Site) -> Arguments {
        let key = RecoveryKey::from_random(&Zeroizing::new([7; 32])).unwrap();
        fs::write(folder.join("key.pem"), key.to_pem().as_bytes()).unwrap();
        Arguments { key: folder.join("key.pem"), site, duration: Duration::from_secs(7200), out: folder.join("grant") }
    }

    #[test]
    fn grant_for_what_status_shows_is_signed_and_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let id = format!("ks1.edge.3.{}", "ab".repeat(16));
        fs::write(folder.path().join("status"), format!("{{\"active_key_id\":{id:?},\"epoch\":9}}")).unwrap();
        let site = Site { status: Some(folder.path().join("status")), key_id: None, epoch: None };
        let arguments = arguments(folder.path(), site);
        assert_eq!(run(&arguments).unwrap().json["epoch"], 9);
        let signer = GrantSigner::from_pem(&fs::read_to_string(&arguments.key).unwrap()).unwrap();
        let grant = Grant::read(&fs::read(&arguments.out).unwrap(), &signer.public()).unwrap();
        assert_eq!((grant.key_id.as_str(), grant.epoch, grant.seconds), (id.as_str(), 9, 7200));
        assert_eq!(run(&arguments).unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn file_that_is_no_status_is_said_so() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["", "{}", "{\"active_key_id\":\"\",\"epoch\":1}"] {
            fs::write(folder.path().join("status"), text).unwrap();
            let site = Site { status: Some(folder.path().join("status")), key_id: None, epoch: None };
            let failure = run(&arguments(folder.path(), site)).unwrap_err();
            assert!(failure.message.contains("keystead status"), "{failure:?}");
        }
    }
}
