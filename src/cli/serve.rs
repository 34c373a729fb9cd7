//! `keystead serve`: the daemon, in the foreground, until SIGTERM or SIGINT.

use std::path::Path;

use super::exit::Failure;
use super::report::Report;
use super::{settings, wiring};

pub fn run(config: Option<&Path>) -> Result<Report, Failure> {
    let (source, settings) = settings(config)?;
    wiring::serve(&settings, &source)?;
    Ok(Report::silent())
}
