//! A site in a box: a token in memory, a cloud whose answers a test chooses, clocks that a test moves, a folder for the store.
//! Everything between them is the daemon's own code, but for its sockets and processes.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hmac::{Hmac, KeyInit, Mac};
use keystead_core::availability::Availability;
use keystead_core::grant::{Grant, GrantSigner};
use keystead_core::keyring::Keyring;
use keystead_core::lease::Clocks;
use keystead_core::recovery::Sighting;
use keystead_core::recovery_key::RecoveryKey;
use keystead_core::wrap::{Construction, seal_under_transport_key};
use keystead_core::{FaultClass, GenerationNumber, Kek, RootId, RootKind, WrapContext, WrappedKek};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::custody::client::CustodyClient;
use crate::custody::contract::{
    Answer, CmkObject, CustodyError, DeviceClock, EpochPurpose, PinState, Request, TokenDescription, TokenSummary,
};
use crate::custody::worker::{self, Custodian};
use crate::service::clock::{Clock, KnownTime};
use crate::service::cloud::{CloudReport, CloudSettings, OnKeyVersion};
use crate::service::init::{InitCloud, InitError, InitRequest, init};
use crate::service::keys::{Encrypted, KeyService, ServeError};
use crate::service::lifecycle::{KeySettings, Lifecycle};
use crate::service::recover::{self, Openers, RebuildRequest, Rebuilt, RecoverError};
use crate::store::Store;
use crate::upstream::contract::{
    CallCounts, Expiry, Generated, KeyDescription, KeyState, Unwrapped, Upstream, UpstreamError, UpstreamIdentity,
    Wrapped,
};

pub const HOUR: u64 = 3600;
pub const LEASE: Duration = Duration::from_secs(72 * HOUR);
pub const RENEW: u64 = 600;
pub const PROBE: u64 = 15;

/// A token that never forgets by itself.
#[derive(Default)]
pub struct Token {
    epochs: Mutex<BTreeMap<u64, [u8; 32]>>,
    keks: Mutex<HashMap<Vec<u8>, [u8; 32]>>,
    away: AtomicBool,
    clock: Mutex<Option<DeviceClock>>,
}

impl Token {
    pub fn shows(&self, seconds: u64, resets: u32) {
        *self.clock.lock().unwrap() = Some(DeviceClock { seconds, resets });
    }

    pub fn take_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }

    pub fn is_away(&self) -> bool {
        self.away.load(Ordering::Relaxed)
    }

    pub fn cmks(&self) -> usize {
        self.keks.lock().unwrap().len()
    }

    pub fn epochs(&self) -> Vec<u64> {
        self.epochs.lock().unwrap().keys().copied().collect()
    }
}

struct Device(Arc<Token>);

impl Custodian for Device {
    fn serve(&self, _seat: usize, request: Request) -> Result<Answer, CustodyError> {
        if self.0.is_away() {
            return Err(CustodyError::TokenMissing { wanted: "the test's".into() });
        }
        let mut epochs = self.0.epochs.lock().unwrap();
        let mut keks = self.0.keks.lock().unwrap();
        let wrapped = |context: &WrapContext, kek: &Kek| WrappedKek {
            root_kind: context.root_kind,
            root_id: context.root_id.clone(),
            bytes: Construction::AesGcm {
                iv: [0; 12],
                sealed: seal_under_transport_key(&[7; 32], &context.to_bytes(), kek),
            }
            .to_bytes(),
        };
        Ok(match request {
            Request::Describe => {
                let clock = *self.0.clock.lock().unwrap();
                Answer::Token(TokenDescription { clock, ..description() })
            }
            Request::ListTokens => Answer::Tokens(vec![description().token]),
            Request::ListCmks => {
                let cmk = |id: &Vec<u8>| CmkObject { root_id: RootId::new(id).unwrap(), label: String::new() };
                Answer::Cmks(keks.keys().map(cmk).collect())
            }
            Request::NewKek { context } => {
                let bytes: [u8; 32] = fresh();
                keks.insert(context.root_id.as_bytes().to_vec(), bytes);
                let kek = Kek::take(&mut { bytes });
                Answer::NewKek { wrap: wrapped(&context, &kek), kek }
            }
            Request::WrapKek { context, kek } => Answer::Wrapped(wrapped(&context, &kek.0)),
            Request::Unwrap { context, .. } => {
                let bytes = keks.get(context.root_id.as_bytes()).copied();
                let missing = || CustodyError::CmkMissing { root_id: context.root_id.to_string() };
                Answer::Kek(Kek::take(&mut bytes.ok_or_else(missing)?))
            }
            Request::ListEpochs { .. } => Answer::Epochs(epochs.keys().copied().collect()),
            Request::CreateEpoch(epoch) => {
                epochs.entry(epoch.number).or_insert_with(fresh);
                Answer::Done
            }
            Request::DeriveEpochKey { epoch, purpose } => {
                let missing = || CustodyError::EpochMissing { number: epoch.number };
                let secret = epochs.get(&epoch.number).ok_or_else(missing)?;
                let mut mac = Hmac::<Sha256>::new_from_slice(secret).unwrap();
                mac.update(match purpose {
                    EpochPurpose::Record => b"record",
                    EpochPurpose::OfflineCopy => b"copies",
                    EpochPurpose::Audit => b"audit",
                });
                Answer::EpochKey(Zeroizing::new(mac.finalize().into_bytes().into()))
            }
            Request::DestroyEpoch(epoch) => {
                epochs.remove(&epoch.number);
                Answer::Done
            }
            Request::DestroyCmk { root_id } => {
                keks.remove(root_id.as_bytes());
                Answer::Done
            }
            Request::Probe | Request::Reopen => Answer::Done,
        })
    }

    fn close(&self) {}
}

fn description() -> TokenDescription {
    TokenDescription {
        root_kind: RootKind::Pkcs11,
        token: TokenSummary {
            slot: 0,
            label: "test".into(),
            serial: "1".into(),
            manufacturer: "test".into(),
            model: "test".into(),
            firmware: "1".into(),
            initialized: true,
            pin: PinState::Fine,
        },
        module: "test".into(),
        mechanism: "test".into(),
        authentication: "test".into(),
        sessions: 1,
        openings: 1,
        device_operations: 0,
        clock: None,
    }
}

fn fresh<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

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
    fn new(region: &str) -> Self {
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

/// Clocks that only a test moves.
pub struct TestClock(Mutex<Clocks>);

impl Clock for TestClock {
    fn now(&self) -> Clocks {
        self.0.lock().unwrap().clone()
    }
}

impl TestClock {
    pub fn run(&self, seconds: u64) {
        let mut now = self.0.lock().unwrap();
        now.boot_time += seconds;
        now.wall += seconds;
    }

    /// Off for so long; the wall clock may be lost with it.
    pub fn reboot(&self, off: u64, lose_clock: bool) {
        let mut now = self.0.lock().unwrap();
        let number: u64 = now.boot.parse().unwrap();
        now.boot = (number + 1).to_string();
        now.boot_time = 20;
        now.wall = if lose_clock { 20 } else { now.wall + off };
    }

    pub fn set_wall(&self, by: i64) {
        let mut now = self.0.lock().unwrap();
        now.wall = now.wall.saturating_add_signed(by);
    }
}

/// Failpoints are the whole process's: tests that set one run alone.
static FAILPOINTS: RwLock<()> = RwLock::new(());

enum Turn {
    Shared(#[allow(dead_code)] RwLockReadGuard<'static, ()>),
    Borrowed,
    #[cfg(feature = "failpoints")]
    Alone(#[allow(dead_code)] std::sync::RwLockWriteGuard<'static, ()>),
}

pub struct World {
    pub folder: tempfile::TempDir,
    pub token: Arc<Token>,
    pub cloud: Arc<FakeCloud>,
    pub clock: Arc<TestClock>,
    pub policy: OnKeyVersion,
    /// The configuration has an [upstream].
    pub configured: bool,
    pub daemon: Option<Arc<Lifecycle>>,
    /// Ends of the custodians' connections: a custodian ends with its own.
    custodians: Mutex<Vec<UnixStream>>,
    _turn: Turn,
}

impl World {
    /// A site with a key whose root is in the cloud, started and online.
    pub async fn online() -> Self {
        Self::make(Turn::Shared(FAILPOINTS.read().unwrap_or_else(|poisoned| poisoned.into_inner()))).await
    }

    /// As [`Self::online`], with no other test beside it.
    #[cfg(feature = "failpoints")]
    pub async fn alone() -> Self {
        Self::make(Turn::Alone(FAILPOINTS.write().unwrap_or_else(|poisoned| poisoned.into_inner()))).await
    }

    async fn make(turn: Turn) -> Self {
        let mut world = Self::empty(turn);
        world.init().await;
        world.start().await;
        assert_eq!(world.availability(), Availability::Online, "{}", world.reason());
        world
    }

    /// Another site, for a test that has one.
    pub async fn beside(&self) -> Self {
        Self::make(Turn::Borrowed).await
    }

    /// Before `init`.
    pub fn bare() -> Self {
        Self::empty(Turn::Shared(FAILPOINTS.read().unwrap_or_else(|poisoned| poisoned.into_inner())))
    }

    /// Before `init`, with no other test beside it.
    #[cfg(feature = "failpoints")]
    pub fn bare_alone() -> Self {
        Self::empty(Turn::Alone(FAILPOINTS.write().unwrap_or_else(|poisoned| poisoned.into_inner())))
    }

    fn empty(turn: Turn) -> Self {
        // Many writes are synced here; what they are worth on a disk is not this test's.
        let memory = PathBuf::from("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let now = Clocks { boot: "1".into(), boot_time: 1000, wall: 1_800_000_000, device: None, resets: None };
        Self {
            folder: folder.unwrap(),
            token: Arc::default(),
            cloud: Arc::new(FakeCloud::new("one")),
            clock: Arc::new(TestClock(Mutex::new(now))),
            policy: OnKeyVersion::Follow,
            configured: true,
            daemon: None,
            custodians: Mutex::default(),
            _turn: turn,
        }
    }

    fn store(&self) -> Store {
        Store::open(&self.folder.path().join("store")).unwrap()
    }

    fn custody(&self) -> CustodyClient {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.custodians.lock().unwrap().push(ours.try_clone().unwrap());
        let device = Arc::new(Device(self.token.clone()));
        std::thread::spawn(move || worker::serve(theirs, device, 2, 64));
        let custody = CustodyClient::new(Duration::from_secs(60), 64);
        custody.attach_std(ours).unwrap();
        custody
    }

    pub fn signer(byte: u8) -> GrantSigner {
        let key = RecoveryKey::from_random(&Zeroizing::new([byte; 32])).unwrap();
        GrantSigner::from_pem(&key.to_pem()).unwrap()
    }

    pub async fn init(&self) -> Keyring {
        self.try_init().await.unwrap()
    }

    pub async fn try_init(&self) -> Result<Keyring, InitError> {
        self.init_as(Some(self.init_cloud())).await
    }

    pub fn init_cloud(&self) -> InitCloud {
        InitCloud {
            upstream: self.cloud.clone(),
            lease: LEASE,
            grant_key: Some(Self::signer(1).public()),
            clock: self.clock.clone(),
        }
    }

    /// After the store was lost: a new one, out of what etcd holds and the cloud.
    pub async fn recover(&self, sightings: Vec<Sighting>) -> Result<Rebuilt, RecoverError> {
        let custody = self.custody();
        let openers = Openers { custody: Some(&custody), upstream: Some(&*self.cloud), private: None, trusted: &[] };
        let findings = recover::open(sightings, &openers).await?;
        let request = RebuildRequest {
            keyring: "test".parse().unwrap(),
            node: "node".parse().unwrap(),
            recovery: None,
            epoch_seen: 0,
            number_seen: GenerationNumber(0),
            replace_store: false,
        };
        recover::rebuild(&request, findings, &self.store(), &custody, Some(&self.init_cloud())).await
    }

    pub async fn init_as(&self, cloud: Option<InitCloud>) -> Result<Keyring, InitError> {
        let request = InitRequest {
            keyring: "test".parse().unwrap(),
            node: "node".parse().unwrap(),
            recovery: None,
            abandon_lost_store: false,
            cloud,
        };
        init(request, self.store(), &self.custody()).await.map(|made| made.keyring)
    }

    /// A daemon on what is there; looked after until nothing more is to be done at once.
    pub async fn start(&mut self) {
        let custody = self.custody();
        let keys = Arc::new(KeyService::new(custody.clone(), 2));
        let settings = KeySettings {
            keyring: "test".parse().unwrap(),
            node: "node".parse().unwrap(),
            custody_grace: None,
            probe_interval: Duration::from_secs(30),
            min_deletion_wait: Duration::from_secs(24 * HOUR),
        };
        let cloud = CloudSettings {
            lease: LEASE,
            renew_every: Duration::from_secs(RENEW),
            probe_interval: Duration::from_secs(PROBE),
            on_key_version: self.policy,
            grant_key: Some(Self::signer(1).public()),
            known_time: KnownTime::new(1_700_000_000),
        };
        let lifecycle = Lifecycle::new(settings, self.store(), custody, keys, None);
        self.daemon = Some(Arc::new(match self.configured {
            true => lifecycle.in_cloud(self.cloud.clone(), cloud, self.clock.clone()),
            false => lifecycle,
        }));
        self.tend().await;
    }

    /// As SIGKILL does: nothing is said to anyone.
    pub fn kill(&mut self) {
        let daemon = self.daemon.take().expect("a daemon");
        // Its store is locked until the last hand lets go.
        let weak = Arc::downgrade(&daemon);
        drop(daemon);
        assert!(weak.upgrade().is_none(), "something still holds the daemon");
        self.end_custodians();
    }

    fn end_custodians(&self) {
        for connection in self.custodians.lock().unwrap().drain(..) {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }

    pub async fn restart(&mut self) {
        self.kill();
        self.start().await;
    }

    pub async fn reboot(&mut self, off: u64, lose_clock: bool) {
        self.kill();
        self.clock.reboot(off, lose_clock);
        self.start().await;
    }

    pub fn daemon(&self) -> &Arc<Lifecycle> {
        self.daemon.as_ref().expect("a daemon")
    }

    pub async fn tend(&self) {
        let daemon = self.daemon();
        daemon.tend().await;
        daemon.follow_key_version().await;
        daemon.renew_once().await;
        daemon.tend().await;
    }

    /// So many seconds pass, in steps of `step`, with the daemon looked after.
    pub async fn pass(&self, seconds: u64, step: u64) {
        let mut left = seconds;
        while left > 0 {
            let now = left.min(step);
            self.clock.run(now);
            self.tend().await;
            left -= now;
        }
    }

    /// Until the daemon has asked the cloud again, whatever its patience.
    pub async fn until_asked(&self) {
        let before = self.cloud.calls();
        for _ in 0..1000 {
            self.clock.run(5);
            self.tend().await;
            if self.cloud.calls() > before {
                return;
            }
        }
        panic!("the cloud is not asked any more");
    }

    pub async fn cloud_says(&self, mood: Mood) {
        self.cloud.says(mood);
        self.until_asked().await;
    }

    pub fn availability(&self) -> Availability {
        self.daemon().keys().serving().availability
    }

    pub fn serves(&self) -> bool {
        self.availability().serves()
    }

    pub fn reason(&self) -> String {
        self.daemon().keys().serving().reason.clone()
    }

    pub fn report(&self) -> CloudReport {
        self.daemon().cloud_report().expect("a lease")
    }

    /// Boot time.
    pub fn clock_now(&self) -> u64 {
        self.clock.now().boot_time
    }

    pub fn left(&self) -> u64 {
        self.report().lease_left.as_secs()
    }

    pub fn key_id(&self) -> Result<String, ServeError> {
        self.daemon().keys().status()
    }

    pub fn encrypt(&self, plaintext: &[u8]) -> Result<Encrypted, ServeError> {
        self.daemon().keys().encrypt(plaintext)
    }

    pub async fn decrypts(&self, encrypted: &Encrypted, plaintext: &[u8]) -> bool {
        let opened = self.daemon().keys().decrypt(&encrypted.key_id, &encrypted.ciphertext).await;
        opened.is_ok_and(|opened| *opened == plaintext)
    }

    pub fn keyring(&self) -> Keyring {
        Keyring::clone(&self.daemon().keys().serving().keys.as_ref().expect("a keyring").keyring)
    }

    /// What the record on the disk says, believed or not.
    pub fn record(&self) -> Keyring {
        let text = std::fs::read_to_string(self.path("keyring.store")).unwrap();
        serde_json::from_str(&text[text.find('{').unwrap()..]).unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("store").join(name)
    }

    /// Seconds of the lease that the disk knows of.
    pub fn stored_left(&self) -> u64 {
        self.record().upstream.unwrap().lease.left().as_secs()
    }

    pub fn marker(&self) -> bool {
        self.path("revoked").exists()
    }

    /// A disk without room for another record: where it would be written lies something that does not go away.
    pub fn fill_disk(&self, full: bool) {
        let path = self.path("keyring.store.new");
        if full {
            std::fs::create_dir_all(path.join("full")).unwrap();
        } else if path.exists() {
            std::fs::remove_dir_all(path).unwrap();
        }
    }

    /// Copies of every file of the store; the daemon may run on.
    pub fn back_up(&self) -> BTreeMap<String, Vec<u8>> {
        let files = std::fs::read_dir(self.folder.path().join("store")).unwrap();
        files
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_type().unwrap().is_file())
            .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
            .collect()
    }

    /// The folder as it was then; only while no daemon runs.
    pub fn put_back(&self, backup: &BTreeMap<String, Vec<u8>>) {
        assert!(self.daemon.is_none());
        let folder = self.folder.path().join("store");
        std::fs::remove_dir_all(&folder).unwrap();
        std::fs::create_dir(&folder).unwrap();
        for (name, bytes) in backup {
            std::fs::write(folder.join(name), bytes).unwrap();
        }
    }

    pub fn grant(&self, signer: u8, seconds: u64) -> Vec<u8> {
        let keyring = self.keyring();
        let grant = Grant {
            keyring: keyring.keyring.clone(),
            key_id: keyring.active().unwrap().key_id.clone(),
            epoch: keyring.epoch,
            seconds,
            nonce: fresh(),
        };
        grant.sign(&Self::signer(signer)).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.end_custodians();
    }
}
