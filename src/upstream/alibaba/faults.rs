//! The vendor's error codes, sorted. Decided by the code; the HTTP status only where no table lists it.
//!
//! Source: the API reference of KMS 2016-01-20 and STS 2015-04-01, "Common error codes". Codes are compared up to a sub-code, as
//! the vendor adds those freely.

use http::StatusCode;
use keystead_core::FaultClass;

use crate::upstream::answer;

/// Both spellings are the vendor's.
const UNREACHABLE: &[&str] = &[
    "Throttling",
    "Rejected.Throttling",
    "InternalFailure",
    "InternalError",
    "ServiceUnavailable",
    "ServiceUnavailableTemporary",
    "SerivceUnavailableTemporary",
];
/// An unknown access key comes with status 404: it is no missing key.
const CREDENTIAL: &[&str] = &[
    "InvalidAccessKeyId",
    "InvalidAccessKeySecret",
    "MissingAccessKeyId",
    "Forbidden.AccessKey",
    "InvalidSecurityToken",
    "MissingSecurityToken",
    "SignatureDoesNotMatch",
    "SignatureNotMatch",
    "IncompleteSignature",
    "SignatureNonceUsed",
    "IllegalTimestamp",
    "InvalidTimeStamp",
    "InvalidTimestamp",
    "RequestTimeTooSkewed",
];
/// The account as a whole, whoever asks and for whichever key.
const BILLING: &[&str] =
    &["Forbidden.InDebt", "Forbidden.InDebtOverdue", "InDebt", "InDebtOverdue", "Forbidden.ProhibitedByRiskControl"];
const DENIED: &[&str] = &[
    "Forbidden.NoPermission",
    "Forbidden.RAM",
    "NoPermission",
    "KmsServiceNotEnabled",
    "Forbidden.KmsServiceNotEnabled",
];
/// Pending import: the owner has taken imported key material away. One spelling is an old one of the vendor's.
const DISABLED: &[&str] =
    &["Rejected.Disabled", "Rejected.PendingDeletion", "Rejetced.PendingDeletion", "Rejected.PendingImport"];
const GONE: &[&str] = &["Forbidden.KeyNotFound"];
/// Said of what was sent; from Decrypt that is the ciphertext and its context.
const INVALID: &[&str] = &["InvalidParameter", "Forbidden.KeyVersionNotFound"];

/// What KMS's refusal of `action` means.
pub fn of_kms(action: &str, code: &str, status: StatusCode) -> FaultClass {
    let sorted = [
        (UNREACHABLE, FaultClass::Unreachable),
        (CREDENTIAL, FaultClass::CredentialFault),
        (BILLING, FaultClass::Billing),
        (DENIED, FaultClass::Denied),
        (DISABLED, FaultClass::KeyDisabled),
        (GONE, FaultClass::KeyGone),
    ];
    match sorted.into_iter().find(|(codes, _)| is_one_of(code, codes)) {
        Some((_, class)) => class,
        None if action == "Decrypt" && is_one_of(code, INVALID) => FaultClass::Corrupt,
        None => answer::unsorted(status),
    }
}

/// What a refusal to hand out a credential means. Only KMS can revoke a key, so that a role whose trust was withdrawn is a
/// fault of the credential, whatever the code.
pub fn of_sts(code: &str, status: StatusCode) -> FaultClass {
    if is_one_of(code, UNREACHABLE) {
        return FaultClass::Unreachable;
    }
    match answer::unsorted(status) {
        FaultClass::Unreachable => FaultClass::Unreachable,
        _ if is_one_of(code, BILLING) => FaultClass::Billing,
        _ => FaultClass::CredentialFault,
    }
}

/// The service says that our time is wrong: its `Date` header says which would be right.
pub fn is_about_time(code: &str) -> bool {
    is_one_of(code, &["IllegalTimestamp", "InvalidTimeStamp", "InvalidTimestamp", "RequestTimeTooSkewed"])
}

/// The service no longer takes this session, however long it was to live. Of one that has ended it may say that it never knew it.
pub fn is_about_session(code: &str) -> bool {
    is_one_of(code, &["InvalidSecurityToken", "InvalidAccessKeyId"])
}

/// Equal to one of `codes`, or a sub-code of it.
fn is_one_of(code: &str, codes: &[&str]) -> bool {
    codes.iter().any(|known| code.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kms(action: &str, code: &str, status: u16) -> FaultClass {
        of_kms(action, code, StatusCode::from_u16(status).unwrap())
    }

    #[test]
    fn code_decides_and_not_the_status() {
        for (code, status, class) in [
            ("InvalidAccessKeyId.NotFound", 404, FaultClass::CredentialFault),
            ("SignatureDoesNotMatch", 400, FaultClass::CredentialFault),
            ("IllegalTimestamp", 400, FaultClass::CredentialFault),
            ("InvalidTimeStamp.Expired", 400, FaultClass::CredentialFault),
            ("InvalidSecurityToken.Expired", 400, FaultClass::CredentialFault),
            ("Forbidden.AccessKey", 403, FaultClass::CredentialFault),
            ("Forbidden.InDebt", 403, FaultClass::Billing),
            ("InDebtOverdue", 400, FaultClass::Billing),
            ("Forbidden.NoPermission", 403, FaultClass::Denied),
            ("KmsServiceNotEnabled", 403, FaultClass::Denied),
            ("Rejected.Disabled", 409, FaultClass::KeyDisabled),
            ("Rejected.PendingDeletion", 409, FaultClass::KeyDisabled),
            ("Rejected.PendingImport", 409, FaultClass::KeyDisabled),
            ("Forbidden.KeyNotFound", 404, FaultClass::KeyGone),
            ("Forbidden.KeyVersionNotFound", 404, FaultClass::Corrupt),
            ("Throttling.User", 400, FaultClass::Unreachable),
            ("InternalFailure", 500, FaultClass::Unreachable),
            ("SerivceUnavailableTemporary", 503, FaultClass::Unreachable),
        ] {
            assert_eq!(kms("Decrypt", code, status), class, "{code}");
        }
    }

    #[test]
    fn refusal_of_what_was_sent_is_corrupt_for_decrypt_only() {
        assert_eq!(kms("Decrypt", "InvalidParameter", 400), FaultClass::Corrupt);
        assert_eq!(kms("Encrypt", "InvalidParameter", 400), FaultClass::Unclassified);
    }

    #[test]
    fn code_nobody_knows_never_revokes() {
        for status in [400, 401, 403, 404, 409, 410, 429, 500, 503] {
            for code in [
                "",
                "Forbidden",
                "Forbidden.KeyNotFoundX",
                "Rejected",
                "Rejected.StateModifiedFailed",
                "rejected.disabled",
            ] {
                let class = kms("Decrypt", code, status);
                assert!(
                    matches!(class, FaultClass::Unreachable | FaultClass::Unclassified),
                    "{code} {status}: {class}"
                );
            }
        }
    }

    #[test]
    fn sts_can_not_revoke() {
        for code in ["NoPermission", "EntityNotExist.Role", "Forbidden.KeyNotFound", "Rejected.Disabled", "x"] {
            assert_eq!(of_sts(code, StatusCode::FORBIDDEN), FaultClass::CredentialFault, "{code}");
        }
        assert_eq!(of_sts("InternalError", StatusCode::INTERNAL_SERVER_ERROR), FaultClass::Unreachable);
        assert_eq!(of_sts("x", StatusCode::BAD_GATEWAY), FaultClass::Unreachable);
    }
}
