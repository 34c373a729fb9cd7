//! IBM Key Protect: the vendor's client asks the same, and opens the same; tokens; another account's key.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use base64ct::{Base64, Encoding};
use keystead::upstream::Upstream;
use keystead::upstream::contract::KeyState;
use keystead::upstream::ibm::{CredentialSource, Ibm, IbmSettings};
use keystead_core::{FaultClass, Kek, WrapContext};
use serde_json::{Value, json};

use crate::rig::{self, Rig, script};

fn settings(rig: &Rig, which: &str, credentials: CredentialSource) -> IbmSettings {
    IbmSettings {
        key: rig.text(&format!("/keys/{which}")).parse().unwrap(),
        instance: rig.text(&format!("/instances/{which}")).parse().unwrap(),
        region: rig.text("/region").to_owned(),
        endpoint: rig.text("/endpoints/kms").parse().unwrap(),
        iam_endpoint: rig.text("/endpoints/iam").parse().unwrap(),
        credentials,
    }
}

fn by_file(rig: &Rig, credential: &str) -> CredentialSource {
    CredentialSource::File(rig.path(&format!("/credentials/{credential}")))
}

fn connect(rig: &Rig) -> Ibm {
    Ibm::new(settings(rig, "main", by_file(rig, "main")), rig.transport())
}

fn context(ibm: &Ibm) -> WrapContext {
    rig::context(ibm.identity().kind, &ibm.identity().root_id)
}

/// What the vendor's client makes of these orders.
fn vendor(rig: &Rig, orders: &Value) -> Vec<Value> {
    let python = Command::new(script()).args(["ibm", "python"]).output().unwrap();
    let mut child = Command::new(String::from_utf8(python.stdout).unwrap().trim())
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rigs/ibm/vendor.py"))
        .arg(rig.folder().join("rig.json"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(orders.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice::<Value>(&output.stdout).unwrap().as_array().unwrap().clone()
}

/// The ciphertext of a wrap as the service writes it.
fn ciphertext(wrap: &[u8]) -> String {
    assert_eq!(wrap[0], 0x11);
    Base64::encode_string(&wrap[1..])
}

#[tokio::test]
async fn vendors_client_sends_the_same_requests_and_each_opens_the_others_wraps() {
    let rig = rig::ibm().await;
    let ibm = connect(&rig);
    let context = context(&ibm);
    let generated = ibm.generate(&context).await.unwrap();
    let kek = Kek::take(&mut [9; 32]);
    let wrapped = ibm.wrap(&kek, &context).await.unwrap();
    let opened = ibm.unwrap(&generated.wrapped.wrap.bytes, &context).await.unwrap();
    assert_eq!(opened.kek.expose(), generated.kek.expose());
    let rewrapped = ibm.rewrap(&wrapped.wrap.bytes, &context).await.unwrap();
    ibm.describe().await.unwrap();
    let ours = rig.requests();

    rig.order(json!({"action": "reset"}));
    let aad = json!(["keyring=edge", "generation=1", format!("key_id={}", context.key_id.as_str())]);
    let results = vendor(
        &rig,
        &json!([
            {"do": "wrap", "aad": aad},
            {"do": "wrap", "aad": aad, "plaintext": Base64::encode_string(kek.expose())},
            {"do": "unwrap", "aad": aad, "ciphertext": ciphertext(&generated.wrapped.wrap.bytes)},
            {"do": "rewrap", "aad": aad, "ciphertext": ciphertext(&wrapped.wrap.bytes)},
            {"do": "describe"},
        ]),
    );
    // Method, path, headers and body of every request, that to IAM included.
    assert_eq!(ours, rig.requests());
    assert_eq!(ours.len(), 6);
    assert_eq!(results[2]["result"]["plaintext"], Base64::encode_string(generated.kek.expose()));

    for (result, plaintext) in [(&results[0], None), (&results[1], Some(&kek)), (&results[3], Some(&kek))] {
        let blob = Base64::decode_vec(result["result"]["ciphertext"].as_str().unwrap()).unwrap();
        let opened = ibm.unwrap(&[&[0x11], blob.as_slice()].concat(), &context).await.unwrap();
        let wanted = match plaintext {
            Some(kek) => kek.expose().to_vec(),
            None => Base64::decode_vec(result["result"]["plaintext"].as_str().unwrap()).unwrap(),
        };
        assert_eq!(opened.kek.expose().as_slice(), wanted);
    }
    assert_eq!(ibm.unwrap(&rewrapped.wrap.bytes, &context).await.unwrap().kek.expose(), kek.expose());
}

#[tokio::test]
async fn wrap_of_another_context_is_corrupt() {
    let rig = rig::ibm().await;
    let ibm = connect(&rig);
    let context = context(&ibm);
    let wrap = ibm.generate(&context).await.unwrap().wrapped.wrap.bytes;
    let other = WrapContext { generation: context.generation.next(), ..context };
    let error = ibm.unwrap(&wrap, &other).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (FaultClass::Corrupt, "UNPROCESSABLE_CIPHERTEXT_ERR"));
}

#[tokio::test]
async fn rotation_shows_in_the_next_unwrap_and_rewrap_follows_it() {
    let rig = rig::ibm().await;
    let ibm = connect(&rig);
    let context = context(&ibm);
    let first = ibm.generate(&context).await.unwrap();
    let before = ibm.unwrap(&first.wrapped.wrap.bytes, &context).await.unwrap().key_version;
    assert_eq!(before, first.wrapped.key_version);
    rig.order(json!({"action": "rotate-key"}));
    let after = ibm.unwrap(&first.wrapped.wrap.bytes, &context).await.unwrap();
    assert_eq!(after.kek.expose(), first.kek.expose());
    assert_ne!(after.key_version, before);
    assert_eq!(after.key_version, ibm.describe().await.unwrap().key_version);
    let rewrapped = ibm.rewrap(&first.wrapped.wrap.bytes, &context).await.unwrap();
    assert_eq!(rewrapped.key_version, after.key_version);
    assert_eq!(ibm.unwrap(&rewrapped.wrap.bytes, &context).await.unwrap().key_version, after.key_version);
}

#[tokio::test]
async fn refused_token_is_exchanged_anew_and_only_a_fresh_one_that_is_refused_is_denied() {
    let rig = rig::ibm().await;
    let ibm = connect(&rig);
    let context = context(&ibm);
    let wrap = ibm.generate(&context).await.unwrap().wrapped.wrap.bytes;
    rig.order(json!({"action": "expire-tokens"}));
    ibm.unwrap(&wrap, &context).await.unwrap();
    assert_eq!(rig.seen("kms"), ["wrap: ok", "unwrap: UNAUTHORIZED_ERR", "unwrap: ok"]);
    assert_eq!(rig.seen("iam"), ["apikey: ok", "apikey: ok"]);
    rig.order(json!({"action": "deny"}));
    let error = ibm.unwrap(&wrap, &context).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (FaultClass::Denied, "UNAUTHORIZED_ERR"));
    assert_eq!(rig.seen("iam").len(), 3);
}

#[tokio::test]
async fn valid_token_works_while_iam_is_down_and_its_end_is_unreachable_not_denied() {
    let rig = rig::ibm().await;
    let ibm = connect(&rig);
    let context = context(&ibm);
    rig.order(json!({"action": "token-life", "seconds": 3}));
    let wrap = ibm.generate(&context).await.unwrap().wrapped.wrap.bytes;
    rig.order(json!({"action": "fault", "fault": "refuse", "service": "iam"}));
    ibm.unwrap(&wrap, &context).await.unwrap();
    let error = loop {
        if let Err(error) = ibm.unwrap(&wrap, &context).await {
            break error;
        }
    };
    assert_eq!((error.class, error.code.as_str()), (FaultClass::Unreachable, "tcp"));
    assert!(error.detail.contains("IAM"), "{error}");
    rig.order(json!({"action": "clear"}));
    ibm.unwrap(&wrap, &context).await.unwrap();
    // A token that the service refuses while there is no way to a new one.
    rig.order(json!({"action": "expire-tokens"}));
    rig.order(json!({"action": "fault", "fault": "http-503", "service": "iam"}));
    assert_eq!(ibm.unwrap(&wrap, &context).await.unwrap_err().class, FaultClass::Unreachable);
}

#[tokio::test]
async fn key_of_another_account_opens_through_a_trusted_profile_only() {
    let rig = rig::ibm().await;
    let profile = rig.text("/profile").to_owned();
    let token_file = rig.path("/credentials/cr_token");
    for (credentials, operations) in [
        (by_file(&rig, "foreign"), vec!["apikey: ok", "assume: ok"]),
        (CredentialSource::ComputeResource { token_file, profile }, vec!["cr-token: ok"]),
    ] {
        rig.order(json!({"action": "reset"}));
        let ibm = Ibm::new(settings(&rig, "foreign", credentials), rig.transport());
        let context = context(&ibm);
        let generated = ibm.generate(&context).await.unwrap();
        let opened = ibm.unwrap(&generated.wrapped.wrap.bytes, &context).await.unwrap();
        assert_eq!(opened.kek.expose(), generated.kek.expose());
        assert_eq!(rig.seen("iam"), operations);
    }
    let ibm = Ibm::new(settings(&rig, "foreign", by_file(&rig, "main")), rig.transport());
    assert_eq!(ibm.generate(&context(&ibm)).await.unwrap_err().class, FaultClass::Denied);
}

#[tokio::test]
async fn credential_is_taken_from_the_file_as_it_is_now() {
    let rig = rig::ibm().await;
    let file = tempfile::tempdir().unwrap();
    let path: PathBuf = file.path().join("credentials");
    let put = |which: &str| {
        // With its mode, and under another inode, as an operator or a secret store does it.
        fs::copy(rig.path(&format!("/credentials/{which}")), path.with_extension("new")).unwrap();
        fs::rename(path.with_extension("new"), &path).unwrap();
    };
    let ibm = Ibm::new(settings(&rig, "main", CredentialSource::File(path.clone())), rig.transport());
    let context = context(&ibm);
    let error = ibm.generate(&context).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (FaultClass::CredentialFault, "credentials-file"));
    put("wrong");
    let error = ibm.generate(&context).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (FaultClass::CredentialFault, "BXNIM0415E"));
    assert!(!error.to_string().contains("no-such-key"), "{error}");
    for form in ["main", "console"] {
        put(form);
        ibm.generate(&context).await.unwrap();
    }
    put("wrong");
    assert_eq!(ibm.generate(&context).await.unwrap_err().class, FaultClass::CredentialFault);
}

#[tokio::test]
async fn each_state_of_the_key_is_described() {
    let rig = rig::ibm().await;
    let ibm = connect(&rig);
    for (action, state) in [
        ("enable-key", KeyState::Enabled),
        ("disable-key", KeyState::Disabled),
        ("delete-key", KeyState::PendingDeletion),
    ] {
        rig.order(json!({"action": action}));
        assert_eq!(ibm.describe().await.unwrap().state, state);
    }
}
