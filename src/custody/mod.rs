//! Custody: the CMKs and epoch secrets, behind a process boundary.

pub mod contract;
