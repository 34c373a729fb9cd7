//! Each way for the cloud to be out of reach or to refuse, and the step that it is told by.

use std::collections::BTreeMap;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use keystead_core::wrap::WrappedKek;
use keystead_core::{Kek, RootId};

use super::*;
use crate::upstream::contract::{CallCounts, Expiry, UpstreamIdentity, Wrapped};

/// An upstream whose answers are what the test says.
struct Cloud {
    identity: UpstreamIdentity,
    faults: BTreeMap<&'static str, UpstreamError>,
    state: KeyState,
    ahead: Duration,
    opens_to: u8,
}

fn cloud() -> Cloud {
    let identity = UpstreamIdentity {
        kind: RootKind::AlibabaKms,
        root_id: RootId::new(b"key-1").unwrap(),
        named: "key-1".into(),
        provider: "Alibaba Cloud KMS",
        region: "cn-hangzhou".into(),
        endpoint: "https://kms.example.com".into(),
    };
    Cloud { identity, faults: BTreeMap::new(), state: KeyState::Enabled, ahead: Duration::ZERO, opens_to: 7 }
}

impl Cloud {
    fn answer<'a, T: Send + 'a>(&self, call: &str, answer: T) -> BoxFuture<'a, Result<T, UpstreamError>> {
        let outcome = self.faults.get(call).cloned().map_or(Ok(answer), Err);
        async move { outcome }.boxed()
    }
}

impl Upstream for Cloud {
    fn identity(&self) -> &UpstreamIdentity {
        &self.identity
    }

    fn generate<'a>(&'a self, context: &'a WrapContext) -> BoxFuture<'a, Result<Generated, UpstreamError>> {
        let wrap = WrappedKek {
            root_kind: context.root_kind,
            root_id: context.root_id.clone(),
            bytes: context.key_id.to_string().into_bytes(),
        };
        let wrapped = Wrapped { wrap, key_version: None };
        self.answer("generate", Generated { kek: Kek::take(&mut [7; 32]), wrapped })
    }

    fn wrap<'a>(&'a self, _: &'a Kek, _: &'a WrapContext) -> BoxFuture<'a, Result<Wrapped, UpstreamError>> {
        unreachable!("the check wraps nothing of ours")
    }

    fn unwrap<'a>(
        &'a self,
        wrap: &'a [u8],
        context: &'a WrapContext,
    ) -> BoxFuture<'a, Result<Unwrapped, UpstreamError>> {
        assert_eq!(wrap, context.key_id.to_string().as_bytes());
        let kek = Kek::take(&mut [self.opens_to; 32]);
        self.answer("unwrap", Unwrapped { kek, key_version: None, server_time: None })
    }

    fn describe(&self) -> BoxFuture<'_, Result<KeyDescription, UpstreamError>> {
        let description = KeyDescription {
            key_id: "key-1".into(),
            state: self.state.clone(),
            key_version: None,
            protection: Some("HSM".into()),
            automatic_rotation: None,
            deletion: None,
            server_time: Some(SystemTime::now() + self.ahead),
        };
        self.answer("describe", description)
    }

    fn expiries(&self) -> Vec<Expiry> {
        Vec::new()
    }

    fn calls(&self) -> CallCounts {
        CallCounts { operations: Vec::new() }
    }
}

/// Against a listener that is really there.
async fn run(cloud: &Cloud) -> Vec<Step> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    check(cloud, &hop("127.0.0.1", port), &"test".parse().unwrap()).await
}

fn hop(host: &str, port: u16) -> FirstHop {
    FirstHop { host: host.into(), port, is_proxy: false, timeout: Duration::from_secs(20) }
}

fn outcomes(steps: &[Step]) -> String {
    let letter = |step: &Step| match step.outcome {
        Outcome::Passed => '.',
        Outcome::Warned => 'w',
        Outcome::Failed => 'F',
        Outcome::Skipped => '-',
    };
    steps.iter().map(letter).collect()
}

#[tokio::test]
async fn sound_cloud_passes_every_step() {
    let steps = run(&cloud()).await;
    assert_eq!(steps.iter().map(|step| step.name).collect::<Vec<_>>(), NAMES);
    assert_eq!(outcomes(&steps), ".........", "{steps:?}");
    assert!(steps.iter().all(|step| step.hint.is_empty()), "{steps:?}");
}

#[tokio::test]
async fn name_without_an_address_and_closed_port_are_told_apart() {
    let steps = check(&cloud(), &hop("name.invalid", 443), &"test".parse().unwrap()).await;
    assert_eq!(outcomes(&steps), "F--------", "{steps:?}");
    assert!(steps[0].hint.contains("resolv.conf"));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let steps = check(&cloud(), &hop("127.0.0.1", port), &"test".parse().unwrap()).await;
    assert_eq!(outcomes(&steps), ".F-------", "{steps:?}");
    assert!(steps[1].hint.contains("CIDR"));
}

#[tokio::test]
async fn each_refusal_is_told_by_its_own_step_with_a_remedy() {
    for (call, class, code, expected) in [
        ("describe", FaultClass::Unreachable, codes::TLS, "..F------"),
        ("describe", FaultClass::Unreachable, codes::FOREIGN, "..F------"),
        ("describe", FaultClass::CredentialFault, "InvalidAccessKeyId.NotFound", "...wF----"),
        ("describe", FaultClass::Billing, "Forbidden.InDebt", "...wF----"),
        ("describe", FaultClass::Unreachable, "Throttling", "..F------"),
        ("describe", FaultClass::Unreachable, "http-503", "..F------"),
        ("describe", FaultClass::KeyGone, "Forbidden.KeyNotFound", "...w.F---"),
        ("describe", FaultClass::Denied, "Forbidden.NoPermission", "...w.w..."),
        ("generate", FaultClass::Denied, "Forbidden.NoPermission", "......F--"),
        ("generate", FaultClass::KeyDisabled, "Rejected.Disabled", "......F--"),
        ("unwrap", FaultClass::Denied, "Forbidden.NoPermission", ".......F-"),
        ("unwrap", FaultClass::Unreachable, codes::TIMEOUT, ".......F-"),
    ] {
        let mut cloud = cloud();
        cloud.faults.insert(call, UpstreamError::new(class, code, "refused"));
        let steps = run(&cloud).await;
        assert_eq!(outcomes(&steps), expected, "{call} {code}: {steps:?}");
        assert!(
            steps.iter().filter(|step| step.outcome == Outcome::Failed).all(|step| !step.hint.is_empty()),
            "{steps:?}"
        );
    }
}

#[tokio::test]
async fn key_that_is_not_enabled_clock_that_is_off_and_foreign_kek_are_seen() {
    for (state, expected) in [
        (KeyState::Disabled, ".....F---"),
        (KeyState::PendingDeletion, ".....F---"),
        (KeyState::Other("Importing".into()), ".....w..."),
    ] {
        let steps = run(&Cloud { state, ..cloud() }).await;
        assert_eq!(outcomes(&steps), expected, "{steps:?}");
    }
    let steps = run(&Cloud { ahead: Duration::from_secs(1200), ..cloud() }).await;
    assert_eq!(outcomes(&steps), "...w.....", "{steps:?}");
    let steps = run(&Cloud { opens_to: 8, ..cloud() }).await;
    assert_eq!(outcomes(&steps), ".......F-", "{steps:?}");
}
