//! `keystead recover`: a new store out of a backup and one durable root.
//!
//! First everything is opened and judged ([`open`]), touching nothing. Then ([`rebuild`]) each recovered KEK has its wrap on
//! the token here, a fresh generation is made, and the record is written once, under an epoch above every one the token
//! knows: before that write there is no store, after it there is a working one. What a kill leaves on the token is a
//! CMK that nothing names; nothing is destroyed but epoch secrets of records that are replaced.

use std::path::PathBuf;
use std::sync::Arc;

use keystead_core::hpke_p256::P256PublicKey;
use keystead_core::keyring::{
    Disabling, Generation, GenerationState, Keyring, RecoveryRoot, TokenIdentity, TransitionError,
};
use keystead_core::record;
use keystead_core::recovery::{Candidate, Loss, Origin, Recovered, Sighting, last_number};
use keystead_core::recovery_key::RecoveryKey;
use keystead_core::{
    FaultClass, GenerationNumber, Kek, KeyCommitment, KeyId, KeyringId, NodeId, RootId, RootKind, WrappedKek,
};

use super::clock::unix_now;
use super::epoch::{self, LoadError};
use super::init::InitCloud;
use super::offline;
use super::rotation::{RotationError, durable_wraps, prepare_generation, random};
use crate::custody::client::CustodyClient;
use crate::custody::contract::{CustodyError, EpochRef, TokenDescription};
use crate::store::{Mark, Store, StoreError};
use crate::upstream::contract::{Upstream, UpstreamError};

/// Roots a recovered generation carries along. More is no honest annotation's.
const MAX_WRAPS: usize = 16;

/// What is at hand to open wraps with: one of the three at least.
pub struct Openers<'a> {
    pub custody: Option<&'a CustodyClient>,
    /// The cloud key of the configuration.
    pub upstream: Option<&'a dyn Upstream>,
    pub private: Option<&'a RecoveryKey>,
    /// Commitments that a person vouches for.
    pub trusted: &'a [KeyCommitment],
}

/// What came out of a backup.
#[derive(Debug)]
pub struct Findings {
    pub opened: Vec<Opened>,
    pub lost: Vec<(Sighting, Loss)>,
}

/// One generation with its key.
#[derive(Debug)]
pub struct Opened {
    pub sighting: Sighting,
    pub recovered: Recovered,
}

/// What was found, without any key: for a person to read.
#[derive(Debug, Clone)]
pub struct Summary {
    pub opened: Vec<OpenedSummary>,
    pub lost: Vec<(Sighting, Loss)>,
}

/// One opened generation, without its key.
#[derive(Debug, Clone)]
pub struct OpenedSummary {
    pub sighting: Sighting,
    pub commitment: KeyCommitment,
    /// Kind of the root that opened it.
    pub via: RootKind,
    pub origin: Origin,
    /// Objects whose seeds it opens.
    pub opens: u64,
}

/// Where the new store begins.
#[derive(Debug, Clone)]
pub struct RebuildRequest {
    pub keyring: KeyringId,
    pub node: NodeId,
    /// Recovery root of the keyring from now on; `None` is `--no-recovery`.
    pub recovery: Option<P256PublicKey>,
    /// Highest epoch that a rescue file tells of.
    pub epoch_seen: u64,
    /// Highest number that a rescue file tells of.
    pub number_seen: GenerationNumber,
    /// Move a store that is there aside.
    pub replace_store: bool,
}

/// A rebuilt store.
#[derive(Debug)]
pub struct Rebuilt {
    pub keyring: Keyring,
    pub token: TokenDescription,
    /// Where the earlier record is now.
    pub set_aside: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error(
        "there is a store already. If it serves, leave it; if it is broken, say --replace-store: its record is moved aside, \
         not destroyed"
    )]
    StoreIsThere,
    #[error("nothing could be opened with the roots at hand; no store was written")]
    NothingOpened,
    #[error("the cloud does not open what it may hold the key of: {0}. Nothing was written")]
    Upstream(UpstreamError),
    #[error(transparent)]
    Custody(#[from] CustodyError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Generation(#[from] RotationError),
    #[error(transparent)]
    Load(#[from] LoadError),
}

impl From<TransitionError> for RecoverError {
    fn from(error: TransitionError) -> Self {
        Self::Generation(error.into())
    }
}

/// Opens what can be opened. Changes nothing anywhere.
///
/// # Errors
/// Only when custody or the cloud as a whole fails: going on would leave generations out that it could open later.
pub async fn open(sightings: Vec<Sighting>, openers: &Openers<'_>) -> Result<Findings, RecoverError> {
    let mut findings = Findings { opened: Vec::new(), lost: Vec::new() };
    for sighting in sightings {
        let (candidates, refusal) = candidates(&sighting, openers).await?;
        let outcome = match refusal {
            Some(refusal) if candidates.is_empty() => Err(Loss::WouldNotOpen(refusal)),
            _ => sighting.judge(candidates, openers.trusted),
        };
        match outcome {
            Ok(recovered) => findings.opened.push(Opened { sighting, recovered }),
            Err(loss) => findings.lost.push((sighting, loss)),
        }
    }
    findings.settle_numbers(openers.trusted);
    Ok(findings)
}

impl Opened {
    fn commitment(&self) -> KeyCommitment {
        self.recovered.candidate.kek.commitment()
    }
}

impl Findings {
    pub fn summary(&self) -> Summary {
        let opened = self.opened.iter().map(|each| OpenedSummary {
            sighting: each.sighting.clone(),
            commitment: each.commitment(),
            via: each.recovered.candidate.wrap.root_kind,
            origin: each.recovered.origin,
            opens: each.recovered.opens,
        });
        Summary { opened: opened.collect(), lost: self.lost.clone() }
    }

    /// A record holds a number once. Two key IDs of one number come from a store that was lost and begun anew, or from a
    /// forger. Vouched for comes before proven, proven before unproven, then the one that more objects depend on; but
    /// between two unproven ones the number of objects decides nothing, since a forger can write as many as he likes.
    fn settle_numbers(&mut self, trusted: &[KeyCommitment]) {
        let rank = |each: &Opened| match each.recovered.origin {
            _ if trusted.contains(&each.commitment()) => 0,
            Origin::Proven => 1,
            Origin::Unproven => 2,
        };
        let number = |each: &Opened| each.sighting.key_id.generation();
        self.opened.sort_by_key(|each| (number(each), rank(each), std::cmp::Reverse(each.recovered.opens)));
        let mut rest = std::mem::take(&mut self.opened).into_iter().peekable();
        while let Some(first) = rest.next() {
            let mut rivals: Vec<Opened> = Vec::new();
            while let Some(rival) = rest.next_if(|each| number(each) == number(&first)) {
                rivals.push(rival);
            }
            let contested = rank(&first) == 2 && !rivals.is_empty();
            let taken = Loss::NumberTaken(first.sighting.key_id.clone());
            for rival in rivals {
                let loss = if contested { Loss::NumberContested(rival.commitment()) } else { taken.clone() };
                self.lost.push((rival.sighting, loss));
            }
            if contested {
                let loss = Loss::NumberContested(first.commitment());
                self.lost.push((first.sighting, loss));
            } else {
                self.opened.push(first);
            }
        }
    }

    fn last_number(&self, seen: GenerationNumber) -> GenerationNumber {
        let opened = self.opened.iter().map(|each| each.sighting.key_id.generation());
        let lost = self.lost.iter().map(|(sighting, _)| sighting.key_id.generation());
        last_number(opened, lost.chain([seen]))
    }
}

/// Every key that a wrap of this generation gives, and the last refusal.
async fn candidates(
    sighting: &Sighting,
    openers: &Openers<'_>,
) -> Result<(Vec<Candidate>, Option<String>), RecoverError> {
    let mut found = Vec::new();
    let mut refusal = None;
    for annotation in &sighting.annotations {
        for (index, wrap) in annotation.wraps.iter().enumerate() {
            let kek = match open_wrap(sighting, wrap, openers).await? {
                Some(Ok(kek)) => kek,
                Some(Err(detail)) => {
                    refusal = Some(detail);
                    continue;
                }
                None => continue,
            };
            if kek.commitment() != annotation.commitment {
                refusal = Some("a wrap opens to another key than the one committed to beside it".into());
                continue;
            }
            let mut others = annotation.wraps.clone();
            let wrap = others.remove(index);
            found.push(Candidate { kek, wrap, others });
        }
    }
    Ok((found, refusal))
}

/// `None`: for a root that is not here.
async fn open_wrap(
    sighting: &Sighting,
    wrap: &WrappedKek,
    openers: &Openers<'_>,
) -> Result<Option<Result<Kek, String>>, RecoverError> {
    let context = sighting.wrap_context(wrap);
    let is_root = |upstream: &&dyn Upstream| {
        (wrap.root_kind, &wrap.root_id) == (upstream.identity().kind, &upstream.identity().root_id)
    };
    if let Some(upstream) = openers.upstream.filter(is_root) {
        return match upstream.unwrap(&wrap.bytes, &context).await {
            Ok(unwrapped) => Ok(Some(Ok(unwrapped.kek))),
            Err(error) if error.class == FaultClass::Corrupt => Ok(Some(Err(error.to_string()))),
            Err(error) => Err(RecoverError::Upstream(error)),
        };
    }
    match (wrap.root_kind, openers.custody, openers.private) {
        (RootKind::Pkcs11 | RootKind::Tpm, Some(custody), _) => match custody.unwrap(context, wrap.bytes.clone()).await
        {
            Ok(kek) => Ok(Some(Ok(kek))),
            Err(
                error @ (CustodyError::CmkMissing { .. }
                | CustodyError::WrapRejected
                | CustodyError::Unsupported { .. }),
            ) => Ok(Some(Err(error.to_string()))),
            Err(error) => Err(error.into()),
        },
        (RootKind::Recovery, _, Some(key)) if key.is_root_of(wrap) => {
            Ok(Some(key.open(&context, &wrap.bytes).map_err(|error| error.to_string())))
        }
        _ => Ok(None),
    }
}

/// Writes a store that serves `findings`: every opened generation retired, one fresh generation active. With `cloud`, the
/// fresh one's root is there, and so are those of all that a token's CMK does not open: custody gets offline copies.
pub async fn rebuild(
    request: &RebuildRequest,
    findings: Findings,
    store: &Store,
    custody: &CustodyClient,
    cloud: Option<&InitCloud>,
) -> Result<Rebuilt, RecoverError> {
    if !store.is_empty() && !request.replace_store {
        return Err(RecoverError::StoreIsThere);
    }
    if findings.opened.is_empty() {
        return Err(RecoverError::NothingOpened);
    }
    let token = custody.describe().await?;
    let epochs = custody.list_epochs(request.keyring.clone(), request.node.clone()).await?;
    let newest = epochs.last().copied().unwrap_or(0).max(request.epoch_seen);
    let mut keyring = Keyring {
        revision: 1,
        epoch: newest.saturating_add(1),
        last_number: findings.last_number(request.number_seen),
        disabled: switched_off(store),
        upstream: cloud.map(InitCloud::first_state),
        ..Keyring::empty(
            request.keyring.clone(),
            request.node.clone(),
            TokenIdentity { serial: token.token.serial.clone(), label: token.token.label.clone() },
            RecoveryRoot::of(request.recovery.as_ref()),
        )
    };
    let (owner, node) = (request.keyring.clone(), request.node.clone());
    let epoch = |number| EpochRef { keyring: owner.clone(), node: node.clone(), number };
    custody.create_epoch(epoch(keyring.epoch)).await?;
    for each in findings.opened {
        match cloud {
            Some(cloud) if each.recovered.candidate.wrap.root_kind != token.root_kind => {
                retired_in_cloud(&mut keyring, each, custody, cloud).await?;
            }
            _ => keyring.generations.push(retired(each, custody, token.root_kind).await?),
        }
    }
    match cloud {
        None => drop(make_active(&mut keyring, custody, token.root_kind).await?),
        Some(cloud) => make_active_in_cloud(&mut keyring, custody, cloud).await?,
    }
    keyring.check()?;

    let key = epoch::record_key(custody, epoch(keyring.epoch)).await?;
    let bytes = record::encode(&keyring, &key);
    fail::fail_point!("recover.before-write");
    let set_aside = store.set_aside(unix_now())?;
    store.replace(None, &bytes)?;
    fail::fail_point!("recover.written");
    for number in epochs {
        custody.destroy_epoch(epoch(number)).await?;
    }
    Ok(Rebuilt { keyring, token, set_aside })
}

/// A key that was switched off stays so: as the record that is replaced says, authentic or not, or the marker beside it. A
/// store that was lost says nothing.
fn switched_off(store: &Store) -> Option<Disabling> {
    // One that cannot even be parsed is moved aside like any other.
    let told = store.load().ok().flatten().and_then(|record| record.claims().disabled.clone());
    let marked = store.marker(Mark::Disabled).is_raised();
    let by_marker = || marked.then(|| Disabling { since: unix_now(), uid: None, login_uid: None, reason: None });
    told.or_else(by_marker)
}

/// The generation as the new record holds it: first the wrap that the token here opens, then what it had besides.
async fn retired(opened: Opened, custody: &CustodyClient, kind: RootKind) -> Result<Generation, RecoverError> {
    let Opened { sighting, recovered } = opened;
    let Candidate { kek, wrap, others } = recovered.candidate;
    let commitment = kek.commitment();
    let mut wraps = Vec::new();
    if wrap.root_kind != kind {
        let root_id = RootId::new(&random::<16>()?).expect("16 bytes are a root ID");
        let mut context = sighting.wrap_context(&wrap);
        context.root_kind = kind;
        context.root_id = root_id;
        wraps.push(custody.wrap_kek(context, Arc::new(kek)).await?);
    }

    wraps.push(wrap);
    wraps.extend(others);
    wraps.truncate(MAX_WRAPS);
    Ok(Generation {
        number: sighting.key_id.generation(),
        key_id: sighting.key_id,
        state: GenerationState::Retired,
        // The backup does not say.
        created: 0,
        activated: None,
        forced: None,
        commitment,
        wraps,
        pending: None,
        tombstone: None,
    })
}

/// As [`retired`], with the cloud key as the root, and an offline copy.
async fn retired_in_cloud(
    keyring: &mut Keyring,
    opened: Opened,
    custody: &CustodyClient,
    cloud: &InitCloud,
) -> Result<(), RecoverError> {
    let Opened { sighting, recovered } = opened;
    let Candidate { kek, wrap, others } = recovered.candidate;
    let identity = cloud.upstream.identity();
    let mut wraps = Vec::new();
    if (wrap.root_kind, &wrap.root_id) != (identity.kind, &identity.root_id) {
        let mut context = sighting.wrap_context(&wrap);
        context.root_kind = identity.kind;
        context.root_id = identity.root_id.clone();
        wraps.push(cloud.upstream.wrap(&kek, &context).await.map_err(RecoverError::Upstream)?.wrap);
    }
    wraps.push(wrap);
    wraps.extend(others);
    wraps.truncate(MAX_WRAPS);
    let generation = Generation {
        number: sighting.key_id.generation(),
        key_id: sighting.key_id,
        state: GenerationState::Retired,
        created: 0,
        activated: None,
        forced: None,
        commitment: kek.commitment(),
        wraps,
        pending: None,
        tombstone: None,
    };
    let key = offline::copy_key(custody, keyring).await?;
    offline::put(keyring, &generation, &kek, &key)?;
    keyring.generations.push(generation);
    Ok(())
}

pub(super) async fn make_active_in_cloud(
    keyring: &mut Keyring,
    custody: &CustodyClient,
    cloud: &InitCloud,
) -> Result<(), RecoverError> {
    keyring.begin_rotation(random()?, random()?, unix_now())?;
    prepare_generation(custody, Some(&*cloud.upstream), keyring).await?;
    cloud.prove(keyring).await?;
    keyring.activate(unix_now())?;
    Ok(())
}

/// The fresh generation, made without a journal: nothing names it before the one write that also makes it active.
pub(super) async fn make_active(
    keyring: &mut Keyring,
    custody: &CustodyClient,
    kind: RootKind,
) -> Result<KeyId, RecoverError> {
    let now = unix_now();
    let intent = keyring.begin_rotation(random()?, random()?, now)?;
    let context = keyring.wrap_context(&intent, kind);
    let (wrap, kek) = custody.new_kek(context.clone()).await?;
    let wraps = durable_wraps(keyring, context.clone(), wrap.clone(), &kek)?;
    keyring.prepare(kek.commitment(), wraps, now)?;
    // Opened again before anything depends on it.
    if custody.unwrap(context, wrap.bytes).await?.commitment() != kek.commitment() {
        return Err(CustodyError::WrapRejected.into());
    }
    Ok(keyring.activate(now)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keystead_core::recovery::Sighting;
    use keystead_core::wrap::Construction;

    fn opened(random: u8, kind: RootKind, objects: u64) -> Opened {
        let keyring: KeyringId = "edge".parse().unwrap();
        let key_id = KeyId::mint(&keyring, GenerationNumber(2), [random; 16]);
        let construction = match kind {
            RootKind::Pkcs11 => Construction::AesGcm { iv: [1; 12], sealed: [0; 48] },
            _ => Construction::HpkeP256 { encapsulated: [4; 65], sealed: [0; 48] },
        };
        let wrap = WrappedKek { root_kind: kind, root_id: RootId::new(&[1]).unwrap(), bytes: construction.to_bytes() };
        let candidate = Candidate { kek: Kek::take(&mut [random; 32]), wrap, others: Vec::new() };
        let origin = candidate.origin();
        let sighting = Sighting { key_id, objects, annotations: Vec::new(), envelopes: Vec::new(), incomplete: false };
        Opened { sighting, recovered: Recovered { candidate, origin, opens: objects } }
    }

    fn settled(opened: Vec<Opened>, trusted: &[KeyCommitment]) -> Findings {
        let mut findings = Findings { opened, lost: Vec::new() };
        findings.settle_numbers(trusted);
        findings
    }

    #[test]
    fn forged_key_id_of_a_taken_number_does_not_push_the_genuine_one_out() {
        let (genuine, forged) = (|| opened(1, RootKind::Recovery, 1), || opened(66, RootKind::Recovery, 1000));
        let findings = settled(vec![genuine(), forged()], &[]);
        assert!(findings.opened.is_empty());
        assert!(findings.lost.iter().all(|(_, loss)| matches!(loss, Loss::NumberContested(_))), "{:?}", findings.lost);
        let word = genuine().commitment();
        let findings = settled(vec![forged(), genuine()], &[word]);
        assert_eq!(findings.opened[0].commitment(), word);
        let proven = opened(1, RootKind::Pkcs11, 1);
        let findings = settled(vec![forged(), proven], &[]);
        assert_eq!(findings.opened[0].commitment(), word);
        assert!(matches!(findings.lost[0].1, Loss::NumberTaken(_)));
    }

    #[test]
    fn of_two_proven_key_ids_of_one_number_the_one_with_more_objects_stays() {
        let findings = settled(vec![opened(1, RootKind::Pkcs11, 3), opened(2, RootKind::Pkcs11, 9)], &[]);
        assert_eq!(findings.opened[0].recovered.opens, 9);
        assert_eq!(findings.lost.len(), 1);
    }
}
