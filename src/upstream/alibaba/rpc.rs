//! One call of the vendor's RPC style: parameters in a form, signed, sent, sorted; tried again where that helps.

use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, Method, StatusCode};
use keystead_core::FaultClass;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::credentials::Credential;
use super::faults;
use super::sign::{self, Signable};
use crate::upstream::answer;
use crate::upstream::calls::Calls;
use crate::upstream::contract::UpstreamError;
use crate::upstream::dates;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::form;
use crate::upstream::retry::Retry;
use crate::upstream::skew::Skew;
use crate::upstream::transport::{Reply, Request, Transport};

/// A clock that is off by less does not make a signature wrong; the vendor allows 15 minutes.
const NOTABLE_SKEW: u64 = 30;

/// A service of the vendor's.
#[derive(Debug, Clone, Copy)]
pub struct Service {
    /// For people.
    pub name: &'static str,
    pub version: &'static str,
    /// Class of a refusal, by action, code and status.
    pub sort: fn(&str, &str, StatusCode) -> FaultClass,
}

pub const KMS: Service = Service { name: "Alibaba Cloud KMS", version: "2016-01-20", sort: faults::of_kms };
pub const STS: Service =
    Service { name: "Alibaba Cloud STS", version: "2015-04-01", sort: |_, code, status| faults::of_sts(code, status) };

/// One call to make.
pub struct Call<'a> {
    pub service: Service,
    pub endpoint: &'a Endpoint,
    pub action: &'static str,
    pub parameters: &'a [(&'a str, &'a str)],
    /// `None` for the one call that needs no signature, as a token stands for it.
    pub credential: Option<&'a Credential>,
}

/// What calls share.
pub struct Rpc {
    pub transport: Transport,
    pub calls: Calls,
    /// All of the vendor's services are on one time.
    skew: Skew,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(rename = "Code")]
    code: String,
    #[serde(rename = "RequestId", default)]
    request_id: String,
}

impl Rpc {
    pub fn new(transport: Transport, calls: Calls) -> Self {
        Self { transport, calls, skew: Skew::default() }
    }

    /// The time as the vendor's services see it.
    pub fn now(&self) -> SystemTime {
        self.skew.apply(self.transport.now())
    }

    /// The answer and the service's clock.
    ///
    /// # Errors
    /// Whatever the last attempt failed with.
    pub async fn call<T: DeserializeOwned>(
        &self,
        call: &Call<'_>,
        deadline: Instant,
    ) -> Result<(T, Option<SystemTime>), UpstreamError> {
        let mut retry = Retry::new(deadline);
        let mut corrected = false;
        loop {
            let before = self.now();
            let error = match self.attempt(call, deadline).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let learnt = distance(before, self.now()) >= NOTABLE_SKEW;
            if faults::is_about_time(&error.code) && learnt && !corrected {
                corrected = true;
                continue;
            }
            retry.wait_after(error).await?;
        }
    }

    async fn attempt<T: DeserializeOwned>(
        &self,
        call: &Call<'_>,
        deadline: Instant,
    ) -> Result<(T, Option<SystemTime>), UpstreamError> {
        let outcome = match self.transport.send(self.request(call)?, deadline).await {
            Ok(reply) => self.judge(call, &reply).map(|answer| (answer, reply.date)),
            Err(error) => Err(error),
        };
        self.calls.count(call.action, outcome.is_ok());
        outcome
    }

    fn judge<T: DeserializeOwned>(&self, call: &Call<'_>, reply: &Reply) -> Result<T, UpstreamError> {
        if let Some(date) = reply.date {
            self.skew.learn(date, self.transport.now());
        }
        if reply.status == StatusCode::OK {
            return answer::json(reply, call.service.name);
        }
        let refusal: Refusal = answer::json(reply, call.service.name)?;
        let code = answer::printable(&refusal.code, 64);
        let class = (call.service.sort)(call.action, &code, reply.status);
        let request_id = answer::printable(&refusal.request_id, 64);
        let detail = format!("{} refused {}, request {request_id}", call.service.name, call.action);
        Err(UpstreamError { retry_after: reply.retry_after, ..UpstreamError::new(class, code, detail) })
    }

    fn request<'a>(&self, call: &Call<'a>) -> Result<Request<'a>, UpstreamError> {
        let body = form::body(call.parameters);
        let host = call.endpoint.authority();
        let (date, nonce, hash) = (dates::iso8601(self.now()), nonce()?, sign::sha256_hex(&body));
        let token = call.credential.and_then(|credential| credential.security_token.as_ref());
        let mut fields = vec![
            ("content-type", form::CONTENT_TYPE),
            ("host", &host),
            ("x-acs-action", call.action),
            ("x-acs-content-sha256", &hash),
            ("x-acs-date", &date),
        ];
        if let Some(token) = token {
            fields.push(("x-acs-security-token", token.expose()));
        }
        fields.extend([("x-acs-signature-nonce", nonce.as_str()), ("x-acs-version", call.service.version)]);
        let mut headers = HeaderMap::new();
        for (name, value) in fields.iter().filter(|(name, _)| *name != "host") {
            let value =
                if *name == "x-acs-security-token" { Request::secret_header(value) } else { Request::header(value) };
            headers.insert(Request::header_name(name), value?);
        }
        headers.insert(http::header::ACCEPT, http::HeaderValue::from_static("application/json"));
        if let Some(credential) = call.credential {
            let signable = Signable { method: "POST", query: "", headers: &fields, payload_hash: &hash };
            let secret = credential.access_key_secret.expose().as_bytes();
            let authorization = sign::authorization(&signable, &credential.access_key_id, secret);
            headers.insert(http::header::AUTHORIZATION, Request::secret_header(&authorization)?);
        }
        Ok(Request { method: Method::POST, endpoint: call.endpoint, path: "/", headers, body })
    }
}

/// Never used twice: the service refuses a nonce it has seen.
fn nonce() -> Result<String, UpstreamError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| {
        let detail = format!("the kernel gives no random numbers: {error}");
        UpstreamError::new(FaultClass::Unreachable, "random", detail)
    })?;
    Ok(sign::hex(&bytes))
}

fn distance(a: SystemTime, b: SystemTime) -> u64 {
    a.duration_since(b).unwrap_or_else(|error| error.duration()).as_secs()
}

/// Shared by the provider and its credentials.
pub type SharedRpc = Arc<Rpc>;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use zeroize::Zeroizing;

    use super::*;
    use crate::upstream::settings::TransportSettings;
    use crate::upstream::transport::codes;

    #[derive(Debug, Deserialize)]
    struct Wanted {
        #[serde(rename = "KeyId")]
        _key_id: String,
    }

    fn judged(action: &'static str, status: u16, body: &[u8]) -> Result<Wanted, UpstreamError> {
        let transport = Transport::new(TransportSettings::default(), Arc::new(SystemTime::now));
        let rpc = Rpc::new(transport, Calls::new(&[action], &[]));
        let endpoint = "https://kms.example".parse().unwrap();
        let call = Call { service: KMS, endpoint: &endpoint, action, parameters: &[], credential: None };
        let reply = Reply {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: Zeroizing::new(body.to_vec()),
            date: None,
            retry_after: Some(Duration::from_secs(7)),
        };
        rpc.judge(&call, &reply)
    }

    #[test]
    fn refusal_tells_code_and_request_but_nothing_of_the_message() {
        let body = br#"{"Code": "Rejected.Disabled", "RequestId": "1D2B", "Message": "secret-one"}"#;
        let error = judged("Decrypt", 409, body).unwrap_err();
        assert_eq!((error.class, error.retry_after), (FaultClass::KeyDisabled, Some(Duration::from_secs(7))));
        let shown = error.to_string();
        assert!(
            shown.contains("Rejected.Disabled") && shown.contains("1D2B") && !shown.contains("secret-one"),
            "{shown}"
        );
    }

    #[test]
    fn success_that_lacks_what_was_asked_for_is_foreign() {
        for body in [b"".as_slice(), b"<html>", b"{}", b"[]", b"null", br#"{"KeyId": 7}"#, br#"{"KeyId": "k"}}"#] {
            let error = judged("Decrypt", 200, body).unwrap_err();
            assert_eq!((error.class, error.code.as_str()), (FaultClass::Unreachable, codes::FOREIGN));
        }
        judged("Decrypt", 200, br#"{"KeyId": "k", "Later": 1}"#).unwrap();
    }

    proptest! {
        /// Whatever stands in the way may say what it wants, as long as it does not speak the vendor's own words.
        #[test]
        fn answer_without_a_known_code_never_revokes(
            status in 200_u16..600,
            code in ".{0,80}",
            garbage in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let json = serde_json::json!({ "Code": code, "Message": code, "RequestId": code }).to_string();
            for body in [json.as_bytes(), garbage.as_slice()] {
                let error = judged("Decrypt", status, body).unwrap_err();
                prop_assert!(matches!(error.class, FaultClass::Unreachable | FaultClass::Unclassified), "{error}");
                prop_assert!(error.code.len() <= 64 && error.code.bytes().all(|byte| (0x20..0x7f).contains(&byte)));
            }
        }
    }
}
