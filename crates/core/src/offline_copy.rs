//! The offline copy: a KEK whose durable root is in the cloud, sealed under a key that custody derives from the epoch secret.
//!
//! A wrap of construction 1 (AES-256-GCM), with additional data of its own: `"keystead-offline-copy" ‖ 0x01 ‖ context`, the
//! context being that of the upstream's wrap which it stands in for. It lies in the record and nowhere else: destroying
//! the epoch secret destroys every copy made under it.

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::aead::{AeadInOut, KeyInit};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::context::WrapContext;
use crate::hex;
use crate::id::GenerationNumber;
use crate::secret::Kek;
use crate::wrap::{Construction, WrapError};

const LABEL: &[u8] = b"keystead-offline-copy\x01";

/// One generation's copy, as it stands in the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfflineCopy {
    pub generation: GenerationNumber,
    #[serde(with = "hex")]
    pub sealed: Vec<u8>,
}

/// A key of one epoch for offline copies; wiped on drop, never printed.
pub struct CopyKey(Zeroizing<[u8; 32]>);

impl CopyKey {
    /// `key` must be what custody derived for this purpose.
    pub fn new(key: Zeroizing<[u8; 32]>) -> Self {
        Self(key)
    }

    /// Seals `kek`. `iv` must be fresh: one epoch's key seals every generation.
    pub fn seal(&self, context: &WrapContext, kek: &Kek, iv: [u8; 12]) -> Vec<u8> {
        let mut sealed = [0; 48];
        let (ciphertext, tag) = sealed.split_at_mut(32);
        ciphertext.copy_from_slice(kek.expose());
        let computed = Aes256Gcm::new((&*self.0).into())
            .encrypt_inout_detached(&iv.into(), &additional_data(context), InOutBuf::from(ciphertext))
            .expect("32 bytes are within GCM's bounds");
        tag.copy_from_slice(&computed);
        Construction::AesGcm { iv, sealed }.to_bytes()
    }

    /// Opens what [`Self::seal`] made under this key and context. The caller compares the commitment.
    ///
    /// # Errors
    /// [`WrapError`].
    pub fn open(&self, context: &WrapContext, sealed: &[u8]) -> Result<Kek, WrapError> {
        let Construction::AesGcm { iv, sealed } = Construction::parse(sealed)? else {
            return Err(WrapError::NotAuthentic);
        };
        let mut kek = Zeroizing::new([0; 32]);
        let (ciphertext, tag) = sealed.split_at(32);
        kek.copy_from_slice(ciphertext);
        let tag: [u8; 16] = tag.try_into().map_err(|_| WrapError::Malformed)?;
        Aes256Gcm::new((&*self.0).into())
            .decrypt_inout_detached(
                &iv.into(),
                &additional_data(context),
                InOutBuf::from(kek.as_mut_slice()),
                &tag.into(),
            )
            .map_err(|_| WrapError::NotAuthentic)?;
        Ok(Kek::take(&mut kek))
    }
}

/// What a copy is bound to besides its epoch, whose key it is under.
pub fn additional_data(context: &WrapContext) -> Vec<u8> {
    [LABEL, &context.to_bytes()].concat()
}

impl std::fmt::Debug for CopyKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CopyKey(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{KeyId, KeyringId, RootId, RootKind};

    fn context(generation: u64) -> WrapContext {
        let keyring: KeyringId = "default".parse().unwrap();
        let generation = GenerationNumber(generation);
        WrapContext {
            key_id: KeyId::mint(&keyring, generation, [1; 16]),
            keyring,
            generation,
            root_kind: RootKind::from(16),
            root_id: RootId::new(b"key-1").unwrap(),
        }
    }

    fn key(byte: u8) -> CopyKey {
        CopyKey::new(Zeroizing::new([byte; 32]))
    }

    #[test]
    fn copy_opens_under_its_epoch_and_context_only() {
        let sealed = key(1).seal(&context(1), &Kek::take(&mut [9; 32]), [3; 12]);
        assert_eq!(key(1).open(&context(1), &sealed).unwrap().expose(), &[9; 32]);
        assert_eq!(key(2).open(&context(1), &sealed).unwrap_err(), WrapError::NotAuthentic);
        assert_eq!(key(1).open(&context(2), &sealed).unwrap_err(), WrapError::NotAuthentic);
        for offset in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[offset] ^= 1;
            assert!(key(1).open(&context(1), &flipped).is_err(), "{offset}");
            assert!(key(1).open(&context(1), &sealed[..offset]).is_err(), "{offset}");
        }
    }

    #[test]
    fn wrap_by_a_cmk_of_the_same_bytes_is_no_copy() {
        // The same key and context under the label of custody wraps.
        let mut sealed = [9; 48];
        let (ciphertext, tag) = sealed.split_at_mut(32);
        let computed = Aes256Gcm::new(&[1; 32].into())
            .encrypt_inout_detached(&[3; 12].into(), &context(1).to_bytes(), InOutBuf::from(ciphertext))
            .unwrap();
        tag.copy_from_slice(&computed);
        let wrap = Construction::AesGcm { iv: [3; 12], sealed }.to_bytes();
        assert_eq!(key(1).open(&context(1), &wrap).unwrap_err(), WrapError::NotAuthentic);
        assert!(!format!("{:?}", key(0x5a)).contains("5a"));
    }
}
