//! Databases built byte by byte, and each damage to them.

use std::io::Write;

use super::*;

const PAGE: usize = 512;

fn meta(root: u64, high_water: u64, transaction: u64) -> Vec<u8> {
    let mut meta = Vec::new();
    for number in [MAGIC, VERSION, PAGE as u32, 0] {
        meta.extend_from_slice(&number.to_le_bytes());
    }
    for number in [root, 0, 2, high_water, transaction] {
        meta.extend_from_slice(&number.to_le_bytes());
    }
    let sum = fnv1a(&meta);
    meta.extend_from_slice(&sum.to_le_bytes());
    let mut page = vec![0; PAGE_HEADER];
    page.extend_from_slice(&meta);
    page
}

fn header(number: u64, kind: u16, count: u16) -> Vec<u8> {
    let mut page = number.to_le_bytes().to_vec();
    page.extend_from_slice(&kind.to_le_bytes());
    page.extend_from_slice(&count.to_le_bytes());
    page.extend_from_slice(&0u32.to_le_bytes());
    page
}

fn leaf(number: u64, entries: &[(u32, &[u8], &[u8])]) -> Vec<u8> {
    let mut page = header(number, LEAF, entries.len() as u16);
    let mut data = Vec::new();
    for (index, (flags, key, value)) in entries.iter().enumerate() {
        let position = (entries.len() - index) * ELEMENT + data.len();
        for field in [*flags, position as u32, key.len() as u32, value.len() as u32] {
            page.extend_from_slice(&field.to_le_bytes());
        }
        data.extend_from_slice(key);
        data.extend_from_slice(value);
    }
    page.extend_from_slice(&data);
    page
}

fn branch(number: u64, children: &[u64]) -> Vec<u8> {
    let mut page = header(number, BRANCH, children.len() as u16);
    for child in children {
        page.extend_from_slice(&[0; 8]);
        page.extend_from_slice(&child.to_le_bytes());
    }
    page
}

fn bucket(root: u64) -> Vec<u8> {
    [root.to_le_bytes(), [0; 8]].concat()
}

/// Metas, a free list, the root with bucket `key`, a branch and two leaves.
fn pages() -> Vec<Vec<u8>> {
    vec![
        meta(3, 7, 1),
        meta(3, 7, 2),
        header(2, 0x10, 0),
        leaf(3, &[(BUCKET, b"key", &bucket(4)), (BUCKET, b"meta", &bucket(99))]),
        branch(4, &[5, 6]),
        leaf(5, &[(0, b"a", b"1"), (0, b"b", b"2")]),
        leaf(6, &[(0, b"c", b"3")]),
    ]
}

fn image(pages: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for page in pages {
        bytes.extend_from_slice(page);
        bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
    }
    bytes
}

fn read(bytes: &[u8]) -> Result<Option<String>, BoltError> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let database = Database::open(file, bytes.len() as u64)?;
    let mut text = String::new();
    let found = database.walk::<BoltError>(b"key", &mut |key, value| {
        text.push_str(&String::from_utf8_lossy(key));
        text.push_str(&String::from_utf8_lossy(value));
        Ok(())
    })?;
    Ok(found.then_some(text))
}

#[test]
fn keys_of_the_bucket_come_in_order() {
    assert_eq!(read(&image(&pages())).unwrap().as_deref(), Some("a1b2c3"));
}

#[test]
fn inline_bucket_is_read_and_a_missing_one_is_told() {
    let mut all = pages();
    let inline = [bucket(0), leaf(0, &[(0, b"x", b"9")])].concat();
    all[3] = leaf(3, &[(BUCKET, b"key", &inline)]);
    assert_eq!(read(&image(&all)).unwrap().as_deref(), Some("x9"));
    all[3] = leaf(3, &[(BUCKET, b"other", &inline)]);
    assert_eq!(read(&image(&all)).unwrap(), None);
}

#[test]
fn torn_meta_page_is_made_up_for_by_the_other() {
    for torn in [0, 1] {
        let mut all = pages();
        all[torn][PAGE_HEADER + 20] ^= 1;
        assert_eq!(read(&image(&all)).unwrap().as_deref(), Some("a1b2c3"), "meta {torn}");
    }
    let mut all = pages();
    all[0][PAGE_HEADER + 20] ^= 1;
    all[1][PAGE_HEADER + 20] ^= 1;
    assert!(matches!(read(&image(&all)), Err(BoltError::NoMeta)));
}

#[test]
fn every_truncation_is_refused() {
    let whole = image(&pages());
    for len in 0..whole.len() {
        assert!(read(&whole[..len]).is_err(), "{len} bytes were read");
    }
}

#[test]
fn cycles_and_shared_pages_are_refused() {
    for children in [vec![4, 5], vec![5, 5], vec![3], vec![5, 6, 2], vec![0], vec![1], vec![7], vec![u64::MAX]] {
        let mut all = pages();
        all[4] = branch(4, &children);
        assert!(matches!(read(&image(&all)), Err(BoltError::Damaged(_))), "{children:?}");
    }
}

#[test]
fn huge_lengths_are_refused() {
    for offset in [10, 12, 16 + 4, 16 + 8, 16 + 12] {
        let mut all = pages();
        all[5][offset..offset + 2].copy_from_slice(&[0xff; 2]);
        all[5][offset + 2..offset + 4].copy_from_slice(&[0xff; 2]);
        assert!(read(&image(&all)).is_err(), "offset {offset}");
    }
    let mut all = pages();
    all[0] = meta(3, u64::MAX, 9);
    assert!(read(&image(&all)).is_err());
}

#[test]
fn no_flipped_byte_makes_the_reader_loop_or_panic() {
    let whole = image(&pages());
    for index in 0..whole.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = whole.clone();
            damaged[index] ^= flip;
            let _ = read(&damaged);
        }
    }
}
