//! One connection to a TPM: its context, its storage root key, one salted session, and the key loaded last.
//!
//! Every command that carries or brings a secret goes through the session: an HMAC over command and answer, the first parameter
//! encrypted both ways, all under a key that only the holder of the pinned storage root key can know. Who listens on the
//! bus learns nothing, who meddles is noticed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keystead_core::wrap::TpmKey;
use tss_esapi::attributes::SessionAttributesBuilder;
use tss_esapi::constants::response_code::Tss2ResponseCodeKind;
use tss_esapi::constants::{CapabilityType, SessionType, StartupType};
use tss_esapi::handles::{KeyHandle, NvIndexHandle, ObjectHandle, SessionHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{CapabilityData, Data, Private, Public, SignatureScheme, SymmetricDefinition};
use tss_esapi::traits::UnMarshall;
use tss_esapi::{Context, Error};
use zeroize::Zeroizing;

use super::auth::AuthFile;
use super::epoch::NvError;
use super::failure::Failure;
use super::identity::{self, Identity};
use super::srk::{self, SrkName};
use super::tcti::Tcti;
use crate::custody::contract::{CustodyError, DeviceClock, TokenSummary};

pub(super) struct Connection {
    context: Context,
    srk: KeyHandle,
    session: AuthSession,
    auth: AuthFile,
    loaded: Option<Loaded>,
    pub(super) nv: Vec<(u32, NvIndexHandle)>,
    /// The TPM has accepted the auth value: one that it refuses now is the wrap's fault.
    pub(super) auth_proven: bool,
    pub(super) has_p256: bool,
    pub(super) summary: TokenSummary,
    operations: Arc<AtomicU64>,
}

struct Loaded {
    key: TpmKey,
    handle: KeyHandle,
}

/// A context whose TPM answers, started if nobody has.
pub(super) fn connect(tcti: &Tcti) -> Result<Context, CustodyError> {
    let mut context = Context::new(tcti.conf()).map_err(|error| tcti.unreachable(super::failure::describe(&error)))?;
    let probe = |context: &mut Context| context.get_capability(CapabilityType::TpmProperties, 0x100, 1).map(drop);
    if let Err(error) = context.execute_without_session(probe) {
        let started = tcti.is_raw() && context.startup(StartupType::Clear).is_ok();
        if !started {
            return Err(tcti.unreachable(super::failure::describe(&error)));
        }
    }
    Ok(context)
}

impl Connection {
    /// Connects and checks that it is the TPM that the auth file was made on.
    pub(super) fn open(tcti: &Tcti, auth: AuthFile, operations: Arc<AtomicU64>) -> Result<Self, Failure> {
        let mut context = connect(tcti).map_err(Failure::Final)?;
        let identity = Identity::read(&mut context)?;
        let has_p256 = identity::has_p256(&mut context)?;
        let srk = match srk::find(&mut context)? {
            Some(srk) => srk,
            None => create_srk(&mut context, has_p256)?,
        };
        let name = srk::name(&mut context, srk)?;
        if let Some(pinned) = &auth.srk
            && *pinned != name
        {
            return Err(Failure::Final(other_tpm(&name, pinned)));
        }
        let session = salted_session(&mut context, srk, SessionType::Hmac)?;
        operations.fetch_add(6, Ordering::Relaxed);
        Ok(Self {
            context,
            srk,
            session,
            auth,
            loaded: None,
            nv: Vec::new(),
            auth_proven: false,
            has_p256,
            summary: identity.summary(&name),
            operations,
        })
    }

    pub(super) fn auth(&self) -> &AuthFile {
        &self.auth
    }

    /// The TPM's clock and reset count. Bound into whatever it attests, here that it has its storage root key, by nobody's
    /// signature: its library knows no other way to ask. A count that nobody of the platform or endorsement hierarchy signs
    /// has a secret number added (TPM 2.0 Library, Part 1, "Obfuscation"), the same each time until the TPM is cleared. `None`
    /// where that is refused.
    pub(super) fn clock(&mut self) -> Option<DeviceClock> {
        self.operations.fetch_add(1, Ordering::Relaxed);
        let (srk, empty) = (self.srk, Some(AuthSession::Password));
        let attested = self.context.execute_with_sessions((empty, empty, None), |context| {
            context.certify(srk.into(), KeyHandle::Null, Data::default(), SignatureScheme::Null)
        });
        match attested {
            Ok((attest, _)) => {
                let told = attest.clock_info();
                Some(DeviceClock { seconds: told.clock() / 1000, resets: told.reset_count() })
            }
            Err(error) => {
                tracing::debug!(%error, "the TPM's clock cannot be read");
                None
            }
        }
    }

    /// One command in the session.
    pub(super) fn call<T>(&mut self, command: impl FnOnce(&mut Context) -> tss_esapi::Result<T>) -> Result<T, Failure> {
        self.operations.fetch_add(1, Ordering::Relaxed);
        encrypt_parameters(&mut self.context, self.session)?;
        let session = Some(self.session);
        Ok(self.context.execute_with_session(session, command)?)
    }

    /// As [`Self::call`], but an index that was never written is told apart.
    pub(super) fn call_nv<T>(
        &mut self,
        command: impl FnOnce(&mut Context) -> tss_esapi::Result<T>,
    ) -> Result<T, NvError> {
        self.operations.fetch_add(1, Ordering::Relaxed);
        encrypt_parameters(&mut self.context, self.session).map_err(NvError::Other)?;
        let session = Some(self.session);
        self.context.execute_with_session(session, command).map_err(|error| match error {
            Error::Tss2Error(code) if code.kind() == Some(Tss2ResponseCodeKind::NvUninitialized) => {
                NvError::Uninitialized
            }
            error => NvError::Other(error.into()),
        })
    }

    /// One command without a session: for what is no secret.
    pub(super) fn plain<T>(
        &mut self,
        command: impl FnOnce(&mut Context) -> tss_esapi::Result<T>,
    ) -> Result<T, Failure> {
        self.operations.fetch_add(1, Ordering::Relaxed);
        Ok(self.context.execute_without_session(command)?)
    }

    /// What costs no command.
    pub(super) fn context(&mut self) -> &mut Context {
        &mut self.context
    }

    /// One command in a session of its own, such as [`Self::policy_session`] gives.
    pub(super) fn call_in<T>(
        &mut self,
        session: AuthSession,
        command: impl FnOnce(&mut Context) -> tss_esapi::Result<T>,
    ) -> Result<T, Failure> {
        self.operations.fetch_add(1, Ordering::Relaxed);
        encrypt_parameters(&mut self.context, session)?;
        Ok(self.context.execute_with_session(Some(session), command)?)
    }

    /// A policy session, salted and encrypting as the other one.
    pub(super) fn policy_session(&mut self) -> Result<AuthSession, Failure> {
        self.operations.fetch_add(1, Ordering::Relaxed);
        salted_session(&mut self.context, self.srk, SessionType::Policy)
    }

    /// What cannot be flushed goes with the connection.
    pub(super) fn flush_session(&mut self, session: AuthSession) {
        let _ = self.plain(|context| context.flush_context(SessionHandle::from(session).into()));
    }

    pub(super) fn random(&mut self) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let bytes = self.call(|context| context.get_random(32))?;
        Ok(Zeroizing::new(bytes.value().to_vec()))
    }

    /// A new key under the storage root key, with our auth value.
    pub(super) fn create_key(&mut self, template: Public) -> Result<(Public, Private), Failure> {
        let (srk, auth) = (self.srk, self.auth.value.for_tss());
        let made = self.call(|context| context.create(srk, template, Some(auth), None, None, None))?;
        Ok((made.out_public, made.out_private))
    }

    /// The key, loaded; one at a time is kept, since chips have room for three.
    pub(super) fn load(&mut self, key: &TpmKey) -> Result<KeyHandle, Failure> {
        if let Some(loaded) = &self.loaded
            && loaded.key == *key
        {
            return Ok(loaded.handle);
        }
        self.unload()?;
        let public = Public::unmarshall(&key.public).map_err(|_| Failure::rejected())?;
        let private = Private::try_from(key.private.clone()).map_err(|_| Failure::rejected())?;
        let srk = self.srk;
        let handle = self.call(|context| context.load(srk, private, public))?;
        let auth = self.auth.value.for_tss();
        self.context.tr_set_auth(handle.into(), auth)?;
        self.loaded = Some(Loaded { key: key.clone(), handle });
        Ok(handle)
    }

    pub(super) fn unload(&mut self) -> Result<(), Failure> {
        match self.loaded.take() {
            Some(loaded) => self.plain(|context| context.flush_context(loaded.handle.into())),
            None => Ok(()),
        }
    }
}

fn create_srk(context: &mut Context, ecc: bool) -> Result<KeyHandle, Failure> {
    let template = srk::template(ecc)?;
    let made = context.execute_with_nullauth_session(|context| {
        context.create_primary(Hierarchy::Owner, template, None, None, None, None)
    });
    match made.map_err(Failure::from) {
        Ok(made) => Ok(made.key_handle),
        Err(Failure::Auth(detail)) => Err(Failure::unsupported(format!(
            "a storage root key at 0x{:x}; none is there, and making one takes the owner's auth value ({detail}). Run \
             `keystead tpm provision --owner-auth-file FILE`",
            srk::PERSISTENT
        ))),
        Err(failure) => Err(failure),
    }
}

fn salted_session(context: &mut Context, srk: KeyHandle, kind: SessionType) -> Result<AuthSession, Failure> {
    let session = context
        .execute_without_session(|context| {
            context.start_auth_session(
                Some(srk),
                None,
                None,
                kind,
                SymmetricDefinition::AES_128_CFB,
                HashingAlgorithm::Sha256,
            )
        })?
        .ok_or_else(|| Failure::device("the TPM gave no session"))?;
    encrypt_parameters(context, session)?;
    Ok(session)
}

/// Before every command, and never only once: where a command or its answer has nothing to encrypt, the TSS takes the
/// attribute off the session, and does not put it back.
fn encrypt_parameters(context: &mut Context, session: AuthSession) -> Result<(), Failure> {
    let (attributes, mask) =
        SessionAttributesBuilder::new().with_decrypt(true).with_encrypt(true).with_continue_session(true).build();
    Ok(context.tr_sess_set_attributes(session, attributes, mask)?)
}

fn other_tpm(found: &SrkName, pinned: &SrkName) -> CustodyError {
    CustodyError::TokenReplaced { serial: found.serial(), expected: Some(pinned.serial()) }
}

/// Throws out of the chip whatever is loaded: on a raw TPM nobody else clears away what killed processes left.
pub(super) fn flush_everything(tcti: &Tcti) -> Result<(), Failure> {
    let mut context = connect(tcti).map_err(Failure::Final)?;
    // Transient objects, loaded sessions, saved sessions: TPM library part 2, "TPM_HT".
    for first in [0x8000_0000, 0x0200_0000, 0x0300_0000] {
        let (found, _) =
            context.execute_without_session(|context| context.get_capability(CapabilityType::Handles, first, 64))?;
        let CapabilityData::Handles(handles) = found else { continue };
        for handle in handles.iter() {
            if let Err(error) = flush(&mut context, *handle) {
                tracing::warn!(error = super::failure::describe(&error), "an object of the TPM could not be flushed");
            } else {
                tracing::warn!("an object that somebody left in the TPM was flushed");
            }
        }
    }
    Ok(())
}

fn flush(context: &mut Context, handle: TpmHandle) -> tss_esapi::Result<()> {
    context.execute_without_session(|context| {
        let object: ObjectHandle = context.tr_from_tpm_public(handle)?;
        context.flush_context(object)
    })
}
