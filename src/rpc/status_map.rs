//! From the service's errors to gRPC codes: the one place where they meet, and where each is logged once.

use keystead_core::backup::BackupError;
use keystead_core::envelope::EnvelopeError;
use keystead_core::grant::GrantError;
use keystead_core::keyring::DeletionError;
use tonic::{Code, Status};

use crate::custody::contract::CustodyError;
use crate::service::backups::BackupsError;
use crate::service::deletion::DeleteError;
use crate::service::disable::SwitchError;
use crate::service::explain::explain;
use crate::service::keys::ServeError;
use crate::service::lease::ExtendError;
use crate::service::rescue::RescueError;
use crate::service::restore::RestoreError;
use crate::service::rotation::RotationError;
use crate::service::scan::ScanError;

/// A failed KMS request. Messages are the error's own text: safe to log, no key byte, no ciphertext.
pub fn serve_error(error: &ServeError) -> Status {
    let code = match error {
        // The token answers, and says that it will never open this one.
        ServeError::Custody(CustodyError::CmkMissing { .. } | CustodyError::WrapRejected) => Code::FailedPrecondition,
        ServeError::Sealed(_) | ServeError::Custody(_) | ServeError::NoOfflineCopy | ServeError::NoRandomness => {
            Code::Unavailable
        }
        ServeError::MalformedKeyId => Code::InvalidArgument,
        ServeError::UnknownKeyId => Code::NotFound,
        ServeError::Refused(_) => Code::FailedPrecondition,
        ServeError::Destroyed | ServeError::Envelope(EnvelopeError::NewerFormat(_)) => Code::FailedPrecondition,
        ServeError::Envelope(EnvelopeError::NotAuthentic | EnvelopeError::TooShort) => Code::InvalidArgument,
        ServeError::WrongKey => Code::DataLoss,
    };
    Status::new(code, error.to_string())
}

/// A rescue that gave no file.
pub fn rescue_error(error: &RescueError) -> Status {
    let code = match error {
        RescueError::NothingLoaded(_) => Code::FailedPrecondition,
        RescueError::NoRandomness => Code::Unavailable,
    };
    Status::new(code, error.to_string())
}

/// A scan that was not kept.
pub fn scan_error(error: &ScanError) -> Status {
    let code = match error {
        ScanError::Refused(_) => Code::FailedPrecondition,
        ScanError::Storage(_) => Code::Aborted,
    };
    Status::new(code, explain(error))
}

/// A failed rotation.
pub fn rotation_error(error: &RotationError) -> Status {
    let code = match error {
        RotationError::Refused(_)
        | RotationError::NotRewritten(_)
        | RotationError::Roots(_)
        | RotationError::Transition(_) => Code::FailedPrecondition,
        // The key before it serves on; the journal settles what was begun.
        RotationError::NotProven(_)
        | RotationError::Upstream(_)
        | RotationError::Storage(_)
        | RotationError::NoRandomness => Code::Aborted,
    };
    Status::new(code, explain(error))
}

/// A deletion that was not scheduled or cancelled.
pub fn deletion_error(error: &DeleteError) -> Status {
    let code = match error {
        DeleteError::Wait { .. } | DeleteError::NotConfirmed { .. } => Code::InvalidArgument,
        DeleteError::Keyring(DeletionError::Unknown { .. }) => Code::NotFound,
        DeleteError::Refused(_) | DeleteError::Keyring(_) => Code::FailedPrecondition,
        DeleteError::Storage(_) => Code::Aborted,
    };
    Status::new(code, explain(error))
}

/// A list of backups that was not changed.
pub fn backups_error(error: &BackupsError) -> Status {
    let code = match error {
        BackupsError::Keyring(BackupError::NameTooLong) => Code::InvalidArgument,
        BackupsError::Keyring(BackupError::NameTaken(_)) => Code::AlreadyExists,
        BackupsError::Keyring(BackupError::NoSuch(_) | BackupError::NoSuchGeneration(_)) => Code::NotFound,
        BackupsError::Refused(_) | BackupsError::Keyring(BackupError::TooMany) => Code::FailedPrecondition,
        BackupsError::Storage(_) => Code::Aborted,
    };
    Status::new(code, explain(error))
}

/// A key that was not disabled or enabled as asked for.
pub fn switch_error(error: &SwitchError) -> Status {
    let code = match error {
        SwitchError::NoKey | SwitchError::NotStarted(_) => Code::FailedPrecondition,
        SwitchError::EnabledMeanwhile
        | SwitchError::DisabledMeanwhile
        | SwitchError::NotDurable(_)
        | SwitchError::NotEnabled(_)
        | SwitchError::Marker(_) => Code::Aborted,
    };
    Status::new(code, explain(error))
}

/// An old store that was not taken over.
pub fn restore_error(error: &RestoreError) -> Status {
    let code = match error {
        RestoreError::Record(_) => Code::InvalidArgument,
        RestoreError::NothingToRestore
        | RestoreError::InForce
        | RestoreError::TokenOlder(_)
        | RestoreError::RecoveryUnsaid(_)
        | RestoreError::OtherRecovery(_)
        | RestoreError::NothingOpens => Code::FailedPrecondition,
        RestoreError::Upstream(_) | RestoreError::Custody(_) | RestoreError::Load(_) | RestoreError::Generation(_) => {
            Code::Aborted
        }
    };
    Status::new(code, explain(error))
}

/// A lease that was not extended.
pub fn extend_error(error: &ExtendError) -> Status {
    let code = match error {
        ExtendError::Grant(GrantError::Malformed(_) | GrantError::NewerFormat(_)) => Code::InvalidArgument,
        ExtendError::Grant(GrantError::NotAuthentic) => Code::PermissionDenied,
        ExtendError::Storage(_) => Code::Unavailable,
        ExtendError::Grant(_)
        | ExtendError::NoLease
        | ExtendError::NoGrantKey
        | ExtendError::Revoked
        | ExtendError::NotNeeded
        | ExtendError::NotStarted(_) => Code::FailedPrecondition,
    };
    Status::new(code, explain(error))
}
