//! Event logs as UEFI firmware writes them: TCG PC Client Platform Firmware Profile 1.05, sections 9 and 10.

use sha2::{Digest, Sha256, Sha384, Sha512};

/// A log that grows by events.
#[derive(Clone)]
pub struct Log {
    bytes: Vec<u8>,
    /// Hash algorithms of the TPM's banks, by their numbers.
    banks: Vec<u16>,
    pub events: Vec<Event>,
}

#[derive(Clone)]
pub struct Event {
    pub pcr: u32,
    pub sha256: [u8; 32],
}

pub fn digest(data: &[u8]) -> [u8; 32] {
    Sha256::digest(data).into()
}

/// No SHA-1 here: what stands in its bank is nobody's digest.
fn in_bank(bank: u16, data: &[u8]) -> Vec<u8> {
    match bank {
        0x04 => Sha256::digest(data)[..20].to_vec(),
        0x0b => Sha256::digest(data).to_vec(),
        0x0c => Sha384::digest(data).to_vec(),
        0x0d => Sha512::digest(data).to_vec(),
        other => panic!("no bank {other}"),
    }
}

impl Log {
    /// With the event that every log begins with: which banks there are, in the format of SHA-1's time.
    pub fn new(banks: &[u16]) -> Self {
        let mut spec = b"Spec ID Event03\0".to_vec();
        // Platform class; version 2.0, errata 105; native integers of eight bytes.
        spec.extend([0, 0, 0, 0, 0, 2, 105, 2]);
        spec.extend((banks.len() as u32).to_le_bytes());
        for bank in banks {
            spec.extend(bank.to_le_bytes());
            spec.extend((in_bank(*bank, b"").len() as u16).to_le_bytes());
        }
        spec.push(0);
        let mut bytes = [0_u32, 3].map(u32::to_le_bytes).concat();
        bytes.extend([0; 20]);
        bytes.extend((spec.len() as u32).to_le_bytes());
        bytes.extend(spec);
        Self { bytes, banks: banks.to_vec(), events: Vec::new() }
    }

    /// Measured as most things are: by the digest of what the log shows.
    pub fn event(&mut self, pcr: u32, kind: u32, data: &[u8]) -> &mut Self {
        self.measured(pcr, kind, data, data)
    }

    /// Measured by the digest of something else, as programs are.
    pub fn measured(&mut self, pcr: u32, kind: u32, thing: &[u8], data: &[u8]) -> &mut Self {
        self.bytes.extend([pcr, kind, self.banks.len() as u32].map(u32::to_le_bytes).concat());
        for bank in &self.banks {
            self.bytes.extend(bank.to_le_bytes());
            // What was not measured has no digest.
            let digest = in_bank(*bank, thing);
            self.bytes.extend(if kind == 3 { vec![0; digest.len()] } else { digest });
        }
        self.bytes.extend((data.len() as u32).to_le_bytes());
        self.bytes.extend(data);
        if kind != 3 {
            self.events.push(Event { pcr, sha256: digest(thing) });
        }
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    /// Every kind of event that a UEFI machine with Secure Boot, shim and GRUB logs, with three banks.
    pub fn of_a_boot() -> Self {
        Self::of_boot_with("grub 2.06")
    }

    /// The same with another boot loader.
    pub fn of_boot_with(grub: &str) -> Self {
        let mut log = Self::new(&[0x04, 0x0b, 0x0c]);
        log.event(0, 0x8, &utf16("F2x 1.7"));
        log.measured(0, 0x8000_0008, b"firmware volume", &[1; 16]);
        log.measured(0, 0x8000_000a, b"another volume", &[&[4][..], b"BIOS", &[2; 16]].concat());
        log.event(0, 0x1, b"ACPI DATA");
        for (name, value) in
            [("SecureBoot", &[1][..]), ("PK", &[2; 90]), ("KEK", &[3; 90]), ("db", &[4; 90]), ("dbx", &[5; 200])]
        {
            log.event(7, 0x8000_0001, &variable(name, value));
        }
        log.event(7, 4, &[0; 4]);
        log.measured(1, 0x8000_0002, &[0, 0], &variable("BootOrder", &[0, 0]));
        log.measured(1, 0x8000_0009, b"smbios", &[0; 32]);
        log.measured(2, 0x8000_0004, b"option rom", &image_at(&node(1, 1, &[0, 0x1c])));
        log.event(4, 0x8000_0007, b"Calling EFI Application from Boot Option");
        for pcr in 0..7 {
            log.event(pcr, 4, &[0; 4]);
        }
        log.measured(5, 0x8000_0006, b"table", &[0x45; 100]);
        log.event(7, 0x8000_00e0, &variable("db", &[6; 90]));
        log.measured(4, 0x8000_0003, b"shim 15.7", &image(r"\EFI\debian\shimx64.efi"));
        log.event(7, 0x8000_00e0, &variable("Shim", &[7; 90]));
        log.measured(4, 0x8000_0003, grub.as_bytes(), &image(r"\EFI\debian\grubx64.efi"));
        log.measured(8, 0xd, b"linux /vmlinuz root=/dev/sda1", b"grub_cmd: linux /vmlinuz root=/dev/sda1\0");
        log.measured(9, 0xd, b"kernel", b"/vmlinuz\0");
        log.measured(4, 0x8000_0003, b"kernel", &image(""));
        log.measured(9, 0x6, b"initrd", &tagged(0x8f3b_22ec, b"Linux initrd"));
        log.measured(12, 0xd, b"console=ttyS0", &utf16("console=ttyS0"));
        log.event(5, 0x8000_0007, b"Exit Boot Services Invocation");
        log
    }
}

pub fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

/// `UEFI_VARIABLE_DATA`: GUID, lengths of name and value, both.
pub fn variable(name: &str, value: &[u8]) -> Vec<u8> {
    let name: Vec<u16> = name.encode_utf16().collect();
    let lengths = [name.len() as u64, value.len() as u64].map(u64::to_le_bytes).concat();
    // EFI_GLOBAL_VARIABLE.
    let guid = [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c];
    [&guid[..], &lengths, &name.into_iter().flat_map(u16::to_le_bytes).collect::<Vec<_>>(), value].concat()
}

/// `TCG_PCClientTaggedEvent`.
pub fn tagged(id: u32, data: &[u8]) -> Vec<u8> {
    [&id.to_le_bytes()[..], &(data.len() as u32).to_le_bytes(), data].concat()
}

/// `UEFI_IMAGE_LOAD_EVENT` of a file on a disk; of nothing that has a path if it is empty, as what a loader starts from memory.
pub fn image(path: &str) -> Vec<u8> {
    if path.is_empty() {
        return image_at(&[]);
    }
    image_at(&[node(1, 1, &[0, 0x1f]), node(3, 18, &[0; 6]), node(4, 4, &utf16(path))].concat())
}

fn image_at(device_path: &[u8]) -> Vec<u8> {
    let path = if device_path.is_empty() { Vec::new() } else { [device_path, &node(0x7f, 0xff, &[])].concat() };
    let numbers = [0x7f00_0000, 0x12_3400, 0, path.len() as u64].map(u64::to_le_bytes).concat();
    [numbers, path].concat()
}

fn node(kind: u8, subtype: u8, data: &[u8]) -> Vec<u8> {
    [&[kind, subtype][..], &(data.len() as u16 + 4).to_le_bytes(), data].concat()
}
