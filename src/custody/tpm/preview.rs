//! The PCRs of now, for drafting an approval and for telling what changed.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::auth::AuthFile;
use super::connection::Connection;
use super::failure::Failure;
use super::pcr::{PcrSet, PcrValues};
use super::random;
use super::tcti::Tcti;
use crate::custody::contract::CustodyError;

/// Reads `pcrs` of the TPM at `tcti`; needs no auth file. Blocks.
///
/// # Errors
/// As any use of the TPM; `Unsupported` where it has no SHA-256 bank.
pub fn read_pcrs(tcti: &str, pcrs: &PcrSet) -> Result<PcrValues, CustodyError> {
    let read = || {
        let tcti = Tcti::parse(tcti).map_err(Failure::Final)?;
        let value = random::kernel()?;
        let mut connection = Connection::open(&tcti, AuthFile::for_trial(&value), Arc::new(AtomicU64::new(0)))?;
        pcrs.read(&mut connection)
    };
    read().map_err(Failure::into_error)
}
