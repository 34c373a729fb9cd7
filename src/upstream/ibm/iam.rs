//! Tokens of IBM Cloud IAM: exchanged for the credential, used until four fifths of their life are over, and longer while IAM is away.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, header};
use keystead_core::FaultClass;
use serde::Deserialize;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::credentials::{Credential, Credentials, Proof};
use super::errors;
use super::settings::IbmSettings;
use crate::upstream::UpstreamError;
use crate::upstream::answer;
use crate::upstream::calls::Calls;
use crate::upstream::contract::Expiry;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::form;
use crate::upstream::renewed::{Exchanged, Lent, Renewed};
use crate::upstream::secret_text::SecretText;
use crate::upstream::transport::{Reply, Request, Transport};

/// As [`Calls`] counts them.
pub(super) const TOKEN: &str = "token";

pub(super) struct Iam {
    endpoint: Endpoint,
    transport: Transport,
    credentials: Credentials,
    tokens: Renewed<Token>,
}

pub(super) struct Token {
    /// `Bearer …`, marked as sensitive.
    pub header: HeaderValue,
    /// What it was exchanged for: with another credential in the file it is not used on.
    origin: Arc<Credential>,
}

#[derive(Deserialize)]
struct Granted {
    access_token: SecretText,
    /// Seconds. Relative, so that our clock may be wrong.
    expires_in: u64,
}

impl Iam {
    pub fn new(settings: &IbmSettings, transport: Transport) -> Self {
        let credentials = Credentials::new(&settings.credentials);
        Self { endpoint: settings.iam_endpoint.clone(), transport, credentials, tokens: Renewed::default() }
    }

    pub async fn token(&self, calls: &Calls, deadline: Instant) -> Result<Lent<Token>, UpstreamError> {
        let origin = self.credentials.get().await?;
        let fits = |token: &Token| Arc::ptr_eq(&token.origin, &origin);
        self.tokens.get(fits, deadline, self.exchange(&origin, calls, deadline)).await
    }

    /// The service refuses this token.
    pub async fn reject(&self, token: &Arc<Token>) {
        self.tokens.reject(token).await;
    }

    pub fn expiry(&self) -> Option<Expiry> {
        let not_after = self.tokens.not_after(self.transport.now())?;
        Some(Expiry { what: "IAM token".into(), not_after })
    }

    async fn exchange(
        &self,
        origin: &Arc<Credential>,
        calls: &Calls,
        deadline: Instant,
    ) -> Result<Exchanged<Token>, UpstreamError> {
        const GRANT: &str = "grant_type";
        let profile = origin.profile.as_deref();
        let granted = match (&origin.proof, profile) {
            (Proof::ComputeResource(token), profile) => {
                let fields = [
                    (GRANT, "urn:ibm:params:oauth:grant-type:cr-token"),
                    ("cr_token", token.expose()),
                    ("profile_id", profile.unwrap_or_default()),
                ];
                self.grant(&fields, calls, deadline).await?
            }
            (Proof::ApiKey(key), None) => self.grant(&by_api_key(key), calls, deadline).await?,
            (Proof::ApiKey(key), Some(profile)) => {
                let own = self.grant(&by_api_key(key), calls, deadline).await?;
                let fields = [
                    (GRANT, "urn:ibm:params:oauth:grant-type:assume"),
                    ("access_token", own.access_token.expose()),
                    ("profile_id", profile),
                ];
                self.grant(&fields, calls, deadline).await?
            }
        };
        let bearer = Zeroizing::new(format!("Bearer {}", granted.access_token.expose()));
        let header = Request::secret_header(&bearer)?;
        let life = Duration::from_secs(granted.expires_in.min(24 * 3600));
        Ok(Exchanged { value: Token { header, origin: Arc::clone(origin) }, life })
    }

    async fn grant(&self, fields: &[(&str, &str)], calls: &Calls, deadline: Instant) -> Result<Granted, UpstreamError> {
        let granted = self.ask(fields, deadline).await;
        calls.count(TOKEN, granted.is_ok());
        granted
    }

    async fn ask(&self, fields: &[(&str, &str)], deadline: Instant) -> Result<Granted, UpstreamError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(form::CONTENT_TYPE));
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let path = self.endpoint.path("/identity/token");
        let body = form::body(fields);
        let request = Request { method: Method::POST, endpoint: &self.endpoint, path: &path, headers, body };
        let reply = self.transport.send(request, deadline).await.map_err(of_iam)?;
        read(&reply)
    }
}

fn by_api_key(key: &SecretText) -> [(&str, &str); 3] {
    [("grant_type", "urn:ibm:params:oauth:grant-type:apikey"), ("apikey", key.expose()), ("response_type", "cloud_iam")]
}

fn read(reply: &Reply) -> Result<Granted, UpstreamError> {
    if !reply.status.is_success() {
        return Err(errors::from_iam(reply));
    }
    answer::json(reply, "IBM Cloud IAM")
}

/// Says that it is the way to IAM that is broken, and not the one to the key.
fn of_iam(error: UpstreamError) -> UpstreamError {
    debug_assert_eq!(error.class, FaultClass::Unreachable);
    UpstreamError { detail: format!("no token from IBM Cloud IAM: {}", error.detail), ..error }
}
