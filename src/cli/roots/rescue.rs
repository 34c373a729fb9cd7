//! `keystead roots rescue`: the daemon's loaded keys, wrapped to a public key, as a file.

use std::path::PathBuf;

use clap::Args;
use keystead_core::hpke_p256::P256PublicKey;
use keystead_wire::admin::v1::RescueRequest;
use serde_json::json;

use crate::cli::exit::{Exit, Failure};
use crate::cli::key::Daemon;
use crate::cli::recovery::create_new;
use crate::cli::report::Report;
use crate::cli::table;

#[derive(Debug, Args)]
pub struct Arguments {
    /// P-256 public key (PEM) whose private half will open the file; make one with `keystead recovery keygen`
    #[arg(long, value_name = "PUBLIC.pem")]
    to: PathBuf,
    /// Where the rescue file goes; must not exist
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub async fn report(arguments: &Arguments, mut daemon: Daemon) -> Result<Report, Failure> {
    let path = arguments.to.display();
    let pem = std::fs::read_to_string(&arguments.to)
        .map_err(|error| Failure::new(Exit::Usage, format!("cannot read {path}: {error}")))?;
    let key = P256PublicKey::from_pem(&pem).map_err(|error| Failure::new(Exit::Usage, format!("{path}: {error}")))?;
    let call = daemon.admin.rescue(RescueRequest { recovery_key: pem });
    let rescued = daemon.connection.answer(call).await?;
    create_new(&arguments.out, 0o600, &rescued.file)?;
    let whole = rescued.not_loaded.is_empty();
    let rows = table::fields(&[
        ("Rescue file", arguments.out.display().to_string()),
        ("Opened by", format!("the private key of recovery root {}", key.recovery_root_id())),
        ("Generations", rescued.rescued.len().to_string()),
    ]);
    let mut text = rows;
    if !whole {
        text.push_str(&format!("NOT in it, since they were not in memory:\n{}", table::list(&rescued.not_loaded)));
    }
    text.push_str(
        "Copy it off this machine now. Next, where the new token is:\n  keystead recover --rescue FILE --private \
         PRIVATE.pem (--recovery PUBLIC.pem | --no-recovery)\n",
    );
    let json = json!({
        "file": arguments.out, "root_id": key.recovery_root_id().to_string(), "rescued": rescued.rescued,
        "not_loaded": rescued.not_loaded,
    });
    Ok(Report { text, json, exit: if whole { Exit::Done } else { Exit::Failed } })
}
