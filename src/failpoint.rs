//! Named points at which a test build can be killed. In a release build they are nothing.
//!
//! `KEYSTEAD_KILL_AT=<name>` ends the process there with SIGKILL, `KEYSTEAD_HOLD_AT=<name>:<file>` waits there until that file
//! exists; the `FAILPOINTS` variable of the `fail` crate offers the rest (`store.before-write=return`, …). tests/e2e enumerates
//! [`NAMES`].

/// Every failpoint of the local profile, in the order a rotation meets them.
pub const NAMES: &[&str] = &[
    "store.before-write",
    "store.half-written",
    "store.before-sync",
    "store.before-rename",
    "store.before-folder-sync",
    "rotation.intent-written",
    "rotation.cmk-created",
    "rotation.prepared",
    "rotation.verified",
    "epoch.created",
    "epoch.record-written",
    "epoch.old-destroyed",
    "rotation.before-publish",
];

/// Those of the cloud profile, in the order of a life: a start offline, a renewal, a revocation, and the way back.
pub const CLOUD: &[&str] = &[
    "offline-start.stored",
    "renewal.answered",
    "renewal.before-store",
    "renewal.stored",
    "revocation.refused",
    "revocation.marked",
    "revocation.shredded",
    "return.before-store",
    "return.stored",
];

/// Those of disabling and enabling the key, in their order; the store's and the epoch's lie between them.
pub const SWITCH: &[&str] =
    &["disable.refused", "disable.marked", "disable.stored", "enable.stored", "enable.before-publish"];
/// Those of a deletion: scheduled, cancelled, and carried out.
pub const DELETION: &[&str] = &[
    "deletion.scheduled",
    "deletion.cancelled",
    "deletion.suspended",
    "deletion.due",
    "deletion.intent-recorded",
    "deletion.wiped",
    "deletion.tombstone-written",
    "deletion.cmk-destroyed",
    "deletion.finished",
];

/// Of the audit trail: each sync, for a test that hangs one.
pub const AUDIT: &str = "audit.before-sync";

/// Those of taking over an old store.
pub const RESTORE: &[&str] = &["restore.epoch-created", "restore.before-write", "restore.written"];

/// Arms what the environment asks for. Call once, before threads start.
#[cfg(feature = "failpoints")]
pub fn arm() {
    // Kept for the life of the process: a scenario that is dropped disarms its points.
    std::mem::forget(fail::FailScenario::setup());
    if let Ok(name) = std::env::var("KEYSTEAD_KILL_AT") {
        let kill = || {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        };
        let _ = fail::cfg_callback(name, kill);
    }
    if let Ok(hold) = std::env::var("KEYSTEAD_HOLD_AT")
        && let Some((name, file)) = hold.split_once(':')
    {
        let file = std::path::PathBuf::from(file);
        let _ = fail::cfg_callback(name, move || hold_until_exists(&file));
    }
}

/// The rest of the process goes on: a thread of the runtime that slept would take the readiness of every socket with it.
#[cfg(feature = "failpoints")]
fn hold_until_exists(file: &std::path::Path) {
    use std::time::{Duration, Instant};

    tokio::task::block_in_place(|| {
        let reached = Instant::now();
        // A test that failed meanwhile does not leave the process behind.
        while !file.exists() && reached.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(2));
        }
    });
}

#[cfg(not(feature = "failpoints"))]
pub fn arm() {}
