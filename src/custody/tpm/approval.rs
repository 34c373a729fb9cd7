//! Approvals of a boot: the PCR values that a keyring's CMKs may be used with, signed off the box.
//!
//! Text, a field a line, so that whoever signs can read what. Without its last two lines it is a draft, which
//! `keystead tpm predict` writes and `keystead tpm approve` signs. The TPM judges the signature; nothing here is believed.

use std::fmt::Write;

use keystead_core::KeyringId;
use keystead_core::hpke_p256::P256PublicKey;
use p256::ecdsa::signature::hazmat::{PrehashSigner, PrehashVerifier};
use p256::ecdsa::{Signature, SigningKey, VerifyingKey};

use super::component;
use super::pcr::{PcrSet, PcrValues};
use super::policy;

const FORMAT: &str = "keystead-boot-approval 1";
/// An event log of a few hundred events makes some ten kilobytes.
pub const MAX_LEN: usize = 1 << 20;

/// A draft, or with its signature an approval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approval {
    pub keyring: KeyringId,
    pub series: u64,
    pub pcrs: PcrSet,
    pub values: PcrValues,
    /// What was measured into these PCRs, if an event log was at hand; for `keystead tpm preview` only.
    pub events: Vec<Measured>,
    pub signed: Option<Signed>,
}

/// One event that went into a PCR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    pub pcr: u8,
    pub digest: [u8; 32],
    /// One line, printable.
    pub what: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    pub signer: P256PublicKey,
    /// `r ‖ s`
    pub signature: [u8; 64],
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApprovalError {
    #[error("line {0} is not what an approval has there")]
    Malformed(usize),
    #[error("it is no approval, or was written by a newer Keystead")]
    Format,
    #[error("the signature is not the signer's over this content")]
    Forged,
    #[error("the signing key is no P-256 private key (PKCS#8 PEM)")]
    NoKey,
}

impl Approval {
    pub fn policy(&self) -> [u8; 32] {
        policy::pcr_policy(&self.pcrs, &self.values)
    }

    pub fn policy_ref(&self) -> [u8; 32] {
        policy::policy_ref(&self.keyring, self.series)
    }

    /// # Errors
    /// `NoKey`.
    pub fn sign(&mut self, pkcs8_pem: &str) -> Result<(), ApprovalError> {
        use p256::pkcs8::DecodePrivateKey;
        let key = p256::SecretKey::from_pkcs8_pem(pkcs8_pem).map_err(|_| ApprovalError::NoKey)?;
        let hash = policy::approval_hash(&self.policy(), &self.policy_ref());
        let key = SigningKey::from(key);
        let signature: Signature = key.sign_prehash(&hash).map_err(|_| ApprovalError::NoKey)?;
        let point = key.verifying_key().to_sec1_point(false);
        let signer = P256PublicKey::from_sec1(point.as_bytes()).map_err(|_| ApprovalError::NoKey)?;
        self.signed = Some(Signed { signer, signature: signature.to_bytes().into() });
        Ok(())
    }

    /// Whether the signature is what it says; a draft has none to be wrong.
    ///
    /// # Errors
    /// `Forged`.
    pub fn verify(&self) -> Result<(), ApprovalError> {
        let Some(signed) = &self.signed else { return Ok(()) };
        let hash = policy::approval_hash(&self.policy(), &self.policy_ref());
        let key = VerifyingKey::from_sec1_bytes(signed.signer.as_sec1()).map_err(|_| ApprovalError::Forged)?;
        let signature = Signature::from_slice(&signed.signature).map_err(|_| ApprovalError::Forged)?;
        key.verify_prehash(&hash, &signature).map_err(|_| ApprovalError::Forged)
    }

    pub fn to_text(&self) -> String {
        let mut text = format!("{FORMAT}\nkeyring {}\nseries {}\npcrs {}\n", self.keyring, self.series, self.pcrs);
        for (pcr, value) in &self.values {
            let _ = writeln!(text, "pcr {pcr} {}", hex(value));
        }
        for event in &self.events {
            let _ = writeln!(text, "event {} {} {}", event.pcr, hex(&event.digest), event.what);
        }
        if let Some(signed) = &self.signed {
            let _ = writeln!(text, "signer {}\nsignature {}", hex(signed.signer.as_sec1()), hex(&signed.signature));
        }
        text
    }

    /// Exact: unknown lines, values that do not fit the set and a half signature are refused. Does not verify.
    pub fn parse(text: &str) -> Result<Self, ApprovalError> {
        let mut lines = text.lines().enumerate().peekable();
        if text.len() > MAX_LEN || lines.next().map(|(_, line)| line) != Some(FORMAT) {
            return Err(ApprovalError::Format);
        }
        let mut field = |name: &str| {
            let (index, line) = lines.next().ok_or(ApprovalError::Malformed(0))?;
            let value = line.strip_prefix(name).and_then(|rest| rest.strip_prefix(' '));
            value.map(|value| (index + 1, value)).ok_or(ApprovalError::Malformed(index + 1))
        };
        let (at, keyring) = field("keyring")?;
        let keyring = keyring.parse().map_err(|_| ApprovalError::Malformed(at))?;
        let (at, series) = field("series")?;
        let series = series.parse().map_err(|_| ApprovalError::Malformed(at))?;
        let (at, pcrs) = field("pcrs")?;
        let pcrs: PcrSet = pcrs.parse().map_err(|()| ApprovalError::Malformed(at))?;
        let mut values = PcrValues::new();
        for &number in pcrs.numbers() {
            let (at, value) = field("pcr")?;
            let (pcr, digest) = value.split_once(' ').ok_or(ApprovalError::Malformed(at))?;
            let digest = unhex(digest).filter(|_| pcr == number.to_string()).ok_or(ApprovalError::Malformed(at))?;
            values.push((number, digest));
        }
        let mut events = Vec::new();
        while let Some((index, line)) = lines.next_if(|(_, line)| line.starts_with("event ")) {
            let malformed = ApprovalError::Malformed(index + 1);
            let mut words = line.splitn(4, ' ').skip(1);
            let pcr = words.next().and_then(|pcr| pcr.parse().ok());
            let (Some(pcr), Some(digest), Some(what)) = (pcr, words.next().and_then(unhex), words.next()) else {
                return Err(malformed);
            };
            if !component::is_printable(what) {
                return Err(malformed);
            }
            events.push(Measured { pcr, digest, what: what.to_owned() });
        }
        let signed = match lines.next() {
            None => None,
            Some((index, line)) => {
                let malformed = || ApprovalError::Malformed(index + 1);
                let signer: [u8; 65] = line.strip_prefix("signer ").and_then(unhex).ok_or_else(malformed)?;
                let signer = P256PublicKey::from_sec1(&signer).map_err(|_| malformed())?;
                let signature = lines.next().and_then(|(_, line)| line.strip_prefix("signature ")).and_then(unhex);
                Some(Signed { signer, signature: signature.ok_or_else(malformed)? })
            }
        };
        match lines.next() {
            None => Ok(Self { keyring, series, pcrs, values, events, signed }),
            Some((index, _)) => Err(ApprovalError::Malformed(index + 1)),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if !text.is_ascii() || text.len() != 2 * N {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    (hex(&bytes) == text).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use p256::pkcs8::{EncodePrivateKey, LineEnding};

    fn draft() -> Approval {
        Approval {
            keyring: "edge".parse().unwrap(),
            series: 3,
            pcrs: "sha256:4,7".parse().unwrap(),
            values: vec![(4, [0x44; 32]), (7, [0x77; 32])],
            events: vec![Measured { pcr: 4, digest: [1; 32], what: "boot loader, 512 bytes".into() }],
            signed: None,
        }
    }

    fn pem(byte: u8) -> String {
        p256::SecretKey::from_slice(&[byte; 32]).unwrap().to_pkcs8_pem(LineEnding::LF).unwrap().to_string()
    }

    #[test]
    fn approval_reads_back_signed_and_unsigned() {
        let mut approval = draft();
        assert_eq!(Approval::parse(&approval.to_text()).as_ref(), Ok(&approval));
        approval.sign(&pem(0x11)).unwrap();
        let read = Approval::parse(&approval.to_text()).unwrap();
        assert_eq!(read, approval);
        read.verify().unwrap();
    }

    #[test]
    fn signature_holds_for_these_values_keyring_and_series_only() {
        let mut approval = draft();
        approval.sign(&pem(0x11)).unwrap();
        let mut changed = vec![approval.clone(); 4];
        changed[0].series = 4;
        changed[1].keyring = "other".parse().unwrap();
        changed[2].values[0].1[31] ^= 1;
        changed[3].pcrs = "sha256:4,8".parse().unwrap();
        for each in changed {
            assert_eq!(each.verify(), Err(ApprovalError::Forged), "{each:?}");
        }
        // Of the events nothing hangs.
        approval.events.clear();
        approval.verify().unwrap();
    }

    #[test]
    fn what_is_no_approval_is_refused_with_its_line() {
        let mut approval = draft();
        approval.sign(&pem(0x11)).unwrap();
        let text = approval.to_text();
        for line in 1..text.lines().count() {
            let without: Vec<&str> =
                text.lines().enumerate().filter(|(index, _)| *index != line).map(|(_, line)| line).collect();
            // A line less is only fine where it was an event.
            let read = Approval::parse(&without.join("\n"));
            assert!(read.is_err() || text.lines().nth(line).unwrap().starts_with("event"), "without line {line}");
        }
        assert_eq!(Approval::parse("keystead-boot-approval 2\n"), Err(ApprovalError::Format));
        assert_eq!(Approval::parse(&format!("{text}more\n")), Err(ApprovalError::Malformed(10)));
        let coloured = text.replace("boot loader", "boot\x1b[2Jloader");
        assert_eq!(Approval::parse(&coloured), Err(ApprovalError::Malformed(7)));
        assert!(draft().sign("-----BEGIN PRIVATE KEY-----").is_err());
    }
}
