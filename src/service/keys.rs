//! The hot path: Status, Encrypt and Decrypt on the generations in memory.
//!
//! What is served is one immutable [`Serving`], swapped whole: a rotation shows its new key ID in Status and Encrypt at the same
//! instant. Encrypt and Decrypt of a loaded generation touch no device, disk or network. A generation that is not yet
//! in memory is unwrapped once, whatever the number of waiters.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use keystead_core::availability::{Availability, SealReason};
use keystead_core::envelope::{EnvelopeError, EnvelopeKey, NONCE_LEN};
use keystead_core::keyring::{Generation, Keyring};
use keystead_core::{EnvelopeContext, Kek, KeyId};
use tokio::sync::{Notify, Semaphore, watch};
use zeroize::Zeroizing;

use super::offline;
use crate::custody::client::CustodyClient;
use crate::custody::contract::CustodyError;
use crate::memory;

/// Serves one keyring. Cheap to share; every method may be called from any task.
pub struct KeyService {
    serving: ArcSwap<Serving>,
    /// Changes with it.
    published: watch::Sender<()>,
    custody: CustodyClient,
    /// As many unwraps at a time as the custodian has sessions: more would only wait there, against their deadline.
    unwraps: Arc<Semaphore>,
    /// Notified at the first Decrypt under a generation that waits for its deletion.
    pub(super) pending_used: Notify,
}

/// What is served at one instant.
pub struct Serving {
    pub availability: Availability,
    /// Why it is sealed or degraded and what to do; empty while online.
    pub reason: String,
    /// Why generations whose root is in the cloud may not be used, though the active one may.
    pub cloud_closed: Option<Closed>,
    /// `None` until a record was authenticated.
    pub keys: Option<Arc<Keys>>,
}

/// A door that is shut on some generations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    pub reason: String,
    /// It opens by itself, within moments.
    pub passes: bool,
}

/// The generations of an authentic record, by key ID.
pub struct Keys {
    pub keyring: Arc<Keyring>,
    active: Option<Arc<Slot>>,
    slots: HashMap<String, Arc<Slot>>,
}

/// One generation and, once unwrapped, its keys. Shared between snapshots, so that a rotation unwraps nothing again.
pub struct Slot {
    pub generation: Generation,
    /// The record that it is opened by.
    keyring: Arc<Keyring>,
    key_id: String,
    context: EnvelopeContext,
    annotation: Vec<u8>,
    loaded: ArcSwapOption<Loaded>,
    loading: Mutex<Option<Loading>>,
    /// Given up: what a running unwrap brings is not kept.
    closed: AtomicBool,
    /// Why custody cannot open it, as last tried.
    fault: Mutex<Option<String>>,
    pub encrypts: AtomicU64,
    pub decrypts: AtomicU64,
    /// Shared, so that no Decrypt is lost to a snapshot that was replaced meanwhile.
    pub(super) pending_use: Arc<PendingUse>,
}

/// Decrypts under a generation since its deletion was scheduled, as this run of the daemon has served them.
#[derive(Default)]
pub(super) struct PendingUse {
    decrypts: AtomicU64,
    /// Those of them that a later scan has had the chance to see.
    scanned: AtomicU64,
}

impl PendingUse {
    /// One more; whether it is the first that no scan came after.
    fn note(&self) -> bool {
        self.decrypts.fetch_add(1, Ordering::Relaxed) == self.scanned.load(Ordering::Relaxed)
    }

    pub fn decrypts(&self) -> u64 {
        self.decrypts.load(Ordering::Relaxed)
    }

    /// There was a Decrypt that no scan came after.
    pub fn is_news(&self) -> bool {
        self.decrypts() > self.scanned.load(Ordering::Relaxed)
    }

    pub fn was_scanned(&self) {
        self.scanned.store(self.decrypts(), Ordering::Relaxed);
    }
}

type Loading = Shared<BoxFuture<'static, Result<Arc<Loaded>, ServeError>>>;

/// A generation's keys in memory, on locked pages.
struct Loaded {
    /// Kept for wrapping to a new root; Encrypt and Decrypt use only `envelope`.
    kek: Kek,
    envelope: EnvelopeKey,
}

/// An Encrypt answer.
#[derive(Debug)]
pub struct Encrypted {
    pub ciphertext: Vec<u8>,
    pub key_id: String,
    /// Value of the one annotation, [`keystead_core::annotation::KEY`].
    pub annotation: Vec<u8>,
}

/// Why a request was not served. A variant per gRPC answer; safe to log and to send.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServeError {
    #[error("keystead is sealed: {0}")]
    Sealed(String),
    /// Expired, revoked or disabled: asking again is of no use before a person or the cloud has acted.
    #[error("keystead refuses: {0}")]
    Refused(String),
    #[error("the key ID is malformed")]
    MalformedKeyId,
    #[error("this keyring has no such key ID")]
    UnknownKeyId,
    #[error("the generation of this key ID is destroyed")]
    Destroyed,
    #[error(transparent)]
    Envelope(EnvelopeError),
    #[error("the key of this generation is not in memory and custody cannot unwrap it now: {0}")]
    Custody(CustodyError),
    /// The token opened the wrap to another key than the one committed to.
    #[error("custody answered with a key that is not this generation's; run `keystead status`")]
    WrongKey,
    #[error(
        "this generation's root is in the cloud, and it has no offline copy yet; it opens once the cloud has been asked"
    )]
    NoOfflineCopy,
    #[error("the system's random source failed")]
    NoRandomness,
}

impl KeyService {
    /// `sessions` is how many requests custody serves at a time.
    pub fn new(custody: CustodyClient, sessions: usize) -> Self {
        let serving = Serving {
            availability: Availability::Sealed(SealReason::Starting),
            reason: "starting".into(),
            cloud_closed: None,
            keys: None,
        };
        let unwraps = Arc::new(Semaphore::new(sessions.max(1)));
        Self {
            serving: ArcSwap::from_pointee(serving),
            published: watch::Sender::new(()),
            custody,
            unwraps,
            pending_used: Notify::new(),
        }
    }

    /// What is served now.
    pub fn serving(&self) -> Arc<Serving> {
        self.serving.load_full()
    }

    /// Swaps what is served; running requests finish on what they began with.
    pub fn publish(&self, serving: Serving) {
        self.serving.store(Arc::new(serving));
        self.published.send_replace(());
    }

    /// Changes whenever something else is served.
    pub fn published(&self) -> watch::Receiver<()> {
        self.published.subscribe()
    }

    /// Whether Encrypt would be served at this moment.
    ///
    /// # Errors
    /// What Encrypt would answer.
    pub fn ready(&self) -> Result<(), ServeError> {
        match self.serving.load().active()?.is_loaded() {
            true => Ok(()),
            false => Err(not_loaded()),
        }
    }

    /// The key ID that Encrypt uses now. No I/O, no allocation but the string.
    pub fn status(&self) -> Result<String, ServeError> {
        self.serving.load().active().map(|slot| slot.key_id.clone())
    }

    /// Encrypts under the active generation. `plaintext` is bounded by the caller.
    pub fn encrypt(&self, plaintext: &[u8]) -> Result<Encrypted, ServeError> {
        let serving = self.serving.load();
        let slot = serving.active()?;
        let loaded = slot.loaded.load();
        let Some(keys) = loaded.as_ref() else {
            // Wiped since: then the reason is what is shown now.
            self.serving.load().active()?;
            return Err(not_loaded());
        };
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|_| ServeError::NoRandomness)?;
        let ciphertext = keys.envelope.encrypt(&slot.context, nonce, plaintext);
        slot.encrypts.fetch_add(1, Ordering::Relaxed);
        Ok(Encrypted { ciphertext, key_id: slot.key_id.clone(), annotation: slot.annotation.clone() })
    }

    /// Decrypts under the generation that `key_id` names in the authenticated store. Annotations have no say here:
    /// whoever can write etcd could bring a KEK of his own in them.
    pub async fn decrypt(&self, key_id: &str, ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, ServeError> {
        let slot = {
            let serving = self.serving.load();
            serving.slot(key_id)?.clone()
        };
        let ready = slot.loaded.load_full();
        let keys = match ready {
            Some(keys) => keys,
            None => {
                let keys = self.load(&slot).await;
                // Sealed meanwhile, or closed: whoever waited for the key must not get it any more, and is told why.
                self.serving.load().slot(key_id)?;
                keys?
            }
        };
        let plaintext = keys.envelope.decrypt(&slot.context, ciphertext).map_err(ServeError::Envelope)?;
        slot.decrypts.fetch_add(1, Ordering::Relaxed);
        if slot.generation.pending.is_some() && slot.pending_use.note() {
            self.pending_used.notify_one();
        }
        Ok(plaintext)
    }

    /// Brings a generation's keys into memory: one unwrap, shared by all who wait for it.
    pub async fn load_generation(&self, slot: &Arc<Slot>) -> Result<(), ServeError> {
        self.load(slot).await.map(drop)
    }

    async fn load(&self, slot: &Arc<Slot>) -> Result<Arc<Loaded>, ServeError> {
        let loading = {
            let mut loading = slot.loading.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(loaded) = slot.loaded.load_full() {
                return Ok(loaded);
            }
            loading
                .get_or_insert_with(|| {
                    // A task of its own: the unwrap goes on when the client that asked first hangs up.
                    let task = tokio::spawn(unwrap(self.custody.clone(), self.unwraps.clone(), slot.clone()));
                    async move { task.await.unwrap_or(Err(ServeError::Custody(CustodyError::Gone))) }.boxed().shared()
                })
                .clone()
        };
        loading.await
    }
}

fn not_loaded() -> ServeError {
    ServeError::Sealed("the active key is not loaded".into())
}

/// Unwraps one generation and files its keys; a failure is for the present waiters only.
async fn unwrap(custody: CustodyClient, unwraps: Arc<Semaphore>, slot: Arc<Slot>) -> Result<Arc<Loaded>, ServeError> {
    // Also when this task panics: the next request then tries anew instead of meeting a dead one for ever.
    let _done = ClearLoading(&slot);
    let _permit = unwraps.acquire().await;
    let loaded = Arc::new(Loaded::new(slot.open(&custody).await?));
    slot.note_fault(None);
    // Under the lock that wiping takes: a key given up meanwhile stays given up.
    let _loading = slot.loading.lock().unwrap_or_else(PoisonError::into_inner);
    if slot.closed.load(Ordering::Relaxed) {
        return Err(ServeError::Sealed("the keys were given up".into()));
    }
    slot.loaded.store(Some(loaded.clone()));
    Ok(loaded)
}

struct ClearLoading<'a>(&'a Slot);

impl Drop for ClearLoading<'_> {
    fn drop(&mut self) {
        *self.0.loading.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Opens a generation by what is here, its custody wrap or its offline copy, and holds the KEK against its commitment.
/// Asks no upstream.
pub(super) async fn open_locally(
    custody: &CustodyClient,
    keyring: &Keyring,
    generation: &Generation,
) -> Result<Kek, ServeError> {
    let kek = match generation.custody_wrap() {
        Some(wrap) => custody
            .unwrap(generation.wrap_context(&keyring.keyring, wrap), wrap.bytes.clone())
            .await
            .map_err(ServeError::Custody)?,
        None if generation.upstream_wrap().is_some() => offline::open(custody, keyring, generation).await?,
        None => return Err(ServeError::Destroyed),
    };
    if kek.commitment() != generation.commitment {
        return Err(ServeError::WrongKey);
    }
    Ok(kek)
}

impl Serving {
    fn active(&self) -> Result<&Arc<Slot>, ServeError> {
        let sealed = || ServeError::Sealed(self.reason.clone());
        match self.availability {
            Availability::Online | Availability::Degraded { .. } => {
                self.keys.as_ref().and_then(|keys| keys.active.as_ref()).ok_or_else(sealed)
            }
            Availability::Sealed(_) => Err(sealed()),
            Availability::Expired | Availability::Revoked { .. } | Availability::Disabled => {
                Err(ServeError::Refused(self.reason.clone()))
            }
        }
    }

    /// Why this generation may not be used, though the active one may.
    pub fn closed_to(&self, generation: &Generation) -> Option<&Closed> {
        self.cloud_closed.as_ref().filter(|_| generation.decrypts() && generation.is_rooted_in_cloud())
    }

    fn slot(&self, key_id: &str) -> Result<&Arc<Slot>, ServeError> {
        self.active()?;
        let slots = self.keys.as_ref().map(|keys| &keys.slots);
        match slots.and_then(|slots| slots.get(key_id)) {
            Some(slot) if slot.generation.decrypts() => {
                self.closed_to(&slot.generation).map_or(Ok(slot), |closed| Err(closed.error()))
            }
            Some(_) => Err(ServeError::Destroyed),
            None if key_id.parse::<KeyId>().is_err() => Err(ServeError::MalformedKeyId),
            None => Err(ServeError::UnknownKeyId),
        }
    }
}

impl Closed {
    fn error(&self) -> ServeError {
        match self.passes {
            true => ServeError::Sealed(self.reason.clone()),
            false => ServeError::Refused(self.reason.clone()),
        }
    }
}

impl Keys {
    /// Slots for every generation that may serve; those that `earlier` had in memory stay there.
    pub fn new(keyring: Keyring, earlier: Option<&Self>) -> Self {
        let keyring = Arc::new(keyring);
        let mut slots = HashMap::new();
        let mut active = None;
        for generation in &keyring.generations {
            let Some(mut slot) = Slot::new(&keyring, generation) else { continue };
            if let Some(before) = earlier.and_then(|keys| keys.slots.get(&slot.key_id)) {
                slot.take_over(before);
            }
            let slot = Arc::new(slot);
            if generation.state == keystead_core::keyring::GenerationState::Active {
                active = Some(slot.clone());
            }
            slots.insert(slot.key_id.clone(), slot);
        }
        Self { keyring, active, slots }
    }

    /// As [`Self::new`]; but where nothing that a slot knows has changed, the slots stay the same ones.
    pub fn with_record(keyring: Keyring, earlier: Option<&Self>) -> Self {
        let copies = |keyring: &Keyring| keyring.upstream.as_ref().map(|state| state.copies.clone());
        match earlier {
            Some(earlier)
                if earlier.keyring.generations == keyring.generations
                    && earlier.keyring.epoch == keyring.epoch
                    && copies(&earlier.keyring) == copies(&keyring) =>
            {
                Self { keyring: Arc::new(keyring), active: earlier.active.clone(), slots: earlier.slots.clone() }
            }
            _ => Self::new(keyring, earlier),
        }
    }

    pub fn active(&self) -> Option<&Arc<Slot>> {
        self.active.as_ref()
    }

    /// By number; prepared generations have no slot.
    pub fn slot_of(&self, generation: &Generation) -> Option<&Arc<Slot>> {
        self.slots.get(generation.key_id.as_str())
    }

    pub fn slots(&self) -> impl Iterator<Item = &Arc<Slot>> {
        self.slots.values()
    }

    pub fn loaded(&self) -> usize {
        self.slots.values().filter(|slot| slot.is_loaded()).count()
    }

    /// Gives up every KEK in memory. Requests under way finish with the keys they hold.
    /// For good: what follows is a slot of its own.
    pub fn wipe(&self) {
        self.slots().for_each(|slot| slot.wipe());
    }

    /// Gives up those whose root is in the cloud.
    pub fn wipe_cloud(&self) {
        self.slots().filter(|slot| slot.generation.is_rooted_in_cloud()).for_each(|slot| slot.wipe());
    }
}

impl Slot {
    /// `None` for a generation whose key ID nobody has seen yet.
    fn new(keyring: &Arc<Keyring>, generation: &Generation) -> Option<Self> {
        if generation.state == keystead_core::keyring::GenerationState::Prepared {
            return None;
        }
        Some(Self {
            keyring: keyring.clone(),
            key_id: generation.key_id.to_string(),
            context: generation.envelope_context(&keyring.keyring),
            // Checked when the generation was prepared; an old record's that is too long is left out, not served cut.
            annotation: generation.annotation().unwrap_or_default(),
            generation: generation.clone(),
            loaded: ArcSwapOption::empty(),
            loading: Mutex::new(None),
            closed: AtomicBool::new(false),
            fault: Mutex::new(None),
            encrypts: AtomicU64::new(0),
            decrypts: AtomicU64::new(0),
            pending_use: Arc::default(),
        })
    }

    fn take_over(&mut self, before: &Self) {
        // Scheduled anew after it was suspended, it counts anew.
        let suspended = |slot: &Self| slot.generation.pending.as_ref().map(|pending| pending.suspended.is_some());
        if matches!((suspended(before), suspended(self)), (Some(false), Some(_)) | (Some(true), Some(true))) {
            self.pending_use = before.pending_use.clone();
        }
        self.loaded.store(before.loaded.load_full());
        self.encrypts.store(before.encrypts.load(Ordering::Relaxed), Ordering::Relaxed);
        self.decrypts.store(before.decrypts.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Opens it anew, whether or not it is in memory.
    pub(super) async fn open(&self, custody: &CustodyClient) -> Result<Kek, ServeError> {
        open_locally(custody, &self.keyring, &self.generation).await
    }

    pub fn is_loaded(&self) -> bool {
        self.loaded.load().is_some()
    }

    /// Gives up its KEK, also one that is on its way. Requests under way finish with the keys they hold.
    /// For good: what follows is a slot of its own.
    pub(super) fn wipe(&self) {
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        self.closed.store(true, Ordering::Relaxed);
        self.loaded.store(None);
    }

    /// Why custody cannot open this generation, as last tried; `None` while it can.
    pub fn fault(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn note_fault(&self, fault: Option<String>) {
        let mut noted = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fault) = fault.as_ref().filter(|fault| noted.as_ref() != Some(fault)) {
            tracing::error!(key_id = self.key_id, error = fault, "custody cannot open a generation");
        }
        *noted = fault;
    }

    /// What `wrap` makes of the KEK, if it is in memory. For wrapping to another root, nothing else.
    pub(super) fn wrap_loaded<T>(&self, wrap: impl FnOnce(&Kek) -> T) -> Option<T> {
        self.loaded.load().as_ref().map(|loaded| wrap(&loaded.kek))
    }

    /// Files keys that were just made and compared, so that activating them needs no further unwrap. Not if it was wiped.
    pub fn fill(&self, kek: Kek) {
        let loaded = Arc::new(Loaded::new(kek));
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.closed.load(Ordering::Relaxed) {
            self.loaded.store(Some(loaded));
        }
    }
}

impl Loaded {
    fn new(kek: Kek) -> Self {
        let envelope = EnvelopeKey::new(&kek);
        memory::lock_keys(&kek, &envelope);
        Self { kek, envelope }
    }
}
