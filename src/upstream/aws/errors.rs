//! The error codes of KMS and STS, sorted into classes.

use keystead_core::FaultClass;
use serde::Deserialize;

use super::xml;
use crate::upstream::UpstreamError;
use crate::upstream::answer::{foreign, printable, unsorted};
use crate::upstream::transport::Reply;

pub(super) const INVALID_STATE: &str = "KMSInvalidStateException";

#[derive(Deserialize)]
struct Failure {
    #[serde(rename = "__type")]
    kind: String,
}

/// What an answer of KMS that is no success says.
pub(super) fn from_kms(reply: &Reply) -> UpstreamError {
    const KMS: &str = "AWS KMS";
    match serde_json::from_slice::<Failure>(&reply.body) {
        Ok(failure) => told(reply, bare(&failure.kind), KMS),
        Err(_) => foreign(reply, KMS),
    }
}

/// What an answer of STS that is no success says.
pub(super) fn from_sts(reply: &Reply) -> UpstreamError {
    const STS: &str = "AWS STS";
    let text = std::str::from_utf8(&reply.body).unwrap_or_default();
    match xml::text(text, "ErrorResponse").and_then(|body| xml::text(body, "Code")) {
        Some(code) => {
            let error = told(reply, code, STS);
            match error.class {
                // The role's own permission is a matter of the credential: nothing was asked of the key yet.
                FaultClass::Denied => UpstreamError { class: FaultClass::CredentialFault, ..error },
                _ => error,
            }
        }
        None => foreign(reply, STS),
    }
}

/// `com.amazonaws.kms#DisabledException:http://…` without what is around the name.
fn bare(kind: &str) -> &str {
    let name = kind.rsplit_once('#').map_or(kind, |(_, name)| name);
    name.split_once(':').map_or(name, |(name, _)| name)
}

/// Without the service's message: it may repeat what was sent.
fn told(reply: &Reply, code: &str, service: &str) -> UpstreamError {
    let class = class_of(code).unwrap_or_else(|| unsorted(reply.status));
    let id = reply.headers.get("x-amzn-requestid").and_then(|id| id.to_str().ok()).map(|id| printable(id, 64));
    let id = id.map(|id| format!(", request {id}")).unwrap_or_default();
    let detail = format!("{service} refused with status {}{id}", reply.status.as_u16());
    UpstreamError { retry_after: reply.retry_after, ..UpstreamError::new(class, printable(code, 64), detail) }
}

fn class_of(code: &str) -> Option<FaultClass> {
    Some(match code {
        "ThrottlingException"
        | "Throttling"
        | "TooManyRequestsException"
        | "RequestLimitExceeded"
        | "LimitExceededException"
        | "DependencyTimeoutException"
        | "KMSInternalException"
        | "KeyUnavailableException"
        | "InternalFailure"
        | "InternalServiceError"
        | "ServiceUnavailable"
        | "ServiceUnavailableException"
        | "RequestTimeout"
        | "RequestTimeoutException"
        | "IDPCommunicationError" => FaultClass::Unreachable,
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "ExpiredTokenException"
        | "ExpiredToken"
        | "RequestExpired"
        | "IncompleteSignatureException"
        | "IncompleteSignature"
        | "MissingAuthenticationTokenException"
        | "MissingAuthenticationToken"
        | "InvalidIdentityToken"
        | "IDPRejectedClaim" => FaultClass::CredentialFault,
        "OptInRequired" | "SubscriptionRequiredException" => FaultClass::Billing,
        "AccessDeniedException" | "AccessDenied" | "NotAuthorized" => FaultClass::Denied,
        // KMSInvalidStateException also stands for outages: the caller looks at the key's state.
        "DisabledException" | INVALID_STATE => FaultClass::KeyDisabled,
        "NotFoundException" => FaultClass::KeyGone,
        "InvalidCiphertextException" | "IncorrectKeyException" => FaultClass::Corrupt,
        _ => return None,
    })
}

/// Whether another session, or another clock, may be all it takes.
pub(super) fn concerns_the_credential(error: &UpstreamError) -> bool {
    error.class == FaultClass::CredentialFault
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    use super::*;

    fn reply(status: u16, body: &str) -> Reply {
        Reply {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: Zeroizing::new(body.into()),
            date: None,
            retry_after: None,
        }
    }

    #[test]
    fn code_decides_and_not_the_status() {
        for (status, kind, class) in [
            (400, "DisabledException", FaultClass::KeyDisabled),
            (400, "com.amazonaws.kms#DisabledException:http://internal.amazon.com/", FaultClass::KeyDisabled),
            (400, "NotFoundException", FaultClass::KeyGone),
            (400, "AccessDeniedException", FaultClass::Denied),
            (400, "ThrottlingException", FaultClass::Unreachable),
            (400, "LimitExceededException", FaultClass::Unreachable),
            (400, "InvalidCiphertextException", FaultClass::Corrupt),
            (400, "IncorrectKeyException", FaultClass::Corrupt),
            (400, "ExpiredTokenException", FaultClass::CredentialFault),
            (400, "UnrecognizedClientException", FaultClass::CredentialFault),
            (403, "InvalidSignatureException", FaultClass::CredentialFault),
            (500, "KMSInternalException", FaultClass::Unreachable),
            (500, "SomethingNew", FaultClass::Unreachable),
            (400, "InvalidKeyUsageException", FaultClass::Unclassified),
            (404, "SomethingNew", FaultClass::Unclassified),
        ] {
            assert_eq!(from_kms(&reply(status, &format!(r#"{{"__type":"{kind}"}}"#))).class, class, "{kind}");
        }
    }

    #[test]
    fn strangers_answer_is_never_more_than_unreachable() {
        for status in [200, 400, 403, 404, 500, 503] {
            for body in ["<html>x</html>", "{}", "[]", "", r#"{"error":"x"}"#, "<Code>AccessDenied</Code>"] {
                assert_eq!(from_kms(&reply(status, body)).class, FaultClass::Unreachable, "{status} {body}");
                assert_eq!(from_sts(&reply(status, body)).class, FaultClass::Unreachable, "{status} {body}");
            }
        }
    }

    #[test]
    fn sts_speaks_of_the_credential_only() {
        let body =
            |code| format!("<ErrorResponse><Error><Code>{code}</Code><Message>m</Message></Error></ErrorResponse>");
        for (code, class) in [
            ("AccessDenied", FaultClass::CredentialFault),
            ("ExpiredTokenException", FaultClass::CredentialFault),
            ("InvalidIdentityToken", FaultClass::CredentialFault),
            ("IDPCommunicationError", FaultClass::Unreachable),
        ] {
            assert_eq!(from_sts(&reply(400, &body(code))).class, class, "{code}");
        }
    }

    #[test]
    fn refusal_shows_code_and_request_but_nothing_of_the_message() {
        let mut reply = reply(400, r#"{"__type":"DisabledException","message":"s3cret"}"#);
        reply.headers.insert("x-amzn-requestid", http::HeaderValue::from_static("1b2d"));
        let shown = from_kms(&reply).to_string();
        assert!(shown.contains("DisabledException") && shown.contains("1b2d") && !shown.contains("s3cret"), "{shown}");
    }

    proptest! {
        /// Whatever stands in the way may say what it wants, as long as it does not speak the vendor's own words.
        #[test]
        fn answer_without_a_known_code_never_revokes(
            status in 200_u16..600,
            code in ".{0,80}",
            garbage in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let json = serde_json::json!({"__type": code, "message": code}).to_string();
            let xml = format!("<ErrorResponse><Error><Code>{code}</Code></Error></ErrorResponse>");
            for body in [json.into_bytes(), xml.into_bytes(), garbage] {
                let reply = Reply { body: Zeroizing::new(body), ..reply(status, "") };
                for error in [from_kms(&reply), from_sts(&reply)] {
                    prop_assert!(matches!(error.class, FaultClass::Unreachable | FaultClass::Unclassified), "{error}");
                    prop_assert!(error.code.len() <= 64 && error.code.bytes().all(|byte| (0x20..0x7f).contains(&byte)));
                }
            }
        }
    }
}
