//! Where access keys come from: a file, or a session that the platform's identity is exchanged for.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use keystead_core::FaultClass;
use serde::Deserialize;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::errors;
use super::settings::{AwsSettings, CredentialSource};
use super::xml;
use crate::upstream::UpstreamError;
use crate::upstream::answer::{foreign, json, printable};
use crate::upstream::calls::Calls;
use crate::upstream::contract::Expiry;
use crate::upstream::dates;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::form;
use crate::upstream::renewed::{Exchanged, Lent, Renewed};
use crate::upstream::secret_text::SecretText;
use crate::upstream::transport::{Reply, Request, Transport};
use crate::upstream::watched::{Secrecy, Watched};

const MAX_LEN: u64 = 16 * 1024;
const MAX_LIFE: Duration = Duration::from_secs(36 * 3600);
/// As [`Calls`] counts them.
pub(super) const WEB_IDENTITY: &str = "AssumeRoleWithWebIdentity";
pub(super) const METADATA: &str = "metadata";

/// What requests are signed with.
#[derive(Debug)]
pub(super) struct Credential {
    pub access_key_id: String,
    pub secret_access_key: SecretText,
    pub session_token: Option<SecretText>,
    /// Where a file says so.
    pub expiration: Option<SystemTime>,
}

pub(super) struct Credentials {
    source: Source,
    transport: Transport,
}

enum Source {
    File(Watched<Credential>),
    WebIdentity {
        endpoint: Endpoint,
        role_arn: String,
        session_name: String,
        token: Watched<SecretText>,
        session: Renewed<Credential>,
    },
    InstanceMetadata {
        endpoint: Endpoint,
        session: Renewed<Credential>,
    },
}

impl Credentials {
    pub fn new(settings: &AwsSettings, transport: Transport) -> Self {
        let source = match &settings.credentials {
            CredentialSource::File(path) => {
                Source::File(Watched::new(path.clone(), MAX_LEN, Secrecy::Private, parse_file))
            }
            CredentialSource::WebIdentity { role_arn, token_file, session_name } => Source::WebIdentity {
                endpoint: settings.sts_endpoint.clone(),
                role_arn: role_arn.clone(),
                session_name: session_name.clone(),
                // The platform writes it, with a mode of its own choice.
                token: Watched::new(token_file.clone(), MAX_LEN, Secrecy::AnyMode, parse_token),
                session: Renewed::default(),
            },
            CredentialSource::InstanceMetadata => {
                Source::InstanceMetadata { endpoint: settings.metadata_endpoint.clone(), session: Renewed::default() }
            }
        };
        Self { source, transport }
    }

    pub async fn get(&self, calls: &Calls, deadline: Instant) -> Result<Lent<Credential>, UpstreamError> {
        match &self.source {
            Source::File(file) => {
                let value = file.get().await.map_err(file_fault)?;
                // Asked for again, a file says the same.
                Ok(Lent { value, fresh: true })
            }
            Source::WebIdentity { endpoint, role_arn, session_name, token, session } => {
                let exchange = async {
                    let token = token.get().await.map_err(file_fault)?;
                    let fields = [
                        ("Action", WEB_IDENTITY),
                        ("Version", "2011-06-15"),
                        ("RoleArn", role_arn),
                        ("RoleSessionName", session_name),
                        ("WebIdentityToken", token.expose()),
                    ];
                    let given = self.assume(endpoint, &fields, deadline).await;
                    calls.count(WEB_IDENTITY, given.is_ok());
                    given
                };
                session.get(|_| true, deadline, exchange).await
            }
            Source::InstanceMetadata { endpoint, session } => {
                let exchange = async {
                    let given = self.instance_profile(endpoint, deadline).await;
                    calls.count(METADATA, given.is_ok());
                    given
                };
                session.get(|_| true, deadline, exchange).await
            }
        }
    }

    /// The service refuses this session.
    pub async fn reject(&self, credential: &Arc<Credential>) {
        match &self.source {
            Source::File(_) => {}
            Source::WebIdentity { session, .. } | Source::InstanceMetadata { session, .. } => {
                session.reject(credential).await
            }
        }
    }

    pub fn expiry(&self) -> Option<Expiry> {
        let not_after = match &self.source {
            Source::File(file) => file.last()?.expiration?,
            Source::WebIdentity { session, .. } | Source::InstanceMetadata { session, .. } => {
                session.not_after(self.transport.now())?
            }
        };
        Some(Expiry { what: "STS session".into(), not_after })
    }

    async fn assume(
        &self,
        endpoint: &Endpoint,
        fields: &[(&str, &str)],
        deadline: Instant,
    ) -> Result<Exchanged<Credential>, UpstreamError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(form::CONTENT_TYPE));
        let path = endpoint.path("/");
        let request = Request { method: Method::POST, endpoint, path: &path, headers, body: form::body(fields) };
        let reply = self.transport.send(request, deadline).await?;
        if !reply.status.is_success() {
            return Err(errors::from_sts(&reply));
        }
        let given = std::str::from_utf8(&reply.body).ok().and_then(|text| xml::text(text, "Credentials"));
        let field = |name| given.and_then(|given| xml::text(given, name)).ok_or_else(|| foreign(&reply, "AWS STS"));
        let session = Session {
            access_key_id: field("AccessKeyId")?.to_owned(),
            secret_access_key: SecretText::new(field("SecretAccessKey")?),
            token: SecretText::new(field("SessionToken")?),
            expiration: field("Expiration")?.to_owned(),
        };
        session.exchanged(&reply, "AWS STS", self.transport.now())
    }

    /// IMDSv2: a token first, so that a request forged through some other program gets nothing.
    async fn instance_profile(
        &self,
        endpoint: &Endpoint,
        deadline: Instant,
    ) -> Result<Exchanged<Credential>, UpstreamError> {
        const LIFE: HeaderName = Request::header_name("x-aws-ec2-metadata-token-ttl-seconds");
        const TOKEN: HeaderName = Request::header_name("x-aws-ec2-metadata-token");
        const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
        let ask = async |method, path: &str, name, value| {
            let headers = HeaderMap::from_iter([(name, value)]);
            let path = endpoint.path(path);
            let request = Request { method, endpoint, path: &path, headers, body: Zeroizing::default() };
            let reply = self.transport.send(request, deadline).await?;
            if reply.status.is_success() { Ok(reply) } else { Err(no_role(&reply)) }
        };
        let token = ask(Method::PUT, "/latest/api/token", LIFE, HeaderValue::from_static("300")).await?;
        let token = Request::secret_header(std::str::from_utf8(&token.body).unwrap_or_default())?;
        let role = ask(Method::GET, ROLES, TOKEN, token.clone()).await?;
        let role = std::str::from_utf8(&role.body).unwrap_or_default().trim();
        if role.is_empty() || !role.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+=,.@_-".contains(&byte)) {
            let detail = "the instance metadata service names no role; attach an instance profile";
            return Err(UpstreamError::new(FaultClass::CredentialFault, "no-instance-profile", detail));
        }
        let reply = ask(Method::GET, &format!("{ROLES}{role}"), TOKEN, token).await?;
        const SERVICE: &str = "the instance metadata service";
        let verdict: Verdict = json(&reply, SERVICE)?;
        if verdict.code != "Success" {
            let detail = format!("{SERVICE} gives no credential for the role {role}");
            return Err(UpstreamError::new(FaultClass::CredentialFault, printable(&verdict.code, 64), detail));
        }
        json::<Session>(&reply, SERVICE)?.exchanged(&reply, SERVICE, self.transport.now())
    }
}

/// What the metadata service says of a role before anything else.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Verdict {
    code: String,
}

/// A session as the metadata service writes it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Session {
    access_key_id: String,
    secret_access_key: SecretText,
    token: SecretText,
    expiration: String,
}

impl Session {
    /// Its life is what the service's own clock leaves of it; ours may be wrong.
    fn exchanged(self, reply: &Reply, service: &str, now: SystemTime) -> Result<Exchanged<Credential>, UpstreamError> {
        let expiration = dates::parse_iso8601(&self.expiration).ok_or_else(|| foreign(reply, service))?;
        let life = expiration.duration_since(reply.date.unwrap_or(now)).unwrap_or_default().min(MAX_LIFE);
        let value = Credential {
            access_key_id: printable(&self.access_key_id, 128),
            secret_access_key: self.secret_access_key,
            session_token: Some(self.token),
            expiration: Some(expiration),
        };
        Ok(Exchanged { value, life })
    }
}

fn no_role(reply: &Reply) -> UpstreamError {
    let status = reply.status.as_u16();
    if reply.status.is_server_error() {
        let detail = format!("the instance metadata service answered {status}");
        return UpstreamError::new(FaultClass::Unreachable, status.to_string(), detail);
    }
    let detail =
        format!("the instance metadata service answered {status}: is there an instance profile, and version 2 on?");
    UpstreamError::new(FaultClass::CredentialFault, "no-instance-profile", detail)
}

fn file_fault(fault: crate::upstream::watched::FileFault) -> UpstreamError {
    UpstreamError::new(FaultClass::CredentialFault, "credentials-file", fault.to_string())
}

/// TOML of our own, or the shared credentials file of AWS's tools: its profile `default`.
fn parse_file(bytes: &[u8]) -> Result<Credential, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Toml {
        access_key_id: String,
        secret_access_key: SecretText,
        session_token: Option<SecretText>,
        expiration: Option<String>,
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "it is no text")?;
    let credential = if text.contains("aws_access_key_id") {
        parse_shared(text).ok_or("it has no profile [default] with aws_access_key_id and aws_secret_access_key")?
    } else {
        let toml: Toml = toml::from_str(text).map_err(|_| {
            "it must be TOML with access_key_id = \"…\" and secret_access_key = \"…\" (session_token and expiration if it \
             is a session's)"
        })?;
        let expiration = match toml.expiration {
            Some(text) => {
                Some(dates::parse_iso8601(&text).ok_or("its expiration is not of the form 2026-11-22T04:04:29Z")?)
            }
            None => None,
        };
        Credential {
            access_key_id: toml.access_key_id,
            secret_access_key: toml.secret_access_key,
            session_token: toml.session_token,
            expiration,
        }
    };
    let plain = credential.access_key_id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if credential.access_key_id.is_empty() || !plain || credential.secret_access_key.expose().is_empty() {
        return Err("its access key is empty or malformed".into());
    }
    Ok(credential)
}

fn parse_shared(text: &str) -> Option<Credential> {
    let mut section = "";
    let mut values = [None, None, None];
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name.trim();
        } else if let Some((name, value)) = line.split_once('=').filter(|_| section == "default") {
            let names = ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"];
            if let Some(index) = names.iter().position(|known| *known == name.trim()) {
                values[index] = Some(value.trim());
            }
        }
    }
    let [access_key_id, secret, token] = values;
    Some(Credential {
        access_key_id: access_key_id?.to_owned(),
        secret_access_key: SecretText::new(secret?),
        session_token: token.map(SecretText::new),
        expiration: None,
    })
}

fn parse_token(bytes: &[u8]) -> Result<SecretText, String> {
    let text = std::str::from_utf8(bytes.trim_ascii()).map_err(|_| "it is no text")?;
    if text.is_empty() { Err("it is empty".into()) } else { Ok(SecretText::new(text)) }
}

#[cfg(test)]
impl Credential {
    pub fn for_test(access_key_id: &str, secret: &str, token: Option<&str>) -> Self {
        Self {
            access_key_id: access_key_id.into(),
            secret_access_key: SecretText::new(secret),
            session_token: token.map(SecretText::new),
            expiration: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<(String, String, Option<String>)> {
        let credential = parse_file(text.as_bytes()).ok()?;
        let token = credential.session_token.map(|token| token.expose().to_owned());
        Some((credential.access_key_id, credential.secret_access_key.expose().to_owned(), token))
    }

    #[test]
    fn both_forms_of_the_file_are_read() {
        let wanted = Some(("AKIA1".to_owned(), "s/+=".to_owned(), None));
        assert_eq!(read("access_key_id = \"AKIA1\"\nsecret_access_key = \"s/+=\"\n"), wanted);
        let shared = "# x\n[other]\naws_access_key_id = NO\naws_secret_access_key = no\n\
                      [default]\naws_access_key_id=AKIA1\naws_secret_access_key = s/+=\nregion = x\n";
        assert_eq!(read(shared), wanted);
        let session = "access_key_id = \"ASIA1\"\nsecret_access_key = \"s\"\nsession_token = \"t\"\nexpiration = \"2026-11-22T04:04:29Z\"\n";
        assert_eq!(read(session), Some(("ASIA1".into(), "s".into(), Some("t".into()))));
        assert_eq!(parse_file(session.as_bytes()).unwrap().expiration, dates::parse_iso8601("2026-11-22T04:04:29Z"));
    }

    #[test]
    fn what_is_no_credential_is_refused_without_showing_it() {
        for bad in [
            "",
            "access_key_id = \"AKIA1\"",
            "access_key_id = \"\"\nsecret_access_key = \"s\"",
            "access_key_id = \"AK IA\"\nsecret_access_key = \"s\"",
            "access_key_id = \"AKIA1\"\nsecret_access_key = \"s\"\nexpiration = \"soon\"",
            "[other]\naws_access_key_id = A\naws_secret_access_key = s\n",
            "[default]\naws_access_key_id = A\n",
        ] {
            assert!(parse_file(bad.as_bytes()).is_err(), "{bad:?} was accepted");
        }
        let problem = parse_file(b"secret_access_key = 's3cret\n").unwrap_err();
        assert!(!problem.contains("s3cret"), "{problem}");
    }
}
