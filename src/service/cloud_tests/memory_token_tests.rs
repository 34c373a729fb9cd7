//! A token in memory, behind the protocol of a custodian.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use hmac::{Hmac, KeyInit, Mac};
use keystead_core::wrap::{Construction, seal_under_transport_key};
use keystead_core::{Kek, RootId, RootKind, WrapContext, WrappedKek};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::custody::contract::{
    Answer, CmkObject, CustodyError, DeviceClock, EpochPurpose, PinState, Request, TokenDescription, TokenSummary,
};
use crate::custody::worker::Custodian;

/// A token that never forgets by itself.
#[derive(Default)]
pub struct Token {
    epochs: Mutex<BTreeMap<u64, [u8; 32]>>,
    keks: Mutex<HashMap<Vec<u8>, [u8; 32]>>,
    away: AtomicBool,
    clock: Mutex<Option<DeviceClock>>,
}

impl Token {
    pub fn shows(&self, seconds: u64, resets: u32) {
        *self.clock.lock().unwrap() = Some(DeviceClock { seconds, resets });
    }

    pub fn take_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }

    pub fn is_away(&self) -> bool {
        self.away.load(Ordering::Relaxed)
    }

    pub fn cmks(&self) -> usize {
        self.keks.lock().unwrap().len()
    }

    pub fn epochs(&self) -> Vec<u64> {
        self.epochs.lock().unwrap().keys().copied().collect()
    }
}

pub struct Device(pub Arc<Token>);

impl Custodian for Device {
    fn serve(&self, _seat: usize, request: Request) -> Result<Answer, CustodyError> {
        if self.0.is_away() {
            return Err(CustodyError::TokenMissing { wanted: "the test's".into() });
        }
        let mut epochs = self.0.epochs.lock().unwrap();
        let mut keks = self.0.keks.lock().unwrap();
        let wrapped = |context: &WrapContext, kek: &Kek| WrappedKek {
            root_kind: context.root_kind,
            root_id: context.root_id.clone(),
            bytes: Construction::AesGcm {
                iv: [0; 12],
                sealed: seal_under_transport_key(&[7; 32], &context.to_bytes(), kek),
            }
            .to_bytes(),
        };
        Ok(match request {
            Request::Describe => {
                let clock = *self.0.clock.lock().unwrap();
                Answer::Token(TokenDescription { clock, ..description() })
            }
            Request::ListTokens => Answer::Tokens(vec![description().token]),
            Request::ListCmks => {
                let cmk = |id: &Vec<u8>| CmkObject { root_id: RootId::new(id).unwrap(), label: String::new() };
                Answer::Cmks(keks.keys().map(cmk).collect())
            }
            Request::NewKek { context } => {
                let bytes: [u8; 32] = fresh();
                keks.insert(context.root_id.as_bytes().to_vec(), bytes);
                let kek = Kek::take(&mut { bytes });
                Answer::NewKek { wrap: wrapped(&context, &kek), kek }
            }
            Request::WrapKek { context, kek } => Answer::Wrapped(wrapped(&context, &kek.0)),
            Request::Unwrap { context, .. } => {
                let bytes = keks.get(context.root_id.as_bytes()).copied();
                let missing = || CustodyError::CmkMissing { root_id: context.root_id.to_string() };
                Answer::Kek(Kek::take(&mut bytes.ok_or_else(missing)?))
            }
            Request::ListEpochs { .. } => Answer::Epochs(epochs.keys().copied().collect()),
            Request::CreateEpoch(epoch) => {
                epochs.entry(epoch.number).or_insert_with(fresh);
                Answer::Done
            }
            Request::DeriveEpochKey { epoch, purpose } => {
                let missing = || CustodyError::EpochMissing { number: epoch.number };
                let secret = epochs.get(&epoch.number).ok_or_else(missing)?;
                let mut mac = Hmac::<Sha256>::new_from_slice(secret).unwrap();
                mac.update(match purpose {
                    EpochPurpose::Record => b"record",
                    EpochPurpose::OfflineCopy => b"copies",
                    EpochPurpose::Audit => b"audit",
                });
                Answer::EpochKey(Zeroizing::new(mac.finalize().into_bytes().into()))
            }
            Request::DestroyEpoch(epoch) => {
                epochs.remove(&epoch.number);
                Answer::Done
            }
            Request::DestroyCmk { root_id } => {
                keks.remove(root_id.as_bytes());
                Answer::Done
            }
            Request::Probe | Request::Reopen => Answer::Done,
        })
    }

    fn close(&self) {}
}

fn description() -> TokenDescription {
    TokenDescription {
        root_kind: RootKind::Pkcs11,
        token: TokenSummary {
            slot: 0,
            label: "test".into(),
            serial: "1".into(),
            manufacturer: "test".into(),
            model: "test".into(),
            firmware: "1".into(),
            initialized: true,
            pin: PinState::Fine,
        },
        module: "test".into(),
        mechanism: "test".into(),
        authentication: "test".into(),
        sessions: 1,
        openings: 1,
        device_operations: 0,
        clock: None,
    }
}

pub(super) fn fresh<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}
