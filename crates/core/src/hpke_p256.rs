//! The public-key wrap: HPKE base mode (RFC 9180), DHKEM(P-256, HKDF-SHA256), HKDF-SHA256, AES-256-GCM, context as `info`.
//!
//! One construction for the recovery key and for custody keys that only do ECDH. Sealing is the `hpke` crate's. Opening
//! has two ways: with the private key at hand (again the crate), and with a device that does only the ECDH, whose
//! shared secret [`open_with_shared_secret`] carries through the RFC's key schedule.

use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::Aes256Gcm;
use hkdf::Hkdf;
use hpke::kem::DhP256HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use p256::elliptic_curve::sec1::ToSec1Point;
use p256::pkcs8::DecodePublicKey;
use rand_core::CryptoRng;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::id::{RootId, RootKind};
use crate::secret::Kek;
use crate::wrap::{Construction, WrapError, WrappedKek};
use crate::WrapContext;

type Kdf = hpke::kdf::HkdfSha256;
type Aead = hpke::aead::AesGcm256;

/// A P-256 public key that KEKs are wrapped to, checked to be a point on the curve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct P256PublicKey {
    /// SEC 1 uncompressed: `0x04 ‖ x ‖ y`.
    sec1: [u8; 65],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a P-256 public key (SubjectPublicKeyInfo PEM, or an uncompressed point)")]
pub struct NotAPublicKey;

impl P256PublicKey {
    /// From `-----BEGIN PUBLIC KEY-----`, as `openssl ec -pubout` writes it.
    pub fn from_pem(pem: &str) -> Result<Self, NotAPublicKey> {
        let key = p256::PublicKey::from_public_key_pem(pem).map_err(|_| NotAPublicKey)?;
        Self::from_sec1(key.to_sec1_point(false).as_bytes())
    }

    /// From an uncompressed point.
    pub fn from_sec1(bytes: &[u8]) -> Result<Self, NotAPublicKey> {
        p256::PublicKey::from_sec1_bytes(bytes).map_err(|_| NotAPublicKey)?;
        Ok(Self { sec1: bytes.try_into().map_err(|_| NotAPublicKey)? })
    }

    pub fn as_sec1(&self) -> &[u8; 65] {
        &self.sec1
    }

    /// The root ID of a recovery key: the first 16 bytes of SHA-256 over the uncompressed point.
    pub fn recovery_root_id(&self) -> RootId {
        RootId::new(&Sha256::digest(self.sec1)[..16]).expect("16 bytes are a root ID")
    }

    /// Wraps `kek` to this key. `context` names the root this key is.
    pub fn seal(&self, context: &WrapContext, kek: &Kek, rng: &mut impl CryptoRng) -> Construction {
        let recipient = <DhP256HkdfSha256 as Kem>::PublicKey::from_bytes(&self.sec1)
            .expect("the point was checked when this key was made");
        let (encapsulated, sealed) = hpke::single_shot_seal_with_rng::<Aead, Kdf, DhP256HkdfSha256>(
            &OpModeS::Base,
            &recipient,
            &context.to_bytes(),
            kek.expose(),
            b"",
            rng,
        )
        .expect("sealing 32 bytes to a checked key cannot fail");
        Construction::HpkeP256 {
            encapsulated: encapsulated.to_bytes().into(),
            sealed: sealed.as_slice().try_into().expect("32 bytes and a 16-byte tag"),
        }
    }

    /// The recovery wrap of `kek` for one generation, as it is stored.
    pub fn recovery_wrap(&self, mut context: WrapContext, kek: &Kek, rng: &mut impl CryptoRng) -> WrappedKek {
        context.root_kind = RootKind::Recovery;
        context.root_id = self.recovery_root_id();
        let bytes = self.seal(&context, kek, rng).to_bytes();
        WrappedKek { root_kind: context.root_kind, root_id: context.root_id, bytes }
    }
}

/// Opens a wrap with the private key itself (32-byte scalar): the offline path of a recovery key.
///
/// # Errors
/// [`WrapError::Malformed`] for a scalar that is no private key or a point off the curve, [`WrapError::NotAuthentic`] otherwise.
pub fn open_with_private_key(
    scalar: &[u8; 32],
    context: &WrapContext,
    encapsulated: &[u8; 65],
    sealed: &[u8; 48],
) -> Result<Kek, WrapError> {
    let private = <DhP256HkdfSha256 as Kem>::PrivateKey::from_bytes(scalar).map_err(|_| WrapError::Malformed)?;
    let encapsulated =
        <DhP256HkdfSha256 as Kem>::EncappedKey::from_bytes(encapsulated).map_err(|_| WrapError::Malformed)?;
    let opened = hpke::single_shot_open::<Aead, Kdf, DhP256HkdfSha256>(
        &OpModeR::Base,
        &private,
        &encapsulated,
        &context.to_bytes(),
        sealed,
        b"",
    )
    .map(Zeroizing::new)
    .map_err(|_| WrapError::NotAuthentic)?;
    let mut bytes = Zeroizing::new([0; 32]);
    bytes.copy_from_slice(&opened);
    Ok(Kek::take(&mut bytes))
}

/// Checks the encapsulated key before it goes to a device: a point on the curve, else a device may leak its key
/// (invalid-curve attack) where its firmware does not check.
pub fn check_encapsulated(encapsulated: &[u8; 65]) -> Result<(), WrapError> {
    p256::PublicKey::from_sec1_bytes(encapsulated).map(drop).map_err(|_| WrapError::Malformed)
}

/// Opens a wrap where a device has done the ECDH: `shared` is the x-coordinate of `encapsulated · private key`.
///
/// # Errors
/// [`WrapError::NotAuthentic`].
///
/// Source: RFC 9180 §4.1 (`ExtractAndExpand`), §5.1 (`KeySchedule`), §7.1.
pub fn open_with_shared_secret(
    shared: &[u8; 32],
    recipient: &P256PublicKey,
    context: &[u8],
    encapsulated: &[u8; 65],
    sealed: &[u8; 48],
) -> Result<Kek, WrapError> {
    let (key, nonce) = key_schedule(shared, recipient, context, encapsulated, AES_256_GCM);
    let mut kek = Zeroizing::new([0; 32]);
    let (ciphertext, tag) = sealed.split_at(32);
    kek.copy_from_slice(ciphertext);
    let tag: [u8; 16] = tag.try_into().map_err(|_| WrapError::Malformed)?;
    Aes256Gcm::new((&*key).into())
        .decrypt_inout_detached(&nonce.into(), b"", InOutBuf::from(kek.as_mut_slice()), &tag.into())
        .map_err(|_| WrapError::NotAuthentic)?;
    Ok(Kek::take(&mut kek))
}

/// AEAD number of AES-256-GCM, RFC 9180 §7.3.
const AES_256_GCM: u16 = 2;

fn key_schedule(
    shared: &[u8; 32],
    recipient: &P256PublicKey,
    info: &[u8],
    encapsulated: &[u8; 65],
    aead: u16,
) -> (Zeroizing<[u8; 32]>, [u8; 12]) {
    let kem = Suite(b"KEM\x00\x10".to_vec());
    let mut suite_id = b"HPKE\x00\x10\x00\x01".to_vec();
    suite_id.extend_from_slice(&aead.to_be_bytes());
    let hpke = Suite(suite_id);

    let mut kem_context = encapsulated.to_vec();
    kem_context.extend_from_slice(recipient.as_sec1());
    let mut shared_secret = Zeroizing::new([0; 32]);
    kem.expand(&kem.extract(b"", b"eae_prk", shared), b"shared_secret", &kem_context, shared_secret.as_mut());

    let mut schedule_context = vec![0x00]; // mode_base
    schedule_context.extend_from_slice(hpke.extract(b"", b"psk_id_hash", b"").as_slice());
    schedule_context.extend_from_slice(hpke.extract(b"", b"info_hash", info).as_slice());
    let secret = hpke.extract(shared_secret.as_slice(), b"secret", b"");

    let mut key = Zeroizing::new([0; 32]);
    let mut nonce = [0; 12];
    hpke.expand(&secret, b"key", &schedule_context, key.as_mut());
    hpke.expand(&secret, b"base_nonce", &schedule_context, &mut nonce);
    (key, nonce)
}

/// `LabeledExtract` and `LabeledExpand` under one suite ID, RFC 9180 §4.
struct Suite(Vec<u8>);

impl Suite {
    fn extract(&self, salt: &[u8], label: &[u8], ikm: &[u8]) -> Zeroizing<[u8; 32]> {
        let labeled = Zeroizing::new([b"HPKE-v1", self.0.as_slice(), label, ikm].concat());
        let (prk, _) = Hkdf::<Sha256>::extract(Some(salt), &labeled);
        Zeroizing::new(prk.into())
    }

    fn expand(&self, prk: &Zeroizing<[u8; 32]>, label: &[u8], info: &[u8], out: &mut [u8]) {
        let len = (out.len() as u16).to_be_bytes();
        let labeled = [len.as_slice(), b"HPKE-v1", self.0.as_slice(), label, info].concat();
        Hkdf::<Sha256>::from_prk(prk.as_slice())
            .and_then(|hkdf| hkdf.expand(&labeled, out).map_err(|_| hkdf::InvalidPrkLength))
            .expect("at most 32 bytes from a 32-byte key are valid lengths for HKDF-SHA256");
    }
}
