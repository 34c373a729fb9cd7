//! The real daemon on a real SoftHSM token, as its users meet it. Each test has its own folder, token and sockets.

mod audit;
mod authority;
mod boot;
#[cfg(feature = "tpm")]
#[path = "../support/chip.rs"]
#[allow(dead_code, reason = "the contract suite uses all of it")]
mod chip;
mod clients;
mod clock;
mod cloud;
mod cluster;
mod configs;
mod crash;
mod custodian;
mod daemon;
mod deletion;
mod disable;
mod disk;
mod doctor;
mod etcd;
mod grpcio;
mod guard;
mod health;
mod hotswap;
mod input;
mod kms;
mod live;
mod load;
mod logs;
mod memory;
mod misconfigured;
mod proxy;
mod quickstart;
mod recover;
mod recovery;
mod reload;
mod restore;
mod roles;
mod roots;
mod rotation;
mod scan;
mod schedule;
mod shell;
mod shim;
mod sockets;
mod stale;
#[cfg(feature = "tpm")]
#[path = "../support/tcg_log.rs"]
mod tcg_log;
mod token;
#[cfg(feature = "tpm")]
mod tpm;
#[cfg(feature = "tpm")]
mod tpm_boot;
#[cfg(feature = "tpm")]
mod tpm_faults;
#[cfg(feature = "tpm")]
#[path = "../../crates/bench/src/tpm_proxy.rs"]
#[allow(dead_code, reason = "the contract suite uses the rest")]
mod tpm_proxy;
#[cfg(feature = "tpm")]
mod tpm_tabrmd;
mod users;
mod watch;
