//! The custodian process: the vendor's module, the PIN and nothing else. Blocking; no runtime.

use std::io;
use std::os::unix::net::UnixStream;

use super::config_copy::ConfigCopy;
use super::hardening::{Hardening, Role, harden};
use super::{inherited, signals, spawn};

/// What a custodian is born with.
#[derive(Debug)]
pub struct CustodianParts {
    pub config: ConfigCopy,
    pub hardening: Hardening,
    /// To the server; its end is the order to end.
    pub stream: UnixStream,
}

/// Hardens the process, then takes what it was started with. Call it first in the hidden subcommand `custodian`.
///
/// # Errors
/// When started by hand, mostly: the descriptors are missing.
pub fn begin() -> io::Result<CustodianParts> {
    let hardening = harden(Role::Custodian)?;
    signals::outlive_group_signals()?;
    let config = ConfigCopy::from_memory_file(inherited::take(spawn::CONFIG_FD)?)?;
    let stream = UnixStream::from(inherited::take(spawn::CHANNEL_FD)?);
    Ok(CustodianParts { config, hardening, stream })
}
