//! AWS KMS: what the suite needs to know, and what only this cloud has. botocore computes every signature again.

use keystead::upstream::aws::{AwsSettings, CredentialSource};
use keystead::upstream::contract::UpstreamError;
use keystead::upstream::endpoint::Endpoint;
use keystead::upstream::settings::{ProviderSettings, UpstreamSettings};
use keystead::upstream::transport::codes;
use keystead_core::{FaultClass, RootKind};

use crate::provider::{Case, Opened, Provider, Stand};
use crate::rig::Rig;

pub const PROVIDER: Provider = Provider {
    name: "aws",
    kind: RootKind::AwsKms,
    construction: 0x12,
    settings,
    set_endpoint: |settings, endpoint| aws(settings).endpoint = endpoint,
    set_key: |settings, key| aws(settings).key = key.parse().unwrap(),
    set_credentials: |settings, file| aws(settings).credentials = CredentialSource::File(file.into()),
    no_such_key: "01234567-89ab-cdef-0123-456789abcdef",
    deletion_scheduled: FaultClass::KeyDisabled,
    has_billing: false,
    own: OWN,
};

const OWN: &[(&str, Case)] = &[
    ("request_that_was_changed_on_the_way_is_refused", changed_request_is_refused),
    ("key_is_named_by_its_arn", key_is_named_by_its_arn),
    ("every_source_of_credentials_opens_the_key", every_source_of_credentials),
    ("session_given_up_by_the_service_is_replaced_within_one_call", refused_session_is_replaced),
    ("session_is_used_to_its_end_while_sts_is_down", session_outlives_sts),
    ("withdrawn_role_is_a_credential_fault", withdrawn_role),
    ("signature_at_the_wrong_time_is_made_once_more", signature_follows_the_services_clock),
    ("invalid_state_is_a_revocation_only_if_the_key_says_so", invalid_state_is_looked_at),
    ("wrap_of_another_key_is_corrupt", wrap_of_another_key),
    ("wrong_region_is_no_revocation", wrong_region),
    ("deletion_date_is_told", deletion_date),
];

fn settings(rig: &Rig) -> UpstreamSettings {
    let provider = AwsSettings {
        key: rig.text("/keys/main").parse().unwrap(),
        region: rig.text("/region").into(),
        endpoint: rig.text("/endpoints/kms").parse().unwrap(),
        sts_endpoint: rig.text("/endpoints/sts").parse().unwrap(),
        metadata_endpoint: Endpoint::metadata(rig.text("/endpoints/imds")).unwrap(),
        credentials: CredentialSource::File(rig.text("/credentials/main").into()),
    };
    UpstreamSettings { provider: ProviderSettings::Aws(provider), transport: Default::default() }
}

fn aws(settings: &mut UpstreamSettings) -> &mut AwsSettings {
    match &mut settings.provider {
        ProviderSettings::Aws(settings) => settings,
        other => unreachable!("{other:?}"),
    }
}

fn with<'a>(stand: &'a Stand, change: impl FnOnce(&mut AwsSettings)) -> Opened<'a> {
    let mut settings = stand.settings();
    change(aws(&mut settings));
    stand.open(settings)
}

fn by_file(stand: &Stand, credential: &str) -> CredentialSource {
    CredentialSource::File(stand.rig.text(&format!("/credentials/{credential}")).into())
}

fn by_web_identity(stand: &Stand) -> CredentialSource {
    let variable = |name: &str| match name {
        "AWS_ROLE_ARN" => Some(stand.rig.text("/role").to_owned()),
        "AWS_WEB_IDENTITY_TOKEN_FILE" => Some(stand.rig.text("/credentials/web_identity").to_owned()),
        _ => None,
    };
    CredentialSource::web_identity_from(variable).unwrap()
}

fn tell(error: &UpstreamError) -> (FaultClass, &str) {
    (error.class, error.code.as_str())
}

/// `operation: code` of each request to `service`.
fn seen(stand: &Stand, service: &str) -> Vec<String> {
    let requests = stand.rig.requests().into_iter().filter(|(asked, ..)| asked == service);
    requests.map(|(_, operation, code)| format!("{operation}: {code}")).collect()
}

fn changed_request_is_refused(stand: &Stand) {
    let session = by_file(stand, "session");
    for opened in [stand.usual(), with(stand, |settings| settings.credentials = session)] {
        let made = opened.generate();
        for part in ["body", "target", "date", "host", "signature"] {
            stand.rig.control(&format!(r#"{{"action": "tamper", "part": "{part}"}}"#));
            let error = opened.unwrap(&made).unwrap_err();
            assert_eq!(tell(&error), (FaultClass::CredentialFault, "InvalidSignatureException"), "{part}: {error}");
        }
        stand.rig.control(r#"{"action": "reset"}"#);
        opened.opens(&made);
    }
}

fn key_is_named_by_its_arn(stand: &Stand) {
    let arn = stand.rig.text("/arns/main");
    let opened = with(stand, |settings| settings.key = arn.parse().unwrap());
    assert_eq!(opened.upstream.identity().root_id.as_bytes(), stand.rig.text("/keys/main").as_bytes());
    let made = opened.generate();
    opened.opens(&made);
    stand.usual().opens(&made);
}

fn every_source_of_credentials(stand: &Stand) {
    let made = stand.usual().generate();
    let sources = [
        (by_file(stand, "shared"), 0),
        (by_file(stand, "session"), 0),
        (by_web_identity(stand), 1),
        (CredentialSource::InstanceMetadata, 3),
    ];
    for (credentials, asked) in sources {
        stand.rig.control(r#"{"action": "reset"}"#);
        let opened = with(stand, |settings| settings.credentials = credentials.clone());
        (0..2).for_each(|_| opened.opens(&made));
        assert_eq!(seen(stand, "sts").len() + seen(stand, "imds").len(), asked, "{credentials:?}");
    }
    let wrong = by_file(stand, "wrong");
    let error = with(stand, |settings| settings.credentials = wrong).unwrap(&made).unwrap_err();
    assert_eq!(tell(&error), (FaultClass::CredentialFault, "InvalidSignatureException"), "{error}");
}

fn refused_session_is_replaced(stand: &Stand) {
    for credentials in [by_web_identity(stand), CredentialSource::InstanceMetadata] {
        stand.rig.control(r#"{"action": "reset"}"#);
        let opened = with(stand, |settings| settings.credentials = credentials);
        let made = opened.generate();
        stand.rig.control(r#"{"action": "expire-tokens"}"#);
        opened.opens(&made);
        assert_eq!(seen(stand, "kms"), ["GenerateDataKey: ok", "Decrypt: ExpiredTokenException", "Decrypt: ok"]);
    }
}

fn session_outlives_sts(stand: &Stand) {
    let web_identity = by_web_identity(stand);
    let opened = with(stand, |settings| settings.credentials = web_identity);
    stand.rig.control(r#"{"action": "token-life", "seconds": 5}"#);
    let made = opened.generate();
    stand.rig.control(r#"{"action": "fault", "fault": "refuse", "service": "sts"}"#);
    // Until then each of them opens it.
    let error = std::iter::repeat_with(|| opened.unwrap(&made)).find_map(Result::err).unwrap();
    assert_eq!(tell(&error), (FaultClass::Unreachable, codes::TCP), "{error}");
    assert!(seen(stand, "kms").len() > 1);
    stand.rig.control(r#"{"action": "clear"}"#);
    opened.opens(&made);
}

fn withdrawn_role(stand: &Stand) {
    let made = stand.usual().generate();
    for credentials in [by_web_identity(stand), CredentialSource::InstanceMetadata] {
        stand.rig.control(r#"{"action": "revoke-credential"}"#);
        let error = with(stand, |settings| settings.credentials = credentials).unwrap(&made).unwrap_err();
        assert_eq!(error.class, FaultClass::CredentialFault, "{error}");
    }
}

fn signature_follows_the_services_clock(stand: &Stand) {
    let opened = stand.usual();
    stand.rig.control(r#"{"action": "skew", "seconds": 1200}"#);
    let made = opened.generate();
    opened.opens(&made);
    let asked = ["GenerateDataKey: InvalidSignatureException", "GenerateDataKey: ok", "Decrypt: ok"];
    assert_eq!(seen(stand, "kms"), asked);
}

fn invalid_state_is_looked_at(stand: &Stand) {
    let opened = stand.usual();
    let made = opened.generate();
    const BLIND: &str = r#"{"action": "deny", "operations": ["DescribeKey"]}"#;
    for (orders, class) in [
        (vec![r#"{"action": "schedule-deletion"}"#], FaultClass::KeyDisabled),
        (vec![r#"{"action": "key-store-away"}"#], FaultClass::Unreachable),
        (vec![r#"{"action": "schedule-deletion"}"#, BLIND], FaultClass::Unclassified),
    ] {
        stand.rig.control(r#"{"action": "reset"}"#);
        orders.iter().for_each(|order| stand.rig.control(order));
        let error = opened.unwrap(&made).unwrap_err();
        assert_eq!(tell(&error), (class, "KMSInvalidStateException"), "{orders:?}: {error}");
    }
}

fn wrap_of_another_key(stand: &Stand) {
    let made = with(stand, |settings| settings.key = stand.rig.text("/keys/other").parse().unwrap()).generate();
    let error = stand.usual().unwrap(&made).unwrap_err();
    assert_eq!(tell(&error), (FaultClass::Corrupt, "IncorrectKeyException"), "{error}");
}

fn wrong_region(stand: &Stand) {
    let made = stand.usual().generate();
    let error = with(stand, |settings| settings.region = "us-east-1".into()).unwrap(&made).unwrap_err();
    assert_eq!(tell(&error), (FaultClass::CredentialFault, "InvalidSignatureException"), "{error}");
    let asked = stand.rig.requests().len();
    let opened = with(stand, |settings| {
        settings.region = "us-east-1".into();
        settings.key = stand.rig.text("/arns/main").parse().unwrap();
    });
    let error = opened.unwrap(&made).unwrap_err();
    assert_eq!(tell(&error), (FaultClass::Unclassified, "other-region"), "{error}");
    assert_eq!(stand.rig.requests().len(), asked);
}

fn deletion_date(stand: &Stand) {
    let opened = stand.usual();
    stand.rig.control(r#"{"action": "schedule-deletion", "days": 7}"#);
    let deletion = opened.wait(opened.upstream.describe()).unwrap().deletion.unwrap();
    let left = deletion.duration_since(std::time::SystemTime::now()).unwrap();
    assert_eq!(left.as_secs() / 86_400, 6);
}
