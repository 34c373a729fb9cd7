//! What status warns of although everything works: each a risk and what to do about it. The texts are constants, so that
//! the command line knows which of them it explains at more length itself.

pub const ONE_ROOT: &str = "the keyring hangs on one durable root: if this token is lost, every Secret is lost. \
     Only a new keyring can have a second one: `keystead init --recovery PUBKEY`";
pub const ONE_CLOUD_ROOT: &str = "the keyring hangs on one durable root: if this cloud key is lost, every Secret is lost. \
     Only a new keyring can have a second one: `keystead init --recovery PUBKEY`";
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
pub const UNSETTLED: &str = "a change of the key is not settled yet (the log says why): do not put older files back into the store, and \
     do not restart if it can wait";
