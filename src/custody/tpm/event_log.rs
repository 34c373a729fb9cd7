//! The firmware's event log: what was measured into which PCR. Hostile input; nothing depends on it but words for people.
//!
//! Source: TCG PC Client Platform Firmware Profile 1.05, sections 9 and 10.

use sha2::{Digest, Sha256};

use super::approval::Measured;
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
            let (kind, measured, data) = event(&mut reader, &algorithms).ok_or(EventLogError::Damaged(begin))?;
            if kind == NO_ACTION {
                if let Some([locality, ..]) = data.strip_prefix(b"StartupLocality\0") {
                    log.startup_locality = *locality;
                }
            } else {
                log.events.push(measured);
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

fn event<'a>(reader: &mut Reader<'a>, algorithms: &[(u16, usize)]) -> Option<(u32, Measured, &'a [u8])> {
    let (pcr, kind, count) = (reader.u32()?, reader.u32()?, reader.u32()?);
    if count > MAX_ALGORITHMS {
        return None;
    }
    let mut digest = [0; 32];
    for _ in 0..count {
        let algorithm = reader.u16()?;
        let (_, len) = algorithms.iter().find(|(known, _)| *known == algorithm)?;
        let bytes = reader.take(*len)?;
        if algorithm == ALG_SHA256 {
            digest = bytes.try_into().ok()?;
        }
    }
    let len = reader.u32()? as usize;
    let data = reader.take(len)?;
    let what = describe(kind, data);
    Some((kind, Measured { pcr: u8::try_from(pcr).ok()?, digest, what }, data))
}

/// One printable line.
fn describe(kind: u32, data: &[u8]) -> String {
    let text = || printable(data);
    match kind {
        0x4 => "separator".into(),
        0x5 => format!("action {}", text()),
        0x8 => "firmware version".into(),
        0x7 => "firmware root of trust".into(),
        0xd => format!("boot loader: {}", text()),
        0x8000_0001 => format!("setting {}", variable(data)),
        0x8000_0002 | 0x8000_000c => format!("boot setting {}", variable(data)),
        0x8000_0003 => "boot loader or kernel (EFI application)".into(),
        0x8000_0004 | 0x8000_0005 => "driver".into(),
        0x8000_0006 => "partition table".into(),
        0x8000_0007 => format!("firmware: {}", text()),
        0x8000_0008 | 0x8000_000a => "firmware image".into(),
        0x8000_0009 | 0x8000_000b => "tables handed over by the firmware".into(),
        0x8000_00e0 => format!("key that vouched for what was started ({})", variable(data)),
        other => format!("event of type 0x{other:x}"),
    }
}

/// The name in `UEFI_VARIABLE_DATA`.
fn variable(data: &[u8]) -> String {
    let name = || {
        let mut reader = Reader { bytes: data, at: 16 };
        let len = usize::try_from(u64::from_le_bytes(reader.take(8)?.try_into().ok()?)).ok()?;
        reader.take(8)?;
        let units: Vec<u16> = reader
            .take(len.checked_mul(2).filter(|len| *len <= 512)?)?
            .chunks_exact(2)
            .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
            .collect();
        Some(printable(String::from_utf16_lossy(&units).as_bytes()))
    };
    name().unwrap_or_else(|| "without a name".into())
}

fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]);
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    clean.split_whitespace().collect::<Vec<_>>().join(" ")
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(len)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4).map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(events: &[(u32, u32, [u8; 32], &[u8])]) -> Vec<u8> {
        let mut spec = b"Spec ID Event03\0".to_vec();
        spec.extend([0, 0, 0, 0, 0, 2, 0, 2, 2, 0, 0, 0]);
        spec.extend([4, 0, 20, 0, 0x0b, 0, 32, 0, 0]);
        let mut bytes = vec![0; 4];
        bytes.extend([3, 0, 0, 0]);
        bytes.extend([0; 20]);
        bytes.extend((spec.len() as u32).to_le_bytes());
        bytes.extend(spec);
        for (pcr, kind, digest, data) in events {
            bytes.extend(pcr.to_le_bytes());
            bytes.extend(kind.to_le_bytes());
            bytes.extend(2_u32.to_le_bytes());
            bytes.extend([4, 0]);
            bytes.extend([0xee; 20]);
            bytes.extend([0x0b, 0]);
            bytes.extend(digest);
            bytes.extend((data.len() as u32).to_le_bytes());
            bytes.extend(*data);
        }
        bytes
    }

    #[test]
    fn events_are_read_and_replayed_in_order() {
        let one = Sha256::new().chain_update([0; 32]).chain_update([1; 32]).finalize();
        let two: [u8; 32] = Sha256::new().chain_update(one).chain_update([2; 32]).finalize().into();
        let bytes =
            log(&[(4, 0xd, [1; 32], b"grub\x1b[31m menu"), (7, 4, [9; 32], &[0; 4]), (4, 0x8000_0003, [2; 32], b"")]);
        let log = EventLog::parse(&bytes).unwrap();
        assert_eq!(log.events.len(), 3);
        assert_eq!(log.events[0].what, "boot loader: grub [31m menu");
        assert_eq!(log.replay(&[4]), [(4, two)]);
        assert_eq!(log.replay(&[5]), [(5, [0; 32])]);
    }

    #[test]
    fn startup_locality_is_where_pcr_0_begins() {
        let log = EventLog::parse(&log(&[(0, 3, [0; 32], b"StartupLocality\0\x03")])).unwrap();
        let mut value = [0; 32];
        value[31] = 3;
        assert_eq!((log.replay(&[0]), log.events.len()), (vec![(0, value)], 0));
    }

    #[test]
    fn damaged_log_is_refused_without_a_panic() {
        let name: Vec<u8> = "SecureBoot".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let data = [&[7; 16][..], &10_u64.to_le_bytes(), &1_u64.to_le_bytes(), &name, &[1]].concat();
        let bytes = log(&[(7, 0x8000_0001, [1; 32], &data)]);
        assert_eq!(EventLog::parse(&bytes).unwrap().events[0].what, "setting SecureBoot");
        for len in 0..bytes.len() {
            // A log may end after its header: nothing was measured yet.
            assert!(
                EventLog::parse(&bytes[..len]).is_ok_and(|log| log.events.is_empty())
                    || EventLog::parse(&bytes[..len]).is_err()
            );
        }
        for index in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 0xff;
            let _ = EventLog::parse(&damaged);
        }
    }
}
