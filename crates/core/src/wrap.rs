//! Wraps: a KEK under one root, as the bytes that stand in the store and in annotations.
//!
//! The first byte of a wrap names its construction; everything after it is that construction's own. Which root opens it
//! is said beside it ([`WrappedKek`]), and both are bound into it through the [`crate::WrapContext`].

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::aead::{AeadInOut, KeyInit};
use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::hex;
use crate::id::{RootId, RootKind};
use crate::secret::Kek;

/// Longest wrap read or written: one by an RSA key of a TPM is about 800 bytes, an RSA-4096 OAEP wrap 564; an annotation
/// has 1 KiB for all of them.
pub const MAX_WRAP_LEN: usize = 896;

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
    /// `0x04 ‖ TPM2B_PUBLIC ‖ TPM2B_PRIVATE ‖ encapsulated key (65) ‖ ciphertext (32) ‖ tag (16)`: as [`Self::HpkeP256`], to a P-256
    /// key of a TPM, whose two halves travel with the wrap: a TPM keeps no keys but those it is given.
    TpmEcdh { key: TpmKey, encapsulated: [u8; 65], sealed: [u8; 48] },
    /// `0x05 ‖ TPM2B_PUBLIC ‖ TPM2B_PRIVATE ‖ OAEP block (256)`: to an RSA-2048 key of a TPM without ECC. The block (SHA-256) holds
    /// [`oaep_message`]; a key in between, as in [`Self::RsaOaep`], would not fit an annotation beside the halves.
    TpmRsaOaep { key: TpmKey, block: Box<[u8; 256]> },
}

/// A key of a TPM as `TPM2_Create` gave it out, without the length fields. Only that TPM can load it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TpmKey {
    /// `TPMT_PUBLIC`
    pub public: Vec<u8>,
    /// The encrypted private half.
    pub private: Vec<u8>,
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
    const TPM_ECDH: u8 = 4;
    const TPM_RSA_OAEP: u8 = 5;

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
            Self::TpmEcdh { key, encapsulated, sealed } => {
                bytes.push(Self::TPM_ECDH);
                key.append_to(&mut bytes);
                bytes.extend_from_slice(encapsulated);
                bytes.extend_from_slice(sealed);
            }
            Self::TpmRsaOaep { key, block } => {
                bytes.push(Self::TPM_RSA_OAEP);
                key.append_to(&mut bytes);
                bytes.extend_from_slice(block.as_slice());
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
            Self::TPM_ECDH => {
                let (key, rest) = TpmKey::take(rest)?;
                let (encapsulated, sealed) = rest.split_first_chunk().ok_or(WrapError::Malformed)?;
                Ok(Self::TpmEcdh { key, encapsulated: *encapsulated, sealed: exact(sealed)? })
            }
            Self::TPM_RSA_OAEP => {
                let (key, block) = TpmKey::take(rest)?;
                let block = block.try_into().map_err(|_| WrapError::Malformed)?;
                Ok(Self::TpmRsaOaep { key, block: Box::new(block) })
            }
            unknown => Err(WrapError::UnknownConstruction(unknown)),
        }
    }
}

impl TpmKey {
    /// Longest half: an RSA-2048 one has about 320 bytes.
    const MAX_HALF: usize = 512;

    fn append_to(&self, bytes: &mut Vec<u8>) {
        for half in [&self.public, &self.private] {
            bytes.extend_from_slice(&(half.len() as u16).to_be_bytes());
            bytes.extend_from_slice(half);
        }
    }

    fn take(bytes: &[u8]) -> Result<(Self, &[u8]), WrapError> {
        fn half(bytes: &[u8]) -> Result<(&[u8], &[u8]), WrapError> {
            let (len, rest) = bytes.split_first_chunk().ok_or(WrapError::Malformed)?;
            let len = usize::from(u16::from_be_bytes(*len));
            if !(1..=TpmKey::MAX_HALF).contains(&len) {
                return Err(WrapError::Malformed);
            }
            rest.split_at_checked(len).ok_or(WrapError::Malformed)
        }
        let (public, rest) = half(bytes)?;
        let (private, rest) = half(rest)?;
        Ok((Self { public: public.to_vec(), private: private.to_vec() }, rest))
    }
}

fn exact(bytes: &[u8]) -> Result<[u8; 48], WrapError> {
    bytes.try_into().map_err(|_| WrapError::Malformed)
}

/// What the OAEP block of a TPM's RSA key holds: `KEK ‖ SHA-256(context)`. OAEP cannot be changed without breaking it, so the
/// digest binds the context.
pub fn oaep_message(context: &[u8], kek: &Kek) -> Zeroizing<[u8; 64]> {
    let mut message = Zeroizing::new([0; 64]);
    message[..32].copy_from_slice(kek.expose());
    message[32..].copy_from_slice(&Sha256::digest(context));
    message
}

/// # Errors
/// [`WrapError::NotAuthentic`].
pub fn open_oaep_message(message: &[u8], context: &[u8]) -> Result<Kek, WrapError> {
    let (kek, digest) = message.split_at_checked(32).ok_or(WrapError::NotAuthentic)?;
    if digest != Sha256::digest(context).as_slice() {
        return Err(WrapError::NotAuthentic);
    }
    let mut bytes = Zeroizing::new([0; 32]);
    bytes.copy_from_slice(kek);
    Ok(Kek::take(&mut bytes))
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
