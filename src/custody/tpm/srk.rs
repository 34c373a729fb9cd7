//! The storage root key: parent of every CMK, and the key that sessions are salted to.
//!
//! Known by its name, which was pinned when the auth file was made. A TPM that was cleared has another one for ever.

use std::fmt;
use std::str::FromStr;

use tss_esapi::Context;
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::constants::response_code::Tss2ResponseCodeKind;
use tss_esapi::handles::{KeyHandle, PersistentTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::structures::{
    EccPoint, Public, PublicBuilder, PublicEccParametersBuilder, PublicKeyRsa, PublicRsaParametersBuilder, RsaExponent,
    SymmetricDefinitionObject,
};

use super::failure::Failure;

/// Where the TCG's provisioning guidance puts it.
pub(super) const PERSISTENT: u32 = 0x8100_0001;

/// A name: `u16 hash algorithm ‖ digest` of the public area. Shown in hex.
#[derive(Clone, PartialEq, Eq)]
pub struct SrkName(Vec<u8>);

impl SrkName {
    pub(super) fn new(bytes: &[u8]) -> Option<Self> {
        // SHA-256, which every TPM 2.0 has, to SHA-512.
        (34..=66).contains(&bytes.len()).then(|| Self(bytes.to_vec()))
    }

    /// What status and messages call this TPM: the first half of a SHA-256 name's digest.
    pub(super) fn serial(&self) -> String {
        self.0[2..18].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for SrkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SrkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SrkName({self})")
    }
}

impl FromStr for SrkName {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if !text.is_ascii() || !text.len().is_multiple_of(2) {
            return Err(());
        }
        let bytes: Result<Vec<u8>, _> =
            (0..text.len() / 2).map(|index| u8::from_str_radix(&text[2 * index..2 * index + 2], 16)).collect();
        bytes.ok().and_then(|bytes| Self::new(&bytes)).ok_or(())
    }
}

/// The key at the usual place, if there is one. Its public area and its name have been held together by the TSS.
pub(super) fn find(context: &mut Context) -> Result<Option<KeyHandle>, Failure> {
    let place = PersistentTpmHandle::new(PERSISTENT).map_err(Failure::from)?;
    match context.execute_without_session(|context| context.tr_from_tpm_public(TpmHandle::Persistent(place))) {
        Ok(handle) => Ok(Some(handle.into())),
        Err(tss_esapi::Error::Tss2Error(code))
            if matches!(code.kind(), Some(Tss2ResponseCodeKind::Handle | Tss2ResponseCodeKind::Value)) =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

pub(super) fn name(context: &mut Context, srk: KeyHandle) -> Result<SrkName, Failure> {
    let name = context.tr_get_name(srk.into())?;
    SrkName::new(name.value()).ok_or_else(|| Failure::device("the TPM's storage root key has no proper name"))
}

/// What a new one is made from: the TCG's template, on P-256 where the TPM has it. The same seed gives the same key again.
pub(super) fn template(ecc: bool) -> Result<Public, Failure> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_restricted(true)
        .with_decrypt(true)
        .build()?;
    let builder =
        PublicBuilder::new().with_name_hashing_algorithm(HashingAlgorithm::Sha256).with_object_attributes(attributes);
    let cipher = SymmetricDefinitionObject::AES_128_CFB;
    let builder = if ecc {
        builder
            .with_public_algorithm(PublicAlgorithm::Ecc)
            .with_ecc_parameters(
                PublicEccParametersBuilder::new_restricted_decryption_key(cipher, EccCurve::NistP256).build()?,
            )
            .with_ecc_unique_identifier(EccPoint::default())
    } else {
        builder
            .with_public_algorithm(PublicAlgorithm::Rsa)
            .with_rsa_parameters(
                PublicRsaParametersBuilder::new_restricted_decryption_key(
                    cipher,
                    RsaKeyBits::Rsa2048,
                    RsaExponent::default(),
                )
                .build()?,
            )
            .with_rsa_unique_identifier(PublicKeyRsa::default())
    };
    Ok(builder.build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_reads_back_and_nothing_shorter_is_one() {
        let text = format!("000b{}", "0a".repeat(32));
        let name: SrkName = text.parse().unwrap();
        assert_eq!(name.to_string(), text);
        assert_eq!(name.serial(), "0a".repeat(16));
        for bad in ["", "000b", &text[1..], &format!("{text}zz"), &format!("000b{}", "0a".repeat(80)), "é"] {
            assert!(bad.parse::<SrkName>().is_err(), "{bad:?}");
        }
    }
}
