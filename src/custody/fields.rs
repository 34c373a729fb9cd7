//! Fields of a frame: big-endian integers and byte strings with a length, written to and read from one buffer.
//!
//! Reading never trusts a length: every access is bounds-checked, and a frame must be used up to its last byte.

use zeroize::Zeroizing;

/// A frame that is not what it should be. Names the field only, never its content: it may be a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a custody frame has {0} bytes, more than it may have")]
    TooLong(usize),
    #[error("a custody frame has version {0}, which this version does not speak")]
    Version(u8),
    #[error("a custody frame is malformed: {0}")]
    Malformed(&'static str),
}

/// Collects the fields of one frame. Wiped when dropped, as the frame may carry a key.
pub(super) struct Writer(Zeroizing<Vec<u8>>);

impl Writer {
    /// `capacity` should suffice: a buffer that grows leaves a copy behind.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self(Zeroizing::new(Vec::with_capacity(capacity)))
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.raw(&value.to_be_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.raw(&value.to_be_bytes());
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// `u16 len ‖ bytes`; what does not fit a u16 is cut, so that the frame stays readable.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        self.raw(&len.to_be_bytes());
        self.raw(&bytes[..usize::from(len)]);
    }

    /// Text for people, cut at `max` bytes and without control characters: it ends up in logs and on terminals.
    pub(super) fn text(&mut self, text: &str, max: usize) {
        let mut clean = String::with_capacity(text.len().min(max));
        for character in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
            if clean.len() + character.len_utf8() > max {
                break;
            }
            clean.push(character);
        }
        self.bytes(clean.as_bytes());
    }

    pub(super) fn into_bytes(self) -> Zeroizing<Vec<u8>> {
        self.0
    }
}

/// Takes fields off the front of a frame.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], FrameError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(FrameError::Malformed("it ends early"))?;
        self.0 = rest;
        Ok(head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, FrameError> {
        self.array::<1>().map(|bytes| bytes[0])
    }

    pub(super) fn bool(&mut self) -> Result<bool, FrameError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(FrameError::Malformed("a flag is neither 0 nor 1")),
        }
    }

    pub(super) fn u16(&mut self) -> Result<u16, FrameError> {
        self.array().map(|bytes| u16::from_be_bytes(*bytes))
    }

    pub(super) fn u32(&mut self) -> Result<u32, FrameError> {
        self.array().map(|bytes| u32::from_be_bytes(*bytes))
    }

    pub(super) fn u64(&mut self) -> Result<u64, FrameError> {
        self.array().map(|bytes| u64::from_be_bytes(*bytes))
    }

    pub(super) fn bytes(&mut self, max: usize) -> Result<&'a [u8], FrameError> {
        let len = usize::from(self.u16()?);
        if len > max {
            return Err(FrameError::Malformed("a field is too long"));
        }
        let (head, rest) = self.0.split_at_checked(len).ok_or(FrameError::Malformed("it ends early"))?;
        self.0 = rest;
        Ok(head)
    }

    pub(super) fn text(&mut self, max: usize) -> Result<&'a str, FrameError> {
        let text = std::str::from_utf8(self.bytes(max)?).map_err(|_| FrameError::Malformed("a text is not UTF-8"))?;
        if text.chars().any(char::is_control) {
            return Err(FrameError::Malformed("a text has control characters"));
        }
        Ok(text)
    }

    /// An identifier through its own parser.
    pub(super) fn parsed<T: std::str::FromStr>(&mut self, max: usize) -> Result<T, FrameError> {
        self.text(max)?.parse().map_err(|_| FrameError::Malformed("an identifier is not one"))
    }

    /// Items still to come, each of at least `smallest` bytes: so a count cannot ask for more memory than the frame has.
    pub(super) fn count(&mut self, smallest: usize) -> Result<usize, FrameError> {
        let count = self.u32()? as usize;
        if count > self.0.len() / smallest {
            return Err(FrameError::Malformed("a list is longer than its frame"));
        }
        Ok(count)
    }

    pub(super) fn end(&self) -> Result<(), FrameError> {
        if self.0.is_empty() { Ok(()) } else { Err(FrameError::Malformed("bytes are left over")) }
    }
}
