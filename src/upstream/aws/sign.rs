//! Signature version 4, for the one shape of request that KMS takes: a POST with a JSON body.
//!
//! Source: AWS Identity and Access Management, "Create a signed AWS API request". botocore checks it in tests/upstream.

use std::time::SystemTime;

use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::credentials::Credential;
use crate::upstream::UpstreamError;
use crate::upstream::dates;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::transport::Request;

const SERVICE: &str = "kms";
pub(super) const CONTENT_TYPE: &str = "application/x-amz-json-1.1";
const DATE: HeaderName = Request::header_name("x-amz-date");
const TARGET: HeaderName = Request::header_name("x-amz-target");
const TOKEN: HeaderName = Request::header_name("x-amz-security-token");

/// The headers of a signed request. `now` is what the service's clock shows.
pub(super) fn headers(
    credential: &Credential,
    region: &str,
    endpoint: &Endpoint,
    target: &str,
    body: &[u8],
    now: SystemTime,
) -> Result<HeaderMap, UpstreamError> {
    let date = dates::iso8601_basic(now);
    let token = credential.session_token.as_ref();
    // In the order of their names, as the canonical request wants them.
    let host = endpoint.authority();
    let mut signed = vec![("content-type", CONTENT_TYPE), ("host", &host), ("x-amz-date", &date)];
    if let Some(token) = token {
        signed.push(("x-amz-security-token", token.expose()));
    }
    signed.push(("x-amz-target", target));
    let names: Vec<&str> = signed.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let mut canonical = Zeroizing::new(format!("POST\n{}\n\n", endpoint.path("/")));
    for (name, value) in &signed {
        canonical.push_str(&format!("{name}:{value}\n"));
    }
    canonical.push_str(&format!("\n{names}\n{}", hex(&Sha256::digest(body))));
    let scope = format!("{}/{region}/{SERVICE}/aws4_request", &date[..8]);
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex(&Sha256::digest(canonical.as_bytes())));
    let signature = signature(credential.secret_access_key.expose(), &date[..8], region, SERVICE, &to_sign);
    let access_key = &credential.access_key_id;
    let authorization =
        format!("AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders={names}, Signature={signature}");

    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, Request::secret_header(&authorization)?);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    headers.insert(DATE, Request::header(&date)?);
    headers.insert(TARGET, Request::header(target)?);
    if let Some(token) = token {
        headers.insert(TOKEN, Request::secret_header(token.expose())?);
    }
    Ok(headers)
}

fn signature(secret: &str, day: &str, region: &str, service: &str, to_sign: &str) -> String {
    let seed = Zeroizing::new(format!("AWS4{secret}"));
    let mut key = mac(seed.as_bytes(), day);
    for part in [region, service, "aws4_request"] {
        key = mac(&*key, part);
    }
    hex(&*mac(&*key, to_sign))
}

fn mac(key: &[u8], text: &str) -> Zeroizing<[u8; 32]> {
    // HMAC takes a key of any length.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(text.as_bytes());
    Zeroizing::new(mac.finalize().into_bytes().into())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The worked example of the AWS General Reference.
    #[test]
    fn published_example_is_reproduced() {
        let to_sign = "AWS4-HMAC-SHA256\n20150830T123600Z\n20150830/us-east-1/iam/aws4_request\n\
                       f536975d06c0309214f805bb90ccff089219ecd68b2577efef23edd43b7e1a59";
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        assert_eq!(
            signature(secret, "20150830", "us-east-1", "iam", to_sign),
            "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
        );
    }

    #[test]
    fn secret_and_session_token_are_in_no_debug_output() {
        let credential = Credential::for_test("AKIDEXAMPLE", "s3cret", Some("t0ken"));
        let endpoint: Endpoint = "https://kms.eu-central-1.amazonaws.com".parse().unwrap();
        let headers =
            headers(&credential, "eu-central-1", &endpoint, "TrentService.Decrypt", b"{}", SystemTime::UNIX_EPOCH)
                .unwrap();
        let shown = format!("{credential:?} {headers:?}");
        assert!(!shown.contains("s3cret") && !shown.contains("t0ken") && !shown.contains("Signature="), "{shown}");
    }
}
