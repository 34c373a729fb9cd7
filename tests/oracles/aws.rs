//! AWS KMS: botocore computes every signature again; where credentials come from; what an invalid state is.

use keystead::upstream::Upstream;
use keystead::upstream::aws::{Aws, AwsSettings, CredentialSource};
use keystead_core::{FaultClass, Kek, WrapContext};
use serde_json::json;

use crate::rig::{self, Rig};

fn settings(rig: &Rig, credentials: CredentialSource) -> AwsSettings {
    AwsSettings {
        key: rig.text("/keys/main").parse().unwrap(),
        region: rig.text("/region").to_owned(),
        endpoint: rig.text("/endpoints/kms").parse().unwrap(),
        sts_endpoint: rig.text("/endpoints/sts").parse().unwrap(),
        metadata_endpoint: keystead::upstream::endpoint::Endpoint::metadata(rig.text("/endpoints/imds")).unwrap(),
        credentials,
    }
}

fn by_file(rig: &Rig, credential: &str) -> CredentialSource {
    CredentialSource::File(rig.path(&format!("/credentials/{credential}")))
}

fn web_identity(rig: &Rig) -> CredentialSource {
    CredentialSource::WebIdentity {
        role_arn: rig.text("/role").to_owned(),
        token_file: rig.path("/credentials/web_identity"),
        session_name: "keystead".into(),
    }
}

fn connect(rig: &Rig) -> Aws {
    Aws::new(settings(rig, by_file(rig, "main")), rig.transport())
}

fn context(aws: &Aws) -> WrapContext {
    rig::context(aws.identity().kind, &aws.identity().root_id)
}

#[tokio::test]
async fn botocore_agrees_with_every_signature_and_refuses_what_was_changed_on_the_way() {
    let rig = rig::aws().await;
    let mut by_arn = settings(&rig, by_file(&rig, "main"));
    by_arn.key = rig.text("/arns/main").parse().unwrap();
    for aws in [connect(&rig), Aws::new(by_arn, rig.transport())] {
        let context = context(&aws);
        let generated = aws.generate(&context).await.unwrap();
        let opened = aws.unwrap(&generated.wrapped.wrap.bytes, &context).await.unwrap();
        assert_eq!(opened.kek.expose(), generated.kek.expose());
        let kek = Kek::take(&mut [9; 32]);
        let wrapped = aws.wrap(&kek, &context).await.unwrap();
        assert_eq!(aws.unwrap(&wrapped.wrap.bytes, &context).await.unwrap().kek.expose(), kek.expose());
        aws.describe().await.unwrap();
        for part in ["body", "target", "date", "host", "signature"] {
            rig.order(json!({"action": "tamper", "part": part}));
            let error = aws.unwrap(&wrapped.wrap.bytes, &context).await.unwrap_err();
            assert_eq!(
                (error.class, error.code.as_str()),
                (FaultClass::CredentialFault, "InvalidSignatureException"),
                "{part}"
            );
        }
        rig.order(json!({"action": "reset"}));
    }
}

#[tokio::test]
async fn each_source_of_credentials_is_taken() {
    let rig = rig::aws().await;
    for (credentials, asked) in [
        (by_file(&rig, "shared"), 0),
        (by_file(&rig, "session"), 0),
        (web_identity(&rig), 1),
        (CredentialSource::InstanceMetadata, 3),
    ] {
        rig.order(json!({"action": "reset"}));
        let aws = Aws::new(settings(&rig, credentials.clone()), rig.transport());
        let context = context(&aws);
        let generated = aws.generate(&context).await.unwrap();
        aws.unwrap(&generated.wrapped.wrap.bytes, &context).await.unwrap();
        assert_eq!(rig.seen("sts").len() + rig.seen("imds").len(), asked, "{credentials:?}");
    }
    let aws = Aws::new(settings(&rig, by_file(&rig, "wrong")), rig.transport());
    let error = aws.generate(&context(&aws)).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (FaultClass::CredentialFault, "InvalidSignatureException"));
}

#[tokio::test]
async fn session_that_ends_early_is_exchanged_anew_and_a_lost_role_is_a_credential_fault() {
    let rig = rig::aws().await;
    for credentials in [web_identity(&rig), CredentialSource::InstanceMetadata] {
        rig.order(json!({"action": "reset"}));
        let aws = Aws::new(settings(&rig, credentials), rig.transport());
        let context = context(&aws);
        let wrap = aws.generate(&context).await.unwrap().wrapped.wrap.bytes;
        rig.order(json!({"action": "expire-tokens"}));
        aws.unwrap(&wrap, &context).await.unwrap();
        assert_eq!(rig.seen("kms"), ["GenerateDataKey: ok", "Decrypt: ExpiredTokenException", "Decrypt: ok"]);
        rig.order(json!({"action": "revoke-credential"}));
        assert_eq!(aws.unwrap(&wrap, &context).await.unwrap_err().class, FaultClass::CredentialFault);
    }
}

#[tokio::test]
async fn session_works_while_sts_is_down_and_its_end_is_unreachable() {
    let rig = rig::aws().await;
    let aws = Aws::new(settings(&rig, web_identity(&rig)), rig.transport());
    let context = context(&aws);
    rig.order(json!({"action": "token-life", "seconds": 3}));
    let wrap = aws.generate(&context).await.unwrap().wrapped.wrap.bytes;
    rig.order(json!({"action": "fault", "fault": "refuse", "service": "sts"}));
    aws.unwrap(&wrap, &context).await.unwrap();
    let error = loop {
        if let Err(error) = aws.unwrap(&wrap, &context).await {
            break error;
        }
    };
    assert_eq!((error.class, error.code.as_str()), (FaultClass::Unreachable, "tcp"));
}

#[tokio::test]
async fn signature_follows_the_services_clock_after_one_refusal() {
    let rig = rig::aws().await;
    let aws = connect(&rig);
    let context = context(&aws);
    rig.order(json!({"action": "skew", "seconds": 1200}));
    let wrap = aws.generate(&context).await.unwrap().wrapped.wrap.bytes;
    aws.unwrap(&wrap, &context).await.unwrap();
    assert_eq!(rig.seen("kms"), ["GenerateDataKey: InvalidSignatureException", "GenerateDataKey: ok", "Decrypt: ok"]);
}

#[tokio::test]
async fn invalid_state_is_a_revocation_only_if_the_key_says_so() {
    let rig = rig::aws().await;
    let aws = connect(&rig);
    let context = context(&aws);
    let wrap = aws.generate(&context).await.unwrap().wrapped.wrap.bytes;
    for (action, denied, class) in [
        ("schedule-deletion", false, FaultClass::KeyDisabled),
        ("key-store-away", false, FaultClass::Unreachable),
        ("schedule-deletion", true, FaultClass::Unclassified),
    ] {
        rig.order(json!({"action": "reset"}));
        rig.order(json!({"action": action}));
        if denied {
            rig.order(json!({"action": "deny", "operations": ["DescribeKey"]}));
        }
        let error = aws.unwrap(&wrap, &context).await.unwrap_err();
        assert_eq!((error.class, error.code.as_str()), (class, "KMSInvalidStateException"), "{action} {denied}");
    }
    rig.order(json!({"action": "reset"}));
    rig.order(json!({"action": "schedule-deletion", "days": 7}));
    assert!(aws.describe().await.unwrap().deletion.is_some());
}

#[tokio::test]
async fn rotation_shows_in_the_description_and_old_wraps_still_open() {
    let rig = rig::aws().await;
    let aws = connect(&rig);
    let context = context(&aws);
    let first = aws.generate(&context).await.unwrap();
    assert_eq!(first.wrapped.key_version, aws.describe().await.unwrap().key_version);
    rig.order(json!({"action": "rotate-key"}));
    assert_ne!(first.wrapped.key_version, aws.describe().await.unwrap().key_version);
    let opened = aws.unwrap(&first.wrapped.wrap.bytes, &context).await.unwrap();
    assert_eq!(opened.kek.expose(), first.kek.expose());
}

#[tokio::test]
async fn wrap_of_another_key_and_wrong_regions_are_no_revocation() {
    let rig = rig::aws().await;
    let aws = connect(&rig);
    let mut other = settings(&rig, by_file(&rig, "main"));
    other.key = rig.text("/keys/other").parse().unwrap();
    let other = Aws::new(other, rig.transport());
    let wrap = other.generate(&context(&other)).await.unwrap().wrapped.wrap.bytes;
    let error = aws.unwrap(&wrap, &context(&aws)).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (FaultClass::Corrupt, "IncorrectKeyException"));

    let mut elsewhere = settings(&rig, by_file(&rig, "main"));
    elsewhere.region = "us-east-1".into();
    let aws = Aws::new(elsewhere.clone(), rig.transport());
    let error = aws.generate(&context(&aws)).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (FaultClass::CredentialFault, "InvalidSignatureException"));
    elsewhere.key = rig.text("/arns/main").parse().unwrap();
    let aws = Aws::new(elsewhere, rig.transport());
    let asked = rig.requests().len();
    let error = aws.generate(&context(&aws)).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (FaultClass::Unclassified, "other-region"));
    assert_eq!(rig.requests().len(), asked);
}
