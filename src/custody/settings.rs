//! What custody is set up with. Plain values: the config room parses and checks them, nothing here does it again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// One PKCS#11 token, or one TPM, and how to use it.
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
    /// A TPM 2.0 in place of a PKCS#11 token: module and token above are not used then, and the auth value takes the place of
    /// the PIN.
    pub tpm: Option<TpmSettings>,
}

/// One TPM 2.0 and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TpmSettings {
    /// As the TSS spells it: `device:/dev/tpmrm0`, `swtpm:host=127.0.0.1,port=2321`, `tabrmd:bus_type=system`.
    pub tcti: String,
    pub auth: PinSource,
    /// Folder with the approvals of boots that were brought here.
    pub approvals: PathBuf,
    /// New CMKs open only after a boot that was approved. Those made before open as they were made.
    pub boot: Option<BootPolicy>,
}

/// Measured boot: which PCRs `keystead tpm predict` writes down, and who approves their values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootPolicy {
    /// PCRs of the SHA-256 bank, ascending, each at most 23.
    pub pcrs: Vec<u8>,
    /// PEM file with the P-256 public key that approvals are signed with.
    pub signer: PathBuf,
    /// Approvals of another series do not hold: raised, with a new CMK, to end the earlier ones.
    pub series: u64,
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
