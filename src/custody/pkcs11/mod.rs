//! Custody on a PKCS#11 token, through `cryptoki`. Runs in the custodian process only; blocking throughout.
//!
//! A [`Device`] holds one [`module`] and, once somebody asks, one logged-in [`token`]; that serves [`requests`] on its
//! seats' sessions. CMKs ([`cmk`]) come in three constructions, one file each; [`negotiate`] finds which of them the
//! token does properly, and [`canary`] tells a damaged wrap from a damaged device.

mod aes_gcm;
mod canary;
mod cmk;
mod device;
mod ecdh;
mod epoch;
mod failure;
mod module;
mod negotiate;
mod pin;
mod random;
mod requests;
mod rsa_oaep;
mod session;
mod token;

pub use device::Device;
