//! Settings of the rooms below, as long as those rooms do not define them themselves. Same names, same fields.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// One PKCS#11 token and how to use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustodySettings {
    pub module: PathBuf,
    pub token: TokenSelector,
    pub pin: PinSource,
    pub mechanism: MechanismChoice,
    /// Worker threads, one PKCS#11 session each.
    pub sessions: usize,
    /// Requests that may wait.
    pub queue: usize,
    /// Deadline of one request.
    pub timeout: Duration,
    /// Set for the custodian process only.
    pub environment: BTreeMap<String, String>,
    /// Folder for the note that the token has rejected the PIN.
    pub latch_folder: PathBuf,
}

/// Names a token. Never by slot: slot numbers change with the order of plugging.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSelector {
    Label(String),
    Serial(String),
}

/// Where the user PIN is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinSource {
    File(PathBuf),
    /// A systemd credential: the file of that name in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
}

/// How new CMKs wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MechanismChoice {
    Auto,
    AesGcm,
    EcdhP256,
    RsaOaep,
}

/// Where a socket is and how its file looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketSettings {
    pub path: PathBuf,
    /// Permission bits, as `0o600`.
    pub mode: u32,
    /// Group of the socket; the process's own if `None`.
    pub group: Option<u32>,
}

/// Who may come in. Nobody, if both are empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerPolicy {
    pub uids: Vec<u32>,
    /// Primary or supplementary.
    pub gids: Vec<u32>,
}
