//! Pages of this process: those that hold keys are locked and left out of core dumps, those of finished work given back.
//!
//! One of the places where `unsafe` is allowed (docs/adr/0004-unsafe-code.md): both take an address.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use keystead_core::Kek;
use keystead_core::envelope::EnvelopeKey;
use rustix::mm::{Advice, madvise, mlock};
use rustix::param::page_size;

/// Whether any page could not be locked; `status` shows it.
static ALL_LOCKED: AtomicBool = AtomicBool::new(true);

/// Locks the pages of a KEK and of the key schedule made from it. They stay locked after the keys are wiped: a page may
/// hold several keys, and there are few.
///
/// Keys serve even where locking is refused (`RLIMIT_MEMLOCK`): swap is a smaller evil than a cluster without Secrets.
pub fn lock_keys(kek: &Kek, envelope: &EnvelopeKey) {
    let (schedule, len) = envelope.memory();
    for (start, len) in [(kek.expose().as_ptr(), Kek::LEN), (schedule, len)] {
        if let Err(error) = lock_pages(start, len)
            && ALL_LOCKED.swap(false, Ordering::Relaxed)
        {
            tracing::warn!(%error, "key pages could not be locked into memory; raise LimitMEMLOCK");
        }
    }
}

/// True while every key page is locked.
pub fn keys_locked() -> bool {
    ALL_LOCKED.load(Ordering::Relaxed)
}

/// Unmaps the code and the constants of this program and its libraries, which come back page by page as they are used.
/// Most of it was read for the command line and the configuration and would stay resident for ever in processes that then
/// do next to nothing.
///
/// Call it where a process comes to rest. One that can no longer read `/proc` gives back what it found when it could: it
/// must not have unloaded a library since.
pub fn release_startup_code() {
    static FOUND: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Ok(smaps) = std::fs::read_to_string("/proc/self/smaps") {
        *found = rereadable(&smaps);
    }
    for &(start, len) in &*found {
        let address = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: the range is mapped from a file, never written to, and read back from it on the next access.
        let _ = unsafe { madvise(address, len, Advice::LinuxDontNeed) };
    }
}

/// Start and length of the mappings that hold a file's own bytes and cannot be written to. What the loader has relocated and
/// then protected is anonymous memory by now: given back, it would be lost.
fn rereadable(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        if let Some(range) = mapping(line) {
            candidate = range;
        } else if let Some(anonymous) = line.strip_prefix("Anonymous:")
            && anonymous.trim() == "0 kB"
        {
            found.extend(candidate.take());
        }
    }
    found
}

/// `None`: no mapping's first line. `Some(None)`: of a mapping that must stay.
fn mapping(line: &str) -> Option<Option<(usize, usize)>> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let permissions = words.next()?;
    let named = words.nth(3).is_some_and(|name| name.starts_with('/'));
    let fixed = matches!(permissions, "r--p" | "r-xp");
    Some((fixed && named).then(|| (start, end.saturating_sub(start))))
}

fn lock_pages(start: *const u8, len: usize) -> rustix::io::Result<()> {
    let page = page_size();
    let first = start.addr() / page * page;
    let len = (start.addr() + len).next_multiple_of(page) - first;
    let first = start.with_addr(first).cast_mut().cast();
    // SAFETY: the range covers whole pages of a live allocation of this process; neither call changes their content.
    unsafe {
        mlock(first, len)?;
        madvise(first, len, Advice::LinuxDontDump)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_file_still_holds_is_given_back() {
        let smaps = "\
5000-6000 r--p 00000000 fe:00 12 /usr/bin/keystead
Rss:                   4 kB
Anonymous:             0 kB
6000-8000 r-xp 00001000 fe:00 12 /usr/bin/keystead
Anonymous:             0 kB
8000-9000 r--p 00003000 fe:00 12 /usr/bin/keystead
Anonymous:             4 kB
9000-a000 rw-p 00004000 fe:00 12 /usr/bin/keystead
Anonymous:             0 kB
a000-b000 rw-p 00000000 00:00 0 [heap]
Anonymous:             0 kB
b000-c000 r-xp 00000000 00:00 0 [vdso]
Anonymous:             0 kB
c000-d000 r--p 00000000 00:00 0
Anonymous:             0 kB
";
        assert_eq!(rereadable(smaps), [(0x5000, 0x1000), (0x6000, 0x2000)]);
    }

    #[test]
    fn a_process_goes_on_after_giving_back_its_code() {
        static CONSTANT: &[&str] = &["still", "here"];
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("this process's mappings");
        assert!(rereadable(&maps).len() > 4, "{maps}");
        release_startup_code();
        assert_eq!(std::hint::black_box(CONSTANT).join(" "), "still here");
    }
}
