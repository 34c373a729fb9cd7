//! Key bytes: boxed, wiped on drop, never printed, never cloned, never serialised.

use std::fmt;

use hkdf::Hkdf;
use secrecy::{ExposeSecret, SecretBox};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::hex;

/// Label under which the envelope key is expanded from a KEK.
const ENVELOPE_LABEL: &[u8] = b"keystead-kek-envelope\x01";
/// Label under which the commitment is expanded from a KEK.
const COMMITMENT_LABEL: &[u8] = b"keystead-kek-commitment\x01";

/// Key encryption key: 32 uniformly random bytes, one per generation. Used only through HKDF-Expand.
pub struct Kek(SecretBox<[u8; 32]>);

/// Public fingerprint of a KEK: opening a wrap to a KEK with another commitment is an error, since AES-GCM alone lets one
/// ciphertext open under two keys.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyCommitment(#[serde(with = "hex")] [u8; 32]);

impl Kek {
    pub const LEN: usize = 32;

    /// Takes over `bytes`, which must come from a random source fit for keys, and wipes the caller's copy.
    pub fn take(bytes: &mut [u8; 32]) -> Self {
        let kek = Self(SecretBox::init_with_mut(|boxed: &mut [u8; 32]| boxed.copy_from_slice(bytes)));
        zeroize::Zeroize::zeroize(bytes);
        kek
    }

    /// For wrapping, and for locking the page it lies on.
    pub fn expose(&self) -> &[u8; 32] {
        self.0.expose_secret()
    }

    pub fn commitment(&self) -> KeyCommitment {
        KeyCommitment(*self.expand(COMMITMENT_LABEL))
    }

    pub(crate) fn envelope_key(&self) -> Zeroizing<[u8; 32]> {
        self.expand(ENVELOPE_LABEL)
    }

    /// HKDF-Expand (RFC 5869 §2.3): the KEK is uniformly random, so no extract step is needed.
    fn expand(&self, label: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut out = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::from_prk(self.expose())
            .and_then(|hkdf| hkdf.expand(label, out.as_mut()).map_err(|_| hkdf::InvalidPrkLength))
            // A 32-byte key and a 32-byte output are always within HKDF-SHA256's bounds.
            .expect("32 bytes are valid lengths for HKDF-SHA256");
        out
    }
}

impl fmt::Debug for Kek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kek(redacted)")
    }
}

impl KeyCommitment {
    pub const LEN: usize = 32;

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl PartialEq for KeyCommitment {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for KeyCommitment {}

impl fmt::Debug for KeyCommitment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyCommitment({})", hex::encode(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_holds_no_key_byte() {
        let kek = Kek::take(&mut [0x5a; 32]);
        assert_eq!(format!("{kek:?}"), "Kek(redacted)");
    }

    #[test]
    fn taking_key_bytes_wipes_the_callers_copy() {
        let mut bytes = [7; 32];
        let kek = Kek::take(&mut bytes);
        assert_eq!(bytes, [0; 32]);
        assert_eq!(kek.expose(), &[7; 32]);
    }

    #[test]
    fn commitment_differs_from_the_envelope_key_and_between_keys() {
        let (one, two) = (Kek::take(&mut [1; 32]), Kek::take(&mut [2; 32]));
        assert_ne!(one.commitment(), two.commitment());
        assert_ne!(one.commitment().as_bytes(), &*one.envelope_key());
    }
}
