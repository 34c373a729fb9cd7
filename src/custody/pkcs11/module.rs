//! The vendor's module: loaded once, initialised and finalised as often as needed, and the tokens it shows.

use std::path::Path;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::slot::{Slot, TokenInfo};

use super::failure::{Failure, describe};
use crate::custody::contract::{CustodyError, PinState, TokenSummary};
use crate::custody::settings::TokenSelector;

/// A loaded and initialised module. Never unloaded: modules start threads that would run on into nothing.
pub(super) struct Module {
    pkcs11: Pkcs11,
}

impl Module {
    pub(super) fn load(path: &Path) -> Result<Self, CustodyError> {
        let unusable =
            |error: &Error| CustodyError::ModuleUnusable { detail: format!("{}: {}", path.display(), describe(error)) };
        let pkcs11 = Pkcs11::new(path).map_err(|error| unusable(&error))?;
        initialize(&pkcs11).map_err(|error| unusable(&error))?;
        Ok(Self { pkcs11 })
    }

    /// `C_Finalize`, `C_Initialize`: the way back to a token that was unplugged. The caller has dropped every session
    /// before: handles start again at 1, and an old session that is dropped later would close a new one.
    pub(super) fn restart(&self) -> Result<(), CustodyError> {
        self.finalize();
        initialize(&self.pkcs11).map_err(|error| CustodyError::ModuleUnusable { detail: describe(&error) })
    }

    pub(super) fn finalize(&self) {
        if let Err(error) = self.pkcs11.clone().finalize() {
            tracing::warn!(error = describe(&error), "the PKCS#11 module did not finalise");
        }
    }

    pub(super) fn pkcs11(&self) -> &Pkcs11 {
        &self.pkcs11
    }

    /// Every token there is. A slot that cannot say what is in it is left out.
    pub(super) fn tokens(&self) -> Result<Vec<(Slot, TokenSummary)>, Failure> {
        let slots = self.pkcs11.get_slots_with_token()?;
        Ok(slots.into_iter().filter_map(|slot| self.summary(slot).ok().map(|summary| (slot, summary))).collect())
    }

    pub(super) fn summary(&self, slot: Slot) -> Result<TokenSummary, Failure> {
        Ok(summarize(slot, &self.pkcs11.get_token_info(slot)?))
    }

    /// The one token that is meant.
    pub(super) fn find(&self, wanted: &TokenSelector) -> Result<(Slot, TokenSummary), CustodyError> {
        let mut found = self.tokens().map_err(Failure::into_error)?;
        found.retain(|(_, token)| {
            token.initialized
                && match wanted {
                    TokenSelector::Label(label) => token.label == *label,
                    TokenSelector::Serial(serial) => token.serial == *serial,
                }
        });
        match (found.len(), wanted) {
            (0, TokenSelector::Label(label)) => {
                Err(CustodyError::TokenMissing { wanted: format!("with the label {label:?}") })
            }
            (0, TokenSelector::Serial(serial)) => {
                Err(CustodyError::TokenMissing { wanted: format!("with the serial {serial:?}") })
            }
            (1, _) => Ok(found.remove(0)),
            (_, TokenSelector::Label(label)) => Err(CustodyError::TokenAmbiguous { label: label.clone() }),
            (_, TokenSelector::Serial(serial)) => Err(CustodyError::Unsupported {
                detail: format!("a serial of its own: more than one token has the serial {serial:?}"),
            }),
        }
    }
}

fn initialize(pkcs11: &Pkcs11) -> Result<(), Error> {
    match pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
        other => other,
    }
}

fn summarize(slot: Slot, info: &TokenInfo) -> TokenSummary {
    TokenSummary {
        slot: slot.id(),
        label: printable(info.label()),
        serial: printable(info.serial_number()),
        manufacturer: printable(info.manufacturer_id()),
        model: printable(info.model()),
        firmware: printable(&info.firmware_version().to_string()),
        initialized: info.token_initialized(),
        pin: if info.user_pin_locked() {
            PinState::Locked
        } else if info.user_pin_final_try() {
            PinState::FinalTry
        } else if !info.user_pin_initialized() {
            PinState::NotSet
        } else if info.user_pin_count_low() {
            PinState::CountLow
        } else {
            PinState::Fine
        },
    }
}

/// Trimmed, without control characters, at most 64 bytes: PKCS#11's fields have at most 32.
fn printable(text: &str) -> String {
    text.trim_matches([' ', '\0']).chars().filter(|c| !c.is_control()).take(32).collect::<String>()
}
