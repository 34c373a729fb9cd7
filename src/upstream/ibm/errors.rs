//! The error codes of Key Protect and IAM, sorted into classes.

use http::StatusCode;
use keystead_core::FaultClass;
use serde::Deserialize;

use crate::upstream::UpstreamError;
use crate::upstream::answer::{foreign, printable, unsorted};
use crate::upstream::transport::Reply;

const SERVICE: &str = "IBM Key Protect";
const UNAUTHORIZED: &str = "UNAUTHORIZED_ERR";

#[derive(Deserialize)]
struct Failure {
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
struct Resource {
    /// What tells it from a stranger's JSON.
    #[serde(rename = "errorMsg")]
    _message: String,
    #[serde(default)]
    reasons: Vec<Reason>,
}

#[derive(Deserialize)]
struct Reason {
    code: String,
}

#[derive(Deserialize)]
struct IamFailure {
    #[serde(rename = "errorCode")]
    code: String,
}

/// What an answer of Key Protect that is no success says.
pub(super) fn from_key_protect(reply: &Reply) -> UpstreamError {
    let Some(resource) = failure(reply) else { return foreign(reply, SERVICE) };
    let code = match resource.reasons.into_iter().next() {
        Some(reason) => reason.code,
        // The vendor documents a refusal of access without reasons.
        None if matches!(reply.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => UNAUTHORIZED.to_owned(),
        None => format!("http-{}", reply.status.as_u16()),
    };
    let class = class_of(&code).unwrap_or_else(|| unsorted(reply.status));
    told(reply, class, &code, SERVICE)
}

/// What an answer of IAM that is no success says.
pub(super) fn from_iam(reply: &Reply) -> UpstreamError {
    const IAM: &str = "IBM Cloud IAM";
    let Ok(failure) = serde_json::from_slice::<IamFailure>(&reply.body) else { return foreign(reply, IAM) };
    let class = match unsorted(reply.status) {
        // IAM is asked nothing but whether the credential is good.
        FaultClass::Unclassified if failure.code.starts_with("BXNIM") => FaultClass::CredentialFault,
        other => other,
    };
    told(reply, class, &failure.code, IAM)
}

fn failure(reply: &Reply) -> Option<Resource> {
    serde_json::from_slice::<Failure>(&reply.body).ok()?.resources.into_iter().next()
}

/// Without the service's message: it may repeat what was sent.
fn told(reply: &Reply, class: FaultClass, code: &str, service: &str) -> UpstreamError {
    let id = reply.headers.get("correlation-id").and_then(|id| id.to_str().ok()).map(|id| printable(id, 64));
    let id = id.map(|id| format!(", correlation ID {id}")).unwrap_or_default();
    let detail = format!("{service} refused with status {}{id}", reply.status.as_u16());
    UpstreamError { retry_after: reply.retry_after, ..UpstreamError::new(class, printable(code, 64), detail) }
}

fn class_of(code: &str) -> Option<FaultClass> {
    Some(match code {
        "KEY_ACTION_INVALID_STATE_ERR" => FaultClass::KeyDisabled,
        "KEY_DELETED_ERR" | "KEY_NOT_FOUND_ERR" => FaultClass::KeyGone,
        UNAUTHORIZED => FaultClass::Denied,
        // Not a token at all: what IAM gave was damaged on the way.
        "BEARER_SUB_EXTRACTION_ERR" => FaultClass::CredentialFault,
        "UNPROCESSABLE_CIPHERTEXT_ERR" | "INVALID_FIELD_ERR" => FaultClass::Corrupt,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
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

    fn judged(status: u16, code: &str) -> FaultClass {
        let body = format!(
            r#"{{"resources":[{{"errorMsg":"m","reasons":[{{"code":"{code}","message":"m","status":{status}}}]}}]}}"#
        );
        from_key_protect(&reply(status, &body)).class
    }

    #[test]
    fn code_decides_and_not_the_status() {
        for (status, code, class) in [
            (409, "KEY_ACTION_INVALID_STATE_ERR", FaultClass::KeyDisabled),
            (410, "KEY_DELETED_ERR", FaultClass::KeyGone),
            (404, "KEY_NOT_FOUND_ERR", FaultClass::KeyGone),
            (403, "UNAUTHORIZED_ERR", FaultClass::Denied),
            (401, "UNAUTHORIZED_ERR", FaultClass::Denied),
            (400, "BEARER_SUB_EXTRACTION_ERR", FaultClass::CredentialFault),
            (422, "UNPROCESSABLE_CIPHERTEXT_ERR", FaultClass::Corrupt),
            (400, "INVALID_FIELD_ERR", FaultClass::Corrupt),
            // An expired key still unwraps: that it no longer wraps must not revoke.
            (400, "KEY_EXPIRED_ERR", FaultClass::Unclassified),
            (409, "REQ_TOO_EARLY_ERR", FaultClass::Unclassified),
            (410, "SOMETHING_NEW", FaultClass::Unclassified),
            (500, "INCOMPLETE_METADATA_ERR", FaultClass::Unreachable),
            (429, "SOMETHING_NEW", FaultClass::Unreachable),
        ] {
            assert_eq!(judged(status, code), class, "{status} {code}");
        }
    }

    #[test]
    fn refusal_without_reasons_is_a_refusal_of_access_only_where_documented() {
        let body = r#"{"resources":[{"errorMsg":"Unauthorized: The user does not have access"}]}"#;
        let error = from_key_protect(&reply(401, body));
        assert_eq!((error.class, error.code.as_str()), (FaultClass::Denied, UNAUTHORIZED));
        assert_eq!(from_key_protect(&reply(409, body)).class, FaultClass::Unclassified);
        assert_eq!(from_key_protect(&reply(429, body)).class, FaultClass::Unreachable);
    }

    #[test]
    fn strangers_answer_is_never_more_than_unreachable() {
        for status in [200, 401, 403, 404, 410, 500, 503] {
            for body in ["<html>401</html>", "{}", "[]", "", r#"{"resources":[]}"#, r#"{"error":"x"}"#] {
                assert_eq!(from_key_protect(&reply(status, body)).class, FaultClass::Unreachable, "{status} {body}");
                assert_eq!(from_iam(&reply(status, body)).class, FaultClass::Unreachable, "{status} {body}");
            }
        }
    }

    #[test]
    fn iam_refuses_the_credential_or_is_unreachable() {
        let body = r#"{"errorCode":"BXNIM0415E","errorMessage":"Provided API key could not be found."}"#;
        for (status, class) in [
            (400, FaultClass::CredentialFault),
            (401, FaultClass::CredentialFault),
            (429, FaultClass::Unreachable),
            (503, FaultClass::Unreachable),
        ] {
            assert_eq!(from_iam(&reply(status, body)).class, class, "{status}");
        }
    }

    #[test]
    fn refusal_shows_code_and_correlation_but_nothing_of_the_message() {
        let body = r#"{"resources":[{"errorMsg":"s3cret","reasons":[{"code":"KEY_DELETED_ERR","message":"s3cret"}]}]}"#;
        let mut reply = reply(410, body);
        reply.headers.insert("correlation-id", http::HeaderValue::from_static("1b2d"));
        let shown = from_key_protect(&reply).to_string();
        assert!(shown.contains("KEY_DELETED_ERR") && shown.contains("1b2d") && !shown.contains("s3cret"), "{shown}");
    }

    proptest! {
        /// Whatever stands in the way may say what it wants, as long as it does not speak the vendor's own words.
        #[test]
        fn answer_without_a_known_code_never_revokes(
            status in (200_u16..600).prop_filter("the vendor refuses access without a code", |status| !matches!(status, 401 | 403)),
            code in ".{0,80}",
            garbage in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let spoken = serde_json::json!({
                "resources": [{"errorMsg": code, "reasons": [{"code": code, "message": code}]}],
                "errorCode": code,
            });
            let bare = serde_json::json!({"resources": [{"errorMsg": code}]});
            for body in [spoken.to_string().into_bytes(), bare.to_string().into_bytes(), garbage] {
                let reply = Reply { body: Zeroizing::new(body), ..reply(status, "") };
                for error in [from_key_protect(&reply), from_iam(&reply)] {
                    prop_assert!(matches!(error.class, FaultClass::Unreachable | FaultClass::Unclassified), "{error}");
                    prop_assert!(error.code.len() <= 64 && error.code.bytes().all(|byte| (0x20..0x7f).contains(&byte)));
                }
            }
        }
    }
}
