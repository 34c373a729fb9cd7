//! What status warns of although everything works: each a risk and what to do about it. The texts are constants, so that
//! the command line knows which of them it explains at more length itself; so with the functions, which make one text of one
//! state.

use std::time::Duration;

pub const ONE_ROOT: &str = "the keyring hangs on one durable root: if this token is lost, every Secret is lost. \
     `keystead roots add recovery PUBLIC.pem` gives it a second one";
pub const ONE_CLOUD_ROOT: &str = "the keyring hangs on one durable root: if this cloud key is lost, every Secret is lost. \
     `keystead roots add recovery PUBLIC.pem` gives it a second one";
pub const SOFTHSM: &str = "SoftHSM keeps its keys in files: whoever copies them with the PIN has the keys, and restoring them \
     undoes rollback protection. Use a hardware token in production";
pub const KEYS_NOT_LOCKED: &str = "key pages are not locked into memory: raise LimitMEMLOCK (ulimit -l)";
pub const PIN_READABLE: &str =
    "the server process can read the PIN file: enable sandbox.landlock, or set [process] users";
pub const ROTATION_CUT_OFF: &str = "a rotation was cut off; it is settled at the next start or rotation";
pub const DISABLED_UNRECORDED: &str = "the record does not say yet that the key is disabled (the log says why): do not put older files back into the \
     store, and do not take the marker `disabled` out of it";
pub const UNRECORDED: &str = "the audit trail could not be opened when the daemon started: nothing is recorded. The log says why; mend its \
     folder, then restart the daemon";
/// What such a warning begins with.
pub const UNWRITTEN: &str = "the audit trail cannot be written";
pub const UNSETTLED: &str = "a change of the key is not settled yet (the log says why): do not put older files back into the store, and \
     do not restart if it can wait";

/// A generation that waits for its deletion. `state` and `detail` as the admin API has them.
pub fn deletion(generation: u64, state: &str, detail: &str, left: Duration, backups: &[String]) -> String {
    match (state, detail) {
        ("suspended", detail) => format!("the deletion of generation {generation} is SUSPENDED: {detail}"),
        ("held", "") => {
            format!("generation {generation} is being destroyed; if it stays so, the log says why")
        }
        ("held", detail) => format!("the waiting period of generation {generation} is over: {detail}"),
        (_, detail) => {
            let mut also = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
            if !backups.is_empty() {
                also.push_str(&format!("; these backups need it: {}", backups.join(", ")));
            }
            format!(
                "generation {generation} is destroyed in {} of service{also}. If that is not meant: `keystead key \
                 cancel-deletion --generation {generation}`",
                span(left)
            )
        }
    }
}

/// A destroyed generation whose object is still on the token.
pub fn leftover(generation: u64) -> String {
    format!(
        "generation {generation} is destroyed, but its CMK is still on the token: it is tried again by itself, and the log \
         says why it failed"
    )
}

/// `6d 23h`, `4m 3s`.
fn span(left: Duration) -> String {
    let seconds = left.as_secs();
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m {}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletions_say_when_why_and_how_to_stop_them() {
        let left = Duration::from_secs(7 * 86_400 - 60);
        for (state, detail, expected) in [
            (
                "waiting",
                "",
                "generation 1 is destroyed in 6d 23h of service. If that is not meant: `keystead key cancel",
            ),
            ("waiting", "no scan", "of service (no scan). If"),
            ("held", "no scan", "the waiting period of generation 1 is over: no scan"),
            ("suspended", "decrypted", "SUSPENDED: decrypted"),
        ] {
            let told = deletion(1, state, detail, left, &[]);
            assert!(told.contains(expected), "{told}");
        }
        let told = deletion(1, "waiting", "", left, &["friday".into(), "saturday".into()]);
        assert!(told.contains("these backups need it: friday, saturday. If"), "{told}");
    }
}
