//! A read-only walk through a bbolt file, the format of etcd's database: pages, a B+tree of buckets, keys in order.
//!
//! Ours because the crates found do another job: bbolt-rs is a whole database that writes, bolt-lite a 0.1 made for small
//! files held in memory. Here each page is visited once at most, every offset and length is checked, and a page is let go
//! before those below it are read.
//!
//! Source: go.etcd.io/bbolt, `internal/common` (page, meta, bucket). All numbers are little-endian, as on every machine etcd
//! supports.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
const PAGE_HEADER: usize = 16;
const META: usize = 64;
const ELEMENT: usize = 16;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const BUCKET: u32 = 0x01;
/// A tree of two-way pages over 2^48 keys is no deeper.
const MAX_DEPTH: usize = 48;
/// One page with its overflow: etcd refuses values of more than a few MiB.
const MAX_PAGE: u64 = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum BoltError {
    #[error("cannot be read")]
    Io(#[from] io::Error),
    #[error("is no etcd database: it has no valid meta page")]
    NoMeta,
    #[error("is cut short: it has {have} bytes of at least {need}")]
    Truncated { have: u64, need: u64 },
    #[error("is damaged: {0}")]
    Damaged(&'static str),
}

/// Takes flags, key and value of one leaf element.
type Leaf<'a, E> = dyn FnMut(u32, &[u8], &[u8]) -> Result<(), E> + 'a;

/// An opened database: its meta page is valid and the file as long as that says.
#[derive(Debug)]
pub struct Database {
    file: File,
    page_size: u64,
    /// Pages below this number are in use or free; none is above.
    high_water: u64,
    root: u64,
}

#[derive(Debug, Clone, Copy)]
struct Meta {
    page_size: u32,
    root: u64,
    high_water: u64,
    transaction: u64,
}

impl Database {
    /// `len`: bytes of the file that are the database.
    pub fn open(file: File, len: u64) -> Result<Self, BoltError> {
        let first = read_meta(&file, 0, len)?;
        // The first meta page may be the torn one; then the second is found by trying the page sizes there are.
        let sizes: Vec<u64> = match first {
            Some(meta) => vec![u64::from(meta.page_size)],
            None => (9..=16).map(|bits| 1 << bits).collect(),
        };
        let mut second = None;
        for size in sizes {
            second = read_meta(&file, size, len)?.filter(|meta| u64::from(meta.page_size) == size);
            if second.is_some() {
                break;
            }
        }
        let meta = match (first, second) {
            (Some(one), Some(two)) if two.transaction > one.transaction => two,
            (Some(one), _) => one,
            (None, Some(two)) => two,
            (None, None) => return Err(BoltError::NoMeta),
        };
        let page_size = u64::from(meta.page_size);
        let need = meta.high_water.checked_mul(page_size).ok_or(BoltError::Damaged("its size overflows"))?;
        if need > len {
            return Err(BoltError::Truncated { have: len, need });
        }
        Ok(Self { file, page_size, high_water: meta.high_water, root: meta.root })
    }

    /// Calls `each` with every key and value of the top bucket `name`, keys ascending. `false`: there is no such bucket.
    pub fn walk<E: From<BoltError>>(
        &self,
        name: &[u8],
        each: &mut impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<bool, E> {
        let mut walk = Walk { database: self, seen: vec![0; (self.high_water / 64 + 1) as usize] };
        let mut found: Option<Vec<u8>> = None;
        walk.tree(self.root, 0, &mut |flags, key, value| {
            if flags & BUCKET != 0 && key == name {
                found = Some(value.to_vec());
            }
            Ok::<(), E>(())
        })?;
        let Some(bucket) = found else { return Ok(false) };
        let root = u64_at(&bucket, 0).ok_or(BoltError::Damaged("a bucket is too short"))?;
        let mut leaf =
            |flags: u32, key: &[u8], value: &[u8]| if flags & BUCKET == 0 { each(key, value) } else { Ok(()) };
        if root == 0 {
            // A small bucket lies in its parent's page, behind its 16-byte header.
            let page = bucket.get(16..).ok_or(BoltError::Damaged("a bucket is too short"))?;
            elements(page, LEAF, &mut leaf, &mut |_| Ok(()))?;
        } else {
            walk.tree(root, 0, &mut leaf)?;
        }
        Ok(true)
    }
}

fn read_meta(file: &File, offset: u64, len: u64) -> Result<Option<Meta>, BoltError> {
    let mut bytes = [0; PAGE_HEADER + META];
    if offset + bytes.len() as u64 > len {
        return Ok(None);
    }
    file.read_exact_at(&mut bytes, offset)?;
    let meta = &bytes[PAGE_HEADER..];
    let number = |at| u64_at(meta, at).unwrap_or(0);
    let (magic, version, page_size) = (u32_at(meta, 0), u32_at(meta, 4), u32_at(meta, 8).unwrap_or(0));
    let plausible = page_size.is_power_of_two() && (512..=65536).contains(&page_size);
    if magic != Some(MAGIC) || version != Some(VERSION) || !plausible || number(56) != fnv1a(&meta[..56]) {
        return Ok(None);
    }
    Ok(Some(Meta { page_size, root: number(16), high_water: number(40), transaction: number(48) }))
}

/// One walk: remembers the pages it was on, so that no cycle and no page with two parents is followed.
struct Walk<'a> {
    database: &'a Database,
    seen: Vec<u64>,
}

impl Walk<'_> {
    fn tree<E: From<BoltError>>(&mut self, page: u64, depth: usize, each: &mut Leaf<'_, E>) -> Result<(), E> {
        if depth > MAX_DEPTH {
            return Err(BoltError::Damaged("its tree is too deep").into());
        }
        let (bytes, kind) = self.page(page)?;
        let mut children = Vec::new();
        elements(&bytes, kind, each, &mut |child| {
            children.push(child);
            Ok(())
        })?;
        drop(bytes);
        children.into_iter().try_for_each(|child| self.tree(child, depth + 1, each))
    }

    /// The page with its overflow, and whether it is a branch or a leaf.
    fn page(&mut self, number: u64) -> Result<(Vec<u8>, u16), BoltError> {
        let Database { file, page_size, high_water, .. } = self.database;
        if number < 2 || number >= *high_water {
            return Err(BoltError::Damaged("it refers to a page outside itself"));
        }
        let mut header = [0; PAGE_HEADER];
        file.read_exact_at(&mut header, number * page_size)?;
        let kind = u16::from_le_bytes([header[8], header[9]]);
        let pages = 1 + u64::from(u32_at(&header, 12).unwrap_or(0));
        if u64_at(&header, 0) != Some(number) || (kind != BRANCH && kind != LEAF) {
            return Err(BoltError::Damaged("a page is not what refers to it says"));
        }
        if number.checked_add(pages).is_none_or(|end| end > *high_water) || pages * page_size > MAX_PAGE {
            return Err(BoltError::Damaged("a page is longer than it can be"));
        }
        for page in number..number + pages {
            let (word, bit) = ((page / 64) as usize, 1 << (page % 64));
            if self.seen[word] & bit != 0 {
                return Err(BoltError::Damaged("a page is part of it twice"));
            }
            self.seen[word] |= bit;
        }
        let mut bytes = vec![0; (pages * page_size) as usize];
        file.read_exact_at(&mut bytes, number * page_size)?;
        Ok((bytes, kind))
    }
}

/// The elements of one page: `leaf` for those of a leaf, `child` for those of a branch.
fn elements<E: From<BoltError>>(
    page: &[u8],
    kind: u16,
    leaf: &mut Leaf<'_, E>,
    child: &mut dyn FnMut(u64) -> Result<(), E>,
) -> Result<(), E> {
    let beyond = || BoltError::Damaged("an element lies outside its page");
    let header = page.get(..PAGE_HEADER).ok_or_else(beyond)?;
    let count = usize::from(u16::from_le_bytes([header[10], header[11]]));
    // An inline page has no other way to say what it is.
    if u16::from_le_bytes([header[8], header[9]]) != kind {
        return Err(BoltError::Damaged("a page is not what refers to it says").into());
    }
    for index in 0..count {
        let at = PAGE_HEADER + index * ELEMENT;
        let element = page.get(at..at + ELEMENT).ok_or_else(beyond)?;
        let field = |offset| u32_at(element, offset).unwrap_or(0);
        if kind == BRANCH {
            child(u64_at(element, 8).unwrap_or(0))?;
            continue;
        }
        let (flags, position, key, value) = (field(0), field(4) as usize, field(8) as usize, field(12) as usize);
        // Three numbers below 2^32 and an offset below 2^26: no overflow in 64 bits.
        let start = at + position;
        let key_bytes = page.get(start..start + key).ok_or_else(beyond)?;
        let value_bytes = page.get(start + key..start + key + value).ok_or_else(beyond)?;
        leaf(flags, key_bytes, value_bytes)?;
    }
    Ok(())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_le_bytes(*chunk))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
#[path = "bbolt_tests.rs"]
mod tests;
