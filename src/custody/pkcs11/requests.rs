//! Each request of the contract as what it does on one session.

use std::borrow::Borrow;
use std::sync::Arc;

use keystead_core::id::RootKind;
use keystead_core::wrap::{Construction, WrapError};
use keystead_core::{Kek, RootId, WrapContext, WrappedKek};

use super::cmk::{self, Cmk, KeySpec};
use super::epoch;
use super::failure::Failure;
use super::random;
use super::rsa_oaep::CMK_BITS;
use super::session::Session;
use super::token::Token;
use crate::custody::contract::{Answer, CustodyError, Request};

pub(super) fn perform(token: &Token, session: &mut Session, request: &Request) -> Result<Answer, Failure> {
    match request {
        Request::ListCmks => cmk::list(session).map(Answer::Cmks),
        Request::NewKek { context } => new_kek(token, session, context),
        Request::WrapKek { context, kek } => {
            under_new_cmk(token, session, context, |_| Ok(Arc::clone(&kek.0))).map(|(wrap, _)| Answer::Wrapped(wrap))
        }
        Request::Unwrap { context, wrap } => unwrap(session, context, wrap).map(Answer::Kek),
        Request::ListEpochs { keyring, node } => epoch::list(session, keyring, node).map(Answer::Epochs),
        Request::CreateEpoch(name) => {
            epoch::create(session, token.negotiated.authentication, name)?;
            session.made_object();
            Ok(Answer::Done)
        }
        Request::DeriveEpochKey { epoch, purpose } => epoch::derive(session, epoch, *purpose).map(Answer::EpochKey),
        Request::DestroyEpoch(name) => epoch::destroy(session, name).map(|()| Answer::Done),
        Request::DestroyCmk { root_id } => {
            session.forget(root_id);
            cmk::destroy(session, root_id).map(|()| Answer::Done)
        }
        Request::Probe => token.probe(),
        // Answered by the device, which knows what is not the token's own.
        Request::Describe | Request::ListTokens | Request::Reopen => Err(Failure::device("no request for a token")),
    }
}

/// The CMK that a request is about, for the canary.
pub(super) fn root(request: &Request) -> Option<&RootId> {
    match request {
        Request::NewKek { context } | Request::WrapKek { context, .. } | Request::Unwrap { context, .. } => {
            Some(&context.root_id)
        }
        _ => None,
    }
}

fn new_kek(token: &Token, session: &mut Session, context: &WrapContext) -> Result<Answer, Failure> {
    let draw = |session: &Session| Ok(Kek::take(&mut *random::mixed(session)?));
    let (wrap, kek) = under_new_cmk(token, session, context, draw)?;
    Ok(Answer::NewKek { wrap, kek })
}

/// Makes a CMK and wraps the KEK that `kek` gives by it.
///
/// A CMK that is there already, because the answer to a first try was lost, is used: destroying it could be the end of
/// what somebody has persisted meanwhile.
fn under_new_cmk<K: Borrow<Kek>>(
    token: &Token,
    session: &mut Session,
    context: &WrapContext,
    kek: impl FnOnce(&Session) -> Result<K, Failure>,
) -> Result<(WrappedKek, K), Failure> {
    if context.root_kind != RootKind::Pkcs11 || epoch::is_epoch_id(context.root_id.as_bytes()) {
        return Err(Failure::unsupported(format!("roots of kind {}, or of this ID", context.root_kind)));
    }
    let mechanism = token.negotiated.mechanism;
    let (cmk, made) = match cmk::find(session, &context.root_id)? {
        Some(cmk) => {
            cmk::require_kept(session, cmk.secret())?;
            (cmk, false)
        }
        None => {
            let label = cmk::label(context);
            let spec = KeySpec { token: true, id: context.root_id.as_bytes(), label: &label };
            let cmk = Cmk::generate(session, mechanism, &spec, CMK_BITS)?;
            session.made_object();
            (cmk, true)
        }
    };
    let wrapped = kek(session).and_then(|kek| Ok((wrap_proven(session, &cmk, mechanism, context, kek.borrow())?, kek)));
    if wrapped.is_err() && made {
        // The error at hand says more than that its remains could not be removed.
        let _ = cmk::destroy(session, &context.root_id);
    }
    wrapped
}

fn wrap_proven(
    session: &Session,
    cmk: &Cmk,
    mechanism: cmk::Mechanism,
    context: &WrapContext,
    kek: &Kek,
) -> Result<WrappedKek, Failure> {
    let wrap = cmk.seal(session, mechanism, context, kek)?;
    // Opened once before anything depends on it.
    if cmk.open(session, context, &wrap)?.commitment() != kek.commitment() {
        return Err(Failure::device("the token opened a new wrap to another key"));
    }
    Ok(WrappedKek { root_kind: context.root_kind, root_id: context.root_id.clone(), bytes: wrap.to_bytes() })
}

fn unwrap(session: &mut Session, context: &WrapContext, wrap: &[u8]) -> Result<Kek, Failure> {
    let wrap = Construction::parse(wrap).map_err(|error| match error {
        WrapError::UnknownConstruction(_) => Failure::unsupported(error.to_string()),
        WrapError::Malformed | WrapError::NotAuthentic => Failure::Final(CustodyError::WrapRejected),
    })?;
    let cmk = session.cmk(&context.root_id)?;
    cmk.open(session, context, &wrap)
}
