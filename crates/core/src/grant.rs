//! Lease grants: an owner's signed word that a site may go on without its cloud for a while. Made offline, applied once.
//!
//! `keystead-grant 1\n`, `signature <128 hex digits>\n`, then one JSON document to the end. ECDSA on P-256 with SHA-256 over
//! `"keystead-grant" ‖ 0x01 ‖ document`. A grant names an epoch: applying it begins the next one, so no grant is applied twice,
//! and neither a restored file nor a later outage can use what was given for this one.

use std::fmt;
use std::time::Duration;

use p256::PublicKey;
use p256::ecdsa::signature::{Signer, Verifier};
use p256::ecdsa::{Signature, SigningKey, VerifyingKey};
use p256::elliptic_curve::sec1::ToSec1Point;
use p256::pkcs8::{DecodePrivateKey, DecodePublicKey};
use serde::{Deserialize, Serialize};

use crate::hex;
use crate::id::{KeyId, KeyringId};
use crate::keyring::Keyring;
use crate::lease;

const FORMAT: u32 = 1;
/// A grant of the longest names takes about 400 bytes.
pub const MAX_LEN: usize = 4096;
const MAGIC: &str = "keystead-grant ";
const LABEL: &[u8] = b"keystead-grant\x01";

/// What is granted. Believed only as what [`Grant::read`] returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    pub keyring: KeyringId,
    /// The active generation's.
    pub key_id: KeyId,
    /// The epoch in which it may be applied.
    pub epoch: u64,
    /// How much longer the lease becomes.
    pub seconds: u64,
    /// Fresh: names this grant in logs, among others that say the same.
    #[serde(with = "hex")]
    pub nonce: [u8; 16],
}

/// The public half of the key that signs grants, enrolled at `init`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GrantKey(PublicKey);

/// The private half; kept by the owner, offline. Wiped on drop, never printed.
pub struct GrantSigner(SigningKey);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    #[error("this is no lease grant: {0}")]
    Malformed(&'static str),
    #[error("the grant has format {0}, which a newer Keystead wrote; this one reads format {FORMAT}")]
    NewerFormat(u32),
    #[error("the grant is not signed by the grant key that was enrolled at init")]
    NotAuthentic,
    #[error("the grant is for keyring {0}, not for this one")]
    OtherKeyring(KeyringId),
    #[error(
        "the grant is for key {0}, which is not the active one: have one made for the key ID that `keystead status` shows"
    )]
    OtherKey(KeyId),
    #[error(
        "the grant is for epoch {grant}, this site is at epoch {site}: a grant is good once, and not across a start \
         offline. Have one made for epoch {site}"
    )]
    OtherEpoch { grant: u64, site: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a P-256 {0} key (PEM, not encrypted)")]
pub struct NotAKey(&'static str);

impl Grant {
    /// The file's bytes, signed.
    ///
    /// # Errors
    /// [`GrantError::Malformed`] if [`Self::read`] would not take it.
    pub fn sign(&self, signer: &GrantSigner) -> Result<Vec<u8>, GrantError> {
        self.check()?;
        // Strings and numbers only: nothing in it that JSON cannot hold.
        let mut document = serde_json::to_vec_pretty(self).expect("a grant is always valid JSON");
        document.push(b'\n');
        let signature: Signature = signer.0.sign(&[LABEL, &document].concat());
        let mut bytes = format!("{MAGIC}{FORMAT}\nsignature {}\n", hex::encode(&signature.to_bytes())).into_bytes();
        bytes.extend_from_slice(&document);
        Ok(bytes)
    }

    /// Reads hostile bytes: nothing is looked at before the signature holds.
    ///
    /// # Errors
    /// [`GrantError::Malformed`], [`GrantError::NewerFormat`], [`GrantError::NotAuthentic`].
    pub fn read(bytes: &[u8], key: &GrantKey) -> Result<Self, GrantError> {
        let malformed = GrantError::Malformed;
        if bytes.len() > MAX_LEN {
            return Err(malformed("it is longer than any grant can be"));
        }
        let (first, rest) = line(bytes).ok_or(malformed("it has no first line"))?;
        let format: u32 = first
            .strip_prefix(MAGIC)
            .filter(|number| !number.starts_with(['0', '+']))
            .and_then(|number| number.parse().ok())
            .ok_or(malformed("it does not begin with 'keystead-grant'"))?;
        if format != FORMAT {
            return Err(GrantError::NewerFormat(format));
        }
        let (second, document) = line(rest).ok_or(malformed("its signature is missing"))?;
        let signature = second
            .strip_prefix("signature ")
            .and_then(hex::decode)
            .and_then(|bytes| Signature::from_slice(&bytes).ok())
            .ok_or(malformed("its signature is not 128 hex digits"))?;
        VerifyingKey::from(&key.0)
            .verify(&[LABEL, document].concat(), &signature)
            .map_err(|_| GrantError::NotAuthentic)?;
        let grant: Self =
            serde_json::from_slice(document).map_err(|_| malformed("it is signed but not of this format"))?;
        grant.check()?;
        Ok(grant)
    }

    /// Whether it is for `keyring` as it stands now.
    pub fn is_for(&self, keyring: &Keyring) -> Result<(), GrantError> {
        if self.keyring != keyring.keyring {
            return Err(GrantError::OtherKeyring(self.keyring.clone()));
        }
        if keyring.active().is_none_or(|active| active.key_id != self.key_id) {
            return Err(GrantError::OtherKey(self.key_id.clone()));
        }
        if self.epoch != keyring.epoch {
            return Err(GrantError::OtherEpoch { grant: self.epoch, site: keyring.epoch });
        }
        Ok(())
    }

    pub fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    fn check(&self) -> Result<(), GrantError> {
        if self.seconds == 0 || self.seconds > lease::MAX_LENGTH.as_secs() {
            return Err(GrantError::Malformed("it must grant between one second and 366 days"));
        }
        if self.key_id.keyring() != self.keyring.as_str() {
            return Err(GrantError::Malformed("its key ID is of another keyring"));
        }
        Ok(())
    }
}

impl GrantKey {
    /// From `-----BEGIN PUBLIC KEY-----`.
    pub fn from_pem(pem: &str) -> Result<Self, NotAKey> {
        PublicKey::from_public_key_pem(pem).map(Self).map_err(|_| NotAKey("public"))
    }
}

impl GrantSigner {
    /// From `-----BEGIN PRIVATE KEY-----` (PKCS#8) or `-----BEGIN EC PRIVATE KEY-----` (SEC 1).
    pub fn from_pem(pem: &str) -> Result<Self, NotAKey> {
        p256::SecretKey::from_pkcs8_pem(pem)
            .or_else(|_| p256::SecretKey::from_sec1_pem(pem))
            .map(|key| Self(key.into()))
            .map_err(|_| NotAKey("private"))
    }

    pub fn public(&self) -> GrantKey {
        GrantKey(self.0.verifying_key().into())
    }
}

impl TryFrom<String> for GrantKey {
    type Error = NotAKey;

    fn try_from(text: String) -> Result<Self, NotAKey> {
        let bytes = hex::decode(&text).filter(|bytes| bytes.len() == 65).ok_or(NotAKey("public"))?;
        PublicKey::from_sec1_bytes(&bytes).map(Self).map_err(|_| NotAKey("public"))
    }
}

/// The uncompressed point in hex, as records hold it.
impl From<GrantKey> for String {
    fn from(key: GrantKey) -> Self {
        hex::encode(key.0.to_sec1_point(false).as_bytes())
    }
}

impl fmt::Debug for GrantKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GrantKey({})", String::from(self.clone()))
    }
}

impl fmt::Debug for GrantSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GrantSigner(redacted)")
    }
}

fn line(bytes: &[u8]) -> Option<(&str, &[u8])> {
    // Header lines are short.
    let end = bytes.iter().take(160).position(|&byte| byte == b'\n')?;
    Some((std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::GenerationNumber;
    use crate::recovery_key::RecoveryKey;
    use zeroize::Zeroizing;

    fn signer(byte: u8) -> GrantSigner {
        let key = RecoveryKey::from_random(&Zeroizing::new([byte; 32])).unwrap();
        GrantSigner::from_pem(&key.to_pem()).unwrap()
    }

    fn grant() -> Grant {
        let keyring: KeyringId = "edge-7".parse().unwrap();
        Grant {
            key_id: KeyId::mint(&keyring, GenerationNumber(3), [7; 16]),
            keyring,
            epoch: 17,
            seconds: 86_400,
            nonce: [9; 16],
        }
    }

    #[test]
    fn signed_grant_reads_back_under_its_key_only() {
        let file = grant().sign(&signer(1)).unwrap();
        assert_eq!(Grant::read(&file, &signer(1).public()), Ok(grant()));
        assert_eq!(Grant::read(&file, &signer(2).public()), Err(GrantError::NotAuthentic));
        let stored = String::from(signer(1).public());
        assert_eq!(GrantKey::try_from(stored), Ok(signer(1).public()));
    }

    #[test]
    fn grant_flipped_at_any_bit_or_cut_at_any_byte_is_refused() {
        let file = grant().sign(&signer(1)).unwrap();
        let key = signer(1).public();
        for offset in 0..file.len() {
            assert!(Grant::read(&file[..offset], &key).is_err(), "cut at {offset}");
            for bit in 0..8 {
                let mut flipped = file.clone();
                flipped[offset] ^= 1 << bit;
                assert!(Grant::read(&flipped, &key).is_err(), "bit {bit} of byte {offset}");
            }
        }
        assert!(Grant::read(&[file.as_slice(), b" "].concat(), &key).is_err());
        assert!(Grant::read(&vec![b'a'; MAX_LEN + 1], &key).is_err());
    }

    #[test]
    fn grant_of_nothing_of_too_much_or_of_another_keyring_is_not_made() {
        for bad in [
            Grant { seconds: 0, ..grant() },
            Grant { seconds: u64::MAX, ..grant() },
            Grant { keyring: "other".parse().unwrap(), ..grant() },
        ] {
            assert!(matches!(bad.sign(&signer(1)), Err(GrantError::Malformed(_))), "{bad:?}");
        }
    }

    #[test]
    fn newer_format_is_named() {
        let key = signer(1).public();
        assert_eq!(Grant::read(b"keystead-grant 2\n", &key), Err(GrantError::NewerFormat(2)));
        for bad in ["", "keystead-grant 0\n", "keystead-grant 01\n", "keystead-store 1\n", "keystead-grant +1\n"] {
            assert!(matches!(Grant::read(bad.as_bytes(), &key), Err(GrantError::Malformed(_))), "{bad}");
        }
    }
}
