//! IBM Key Protect: what the suite needs to know, and what only this cloud has.

use std::sync::Arc;
use std::time::SystemTime;

use base64ct::{Base64, Encoding};
use keystead::upstream::contract::UpstreamError;
use keystead::upstream::ibm::{CredentialSource, Ibm, IbmSettings};
use keystead::upstream::settings::{ProviderSettings, UpstreamSettings};
use keystead::upstream::transport::{Transport, codes};
use keystead_core::{FaultClass, Kek, RootKind};
use serde_json::{Value, json};

use crate::provider::{Case, Opened, Provider, Stand};
use crate::rig::Rig;

pub const PROVIDER: Provider = Provider {
    name: "ibm",
    kind: RootKind::IbmKeyProtect,
    construction: 0x11,
    settings,
    set_endpoint: |settings, endpoint| ibm(settings).endpoint = endpoint,
    set_key: |settings, key| ibm(settings).key = key.parse().unwrap(),
    set_credentials: |settings, file| ibm(settings).credentials = CredentialSource::File(file.into()),
    no_such_key: "01234567-89ab-cdef-0123-456789abcdef",
    // Gone at once, though it can be brought back for a month.
    deletion_scheduled: FaultClass::KeyGone,
    has_billing: false,
    own: OWN,
};

const OWN: &[(&str, Case)] = &[
    ("vendors_client_asks_the_same_and_each_opens_the_others_wraps", vendors_client_asks_the_same),
    ("rotation_shows_in_the_next_unwrap_and_rewrap_follows_it", rewrap_follows_a_rotation),
    ("refused_token_is_replaced_and_only_a_fresh_one_refused_is_denied", refused_token_is_replaced),
    ("valid_token_works_while_iam_is_down_and_its_end_is_unreachable", token_outlives_iam),
    ("key_of_another_account_opens_through_a_trusted_profile_only", key_of_another_account),
    ("key_file_of_the_vendors_console_is_taken_and_an_unknown_key_refused", forms_of_the_key_file),
    ("key_that_is_purged_is_gone", purged_key_is_gone),
    ("base_url_with_a_path_is_kept", base_url_with_a_path),
];

fn settings(rig: &Rig) -> UpstreamSettings {
    let provider = IbmSettings {
        key: rig.text("/keys/main").parse().unwrap(),
        instance: rig.text("/instances/main").parse().unwrap(),
        region: rig.text("/region").into(),
        endpoint: rig.text("/endpoints/kms").parse().unwrap(),
        iam_endpoint: rig.text("/endpoints/iam").parse().unwrap(),
        credentials: CredentialSource::File(rig.text("/credentials/main").into()),
    };
    UpstreamSettings { provider: ProviderSettings::Ibm(provider), transport: Default::default() }
}

fn ibm(settings: &mut UpstreamSettings) -> &mut IbmSettings {
    match &mut settings.provider {
        ProviderSettings::Ibm(settings) => settings,
        other => unreachable!("{other:?}"),
    }
}

fn with<'a>(stand: &'a Stand, change: impl FnOnce(&mut IbmSettings)) -> Opened<'a> {
    let mut settings = stand.settings();
    change(ibm(&mut settings));
    stand.open(settings)
}

fn with_file<'a>(stand: &'a Stand, credential: &str) -> Opened<'a> {
    let file = stand.rig.text(&format!("/credentials/{credential}")).into();
    with(stand, |settings| settings.credentials = CredentialSource::File(file))
}

/// Beyond the contract: it can also rewrap.
fn client(stand: &Stand) -> Ibm {
    let mut settings = stand.settings();
    let transport = Transport::new(settings.transport.clone(), Arc::new(SystemTime::now));
    Ibm::new(ibm(&mut settings).clone(), transport)
}

fn tell(error: &UpstreamError) -> (FaultClass, &str) {
    (error.class, error.code.as_str())
}

/// `operation: code` of each request to `service`.
fn seen(stand: &Stand, service: &str) -> Vec<String> {
    let requests = stand.rig.requests().into_iter().filter(|(asked, ..)| asked == service);
    requests.map(|(_, operation, code)| format!("{operation}: {code}")).collect()
}

/// The ciphertext of a wrap as the service writes it.
fn ciphertext(wrap: &[u8]) -> String {
    Base64::encode_string(&wrap[1..])
}

fn vendors_client_asks_the_same(stand: &Stand) {
    let (client, opened) = (client(stand), stand.usual());
    let context = opened.context();
    let kek = Kek::take(&mut [0xfb; 32]);
    let (generated, wrapped) = opened.wait(async {
        use keystead::upstream::Upstream;
        let generated = client.generate(&context).await.unwrap();
        let wrapped = client.wrap(&kek, &context).await.unwrap();
        client.unwrap(&generated.wrapped.wrap.bytes, &context).await.unwrap();
        client.rewrap(&wrapped.wrap.bytes, &context).await.unwrap();
        client.describe().await.unwrap();
        (generated, wrapped)
    });
    let ours = stand.rig.journal();
    assert_eq!(ours.len(), 6);

    stand.rig.control(r#"{"action": "reset"}"#);
    let aad = json!(["keyring=edge-7", "generation=3", format!("key_id={}", context.key_id.as_str())]);
    let orders = json!([
        {"do": "wrap", "aad": aad},
        {"do": "wrap", "aad": aad, "plaintext": Base64::encode_string(kek.expose())},
        {"do": "unwrap", "aad": aad, "ciphertext": ciphertext(&generated.wrapped.wrap.bytes)},
        {"do": "rewrap", "aad": aad, "ciphertext": ciphertext(&wrapped.wrap.bytes)},
        {"do": "describe"},
    ]);
    let results: Value = serde_json::from_str(&stand.rig.talk("vendor.py", &orders.to_string())).unwrap();
    // Method, path, headers and body of every request, that to IAM included.
    assert_eq!(ours, stand.rig.journal());

    let text = |index: usize, name: &str| results[index]["result"][name].as_str().unwrap_or_default().to_owned();
    let given = Base64::encode_string(kek.expose());
    assert_eq!(text(2, "plaintext"), Base64::encode_string(generated.kek.expose()));
    for (index, plaintext) in [(0, text(0, "plaintext")), (1, given.clone()), (3, given)] {
        let blob = Base64::decode_vec(&text(index, "ciphertext")).unwrap();
        let unwrapped = opened.unwrap_bytes(&[&[0x11], blob.as_slice()].concat()).unwrap();
        assert_eq!(Base64::encode_string(unwrapped.kek.expose()), plaintext);
    }
}

fn rewrap_follows_a_rotation(stand: &Stand) {
    let (client, opened) = (client(stand), stand.usual());
    let made = opened.generate();
    assert_eq!(opened.unwrap(&made).unwrap().key_version, made.wrapped.key_version);
    stand.rig.control(r#"{"action": "rotate-key"}"#);
    let newest = opened.unwrap(&made).unwrap().key_version;
    assert_ne!(newest, made.wrapped.key_version);
    assert_eq!(newest, Some(opened.version()));
    let rewrapped = opened.wait(client.rewrap(&made.wrapped.wrap.bytes, &opened.context())).unwrap();
    assert_eq!(rewrapped.key_version, newest);
    let unwrapped = opened.unwrap_bytes(&rewrapped.wrap.bytes).unwrap();
    assert_eq!((unwrapped.kek.commitment(), unwrapped.key_version), (made.kek.commitment(), newest));
    // Additional data binds there as well.
    let other = opened.context_of("edge-7", 4, 1);
    let error = opened.wait(client.rewrap(&made.wrapped.wrap.bytes, &other)).unwrap_err();
    assert_eq!(tell(&error), (FaultClass::Corrupt, "UNPROCESSABLE_CIPHERTEXT_ERR"), "{error}");
}

fn refused_token_is_replaced(stand: &Stand) {
    let opened = stand.usual();
    let made = opened.generate();
    stand.rig.control(r#"{"action": "expire-tokens"}"#);
    opened.opens(&made);
    assert_eq!(seen(stand, "kms"), ["wrap: ok", "unwrap: UNAUTHORIZED_ERR", "unwrap: ok"]);
    assert_eq!(seen(stand, "iam"), ["apikey: ok", "apikey: ok"]);
    stand.rig.control(r#"{"action": "deny"}"#);
    let error = opened.unwrap(&made).unwrap_err();
    assert_eq!(tell(&error), (FaultClass::Denied, "UNAUTHORIZED_ERR"), "{error}");
    assert_eq!(seen(stand, "iam").len(), 3);
}

fn token_outlives_iam(stand: &Stand) {
    let opened = stand.usual();
    stand.rig.control(r#"{"action": "token-life", "seconds": 5}"#);
    let made = opened.generate();
    stand.rig.control(r#"{"action": "fault", "fault": "refuse", "service": "iam"}"#);
    // Until then each of them opens it.
    let error = std::iter::repeat_with(|| opened.unwrap(&made)).find_map(Result::err).unwrap();
    assert_eq!(tell(&error), (FaultClass::Unreachable, codes::TCP), "{error}");
    assert!(error.detail.contains("IAM"), "{error}");
    stand.rig.control(r#"{"action": "clear"}"#);
    opened.opens(&made);
    let opened_while_down = seen(stand, "kms").len();
    assert!(opened_while_down > 2, "{opened_while_down}");
    // One that is refused while there is no way to a new one says nothing about the right to the key.
    stand.rig.control(r#"{"action": "expire-tokens"}"#);
    stand.rig.control(r#"{"action": "fault", "fault": "http-503", "service": "iam"}"#);
    assert_eq!(tell(&opened.unwrap(&made).unwrap_err()), (FaultClass::Unreachable, "http-503"));
}

fn key_of_another_account(stand: &Stand) {
    let text = |pointer: &str| stand.rig.text(pointer).to_owned();
    let profile = CredentialSource::File(text("/credentials/foreign").into());
    let platform = CredentialSource::ComputeResource {
        token_file: text("/credentials/cr_token").into(),
        profile: text("/profile"),
    };
    let foreign = |credentials: CredentialSource| {
        with(stand, |settings| {
            settings.key = text("/keys/foreign").parse().unwrap();
            settings.instance = text("/instances/foreign").parse().unwrap();
            settings.credentials = credentials;
        })
    };
    for (credentials, exchanges) in [(profile, vec!["apikey: ok", "assume: ok"]), (platform, vec!["cr-token: ok"])] {
        stand.rig.control(r#"{"action": "reset"}"#);
        let opened = foreign(credentials);
        let made = opened.generate();
        opened.opens(&made);
        assert_eq!(seen(stand, "iam"), exchanges);
    }
    let opened = foreign(CredentialSource::File(text("/credentials/main").into()));
    let error = opened.wait(opened.upstream.generate(&opened.context())).unwrap_err();
    assert_eq!(tell(&error), (FaultClass::Denied, "UNAUTHORIZED_ERR"), "{error}");
}

fn forms_of_the_key_file(stand: &Stand) {
    let made = stand.usual().generate();
    with_file(stand, "console").opens(&made);
    let error = with_file(stand, "wrong").unwrap(&made).unwrap_err();
    assert_eq!(tell(&error), (FaultClass::CredentialFault, "BXNIM0415E"), "{error}");
    let error = with_file(stand, "cr_token").unwrap(&made).unwrap_err();
    assert_eq!(tell(&error), (FaultClass::CredentialFault, "credentials-file"), "{error}");
}

fn purged_key_is_gone(stand: &Stand) {
    let opened = stand.usual();
    let made = opened.generate();
    stand.rig.control(r#"{"action": "delete-key", "purge": true}"#);
    let error = opened.unwrap(&made).unwrap_err();
    assert_eq!(tell(&error), (FaultClass::KeyGone, "KEY_NOT_FOUND_ERR"), "{error}");
}

/// As instances of HPCS and dedicated ones may have. The rig has none there: what it saw is the path.
fn base_url_with_a_path(stand: &Stand) {
    let endpoint = format!("{}/base", stand.rig.text("/endpoints/kms"));
    let opened = with(stand, |settings| settings.endpoint = endpoint.parse().unwrap());
    let error = opened.wait(opened.upstream.describe()).unwrap_err();
    assert_eq!(error.class, FaultClass::Unclassified, "{error}");
    let path = format!("/base/api/v2/keys/{}/metadata", stand.rig.text("/keys/main"));
    assert!(stand.rig.journal().iter().any(|request| request["path"] == path.as_str()));
}
