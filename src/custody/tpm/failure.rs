//! What a response code means: settled, or for the canary to decide, or a sign that handles or the connection have died.

use tss_esapi::Error;
use tss_esapi::constants::response_code::{Tss2ResponseCode, Tss2ResponseCodeKind as Kind};

use crate::custody::contract::CustodyError;

#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing more to find out; this is the answer.
    Final(CustodyError),
    /// Said of a damaged wrap, and perhaps of a damaged TPM.
    Suspect(String),
    /// The connection, a session or a handle is no longer good.
    Stale(String),
    /// No room left in the chip, as when killed processes left their objects behind.
    Full(String),
    /// The auth value was refused.
    Auth(String),
    /// What we have in the TPM is no longer there, or a neighbour's has taken its place. The TPM itself answers.
    Mixup(String),
}

impl Failure {
    pub(super) fn device(detail: impl Into<String>) -> Self {
        Self::Final(CustodyError::Device { detail: detail.into() })
    }

    pub(super) fn unsupported(detail: impl Into<String>) -> Self {
        Self::Final(CustodyError::Unsupported { detail: detail.into() })
    }

    pub(super) fn rejected() -> Self {
        Self::Final(CustodyError::WrapRejected)
    }

    /// As an answer, where nobody is left to find out more.
    pub(super) fn into_error(self) -> CustodyError {
        match self {
            Self::Final(error) => error,
            Self::Suspect(detail)
            | Self::Stale(detail)
            | Self::Full(detail)
            | Self::Auth(detail)
            | Self::Mixup(detail) => CustodyError::Device { detail },
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let detail = describe(&error);
        let Error::Tss2Error(code) = error else { return Self::Suspect(detail) };
        // Whatever a layer of the TSS itself says is about the way to the TPM, and that way is made anew.
        if layer(code) != TPM && layer(code) != RESOURCE_MANAGER {
            return Self::Stale(detail);
        }
        match code.kind() {
            Some(Kind::AuthFail | Kind::BadAuth) => Self::Auth(detail),
            Some(
                Kind::ObjectMemory | Kind::SessionMemory | Kind::Memory | Kind::ObjectHandles | Kind::SessionHandles,
            ) => Self::Full(detail),
            Some(Kind::ReferenceH0 | Kind::ReferenceH1 | Kind::ReferenceS0 | Kind::ReferenceS1) => Self::Mixup(detail),
            Some(Kind::Initialize | Kind::Handle | Kind::ContextGap | Kind::Reboot | Kind::Canceled) => {
                Self::Stale(detail)
            }
            Some(Kind::NvRate | Kind::NvUnavailable) => {
                Self::device(format!("{detail}: the TPM takes no more writes for now, to spare its memory; wait"))
            }
            Some(Kind::Lockout) => Self::device(format!(
                "{detail}: the TPM is in lockout; wait, or `tpm2_dictionarylockout --clear-lockout`"
            )),
            Some(Kind::NvSpace) => Self::device(format!("{detail}: the TPM has no room for another NV index")),
            // Failure (0x101) is what swtpm says of a bad OAEP block.
            _ => Self::Suspect(detail),
        }
    }
}

/// Which layer speaks: TCG TSS 2.0 Overview, "response codes", bits 16 to 23.
fn layer(code: Tss2ResponseCode) -> u32 {
    (raw(code) >> 16) & 0xff
}

const TPM: u32 = 0;
const RESOURCE_MANAGER: u32 = 12;

/// tss-esapi shows the number in a text only.
fn raw(code: Tss2ResponseCode) -> u32 {
    let text = match code {
        Tss2ResponseCode::Success => return 0,
        Tss2ResponseCode::FormatZero(code) => code.to_string(),
        Tss2ResponseCode::FormatOne(code) => code.to_string(),
    };
    text.rsplit_once("0x").and_then(|(_, digits)| u32::from_str_radix(digits, 16).ok()).unwrap_or(u32::MAX)
}

/// Said when the TSS finds no library of its own for a TCTI.
pub(super) const NO_LIBRARY: &str = "the library that reaches it is missing";

/// `TPM: … (0x921)`: the code is what one searches for. Of the TSS's own layers tss-esapi knows no words.
pub(super) fn describe(error: &Error) -> String {
    match error {
        Error::Tss2Error(code) if layer(*code) != TPM && layer(*code) != RESOURCE_MANAGER => {
            let words = match raw(*code) & 0xffff {
                0x7 => "the connection to it is lost",
                0x8 => "there is no connection to it",
                0xa => "input or output failed",
                0x15 => NO_LIBRARY,
                _ => "the TSS failed",
            };
            format!("{words} (0x{:x})", raw(*code))
        }
        Error::Tss2Error(code) => format!("TPM: {error} (0x{:x})", raw(*code)),
        Error::WrapperError(kind) => format!("TPM: {kind}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_every_layer_are_told_in_words_with_their_number() {
        for (code, words) in [
            (0x921, "TPM: authorizations for objects subject to DA protection are not allowed"),
            (0x99d, "TPM: a policy check failed"),
            (0xa0008, "there is no connection to it (0xa0008)"),
            (0xa000a, "input or output failed (0xa000a)"),
            (0xa0015, "the library that reaches it is missing (0xa0015)"),
            (0x70007, "the connection to it is lost (0x70007)"),
            (0x70019, "the TSS failed (0x70019)"),
        ] {
            let said = describe(&Error::Tss2Error(Tss2ResponseCode::from(code)));
            assert!(said.starts_with(words) && said.ends_with(&format!("(0x{code:x})")), "{said}");
        }
    }

    #[test]
    fn what_a_code_means_is_decided_by_its_layer_first() {
        let of = |code| Failure::from(Error::Tss2Error(Tss2ResponseCode::from(code)));
        assert!(matches!(of(0x101), Failure::Suspect(_)), "said of a bad OAEP block, too");
        assert!(matches!(of(0xa000a), Failure::Stale(_)));
        assert!(matches!(of(0x902), Failure::Full(_)));
        assert!(matches!(of(0x903), Failure::Full(_)));
        assert!(matches!(of(0x910), Failure::Mixup(_)));
        assert!(matches!(of(0x918), Failure::Mixup(_)));
        assert!(matches!(of(0x9a2), Failure::Auth(_)));
        assert!(matches!(of(0x921), Failure::Final(CustodyError::Device { detail }) if detail.contains("lockout")));
        assert!(matches!(of(0x920), Failure::Final(CustodyError::Device { detail }) if detail.contains("wait")));
    }
}
