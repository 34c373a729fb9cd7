//! Whom requests are signed for: an access key from a file, or a session that STS or the ECS metadata service hands out.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use keystead_core::FaultClass;
use serde::Deserialize;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::credential_file::{self, FileCredential};
use super::rpc::{Call, STS, SharedRpc};
use super::settings::{AlibabaSettings, CredentialSource};
use crate::upstream::answer;
use crate::upstream::contract::{Expiry, UpstreamError};
use crate::upstream::dates;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::renewed::{Exchanged, Lent, Renewed};
use crate::upstream::retry::Retry;
use crate::upstream::secret_text::SecretText;
use crate::upstream::transport::{Reply, Request};
use crate::upstream::watched::{FileFault, Secrecy, Watched};

const MAX_FILE: u64 = 64 * 1024;
/// The vendor gives at most as long as the role allows; an hour is every role's default.
const SESSION_SECONDS: &str = "3600";
/// No role's session is longer; an end beyond it is our clock's fault.
const LONGEST_SESSION: Duration = Duration::from_secs(12 * 3600);
/// A role name, as the metadata service says it.
const MAX_ROLE: usize = 128;

/// What a request is signed with.
pub struct Credential {
    pub access_key_id: String,
    pub access_key_secret: SecretText,
    pub security_token: Option<SecretText>,
    /// The file's content that a session was made from: another content makes another session.
    origin: Option<Arc<FileCredential>>,
}

/// Where credentials come from, and the session in use.
pub struct Credentials {
    rpc: SharedRpc,
    sts: Endpoint,
    source: Source,
    session: Renewed<Credential>,
}

enum Source {
    File(Watched<FileCredential>),
    Ecs { metadata: Endpoint, role: Option<String> },
    Oidc { role_arn: String, provider_arn: String, session_name: String, token: Watched<SecretText> },
}

#[derive(Deserialize)]
struct Assumed {
    #[serde(rename = "Credentials")]
    credentials: Handed,
}

/// A session as STS and the metadata service write it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Handed {
    access_key_id: String,
    access_key_secret: SecretText,
    security_token: SecretText,
    expiration: String,
}

impl Credentials {
    pub fn new(settings: &AlibabaSettings, rpc: SharedRpc) -> Self {
        let source = match &settings.credentials {
            CredentialSource::File(path) => {
                Source::File(Watched::new(path.clone(), MAX_FILE, Secrecy::Private, credential_file::parse))
            }
            CredentialSource::EcsMetadata { role } => {
                Source::Ecs { metadata: settings.metadata_endpoint.clone(), role: role.clone() }
            }
            CredentialSource::Oidc { role_arn, provider_arn, token_file, session_name } => Source::Oidc {
                role_arn: role_arn.clone(),
                provider_arn: provider_arn.clone(),
                session_name: session_name.clone(),
                token: token_file_of(token_file.clone()),
            },
        };
        Self { rpc, sts: settings.sts_endpoint.clone(), source, session: Renewed::default() }
    }

    /// What to sign with now.
    ///
    /// # Errors
    /// `CredentialFault` when the file or STS gives none; `Unreachable` when nobody hands out a session and none that is still
    /// good is left.
    pub async fn get(&self, deadline: Instant) -> Result<Lent<Credential>, UpstreamError> {
        let origin = match &self.source {
            Source::File(file) => Some(file.get().await.map_err(unreadable)?),
            Source::Ecs { .. } | Source::Oidc { .. } => None,
        };
        if let Some(plain) = origin.as_ref().filter(|origin| origin.role.is_none()) {
            // Asked for again, a file says the same.
            return Ok(Lent { value: Arc::new(plain.credential()), fresh: true });
        }
        let fits = |session: &Credential| match (&session.origin, &origin) {
            (Some(held), Some(current)) => Arc::ptr_eq(held, current),
            (None, None) => true,
            _ => false,
        };
        self.session.get(fits, deadline, self.fetch(origin.clone(), deadline)).await
    }

    /// The service refuses this session.
    pub async fn reject(&self, refused: &Arc<Credential>) {
        self.session.reject(refused).await;
    }

    pub fn expiry(&self) -> Option<Expiry> {
        let not_after = self.session.not_after(self.rpc.transport.now())?;
        Some(Expiry { what: "STS session".into(), not_after })
    }

    async fn fetch(
        &self,
        origin: Option<Arc<FileCredential>>,
        deadline: Instant,
    ) -> Result<Exchanged<Credential>, UpstreamError> {
        let handed = match &self.source {
            Source::File(_) => {
                // `get` comes here with a role only.
                let found = origin.as_deref().and_then(|origin| Some((origin, origin.role.as_ref()?)));
                let (origin, role) =
                    found.ok_or_else(|| fault("no-role", "the credentials file names no role".into()))?;
                let parameters = [
                    ("RoleArn", role.arn.as_str()),
                    ("RoleSessionName", role.session_name.as_str()),
                    ("DurationSeconds", SESSION_SECONDS),
                ];
                self.ask_sts("AssumeRole", &parameters, Some(&origin.credential()), deadline).await?
            }
            Source::Ecs { metadata, role } => self.role_credential(metadata, role.as_deref(), deadline).await?,
            Source::Oidc { role_arn, provider_arn, session_name, token } => {
                let token = token.get().await.map_err(unreadable)?;
                let parameters = [
                    ("RoleArn", role_arn.as_str()),
                    ("OIDCProviderArn", provider_arn),
                    ("OIDCToken", token.expose()),
                    ("RoleSessionName", session_name),
                    ("DurationSeconds", SESSION_SECONDS),
                ];
                self.ask_sts("AssumeRoleWithOIDC", &parameters, None, deadline).await?
            }
        };
        let expires = dates::parse_iso8601(&handed.expiration).ok_or_else(|| {
            fault("session-without-end", "the session that was handed out has no end that is a date".into())
        })?;
        let life = expires.duration_since(self.rpc.now()).unwrap_or_default().min(LONGEST_SESSION);
        let value = Credential {
            access_key_id: handed.access_key_id,
            access_key_secret: handed.access_key_secret,
            security_token: Some(handed.security_token),
            origin,
        };
        Ok(Exchanged { value, life })
    }

    async fn ask_sts(
        &self,
        action: &'static str,
        parameters: &[(&str, &str)],
        credential: Option<&Credential>,
        deadline: Instant,
    ) -> Result<Handed, UpstreamError> {
        let call = Call { service: STS, endpoint: &self.sts, action, parameters, credential };
        let (assumed, _): (Assumed, _) = self.rpc.call(&call, deadline).await?;
        Ok(assumed.credentials)
    }

    /// Version 2 of the metadata service only: with a token, which a forged request from within the machine does not get.
    async fn role_credential(
        &self,
        metadata: &Endpoint,
        role: Option<&str>,
        deadline: Instant,
    ) -> Result<Handed, UpstreamError> {
        const NAME: &str = "the ECS metadata service";
        const TOKEN: &str = "x-aliyun-ecs-metadata-token";
        const ROLES: &str = "/latest/meta-data/ram/security-credentials/";
        let mut headers = HeaderMap::new();
        headers.insert(Request::header_name("x-aliyun-ecs-metadata-token-ttl-seconds"), Request::header("60")?);
        let token = self.metadata_reply(Method::PUT, metadata, "/latest/api/token", headers, deadline).await?;
        let mut headers = HeaderMap::new();
        headers.insert(Request::header_name(TOKEN), Request::secret_header(text(&token, 1024)?)?);
        let role = match role {
            Some(role) => role.to_owned(),
            None => {
                let reply = self.metadata_reply(Method::GET, metadata, ROLES, headers.clone(), deadline).await?;
                text(&reply, MAX_ROLE)?.to_owned()
            }
        };
        if !role.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')) {
            return Err(fault("no-role", format!("{NAME} names no RAM role; attach one to the instance")));
        }
        let reply = self.metadata_reply(Method::GET, metadata, &format!("{ROLES}{role}"), headers, deadline).await?;
        answer::json(&reply, NAME)
    }

    async fn metadata_reply(
        &self,
        method: Method,
        metadata: &Endpoint,
        path: &str,
        headers: HeaderMap,
        deadline: Instant,
    ) -> Result<Reply, UpstreamError> {
        let mut retry = Retry::new(deadline);
        loop {
            let (method, headers, body) = (method.clone(), headers.clone(), Zeroizing::default());
            let request = Request { method, endpoint: metadata, path, headers, body };
            let error = match self.rpc.transport.send(request, deadline).await {
                Ok(reply) if reply.status == StatusCode::OK => return Ok(reply),
                Ok(reply) => refused_by_metadata(&reply),
                Err(error) => error,
            };
            retry.wait_after(error).await?;
        }
    }
}

impl FileCredential {
    fn credential(&self) -> Credential {
        Credential {
            access_key_id: self.access_key_id.clone(),
            access_key_secret: SecretText::new(self.access_key_secret.expose()),
            security_token: self.security_token.as_ref().map(|token| SecretText::new(token.expose())),
            origin: None,
        }
    }
}

fn refused_by_metadata(reply: &Reply) -> UpstreamError {
    let class = match answer::unsorted(reply.status) {
        FaultClass::Unreachable => FaultClass::Unreachable,
        _ => FaultClass::CredentialFault,
    };
    let detail = "the ECS metadata service hands out no credential; is a RAM role attached to the instance?";
    UpstreamError::new(class, format!("metadata-{}", reply.status.as_u16()), detail)
}

/// A short plain-text answer.
fn text(reply: &Reply, max: usize) -> Result<&str, UpstreamError> {
    std::str::from_utf8(&reply.body)
        .ok()
        .map(str::trim)
        .filter(|text| !text.is_empty() && text.len() <= max && text.bytes().all(|byte| byte.is_ascii_graphic()))
        .ok_or_else(|| answer::foreign(reply, "the ECS metadata service"))
}

/// An OIDC token, as a platform writes it; its mode is the platform's business.
fn token_file_of(path: PathBuf) -> Watched<SecretText> {
    Watched::new(path, MAX_FILE, Secrecy::AnyMode, |bytes| {
        let token = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8")?.trim();
        if token.is_empty() { Err("it is empty".into()) } else { Ok(SecretText::new(token)) }
    })
}

fn unreadable(file: FileFault) -> UpstreamError {
    fault("credentials-file", file.to_string())
}

fn fault(code: &'static str, detail: String) -> UpstreamError {
    UpstreamError::new(FaultClass::CredentialFault, code, detail)
}
