//! The file at its worst: cut, flipped, contested, left half-written.

use keystead_core::keyring::{Keyring, RecoveryRoot, TokenIdentity};
use keystead_core::record::{Authenticator, encode};

use super::*;

struct Fixed;

impl Authenticator for Fixed {
    fn tag(&self, message: &[u8]) -> [u8; 32] {
        use sha2::Digest;
        sha2::Sha256::digest([b"a key".as_slice(), message].concat()).into()
    }
}

fn record(revision: u64) -> Vec<u8> {
    let mut keyring = Keyring {
        revision,
        ..Keyring::empty(
            "test".parse().unwrap(),
            "node".parse().unwrap(),
            TokenIdentity { serial: "1".into(), label: "l".into() },
            RecoveryRoot::Declined,
        )
    };
    keyring.begin_rotation([1; 16], [2; 16], 3).unwrap();
    encode(&keyring, &Fixed)
}

/// The revision that is believed, if any.
fn believed(store: &Store) -> Option<u64> {
    store.load().ok()??.verify(&Fixed).ok().map(|keyring| keyring.revision)
}

#[test]
fn what_was_written_is_read_back_and_revisions_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    assert!(store.load().unwrap().is_none());
    store.replace(None, &record(1)).unwrap();
    store.replace(Some(1), &record(2)).unwrap();
    assert!(matches!(store.replace(Some(1), &record(3)), Err(StoreError::Conflict { expected: 1, found: 2 })));
    assert!(matches!(store.replace(None, &record(3)), Err(StoreError::Conflict { .. })));
    assert_eq!(believed(&store), Some(2));
}

#[test]
fn a_second_process_is_kept_out_until_the_first_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let first = Store::open(folder.path()).unwrap();
    assert!(matches!(Store::open(folder.path()), Err(StoreError::InUse(_))));
    drop(first);
    Store::open(folder.path()).unwrap();
}

#[test]
fn a_record_cut_or_flipped_anywhere_is_never_believed() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let whole = record(1);
    store.replace(None, &whole).unwrap();
    let path = folder.path().join(RECORD);
    for offset in 0..whole.len() {
        std::fs::write(&path, &whole[..offset]).unwrap();
        assert_eq!(believed(&store), None, "cut at {offset}");
        // Every bit of the document is the core's test; here it is the way through the file.
        let mut flipped = whole.clone();
        flipped[offset] ^= 1 << (offset % 8);
        std::fs::write(&path, &flipped).unwrap();
        assert_eq!(believed(&store), None, "flipped at {offset}");
    }
    std::fs::write(&path, [whole.as_slice(), b" "].concat()).unwrap();
    assert_eq!(believed(&store), None, "a byte more");
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(believed(&store), Some(1));
}

#[test]
fn what_a_power_cut_left_half_written_is_ignored_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    store.replace(None, &record(1)).unwrap();
    let next = record(2);
    for len in [0, 1, next.len() / 2, next.len()] {
        std::fs::write(folder.path().join(NEW_RECORD), &next[..len]).unwrap();
        assert_eq!(believed(&store), Some(1));
    }
    store.replace(Some(1), &next).unwrap();
    assert_eq!(believed(&store), Some(2));
    assert!(!folder.path().join(NEW_RECORD).exists());
}

#[test]
fn a_record_that_is_no_regular_size_is_refused_unread() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    File::create(folder.path().join(RECORD)).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(store.load(), Err(StoreError::Record(RecordError::Malformed(_)))));
}

#[test]
fn a_folder_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let error = Store::open(&folder.path().join("file/store")).unwrap_err();
    assert!(error.to_string().contains("file/store"), "{error}");
}

#[test]
fn links_in_the_folder_lead_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(elsewhere.path(), record(7)).unwrap();
    let store = Store::open(folder.path()).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), folder.path().join(NEW_RECORD)).unwrap();
    store.replace(None, &record(1)).unwrap();
    assert_eq!(std::fs::read(elsewhere.path()).unwrap(), record(7), "written through a link");
    std::fs::remove_file(folder.path().join(RECORD)).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), folder.path().join(RECORD)).unwrap();
    assert!(matches!(store.load(), Err(StoreError::Io { .. })), "read through a link");
}
