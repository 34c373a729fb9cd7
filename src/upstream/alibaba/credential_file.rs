//! What a credentials file says: our own TOML, or the `config.json` of the vendor's command line tool.

use serde::Deserialize;

use crate::upstream::secret_text::SecretText;

/// An access key or STS credential and, perhaps, a role to assume with it.
pub struct FileCredential {
    pub access_key_id: String,
    pub access_key_secret: SecretText,
    pub security_token: Option<SecretText>,
    pub role: Option<Role>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    pub arn: String,
    pub session_name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Toml {
    access_key_id: String,
    access_key_secret: SecretText,
    security_token: Option<SecretText>,
    role_arn: Option<String>,
    role_session_name: Option<String>,
}

/// `~/.aliyun/config.json`.
#[derive(Deserialize)]
struct Cli {
    current: String,
    profiles: Vec<Profile>,
}

/// Whatever else a profile holds is the tool's own business.
#[derive(Deserialize)]
struct Profile {
    name: String,
    mode: String,
    #[serde(default)]
    access_key_id: String,
    access_key_secret: Option<SecretText>,
    sts_token: Option<SecretText>,
    #[serde(default)]
    ram_role_arn: String,
    #[serde(default)]
    ram_session_name: String,
}

/// # Errors
/// What is wrong, in words without anything the file holds: a parser's own message would quote the line.
pub fn parse(bytes: &[u8]) -> Result<FileCredential, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
    let toml = if text.trim_start().starts_with('{') { from_cli(text)? } else { from_toml(text)? };
    let plain = |value: &str| !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic());
    let given = [
        Some(toml.access_key_id.as_str()),
        Some(toml.access_key_secret.expose()),
        toml.security_token.as_ref().map(SecretText::expose),
        toml.role_arn.as_deref(),
    ];
    if !given.into_iter().flatten().all(plain) {
        return Err("a value is empty, or has blanks or control characters in it".into());
    }
    let session_name = toml.role_session_name.unwrap_or_else(|| "keystead".into());
    Ok(FileCredential {
        access_key_id: toml.access_key_id,
        access_key_secret: toml.access_key_secret,
        security_token: toml.security_token,
        role: toml.role_arn.map(|arn| Role { arn, session_name }),
    })
}

fn from_toml(text: &str) -> Result<Toml, String> {
    const KEYS: &str = "it must be TOML with access_key_id and access_key_secret and, if needed, security_token, role_arn and role_session_name";
    toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        line.map_or_else(|| KEYS.to_owned(), |line| format!("line {line}: {KEYS}"))
    })
}

fn from_cli(text: &str) -> Result<Toml, String> {
    let cli: Cli = serde_json::from_str(text)
        .map_err(|error| format!("line {}: it is not the config.json of the aliyun command line tool", error.line()))?;
    let profile = cli
        .profiles
        .into_iter()
        .find(|profile| profile.name == cli.current)
        .ok_or("its current profile is not in it")?;
    let given = |value: String| (!value.is_empty()).then_some(value);
    let with_role = match profile.mode.as_str() {
        "AK" | "StsToken" => false,
        "RamRoleArn" => true,
        _ => return Err("the mode of its current profile is none of AK, StsToken and RamRoleArn".into()),
    };
    Ok(Toml {
        access_key_id: profile.access_key_id,
        access_key_secret: profile.access_key_secret.ok_or("its current profile has no access_key_secret")?,
        security_token: profile.sts_token.filter(|token| !token.expose().is_empty()),
        role_arn: given(profile.ram_role_arn).filter(|_| with_role),
        role_session_name: given(profile.ram_session_name),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_say_the_same() {
        let toml = "access_key_id = \"AK\"\naccess_key_secret = \"SK\"\nsecurity_token = \"ST\"\nrole_arn = \"acs:ram::1:role/x\"\n";
        let json = r#"{"current": "b", "profiles": [{"name": "a", "mode": "AK"}, {"name": "b", "mode": "RamRoleArn", "language": "en",
            "access_key_id": "AK", "access_key_secret": "SK", "sts_token": "ST", "ram_role_arn": "acs:ram::1:role/x"}]}"#;
        for text in [toml, json] {
            let found = parse(text.as_bytes()).map_err(|problem| panic!("{problem}")).unwrap();
            assert_eq!((found.access_key_id.as_str(), found.access_key_secret.expose()), ("AK", "SK"));
            assert_eq!(found.security_token.unwrap().expose(), "ST");
            assert_eq!(found.role, Some(Role { arn: "acs:ram::1:role/x".into(), session_name: "keystead".into() }));
        }
    }

    #[test]
    fn unusable_file_is_refused_without_a_word_of_what_it_holds() {
        for bad in [
            "",
            "secret-one",
            "access_key_id = \"AK\"",
            "access_key_id = \"AK\"\naccess_key_secret = \"\"",
            "access_key_id = \"AK\"\naccess_key_secret = \"secret one\"",
            "access_key_id = \"AK\"\naccess_key_secret = secret-one",
            "access_key_id = \"AK\"\naccess_key_secret = \"SK\"\nsecret = \"secret-one\"",
            "{\"current\": \"secret-one\"}",
            r#"{"current": "a", "profiles": [{"name": "secret-one", "mode": "AK"}]}"#,
            r#"{"current": "a", "profiles": [{"name": "a", "mode": "secret-one"}]}"#,
        ] {
            let problem = parse(bad.as_bytes()).err().unwrap_or_else(|| panic!("{bad:?} was accepted"));
            assert!(!problem.contains("secret-one") && !problem.contains("secret one"), "{problem}");
        }
    }
}
