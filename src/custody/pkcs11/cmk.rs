//! CMK objects: how they are made, found by root ID, listed and destroyed, and that they seal and open KEKs.

use std::fmt;

use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use keystead_core::hpke_p256::P256PublicKey;
use keystead_core::wrap::{Construction, OaepHash};
use keystead_core::{Kek, RootId, WrapContext};
use zeroize::Zeroizing;

use super::aes_gcm::IvMode;
use super::failure::Failure;
use super::session::Session;
use super::{aes_gcm, ecdh, epoch, rsa_oaep};
use crate::custody::contract::{CmkObject, CustodyError};

/// How new CMKs wrap, with what the token wants of the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mechanism {
    AesGcm(IvMode),
    EcdhP256,
    RsaOaep(OaepHash),
}

/// A CMK's handles, good in the session that found them.
#[derive(Debug, Clone)]
pub(super) enum Cmk {
    Aes(ObjectHandle),
    Ec { private: ObjectHandle, point: P256PublicKey },
    Rsa { private: ObjectHandle, public: ObjectHandle },
}

/// What all keys of ours have in common.
pub(super) struct KeySpec<'a> {
    /// A token object, or one that dies with its session.
    pub(super) token: bool,
    pub(super) id: &'a [u8],
    pub(super) label: &'a str,
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AesGcm(mode) => write!(f, "aes-gcm ({mode})"),
            Self::EcdhP256 => f.write_str("ecdh-p256"),
            Self::RsaOaep(OaepHash::Sha256) => f.write_str("rsa-oaep (SHA-256)"),
            Self::RsaOaep(OaepHash::Sha1) => f.write_str("rsa-oaep (SHA-1)"),
        }
    }
}

impl KeySpec<'_> {
    /// For the half that must never leave the token.
    pub(super) fn secret(&self) -> Vec<Attribute> {
        vec![
            Attribute::Token(self.token),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Id(self.id.to_vec()),
            Attribute::Label(self.label.into()),
        ]
    }

    /// For a public half. Private in PKCS#11's sense: without a login it can neither be seen nor replaced.
    pub(super) fn public(&self) -> Vec<Attribute> {
        vec![
            Attribute::Token(self.token),
            Attribute::Private(true),
            Attribute::Id(self.id.to_vec()),
            Attribute::Label(self.label.into()),
        ]
    }
}

impl Cmk {
    /// Makes a key for `mechanism` and checks that the token keeps what was asked: one that hands keys out is refused.
    pub(super) fn generate(
        session: &Session,
        mechanism: Mechanism,
        spec: &KeySpec<'_>,
        rsa_bits: u64,
    ) -> Result<Self, Failure> {
        let (made, halves) = match mechanism {
            Mechanism::AesGcm(_) => {
                let key = aes_gcm::generate(session, spec)?;
                (Ok(Self::Aes(key)), vec![key])
            }
            Mechanism::EcdhP256 => {
                let (public, private) = ecdh::generate(session, spec)?;
                let made = ecdh::point(session, public).map(|point| Self::Ec { private, point });
                (made, vec![private, public])
            }
            Mechanism::RsaOaep(_) => {
                let (public, private) = rsa_oaep::generate(session, spec, rsa_bits)?;
                (Ok(Self::Rsa { private, public }), vec![private, public])
            }
        };
        made.and_then(|cmk| require_kept(session, cmk.secret()).map(|()| cmk)).inspect_err(|_| {
            for half in halves {
                // The error at hand says more than that its remains could not be removed.
                let _ = session.call().destroy_object(half);
            }
        })
    }

    /// `mechanism` is how this token wraps now; only its IV mode or hash matters here, the construction is the key's own.
    pub(super) fn seal(
        &self,
        session: &Session,
        mechanism: Mechanism,
        context: &WrapContext,
        kek: &Kek,
    ) -> Result<Construction, Failure> {
        let bytes = context.to_bytes();
        match (self, mechanism) {
            (Self::Aes(key), Mechanism::AesGcm(mode)) => aes_gcm::seal(session, *key, mode, &bytes, kek),
            (Self::Aes(key), _) => aes_gcm::seal(session, *key, IvMode::Caller, &bytes, kek),
            (Self::Ec { point, .. }, _) => Ok(ecdh::seal(point, context, kek)),
            (Self::Rsa { public, .. }, Mechanism::RsaOaep(hash)) => rsa_oaep::seal(session, *public, hash, &bytes, kek),
            (Self::Rsa { public, .. }, _) => rsa_oaep::seal(session, *public, OaepHash::Sha256, &bytes, kek)
                .or_else(|_| rsa_oaep::seal(session, *public, OaepHash::Sha1, &bytes, kek)),
        }
    }

    pub(super) fn open(&self, session: &Session, context: &WrapContext, wrap: &Construction) -> Result<Kek, Failure> {
        let bytes = context.to_bytes();
        match (self, wrap) {
            (Self::Aes(key), Construction::AesGcm { iv, sealed }) => aes_gcm::open(session, *key, &bytes, iv, sealed),
            (Self::Ec { private, point }, Construction::HpkeP256 { encapsulated, sealed }) => {
                ecdh::open(session, *private, point, &bytes, encapsulated, sealed)
            }
            (Self::Rsa { private, .. }, Construction::RsaOaep { hash, block, sealed }) => {
                rsa_oaep::open(session, *private, *hash, &bytes, block, sealed)
            }
            // A wrap made by another kind of key belongs elsewhere.
            _ => Err(Failure::Final(CustodyError::WrapRejected)),
        }
    }

    /// The object that must never leave the token.
    pub(super) fn secret(&self) -> ObjectHandle {
        match self {
            Self::Aes(key) => *key,
            Self::Ec { private, .. } | Self::Rsa { private, .. } => *private,
        }
    }
}

pub(super) fn label(context: &WrapContext) -> String {
    CmkObject::label_of(&context.keyring, context.generation)
}

pub(super) fn missing(root: &RootId) -> Failure {
    Failure::Final(CustodyError::CmkMissing { root_id: root.to_string() })
}

/// The CMK of that root, if the token, logged in, has one.
pub(super) fn find(session: &Session, root: &RootId) -> Result<Option<Cmk>, Failure> {
    let (mut aes, mut ec, mut rsa, mut publics) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for object in objects(session, root)? {
        let (class, kind) = class_and_type(session, object)?;
        match (class, kind) {
            (Some(ObjectClass::SECRET_KEY), Some(KeyType::AES)) => aes.push(object),
            (Some(ObjectClass::PRIVATE_KEY), Some(KeyType::EC)) => ec.push(object),
            (Some(ObjectClass::PRIVATE_KEY), Some(KeyType::RSA)) => rsa.push(object),
            (Some(ObjectClass::PUBLIC_KEY), _) => publics.push(object),
            _ => {}
        }
    }
    let public = publics.first().copied();
    match (aes.as_slice(), ec.as_slice(), rsa.as_slice()) {
        ([], [], []) => session.believe_nothing_found().map(|()| None),
        ([key], [], []) => Ok(Some(Cmk::Aes(*key))),
        ([], [private], []) => {
            let point = ecdh::point(session, public.unwrap_or(*private))?;
            Ok(Some(Cmk::Ec { private: *private, point }))
        }
        ([], [], [private]) => {
            let public = public.ok_or_else(|| Failure::device(format!("CMK {root} has lost its public half")))?;
            Ok(Some(Cmk::Rsa { private: *private, public }))
        }
        _ => Err(Failure::device(format!("the token has more than one key with the ID {root}"))),
    }
}

/// The CMKs on the token; in the order of their root IDs.
pub(super) fn list(session: &Session) -> Result<Vec<CmkObject>, Failure> {
    let mut cmks = Vec::new();
    for class in [ObjectClass::SECRET_KEY, ObjectClass::PRIVATE_KEY] {
        let template = [Attribute::Token(true), Attribute::Class(class)];
        for object in session.call().find_objects(&template)? {
            let attributes = session.call().get_attributes(object, &[AttributeType::Label, AttributeType::Id])?;
            let label = attributes.iter().find_map(|attribute| match attribute {
                Attribute::Label(label) => Some(String::from_utf8_lossy(label).into_owned()),
                _ => None,
            });
            let label = label.filter(|label| label.starts_with(CmkObject::LABEL_PREFIX));
            let id = attributes.iter().find_map(|attribute| match attribute {
                Attribute::Id(id) => RootId::new(id).ok(),
                _ => None,
            });
            cmks.extend(id.zip(label).map(|(root_id, label)| CmkObject { root_id, label }));
        }
    }
    if cmks.is_empty() {
        session.believe_nothing_found()?;
    }
    cmks.sort_by(|a, b| a.root_id.cmp(&b.root_id));
    Ok(cmks)
}

/// Destroys what there is of a CMK.
pub(super) fn destroy(session: &Session, root: &RootId) -> Result<(), Failure> {
    let objects = objects(session, root)?;
    if objects.is_empty() {
        return session.believe_nothing_found();
    }
    for object in objects {
        session.call().destroy_object(object)?;
    }
    session.destroyed_object()
}

/// Token objects with that ID, epoch secrets excepted: no root ID must reach those.
fn objects(session: &Session, root: &RootId) -> Result<Vec<ObjectHandle>, Failure> {
    let template = [Attribute::Token(true), Attribute::Id(root.as_bytes().to_vec())];
    let mut objects = session.call().find_objects(&template)?;
    if epoch::is_epoch_id(root.as_bytes()) {
        objects.clear();
    }
    Ok(objects)
}

pub(super) fn class_and_type(
    session: &Session,
    object: ObjectHandle,
) -> Result<(Option<ObjectClass>, Option<KeyType>), Failure> {
    let attributes = session.call().get_attributes(object, &[AttributeType::Class, AttributeType::KeyType])?;
    let class = attributes.iter().find_map(|a| if let Attribute::Class(class) = a { Some(*class) } else { None });
    let kind = attributes.iter().find_map(|a| if let Attribute::KeyType(kind) = a { Some(*kind) } else { None });
    Ok((class, kind))
}

/// Refuses a token that made the key extractable although told not to.
pub(super) fn require_kept(session: &Session, key: ObjectHandle) -> Result<(), Failure> {
    let attributes = session.call().get_attributes(key, &[AttributeType::Sensitive, AttributeType::Extractable])?;
    let sensitive = attributes.iter().any(|a| matches!(a, Attribute::Sensitive(true)));
    let kept = attributes.iter().any(|a| matches!(a, Attribute::Extractable(false)));
    if sensitive && kept {
        return Ok(());
    }
    Err(Failure::unsupported("it does not keep a key non-extractable that was made so"))
}

/// A KEK as a token decrypted it.
pub(super) fn take_kek(bytes: Zeroizing<Vec<u8>>) -> Result<Kek, Failure> {
    let mut kek = Zeroizing::new([0; Kek::LEN]);
    if bytes.len() != kek.len() {
        return Err(Failure::Suspect("the token opened a wrap to something that is no KEK".into()));
    }
    kek.copy_from_slice(&bytes);
    Ok(Kek::take(&mut kek))
}
