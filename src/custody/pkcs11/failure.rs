//! What a failed PKCS#11 call means: settled, or for the canary to decide, or a sign that handles have died.

use cryptoki::error::{Error, RvError};

use crate::custody::contract::CustodyError;

#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing more to find out; this is the answer.
    Final(CustodyError),
    /// Tokens say this of a damaged wrap and of a damaged device alike (SoftHSM: `CKR_GENERAL_ERROR`).
    Suspect(String),
    /// The token shows nothing at all: it may be empty, or unplugged without anybody having said so.
    Hollow,
    /// A session or an object handle is no longer good, as after a token was unplugged, or another login.
    Stale(String),
}

impl Failure {
    pub(super) fn device(detail: impl Into<String>) -> Self {
        Self::Final(CustodyError::Device { detail: detail.into() })
    }

    pub(super) fn unsupported(detail: impl Into<String>) -> Self {
        Self::Final(CustodyError::Unsupported { detail: detail.into() })
    }

    /// As an answer, where nobody is left to find out more.
    pub(super) fn into_error(self) -> CustodyError {
        match self {
            Self::Final(error) => error,
            Self::Suspect(detail) | Self::Stale(detail) => CustodyError::Device { detail },
            Self::Hollow => CustodyError::Device { detail: "the token shows no object any more".to_owned() },
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let detail = describe(&error);
        let Error::Pkcs11(code, _) = error else { return Self::Suspect(detail) };
        match code {
            // The last three are what a session says that an abandoned operation has poisoned, or a lost one.
            RvError::ObjectHandleInvalid
            | RvError::KeyHandleInvalid
            | RvError::SessionHandleInvalid
            | RvError::SessionClosed
            | RvError::DeviceRemoved
            | RvError::TokenNotPresent
            | RvError::TokenNotRecognized
            | RvError::SlotIdInvalid
            | RvError::UserNotLoggedIn
            | RvError::CryptokiNotInitialized
            | RvError::OperationActive
            | RvError::OperationNotInitialized
            | RvError::FunctionCanceled => Self::Stale(detail),
            // DeviceError is what Kryoptic says of a damaged OAEP block.
            RvError::GeneralError
            | RvError::DeviceError
            | RvError::FunctionFailed
            | RvError::FunctionRejected
            | RvError::ArgumentsBad
            | RvError::DataInvalid
            | RvError::DataLenRange
            | RvError::EncryptedDataInvalid
            | RvError::EncryptedDataLenRange
            | RvError::WrappedKeyInvalid
            | RvError::WrappedKeyLenRange
            | RvError::SignatureInvalid
            | RvError::SignatureLenRange
            | RvError::DomainParamsInvalid
            | RvError::PublicKeyInvalid
            | RvError::MechanismParamInvalid
            | RvError::BufferTooSmall
            | RvError::VendorDefined(_)
            | RvError::UnknownErrorCode(_) => Self::Suspect(detail),
            _ => Self::device(detail),
        }
    }
}

/// `C_Decrypt: GeneralError`: cryptoki's own Display adds a paragraph of the standard.
pub(super) fn describe(error: &Error) -> String {
    match error {
        Error::Pkcs11(code, function) => format!("C_{function:?}: {code:?}"),
        other => other.to_string(),
    }
}
