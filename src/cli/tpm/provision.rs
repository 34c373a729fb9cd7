//! `keystead tpm provision`.

use std::os::unix::fs::chown;
use std::path::Path;

use serde_json::json;
use zeroize::Zeroizing;

use super::ProvisionArguments;
use crate::cli::exit::{Exit, Failure};
use crate::cli::report::Report;
use crate::cli::table;
use crate::config::Settings;
use crate::custody::settings::{PinSource, TpmSettings};
use crate::custody::tpm;
use crate::process::users::User;

pub fn run(arguments: &ProvisionArguments, tpm: &TpmSettings, settings: &Settings) -> Result<Report, Failure> {
    let path = match (&arguments.out, &tpm.auth) {
        (Some(path), _) | (None, PinSource::File(path)) => path.clone(),
        (None, PinSource::Credential(name)) => {
            let next = format!("give --out FILE, then make it the credential {name}, as with systemd-creds encrypt");
            return Err(Failure::new(Exit::Usage, "custody.auth_credential names no file to write").next(next));
        }
    };
    let owner = arguments.owner_auth_file.as_deref().map(read_owner_auth).transpose()?;
    let owner = owner.as_ref().map(|bytes| bytes.as_slice());
    let made = tpm::provision(tpm, &path, owner, &settings.keyring, &settings.node)
        .map_err(|error| Failure::from_error(Exit::Failed, &error))?;
    if let (Some(users), true, None) = (&settings.users, made.made_auth_file, &arguments.out) {
        // As any file that root makes for the daemon: of the one user who reads it.
        let User { uid, gid, .. } = users.custodian;
        chown(&path, Some(uid), Some(gid)).map_err(|error| {
            Failure::new(Exit::Failed, format!("{} cannot be given to user {uid}: {error}", path.display()))
                .next(format!("`chown {uid}:{gid} {}` as root", path.display()))
        })?;
    }
    let shown = path.display().to_string();
    let was = |made| if made { "made now" } else { "was there" };
    let rows = table::fields(&[
        ("TPM", format!("{} (serial {})", made.manufacturer, made.serial)),
        ("SRK", format!("{}, {}", was(made.made_srk), made.srk_name)),
        ("Auth file", format!("{shown}, {}", was(made.made_auth_file))),
        ("NV indices", format!("for keyring {} on node {}", settings.keyring, settings.node)),
    ]);
    let text = format!(
        "The TPM is ready.\n{rows}Keep a copy of the auth file where your backups are: without it no wrap opens again.\n\
         Next: `keystead init`\n"
    );
    let json = json!({
        "made_auth_file": made.made_auth_file,
        "made_srk": made.made_srk,
        "auth_file": shown,
        "srk_name": made.srk_name,
        "serial": made.serial,
    });
    Ok(Report::done(text, json))
}

/// The bytes of the file but for one line end.
fn read_owner_auth(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut bytes = Zeroizing::new(
        std::fs::read(path)
            .map_err(|error| Failure::new(Exit::Usage, format!("cannot read {}: {error}", path.display())))?,
    );
    if bytes.ends_with(b"\n") {
        bytes.pop();
    }
    Ok(bytes)
}
