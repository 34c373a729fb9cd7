//! Alibaba Cloud KMS: what the suite needs to know, and what only this cloud has.

use std::fs;
use std::time::{Duration, Instant, SystemTime};

use keystead::upstream::alibaba::{AlibabaSettings, CredentialSource};
use keystead::upstream::endpoint::Endpoint;
use keystead::upstream::settings::{ProviderSettings, UpstreamSettings};
use keystead_core::{FaultClass, RootKind};

use crate::provider::{Case, Opened, Provider, Stand};
use crate::rig::Rig;

pub const PROVIDER: Provider = Provider {
    name: "alibaba",
    kind: RootKind::AlibabaKms,
    construction: 0x10,
    settings,
    set_endpoint: |settings, endpoint| alibaba(settings).endpoint = endpoint,
    set_key: |settings, key| alibaba(settings).key = key.parse().unwrap(),
    set_credentials: |settings, file| alibaba(settings).credentials = CredentialSource::File(file.into()),
    no_such_key: "key-hzz0123456789abcdef0123",
    deletion_scheduled: FaultClass::KeyDisabled,
    has_billing: true,
    own: OWN,
};

const OWN: &[(&str, Case)] = &[
    ("vendors_client_and_stub_agree_and_tampering_is_refused", |stand| stand.rig.run("check.py")),
    ("hardware_key_wraps_and_says_so", hardware_key_wraps),
    ("key_of_another_account_is_named_by_its_arn", key_is_named_by_its_arn),
    ("dedicated_instance_is_asked_for_keys_and_the_gateway_for_descriptions", dedicated_instance),
    ("newest_version_is_listed_where_the_description_names_none", newest_version_is_listed),
    ("every_form_of_credential_opens_the_key", every_form_of_credential),
    ("session_is_fetched_once_and_renewed_before_its_end", session_is_renewed_early),
    ("session_is_used_to_its_end_while_sts_is_down", session_outlives_sts),
    ("session_given_up_by_the_service_is_replaced_within_one_call", refused_session_is_replaced),
    ("withdrawn_trust_of_the_role_is_a_credential_fault", withdrawn_trust),
    ("metadata_is_asked_in_version_2_only", metadata_version_2),
    ("wrong_secret_and_unknown_key_are_credential_faults", wrong_credentials),
];

fn settings(rig: &Rig) -> UpstreamSettings {
    let endpoint = |service: &str| rig.text(&format!("/endpoints/{service}"));
    let provider = AlibabaSettings {
        key: rig.text("/keys/main").parse().unwrap(),
        region: rig.text("/region").into(),
        endpoint: endpoint("kms").parse().unwrap(),
        management_endpoint: endpoint("kms").parse().unwrap(),
        sts_endpoint: endpoint("sts").parse().unwrap(),
        metadata_endpoint: Endpoint::metadata(endpoint("metadata")).unwrap(),
        credentials: CredentialSource::File(rig.text("/credentials/main").into()),
    };
    UpstreamSettings { provider: ProviderSettings::Alibaba(provider), transport: Default::default() }
}

fn alibaba(settings: &mut UpstreamSettings) -> &mut AlibabaSettings {
    match &mut settings.provider {
        ProviderSettings::Alibaba(settings) => settings,
        other => unreachable!("{other:?}"),
    }
}

fn with<'a>(stand: &'a Stand, change: impl FnOnce(&mut AlibabaSettings)) -> Opened<'a> {
    let mut settings = stand.settings();
    change(alibaba(&mut settings));
    stand.open(settings)
}

fn with_file<'a>(stand: &'a Stand, credential: &str) -> Opened<'a> {
    let file = stand.rig.text(&format!("/credentials/{credential}")).into();
    with(stand, |settings| settings.credentials = CredentialSource::File(file))
}

fn from_metadata(role: Option<&str>) -> CredentialSource {
    CredentialSource::EcsMetadata { role: role.map(ToOwned::to_owned) }
}

fn by_oidc(stand: &Stand) -> CredentialSource {
    let variable = |name: &str| match name {
        "ALIBABA_CLOUD_ROLE_ARN" => Some(stand.rig.text("/role_arn").to_owned()),
        "ALIBABA_CLOUD_OIDC_PROVIDER_ARN" => Some(stand.rig.text("/oidc_provider_arn").to_owned()),
        "ALIBABA_CLOUD_OIDC_TOKEN_FILE" => Some(stand.rig.text("/credentials/oidc-token").to_owned()),
        _ => None,
    };
    CredentialSource::oidc_from(variable).unwrap()
}

fn hardware_key_wraps(stand: &Stand) {
    let opened = with(stand, |settings| settings.key = stand.rig.text("/keys/hsm").parse().unwrap());
    let made = opened.generate();
    opened.opens(&made);
    let described = opened.wait(opened.upstream.describe()).unwrap();
    assert_eq!(described.protection.as_deref(), Some("HSM"));
    assert_eq!(described.automatic_rotation, Some(true));
    // The same credential opens it by way of another key's configuration: only the answer's key ID tells.
    let other = stand.usual();
    let error = other.unwrap(&made).unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (FaultClass::Corrupt, "other-key"), "{error}");
}

fn key_is_named_by_its_arn(stand: &Stand) {
    let key = stand.rig.text("/keys/main");
    let opened = with(stand, |settings| settings.key = format!("acs:kms:cn-hangzhou:1:key/{key}").parse().unwrap());
    assert_eq!(opened.upstream.identity().root_id.as_bytes(), key.as_bytes());
    let made = opened.generate();
    opened.opens(&made);
    stand.usual().opens(&made);
}

fn dedicated_instance(stand: &Stand) {
    let (_folder, file) = stand.rig.copy_of("/ca_file");
    let both = ["/ca_file", "/next_ca_file"].map(|file| fs::read(stand.rig.text(file)).unwrap()).concat();
    fs::write(&file, both).unwrap();
    let mut settings = stand.settings();
    settings.transport.ca_file = Some(file);
    alibaba(&mut settings).endpoint = stand.rig.text("/endpoints/instance").parse().unwrap();
    let opened = stand.open(settings);
    let made = opened.generate();
    opened.opens(&made);
    opened.version();
    let services: Vec<String> = stand.rig.requests().into_iter().map(|(service, ..)| service).collect();
    assert_eq!(services, ["instance", "instance", "kms"]);
}

fn newest_version_is_listed(stand: &Stand) {
    stand.rig.control(r#"{"action": "rotate-key"}"#);
    let newest = stand.usual().version();
    stand.rig.control(r#"{"action": "hide-version"}"#);
    assert_eq!(stand.usual().version(), newest);
    assert_eq!(stand.rig.count("ListKeyVersions"), 1);
}

fn every_form_of_credential(stand: &Stand) {
    let made = stand.usual().generate();
    for credential in ["cli", "session", "role"] {
        with_file(stand, credential).opens(&made);
    }
    let platform = [from_metadata(None), from_metadata(Some("KeysteadRole")), by_oidc(stand)];
    for credentials in platform {
        let opened = with(stand, |settings| settings.credentials = credentials);
        opened.opens(&made);
        assert!(opened.upstream.expiries().iter().any(|expiry| expiry.what == "STS session"));
    }
}

fn session_is_renewed_early(stand: &Stand) {
    stand.rig.control(r#"{"action": "token-life", "seconds": 10}"#);
    let opened = with_file(stand, "role");
    let made = opened.generate();
    let deadline = Instant::now() + Duration::from_secs(60);
    while stand.rig.count("AssumeRole") < 2 {
        assert!(Instant::now() < deadline, "the session was not renewed");
        opened.opens(&made);
    }
    let calls = stand.rig.requests();
    let in_between = calls.iter().rposition(|(_, operation, _)| operation == "AssumeRole").unwrap() - 1;
    assert!(in_between > 2, "a session for each call: {calls:?}");
}

fn session_outlives_sts(stand: &Stand) {
    stand.rig.control(r#"{"action": "token-life", "seconds": 10}"#);
    let opened = with_file(stand, "role");
    let made = opened.generate();
    stand.rig.control(r#"{"action": "fault", "fault": "refuse", "service": "sts"}"#);
    let deadline = Instant::now() + Duration::from_secs(60);
    let error = loop {
        match opened.unwrap(&made) {
            Ok(_) => assert!(Instant::now() < deadline, "a session without an end"),
            Err(error) => break error,
        }
    };
    // A tenth of its life is left at most; when its renewal was due and failed, it was a fifth.
    let expiry = opened.upstream.expiries().into_iter().find(|expiry| expiry.what == "STS session").unwrap();
    let left = expiry.not_after.duration_since(SystemTime::now()).unwrap_or_default();
    assert!(left < Duration::from_millis(1500), "{left:?}");
    assert_eq!(error.class, FaultClass::Unreachable, "{error}");
    stand.rig.control(r#"{"action": "clear"}"#);
    opened.opens(&made);
}

fn refused_session_is_replaced(stand: &Stand) {
    let opened = with_file(stand, "role");
    let made = opened.generate();
    for (order, sessions) in
        [(r#"{"action": "expire-tokens", "forgotten": true}"#, 2), (r#"{"action": "expire-tokens"}"#, 3)]
    {
        stand.rig.control(order);
        opened.opens(&made);
        assert_eq!(stand.rig.count("AssumeRole"), sessions);
    }
    // Nobody can hand out another one of those that stand in a file.
    stand.rig.control(r#"{"action": "reset"}"#);
    stand.rig.control(r#"{"action": "expire-tokens"}"#);
    let error = with_file(stand, "session").unwrap(&made).unwrap_err();
    assert_eq!(
        (error.class, error.code.as_str()),
        (FaultClass::CredentialFault, "InvalidSecurityToken.Expired"),
        "{error}"
    );
}

fn withdrawn_trust(stand: &Stand) {
    stand.rig.control(r#"{"action": "distrust-role"}"#);
    let oidc = by_oidc(stand);
    for opened in [
        with_file(stand, "role"),
        with(stand, |settings| settings.credentials = oidc),
        with(stand, |settings| settings.credentials = from_metadata(None)),
    ] {
        let error = opened.wait(opened.upstream.generate(&opened.context())).unwrap_err();
        assert_eq!(error.class, FaultClass::CredentialFault, "{error}");
    }
}

fn metadata_version_2(stand: &Stand) {
    let opened = with(stand, |settings| settings.credentials = from_metadata(None));
    opened.generate();
    let asked: Vec<_> = stand.rig.requests().into_iter().filter(|(service, ..)| service == "metadata").collect();
    assert_eq!(asked.first().map(|(_, path, _)| path.as_str()), Some("/latest/api/token"));
    assert!(asked.len() == 3 && asked.iter().all(|(_, _, code)| code == "ok"), "{asked:?}");
}

fn wrong_credentials(stand: &Stand) {
    let made = stand.usual().generate();
    for (credential, code) in [("wrong", "SignatureDoesNotMatch"), ("unknown", "InvalidAccessKeyId.NotFound")] {
        let error = with_file(stand, credential).unwrap(&made).unwrap_err();
        assert_eq!((error.class, error.code.as_str()), (FaultClass::CredentialFault, code), "{error}");
    }
}
