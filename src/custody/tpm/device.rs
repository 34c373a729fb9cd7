//! The TPM over time: connected to when first needed, connected to anew when it was lost, at most once a second.
//!
//! A TPM does one thing at a time, so one lock holds the connection and whoever asks waits for it. What a failed command
//! means is judged by the canary rule: it is the request's fault unless the canary dies of it, too.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use keystead_core::id::{GenerationNumber, KeyId, RootKind};
use keystead_core::{Kek, RootId, WrapContext, WrappedKek};

use super::auth::{self, AuthFile, AuthValue};
use super::boot::Demand;
use super::cmk::{self, Cmk, Mechanism};
use super::connection::{Connection, flush_everything};
use super::failure::Failure;
use super::policy::{auth_policy, policy_ref};
use super::srk::SrkName;
use super::tcti::Tcti;
use super::{epoch, random};
use crate::custody::contract::{Answer, CustodyError, DeviceClock, Request, TokenDescription};
use crate::custody::latch::{self, Latch};
use crate::custody::settings::{CustodySettings, MechanismChoice, TpmSettings};
use crate::custody::worker::Custodian;

const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A TPM as custody, whatever its state.
pub struct Device {
    settings: CustodySettings,
    tpm: TpmSettings,
    operations: Arc<AtomicU64>,
    /// The auth value that the TPM has accepted.
    accepted: Mutex<Option<AuthValue>>,
    state: Mutex<State>,
}

/// What a refused auth value came to.
enum Verdict {
    Answer(CustodyError),
    /// A session or handle that is no longer ours: connect anew at once.
    Mixup(String),
}

#[derive(Default)]
struct State {
    open: Option<Open>,
    /// How often it was connected to.
    opening: u64,
    last_attempt: Option<Attempt>,
}

struct Open {
    connection: Connection,
    mechanism: Mechanism,
    /// The TPM's clock when it was connected to. It runs as fast as ours.
    clock: Option<(Instant, DeviceClock)>,
    /// What new CMKs demand of a boot.
    demand: Option<Demand>,
    approvals: PathBuf,
    /// The CMK used last: what the canary sings with.
    last_used: Option<Cmk>,
}

struct Attempt {
    at: Instant,
    outcome: Result<(), CustodyError>,
}

impl Device {
    /// Touches nothing: the first request connects.
    pub fn new(settings: CustodySettings, tpm: TpmSettings) -> Self {
        Self {
            settings,
            tpm,
            operations: Arc::new(AtomicU64::new(0)),
            accepted: Mutex::default(),
            state: Mutex::default(),
        }
    }

    fn on_tpm(&self, request: &Request) -> Result<Answer, CustodyError> {
        let mut state = self.lock();
        let mut retried = false;
        loop {
            let open = self.opened(&mut state)?;
            let failure = match perform(open, request) {
                Ok(answer) => {
                    if open.connection.auth_proven {
                        self.note_accepted(&open.connection);
                    }
                    return Ok(answer);
                }
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Auth(detail)) => match self.judge_refusal(open, request, detail, retried) {
                    Verdict::Answer(error) => {
                        if matches!(error, CustodyError::AuthRejected { .. }) {
                            // Read anew, and refused unless the file has changed, before the TPM hears of it again.
                            state.open = None;
                        }
                        return Err(error);
                    }
                    Verdict::Mixup(detail) => Failure::Mixup(detail),
                },
                Err(failure) => failure,
            };
            let (detail, at_once) = match failure {
                Failure::Suspect(detail) => match canary(open) {
                    Ok(()) if matches!(request, Request::Unwrap { .. }) => {
                        tracing::warn!(detail, "the TPM refused a wrap, and its canary is well");
                        return Err(CustodyError::WrapRejected);
                    }
                    Ok(()) => return Err(CustodyError::Device { detail }),
                    Err(dead) => (format!("{detail}; then {}", dead.into_error()), false),
                },
                Failure::Full(detail) => {
                    self.make_room()?;
                    (detail, true)
                }
                Failure::Mixup(detail) => (detail, true),
                other => (other.into_error().to_string(), false),
            };
            tracing::warn!(detail, "the TPM is lost; it is connected to anew");
            state.open = None;
            // Room can be made at once; a TPM that is gone is not asked more often than once a second.
            if retried || !(at_once || state.may_reopen()) {
                return Err(CustodyError::Device { detail });
            }
            retried = true;
        }
    }

    /// The open TPM, connected to now if it has to be.
    fn opened<'a>(&self, state: &'a mut State) -> Result<&'a mut Open, CustodyError> {
        if state.open.is_none() {
            if let Some(Attempt { at, outcome: Err(error) }) = &state.last_attempt
                && at.elapsed() < RETRY_PAUSE
            {
                return Err(error.clone());
            }
            let outcome = self.connect();
            state.last_attempt =
                Some(Attempt { at: Instant::now(), outcome: outcome.as_ref().map(drop).map_err(Clone::clone) });
            match outcome {
                Ok(open) => {
                    state.opening += 1;
                    state.open = Some(open);
                }
                Err(error) => {
                    tracing::warn!(%error, "the TPM cannot be used");
                    return Err(error);
                }
            }
        }
        // Filled above if it was empty.
        state.open.as_mut().ok_or(CustodyError::Gone)
    }

    fn connect(&self) -> Result<Open, CustodyError> {
        let tcti = Tcti::parse(&self.tpm.tcti)?;
        match self.connect_once(&tcti) {
            Err(Failure::Full(detail)) if tcti.is_raw() => {
                tracing::warn!(detail, "the TPM is full of what others left in it");
                self.make_room()?;
                self.connect_once(&tcti).map_err(Failure::into_error)
            }
            outcome => outcome.map_err(Failure::into_error),
        }
    }

    fn connect_once(&self, tcti: &Tcti) -> Result<Open, Failure> {
        let auth = auth::read(&self.tpm.auth).map_err(Failure::Final)?;
        self.require_untried(&auth).map_err(Failure::Final)?;
        let mut connection = Connection::open(tcti, auth, Arc::clone(&self.operations))?;
        let clock = connection.clock().map(|told| (Instant::now(), told));
        let mechanism = match self.settings.mechanism {
            MechanismChoice::Auto if connection.has_p256 => Mechanism::EcdhP256,
            MechanismChoice::EcdhP256 if connection.has_p256 => Mechanism::EcdhP256,
            MechanismChoice::Auto | MechanismChoice::RsaOaep => Mechanism::RsaOaep,
            MechanismChoice::EcdhP256 => return Err(Failure::unsupported("P-256; set custody.mechanism to \"auto\"")),
            MechanismChoice::AesGcm => {
                return Err(Failure::unsupported("AES-GCM, as no TPM has it; set custody.mechanism to \"auto\""));
            }
        };
        tracing::debug!(serial = connection.summary.serial, mechanism = mechanism.as_str(), "TPM opened");
        let demand = self.tpm.boot.as_ref().map(Demand::read).transpose()?;
        let approvals = self.tpm.approvals.clone();
        Ok(Open { connection, mechanism, clock, demand, approvals, last_used: None })
    }

    /// On a raw TPM only: behind a resource manager there is nothing of others to be seen.
    fn make_room(&self) -> Result<(), CustodyError> {
        let tcti = Tcti::parse(&self.tpm.tcti)?;
        if tcti.is_raw() { flush_everything(&tcti).map_err(Failure::into_error) } else { Ok(()) }
    }

    /// Refuses an auth value that this TPM has rejected before.
    fn require_untried(&self, auth: &AuthFile) -> Result<(), CustodyError> {
        let serial = auth.srk.as_ref().map(SrkName::serial).unwrap_or_default();
        if Latch::new(&self.settings.latch_folder).holds(&serial, auth.value.as_bytes())? {
            return Err(CustodyError::AuthRejected { file: auth.path.clone() });
        }
        Ok(())
    }

    /// What a refused auth value means. One that this TPM has never accepted is not tried a second time, by nobody.
    fn judge_refusal(&self, open: &Open, request: &Request, detail: String, retried: bool) -> Verdict {
        let auth = open.connection.auth();
        let accepted = open.connection.auth_proven || self.accepted().as_ref() == Some(&auth.value);
        let raw = Tcti::parse(&self.tpm.tcti).is_ok_and(|tcti| tcti.is_raw());
        if accepted && raw && !retried {
            // Without a resource manager a neighbour's session may have taken the place of ours.
            return Verdict::Mixup(detail);
        }
        if accepted {
            return Verdict::Answer(match request {
                // The fault lies with the key in the wrap: somebody else's, on the same TPM.
                Request::Unwrap { .. } => CustodyError::WrapRejected,
                _ => CustodyError::Device { detail },
            });
        }
        tracing::error!(detail, "the TPM rejected the auth value");
        let serial = open.connection.summary.serial.clone();
        let value = auth.value.as_bytes();
        let latch = Latch::new(&self.settings.latch_folder);
        // No count is used up by it: a place for the note need not be there before the try.
        if !matches!(latch.prepare().map(|note| note.put_down(&serial, value)), Ok(Ok(()))) {
            tracing::warn!(
                "that the auth value was rejected could not be noted; another custodian will try it once more"
            );
            latch::remember(&serial, value);
        }
        Verdict::Answer(CustodyError::AuthRejected { file: auth.path.clone() })
    }

    /// Once for each value: what the TPM rejected before is of no interest any more.
    fn note_accepted(&self, connection: &Connection) {
        let value = &connection.auth().value;
        let mut accepted = self.accepted();
        if accepted.as_ref() == Some(value) {
            return;
        }
        *accepted = Some(value.clone());
        let serial = &connection.summary.serial;
        let latch = Latch::new(&self.settings.latch_folder);
        match latch.prepare() {
            Ok(note) => note.discard(serial),
            Err(error) => tracing::warn!(%error, "a rejected auth value could not be noted here"),
        }
    }

    fn accepted(&self) -> MutexGuard<'_, Option<AuthValue>> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn describe(&self) -> Result<Answer, CustodyError> {
        let mut state = self.lock();
        self.opened(&mut state)?;
        let openings = state.opening;
        let open = state.open.as_ref().ok_or(CustodyError::Gone)?;
        Ok(Answer::Token(TokenDescription {
            token: open.connection.summary.clone(),
            root_kind: RootKind::Tpm,
            module: self.tpm.tcti.clone(),
            mechanism: open.mechanism.as_str().to_owned(),
            authentication: "sha256-hmac (NV index)".to_owned(),
            sessions: u32::try_from(self.settings.sessions.max(1)).unwrap_or(u32::MAX),
            openings,
            device_operations: self.operations.load(Ordering::Relaxed),
            clock: open.clock.map(|(read, told)| DeviceClock {
                seconds: told.seconds.saturating_add(read.elapsed().as_secs()),
                ..told
            }),
        }))
    }

    fn reopen(&self) -> Result<Answer, CustodyError> {
        let mut state = self.lock();
        state.open = None;
        self.opened(&mut state)?;
        Ok(Answer::Done)
    }

    fn list_tokens(&self) -> Result<Answer, CustodyError> {
        let mut state = self.lock();
        let open = self.opened(&mut state)?;
        Ok(Answer::Tokens(vec![open.connection.summary.clone()]))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn may_reopen(&self) -> bool {
        self.last_attempt.as_ref().is_none_or(|attempt| attempt.at.elapsed() >= RETRY_PAUSE)
    }
}

impl Custodian for Device {
    fn serve(&self, _: usize, request: Request) -> Result<Answer, CustodyError> {
        match &request {
            Request::Describe => self.describe(),
            Request::ListTokens => self.list_tokens(),
            Request::Reopen => self.reopen(),
            request => self.on_tpm(request),
        }
    }

    fn close(&self) {
        self.lock().open = None;
    }
}

fn perform(open: &mut Open, request: &Request) -> Result<Answer, Failure> {
    let connection = &mut open.connection;
    match request {
        // CMKs live in their wraps: the TPM has none to list and none to destroy.
        Request::ListCmks => Ok(Answer::Cmks(Vec::new())),
        Request::DestroyCmk { .. } => Ok(Answer::Done),
        Request::NewKek { context } => {
            let kek = Kek::take(&mut *random::mixed(connection)?);
            let wrap = under_new_cmk(open, context, &kek)?;
            Ok(Answer::NewKek { wrap, kek })
        }
        Request::WrapKek { context, kek } => under_new_cmk(open, context, &kek.0).map(Answer::Wrapped),
        Request::Unwrap { context, wrap } => {
            if context.root_kind != RootKind::Tpm {
                return Err(Failure::rejected());
            }
            let (kek, cmk) = cmk::open(connection, &open.approvals, context, wrap)?;
            open.last_used = Some(cmk);
            Ok(Answer::Kek(kek))
        }
        Request::ListEpochs { keyring, node } => epoch::list(connection, keyring, node).map(Answer::Epochs),
        Request::CreateEpoch(name) => epoch::create(connection, name).map(|()| Answer::Done),
        Request::DeriveEpochKey { epoch, purpose } => epoch::derive(connection, epoch, *purpose).map(Answer::EpochKey),
        Request::DestroyEpoch(name) => epoch::destroy(connection, name).map(|()| Answer::Done),
        Request::Probe => canary(open).map(|()| Answer::Done),
        // Answered by the device, which knows what is not the TPM's own.
        Request::Describe | Request::ListTokens | Request::Reopen => Err(Failure::device("no request for a TPM")),
    }
}

fn under_new_cmk(open: &mut Open, context: &WrapContext, kek: &Kek) -> Result<WrappedKek, Failure> {
    if context.root_kind != RootKind::Tpm {
        return Err(Failure::unsupported(format!("roots of kind {}", context.root_kind)));
    }
    let connection = &mut open.connection;
    let demand = open.demand.as_ref();
    let policy = demand.map(|demand| auth_policy(&demand.signer, &policy_ref(&context.keyring, demand.series)));
    let cmk = Cmk::generate(connection, open.mechanism, policy)?;
    let bytes = cmk.seal(connection, context, kek)?.to_bytes();
    // Opened once before anything depends on it.
    let (opened, cmk) = cmk::open(connection, &open.approvals, context, &bytes)?;
    if opened.commitment() != kek.commitment() {
        return Err(Failure::device("the TPM opened a new wrap to another key"));
    }
    open.last_used = Some(cmk);
    Ok(WrappedKek { root_kind: context.root_kind, root_id: context.root_id.clone(), bytes })
}

/// Does the TPM still open what was sealed just now? With the CMK used last, else with a key made for it.
///
/// Only a dead canary means a dead TPM: swtpm says of a bad OAEP block what a broken chip says of anything.
fn canary(open: &mut Open) -> Result<(), Failure> {
    let connection = &mut open.connection;
    let cmk = match &open.last_used {
        Some(cmk) => cmk.clone(),
        None => Cmk::generate(connection, open.mechanism, None)?,
    };
    let context = canary_context();
    let kek = Kek::take(&mut *random::kernel()?);
    let wrap = cmk.seal(connection, &context, &kek)?.to_bytes();
    let (opened, cmk) = cmk::open(connection, &open.approvals, &context, &wrap)?;
    if opened.commitment() != kek.commitment() {
        return Err(Failure::device("the TPM opened a wrap to another key than was sealed"));
    }
    open.last_used = Some(cmk);
    Ok(())
}

/// A context that no generation has: `canary` wraps open nothing but canaries.
pub(super) fn canary_context() -> WrapContext {
    let keyring = "canary".parse().expect("a constant of the right alphabet");
    let generation = GenerationNumber(1);
    WrapContext {
        key_id: KeyId::mint(&keyring, generation, [0; 16]),
        keyring,
        generation,
        root_kind: RootKind::Tpm,
        root_id: RootId::new(b"keystead-canary").expect("15 bytes are a root ID"),
    }
}
