//! One call of the vendor's RPC style: parameters in a form, signed, sent, sorted; tried again where that helps.

use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, Method, StatusCode};
use keystead_core::FaultClass;
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::credentials::Credential;
use super::faults;
use super::sign::{self, Signable};
use crate::upstream::answer;
use crate::upstream::calls::Calls;
use crate::upstream::contract::UpstreamError;
use crate::upstream::dates;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::retry::Retry;
use crate::upstream::skew::Skew;
use crate::upstream::transport::{Reply, Request, Transport};

const FORM: &str = "application/x-www-form-urlencoded";
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
        let body = form(call.parameters);
        let host = call.endpoint.authority();
        let (date, nonce, hash) = (dates::iso8601(self.now()), nonce()?, sign::sha256_hex(&body));
        let token = call.credential.and_then(|credential| credential.security_token.as_ref());
        let mut fields = vec![
            ("content-type", FORM),
            ("host", &host),
            ("x-acs-action", call.action),
            ("x-acs-content-sha256", &hash),
            ("x-acs-date", &date),
        ];
        if let Some(token) = token {
            fields.push(("x-acs-security-token", token.expose_secret()));
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
            let secret = credential.access_key_secret.expose_secret().as_bytes();
            let authorization = sign::authorization(&signable, &credential.access_key_id, secret);
            headers.insert(http::header::AUTHORIZATION, Request::secret_header(&authorization)?);
        }
        Ok(Request { method: Method::POST, endpoint: call.endpoint, path: "/", headers, body })
    }
}

/// As `application/x-www-form-urlencoded`; it may hold a key.
fn form(parameters: &[(&str, &str)]) -> Zeroizing<Vec<u8>> {
    let longest = parameters.iter().map(|(name, value)| 3 * (name.len() + value.len()) + 2).sum();
    // Never grows: growing would leave a copy behind.
    let mut text = String::with_capacity(longest);
    for (name, value) in parameters {
        if !text.is_empty() {
            text.push('&');
        }
        sign::push_encoded(&mut text, name);
        text.push('=');
        sign::push_encoded(&mut text, value);
    }
    Zeroizing::new(text.into_bytes())
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
