//! What proves to IAM who we are: files, read again when they change.

use std::sync::Arc;

use keystead_core::FaultClass;
use serde::Deserialize;

use super::settings::CredentialSource;
use crate::upstream::UpstreamError;
use crate::upstream::secret_text::SecretText;
use crate::upstream::watched::{FileFault, Secrecy, Watched};

const MAX_LEN: u64 = 16 * 1024;

/// What is exchanged for a token.
#[derive(Debug)]
pub(super) struct Credential {
    pub proof: Proof,
    /// A trusted profile to speak as, possibly of another account.
    pub profile: Option<String>,
}

#[derive(Debug)]
pub(super) enum Proof {
    ApiKey(SecretText),
    ComputeResource(SecretText),
}

pub(super) struct Credentials(Watched<Credential>);

impl Credentials {
    pub fn new(source: &CredentialSource) -> Self {
        Self(match source {
            CredentialSource::File(path) => Watched::new(path.clone(), MAX_LEN, Secrecy::Private, parse_file),
            CredentialSource::ComputeResource { token_file, profile } => {
                let profile = profile.clone();
                // The platform writes it, with a mode of its own choice.
                Watched::new(token_file.clone(), MAX_LEN, Secrecy::AnyMode, move |bytes| parse_token(bytes, &profile))
            }
        })
    }

    /// The same `Arc` until the file changes.
    pub async fn get(&self) -> Result<Arc<Credential>, UpstreamError> {
        self.0.get().await.map_err(|fault: FileFault| {
            UpstreamError::new(FaultClass::CredentialFault, "credentials-file", fault.to_string())
        })
    }
}

/// TOML of our own, or the JSON that IBM's console and command line give for a new API key.
fn parse_file(bytes: &[u8]) -> Result<Credential, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Toml {
        api_key: SecretText,
        trusted_profile: Option<String>,
    }
    #[derive(Deserialize)]
    struct Console {
        apikey: SecretText,
    }
    let (api_key, profile) = if bytes.trim_ascii_start().starts_with(b"{") {
        let console: Console = serde_json::from_slice(bytes).map_err(|_| "it is no JSON with a text `apikey`")?;
        (console.apikey, None)
    } else {
        let toml: Toml = toml::from_slice(bytes)
            .map_err(|_| "it must be TOML with api_key = \"…\" (and trusted_profile = \"Profile-…\", if wanted)")?;
        (toml.api_key, toml.trusted_profile)
    };
    if api_key.expose().is_empty() {
        return Err("its API key is empty".into());
    }
    Ok(Credential { proof: Proof::ApiKey(api_key), profile })
}

fn parse_token(bytes: &[u8], profile: &str) -> Result<Credential, String> {
    let text = std::str::from_utf8(bytes.trim_ascii()).map_err(|_| "it is no text")?;
    if text.is_empty() {
        return Err("it is empty".into());
    }
    Ok(Credential { proof: Proof::ComputeResource(SecretText::new(text)), profile: Some(profile.to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api_key(text: &str) -> Option<(String, Option<String>)> {
        let credential = parse_file(text.as_bytes()).ok()?;
        let Proof::ApiKey(key) = credential.proof else { return None };
        Some((key.expose().to_owned(), credential.profile))
    }

    #[test]
    fn both_forms_of_an_api_key_are_read() {
        assert_eq!(api_key("api_key = \"k\"\n"), Some(("k".into(), None)));
        assert_eq!(
            api_key("api_key = \"k\"\ntrusted_profile = \"Profile-1\""),
            Some(("k".into(), Some("Profile-1".into())))
        );
        assert_eq!(api_key("\n{\"name\": \"n\", \"apikey\": \"k\"}"), Some(("k".into(), None)));
    }

    #[test]
    fn what_is_no_credential_is_refused_without_showing_it() {
        for bad in
            ["", "api_key = 5", "api_key = \"\"", "apikey = \"k\"", "{}", "{\"apikey\": 1}", "api_key = \"k\"\nx = 1"]
        {
            assert!(parse_file(bad.as_bytes()).is_err(), "{bad:?} was accepted");
        }
        let problem = parse_file(b"api_key = 's3cret\n").unwrap_err();
        assert!(!problem.contains("s3cret"), "{problem}");
        assert!(parse_token(b" \n", "p").is_err());
    }
}
