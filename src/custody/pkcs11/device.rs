//! The device over time: opened when first needed, closed and opened again when the canary dies, at most once a second.
//!
//! Requests share the device under a read lock; whoever opens or closes holds the write lock, so that no session is in use
//! or left over when the module is finalised.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use keystead_core::RootKind;

use super::failure::Failure;
use super::module::Module;
use super::token::{Token, Unanswered};
use crate::custody::contract::{Answer, CustodyError, Request, TokenDescription};
use crate::custody::settings::CustodySettings;
use crate::custody::worker::Custodian;

const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A PKCS#11 token as custody, whatever its state.
pub struct Device {
    settings: CustodySettings,
    operations: Arc<AtomicU64>,
    state: RwLock<State>,
}

/// Field order is drop order: sessions close before their module goes.
#[derive(Default)]
struct State {
    token: Option<Token>,
    module: Option<Module>,
    /// Counts openings, so that one loss seen by many threads reopens once.
    opening: u64,
    last_attempt: Option<Attempt>,
}

struct Attempt {
    at: Instant,
    outcome: Result<(), CustodyError>,
}

impl Device {
    /// Touches nothing: the first request opens the token.
    pub fn new(settings: CustodySettings) -> Self {
        Self { settings, operations: Arc::new(AtomicU64::new(0)), state: RwLock::default() }
    }

    fn on_token(&self, seat: usize, request: &Request) -> Result<Answer, CustodyError> {
        let mut reopened = false;
        loop {
            let state = self.opened()?;
            let Some(token) = &state.token else { continue };
            let detail = match token.answer(seat, request) {
                Ok(answer) => return Ok(answer),
                Err(Unanswered::Error(error)) => return Err(error),
                Err(Unanswered::Lost(detail)) => detail,
            };
            let opening = state.opening;
            drop(state);
            tracing::warn!(detail, "the token is lost; its module is started again");
            if reopened || !self.reopen(opening)? {
                return Err(CustodyError::Device { detail });
            }
            reopened = true;
        }
    }

    fn describe(&self) -> Result<Answer, CustodyError> {
        loop {
            let state = self.opened()?;
            let Some(token) = &state.token else { continue };
            return Ok(Answer::Token(TokenDescription {
                token: token.summary.clone(),
                root_kind: RootKind::Pkcs11,
                module: self.settings.module.display().to_string(),
                mechanism: token.negotiated.mechanism.to_string(),
                authentication: token.negotiated.authentication.to_string(),
                sessions: u32::try_from(self.settings.sessions.max(1)).unwrap_or(u32::MAX),
                openings: state.opening,
                device_operations: self.operations.load(Ordering::Relaxed),
                clock: None,
            }));
        }
    }

    fn reopen_as_told(&self) -> Result<Answer, CustodyError> {
        let mut state = self.write();
        state.token = None;
        state.open(&self.settings, &self.operations)?;
        Ok(Answer::Done)
    }

    /// Works whatever is wrong with the token that custody is set up for: this is how one finds out.
    fn list_tokens(&self) -> Result<Answer, CustodyError> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        if let (Some(_), Some(module)) = (&state.token, &state.module) {
            return summaries(module);
        }
        drop(state);
        let mut state = self.write();
        match (&state.token, &state.module) {
            (Some(_), Some(module)) => summaries(module),
            // Modules list what was plugged in when they were initialised.
            _ => summaries(state.start_module(&self.settings)?),
        }
    }

    /// The state with a token in it, opened now if it has to be.
    fn opened(&self) -> Result<RwLockReadGuard<'_, State>, CustodyError> {
        loop {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            if state.token.is_some() {
                return Ok(state);
            }
            drop(state);
            let mut state = self.write();
            if state.token.is_none() {
                state.open(&self.settings, &self.operations)?;
            }
        }
    }

    /// Closes everything and opens again, unless another thread has done so since `opening`. False within a second of
    /// the last attempt.
    fn reopen(&self, opening: u64) -> Result<bool, CustodyError> {
        let mut state = self.write();
        if state.opening != opening {
            return Ok(true);
        }
        if state.last_attempt.as_ref().is_some_and(|attempt| attempt.at.elapsed() < RETRY_PAUSE) {
            return Ok(false);
        }
        state.token = None;
        state.open(&self.settings, &self.operations)?;
        Ok(true)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Opens the token, or repeats the last refusal if that is less than a second old.
    fn open(&mut self, settings: &CustodySettings, operations: &Arc<AtomicU64>) -> Result<(), CustodyError> {
        if let Some(Attempt { at, outcome: Err(error) }) = &self.last_attempt
            && at.elapsed() < RETRY_PAUSE
        {
            return Err(error.clone());
        }
        let outcome = self.try_open(settings, operations);
        if let Err(error) = &outcome {
            tracing::warn!(%error, "the token cannot be used");
        }
        self.last_attempt = Some(Attempt { at: Instant::now(), outcome: outcome.clone() });
        outcome
    }

    fn try_open(&mut self, settings: &CustodySettings, operations: &Arc<AtomicU64>) -> Result<(), CustodyError> {
        let module = self.start_module(settings)?;
        self.token = Some(Token::open(module, settings, operations)?);
        self.opening += 1;
        Ok(())
    }

    /// Only while there is no token: no session may be open.
    fn start_module(&mut self, settings: &CustodySettings) -> Result<&Module, CustodyError> {
        match &mut self.module {
            Some(module) => {
                module.restart()?;
                Ok(module)
            }
            none => Ok(none.insert(Module::load(&settings.module)?)),
        }
    }
}

fn summaries(module: &Module) -> Result<Answer, CustodyError> {
    let tokens = module.tokens().map_err(Failure::into_error)?;
    Ok(Answer::Tokens(tokens.into_iter().map(|(_, summary)| summary).collect()))
}

impl Custodian for Device {
    fn serve(&self, seat: usize, request: Request) -> Result<Answer, CustodyError> {
        match &request {
            Request::Describe => self.describe(),
            Request::ListTokens => self.list_tokens(),
            Request::Reopen => self.reopen_as_told(),
            request => self.on_token(seat, request),
        }
    }

    fn close(&self) {
        let mut state = self.write();
        state.token = None;
        if let Some(module) = &state.module {
            module.finalize();
        }
    }
}
