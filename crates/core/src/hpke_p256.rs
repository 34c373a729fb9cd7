//! The public-key wrap: HPKE base mode (RFC 9180), DHKEM(P-256, HKDF-SHA256), HKDF-SHA256, AES-256-GCM, context as `info`.
//!
//! One construction for the recovery key and for custody keys that only do ECDH. Sealing is the `hpke` crate's. Opening
//! has two ways: with the private key at hand (again the crate), and with a device that does only the ECDH, whose
//! shared secret [`open_with_shared_secret`] carries through the RFC's key schedule.

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::aead::{AeadInOut, KeyInit};
use hkdf::Hkdf;
use hpke::kem::DhP256HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use p256::elliptic_curve::sec1::ToSec1Point;
use p256::pkcs8::DecodePublicKey;
use rand_core::CryptoRng;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::WrapContext;
use crate::id::{RootId, RootKind};
use crate::secret::Kek;
use crate::wrap::{Construction, WrapError, WrappedKek};

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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use hpke::aead::{AesGcm128, AesGcm256};
    use rand_core::{TryCryptoRng, TryRng};

    use super::*;
    use crate::hex;
    use crate::{GenerationNumber, KeyId, KeyringId};

    /// A random source that gives out `bytes`, then panics: what a vector calls `ikmE`.
    struct Scripted(Vec<u8>);

    impl TryRng for Scripted {
        type Error = Infallible;

        fn try_next_u32(&mut self) -> Result<u32, Infallible> {
            unreachable!("HPKE asks for bytes")
        }

        fn try_next_u64(&mut self) -> Result<u64, Infallible> {
            unreachable!("HPKE asks for bytes")
        }

        fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
            let rest = self.0.split_off(out.len());
            out.copy_from_slice(&self.0);
            self.0 = rest;
            Ok(())
        }
    }

    impl TryCryptoRng for Scripted {}

    struct Vector {
        name: String,
        aead: u16,
        info: Vec<u8>,
        ikm: Vec<u8>,
        recipient: P256PublicKey,
        scalar: [u8; 32],
        encapsulated: [u8; 65],
        key: Vec<u8>,
        nonce: Vec<u8>,
        plaintext: Vec<u8>,
        aad: Vec<u8>,
        ciphertext: Vec<u8>,
    }

    fn vectors() -> Vec<Vector> {
        let file = include_str!("../../../tests/vectors/standards/hpke-p256-sha256-base.json");
        let file: serde_json::Value = serde_json::from_str(file).unwrap();
        let cases = file["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 3);
        cases
            .iter()
            .map(|case| {
                let bytes = |field: &str| hex::decode(case[field].as_str().unwrap()).unwrap();
                Vector {
                    name: case["name"].as_str().unwrap().to_owned(),
                    aead: case["aead"].as_u64().unwrap().try_into().unwrap(),
                    info: bytes("info"),
                    ikm: bytes("ikmE"),
                    recipient: P256PublicKey::from_sec1(&bytes("pkRm")).unwrap(),
                    scalar: bytes("skRm").try_into().unwrap(),
                    encapsulated: bytes("enc").try_into().unwrap(),
                    key: bytes("key"),
                    nonce: bytes("base_nonce"),
                    plaintext: bytes("pt"),
                    aad: bytes("aad"),
                    ciphertext: bytes("ct"),
                }
            })
            .collect()
    }

    /// What a device does: the x-coordinate of `encapsulated · scalar`.
    fn ecdh(scalar: &[u8; 32], encapsulated: &[u8; 65]) -> [u8; 32] {
        check_encapsulated(encapsulated).unwrap();
        let secret = p256::SecretKey::from_slice(scalar).unwrap();
        let point = p256::PublicKey::from_sec1_bytes(encapsulated).unwrap();
        let shared = p256::ecdh::diffie_hellman(secret.to_nonzero_scalar(), point.as_affine());
        (*shared.raw_secret_bytes()).into()
    }

    fn context() -> WrapContext {
        let keyring: KeyringId = "edge".parse().unwrap();
        let generation = GenerationNumber(1);
        WrapContext {
            key_id: KeyId::mint(&keyring, generation, [7; 16]),
            keyring,
            generation,
            root_kind: RootKind::Pkcs11,
            root_id: RootId::new(&[9; 16]).unwrap(),
        }
    }

    #[test]
    fn key_schedule_gives_the_rfcs_key_and_nonce() {
        for vector in vectors() {
            let shared = ecdh(&vector.scalar, &vector.encapsulated);
            let (key, nonce) =
                key_schedule(&shared, &vector.recipient, &vector.info, &vector.encapsulated, vector.aead);
            assert_eq!(nonce.as_slice(), vector.nonce, "{}", vector.name);
            if vector.key.len() == key.len() {
                assert_eq!(key.as_slice(), vector.key, "{}", vector.name);
            } else {
                // AES-128-GCM: the length asked for is part of the derivation, so our 32-byte key is not comparable.
                assert_eq!(vector.aead, 1, "{}", vector.name);
            }
        }
    }

    #[test]
    fn software_after_the_devices_ecdh_opens_the_cfrgs_message() {
        let vector = vectors().into_iter().find(|vector| vector.aead == AES_256_GCM).unwrap();
        let shared = ecdh(&vector.scalar, &vector.encapsulated);
        let (key, nonce) = key_schedule(&shared, &vector.recipient, &vector.info, &vector.encapsulated, AES_256_GCM);
        let (ciphertext, tag) = vector.ciphertext.split_last_chunk::<16>().unwrap();
        let mut opened = ciphertext.to_vec();
        Aes256Gcm::new((&*key).into())
            .decrypt_inout_detached(&nonce.into(), &vector.aad, InOutBuf::from(opened.as_mut_slice()), tag.into())
            .unwrap();
        assert_eq!(opened, vector.plaintext);
    }

    #[test]
    fn hpke_crate_seals_and_opens_the_published_messages() {
        fn check<A: hpke::aead::Aead>(vector: &Vector) {
            let recipient = <DhP256HkdfSha256 as Kem>::PublicKey::from_bytes(vector.recipient.as_sec1()).unwrap();
            let mut rng = Scripted(vector.ikm.clone());
            let (encapsulated, ciphertext) = hpke::single_shot_seal_with_rng::<A, Kdf, DhP256HkdfSha256>(
                &OpModeS::Base,
                &recipient,
                &vector.info,
                &vector.plaintext,
                &vector.aad,
                &mut rng,
            )
            .unwrap();
            assert_eq!(encapsulated.to_bytes().as_slice(), vector.encapsulated, "{}", vector.name);
            assert_eq!(ciphertext, vector.ciphertext, "{}", vector.name);

            let private = <DhP256HkdfSha256 as Kem>::PrivateKey::from_bytes(&vector.scalar).unwrap();
            let opened = hpke::single_shot_open::<A, Kdf, DhP256HkdfSha256>(
                &OpModeR::Base,
                &private,
                &encapsulated,
                &vector.info,
                &vector.ciphertext,
                &vector.aad,
            )
            .unwrap();
            assert_eq!(opened, vector.plaintext, "{}", vector.name);
        }
        for vector in vectors() {
            match vector.aead {
                1 => check::<AesGcm128>(&vector),
                2 => check::<AesGcm256>(&vector),
                // The key schedule only: ChaCha20-Poly1305 is not compiled in.
                other => assert_eq!(other, 3),
            }
        }
    }

    #[test]
    fn sealed_kek_opens_with_the_private_key_and_after_a_devices_ecdh() {
        for vector in vectors() {
            let context = context();
            let kek = Kek::take(&mut [0x42; 32]);
            let Construction::HpkeP256 { encapsulated, sealed } =
                vector.recipient.seal(&context, &kek, &mut Scripted(vector.ikm))
            else {
                panic!("a public key seals by HPKE");
            };
            let offline = open_with_private_key(&vector.scalar, &context, &encapsulated, &sealed).unwrap();
            assert_eq!(offline.expose(), kek.expose());
            let shared = ecdh(&vector.scalar, &encapsulated);
            let on_device =
                open_with_shared_secret(&shared, &vector.recipient, &context.to_bytes(), &encapsulated, &sealed)
                    .unwrap();
            assert_eq!(on_device.expose(), kek.expose());
        }
    }

    #[test]
    fn another_recipient_in_the_key_schedule_is_not_authentic() {
        let [one, two, _] = vectors().try_into().ok().unwrap();
        let context = context();
        let kek = Kek::take(&mut [0x42; 32]);
        let Construction::HpkeP256 { encapsulated, sealed } =
            one.recipient.seal(&context, &kek, &mut Scripted(one.ikm))
        else {
            panic!("a public key seals by HPKE");
        };
        let shared = ecdh(&one.scalar, &encapsulated);
        let refused =
            open_with_shared_secret(&shared, &two.recipient, &context.to_bytes(), &encapsulated, &sealed).unwrap_err();
        assert_eq!(refused, WrapError::NotAuthentic);
    }

    #[test]
    fn scalars_that_are_no_private_key_are_malformed() {
        let order = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
        let [one, ..] = vectors().try_into().ok().map(|all: [Vector; 3]| all).unwrap();
        for scalar in [[0; 32], [0xff; 32], hex::decode(order).unwrap().try_into().unwrap()] {
            let refused = open_with_private_key(&scalar, &context(), &one.encapsulated, &[0; 48]).unwrap_err();
            assert_eq!(refused, WrapError::Malformed);
        }
    }

    #[test]
    fn pem_and_point_name_the_same_recovery_root() {
        use p256::pkcs8::{EncodePublicKey, LineEnding};
        for vector in vectors() {
            let pem = p256::PublicKey::from_sec1_bytes(vector.recipient.as_sec1())
                .unwrap()
                .to_public_key_pem(LineEnding::LF)
                .unwrap();
            let key = P256PublicKey::from_pem(&pem).unwrap();
            assert_eq!(key, vector.recipient);
            assert_eq!(key.recovery_root_id(), vector.recipient.recovery_root_id());
        }
    }
}
