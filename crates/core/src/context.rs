//! Additional data: what a ciphertext or wrap is bound to, as exact bytes. All integers big-endian.

use crate::id::{GenerationNumber, KeyId, KeyringId, RootId, RootKind};

const ENVELOPE_LABEL: &[u8] = b"keystead-env";
const WRAP_LABEL: &[u8] = b"keystead-wrap";
const VERSION: u8 = 1;

/// What an envelope is bound to: `"keystead-env" ‖ 0x01 ‖ u16 len ‖ keyring ‖ u64 generation ‖ u16 len ‖ key ID`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EnvelopeContext(Vec<u8>);

/// What a wrap of a KEK is bound to: the envelope's fields under a label of its own, then `u8 root kind ‖ u16 len ‖ root ID`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WrapContext {
    pub keyring: KeyringId,
    pub generation: GenerationNumber,
    pub key_id: KeyId,
    pub root_kind: RootKind,
    pub root_id: RootId,
}

impl EnvelopeContext {
    pub fn new(keyring: &KeyringId, generation: GenerationNumber, key_id: &KeyId) -> Self {
        Self(generation_bytes(ENVELOPE_LABEL, keyring, generation, key_id))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl WrapContext {
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = generation_bytes(WRAP_LABEL, &self.keyring, self.generation, &self.key_id);
        bytes.push(self.root_kind.into());
        push_sized(&mut bytes, self.root_id.as_bytes());
        bytes
    }
}

fn generation_bytes(label: &[u8], keyring: &KeyringId, generation: GenerationNumber, key_id: &KeyId) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(label.len() + 1 + 2 + KeyringId::MAX_LEN + 8 + 2 + KeyId::MAX_LEN);
    bytes.extend_from_slice(label);
    bytes.push(VERSION);
    push_sized(&mut bytes, keyring.as_str().as_bytes());
    bytes.extend_from_slice(&generation.0.to_be_bytes());
    push_sized(&mut bytes, key_id.as_str().as_bytes());
    bytes
}

/// `u16 len ‖ field`. Every field that comes here is an identifier of at most 98 bytes.
fn push_sized(bytes: &mut Vec<u8>, field: &[u8]) {
    debug_assert!(field.len() <= usize::from(u16::MAX));
    bytes.extend_from_slice(&(field.len() as u16).to_be_bytes());
    bytes.extend_from_slice(field);
}
