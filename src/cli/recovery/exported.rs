//! What was carried to the offline machine: generations as `key list` and `key describe` print them, or documents of
//! `kms encrypt`. Read as hostile: bounded, and nothing in it is believed before a wrap has opened.

use std::path::Path;

use base64ct::{Base64, Encoding};
use keystead_core::annotation::{self, Annotation};
use serde_json::Value;

use crate::cli::exit::{Exit, Failure};
use crate::cli::kms::files;

/// One generation of an exported file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    pub annotation: Annotation,
    /// As the file says; `None` in a document of `kms encrypt`.
    pub state: Option<String>,
    /// A ciphertext made under it, if the file has one.
    pub envelope: Option<Vec<u8>>,
}

impl Exported {
    /// Every generation in the files.
    pub fn read(paths: &[impl AsRef<Path>]) -> Result<Vec<Self>, Failure> {
        let mut all = Vec::new();
        for path in paths {
            let path = path.as_ref();
            let bytes = files::read(Some(path))?;
            let found = parse(&bytes).map_err(|problem| {
                Failure::new(Exit::Usage, format!("{}: {problem}", path.display())).next(
                    "export with `keystead key list --output json` or `keystead kms encrypt` on the machine that serves",
                )
            })?;
            all.extend(found);
        }
        Ok(all)
    }
}

fn parse(bytes: &[u8]) -> Result<Vec<Exported>, String> {
    let document: Value = serde_json::from_slice(bytes).map_err(|_| "this is no JSON document".to_owned())?;
    let found = match document.get("generations").and_then(Value::as_array) {
        Some(generations) => generations.iter().map(one).collect::<Result<Vec<_>, _>>()?,
        None => vec![one(&document)?],
    };
    // A generation without wraps is destroyed: there is nothing to open.
    let found: Vec<_> = found.into_iter().filter(|each| each.state.as_deref() != Some("destroyed")).collect();
    if found.is_empty() { Err("there is no generation in it".into()) } else { Ok(found) }
}

fn one(value: &Value) -> Result<Exported, String> {
    let text = |value: &Value, what: &str| {
        let text = value.as_str().ok_or_else(|| format!("it has no {what}"))?;
        Base64::decode_vec(text).map_err(|_| format!("its {what} is not base64"))
    };
    let in_document = value.get("annotations").and_then(|annotations| annotations.get(annotation::KEY));
    let (bytes, envelope) = match in_document {
        Some(bytes) => (text(bytes, "annotation")?, Some(text(&value["ciphertext"], "ciphertext")?)),
        None => (text(&value["annotation"], "annotation")?, None),
    };
    let annotation = Annotation::decode(&bytes).map_err(|error| error.to_string())?;
    if value["key_id"].as_str() != Some(annotation.key_id.as_str()) {
        return Err("its annotation is another key ID's".into());
    }
    Ok(Exported { annotation, state: value["state"].as_str().map(ToOwned::to_owned), envelope })
}

#[cfg(test)]
mod tests {
    use super::*;
    use keystead_core::KeyCommitment;

    fn annotation() -> (String, String) {
        let key_id = format!("ks1.default.2.{}", "ab".repeat(16));
        let annotation = Annotation {
            key_id: key_id.parse().unwrap(),
            commitment: KeyCommitment::from_bytes([1; 32]),
            wraps: Vec::new(),
        };
        (key_id, Base64::encode_string(&annotation.encode().unwrap()))
    }

    #[test]
    fn lists_single_generations_and_encrypted_documents_are_read() {
        let (key_id, bytes) = annotation();
        let single = format!(r#"{{"key_id":"{key_id}","state":"active","annotation":"{bytes}"}}"#);
        let list = format!(r#"{{"generations":[{single},{single}]}}"#);
        let document = format!(
            r#"{{"ciphertext":"AQID","key_id":"{key_id}","annotations":{{"wraps.keystead.internal":"{bytes}"}}}}"#
        );
        assert_eq!(parse(single.as_bytes()).unwrap().len(), 1);
        assert_eq!(parse(list.as_bytes()).unwrap().len(), 2);
        assert_eq!(parse(document.as_bytes()).unwrap()[0].envelope.as_deref(), Some([1, 2, 3].as_slice()));
    }

    #[test]
    fn anything_else_is_refused() {
        let (key_id, bytes) = annotation();
        for bad in [
            String::new(),
            "[]".into(),
            "{}".into(),
            r#"{"generations":[]}"#.into(),
            format!(r#"{{"key_id":"{key_id}","annotation":"!"}}"#),
            format!(r#"{{"key_id":"{key_id}","annotation":"AQID"}}"#),
            format!(r#"{{"key_id":"other","annotation":"{bytes}"}}"#),
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
