//! The annotation that makes data self-describing: each Encrypt answer carries the generation's durable wraps, so that an
//! etcd snapshot and one durable root are enough to read every Secret.
//!
//! `0x01 ‖ u16 len ‖ key ID ‖ commitment (32) ‖ u8 count ‖ count × (u8 kind ‖ u16 len ‖ root ID ‖ u16 len ‖ wrap)`, at most 1 KiB.
//! Comes back from etcd unauthenticated: serving never opens it, only offline recovery does.

use crate::id::{KeyId, RootId, RootKind};
use crate::secret::KeyCommitment;
use crate::wrap::{MAX_WRAP_LEN, WrappedKek};

/// Key of the annotation: a lower-case DNS name, as kube-apiserver demands.
pub const KEY: &str = "wraps.keystead.internal";
/// etcd stores the annotation with every Secret.
pub const MAX_LEN: usize = 1024;
const VERSION: u8 = 1;

/// What an annotation says. Nothing in it is authentic before a wrap has opened to a KEK of this commitment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotation {
    pub key_id: KeyId,
    pub commitment: KeyCommitment,
    pub wraps: Vec<WrappedKek>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    #[error("the annotation has format {0}, which a newer Keystead wrote; this one reads format {VERSION}")]
    NewerFormat(u8),
    #[error("the annotation is malformed")]
    Malformed,
    #[error("the wraps of one generation take {0} bytes; an annotation holds at most {MAX_LEN}: use fewer roots")]
    TooLong(usize),
    #[error("a wrap takes {0} bytes; {MAX_WRAP_LEN} are the most that is read back: use a smaller key for that root")]
    WrapTooLong(usize),
}

impl Annotation {
    /// # Errors
    /// [`AnnotationError::TooLong`], [`AnnotationError::WrapTooLong`]: checked when a generation is prepared, so that Encrypt never meets it.
    pub fn encode(&self) -> Result<Vec<u8>, AnnotationError> {
        let mut bytes = vec![VERSION];
        push_sized(&mut bytes, self.key_id.as_str().as_bytes());
        bytes.extend_from_slice(self.commitment.as_bytes());
        bytes.push(u8::try_from(self.wraps.len()).map_err(|_| AnnotationError::TooLong(usize::MAX))?);
        for wrap in &self.wraps {
            // What is written must be readable: `decode` refuses a longer wrap.
            if wrap.bytes.len() > MAX_WRAP_LEN {
                return Err(AnnotationError::WrapTooLong(wrap.bytes.len()));
            }
            bytes.push(wrap.root_kind.into());
            push_sized(&mut bytes, wrap.root_id.as_bytes());
            push_sized(&mut bytes, &wrap.bytes);
        }
        if bytes.len() > MAX_LEN {
            return Err(AnnotationError::TooLong(bytes.len()));
        }
        Ok(bytes)
    }

    /// Reads hostile bytes: bounded, exact to the last byte.
    pub fn decode(bytes: &[u8]) -> Result<Self, AnnotationError> {
        if bytes.len() > MAX_LEN {
            return Err(AnnotationError::Malformed);
        }
        let mut reader = Reader(bytes);
        match reader.byte()? {
            VERSION => {}
            0 => return Err(AnnotationError::Malformed),
            newer => return Err(AnnotationError::NewerFormat(newer)),
        }
        let key_id = std::str::from_utf8(reader.sized()?)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or(AnnotationError::Malformed)?;
        let commitment =
            KeyCommitment::from_bytes(reader.take(32)?.try_into().map_err(|_| AnnotationError::Malformed)?);
        let wraps = (0..reader.byte()?)
            .map(|_| {
                let root_kind = RootKind::from(reader.byte()?);
                let root_id = RootId::new(reader.sized()?).map_err(|_| AnnotationError::Malformed)?;
                let bytes = reader.sized()?.to_vec();
                if bytes.len() > MAX_WRAP_LEN {
                    return Err(AnnotationError::Malformed);
                }
                Ok(WrappedKek { root_kind, root_id, bytes })
            })
            .collect::<Result<_, _>>()?;
        if !reader.0.is_empty() {
            return Err(AnnotationError::Malformed);
        }
        Ok(Self { key_id, commitment, wraps })
    }
}

fn push_sized(bytes: &mut Vec<u8>, field: &[u8]) {
    debug_assert!(field.len() <= usize::from(u16::MAX));
    bytes.extend_from_slice(&(field.len() as u16).to_be_bytes());
    bytes.extend_from_slice(field);
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], AnnotationError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(AnnotationError::Malformed)?;
        self.0 = rest;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8, AnnotationError> {
        Ok(self.take(1)?[0])
    }

    fn sized(&mut self) -> Result<&'a [u8], AnnotationError> {
        let len = self.take(2)?;
        self.take(usize::from(u16::from_be_bytes([len[0], len[1]])))
    }
}
