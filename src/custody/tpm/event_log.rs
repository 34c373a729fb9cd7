//! The firmware's event log: what was measured into which PCR. Hostile input; nothing depends on it but words for people.
//!
//! Source: TCG PC Client Platform Firmware Profile 1.05, sections 9 and 10.

use sha2::{Digest, Sha256};

use super::approval::Measured;
use super::component;
use super::pcr::PcrValues;

/// Where Linux shows it.
pub const PATH: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";
/// A megabyte is a long log.
pub const MAX_LEN: usize = 16 << 20;
const MAX_ALGORITHMS: u32 = 16;
const ALG_SHA256: u16 = 0x000b;
const NO_ACTION: u32 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EventLogError {
    #[error("it is no event log of a TPM 2.0")]
    NoLog,
    #[error("it is damaged at byte {0}")]
    Damaged(usize),
    #[error("it has no SHA-256 digests")]
    NoSha256,
}

/// Every event that was measured, in order, and the PCR that the firmware began with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventLog {
    pub events: Vec<Measured>,
    startup_locality: u8,
}

impl EventLog {
    pub fn parse(bytes: &[u8]) -> Result<Self, EventLogError> {
        let mut reader = Reader { bytes, at: 0 };
        let algorithms = header(&mut reader).ok_or(EventLogError::NoLog)?;
        if !algorithms.iter().any(|(algorithm, _)| *algorithm == ALG_SHA256) {
            return Err(EventLogError::NoSha256);
        }
        let mut log = Self { events: Vec::new(), startup_locality: 0 };
        while reader.at < bytes.len() {
            let begin = reader.at;
            match event(&mut reader, &algorithms).ok_or(EventLogError::Damaged(begin))? {
                Event::StartupLocality(locality) => log.startup_locality = locality,
                Event::NoAction => {}
                Event::Measured(measured) => log.events.push(measured),
            }
        }
        Ok(log)
    }

    /// The values that replaying gives `pcrs`.
    pub fn replay(&self, pcrs: &[u8]) -> PcrValues {
        let replayed = pcrs.iter().map(|&pcr| {
            let mut value = [0; 32];
            if pcr == 0 {
                value[31] = self.startup_locality;
            }
            for event in self.events.iter().filter(|event| event.pcr == pcr) {
                value = Sha256::new().chain_update(value).chain_update(event.digest).finalize().into();
            }
            (pcr, value)
        });
        replayed.collect()
    }
}

/// Algorithms with the lengths of their digests.
fn header(reader: &mut Reader<'_>) -> Option<Vec<(u16, usize)>> {
    // An event of the old format: PCR, type, SHA-1 digest, length.
    reader.take(4 + 4 + 20)?;
    let len = reader.u32()? as usize;
    let mut data = Reader { bytes: reader.take(len)?, at: 0 };
    if data.take(16)? != b"Spec ID Event03\0" {
        return None;
    }
    // Platform class, version, errata, size of a native integer.
    data.take(8)?;
    let count = data.u32()?;
    if count == 0 || count > MAX_ALGORITHMS {
        return None;
    }
    (0..count).map(|_| Some((data.u16()?, usize::from(data.u16()?)))).collect()
}

enum Event {
    Measured(Measured),
    /// The locality that the TPM was started from: PCR 0 begins with it.
    StartupLocality(u8),
    /// Said, not measured; often of no PCR at all (0xffffffff).
    NoAction,
}

fn event(reader: &mut Reader<'_>, algorithms: &[(u16, usize)]) -> Option<Event> {
    let (pcr, kind, count) = (reader.u32()?, reader.u32()?, reader.u32()?);
    if count > MAX_ALGORITHMS {
        return None;
    }
    let mut sha256 = None;
    for _ in 0..count {
        let algorithm = reader.u16()?;
        let (_, len) = algorithms.iter().find(|(known, _)| *known == algorithm)?;
        let bytes = reader.take(*len)?;
        if algorithm == ALG_SHA256 && sha256.replace(bytes.try_into().ok()?).is_some() {
            return None;
        }
    }
    let len = reader.u32()? as usize;
    let data = reader.take(len)?;
    if kind == NO_ACTION {
        let locality = data.strip_prefix(b"StartupLocality\0").and_then(|rest| rest.first());
        return Some(locality.map_or(Event::NoAction, |&locality| Event::StartupLocality(locality)));
    }
    // Without its digest what was measured cannot be replayed.
    let (pcr, digest) = (u8::try_from(pcr).ok()?, sha256?);
    Some(Event::Measured(Measured { pcr, digest, what: component::describe(kind, data) }))
}

/// Little-endian, as everything that firmware writes.
pub(super) struct Reader<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(len)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    /// A length of 64 bits; one that this machine could not have in memory is none.
    pub(super) fn u64_len(&mut self) -> Option<usize> {
        self.take(8).and_then(|bytes| usize::try_from(u64::from_le_bytes(bytes.try_into().ok()?)).ok())
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take(4).map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::custody::tpm::tcg_log::{Log, digest, image, tagged, utf16, variable};
    use proptest::prelude::*;

    fn extended(values: &[[u8; 32]]) -> [u8; 32] {
        values
            .iter()
            .fold([0; 32], |value, next| Sha256::new().chain_update(value).chain_update(next).finalize().into())
    }

    fn whats(log: &Log) -> Vec<String> {
        EventLog::parse(&log.bytes()).unwrap().events.into_iter().map(|event| event.what).collect()
    }

    #[test]
    fn events_are_read_and_replayed_in_order_whatever_other_banks_there_are() {
        for banks in [&[0x0b][..], &[4, 0x0b], &[4, 0x0b, 0x0c], &[0x0c, 0x0b, 0x0d, 4]] {
            let mut log = Log::new(banks);
            log.event(4, 0xd, b"grub\x1b[31m menu").event(7, 4, &[0; 4]).event(4, 0x8000_0003, b"");
            let read = EventLog::parse(&log.bytes()).unwrap();
            assert_eq!(read.events.len(), 3);
            assert_eq!(read.events[0].what, "boot loader: grub [31m menu");
            assert_eq!(read.replay(&[4]), [(4, extended(&[digest(b"grub\x1b[31m menu"), digest(b"")]))]);
            assert_eq!(read.replay(&[5]), [(5, [0; 32])]);
        }
    }

    #[test]
    fn startup_locality_is_where_pcr_0_begins_and_other_words_change_nothing() {
        let mut log = Log::new(&[4, 0x0b]);
        log.event(0, 3, b"StartupLocality\0\x03").event(u32::MAX, 3, b"SP800-155 Event\0more");
        let read = EventLog::parse(&log.bytes()).unwrap();
        let mut value = [0; 32];
        value[31] = 3;
        assert_eq!((read.replay(&[0]), read.events.len()), (vec![(0, value)], 0));
    }

    #[test]
    fn what_was_started_is_told_apart_by_its_path() {
        let mut log = Log::new(&[0x0b]);
        log.event(4, 0x8000_0003, &image(r"\EFI\debian\shimx64.efi"))
            .event(4, 0x8000_0003, &image(r"\EFI\debian\grubx64.efi"))
            .event(4, 0x8000_0003, &image(""))
            .event(2, 0x8000_0004, b"too short to be one")
            .event(7, 0x8000_0001, &variable("SecureBoot", &[1]))
            .event(12, 0xd, &utf16("console=ttyS0"))
            .event(9, 0x6, &tagged(0x8f3b_22ec, b"Linux initrd"))
            .event(0, 0x8, &utf16("F2x 1.7"))
            .event(0, 0x8000_000a, b"\x04BIOS\0\0\0\0")
            .event(4, 0x8000_0007, b"Calling EFI Application from Boot Option")
            .event(0, 0x1, b"POST CODE")
            .event(0, 0x1, &[0, 1, 2, 3, 0xff, 0xfe])
            .event(3, 0x4, &[1, 0, 0, 0])
            .event(3, 0x777, b"")
            .event(8, 0xd, "kernel \u{202e}elbisivni".as_bytes());
        let expected = [
            r"boot loader or kernel \EFI\debian\shimx64.efi",
            r"boot loader or kernel \EFI\debian\grubx64.efi",
            "boot loader or kernel, of no file",
            "driver, of no file",
            "setting SecureBoot",
            "boot loader: console=ttyS0",
            "tagged 0x8f3b22ec: Linux initrd",
            "firmware version F2x 1.7",
            "firmware image BIOS",
            "firmware: Calling EFI Application from Boot Option",
            "firmware code POST CODE",
            "firmware code",
            "separator after an error",
            "event of type 0x777",
            "boot loader: kernel elbisivni",
        ];
        assert_eq!(whats(&log), expected);
    }

    #[test]
    fn event_without_its_sha256_digest_or_with_two_is_refused() {
        let begin = Log::new(&[4, 0x0b]).bytes().len();
        let head = [4_u32, 0xd].map(u32::to_le_bytes).concat();
        for digests in [
            [&1_u32.to_le_bytes()[..], &[4, 0], &[7; 20]].concat(),
            [&2_u32.to_le_bytes()[..], &[0x0b, 0], &[7; 32], &[0x0b, 0], &[8; 32]].concat(),
            [&0_u32.to_le_bytes()[..]].concat(),
            [&17_u32.to_le_bytes()[..], &[0x0b, 0], &[7; 32]].concat(),
            [&1_u32.to_le_bytes()[..], &[0x0c, 0], &[7; 48]].concat(),
        ] {
            let bytes = [Log::new(&[4, 0x0b]).bytes(), head.clone(), digests, vec![0; 4]].concat();
            assert_eq!(EventLog::parse(&bytes), Err(EventLogError::Damaged(begin)));
        }
    }

    #[test]
    fn log_that_is_cut_off_or_has_lengths_of_gigabytes_is_refused_without_a_panic() {
        let bytes = Log::of_a_boot().bytes();
        let whole = EventLog::parse(&bytes).unwrap();
        assert!(whole.events.len() > 20);
        for len in 0..bytes.len() {
            // It may end after any event, and then holds the events so far.
            match EventLog::parse(&bytes[..len]) {
                Ok(part) => assert!(whole.events.starts_with(&part.events)),
                Err(EventLogError::NoLog) => assert!(len < 100),
                Err(EventLogError::Damaged(at)) => assert!(at < len),
                Err(EventLogError::NoSha256) => panic!("{len}"),
            }
        }
        for index in 0..bytes.len() {
            for damage in [[0xff; 4], [0xff, 0xff, 0xff, 0x7f], [0, 0, 0, 0x80], [0; 4]] {
                let mut damaged = bytes.clone();
                let end = bytes.len().min(index + 4);
                damaged[index..end].copy_from_slice(&damage[..end - index]);
                if let Ok(log) = EventLog::parse(&damaged) {
                    log.replay(&[0, 4, 7]);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic_or_speak_in_control_characters(
            bytes in prop::collection::vec(any::<u8>(), 0..600), kind in any::<u32>(), at in 0usize..2000,
        ) {
            let _ = EventLog::parse(&bytes);
            let mut log = Log::of_a_boot();
            log.event(4, kind, &bytes);
            for known in [0x1, 0x6, 0x8, 0xd, 0x8000_0001, 0x8000_0003, 0x8000_000a, 0x8000_00e0] {
                log.event(4, known, &bytes);
            }
            for event in EventLog::parse(&log.bytes()).unwrap().events {
                prop_assert!(component::is_printable(&event.what), "{:?}", event.what);
            }
            let mut damaged = log.bytes();
            let at = at.min(damaged.len());
            damaged.splice(at..(at + 4).min(damaged.len()), bytes);
            let _ = EventLog::parse(&damaged);
        }
    }
}
