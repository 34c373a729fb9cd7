//! CMKs: keys that the TPM makes and that live, encrypted by it, in the wraps they seal.
//!
//! A KEK is sealed in software to a P-256 key's public half (HPKE); the TPM does the ECDH that opens it. A TPM without ECC
//! gets RSA-2048 with OAEP. One of measured boot opens only in a policy session ([`super::boot`]); its public half says of
//! which policy. A public area that is not exactly of our making is not loaded at all.

use std::path::Path;

use getrandom::SysRng;
use keystead_core::hpke_p256::{self, P256PublicKey};
use keystead_core::wrap::{self, Construction, TpmKey, WrapError};
use keystead_core::{Kek, WrapContext};
use rand_core::UnwrapErr;
use tss_esapi::Context;
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::structures::{
    Data, Digest, EccParameter, EccPoint, EccScheme, HashScheme, KeyDerivationFunctionScheme, Public, PublicBuilder,
    PublicEccParametersBuilder, PublicKeyRsa, PublicRsaParametersBuilder, RsaDecryptionScheme, RsaExponent, RsaScheme,
};
use tss_esapi::traits::Marshall;
use zeroize::Zeroizing;

use super::boot;
use super::connection::Connection;
use super::failure::Failure;

/// What new CMKs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mechanism {
    EcdhP256,
    RsaOaep,
}

impl Mechanism {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::EcdhP256 => "ecdh-p256",
            Self::RsaOaep => "rsa-oaep (SHA-256)",
        }
    }
}

/// A key pair whose private half only its TPM can load.
#[derive(Debug, Clone)]
pub(super) struct Cmk {
    key: TpmKey,
    public: PublicHalf,
    /// What it demands besides the auth value.
    policy: Option<[u8; 32]>,
}

#[derive(Debug, Clone)]
enum PublicHalf {
    P256(P256PublicKey),
    Rsa2048,
}

impl Cmk {
    pub(super) fn generate(
        connection: &mut Connection,
        mechanism: Mechanism,
        policy: Option<[u8; 32]>,
    ) -> Result<Self, Failure> {
        let (public, private) = connection.create_key(template(mechanism, policy)?)?;
        let key = TpmKey { public: public.marshall()?, private: private.value().to_vec() };
        Self::parse(key).ok_or_else(|| Failure::unsupported("it made a key that is not what was asked for"))
    }

    /// Only what [`Self::generate`] makes: fixed to this TPM, made in it, opened by its auth value, perhaps under a policy.
    fn parse(key: TpmKey) -> Option<Self> {
        let mut fields = Fields(&key.public);
        let algorithm = fields.u16()?;
        if fields.u16()? != ALG_SHA256 {
            return None;
        }
        let policy = match (fields.u32()?, fields.sized()?) {
            (ATTRIBUTES, []) => None,
            (ATTRIBUTES_BOOT, policy) => Some(policy.try_into().ok()?),
            _ => return None,
        };
        let public = match algorithm {
            ALG_ECC => {
                // No cipher, no scheme, P-256, no key derivation.
                if [fields.u16()?, fields.u16()?, fields.u16()?, fields.u16()?] != [ALG_NULL, ALG_NULL, 3, ALG_NULL] {
                    return None;
                }
                let mut point = [0; 65];
                point[0] = 4;
                for half in [1..33, 33..65] {
                    let coordinate = fields.sized()?;
                    let padding = 32_usize.checked_sub(coordinate.len())?;
                    point[half][padding..].copy_from_slice(coordinate);
                }
                PublicHalf::P256(P256PublicKey::from_sec1(&point).ok()?)
            }
            ALG_RSA => {
                // No cipher, no scheme, 2048 bits, the usual exponent.
                let parameters = [fields.u16()?, fields.u16()?, fields.u16()?];
                if parameters != [ALG_NULL, ALG_NULL, 2048] || fields.u32()? != 0 || fields.sized()?.len() != 256 {
                    return None;
                }
                PublicHalf::Rsa2048
            }
            _ => return None,
        };
        fields.0.is_empty().then_some(Self { key, public, policy })
    }

    pub(super) fn seal(
        &self,
        connection: &mut Connection,
        context: &WrapContext,
        kek: &Kek,
    ) -> Result<Construction, Failure> {
        let key = self.key.clone();
        match &self.public {
            PublicHalf::P256(point) => match point.seal(context, kek, &mut UnwrapErr(SysRng)) {
                Construction::HpkeP256 { encapsulated, sealed } => {
                    Ok(Construction::TpmEcdh { key, encapsulated, sealed })
                }
                _ => Err(Failure::device("a public key did not seal by HPKE")),
            },
            PublicHalf::Rsa2048 => {
                let message = wrap::oaep_message(&context.to_bytes(), kek);
                let handle = connection.load(&self.key)?;
                let message = PublicKeyRsa::try_from(message.as_slice())?;
                let block = connection.call(|context| context.rsa_encrypt(handle, message, oaep(), Data::default()))?;
                let block = block.value().try_into().map_err(|_| Failure::device("an OAEP block is too short"))?;
                Ok(Construction::TpmRsaOaep { key, block: Box::new(block) })
            }
        }
    }

    /// One command that uses the private half.
    fn use_key<T>(
        &self,
        connection: &mut Connection,
        approvals: &Path,
        command: impl FnOnce(&mut Context) -> tss_esapi::Result<T>,
    ) -> Result<T, Failure> {
        let Some(policy) = &self.policy else { return connection.call(command) };
        let session = boot::session(connection, policy, approvals)?;
        let answer = connection.call_in(session, command);
        connection.flush_session(session);
        answer
    }

    fn open_ecdh(
        &self,
        connection: &mut Connection,
        approvals: &Path,
        context: &WrapContext,
        encapsulated: &[u8; 65],
        sealed: &[u8; 48],
    ) -> Result<Kek, Failure> {
        let PublicHalf::P256(point) = &self.public else { return Err(Failure::rejected()) };
        hpke_p256::check_encapsulated(encapsulated).map_err(|_| Failure::rejected())?;
        let handle = connection.load(&self.key)?;
        let theirs =
            EccPoint::new(EccParameter::try_from(&encapsulated[1..33])?, EccParameter::try_from(&encapsulated[33..])?);
        let answer = self.use_key(connection, approvals, |context| context.ecdh_z_gen(handle, theirs))?;
        let x = answer.x().value();
        let mut shared = Zeroizing::new([0; 32]);
        let padding =
            shared.len().checked_sub(x.len()).ok_or_else(|| Failure::Suspect("a point is too long".into()))?;
        shared[padding..].copy_from_slice(x);
        connection.auth_proven = true;
        hpke_p256::open_with_shared_secret(&shared, point, &context.to_bytes(), encapsulated, sealed)
            .map_err(|error| Failure::Suspect(error.to_string()))
    }

    fn open_rsa(
        &self,
        connection: &mut Connection,
        approvals: &Path,
        context: &WrapContext,
        block: &[u8; 256],
    ) -> Result<Kek, Failure> {
        let PublicHalf::Rsa2048 = &self.public else { return Err(Failure::rejected()) };
        let handle = connection.load(&self.key)?;
        let block = PublicKeyRsa::try_from(block.as_slice())?;
        let message =
            self.use_key(connection, approvals, |context| context.rsa_decrypt(handle, block, oaep(), Data::default()))?;
        connection.auth_proven = true;
        wrap::open_oaep_message(message.value(), &context.to_bytes())
            .map_err(|error| Failure::Suspect(error.to_string()))
    }
}

/// Opens a wrap with the key that it carries, and gives that key back: it is known to be good now.
pub(super) fn open(
    connection: &mut Connection,
    approvals: &Path,
    context: &WrapContext,
    wrap: &[u8],
) -> Result<(Kek, Cmk), Failure> {
    let construction = Construction::parse(wrap).map_err(|error| match error {
        WrapError::UnknownConstruction(_) => Failure::unsupported(error.to_string()),
        WrapError::Malformed | WrapError::NotAuthentic => Failure::rejected(),
    })?;
    let parsed = |key| Cmk::parse(key).ok_or_else(Failure::rejected);
    match construction {
        Construction::TpmEcdh { key, encapsulated, sealed } => {
            let cmk = parsed(key)?;
            Ok((cmk.open_ecdh(connection, approvals, context, &encapsulated, &sealed)?, cmk))
        }
        Construction::TpmRsaOaep { key, block } => {
            let cmk = parsed(key)?;
            Ok((cmk.open_rsa(connection, approvals, context, &block)?, cmk))
        }
        // A token's: it belongs elsewhere.
        _ => Err(Failure::rejected()),
    }
}

fn template(mechanism: Mechanism, policy: Option<[u8; 32]>) -> Result<Public, Failure> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        // With it set the auth value alone would do, whatever the policy says.
        .with_user_with_auth(policy.is_none())
        .with_admin_with_policy(policy.is_some())
        .with_no_da(true)
        .with_decrypt(true)
        .build()?;
    let policy = Digest::try_from(policy.as_ref().map_or(&[][..], |policy| policy.as_slice()))?;
    let builder = PublicBuilder::new()
        .with_auth_policy(policy)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes);
    let builder = match mechanism {
        Mechanism::EcdhP256 => builder
            .with_public_algorithm(PublicAlgorithm::Ecc)
            .with_ecc_parameters(
                PublicEccParametersBuilder::new()
                    .with_ecc_scheme(EccScheme::Null)
                    .with_curve(EccCurve::NistP256)
                    .with_is_signing_key(false)
                    .with_is_decryption_key(true)
                    .with_restricted(false)
                    .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
                    .build()?,
            )
            .with_ecc_unique_identifier(EccPoint::default()),
        Mechanism::RsaOaep => builder
            .with_public_algorithm(PublicAlgorithm::Rsa)
            .with_rsa_parameters(
                PublicRsaParametersBuilder::new()
                    .with_scheme(RsaScheme::Null)
                    .with_key_bits(RsaKeyBits::Rsa2048)
                    .with_exponent(RsaExponent::default())
                    .with_is_signing_key(false)
                    .with_is_decryption_key(true)
                    .with_restricted(false)
                    .build()?,
            )
            .with_rsa_unique_identifier(PublicKeyRsa::default()),
    };
    Ok(builder.build()?)
}

/// No label: TPMs want one to end in NUL, and the context is bound by what the block holds.
fn oaep() -> RsaDecryptionScheme {
    RsaDecryptionScheme::Oaep(HashScheme::new(HashingAlgorithm::Sha256))
}

/// TPM library part 2, "TPM_ALG_ID" and "TPMA_OBJECT".
const ALG_RSA: u16 = 0x0001;
const ALG_SHA256: u16 = 0x000b;
const ALG_NULL: u16 = 0x0010;
const ALG_ECC: u16 = 0x0023;
/// fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, decrypt.
const ATTRIBUTES: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 10 | 1 << 17;

/// As above with adminWithPolicy in place of userWithAuth: only the policy opens it.
const ATTRIBUTES_BOOT: u32 = ATTRIBUTES & !(1 << 6) | 1 << 7;

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from(self.u16()?) << 16 | u32::from(self.u16()?))
    }

    fn sized(&mut self) -> Option<&'a [u8]> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }
}
