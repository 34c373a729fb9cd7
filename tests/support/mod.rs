//! What integration tests share: tokens made for one test, a module with faults, and custodians in processes of their own.
//!
//! PKCS#11 modules find their tokens through the environment of the process, so a module is only ever loaded into a child.
#![allow(dead_code, reason = "each test binary uses its part")]

#[cfg(feature = "tpm")]
pub mod chip;
pub mod custodian;
pub mod faulty;
pub mod inspect;
pub mod kryoptic;
pub mod rig;
pub mod softhsm;
#[cfg(feature = "tpm")]
pub mod swtpm;
