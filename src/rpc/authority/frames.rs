//! Finds header blocks among HTTP/2 frames (RFC 9113) and puts them back together as one frame each. Does no I/O.

use super::block::{Malformed, Table};

pub(super) const HEAD_BYTES: usize = 9;

/// What hyper takes in one frame, as it says in its SETTINGS; here also what all frames of a block may take together.
pub(super) const MAX_BLOCK_BYTES: usize = HEAD_BYTES + (16 << 10);

/// HEADERS, the five CONTINUATIONs that h2 puts up with at hyper's limits, and the last one.
const MAX_BLOCK_FRAMES: usize = 7;

const HEADERS: u8 = 1;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;
/// A type that nobody defines; receivers ignore such frames (RFC 9113, 5.5).
const UNKNOWN: u8 = 0x0b;

const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const PRIORITY_BYTES: usize = 5;
/// Padding of 255 bytes, and one that holds its length.
const MAX_PADDED: usize = 256;

/// What stands at the head of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A frame without headers, of so many bytes; they need not all be there.
    Other { bytes: usize },
    /// A complete header block of so many bytes, in one frame or several.
    Block { bytes: usize },
    /// Part of a head or of a header block; so many more bytes tell more.
    Short { missing: usize },
    /// What no client may send, or is too long. h2 refuses the same.
    Refused,
}

/// Looks at what begins at a frame boundary.
pub(super) fn look(bytes: &[u8]) -> Found {
    let Some(first) = Head::of(bytes) else {
        return Found::Short { missing: HEAD_BYTES - bytes.len() };
    };
    match first.kind {
        HEADERS => {}
        // Carries headers too, but only a server may send it.
        PUSH_PROMISE => return Found::Refused,
        _ => return Found::Other { bytes: HEAD_BYTES + first.payload },
    }
    let mut head = first;
    let mut end = 0;
    for _ in 0..MAX_BLOCK_FRAMES {
        end += HEAD_BYTES + head.payload;
        if end > MAX_BLOCK_BYTES {
            return Found::Refused;
        }
        if bytes.len() < end {
            return Found::Short { missing: end - bytes.len() };
        }
        if head.flags & END_HEADERS != 0 {
            return Found::Block { bytes: end };
        }
        head = match Head::of(&bytes[end..]) {
            None => return Found::Short { missing: end + HEAD_BYTES - bytes.len() },
            Some(next) if next.kind == CONTINUATION && next.stream == first.stream => next,
            Some(_) => return Found::Refused,
        };
    }
    Found::Refused
}

/// Makes one HEADERS frame of a complete block and takes `:authority` out of it. It is as long as before: what follows it
/// need not move.
pub(super) fn rewrite(block: &mut [u8], table: &mut Table) -> Result<(), Malformed> {
    let fields = join(block).ok_or(Malformed)?;
    let (len, outcome) = table.strip(&mut block[fields.clone()]);
    fill(block, fields.start + len);
    outcome
}

/// Completes the first frame, whose payload is in place up to `end`, and makes up for what is missing behind it.
fn fill(block: &mut [u8], end: usize) {
    let gap = block.len() - end;
    let mut flags = block[4] & !PADDED | END_HEADERS;
    let mut frame_end = end;
    if (1..=MAX_PADDED).contains(&gap) {
        // The length of the padding takes one of its bytes.
        block.copy_within(HEAD_BYTES..end, HEAD_BYTES + 1);
        block[HEAD_BYTES] = (gap - 1) as u8;
        block[end + 1..].fill(0);
        flags |= PADDED;
        frame_end = block.len();
    } else if gap > 0 {
        block[end..].fill(0);
        put_head(&mut block[end..], gap - HEAD_BYTES, UNKNOWN, 0);
    }
    put_head(block, frame_end - HEAD_BYTES, HEADERS, flags);
}

/// All but the stream.
fn put_head(frame: &mut [u8], payload: usize, kind: u8, flags: u8) {
    frame[..3].copy_from_slice(&(payload as u32).to_be_bytes()[1..]);
    frame[3..5].copy_from_slice(&[kind, flags]);
}

/// Moves the fragments of a block together, behind the first frame's head and priority. Returns where they are, or
/// `None` for a first frame shorter than its own flags say.
fn join(block: &mut [u8]) -> Option<std::ops::Range<usize>> {
    let head = Head::of(block)?;
    let frame_end = HEAD_BYTES + head.payload;
    let mut start = HEAD_BYTES;
    let mut padding = 0;
    if head.flags & PADDED != 0 {
        padding = usize::from(*block[..frame_end].get(start)?);
        start += 1;
    }
    let priority = if head.flags & PRIORITY != 0 { PRIORITY_BYTES } else { 0 };
    let fragment_end = frame_end.checked_sub(padding).filter(|&end| end >= start + priority)?;
    if start != HEAD_BYTES {
        block.copy_within(start..fragment_end, HEAD_BYTES);
    }
    let mut end = HEAD_BYTES + fragment_end - start;
    let mut next = frame_end;
    while let Some(head) = Head::of(&block[next..]) {
        let fragment = next + HEAD_BYTES..next + HEAD_BYTES + head.payload;
        next = fragment.end;
        let len = fragment.len();
        block.copy_within(fragment, end);
        end += len;
    }
    Some(HEAD_BYTES + priority..end)
}

/// The nine bytes before each payload.
#[derive(Debug, Clone, Copy)]
struct Head {
    payload: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Head {
    /// `None` if there are fewer than nine bytes.
    fn of(bytes: &[u8]) -> Option<Self> {
        let &[l0, l1, l2, kind, flags, s0, s1, s2, s3, ..] = bytes else { return None };
        Some(Self {
            payload: u32::from_be_bytes([0, l0, l1, l2]) as usize,
            kind,
            flags,
            // The highest bit is reserved and ignored.
            stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]),
        })
    }
}
