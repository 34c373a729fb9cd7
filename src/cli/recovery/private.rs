//! Reading the recovery key's private half.

use std::path::Path;

use keystead_core::recovery_key::RecoveryKey;

use crate::cli::exit::{Exit, Failure};
use crate::cli::kms::files;

/// # Errors
/// A usage error that says nothing of the file's content.
pub fn read_private(path: &Path) -> Result<RecoveryKey, Failure> {
    let bytes = files::read(Some(path))?;
    let text = std::str::from_utf8(&bytes).unwrap_or_default();
    RecoveryKey::from_pem(text).map_err(|error| {
        Failure::new(Exit::Usage, format!("{}: {error}", path.display()))
            .next("decrypt it first if it has a passphrase: `openssl pkey -in FILE`")
    })
}
