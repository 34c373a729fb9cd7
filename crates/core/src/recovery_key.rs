//! The private half of a recovery root: made once, kept offline, read back on the day everything else is lost.
//!
//! Used by the command line only; a daemon knows no more than the public half ([`P256PublicKey`]).

use std::fmt;

use p256::SecretKey;
use p256::elliptic_curve::sec1::ToSec1Point;
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey, LineEnding};
use zeroize::Zeroizing;

use crate::WrapContext;
use crate::hpke_p256::{P256PublicKey, open_with_private_key};
use crate::id::RootKind;
use crate::secret::Kek;
use crate::wrap::{Construction, WrapError, WrappedKek};

/// A P-256 private key; wiped on drop, never printed.
pub struct RecoveryKey(SecretKey);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a P-256 private key (PKCS#8 PEM, not encrypted)")]
pub struct NotAPrivateKey;

impl RecoveryKey {
    /// From 32 fresh random bytes. `None` for the one in 2^32 that are no private key: draw again.
    pub fn from_random(random: &Zeroizing<[u8; 32]>) -> Option<Self> {
        SecretKey::from_slice(random.as_slice()).ok().map(Self)
    }

    /// From `-----BEGIN PRIVATE KEY-----` (PKCS#8) or `-----BEGIN EC PRIVATE KEY-----` (SEC 1).
    pub fn from_pem(pem: &str) -> Result<Self, NotAPrivateKey> {
        SecretKey::from_pkcs8_pem(pem).or_else(|_| SecretKey::from_sec1_pem(pem)).map(Self).map_err(|_| NotAPrivateKey)
    }

    /// PKCS#8, as `openssl pkey` reads it.
    pub fn to_pem(&self) -> Zeroizing<String> {
        self.0.to_pkcs8_pem(LineEnding::LF).expect("a P-256 key has a PKCS#8 form")
    }

    /// SubjectPublicKeyInfo: what `init --recovery` takes.
    pub fn public_pem(&self) -> String {
        self.0.public_key().to_public_key_pem(LineEnding::LF).expect("a P-256 key has a public PEM form")
    }

    pub fn public(&self) -> P256PublicKey {
        P256PublicKey::from_sec1(self.0.public_key().to_sec1_point(false).as_bytes())
            .expect("the public half of a private key is a point")
    }

    /// Whether `wrap` says that it was made for this key. Only opening proves it.
    pub fn is_root_of(&self, wrap: &WrappedKek) -> bool {
        wrap.root_kind == RootKind::Recovery && wrap.root_id == self.public().recovery_root_id()
    }

    /// Opens a recovery wrap. What comes out is whatever somebody has wrapped to the public key: its origin is unproven.
    ///
    /// # Errors
    /// [`WrapError`].
    pub fn open(&self, context: &WrapContext, wrap: &[u8]) -> Result<Kek, WrapError> {
        let Construction::HpkeP256 { encapsulated, sealed } = Construction::parse(wrap)? else {
            return Err(WrapError::NotAuthentic);
        };
        let scalar: Zeroizing<[u8; 32]> = Zeroizing::new(self.0.to_bytes().into());
        open_with_private_key(&scalar, context, &encapsulated, &sealed)
    }
}

impl fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoveryKey(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> RecoveryKey {
        RecoveryKey::from_random(&Zeroizing::new([byte; 32])).unwrap()
    }

    #[test]
    fn key_reads_back_from_its_pem_and_names_the_same_root() {
        let one = key(7);
        let back = RecoveryKey::from_pem(&one.to_pem()).unwrap();
        assert_eq!(back.public(), one.public());
        assert_eq!(P256PublicKey::from_pem(&one.public_pem()).unwrap(), one.public());
        assert!(!format!("{one:?}").contains("07"));
    }

    #[test]
    fn what_is_no_private_key_is_refused() {
        for bad in ["", "x", &key(7).public_pem(), "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
            assert!(RecoveryKey::from_pem(bad).is_err(), "{bad}");
        }
        for bytes in [[0; 32], [0xff; 32]] {
            assert!(RecoveryKey::from_random(&Zeroizing::new(bytes)).is_none());
        }
    }
}
