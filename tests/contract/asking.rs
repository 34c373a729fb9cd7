//! Requests and what they answer, as the cases use them.

use std::sync::atomic::{AtomicU8, Ordering};

use keystead::custody::contract::{Answer, CustodyError, EpochPurpose, EpochRef, Request, TokenDescription};
use keystead_core::id::{GenerationNumber, KeyId, RootKind};
use keystead_core::{Kek, RootId, WrapContext, WrappedKek};

use crate::support::custodian::Custody;

/// Kind of the roots of the token under test.
static ROOT_KIND: AtomicU8 = AtomicU8::new(1);

pub fn test_roots_of(kind: RootKind) {
    ROOT_KIND.store(kind.into(), Ordering::Relaxed);
}

/// A context of keyring `default`, different for each `number` in generation, key ID and root.
pub fn context(number: u8) -> WrapContext {
    let keyring = "default".parse().unwrap();
    let generation = GenerationNumber(u64::from(number));
    WrapContext {
        key_id: KeyId::mint(&keyring, generation, [number; 16]),
        keyring,
        generation,
        root_kind: ROOT_KIND.load(Ordering::Relaxed).into(),
        root_id: RootId::new(&[number; 16]).unwrap(),
    }
}

pub fn epoch(keyring: &str, node: &str, number: u64) -> EpochRef {
    EpochRef { keyring: keyring.parse().unwrap(), node: node.parse().unwrap(), number }
}

pub fn new_kek(custody: &Custody, context: &WrapContext) -> (WrappedKek, Kek) {
    match custody.ask(Request::NewKek { context: context.clone() }) {
        Ok(Answer::NewKek { wrap, kek }) => (wrap, kek),
        other => panic!("no new KEK: {other:?}"),
    }
}

pub fn unwrap(custody: &Custody, context: &WrapContext, wrap: &[u8]) -> Result<Kek, CustodyError> {
    match custody.ask(Request::Unwrap { context: context.clone(), wrap: wrap.to_vec() })? {
        Answer::Kek(kek) => Ok(kek),
        other => panic!("no KEK: {other:?}"),
    }
}

/// The error of an unwrap that must not succeed.
pub fn refusal(custody: &Custody, context: &WrapContext, wrap: &[u8]) -> CustodyError {
    unwrap(custody, context, wrap).expect_err("a wrap was opened that must not open")
}

pub fn derive(custody: &Custody, epoch: &EpochRef) -> Result<[u8; 32], CustodyError> {
    derive_for(custody, epoch, EpochPurpose::Record)
}

pub fn derive_for(custody: &Custody, epoch: &EpochRef, purpose: EpochPurpose) -> Result<[u8; 32], CustodyError> {
    match custody.ask(Request::DeriveEpochKey { epoch: epoch.clone(), purpose })? {
        Answer::EpochKey(key) => Ok(*key),
        other => panic!("no epoch key: {other:?}"),
    }
}

pub fn cmks(custody: &Custody) -> Vec<RootId> {
    match custody.ask(Request::ListCmks) {
        Ok(Answer::Cmks(cmks)) => cmks.into_iter().map(|cmk| cmk.root_id).collect(),
        other => panic!("no list of CMKs: {other:?}"),
    }
}

pub fn epochs(custody: &Custody, keyring: &str, node: &str) -> Vec<u64> {
    let request = Request::ListEpochs { keyring: keyring.parse().unwrap(), node: node.parse().unwrap() };
    match custody.ask(request) {
        Ok(Answer::Epochs(numbers)) => numbers,
        other => panic!("no list of epochs: {other:?}"),
    }
}

pub fn describe(custody: &Custody) -> TokenDescription {
    match custody.ask(Request::Describe) {
        Ok(Answer::Token(description)) => description,
        other => panic!("no description: {other:?}"),
    }
}

pub fn done(custody: &Custody, request: Request) {
    match custody.ask(request) {
        Ok(Answer::Done) => {}
        other => panic!("not done: {other:?}"),
    }
}
