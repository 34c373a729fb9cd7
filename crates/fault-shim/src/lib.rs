//! A PKCS#11 module that forwards every call to the one named by `KEYSTEAD_SHIM_MODULE` and fails the way the script
//! named by `KEYSTEAD_SHIM_SCRIPT` says. The script is read again whenever it changes. docs/fault-shim.md is for its users.
//!
//! Never part of Keystead: a crate of its own, for it is all `unsafe` (docs/adr/0009-fault-shim.md).

mod codes;
mod entry;
mod forward;
mod script;
mod shim;

pub use entry::C_GetFunctionList;
