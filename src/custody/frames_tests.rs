//! Frames come back as they went, and no damage to one makes a reader panic.

use std::fmt::Debug;

use keystead_core::id::RootKind;

use super::*;

fn context() -> WrapContext {
    let keyring: KeyringId = "edge-7".parse().unwrap();
    let generation = GenerationNumber(3);
    WrapContext {
        key_id: KeyId::mint(&keyring, generation, [9; 16]),
        keyring,
        generation,
        root_kind: RootKind::Pkcs11,
        root_id: RootId::new(&[1; 16]).unwrap(),
    }
}

fn epoch() -> EpochRef {
    EpochRef { keyring: "edge-7".parse().unwrap(), node: "node_1.example".parse().unwrap(), number: u64::MAX }
}

fn requests() -> Vec<Request> {
    vec![
        Request::Describe,
        Request::ListTokens,
        Request::ListCmks,
        Request::NewKek { context: context() },
        Request::Unwrap { context: context(), wrap: vec![7; MAX_WRAP_LEN] },
        Request::ListEpochs { keyring: epoch().keyring, node: epoch().node },
        Request::CreateEpoch(epoch()),
        Request::DeriveEpochKey { epoch: epoch(), purpose: EpochPurpose::Record },
        Request::DeriveEpochKey { epoch: epoch(), purpose: EpochPurpose::Audit },
        Request::DeriveEpochKey { epoch: epoch(), purpose: EpochPurpose::OfflineCopy },
        Request::DestroyEpoch(epoch()),
        Request::DestroyCmk { root_id: context().root_id },
        Request::Probe,
        Request::WrapKek { context: context(), kek: GivenKek(Arc::new(Kek::take(&mut [6; 32]))) },
        Request::Reopen,
    ]
}

fn token(pin: PinState) -> TokenSummary {
    TokenSummary {
        slot: 5,
        label: "keystead".into(),
        serial: "00ff".into(),
        manufacturer: "Ünited tokens".into(),
        model: String::new(),
        firmware: "2.6".into(),
        initialized: true,
        pin,
    }
}

fn replies() -> Vec<Reply> {
    let report = ProcessReport { uid: 997, no_new_privs: true, dumpable: false, system_calls_filtered: true };
    let description = TokenDescription {
        token: token(PinState::Fine),
        root_kind: RootKind::Tpm,
        module: "/usr/lib/module.so".into(),
        mechanism: "aes-gcm (IV by caller)".into(),
        authentication: "sha256-hmac".into(),
        sessions: 2,
        openings: 3,
        device_operations: 77,
        clock: Some(DeviceClock { seconds: 3600, resets: 7 }),
    };
    let pins = [PinState::FinalTry, PinState::CountLow, PinState::Locked, PinState::NotSet];
    let wrap = WrappedKek { root_kind: RootKind::Pkcs11, root_id: context().root_id, bytes: vec![1; 61] };
    let detail = || "CKR_GENERAL_ERROR".to_owned();
    let serial = || "00ff".to_owned();
    vec![
        Ok(Answer::Token(description)),
        Ok(Answer::Tokens(pins.into_iter().map(token).collect())),
        Ok(Answer::Cmks(vec![cmk(context().root_id), cmk(RootId::new(&[2; 64]).unwrap())])),
        Ok(Answer::NewKek { wrap: wrap.clone(), kek: Kek::take(&mut [3; 32]) }),
        Ok(Answer::Kek(Kek::take(&mut [4; 32]))),
        Ok(Answer::Epochs(vec![1, 2, u64::MAX])),
        Ok(Answer::EpochKey(Zeroizing::new([5; 32]))),
        Ok(Answer::Done),
        Ok(Answer::Wrapped(wrap)),
        Ok(Answer::Process(report)),
        Err(CustodyError::Gone),
        Err(CustodyError::TimedOut),
        Err(CustodyError::Busy),
        Err(CustodyError::ModuleUnusable { detail: detail() }),
        Err(CustodyError::BootNotApproved { detail: detail() }),
        Err(CustodyError::AuthRejected { file: detail() }),
        Err(CustodyError::TpmUnreachable { tcti: "device:/dev/tpmrm0".into(), detail: detail() }),
        Err(CustodyError::TokenMissing { wanted: detail() }),
        Err(CustodyError::TokenAmbiguous { label: detail() }),
        Err(CustodyError::PinRejected { serial: serial(), final_try: true }),
        Err(CustodyError::PinRejected { serial: serial(), final_try: false }),
        Err(CustodyError::PinLocked { serial: serial() }),
        Err(CustodyError::PinFinalTry { serial: serial() }),
        Err(CustodyError::PinUnreadable { detail: detail() }),
        Err(CustodyError::Unsupported { detail: detail() }),
        Err(CustodyError::CmkMissing { root_id: "0101".into() }),
        Err(CustodyError::EpochMissing { number: 4 }),
        Err(CustodyError::WrapRejected),
        Err(CustodyError::Device { detail: detail() }),
    ]
}

/// Replies hold keys, which compare only by their bytes: a reply is the same if it is written the same.
fn same(one: &Reply, other: &Reply) -> bool {
    encode_reply(0, one) == encode_reply(0, other)
}

/// Each shorter body is refused, and each flipped bit is either refused or read as something else, without a panic.
fn damage<T: Debug>(body: &[u8], decode: impl Fn(&[u8]) -> Result<T, FrameError>) {
    for len in 0..body.len() {
        decode(&body[..len]).expect_err("a frame cut short was read");
    }
    let mut longer = body.to_vec();
    longer.push(0);
    decode(&longer).expect_err("a frame with a byte too many was read");
    for index in 0..body.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = body.to_vec();
            damaged[index] ^= flip;
            let _ = decode(&damaged);
        }
    }
}

#[test]
fn every_request_reads_back_as_it_was_written() {
    for (id, request) in requests().into_iter().enumerate() {
        let frame = encode_request(id as u64, &request);
        let (prefix, body) = frame.split_first_chunk().unwrap();
        assert_eq!(body_len(*prefix, MAX_REQUEST), Ok(body.len()));
        assert_eq!(decode_request(body), Ok((id as u64, request)));
        damage(body, decode_request);
    }
}

#[test]
fn every_reply_reads_back_as_it_was_written() {
    for (id, reply) in replies().into_iter().enumerate() {
        let frame = encode_reply(id as u64, &reply);
        let (prefix, body) = frame.split_first_chunk().unwrap();
        assert_eq!(body_len(*prefix, MAX_REPLY), Ok(body.len()));
        let (read_id, read) = decode_reply(body).unwrap();
        assert_eq!(read_id, id as u64);
        assert!(same(&read, &reply), "{reply:?} came back as {read:?}");
        damage(body, decode_reply);
    }
}

#[test]
fn frame_longer_than_its_bound_is_refused_before_it_is_read() {
    assert_eq!(body_len(u32::MAX.to_be_bytes(), MAX_REPLY), Err(FrameError::TooLong(u32::MAX as usize)));
    assert_eq!(decode_request(&[VERSION; MAX_REQUEST + 1]), Err(FrameError::TooLong(MAX_REQUEST + 1)));
}

#[test]
fn list_count_beyond_its_frame_is_refused() {
    let mut body = vec![VERSION, 0, 0, 0, 0, 0, 0, 0, 0, 6];
    body.extend_from_slice(&u32::MAX.to_be_bytes());
    assert!(decode_reply(&body).is_err());
}

#[test]
fn other_version_is_named() {
    let mut frame = encode_request(1, &Request::Probe);
    frame[LENGTH] = 2;
    assert_eq!(decode_request(&frame[LENGTH..]), Err(FrameError::Version(2)));
}

fn cmk(root_id: RootId) -> CmkObject {
    CmkObject { root_id, label: "keystead edge 7".into() }
}

#[test]
fn list_too_long_for_a_frame_becomes_an_error_not_a_shorter_list() {
    let cmks = vec![cmk(RootId::new(&[1; 64]).unwrap()); 2000];
    let frame = encode_reply(1, &Ok(Answer::Cmks(cmks)));
    let (_, reply) = decode_reply(&frame[LENGTH..]).unwrap();
    assert!(matches!(reply, Err(CustodyError::Unsupported { .. })));
}

#[test]
fn text_of_a_device_is_cut_and_cleaned() {
    let detail = format!("two\nlines\x1b[31m{}", "é".repeat(1000));
    let frame = encode_reply(1, &Err(CustodyError::Device { detail }));
    let (_, reply) = decode_reply(&frame[LENGTH..]).unwrap();
    let Err(CustodyError::Device { detail }) = reply else { panic!("{reply:?}") };
    assert!(detail.starts_with("two lines [31mé") && detail.len() <= MAX_DETAIL);
}
