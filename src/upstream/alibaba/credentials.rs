//! Whom requests are signed for: an access key from a file, or a session that is fetched, renewed early, and used to its end
//! when nobody hands out a new one.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, Method, StatusCode};
use keystead_core::FaultClass;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::credential_file::{self, FileCredential, Role};
use super::rpc::{Call, STS, SharedRpc};
use super::settings::{AlibabaSettings, CredentialSource};
use crate::upstream::answer;
use crate::upstream::contract::{Expiry, UpstreamError};
use crate::upstream::dates;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::retry::Retry;
use crate::upstream::transport::{Reply, Request};
use crate::upstream::watched::{FileFault, Secrecy, Watched};

const MAX_FILE: u64 = 64 * 1024;
/// The vendor gives at most as long as the role allows; an hour is every role's default.
const SESSION_SECONDS: &str = "3600";
/// A session is renewed when this part of its life is left, and not used when this little is.
const RENEW_WITH_LEFT: f64 = 0.25;
const TOO_SHORT: Duration = Duration::from_secs(10);
/// A role name, as the metadata service says it.
const MAX_ROLE: usize = 128;

/// What a request is signed with.
pub struct Credential {
    pub access_key_id: String,
    pub access_key_secret: SecretString,
    pub security_token: Option<SecretString>,
}

/// Where credentials come from, and the session in use.
pub struct Credentials {
    rpc: SharedRpc,
    sts: Endpoint,
    source: Source,
    session: Mutex<Option<Session>>,
    /// One renewal at a time.
    renewal: tokio::sync::Mutex<()>,
}

enum Source {
    File(Watched<FileCredential>),
    Ecs { metadata: Endpoint, role: Option<String> },
    Oidc { role_arn: String, provider_arn: String, session_name: String, token: Watched<SecretString> },
}

#[derive(Clone)]
struct Session {
    credential: Arc<Credential>,
    fetched: SystemTime,
    expires: SystemTime,
    /// The file's content it was made from: another content makes another session.
    origin: Option<Arc<FileCredential>>,
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
    access_key_secret: SecretString,
    security_token: SecretString,
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
        let sts = settings.sts_endpoint.clone();
        Self { rpc, sts, source, session: Mutex::default(), renewal: tokio::sync::Mutex::default() }
    }

    /// What to sign with now.
    ///
    /// # Errors
    /// `CredentialFault` when the file or STS gives none; STS's own `Unreachable` when no session that is still good is left.
    pub async fn get(&self, deadline: Instant) -> Result<Arc<Credential>, UpstreamError> {
        let origin = match &self.source {
            Source::File(file) => Some(file.get().await.map_err(unreadable)?),
            Source::Ecs { .. } | Source::Oidc { .. } => None,
        };
        if let Some(plain) = origin.as_ref().filter(|origin| origin.role.is_none()) {
            return Ok(Arc::new(plain.credential()));
        }
        if let Some(session) = self.session().filter(|session| self.is_fresh(session, origin.as_ref())) {
            return Ok(session.credential);
        }
        let _one_at_a_time = self.renewal.lock().await;
        // Somebody else may have renewed it meanwhile.
        let held = self.session();
        if let Some(session) = held.clone().filter(|session| self.is_fresh(session, origin.as_ref())) {
            return Ok(session.credential);
        }
        let held = held.filter(|session| session.expires > self.rpc.now() + TOO_SHORT);
        // With a session at hand, a hanging STS may take half of the time: the call itself still has to be made.
        let until = if held.is_some() { Instant::now() + (deadline - Instant::now()) / 2 } else { deadline };
        match (self.fetch(origin, until).await, held) {
            (Ok(session), _) => {
                let credential = Arc::clone(&session.credential);
                *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
                Ok(credential)
            }
            (Err(error), Some(session)) => {
                tracing::warn!(
                    code = error.code,
                    "the session could not be renewed and is used on until it ends: {}",
                    error.detail
                );
                Ok(session.credential)
            }
            (Err(error), None) => Err(error),
        }
    }

    /// Forgets a session that the service has refused; says whether there was one, so that another try makes sense.
    pub fn forget(&self, refused: &Arc<Credential>) -> bool {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        session.take_if(|session| Arc::ptr_eq(&session.credential, refused)).is_some()
    }

    pub fn expiries(&self) -> Vec<Expiry> {
        let session = self.session().map(|session| Expiry { what: "STS session".into(), not_after: session.expires });
        session.into_iter().collect()
    }

    fn session(&self) -> Option<Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_fresh(&self, session: &Session, origin: Option<&Arc<FileCredential>>) -> bool {
        let same_origin = match (&session.origin, origin) {
            (Some(held), Some(current)) => Arc::ptr_eq(held, current),
            (None, None) => true,
            _ => false,
        };
        let life = session.expires.duration_since(session.fetched).unwrap_or_default();
        let renew_at = session.expires - life.mul_f64(RENEW_WITH_LEFT);
        same_origin && self.rpc.now() < renew_at
    }

    async fn fetch(&self, origin: Option<Arc<FileCredential>>, deadline: Instant) -> Result<Session, UpstreamError> {
        let handed = match &self.source {
            Source::File(_) => match origin.as_deref() {
                Some(FileCredential { role: Some(role), .. }) => self.assume(role, origin.as_deref(), deadline).await?,
                // `get` comes here with a role only.
                _ => return Err(fault("no-role", "the credentials file names no role".into())),
            },
            Source::Ecs { metadata, role } => self.role_credential(metadata, role.as_deref(), deadline).await?,
            Source::Oidc { role_arn, provider_arn, session_name, token } => {
                let token = token.get().await.map_err(unreadable)?;
                let parameters = [
                    ("RoleArn", role_arn.as_str()),
                    ("OIDCProviderArn", provider_arn),
                    ("OIDCToken", token.expose_secret()),
                    ("RoleSessionName", session_name),
                    ("DurationSeconds", SESSION_SECONDS),
                ];
                self.ask_sts("AssumeRoleWithOIDC", &parameters, None, deadline).await?
            }
        };
        let expires = dates::parse_iso8601(&handed.expiration).ok_or_else(|| {
            fault("session-without-end", "the session that was handed out has no end that is a date".into())
        })?;
        let credential = Credential {
            access_key_id: handed.access_key_id,
            access_key_secret: handed.access_key_secret,
            security_token: Some(handed.security_token),
        };
        Ok(Session { credential: Arc::new(credential), fetched: self.rpc.now(), expires, origin })
    }

    async fn assume(
        &self,
        role: &Role,
        origin: Option<&FileCredential>,
        deadline: Instant,
    ) -> Result<Handed, UpstreamError> {
        let parameters = [
            ("RoleArn", role.arn.as_str()),
            ("RoleSessionName", role.session_name.as_str()),
            ("DurationSeconds", SESSION_SECONDS),
        ];
        let credential = origin.map(FileCredential::credential);
        self.ask_sts("AssumeRole", &parameters, credential.as_ref(), deadline).await
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
            access_key_secret: self.access_key_secret.clone(),
            security_token: self.security_token.clone(),
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
fn token_file_of(path: PathBuf) -> Watched<SecretString> {
    Watched::new(path, MAX_FILE, Secrecy::AnyMode, |bytes| {
        let token = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8")?.trim();
        if token.is_empty() { Err("it is empty".into()) } else { Ok(SecretString::from(token)) }
    })
}

fn unreadable(file: FileFault) -> UpstreamError {
    fault("credentials-file", file.to_string())
}

fn fault(code: &'static str, detail: String) -> UpstreamError {
    UpstreamError::new(FaultClass::CredentialFault, code, detail)
}
