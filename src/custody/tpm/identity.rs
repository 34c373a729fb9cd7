//! What a TPM says of itself: maker, firmware, what it can do, whether it is locked out.

use tss_esapi::Context;
use tss_esapi::constants::CapabilityType;
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::structures::CapabilityData;

use super::failure::Failure;
use super::srk::SrkName;
use crate::custody::contract::{PinState, TokenSummary};

/// TPM2_PT, part 2 of the TPM library, "TPM_PT".
const FIXED: u32 = 0x100;
const VARIABLE: u32 = 0x200;
const MANUFACTURER: u32 = FIXED + 5;
const VENDOR: std::ops::RangeInclusive<u32> = FIXED + 6..=FIXED + 9;
const FIRMWARE_1: u32 = FIXED + 11;
const FIRMWARE_2: u32 = FIXED + 12;
const PERMANENT: u32 = VARIABLE;
const IN_LOCKOUT: u32 = 1 << 9;
const OWNER_AUTH_SET: u32 = 1;
const LOCKOUT_COUNTER: u32 = VARIABLE + 14;
const MAX_AUTH_FAIL: u32 = VARIABLE + 15;
const LOCKOUT_INTERVAL: u32 = VARIABLE + 16;

/// Properties by number.
#[derive(Debug, Clone)]
pub(super) struct Identity(Vec<(u32, u32)>);

impl Identity {
    /// Two commands.
    pub(super) fn read(context: &mut Context) -> Result<Self, Failure> {
        let mut properties = Vec::new();
        for group in [FIXED, VARIABLE] {
            let (data, _) = context
                .execute_without_session(|context| context.get_capability(CapabilityType::TpmProperties, group, 64))?;
            if let CapabilityData::TpmProperties(list) = data {
                properties.extend(list.iter().map(|each| (u32::from(each.property()), each.value())));
            }
        }
        Ok(Self(properties))
    }

    fn property(&self, wanted: u32) -> u32 {
        self.0.iter().find(|(number, _)| *number == wanted).map_or(0, |(_, value)| *value)
    }

    fn text(&self, numbers: impl IntoIterator<Item = u32>) -> String {
        let bytes = numbers.into_iter().flat_map(|number| self.property(number).to_be_bytes());
        let text: String = bytes.filter(|byte| (0x20..0x7f).contains(byte)).map(char::from).collect();
        text.trim().to_owned()
    }

    pub(super) fn manufacturer(&self) -> String {
        self.text([MANUFACTURER])
    }

    pub(super) fn model(&self) -> String {
        self.text(VENDOR)
    }

    pub(super) fn firmware(&self) -> String {
        let (one, two) = (self.property(FIRMWARE_1), self.property(FIRMWARE_2));
        format!("{}.{}.{}.{}", one >> 16, one & 0xffff, two >> 16, two & 0xffff)
    }

    /// Keys and indices of ours do not count failed tries and stay usable in lockout; other users of the TPM do not.
    pub(super) fn in_lockout(&self) -> bool {
        self.property(PERMANENT) & IN_LOCKOUT != 0
    }

    pub(super) fn owner_auth_set(&self) -> bool {
        self.property(PERMANENT) & OWNER_AUTH_SET != 0
    }

    /// Failed tries so far, tries until lockout, seconds until one is forgotten.
    pub(super) fn lockout(&self) -> (u32, u32, u32) {
        (self.property(LOCKOUT_COUNTER), self.property(MAX_AUTH_FAIL), self.property(LOCKOUT_INTERVAL))
    }

    pub(super) fn summary(&self, srk: &SrkName) -> TokenSummary {
        TokenSummary {
            slot: 0,
            label: "tpm".into(),
            serial: srk.serial(),
            manufacturer: self.manufacturer(),
            model: self.model(),
            firmware: self.firmware(),
            initialized: true,
            pin: if self.in_lockout() { PinState::Locked } else { PinState::Fine },
        }
    }
}

/// Whether the TPM knows P-256; one command.
pub(super) fn has_p256(context: &mut Context) -> Result<bool, Failure> {
    let asked = context.execute_without_session(|context| context.get_capability(CapabilityType::EccCurves, 0, 32));
    match asked {
        Ok((CapabilityData::EccCurves(curves), _)) => {
            Ok(curves.iter().any(|curve| *curve == EccCurve::NistP256.into()))
        }
        Ok(_) | Err(tss_esapi::Error::WrapperError(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
