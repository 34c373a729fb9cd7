//! What the suite must know of a cloud, and the stand on which a case runs.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use keystead::upstream::contract::{Generated, Unwrapped};
use keystead::upstream::endpoint::Endpoint;
use keystead::upstream::settings::{TransportSettings, UpstreamSettings};
use keystead::upstream::{Clock, Upstream, UpstreamError};
use keystead_core::{FaultClass, GenerationNumber, KeyId, KeyringId, RootKind, WrapContext};
use tokio::runtime::Runtime;

use crate::rig::Rig;

pub type Case = fn(&Stand);

/// Everything else is the same for all clouds.
pub struct Provider {
    /// Also the name of its folder in tests/rigs.
    pub name: &'static str,
    pub kind: RootKind,
    /// First byte of its wraps.
    pub construction: u8,
    /// The rig's main key with its main credential; the transport is the suite's.
    pub settings: fn(&Rig) -> UpstreamSettings,
    pub set_endpoint: fn(&mut UpstreamSettings, Endpoint),
    pub set_key: fn(&mut UpstreamSettings, &str),
    /// Takes the path of a credentials file.
    pub set_credentials: fn(&mut UpstreamSettings, &str),
    /// A key ID of the right form that no rig has.
    pub no_such_key: &'static str,
    /// What a key that is going to be deleted answers.
    pub deletion_scheduled: FaultClass,
    /// Whether it has an error for unpaid bills.
    pub has_billing: bool,
    pub own: &'static [(&'static str, Case)],
}

/// A running rig. Every case begins on a reset one.
pub struct Stand {
    pub provider: &'static Provider,
    pub rig: Rig,
    runtime: Runtime,
}

impl Stand {
    pub fn new(provider: &'static Provider) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { provider, rig: Rig::start(provider.name), runtime }
    }

    pub fn settings(&self) -> UpstreamSettings {
        let mut settings = (self.provider.settings)(&self.rig);
        settings.transport = TransportSettings {
            // A loaded machine takes its time for a handshake.
            connect_timeout: Duration::from_secs(20),
            timeout: Duration::from_secs(40),
            ca_file: Some(self.rig.text("/ca_file").into()),
            proxy: None,
        };
        settings
    }

    /// For faults that do not end by themselves.
    pub fn impatient(&self) -> UpstreamSettings {
        let mut settings = self.settings();
        settings.transport.connect_timeout = Duration::from_secs(1);
        settings.transport.timeout = Duration::from_secs(2);
        settings
    }

    pub fn open(&self, settings: UpstreamSettings) -> Opened<'_> {
        self.open_at(settings, Arc::new(SystemTime::now))
    }

    pub fn open_at(&self, settings: UpstreamSettings, clock: Clock) -> Opened<'_> {
        Opened { upstream: keystead::upstream::open(settings, clock), stand: self }
    }

    pub fn usual(&self) -> Opened<'_> {
        self.open(self.settings())
    }
}

/// An upstream, called from code that waits.
pub struct Opened<'a> {
    pub upstream: Arc<dyn Upstream>,
    stand: &'a Stand,
}

impl Opened<'_> {
    pub fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.stand.runtime.block_on(future)
    }

    pub fn context(&self) -> WrapContext {
        self.context_of("edge-7", 3, 1)
    }

    pub fn context_of(&self, keyring: &str, generation: u64, random: u8) -> WrapContext {
        let (keyring, generation): (KeyringId, _) = (keyring.parse().unwrap(), GenerationNumber(generation));
        let identity = self.upstream.identity();
        WrapContext {
            key_id: KeyId::mint(&keyring, generation, [random; 16]),
            keyring,
            generation,
            root_kind: identity.kind,
            root_id: identity.root_id.clone(),
        }
    }

    pub fn generate(&self) -> Generated {
        self.wait(self.upstream.generate(&self.context())).unwrap_or_else(|error| panic!("generate: {error}"))
    }

    pub fn unwrap(&self, made: &Generated) -> Result<Unwrapped, UpstreamError> {
        self.unwrap_bytes(&made.wrapped.wrap.bytes)
    }

    pub fn unwrap_bytes(&self, wrap: &[u8]) -> Result<Unwrapped, UpstreamError> {
        self.wait(self.upstream.unwrap(wrap, &self.context()))
    }

    /// The KEK comes back.
    pub fn opens(&self, made: &Generated) {
        let unwrapped = self.unwrap(made).unwrap_or_else(|error| panic!("unwrap: {error}"));
        assert_eq!(unwrapped.kek.commitment(), made.kek.commitment());
    }

    /// As [`Self::opens`], but the machine may be too busy for an impatient upstream at first.
    pub fn opens_soon(&self, made: &Generated) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match self.unwrap(made) {
                Ok(unwrapped) => return assert_eq!(unwrapped.kek.commitment(), made.kek.commitment()),
                Err(error) if Instant::now() > deadline => panic!("unwrap, still after a minute: {error}"),
                Err(_) => {}
            }
        }
    }

    pub fn version(&self) -> String {
        let described = self.wait(self.upstream.describe()).unwrap_or_else(|error| panic!("describe: {error}"));
        described.key_version.expect("a key version")
    }
}
