//! Takes `:authority` out of HPACK header blocks (RFC 7541) without decoding them. Knows nothing of frames.
//!
//! The client's dynamic table holds the authorities it sent, the server's does not, so an index is lowered by the number
//! of authorities among the younger entries. That is all there is to know: which of the youngest entries were taken out,
//! one bit each. Sizes need no tracking. The server's table gets fewer bytes under the same limit, so it still holds
//! whatever the client's does, and the client alone decides what it refers to.

/// Entries of the static table; dynamic ones follow, the youngest first.
const STATIC_ENTRIES: usize = 61;

/// `:authority` in the static table, with an empty value.
const AUTHORITY: usize = 1;

const NAME: &[u8] = b":authority";
/// The same in HPACK's Huffman code, which has one form of it only.
const NAME_IN_HUFFMAN: &[u8] = &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];

/// Bytes that an integer may take; h2 draws the same line.
const MAX_INTEGER_BYTES: usize = 5;

/// Something that HPACK does not allow. The server's decoder finds it too, and ends the connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The state of one connection: the youngest entries of the client's dynamic table, bit 0 the youngest of all.
///
/// A set bit is an `:authority`, which the server's table lacks. Tables are limited to 4,096 bytes (the default, which
/// hyper does not change) and entries take more than 32, so that no entry older than 128 insertions is alive.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) authorities: u128,
}

/// What a name or a whole field refers to in the server's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Authority,
    Other { index: usize },
}

impl Table {
    /// Takes every `:authority` out of a complete header block and moves the rest together. Returns the new length.
    ///
    /// From a malformed field on, the block stays as it is.
    pub fn strip(&mut self, block: &mut [u8]) -> (usize, Result<(), Malformed>) {
        let mut end = 0;
        let mut field = Cursor { block, read: 0 };
        while field.read < field.block.len() {
            let start = field.read;
            match self.field(&mut field) {
                Ok(None) => {}
                Ok(Some(head)) => end = head.put(field.block, start..field.read, end),
                Err(malformed) => {
                    field.block.copy_within(start.., end);
                    return (end + field.block.len() - start, Err(malformed));
                }
            }
        }
        (end, Ok(()))
    }

    /// Reads one field or table size update. `None`: it is to be left out.
    fn field(&mut self, from: &mut Cursor<'_>) -> Result<Option<Head>, Malformed> {
        let first = from.peek()?;
        let (prefix_bits, is_literal, is_inserted) = match first {
            0x80.. => (7, false, false),
            0x40.. => (6, true, true),
            // A table size update means the same to both tables.
            0x20.. => return from.integer(5).map(|_| Some(Head::Kept)),
            _ => (4, true, false),
        };
        let before = from.read;
        let index = from.integer(prefix_bits)?;
        let head_bytes = from.read - before;
        let entry = match index {
            0 if is_literal => from.name()?,
            index => self.entry(index)?,
        };
        if is_literal {
            from.string()?;
        }
        if is_inserted {
            self.authorities = self.authorities << 1 | u128::from(entry == Entry::Authority);
        }
        Ok(match entry {
            Entry::Authority => None,
            Entry::Other { index: same } if same == index => Some(Head::Kept),
            Entry::Other { index } => Some(Head::Lowered { first, prefix_bits, index, head_bytes }),
        })
    }

    fn entry(&self, index: usize) -> Result<Entry, Malformed> {
        match index {
            0 => Err(Malformed),
            AUTHORITY => Ok(Entry::Authority),
            2..=STATIC_ENTRIES => Ok(Entry::Other { index }),
            _ => {
                let age = u32::try_from(index - STATIC_ENTRIES - 1).map_err(|_| Malformed)?;
                let itself = 1_u128.checked_shl(age).ok_or(Malformed)?;
                if self.authorities & itself != 0 {
                    return Ok(Entry::Authority);
                }
                let younger = (self.authorities & (itself - 1)).count_ones();
                Ok(Entry::Other { index: index - younger as usize })
            }
        }
    }
}

/// How a field that stays begins.
enum Head {
    Kept,
    /// With a lower index than the client's in the place of its first `head_bytes`.
    Lowered {
        first: u8,
        prefix_bits: u8,
        index: usize,
        head_bytes: usize,
    },
}

impl Head {
    /// Moves the field at `from` to `to`, at or before it. Returns where it ends.
    fn put(self, block: &mut [u8], from: std::ops::Range<usize>, to: usize) -> usize {
        let (rest, to) = match self {
            Self::Kept => (from, to),
            Self::Lowered { first, prefix_bits, index, head_bytes } => {
                // A lower index takes no more bytes than the one that stood there: what follows is not overwritten.
                (from.start + head_bytes..from.end, put_integer(block, to, first, prefix_bits, index))
            }
        };
        let end = to + rest.len();
        if rest.start != to {
            block.copy_within(rest, to);
        }
        end
    }
}

/// Writes an integer (RFC 7541, 5.1), keeping the bits of `first` above the prefix. Returns where it ends.
fn put_integer(block: &mut [u8], mut at: usize, first: u8, prefix_bits: u8, value: usize) -> usize {
    let mask = prefix_mask(prefix_bits);
    let mut put = |byte| {
        block[at] = byte;
        at += 1;
    };
    if value < usize::from(mask) {
        put(first & !mask | value as u8);
        return at;
    }
    put(first | mask);
    let mut rest = value - usize::from(mask);
    while rest > 0x7f {
        put(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    put(rest as u8);
    at
}

fn prefix_mask(bits: u8) -> u8 {
    0xff >> (8 - bits)
}

/// Reads a block from front to back.
struct Cursor<'a> {
    block: &'a mut [u8],
    read: usize,
}

impl Cursor<'_> {
    fn peek(&self) -> Result<u8, Malformed> {
        self.block.get(self.read).copied().ok_or(Malformed)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        let byte = self.peek()?;
        self.read += 1;
        Ok(byte)
    }

    /// RFC 7541, 5.1.
    fn integer(&mut self, prefix_bits: u8) -> Result<usize, Malformed> {
        let mask = prefix_mask(prefix_bits);
        let mut value = usize::from(self.byte()? & mask);
        if value < usize::from(mask) {
            return Ok(value);
        }
        for place in 0..MAX_INTEGER_BYTES - 1 {
            let byte = self.byte()?;
            value += usize::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    /// A name that is spelt out.
    fn name(&mut self) -> Result<Entry, Malformed> {
        let is_huffman = self.peek()? & 0x80 != 0;
        let name = self.string()?;
        let authority = if is_huffman { NAME_IN_HUFFMAN } else { NAME };
        Ok(if self.block[name] == *authority { Entry::Authority } else { Entry::Other { index: 0 } })
    }

    /// RFC 7541, 5.2. Where its bytes are.
    fn string(&mut self) -> Result<std::ops::Range<usize>, Malformed> {
        let len = self.integer(7)?;
        let start = self.read;
        // An integer of at most five bytes does not overflow.
        self.read = start + len;
        if self.read > self.block.len() { Err(Malformed) } else { Ok(start..self.read) }
    }
}
