//! The envelope: what the apiserver stores in etcd in place of a DEK seed.
//!
//! `0x01 ‖ nonce (24) ‖ ciphertext ‖ tag (16)`, XAES-256-GCM (C2SP) under a key expanded from the KEK, bound to an
//! [`EnvelopeContext`]. A 32-byte seed becomes 73 bytes.

use std::fmt;

use xaes_256_gcm::Xaes256Gcm;
use xaes_256_gcm::aead::inout::InOutBuf;
use xaes_256_gcm::aead::{AeadInOut, KeyInit};
use zeroize::Zeroizing;

use crate::context::EnvelopeContext;
use crate::secret::Kek;

/// First byte of every envelope of this format.
pub const VERSION: u8 = 1;
pub const NONCE_LEN: usize = 24;
pub const TAG_LEN: usize = 16;
/// How much longer an envelope is than its plaintext.
pub const OVERHEAD: usize = 1 + NONCE_LEN + TAG_LEN;

/// A generation's key schedule, ready to encrypt and decrypt. Boxed, so that its owner can lock its page; wiped on drop.
pub struct EnvelopeKey(Box<Xaes256Gcm>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Not an envelope, or not one of this key and context: bit flipped, key ID exchanged, or made by somebody else.
    #[error("the ciphertext does not open under this key ID")]
    NotAuthentic,
    #[error("the ciphertext has format {0}, which a newer Keystead wrote; this one reads format {VERSION}")]
    NewerFormat(u8),
    #[error("the ciphertext is too short to be an envelope")]
    TooShort,
}

impl EnvelopeKey {
    pub fn new(kek: &Kek) -> Self {
        Self(Box::new(Xaes256Gcm::new((&*kek.envelope_key()).into())))
    }

    /// Encrypts `plaintext` for storage. `nonce` must be fresh random bytes; 24 of them never repeat in practice.
    pub fn encrypt(&self, context: &EnvelopeContext, nonce: [u8; NONCE_LEN], plaintext: &[u8]) -> Vec<u8> {
        let mut envelope = Vec::with_capacity(OVERHEAD + plaintext.len());
        envelope.push(VERSION);
        envelope.extend_from_slice(&nonce);
        envelope.extend_from_slice(plaintext);
        let tag = self.encrypt_in_place(context, &nonce, &mut envelope[1 + NONCE_LEN..]);
        wipe_stack();
        envelope.extend_from_slice(&tag);
        envelope
    }

    /// # Errors
    /// [`EnvelopeError`]; no byte of plaintext is released unless all of the envelope and its context are authentic.
    pub fn decrypt(&self, context: &EnvelopeContext, envelope: &[u8]) -> Result<Zeroizing<Vec<u8>>, EnvelopeError> {
        let (&version, rest) = envelope.split_first().ok_or(EnvelopeError::TooShort)?;
        match version {
            VERSION => {}
            0 => return Err(EnvelopeError::NotAuthentic),
            newer => return Err(EnvelopeError::NewerFormat(newer)),
        }
        let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>().ok_or(EnvelopeError::TooShort)?;
        let (ciphertext, tag) = rest.split_last_chunk::<TAG_LEN>().ok_or(EnvelopeError::TooShort)?;
        let mut plaintext = Zeroizing::new(ciphertext.to_vec());
        let opened = self.decrypt_in_place(context, nonce, &mut plaintext, tag);
        wipe_stack();
        opened.map(|()| plaintext)
    }

    /// Not inlined, here and below: the cipher's blocks of plaintext must lie in a frame that is left, for
    /// [`wipe_stack`] to overwrite.
    #[inline(never)]
    fn encrypt_in_place(
        &self,
        context: &EnvelopeContext,
        nonce: &[u8; NONCE_LEN],
        plaintext: &mut [u8],
    ) -> [u8; TAG_LEN] {
        self.0
            .encrypt_inout_detached(nonce.into(), context.as_bytes(), InOutBuf::from(plaintext))
            // GCM refuses only inputs of 64 GiB and more; callers bound theirs to kilobytes.
            .expect("plaintext within GCM's bounds")
            .into()
    }

    #[inline(never)]
    fn decrypt_in_place(
        &self,
        context: &EnvelopeContext,
        nonce: &[u8; NONCE_LEN],
        ciphertext: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), EnvelopeError> {
        self.0
            .decrypt_inout_detached(nonce.into(), context.as_bytes(), InOutBuf::from(ciphertext), tag.into())
            .map_err(|_| EnvelopeError::NotAuthentic)
    }

    /// Where the key schedule lies and how long it is, for locking its page.
    pub fn memory(&self) -> (*const u8, usize) {
        (std::ptr::from_ref(&*self.0).cast(), size_of::<Xaes256Gcm>())
    }
}

/// Overwrites the stack that the cipher has just used and left: its blocks of plaintext and keys lie there until somebody
/// else happens to go as deep. 16 KiB is twice what it takes.
#[inline(never)]
fn wipe_stack() {
    // Mutable, or the compiler keeps the zeros in the program and touches no stack.
    let mut below = [0_u8; 16 << 10];
    std::hint::black_box(&mut below);
}

impl fmt::Debug for EnvelopeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EnvelopeKey(redacted)")
    }
}
