//! Pages of this process: those that hold keys are locked and left out of core dumps, those of finished work given back.
//!
//! One of the places where `unsafe` is allowed (docs/adr/0004-unsafe-code.md): both take an address.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

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

/// Unmaps the code of this program and its libraries, which comes back page by page as it runs. Most of it was read for
/// the command line and the configuration and would stay resident for ever in processes that then do next to nothing.
pub fn release_startup_code() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    for line in maps.lines().filter(|line| line.contains(" r-xp ") && line.contains(" /")) {
        let Some((start, end)) = line.split(' ').next().and_then(|range| range.split_once('-')) else { continue };
        let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16)) else { continue };
        let address = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: the range is mapped from a file, never written to, and read back from it on the next access.
        let _ = unsafe { madvise(address, end - start, Advice::LinuxDontNeed) };
    }
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
