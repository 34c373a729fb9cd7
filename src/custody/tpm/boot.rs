//! Measured boot at work: a policy session for a CMK that opens after an approved boot only.
//!
//! Which approval fits is found out in software, so that a refusal can say which PCRs differ; whether it holds, the TPM says.

use std::fs;
use std::path::{Path, PathBuf};

use keystead_core::hpke_p256::P256PublicKey;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{Digest, EccParameter, EccSignature, Name, Nonce, Public, Signature, VerifiedTicket};
use tss_esapi::traits::UnMarshall;

use super::approval::{Approval, MAX_LEN, Signed};
use super::connection::Connection;
use super::failure::Failure;
use super::pcr::{PcrSet, PcrValues};
use super::policy;
use crate::custody::contract::CustodyError;
use crate::custody::settings::BootPolicy;

/// Files in the approvals' folder that are looked at.
const MAX_FILES: usize = 64;

/// What new CMKs demand of a boot.
#[derive(Debug, Clone)]
pub(super) struct Demand {
    pub(super) signer: P256PublicKey,
    pub(super) series: u64,
}

impl Demand {
    /// # Errors
    /// `PinUnreadable`-like refusals do not fit here: `Unsupported` names the file and what is wrong with it.
    pub(super) fn read(settings: &BootPolicy) -> Result<Self, Failure> {
        let shown = settings.signer.display();
        let pem = fs::read_to_string(&settings.signer)
            .map_err(|error| Failure::unsupported(format!("the boot signer's public key: {shown}: {error}")))?;
        let signer = P256PublicKey::from_pem(&pem)
            .map_err(|error| Failure::unsupported(format!("the boot signer's public key: {shown}: {error}")))?;
        Ok(Self { signer, series: settings.series })
    }
}

/// Every approval in `folder` that can be read, with its file. One that cannot is logged and passed over.
pub fn approvals(folder: &Path) -> std::io::Result<Vec<(PathBuf, Approval)>> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    let mut found = Vec::new();
    for path in files.into_iter().take(MAX_FILES) {
        let small = fs::metadata(&path).is_ok_and(|data| data.is_file() && data.len() <= MAX_LEN as u64);
        match small.then(|| fs::read_to_string(&path)) {
            Some(Ok(text)) => match Approval::parse(&text) {
                Ok(approval) => found.push((path, approval)),
                Err(error) => tracing::warn!(file = %path.display(), %error, "no approval of a boot"),
            },
            _ => tracing::warn!(file = %path.display(), "no approval of a boot: it cannot be read, or is too long"),
        }
    }
    Ok(found)
}

/// PCRs of `approval` that hold something else now.
pub fn differing(approval: &Approval, now: &PcrValues) -> Vec<u8> {
    let same = |pcr: &u8, value: &[u8; 32]| now.iter().any(|(other, current)| other == pcr && current == value);
    approval.values.iter().filter(|(pcr, value)| !same(pcr, value)).map(|(pcr, _)| *pcr).collect()
}

/// A session that satisfies `auth_policy` but for the auth value. It is good for one command; flush it afterwards.
pub(super) fn session(
    connection: &mut Connection,
    auth_policy: &[u8; 32],
    folder: &Path,
) -> Result<AuthSession, Failure> {
    let approval = approved(connection, auth_policy, folder)?;
    let Some(signed) = &approval.signed else { return Err(not_approved("the approval is not signed".into())) };
    let ticket = ticket(connection, &approval, signed)?;
    let session = connection.policy_session()?;
    let outcome = satisfy(connection, session, &approval, signed, ticket);
    if outcome.is_err() {
        connection.flush_session(session);
    }
    outcome.map(|()| session)
}

fn satisfy(
    connection: &mut Connection,
    session: AuthSession,
    approval: &Approval,
    signed: &Signed,
    ticket: VerifiedTicket,
) -> Result<(), Failure> {
    let policy = PolicySession::try_from(session)?;
    let pcrs = approval.pcrs.for_tss()?;
    connection.plain(|context| context.policy_pcr(policy, Digest::default(), pcrs))?;
    let approved = Digest::try_from(approval.policy().as_slice())?;
    let policy_ref = Nonce::try_from(approval.policy_ref().as_slice())?;
    let name = [&[0, 0x0b][..], &sha2_digest(&policy::signer_public(&signed.signer))].concat();
    let name = Name::try_from(name)?;
    connection
        .plain(|context| context.policy_authorize(policy, approved, policy_ref, &name, ticket))
        .map_err(|failure| not_approved(format!("PCRs changed just now ({})", failure.into_error())))?;
    connection.plain(|context| context.policy_auth_value(policy))
}

fn sha2_digest(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).into()
}

/// The approval for this very policy whose PCR values are those of now.
fn approved(connection: &mut Connection, auth_policy: &[u8; 32], folder: &Path) -> Result<Approval, Failure> {
    let shown = folder.display();
    let found = approvals(folder).map_err(|error| not_approved(format!("{shown}: {error}")))?;
    let is_for = |approval: &Approval| {
        let signer = approval.signed.as_ref().map(|signed| &signed.signer);
        signer.is_some_and(|signer| policy::auth_policy(signer, &approval.policy_ref()) == *auth_policy)
    };
    let mut candidates: Vec<Approval> = found.into_iter().map(|(_, approval)| approval).filter(is_for).collect();
    // A forged one does not stand before a genuine one. Which it is, the TPM says.
    candidates.sort_by_key(|approval| approval.verify().is_err());
    let mut nearest: Option<Vec<u8>> = None;
    let mut read: Vec<(PcrSet, PcrValues)> = Vec::new();
    for approval in candidates {
        let values = match read.iter().find(|(set, _)| *set == approval.pcrs) {
            Some((_, values)) => values.clone(),
            None => {
                let values = approval.pcrs.read(connection)?;
                read.push((approval.pcrs.clone(), values.clone()));
                values
            }
        };
        let differing = differing(&approval, &values);
        if differing.is_empty() {
            return Ok(approval);
        }
        if nearest.as_ref().is_none_or(|best| differing.len() < best.len()) {
            nearest = Some(differing);
        }
    }
    Err(not_approved(match nearest {
        None => format!("{shown} holds no approval for this key's signer, keyring and series"),
        Some(pcrs) => {
            let pcrs: Vec<String> = pcrs.iter().map(u8::to_string).collect();
            format!("PCR {} of this boot differ from what was approved", pcrs.join(", "))
        }
    }))
}

/// The TPM's own word that the signature is the signer's.
fn ticket(connection: &mut Connection, approval: &Approval, signed: &Signed) -> Result<VerifiedTicket, Failure> {
    let public = Public::unmarshall(&policy::signer_public(&signed.signer))?;
    let hash = Digest::try_from(policy::approval_hash(&approval.policy(), &approval.policy_ref()).as_slice())?;
    let (r, s) = signed.signature.split_at(32);
    let signature =
        EccSignature::create(HashingAlgorithm::Sha256, EccParameter::try_from(r)?, EccParameter::try_from(s)?)?;
    let key = connection.plain(|context| context.load_external_public(public, Hierarchy::Owner))?;
    let verified = connection.plain(|context| context.verify_signature(key, hash, Signature::EcDsa(signature)));
    connection.plain(|context| context.flush_context(key.into()))?;
    verified
        .map_err(|failure| not_approved(format!("the approval's signature is not valid ({})", failure.into_error())))
}

fn not_approved(detail: String) -> Failure {
    Failure::Final(CustodyError::BootNotApproved { detail })
}
