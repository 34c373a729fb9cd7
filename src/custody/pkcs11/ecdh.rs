//! ECDH on P-256 in the token: a KEK is sealed in software to the public half (HPKE), the token does the ECDH that opens it.

use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::elliptic_curve::{EcKdf, Ecdh1DeriveParams};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use getrandom::SysRng;
use keystead_core::hpke_p256::{self, P256PublicKey};
use keystead_core::wrap::{Construction, WrapError};
use keystead_core::{Kek, WrapContext};
use rand_core::UnwrapErr;
use zeroize::Zeroizing;

use super::cmk::KeySpec;
use super::failure::Failure;
use super::session::Session;
use crate::custody::contract::CustodyError;

/// DER of the object identifier of P-256, 1.2.840.10045.3.1.7.
const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

pub(super) fn generate(session: &Session, spec: &KeySpec<'_>) -> Result<(ObjectHandle, ObjectHandle), Failure> {
    let mut public = spec.public();
    public.push(Attribute::EcParams(P256.to_vec()));
    let mut private = spec.secret();
    private.extend([Attribute::Derive(true), Attribute::Sign(false)]);
    Ok(session.call().generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)?)
}

/// The public point of either half of a key pair.
pub(super) fn point(session: &Session, key: ObjectHandle) -> Result<P256PublicKey, Failure> {
    let attributes = session.call().get_attributes(key, &[AttributeType::EcPoint])?;
    let point = attributes.iter().find_map(|attribute| match attribute {
        // The standard wants a DER OCTET STRING around the point; some tokens leave it out.
        Attribute::EcPoint(bytes) => Some(bytes.strip_prefix(&[0x04, 65]).filter(|p| p.len() == 65).unwrap_or(bytes)),
        _ => None,
    });
    point
        .and_then(|bytes| P256PublicKey::from_sec1(bytes).ok())
        .ok_or_else(|| Failure::device("the token gives no P-256 point for a CMK's public key"))
}

pub(super) fn seal(point: &P256PublicKey, context: &WrapContext, kek: &Kek) -> Construction {
    // The kernel's random source fails only before it is seeded, long before a daemon starts.
    point.seal(context, kek, &mut UnwrapErr(SysRng))
}

pub(super) fn open(
    session: &Session,
    private: ObjectHandle,
    point: &P256PublicKey,
    context: &[u8],
    encapsulated: &[u8; 65],
    sealed: &[u8; 48],
) -> Result<Kek, Failure> {
    hpke_p256::check_encapsulated(encapsulated).map_err(|_| Failure::Final(CustodyError::WrapRejected))?;
    let shared = shared_secret(session, private, encapsulated)?;
    hpke_p256::open_with_shared_secret(&shared, point, context, encapsulated, sealed).map_err(|error| match error {
        WrapError::NotAuthentic => Failure::Suspect("the wrap does not open under the token's shared secret".into()),
        other => Failure::Suspect(other.to_string()),
    })
}

/// The x-coordinate, through a session object that lives for as long as it takes to read it.
fn shared_secret(
    session: &Session,
    private: ObjectHandle,
    encapsulated: &[u8; 65],
) -> Result<Zeroizing<[u8; 32]>, Failure> {
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::ValueLen(32.into()),
        Attribute::Token(false),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ];
    let mechanism = Mechanism::Ecdh1Derive(Ecdh1DeriveParams::new(EcKdf::null(), encapsulated));
    let derived = session.call().derive_key(&mechanism, private, &template)?;
    let value = session.call().get_attributes(derived, &[AttributeType::Value]);
    // Destroyed whatever the read gave. Should this fail, the session is dropped, and the object with it.
    session.call().destroy_object(derived)?;
    let mut shared = Zeroizing::new([0; 32]);
    for attribute in value? {
        if let Attribute::Value(bytes) = attribute {
            let bytes = Zeroizing::new(bytes);
            if bytes.len() == shared.len() {
                shared.copy_from_slice(&bytes);
                return Ok(shared);
            }
        }
    }
    Err(Failure::Suspect("the token's shared secret cannot be read".into()))
}
