//! A token that is logged in: its anchor session, its seats, and what a failed request means.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cryptoki::error::{Error, RvError};
use cryptoki::session::UserType;
use keystead_core::RootId;
use secrecy::ExposeSecret;

use super::canary;
use super::failure::{Failure, describe};
use super::module::Module;
use super::negotiate::{Negotiated, negotiate};
use super::session::{Opening, Session};
use super::{pin, requests};
use crate::custody::contract::{Answer, CustodyError, PinState, Request, TokenSummary};
use crate::custody::latch::{self, Latch};
use crate::custody::settings::CustodySettings;

/// Field order is drop order: the seats' sessions close before the anchor's, the last one of all logs out.
pub(super) struct Token {
    /// One session a seat, opened when first used. A seat is used by one thread, so its lock is never waited for.
    seats: Vec<Mutex<Option<Session>>>,
    pub(super) negotiated: Negotiated,
    /// Keeps the login and the canary's key: a token logs out silently with its last session.
    _anchor: Mutex<Session>,
    /// The CMK used last, for a probe to try.
    last_used: Mutex<Option<RootId>>,
    pub(super) summary: TokenSummary,
    opening: Opening,
}

/// Why a token did not answer.
#[derive(Debug)]
pub(super) enum Unanswered {
    Error(CustodyError),
    /// The canary is dead: everything has to be closed and opened again.
    Lost(String),
}

impl Token {
    /// Finds the token, logs in once and finds out what it can do.
    pub(super) fn open(
        module: &Module,
        settings: &CustodySettings,
        operations: &Arc<AtomicU64>,
    ) -> Result<Self, CustodyError> {
        let (slot, mut summary) = module.find(&settings.token)?;
        let pkcs11 = module.pkcs11().clone();
        let empty = Arc::new(AtomicBool::new(false));
        let opening = Opening { pkcs11, slot, empty, operations: Arc::clone(operations) };
        let anchor = login(module, &opening, &mut summary, settings)?;
        let fresh = || Session::open(&opening);
        let negotiated = negotiate(&anchor, &fresh, settings.mechanism).map_err(Failure::into_error)?;
        let shows_objects = anchor.shows_objects().map_err(Failure::into_error)?;
        opening.empty.store(!shows_objects, Ordering::Relaxed);
        tracing::debug!(
            serial = summary.serial,
            mechanism = %negotiated.mechanism,
            authentication = %negotiated.authentication,
            "token opened"
        );
        Ok(Self {
            seats: (0..settings.sessions.max(1)).map(|_| Mutex::new(None)).collect(),
            negotiated,
            _anchor: Mutex::new(anchor),
            last_used: Mutex::new(None),
            summary,
            opening,
        })
    }

    /// Serves a request, by the canary rule: a failure is the request's fault unless the canary dies of it too.
    pub(super) fn answer(&self, seat: usize, request: &Request) -> Result<Answer, Unanswered> {
        let mut seat = lock(&self.seats[seat % self.seats.len()]);
        let root = requests::root(request);
        let mut retried = false;
        loop {
            let session = match &mut *seat {
                Some(session) => session,
                None => seat.insert(self.session()?),
            };
            let failure = match requests::perform(self, session, request) {
                Ok(answer) => {
                    if let Some(root) = root {
                        lock(&self.last_used).replace(root.clone());
                    }
                    return Ok(answer);
                }
                Err(Failure::Final(error)) => return Err(Unanswered::Error(error)),
                Err(failure @ Failure::Hollow) => return Err(Unanswered::Lost(failure.into_error().to_string())),
                Err(failure) => failure,
            };
            // The session is dropped before the canary's is opened: a failed operation may have poisoned it, and some
            // tokens have no session to spare.
            *seat = None;
            let session = seat.insert(self.session()?);
            if let Err(dead) = self.canary(session, root) {
                *seat = None;
                return Err(Unanswered::Lost(format!("{}; then {}", failure.into_error(), dead.into_error())));
            }
            match (failure, request) {
                (Failure::Stale(_), _) if !retried => retried = true,
                (Failure::Suspect(detail), Request::Unwrap { .. }) => {
                    tracing::warn!(detail, "the token refused a wrap, and its canary is well");
                    return Err(Unanswered::Error(CustodyError::WrapRejected));
                }
                (failure, _) => return Err(Unanswered::Error(failure.into_error())),
            }
        }
    }

    /// Whether the device is well: [`Request::Probe`].
    pub(super) fn probe(&self) -> Result<Answer, Failure> {
        let mut session = Session::open(&self.opening)?;
        let last_used = lock(&self.last_used).clone();
        self.canary(&mut session, last_used.as_ref())?;
        if let Some(root) = last_used {
            // Said once: a rotation that was rolled back destroys its CMK, too.
            session.cmk(&root).inspect_err(|_| *lock(&self.last_used) = None)?;
        }
        Ok(Answer::Done)
    }

    /// Under the CMK in question where there is one, as a token that was swapped still has its session keys.
    fn canary(&self, session: &mut Session, root: Option<&RootId>) -> Result<(), Failure> {
        session.require_login()?;
        if let Some(root) = root {
            match session.cmk(root) {
                Ok(cmk) => return canary::round_trip(session, &cmk, self.negotiated.mechanism),
                // No key of that ID: the request itself says so, if it is true.
                Err(Failure::Final(CustodyError::CmkMissing { .. })) => {}
                Err(failure) => return Err(failure),
            }
        }
        match &self.negotiated.canary {
            Some(canary) => canary.sing(session),
            None => Ok(()),
        }
    }

    fn session(&self) -> Result<Session, Unanswered> {
        Session::open(&self.opening).map_err(|failure| Unanswered::Lost(failure.into_error().to_string()))
    }
}

/// Logs in with at most one try, and only where that try cannot be the last.
fn login(
    module: &Module,
    opening: &Opening,
    summary: &mut TokenSummary,
    settings: &CustodySettings,
) -> Result<Session, CustodyError> {
    let serial = || summary.serial.clone();
    match summary.pin {
        PinState::Locked => return Err(CustodyError::PinLocked { serial: serial() }),
        PinState::NotSet => {
            return Err(CustodyError::Unsupported { detail: "a user PIN; the token has none yet".into() });
        }
        PinState::Fine | PinState::CountLow | PinState::FinalTry => {}
    }
    let pin = pin::read(&settings.pin)?;
    let told = || pin.expose_secret().as_bytes();
    let latch = Latch::new(&settings.latch_folder);
    if latch.holds(&summary.serial, told())? {
        return Err(CustodyError::PinRejected { serial: serial(), final_try: summary.pin == PinState::FinalTry });
    }
    if summary.pin == PinState::FinalTry {
        return Err(CustodyError::PinFinalTry { serial: serial() });
    }
    let anchor = Session::open(opening).map_err(Failure::into_error)?;
    let note = match latch.prepare() {
        Ok(note) => Some(note),
        // A full or read-only disk must not keep the keys from a token whose own count shows no failed try: should this one
        // fail, that count keeps the next custodian from another.
        Err(error) if summary.pin == PinState::Fine => {
            tracing::warn!(%error, "logging in without a place to note a rejected PIN");
            None
        }
        Err(error) => return Err(error),
    };
    let mut unnoted = note.is_none();
    let code = match anchor.call().login(UserType::User, Some(&pin)) {
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {
            if let Some(note) = note {
                note.discard(&summary.serial);
            }
            // A count that was low is full again.
            summary.pin = PinState::Fine;
            return Ok(anchor);
        }
        Err(Error::Pkcs11(code, _)) => code,
        Err(error) => return Err(Failure::from(error).into_error()),
    };
    match code {
        RvError::PinIncorrect
        | RvError::PinInvalid
        | RvError::PinLenRange
        | RvError::PinExpired
        | RvError::PinLocked => {
            tracing::error!(serial = summary.serial, ?code, "login was rejected");
            if let Some(Err(error)) = note.map(|note| note.put_down(&summary.serial, told())) {
                tracing::error!(%error, "a rejected PIN could not be noted: do not restart before the PIN is right");
                unnoted = true;
            }
            if unnoted {
                latch::remember(&summary.serial, told());
            }
            let now = module.summary(opening.slot).map(|summary| summary.pin);
            if matches!(code, RvError::PinLocked) || matches!(now, Ok(PinState::Locked)) {
                return Err(CustodyError::PinLocked { serial: serial() });
            }
            Err(CustodyError::PinRejected { serial: serial(), final_try: matches!(now, Ok(PinState::FinalTry)) })
        }
        other => {
            let error = Error::Pkcs11(other, cryptoki::context::Function::Login);
            Err(CustodyError::Device { detail: describe(&error) })
        }
    }
}

/// A panic ends the process, so no poisoned lock is ever seen here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
