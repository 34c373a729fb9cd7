//! The hidden commands by which `serve` starts its own binary again. Everything they need comes through inherited
//! descriptors: no config file is looked for here.

use super::exit::Failure;
use super::report::Report;
use super::wiring;

pub fn server() -> Result<Report, Failure> {
    wiring::server().map(|()| Report::silent())
}

pub fn custodian() -> Result<Report, Failure> {
    wiring::custodian().map(|()| Report::silent())
}
