//! What custody promises, whatever the device: the requests, the answers, and one variant per reaction to a failure.
//!
//! The server process speaks this through [`super::client`], the custodian process answers it through [`super::worker`];
//! [`super::frames`] carries it between them. Every custodian passes tests/contract.

use std::fmt;
use std::sync::Arc;

use keystead_core::{GenerationNumber, Kek, KeyringId, NodeId, RootId, RootKind, WrapContext, WrappedKek};
use zeroize::Zeroizing;

/// Names one keyring's epoch secret on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochRef {
    pub keyring: KeyringId,
    pub node: NodeId,
    pub number: u64,
}

/// What a key derived from an epoch secret is for: one label each, so that no key serves two purposes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EpochPurpose {
    /// Authenticates the store's record.
    Record,
    /// Vouches for the audit trail.
    Audit,
    /// Seals the offline copies of KEKs whose durable root is in the cloud.
    OfflineCopy,
}

/// One thing asked of custody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Which token is in use and how; opens the device if it is not open.
    Describe,
    /// Every token the module shows, without logging in to any.
    ListTokens,
    /// CMK objects of Keystead on the token, in the order of their root IDs. Empty on a device whose CMKs live in their wraps.
    ListCmks,
    /// Makes a new CMK under `context.root_id` and a KEK wrapped by it. The KEK's bytes come from the token's random
    /// source mixed with the kernel's.
    NewKek { context: WrapContext },
    /// Makes a new CMK under `context.root_id` and wraps a KEK by it that came from elsewhere: recovery moves KEKs to a
    /// token that has never seen them.
    WrapKek { context: WrapContext, kek: GivenKek },
    /// Opens a KEK that [`Request::NewKek`] or [`Request::WrapKek`] wrapped.
    Unwrap { context: WrapContext, wrap: Vec<u8> },
    /// Epoch secrets that exist for this keyring and node, ascending.
    ListEpochs { keyring: KeyringId, node: NodeId },
    /// Makes an epoch secret; one that is there already is kept. A device has room for two of a keyring and node at least;
    /// where there is no more, a third takes the place of the lowest number.
    CreateEpoch(EpochRef),
    /// A 32-byte key derived from an epoch secret for one purpose.
    DeriveEpochKey { epoch: EpochRef, purpose: EpochPurpose },
    /// Destroys an epoch secret; one that is gone already is fine.
    DestroyEpoch(EpochRef),
    /// Destroys the CMK of a rotation that was rolled back; one that is gone already is fine, and so is one that lives in
    /// its wrap.
    DestroyCmk { root_id: RootId },
    /// Known-answer canary on a fresh session: only its failure means that the device is down. `CmkMissing`, once, when
    /// the CMK used last is no longer there: reason to look whether it is still the same token.
    Probe,
    /// Closes the token and opens it again: sessions, module, login. For a token that answers but is not the right one;
    /// the module may still show what was plugged in before.
    Reopen,
}

/// A KEK on its way into custody. Shared, not copied; compared by commitment.
#[derive(Clone)]
pub struct GivenKek(pub Arc<Kek>);

impl PartialEq for GivenKek {
    fn eq(&self, other: &Self) -> bool {
        self.0.commitment() == other.0.commitment()
    }
}

impl Eq for GivenKek {}

impl fmt::Debug for GivenKek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the custodian's process says of itself, once, before it answers anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProcessReport {
    pub uid: u32,
    pub no_new_privs: bool,
    pub dumpable: bool,
    pub system_calls_filtered: bool,
}

/// What custody answers.
#[derive(Debug)]
pub enum Answer {
    Token(TokenDescription),
    Tokens(Vec<TokenSummary>),
    Cmks(Vec<CmkObject>),
    NewKek {
        wrap: WrappedKek,
        kek: Kek,
    },
    Kek(Kek),
    Wrapped(WrappedKek),
    Epochs(Vec<u64>),
    EpochKey(Zeroizing<[u8; 32]>),
    Done,
    /// Unasked, with ID 0, as the first frame of a connection.
    Process(ProcessReport),
}

/// The token in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenDescription {
    pub token: TokenSummary,
    /// Kind of the roots that it makes. CMKs of kind `Tpm` live in their wraps, not on the device.
    pub root_kind: RootKind,
    pub module: String,
    /// As negotiated and probed: `aes-gcm (IV by caller)`, `ecdh-p256`, `rsa-oaep (SHA-1)`, …
    pub mechanism: String,
    /// `sha256-hmac` or `aes-cmac`.
    pub authentication: String,
    pub sessions: u32,
    /// How often this custodian has opened the token: after each, it may be another one.
    pub openings: u64,
    /// PKCS#11 calls that reached the device since the custodian started.
    pub device_operations: u64,
    /// `None` if it has none.
    pub clock: Option<DeviceClock>,
}

/// What a device tells of the time, by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceClock {
    /// That it has had power for; boots do not reset it.
    pub seconds: u64,
    /// Grows by one, and round, with each reset; where it began is not told.
    pub resets: u32,
}

/// A CMK as it lies on the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CmkObject {
    pub root_id: RootId,
    /// Anybody with the PIN can write another.
    pub label: String,
}

impl CmkObject {
    /// `keystead <keyring> <generation>`.
    pub fn label_of(keyring: &KeyringId, generation: GenerationNumber) -> String {
        format!("{}{keyring} {generation}", Self::LABEL_PREFIX)
    }

    /// Every CMK's label begins with this; nothing else of ours does.
    pub const LABEL_PREFIX: &str = "keystead ";

    /// The generation of `keyring` that its label names.
    pub fn generation(&self, keyring: &KeyringId) -> Option<GenerationNumber> {
        let (name, number) = self.label.strip_prefix(Self::LABEL_PREFIX)?.rsplit_once(' ')?;
        (name == keyring.as_str()).then(|| number.parse().ok().map(GenerationNumber)).flatten()
    }
}

/// A token as it names itself; strings are trimmed, printable, at most 64 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSummary {
    pub slot: u64,
    pub label: String,
    pub serial: String,
    pub manufacturer: String,
    pub model: String,
    pub firmware: String,
    pub initialized: bool,
    pub pin: PinState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinState {
    Fine,
    /// The next wrong PIN locks it (`CKF_USER_PIN_FINAL_TRY`).
    FinalTry,
    CountLow,
    Locked,
    NotSet,
}

/// Why custody did not answer. A variant per reaction of the caller; `detail` is safe to log and to show.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CustodyError {
    #[error("the custodian is not running; it is restarted by itself")]
    Gone,
    #[error("custody did not answer in time; the custodian is being replaced")]
    TimedOut,
    #[error("custody has too many requests waiting")]
    Busy,
    #[error("the TPM at {tcti} cannot be reached: {detail}. Check custody.tcti; `keystead tpm info` looks, too")]
    TpmUnreachable { tcti: String, detail: String },
    #[error("the PKCS#11 module is unusable: {detail}. Check custody.module and custody.environment")]
    ModuleUnusable { detail: String },
    #[error("no token {wanted} is present. Run `keystead token list` to see which are")]
    TokenMissing { wanted: String },
    #[error("more than one token has the label {label}: set custody.token_serial instead of custody.token_label")]
    TokenAmbiguous { label: String },
    #[error("token {serial} rejected the user PIN{}; it is not tried again. Write the right one, or, if the token's PIN was set to this one \
         since, remove pin-rejected in custody.state_path",
            if *final_try { " (ONE try is left)" } else { "" })]
    PinRejected { serial: String, final_try: bool },
    #[error("the user PIN of token {serial} is locked. Unlock it with the security officer's PIN")]
    PinLocked { serial: String },
    #[error(
        "token {serial} has one PIN try left, which Keystead does not use up. Log in once by hand to reset the count"
    )]
    PinFinalTry { serial: String },
    /// The TPM opens the key after an approved boot only, and this is none.
    #[error("the TPM does not open the key: {detail}. `keystead tpm preview` says what changed")]
    BootNotApproved { detail: String },
    /// As a rejected PIN, but no count is used up by it.
    #[error(
        "the TPM rejected the auth value in {file}; it is not tried again. Put the right auth file there, or take a new one from `keystead \
         tpm provision` if the TPM was cleared"
    )]
    AuthRejected { file: String },
    #[error("the PIN or auth value cannot be read: {detail}")]
    PinUnreadable { detail: String },
    #[error("the token lacks what custody needs: {detail}")]
    Unsupported { detail: String },
    /// The token answers but has no such CMK. An alarm, never a reason to forget the generation.
    #[error("the token has no CMK {root_id}")]
    CmkMissing { root_id: String },
    #[error("the token has no epoch secret {number} for this keyring and node")]
    EpochMissing { number: u64 },
    /// Found by the server, as are the next two: it knows which token it was, and what must be on it.
    #[error(
        "token {serial} answers, but has none of this keyring's keys: it is {}. Put the right token back",
        match expected { Some(expected) => format!("not token {expected}, which was here before"),
            None => "another token, or was initialised anew".to_owned() }
    )]
    TokenReplaced { serial: String, expected: Option<String> },
    #[error(
        "token {serial} was initialised anew: this keyring's keys on it are gone. Restore the token from its backup"
    )]
    TokenReinitialized { serial: String },
    #[error(
        "token {serial} is older than the store: it is at epoch {token}, the record at {record}. It was restored from a \
         backup, or is an older copy. Put the right token back"
    )]
    TokenOlder { serial: String, record: u64, token: u64 },
    /// The wrap is damaged or of another context; the canary says that the device is well.
    #[error("the token refused the wrapped key: it is damaged or belongs elsewhere")]
    WrapRejected,
    #[error("the token failed: {detail}")]
    Device { detail: String },
}

impl CustodyError {
    /// Whether time alone may heal it. The rest needs a person: a token, a PIN, a setting.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Gone | Self::TimedOut | Self::Busy | Self::Device { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_names_a_generation_of_its_own_keyring_only() {
        let keyring: KeyringId = "edge-7".parse().unwrap();
        let of =
            |label: &str| CmkObject { root_id: RootId::new(&[1]).unwrap(), label: label.into() }.generation(&keyring);
        assert_eq!(of(&CmkObject::label_of(&keyring, GenerationNumber(12))), Some(GenerationNumber(12)));
        for label in [
            "",
            "keystead edge-7",
            "keystead edge-7 ",
            "keystead edge 7",
            "keystead edge-71 2",
            "edge-7 2",
            "keystead edge-7 -1",
        ] {
            assert_eq!(of(label), None, "{label}");
        }
    }
}
