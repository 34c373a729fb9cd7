//! RSA-OAEP in the token, for tokens without AEAD and ECDH: the block carries a fresh key, under which the KEK is sealed.

use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, ObjectHandle};
use keystead_core::Kek;
use keystead_core::wrap::{self, Construction, OaepHash};
use zeroize::Zeroizing;

use super::cmk::KeySpec;
use super::failure::Failure;
use super::random;
use super::session::Session;

/// Strength of a CMK; a probe takes the smallest there is, as it lives for a second.
pub(super) const CMK_BITS: u64 = 3072;
pub(super) const PROBE_BITS: u64 = 2048;

pub(super) fn generate(
    session: &Session,
    spec: &KeySpec<'_>,
    bits: u64,
) -> Result<(ObjectHandle, ObjectHandle), Failure> {
    let mut public = spec.public();
    public.extend([
        Attribute::ModulusBits(bits.into()),
        Attribute::PublicExponent(vec![0x01, 0x00, 0x01]),
        Attribute::Encrypt(true),
        Attribute::Verify(false),
        Attribute::Wrap(false),
    ]);
    let mut private = spec.secret();
    private.extend([Attribute::Decrypt(true), Attribute::Sign(false), Attribute::Unwrap(false)]);
    Ok(session.call().generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private)?)
}

pub(super) fn seal(
    session: &Session,
    public: ObjectHandle,
    hash: OaepHash,
    context: &[u8],
    kek: &Kek,
) -> Result<Construction, Failure> {
    let transport = random::mixed::<32>(session)?;
    let block = session.call().encrypt(&mechanism(hash), public, transport.as_slice())?;
    Ok(Construction::RsaOaep { hash, block, sealed: wrap::seal_under_transport_key(&transport, context, kek) })
}

pub(super) fn open(
    session: &Session,
    private: ObjectHandle,
    hash: OaepHash,
    context: &[u8],
    block: &[u8],
    sealed: &[u8; 48],
) -> Result<Kek, Failure> {
    let opened = Zeroizing::new(session.call().decrypt(&mechanism(hash), private, block)?);
    let mut transport = Zeroizing::new([0; 32]);
    if opened.len() != transport.len() {
        return Err(Failure::Suspect("the OAEP block does not hold a 32-byte key".into()));
    }
    transport.copy_from_slice(&opened);
    wrap::open_under_transport_key(&transport, context, sealed).map_err(|error| Failure::Suspect(error.to_string()))
}

/// No label: tokens differ in whether they take one, and the context is bound by what the block's key seals.
fn mechanism(hash: OaepHash) -> Mechanism<'static> {
    let (digest, mgf) = match hash {
        OaepHash::Sha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
        OaepHash::Sha1 => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
    };
    Mechanism::RsaPkcsOaep(PkcsOaepParams::new(digest, mgf, PkcsOaepSource::empty()))
}
