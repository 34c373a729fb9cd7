//! Wraps: a KEK under one root, as the bytes that stand in the store and in annotations.
//!
//! The first byte of a wrap names its construction; everything after it is that construction's own. Which root opens it
//! is said beside it ([`WrappedKek`]), and both are bound into it through the [`crate::WrapContext`].

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::aead::{AeadInOut, KeyInit};
use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::hex;
use crate::id::{RootId, RootKind};
use crate::secret::Kek;

/// Longest wrap read or written: an RSA-4096 OAEP wrap is 564 bytes; an annotation has 1 KiB for all of them.
pub const MAX_WRAP_LEN: usize = 640;

/// A KEK under one root. The bytes of a kind or construction unknown here are kept as they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrappedKek {
    pub root_kind: RootKind,
    pub root_id: RootId,
    #[serde(with = "hex")]
    pub bytes: Vec<u8>,
}

/// How a wrap is built, parsed from its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Construction {
    /// `0x01 ‖ IV (12) ‖ ciphertext (32) ‖ tag (16)`: AES-256-GCM in the token, the context as additional data.
    AesGcm { iv: [u8; 12], sealed: [u8; 48] },
    /// `0x02 ‖ encapsulated key (65) ‖ ciphertext (32) ‖ tag (16)`: HPKE base mode, the context as `info`.
    HpkeP256 { encapsulated: [u8; 65], sealed: [u8; 48] },
    /// `0x03 ‖ hash ‖ u16 len ‖ OAEP block ‖ ciphertext (32) ‖ tag (16)`: the OAEP block holds a fresh 32-byte key under which the
    /// KEK is sealed with the context as additional data. Tokens differ in OAEP labels; this binds the same on all.
    RsaOaep { hash: OaepHash, block: Vec<u8>, sealed: [u8; 48] },
}

/// Hash and MGF1 hash of an OAEP block; SHA-1 where the token knows no other (it does not weaken OAEP's proof).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OaepHash {
    Sha256,
    Sha1,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WrapError {
    #[error("the wrapped key has construction {0}, which this version does not know")]
    UnknownConstruction(u8),
    #[error("the wrapped key is malformed")]
    Malformed,
    /// Tampered with, of another context, or of another root.
    #[error("the wrapped key does not open under this root and context")]
    NotAuthentic,
}

impl Construction {
    const AES_GCM: u8 = 1;
    const HPKE_P256: u8 = 2;
    const RSA_OAEP: u8 = 3;

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::AesGcm { iv, sealed } => {
                bytes.push(Self::AES_GCM);
                bytes.extend_from_slice(iv);
                bytes.extend_from_slice(sealed);
            }
            Self::HpkeP256 { encapsulated, sealed } => {
                bytes.push(Self::HPKE_P256);
                bytes.extend_from_slice(encapsulated);
                bytes.extend_from_slice(sealed);
            }
            Self::RsaOaep { hash, block, sealed } => {
                bytes.push(Self::RSA_OAEP);
                bytes.push(match hash {
                    OaepHash::Sha256 => 1,
                    OaepHash::Sha1 => 2,
                });
                bytes.extend_from_slice(&(block.len() as u16).to_be_bytes());
                bytes.extend_from_slice(block);
                bytes.extend_from_slice(sealed);
            }
        }
        bytes
    }

    /// Exact: a byte too many or too few is [`WrapError::Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, WrapError> {
        let (&construction, rest) = bytes.split_first().ok_or(WrapError::Malformed)?;
        match construction {
            Self::AES_GCM => {
                let (iv, sealed) = rest.split_first_chunk().ok_or(WrapError::Malformed)?;
                Ok(Self::AesGcm { iv: *iv, sealed: exact(sealed)? })
            }
            Self::HPKE_P256 => {
                let (encapsulated, sealed) = rest.split_first_chunk().ok_or(WrapError::Malformed)?;
                Ok(Self::HpkeP256 { encapsulated: *encapsulated, sealed: exact(sealed)? })
            }
            Self::RSA_OAEP => {
                let (&hash, rest) = rest.split_first().ok_or(WrapError::Malformed)?;
                let hash = match hash {
                    1 => OaepHash::Sha256,
                    2 => OaepHash::Sha1,
                    _ => return Err(WrapError::Malformed),
                };
                let (len, rest) = rest.split_first_chunk().ok_or(WrapError::Malformed)?;
                let len = usize::from(u16::from_be_bytes(*len));
                let (block, sealed) = rest.split_at_checked(len).ok_or(WrapError::Malformed)?;
                if !(256..=512).contains(&len) {
                    return Err(WrapError::Malformed);
                }
                Ok(Self::RsaOaep { hash, block: block.to_vec(), sealed: exact(sealed)? })
            }
            unknown => Err(WrapError::UnknownConstruction(unknown)),
        }
    }
}

fn exact(bytes: &[u8]) -> Result<[u8; 48], WrapError> {
    bytes.try_into().map_err(|_| WrapError::Malformed)
}

/// Label of the key that seals a KEK inside an OAEP wrap.
const OAEP_LABEL: &[u8] = b"keystead-oaep-wrap\x01";

/// Seals `kek` under the 32-byte key an OAEP block carries. `transport` must be fresh for each wrap: the nonce is zero.
pub fn seal_under_transport_key(transport: &[u8; 32], context: &[u8], kek: &Kek) -> [u8; 48] {
    let mut sealed = [0; 48];
    let (ciphertext, tag) = sealed.split_at_mut(32);
    ciphertext.copy_from_slice(kek.expose());
    let computed = transport_cipher(transport)
        .encrypt_inout_detached(&[0; 12].into(), context, InOutBuf::from(ciphertext))
        .expect("32 bytes are within GCM's bounds");
    tag.copy_from_slice(&computed);
    sealed
}

/// # Errors
/// [`WrapError::NotAuthentic`].
pub fn open_under_transport_key(transport: &[u8; 32], context: &[u8], sealed: &[u8; 48]) -> Result<Kek, WrapError> {
    let mut kek = Zeroizing::new([0; 32]);
    let (ciphertext, tag) = sealed.split_at(32);
    kek.copy_from_slice(ciphertext);
    let tag: [u8; 16] = tag.try_into().map_err(|_| WrapError::Malformed)?;
    transport_cipher(transport)
        .decrypt_inout_detached(&[0; 12].into(), context, InOutBuf::from(kek.as_mut_slice()), &tag.into())
        .map_err(|_| WrapError::NotAuthentic)?;
    Ok(Kek::take(&mut kek))
}

fn transport_cipher(transport: &[u8; 32]) -> Aes256Gcm {
    let mut key = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::from_prk(transport)
        .and_then(|hkdf| hkdf.expand(OAEP_LABEL, key.as_mut()).map_err(|_| hkdf::InvalidPrkLength))
        .expect("32 bytes are valid lengths for HKDF-SHA256");
    Aes256Gcm::new((&*key).into())
}
