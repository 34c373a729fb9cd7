//! AES-256-GCM in the token: the CMK never leaves it, the context is the additional data.
//!
//! Tokens differ in who makes the IV; [`IvMode`] says who. Opening is the same for all: `C_Decrypt` with the IV at hand.

use std::fmt;

use cryptoki::mechanism::aead::{GcmMessageParams, GcmParams, GeneratorFunction};
use cryptoki::mechanism::{Mechanism, MessageParam};
use cryptoki::object::{Attribute, ObjectHandle};
use keystead_core::Kek;
use keystead_core::wrap::Construction;
use zeroize::Zeroizing;

use super::cmk::{KeySpec, take_kek};
use super::failure::Failure;
use super::random;
use super::session::Session;

const TAG_BITS: u64 = 128;
const IV: usize = 12;
const SEALED: usize = 48;

/// Who makes the IV of an encryption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IvMode {
    /// The token, through the message functions of PKCS#11 3.0. First choice: the IV is made where the key is.
    Message,
    /// We do, at random (SoftHSM).
    Caller,
    /// The token, which ignores ours and appends its own to the ciphertext (Luna in FIPS mode).
    Appended,
    /// The token, which takes a buffer of zeros and writes its own into it (AWS CloudHSM).
    WrittenBack,
}

impl IvMode {
    pub(super) const ALL: [Self; 4] = [Self::Message, Self::Caller, Self::Appended, Self::WrittenBack];
}

impl fmt::Display for IvMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Message => "IV by token, message API",
            Self::Caller => "IV by caller",
            Self::Appended => "IV by token, appended",
            Self::WrittenBack => "IV by token, written back",
        })
    }
}

pub(super) fn generate(session: &Session, spec: &KeySpec<'_>) -> Result<ObjectHandle, Failure> {
    let mut template = spec.secret();
    template.extend([
        Attribute::ValueLen(32.into()),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
    ]);
    Ok(session.call().generate_key(&Mechanism::AesKeyGen, &template)?)
}

pub(super) fn seal(
    session: &Session,
    key: ObjectHandle,
    mode: IvMode,
    aad: &[u8],
    kek: &Kek,
) -> Result<Construction, Failure> {
    let ours: [u8; IV] = match mode {
        IvMode::WrittenBack => [0; IV],
        _ => *random::mixed(session)?,
    };
    let mut iv = ours;
    let output = match mode {
        IvMode::Message => encrypt_message(session, key, &mut iv, aad, kek)?,
        _ => {
            let parameters = GcmParams::new(&mut iv, aad, TAG_BITS.into())?;
            session.call().encrypt(&Mechanism::AesGcm(parameters), key, kek.expose())?
        }
    };
    let (sealed, appended) =
        output.split_first_chunk::<SEALED>().ok_or_else(|| misbehaves("the ciphertext is too short"))?;
    match mode {
        IvMode::Caller if !appended.is_empty() || iv != ours => return Err(misbehaves("it did not take our IV")),
        IvMode::Appended => {
            iv = appended.try_into().map_err(|_| misbehaves("it did not append a 12-byte IV"))?;
        }
        IvMode::Message | IvMode::WrittenBack if !appended.is_empty() || iv == ours => {
            return Err(misbehaves("it made no IV"));
        }
        _ => {}
    }
    if iv == [0; IV] {
        return Err(misbehaves("its IV is zero"));
    }
    Ok(Construction::AesGcm { iv, sealed: *sealed })
}

pub(super) fn open(
    session: &Session,
    key: ObjectHandle,
    aad: &[u8],
    iv: &[u8; IV],
    sealed: &[u8; SEALED],
) -> Result<Kek, Failure> {
    let mut iv = *iv;
    let parameters = GcmParams::new(&mut iv, aad, TAG_BITS.into())?;
    take_kek(Zeroizing::new(session.call().decrypt(&Mechanism::AesGcm(parameters), key, sealed)?))
}

fn encrypt_message(
    session: &Session,
    key: ObjectHandle,
    iv: &mut [u8; IV],
    aad: &[u8],
    kek: &Kek,
) -> Result<Vec<u8>, Failure> {
    let mut tag = [0; 16];
    let parameters = GcmMessageParams::new(iv, 0.into(), GeneratorFunction::GenerateRandom, &mut tag)?;
    session.call().message_encrypt_init(&Mechanism::AesGcmMessage(parameters), key)?;
    let ciphertext = session.call().encrypt_message(&MessageParam::AesGcmMessage(parameters), aad, kek.expose());
    // Ended in any case: an operation left open poisons the session.
    let ended = session.call().message_encrypt_final();
    let mut output = ciphertext?;
    ended?;
    output.extend_from_slice(&tag);
    Ok(output)
}

fn misbehaves(what: &str) -> Failure {
    Failure::Suspect(format!("AES-GCM of the token: {what}"))
}
