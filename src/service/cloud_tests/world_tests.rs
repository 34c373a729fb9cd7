//! A site in a box: a token in memory, a cloud whose answers a test chooses, clocks that a test moves, a folder for the store.
//! Everything between them is the daemon's own code, but for its sockets and processes.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};
use std::time::Duration;

use keystead_core::GenerationNumber;
use keystead_core::availability::Availability;
use keystead_core::grant::{Grant, GrantSigner};
use keystead_core::keyring::Keyring;
use keystead_core::lease::Clocks;
use keystead_core::recovery::Sighting;
use keystead_core::recovery_key::RecoveryKey;
use zeroize::Zeroizing;

use super::memory_token_tests::{Device, Token, fresh};
pub use super::scripted_cloud_tests::{FakeCloud, Mood};
use crate::custody::client::CustodyClient;
use crate::custody::worker;
use crate::service::clock::{Clock, KnownTime};
use crate::service::cloud::{CloudReport, CloudSettings, OnKeyVersion};
use crate::service::init::{InitCloud, InitError, InitRequest, init};
use crate::service::keys::{Encrypted, KeyService, ServeError};
use crate::service::lifecycle::{KeySettings, Lifecycle};
use crate::service::recover::{self, Openers, RebuildRequest, Rebuilt, RecoverError};
use crate::store::Store;

pub const HOUR: u64 = 3600;
pub const LEASE: Duration = Duration::from_secs(72 * HOUR);
pub const RENEW: u64 = 600;
pub const PROBE: u64 = 15;

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
