//! The hidden commands by which `serve` starts its own binary again. Everything they need comes through inherited
//! descriptors: no config file is looked for here.

use std::process::ExitCode;

use super::exit::Exit;
use crate::process::server::CANNOT_START;
use crate::process::start::{self, StartError};
use crate::service::explain::explain;

pub fn server() -> ExitCode {
    ended(start::server())
}

pub fn custodian() -> ExitCode {
    ended(start::custodian())
}

/// Their stderr is the daemon's log: an end is logged there and not printed.
fn ended(outcome: Result<(), StartError>) -> ExitCode {
    let Err(error) = outcome else { return Exit::Done.into() };
    tracing::error!(error = explain(&error), "ended");
    if error.needs_a_person() { ExitCode::from(CANNOT_START) } else { Exit::Failed.into() }
}
