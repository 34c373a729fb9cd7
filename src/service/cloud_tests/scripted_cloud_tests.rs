//! A cloud KMS with one key, whose answers a test chooses.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use keystead_core::{FaultClass, Kek, RootId, RootKind, WrapContext, WrappedKek};

use super::memory_token_tests::fresh;
use crate::upstream::contract::{
    CallCounts, Expiry, Generated, KeyDescription, KeyState, Unwrapped, Upstream, UpstreamError, UpstreamIdentity,
    Wrapped,
};

/// What the cloud has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Works,
    Fails(FaultClass),
    /// Opens wraps to a key that is none of ours.
    OtherKey,
}

/// A cloud KMS with one key.
pub struct FakeCloud {
    identity: UpstreamIdentity,
    inner: Mutex<Inner>,
    pub unwraps: AtomicU64,
    pub describes: AtomicU64,
}

struct Inner {
    mood: Mood,
    version: u32,
    wraps: HashMap<Vec<u8>, (Vec<u8>, [u8; 32])>,
    server_time: u64,
}

impl FakeCloud {
    pub fn new(region: &str) -> Self {
        Self {
            identity: UpstreamIdentity {
                kind: RootKind::AlibabaKms,
                root_id: RootId::new(b"key-1").unwrap(),
                named: "key-1".into(),
                provider: "test cloud",
                region: region.into(),
                endpoint: format!("https://kms.{region}.example"),
            },
            inner: Mutex::new(Inner {
                mood: Mood::Works,
                version: 1,
                wraps: HashMap::new(),
                server_time: 1_800_000_000,
            }),
            unwraps: AtomicU64::new(0),
            describes: AtomicU64::new(0),
        }
    }

    /// The same cloud, configured with another region.
    pub fn in_region(&self, region: &str) -> Self {
        let inner = self.inner();
        let other = Self::new(region);
        *other.inner() = Inner {
            wraps: inner.wraps.clone(),
            mood: inner.mood,
            version: inner.version,
            server_time: inner.server_time,
        };
        other
    }

    /// Another key of the same cloud.
    pub fn other_key() -> Self {
        let mut other = Self::new("one");
        other.identity.root_id = RootId::new(b"key-2").unwrap();
        other
    }

    pub fn says(&self, mood: Mood) {
        self.inner().mood = mood;
    }

    pub fn mood(&self) -> Mood {
        self.inner().mood
    }

    pub fn rotates(&self) {
        self.inner().version += 1;
    }

    pub fn calls(&self) -> u64 {
        self.unwraps.load(Ordering::Relaxed)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    fn refusal(mood: Mood) -> Result<(), UpstreamError> {
        match mood {
            Mood::Fails(class) => Err(UpstreamError::new(class, format!("Test.{class}"), "as the test says")),
            Mood::Works | Mood::OtherKey => Ok(()),
        }
    }
}

impl Upstream for FakeCloud {
    fn identity(&self) -> &UpstreamIdentity {
        &self.identity
    }

    fn generate<'a>(&'a self, context: &'a WrapContext) -> BoxFuture<'a, Result<Generated, UpstreamError>> {
        async move {
            let kek = Kek::take(&mut fresh());
            let wrapped = self.wrap(&kek, context).await?;
            Ok(Generated { kek, wrapped })
        }
        .boxed()
    }

    fn wrap<'a>(&'a self, kek: &'a Kek, context: &'a WrapContext) -> BoxFuture<'a, Result<Wrapped, UpstreamError>> {
        async move {
            let mut inner = self.inner();
            Self::refusal(inner.mood)?;
            let bytes = [&[0x10][..], &fresh::<40>()].concat();
            inner.wraps.insert(bytes.clone(), (context.to_bytes(), *kek.expose()));
            let wrap = WrappedKek { root_kind: context.root_kind, root_id: context.root_id.clone(), bytes };
            Ok(Wrapped { wrap, key_version: Some(format!("v{}", inner.version)) })
        }
        .boxed()
    }

    fn unwrap<'a>(
        &'a self,
        wrap: &'a [u8],
        context: &'a WrapContext,
    ) -> BoxFuture<'a, Result<Unwrapped, UpstreamError>> {
        async move {
            self.unwraps.fetch_add(1, Ordering::Relaxed);
            let inner = self.inner();
            Self::refusal(inner.mood)?;
            let corrupt = || UpstreamError::new(FaultClass::Corrupt, "Test.NoSuchWrap", "no such wrap");
            let (bound, mut kek) = inner.wraps.get(wrap).cloned().ok_or_else(corrupt)?;
            if bound != context.to_bytes() {
                return Err(corrupt());
            }
            if inner.mood == Mood::OtherKey {
                kek = fresh();
            }
            let server_time = Some(std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(inner.server_time));
            Ok(Unwrapped { kek: Kek::take(&mut kek), key_version: None, server_time })
        }
        .boxed()
    }

    fn describe(&self) -> BoxFuture<'_, Result<KeyDescription, UpstreamError>> {
        async move {
            self.describes.fetch_add(1, Ordering::Relaxed);
            let inner = self.inner();
            Self::refusal(inner.mood)?;
            Ok(KeyDescription {
                key_id: "key-1".into(),
                state: KeyState::Enabled,
                key_version: Some(format!("v{}", inner.version)),
                protection: None,
                automatic_rotation: None,
                deletion: None,
                server_time: None,
            })
        }
        .boxed()
    }

    fn expiries(&self) -> Vec<Expiry> {
        Vec::new()
    }

    fn calls(&self) -> CallCounts {
        CallCounts { operations: Vec::new() }
    }
}
