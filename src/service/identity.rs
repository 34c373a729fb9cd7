//! Whether the token that answers is the right one: it has this keyring's epoch secret, and the active CMK opens its KEK.
//!
//! A canary cannot tell: any token sings. Asked when the token may have changed (a new custodian, the token opened again,
//! a CMK not found) and every few minutes, so that it costs the device next to nothing. Called by the [`Lifecycle`].

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use keystead_core::RootKind;
use keystead_core::keyring::Keyring;

use super::clock::boot_time;
use super::keys::{ServeError, open_locally};
use super::lifecycle::Lifecycle;
use crate::custody::contract::{CustodyError, TokenDescription};

/// How long a proof holds while nothing changes.
const PROOF_HOLDS: Duration = Duration::from_secs(300);
/// A wrong token is closed and opened again no more often: it costs the device a login each time.
const REOPEN_PAUSE: Duration = Duration::from_secs(3);

/// What is known of the token's identity.
#[derive(Debug, Default)]
pub(super) struct Identity {
    proof: Option<Proof>,
    /// The proof was of an earlier opening, or the token gave reason to doubt.
    doubted: bool,
    reopened: Option<Duration>,
}

#[derive(Debug)]
struct Proof {
    serial: String,
    opening: Opening,
    /// Boot time.
    at: Duration,
}

/// Which custodian opened the token, and for which time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Opening {
    custodian: u64,
    number: u64,
}

/// Whether the device is well, but not the one that is needed.
pub(super) fn is_wrong(error: &CustodyError) -> bool {
    matches!(
        error,
        CustodyError::TokenReplaced { .. }
            | CustodyError::TokenReinitialized { .. }
            | CustodyError::TokenOlder { .. }
            | CustodyError::CmkMissing { .. }
            | CustodyError::EpochMissing { .. }
            | CustodyError::WrapRejected
    )
}

impl Lifecycle {
    /// The canary, and where due the identity. A token that is not the right one is opened anew, as the right one may be
    /// back without the module having noticed.
    ///
    /// # Errors
    /// The fault of custody; [`is_wrong`] tells the two kinds apart.
    pub(super) async fn examine(&self) -> Result<TokenDescription, CustodyError> {
        match self.custody.probe().await {
            Ok(()) => {}
            Err(CustodyError::CmkMissing { .. }) => self.identity().doubted = true,
            Err(error) => return Err(error),
        }
        // After the probe, which may have opened the token again.
        let mut description = self.custody.describe().await?;
        let Some(keyring) = self.keyring() else { return Ok(description) };
        if !self.identity().is_due(self.opening(&description)) {
            return Ok(description);
        }
        let mut outcome = self.identify(&keyring, &description).await;
        if outcome.as_ref().is_err_and(is_wrong) && self.identity().may_reopen() {
            self.custody.reopen().await?;
            description = self.custody.describe().await?;
            outcome = self.identify(&keyring, &description).await;
        }
        match outcome {
            Ok(()) => {
                self.prove(&description);
                Ok(description)
            }
            Err(error) => {
                self.identity().doubted = true;
                Err(error)
            }
        }
    }

    /// The token has just authenticated the record and opened the active key: it is the right one.
    pub(super) fn prove(&self, description: &TokenDescription) {
        let serial = description.token.serial.clone();
        let proof = Proof { serial, opening: self.opening(description), at: boot_time() };
        *self.identity() = Identity { proof: Some(proof), ..Identity::default() };
    }

    /// Has a token that was found to be the wrong one opened anew, so that a start sees what is plugged in now.
    pub(super) async fn look_again(&self) {
        if self.custody_state().fault.as_ref().is_some_and(is_wrong) && self.identity().may_reopen() {
            // Whatever it says, it says again when asked for the token.
            let _ = self.custody.reopen().await;
        }
    }

    /// Looks for what only the right token has.
    async fn identify(&self, keyring: &Keyring, description: &TokenDescription) -> Result<(), CustodyError> {
        let epochs = self.custody.list_epochs(keyring.keyring.clone(), keyring.node.clone()).await?;
        if !epochs.contains(&keyring.epoch) {
            let serial = description.token.serial.clone();
            let record = keyring.epoch;
            return Err(match epochs.last() {
                Some(&token) if token < record => CustodyError::TokenOlder { serial, record, token },
                Some(_) => CustodyError::EpochMissing { number: record },
                // Another TPM would not have come so far: its storage root key is pinned.
                None if description.root_kind == RootKind::Tpm => CustodyError::EpochMissing { number: record },
                None => match self.identity().proof.as_ref().map(|proof| proof.serial.clone()) {
                    Some(before) if before == serial => CustodyError::TokenReinitialized { serial },
                    expected => CustodyError::TokenReplaced { serial, expected },
                },
            });
        }
        let Some(active) = keyring.active() else { return Ok(()) };
        match open_locally(&self.custody, keyring, active).await {
            Err(ServeError::Custody(error)) => Err(error),
            // A key of that name which opens the wrap to something else.
            Err(ServeError::WrongKey) => Err(CustodyError::WrapRejected),
            _ => Ok(()),
        }
    }

    fn opening(&self, description: &TokenDescription) -> Opening {
        Opening { custodian: self.custody.attachments(), number: description.openings }
    }

    /// Never held across an `.await`.
    fn identity(&self) -> MutexGuard<'_, Identity> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Identity {
    fn is_due(&self, opening: Opening) -> bool {
        let holds = |proof: &Proof| proof.opening == opening && boot_time().saturating_sub(proof.at) < PROOF_HOLDS;
        self.doubted || !self.proof.as_ref().is_some_and(holds)
    }

    fn may_reopen(&mut self) -> bool {
        let now = boot_time();
        let may = self.reopened.is_none_or(|last| now.saturating_sub(last) >= REOPEN_PAUSE);
        if may {
            self.reopened = Some(now);
        }
        may
    }
}
