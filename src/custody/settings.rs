//! What custody is set up with. Plain values: the config room parses and checks them, nothing here does it again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// One PKCS#11 token and how to use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustodySettings {
    /// The vendor's PKCS#11 module. It is loaded into the custodian process only.
    pub module: PathBuf,
    pub token: TokenSelector,
    pub pin: PinSource,
    pub mechanism: MechanismChoice,
    /// Worker threads, one PKCS#11 session each, besides the one that holds the login. At least 1.
    pub sessions: usize,
    /// Requests that may wait for a session; more are answered with `Busy`. At least 1.
    pub queue: usize,
    /// Deadline of one request, kept by the client.
    pub timeout: Duration,
    /// Environment of the module. Set by whoever spawns the custodian process, before any thread of it runs.
    pub environment: BTreeMap<String, String>,
    /// Folder for the note that the token has rejected the PIN. Must be writable: without the note, each restart would
    /// use up one more try.
    pub latch_folder: PathBuf,
}

/// Names a token. Never by slot: slot numbers change with the order of plugging.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSelector {
    Label(String),
    Serial(String),
}

/// Where the user PIN is read from, at each login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinSource {
    File(PathBuf),
    /// A systemd credential: the file of that name in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
}

/// How new CMKs wrap. Existing wraps are opened by their own construction, whatever this says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MechanismChoice {
    /// The first that the token passes: AES-GCM, ECDH on P-256, RSA-OAEP.
    Auto,
    AesGcm,
    EcdhP256,
    RsaOaep,
}
