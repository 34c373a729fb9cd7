//! What the token does properly, found by trying: with keys made for the trial, before any CMK depends on it.
//!
//! A mechanism is used only if a round trip works and every damaged wrap is refused. A token that opens a damaged one is
//! not used at all, by whatever mechanism: it does not do what its answers say.

use cryptoki::object::ObjectHandle;
use keystead_core::Kek;
use keystead_core::wrap::{Construction, OaepHash};

use super::aes_gcm::IvMode;
use super::canary::{self, Canary};
use super::cmk::{Cmk, KeySpec, Mechanism};
use super::epoch::{self, Authentication};
use super::failure::Failure;
use super::random;
use super::rsa_oaep::PROBE_BITS;
use super::session::Session;
use crate::custody::contract::CustodyError;
use crate::custody::settings::MechanismChoice;

const LABEL: &str = "keystead-probe";

pub(super) struct Negotiated {
    pub(super) mechanism: Mechanism,
    pub(super) authentication: Authentication,
    /// Absent where a token knows no session keys: those made for the trial are gone then.
    pub(super) canary: Option<Canary>,
}

/// Tries mechanisms in order. `anchor` outlives the answer and owns the trial's keys; `fresh` opens a session for each
/// trial, as a failed one may leave its session unusable.
///
/// # Errors
/// `Unsupported` names each mechanism with why not.
pub(super) fn negotiate(
    anchor: &Session,
    fresh: &dyn Fn() -> Result<Session, Failure>,
    choice: MechanismChoice,
) -> Result<Negotiated, Failure> {
    let authentication = authentication(anchor, fresh)?;
    let mut refused = Vec::new();
    for family in families(choice) {
        for token in [false, true] {
            match try_family(anchor, fresh, &family, token) {
                Ok((mechanism, canary)) => return Ok(Negotiated { mechanism, authentication, canary }),
                Err(Trial::Key(why)) if !token => refused.push(why),
                Err(Trial::Key(why) | Trial::Unfit(why)) => {
                    refused.push(why);
                    break;
                }
                Err(Trial::End(failure)) => return Err(failure),
            }
        }
    }
    Err(Failure::unsupported(format!("no mechanism passed: {}", refused.join("; "))))
}

/// Mechanisms that share one trial key, in order of preference.
fn families(choice: MechanismChoice) -> Vec<Vec<Mechanism>> {
    let aes = IvMode::ALL.map(Mechanism::AesGcm).to_vec();
    let ecdh = vec![Mechanism::EcdhP256];
    let rsa = [OaepHash::Sha256, OaepHash::Sha1].map(Mechanism::RsaOaep).to_vec();
    match choice {
        MechanismChoice::Auto => vec![aes, ecdh, rsa],
        MechanismChoice::AesGcm => vec![aes],
        MechanismChoice::EcdhP256 => vec![ecdh],
        MechanismChoice::RsaOaep => vec![rsa],
    }
}

enum Trial {
    /// No key could be made; a token object may be possible where a session object is not.
    Key(String),
    Unfit(String),
    /// Nothing else may be tried.
    End(Failure),
}

fn try_family(
    anchor: &Session,
    fresh: &dyn Fn() -> Result<Session, Failure>,
    family: &[Mechanism],
    token: bool,
) -> Result<(Mechanism, Option<Canary>), Trial> {
    let id = random::kernel::<16>().map_err(Trial::End)?;
    let spec = KeySpec { token, id: id.as_slice(), label: LABEL };
    let why = |mechanism: &Mechanism, failure: Failure| format!("{mechanism}: {}", failure.into_error());
    let key = match Cmk::generate(anchor, family[0], &spec, PROBE_BITS) {
        Ok(key) => key,
        Err(failure @ Failure::Stale(_)) => return Err(Trial::End(failure)),
        Err(failure) => return Err(Trial::Key(why(&family[0], failure))),
    };
    let mut reasons = Vec::new();
    let mut found = None;
    for mechanism in family {
        match prove(fresh, &key, *mechanism) {
            Ok((wrap, kek)) => {
                found = Some((*mechanism, wrap, kek));
                break;
            }
            Err(Unproven::Fails(failure)) => reasons.push(why(mechanism, failure)),
            Err(Unproven::Lies(what)) => {
                discard(anchor, &key, token);
                let detail = format!("{mechanism} of this token opened a wrap {what}; it is not used at all");
                return Err(Trial::End(Failure::unsupported(detail)));
            }
        }
    }
    discard(anchor, &key, token);
    let (mechanism, wrap, kek) = found.ok_or_else(|| Trial::Unfit(reasons.join("; ")))?;
    Ok((mechanism, (!token).then_some(Canary { key, wrap, kek })))
}

/// Session keys go with the anchor session, and one of them becomes the canary.
fn discard(anchor: &Session, key: &Cmk, token: bool) {
    if token {
        // The private half is what matters; what stays behind has a label of its own and is listed nowhere.
        let _ = anchor.call().destroy_object(key.secret());
        if let Cmk::Rsa { public, .. } = key {
            let _ = anchor.call().destroy_object(*public);
        }
    }
}

enum Unproven {
    Fails(Failure),
    Lies(&'static str),
}

impl From<Failure> for Unproven {
    fn from(failure: Failure) -> Self {
        Self::Fails(failure)
    }
}

fn prove(
    fresh: &dyn Fn() -> Result<Session, Failure>,
    key: &Cmk,
    mechanism: Mechanism,
) -> Result<(Construction, Kek), Unproven> {
    let session = fresh()?;
    let (context, other) = (canary::context(1), canary::context(2));
    let kek = Kek::take(&mut *random::kernel().map_err(Unproven::Fails)?);
    let wrap = key.seal(&session, mechanism, &context, &kek)?;
    if key.open(&session, &context, &wrap)?.commitment() != kek.commitment() {
        return Err(Unproven::Lies("to another key"));
    }
    if key.seal(&session, mechanism, &context, &kek)? == wrap {
        return Err(Unproven::Lies("that was sealed with the same IV twice"));
    }
    if key.open(&fresh()?, &other, &wrap).is_ok() {
        return Err(Unproven::Lies("of another context"));
    }
    let bytes = wrap.to_bytes();
    // One bit each: in the IV (or what the token gets to open), in the sealed key, in the tag.
    for index in [5, bytes.len() - 20, bytes.len() - 1] {
        let mut damaged = bytes.clone();
        damaged[index] ^= 1;
        if let Ok(damaged) = Construction::parse(&damaged)
            && key.open(&fresh()?, &context, &damaged).is_ok()
        {
            return Err(Unproven::Lies("that had been tampered with"));
        }
    }
    Ok((wrap, kek))
}

fn authentication(anchor: &Session, fresh: &dyn Fn() -> Result<Session, Failure>) -> Result<Authentication, Failure> {
    let mut refused = Vec::new();
    for authentication in [Authentication::Hmac, Authentication::Cmac] {
        for token in [false, true] {
            match try_authentication(anchor, fresh, authentication, token) {
                Ok(()) => return Ok(authentication),
                Err(failure @ Failure::Stale(_)) => return Err(failure),
                Err(failure) => refused.push(format!("{authentication}: {}", failure.into_error())),
            }
        }
    }
    Err(Failure::unsupported(format!("no keyed hash passed: {}", refused.join("; "))))
}

/// The same for the same, another for another: of the input, and of the key.
fn try_authentication(
    anchor: &Session,
    fresh: &dyn Fn() -> Result<Session, Failure>,
    authentication: Authentication,
    token: bool,
) -> Result<(), Failure> {
    let (one, two) = (random::kernel::<16>()?, random::kernel::<16>()?);
    let make =
        |id: &[u8; 16]| epoch::generate(anchor, authentication, &KeySpec { token, id: id.as_slice(), label: LABEL });
    let first = make(&one)?;
    let verdict = make(&two).and_then(|second| {
        let verdict = fresh().and_then(|session| compare(&session, authentication, [first, second]));
        anchor.call().destroy_object(second)?;
        verdict
    });
    anchor.call().destroy_object(first)?;
    verdict
}

fn compare(session: &Session, authentication: Authentication, [one, two]: [ObjectHandle; 2]) -> Result<(), Failure> {
    let first = epoch::expand(session, authentication, one, b"keystead-probe 1")?;
    let again = epoch::expand(session, authentication, one, b"keystead-probe 1")?;
    let other_input = epoch::expand(session, authentication, one, b"keystead-probe 2")?;
    let other_key = epoch::expand(session, authentication, two, b"keystead-probe 1")?;
    if first == again && first != other_input && first != other_key {
        return Ok(());
    }
    Err(Failure::Final(CustodyError::Unsupported { detail: "it is no keyed hash".to_owned() }))
}
