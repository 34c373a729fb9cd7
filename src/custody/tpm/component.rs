//! What was measured, in words: the boot component behind an event of the firmware's log. Hostile input; every word is printable.
//!
//! Source: TCG PC Client Platform Firmware Profile 1.05, section 10; UEFI 2.10, section 10 (device paths).

use super::event_log::Reader;

/// One printable line.
pub(super) fn describe(kind: u32, data: &[u8]) -> String {
    let named = |what: &str, name: String| if name.is_empty() { what.to_owned() } else { format!("{what} {name}") };
    match kind {
        0x1 | 0x13 => named("firmware code", word(data)),
        0x4 if data == [1, 0, 0, 0] => "separator after an error".into(),
        0x4 => "separator".into(),
        0x5 => format!("action {}", text(data)),
        0x6 => tagged(data).unwrap_or_else(|| "tagged".into()),
        0x7 => named("firmware root of trust", word(data)),
        0x8 => named("firmware version", word(data)),
        0x9 => named("CPU microcode", word(data)),
        0xa | 0xb => named("platform configuration", word(data)),
        0xc | 0xd => format!("boot loader: {}", text(data)),
        0xf..=0x11 => named("platform", word(data)),
        0x8000_0001 => format!("setting {}", variable(data)),
        0x8000_0002 | 0x8000_000c => format!("boot setting {}", variable(data)),
        0x8000_0003 => format!("boot loader or kernel{}", image(data)),
        0x8000_0004 | 0x8000_0005 => format!("driver{}", image(data)),
        0x8000_0006 | 0x8000_000d => "partition table".into(),
        0x8000_0007 => format!("firmware: {}", text(data)),
        0x8000_0008 => "firmware image".into(),
        0x8000_000a => named("firmware image", sized(data)),
        0x8000_0009 => "tables handed over by the firmware".into(),
        0x8000_000b => named("tables handed over by the firmware:", sized(data)),
        0x8000_0010 => "firmware that the CPU measured before it ran".into(),
        0x8000_00e0 => format!("key that vouched for what was started ({})", variable(data)),
        0x8000_00e1 | 0x8000_00e2 => "device with firmware of its own".into(),
        other => format!("event of type 0x{other:x}"),
    }
}

/// Whether a text may be shown: nothing in it moves the cursor, or turns around what follows.
pub(super) fn is_printable(text: &str) -> bool {
    !text.chars().any(unprintable)
}

fn unprintable(c: char) -> bool {
    let direction_or_width = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}');
    c.is_control() || direction_or_width || c == '\u{feff}'
}

/// Text as programs measure it: UTF-8 from GRUB, UTF-16 from systemd and the kernel's EFI stub.
fn text(data: &[u8]) -> String {
    let data = &data[..data.len().min(1024)];
    let wide = data.len() >= 2 && data.len().is_multiple_of(2) && data.chunks_exact(2).all(|unit| unit[1] == 0);
    if wide { utf16(data) } else { printable(&String::from_utf8_lossy(data)) }
}

/// As [`text`], but nothing if it does not look like one.
fn word(data: &[u8]) -> String {
    let text = text(data);
    if text.contains('\u{fffd}') || !text.contains(|c: char| c.is_ascii_alphanumeric()) || data.len() > 256 {
        return String::new();
    }
    text
}

fn utf16(data: &[u8]) -> String {
    let units: Vec<u16> = data.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
    printable(&String::from_utf16_lossy(&units))
}

fn printable(text: &str) -> String {
    let clean: String = text.chars().map(|c| if unprintable(c) { ' ' } else { c }).collect();
    clean.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect()
}

/// A byte of length, then that many characters.
fn sized(data: &[u8]) -> String {
    let name = data.split_first().and_then(|(len, rest)| rest.get(..usize::from(*len)));
    name.map(word).unwrap_or_default()
}

/// The name in `UEFI_VARIABLE_DATA`.
fn variable(data: &[u8]) -> String {
    let name = || {
        // After the vendor's GUID.
        let mut reader = Reader { bytes: data, at: 16 };
        let len = reader.u64_len()?;
        reader.take(8)?;
        Some(utf16(reader.take(len.checked_mul(2).filter(|len| *len <= 512)?)?))
    };
    name().filter(|name| !name.is_empty()).unwrap_or_else(|| "without a name".into())
}

/// `TCG_PCClientTaggedEvent`; the kernel's EFI stub measures initrd and command line so.
fn tagged(data: &[u8]) -> Option<String> {
    let mut reader = Reader { bytes: data, at: 0 };
    let (id, len) = (reader.u32()?, reader.u32()? as usize);
    let word = word(reader.take(len)?);
    Some(if word.is_empty() { format!("tagged 0x{id:x}") } else { format!("tagged 0x{id:x}: {word}") })
}

/// Where a started image came from, by the device path of its `UEFI_IMAGE_LOAD_EVENT`.
fn image(data: &[u8]) -> String {
    let path = || {
        // Address, length and link address of the image.
        let mut reader = Reader { bytes: data, at: 24 };
        let len = reader.u64_len()?;
        file_of(reader.take(len)?)
    };
    path().map_or_else(|| ", of no file".into(), |path| format!(" {path}"))
}

/// The file's path on its partition, or the GUID of a file in the firmware's own volumes.
fn file_of(device_path: &[u8]) -> Option<String> {
    let mut reader = Reader { bytes: device_path, at: 0 };
    let mut found = None;
    while let Some(node) = reader.take(4) {
        let rest = reader.take(usize::from(u16::from_le_bytes([node[2], node[3]])).checked_sub(4)?)?;
        match (node[0], node[1]) {
            (4, 4) => found = Some(utf16(rest)).filter(|path| !path.is_empty()),
            (4, 6) => found = guid(rest).map(|guid| format!("in the firmware, {guid}")),
            (0x7f, _) => break,
            _ => {}
        }
    }
    found
}

fn guid(bytes: &[u8]) -> Option<String> {
    let bytes: &[u8; 16] = bytes.try_into().ok()?;
    let hex = |range: &mut dyn Iterator<Item = usize>| range.map(|at| format!("{:02x}", bytes[at])).collect::<String>();
    // The first three fields are little-endian numbers.
    let (one, two, three) = (hex(&mut (0..4).rev()), hex(&mut (4..6).rev()), hex(&mut (6..8).rev()));
    Some(format!("{one}-{two}-{three}-{}-{}", hex(&mut (8..10)), hex(&mut (10..16))))
}
