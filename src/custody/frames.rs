//! The frames between server and custodian: `u32 length ‖ version ‖ u64 request id ‖ kind ‖ fields`, big-endian.
//!
//! Both sides read what the other one wrote as hostile: the custodian runs a vendor's code, the server talks to clients.
//! Pure: bytes in, values out. Buffers that may hold key bytes are wiped when dropped.

use std::sync::Arc;

use keystead_core::id::{GenerationNumber, KeyId, KeyringId, RootId};
use keystead_core::wrap::{MAX_WRAP_LEN, WrappedKek};
use keystead_core::{Kek, NodeId, WrapContext};
use zeroize::Zeroizing;

use super::contract::{
    Answer, CmkObject, CustodyError, DeviceClock, EpochPurpose, EpochRef, GivenKek, PinState, ProcessReport, Request,
    TokenDescription, TokenSummary,
};
pub use super::fields::FrameError;
use super::fields::{Reader, Writer};

pub const VERSION: u8 = 1;
/// Longest request after its length field. The largest real one has about a kilobyte.
pub const MAX_REQUEST: usize = 16 << 10;
/// Longest reply after its length field: room for the root IDs of some 3,600 CMKs.
pub const MAX_REPLY: usize = 64 << 10;

/// No request has this ID.
pub const UNASKED: u64 = 0;

/// A frame as it goes over the socket, its length field included.
pub type Frame = Zeroizing<Vec<u8>>;
pub type Reply = Result<Answer, CustodyError>;

const MAX_DETAIL: usize = 512;
const MAX_NAME: usize = 64;
const MAX_MODULE: usize = 4096;
/// More than any reply but a list needs, so that a buffer with a key in it never grows.
const USUAL: usize = 1024;

pub fn encode_request(id: u64, request: &Request) -> Frame {
    let mut out = begin(id);
    match request {
        Request::Describe => out.u8(1),
        Request::ListTokens => out.u8(2),
        Request::ListCmks => out.u8(3),
        Request::NewKek { context } => {
            out.u8(4);
            write_context(&mut out, context);
        }
        Request::Unwrap { context, wrap } => {
            out.u8(5);
            write_context(&mut out, context);
            out.bytes(wrap);
        }
        Request::ListEpochs { keyring, node } => {
            out.u8(6);
            out.bytes(keyring.as_str().as_bytes());
            out.bytes(node.as_str().as_bytes());
        }
        Request::CreateEpoch(epoch) => {
            out.u8(7);
            write_epoch(&mut out, epoch);
        }
        Request::DeriveEpochKey { epoch, purpose } => {
            out.u8(8);
            write_epoch(&mut out, epoch);
            out.u8(match purpose {
                EpochPurpose::Record => 1,
                EpochPurpose::Audit => 3,
                EpochPurpose::OfflineCopy => 2,
            });
        }
        Request::DestroyEpoch(epoch) => {
            out.u8(9);
            write_epoch(&mut out, epoch);
        }
        Request::DestroyCmk { root_id } => {
            out.u8(10);
            out.bytes(root_id.as_bytes());
        }
        Request::Probe => out.u8(11),
        Request::WrapKek { context, kek } => {
            out.u8(12);
            write_context(&mut out, context);
            out.raw(kek.0.expose());
        }
        Request::Reopen => out.u8(13),
    }
    finish(out)
}

/// `body` is the frame without its length field.
pub fn decode_request(body: &[u8]) -> Result<(u64, Request), FrameError> {
    let (id, mut fields) = open(body, MAX_REQUEST)?;
    let request = match fields.u8()? {
        1 => Request::Describe,
        2 => Request::ListTokens,
        3 => Request::ListCmks,
        4 => Request::NewKek { context: read_context(&mut fields)? },
        5 => {
            let context = read_context(&mut fields)?;
            Request::Unwrap { context, wrap: fields.bytes(MAX_WRAP_LEN)?.to_vec() }
        }
        6 => Request::ListEpochs { keyring: fields.parsed(KeyringId::MAX_LEN)?, node: fields.parsed(MAX_NAME)? },
        7 => Request::CreateEpoch(read_epoch(&mut fields)?),
        8 => {
            let epoch = read_epoch(&mut fields)?;
            let purpose = match fields.u8()? {
                1 => EpochPurpose::Record,
                3 => EpochPurpose::Audit,
                2 => EpochPurpose::OfflineCopy,
                _ => return Err(FrameError::Malformed("an unknown purpose")),
            };
            Request::DeriveEpochKey { epoch, purpose }
        }
        9 => Request::DestroyEpoch(read_epoch(&mut fields)?),
        10 => Request::DestroyCmk { root_id: read_root(&mut fields)? },
        11 => Request::Probe,
        12 => {
            let context = read_context(&mut fields)?;
            Request::WrapKek { context, kek: GivenKek(Arc::new(read_kek(&mut fields)?)) }
        }
        13 => Request::Reopen,
        _ => return Err(FrameError::Malformed("an unknown request")),
    };
    fields.end()?;
    Ok((id, request))
}

/// A list too long for a frame becomes an error that says so: a list cut short would read as complete.
pub fn encode_reply(id: u64, reply: &Reply) -> Frame {
    let frame = write_reply(id, reply);
    if frame.len() - LENGTH <= MAX_REPLY {
        return frame;
    }
    let detail = "it holds more objects than one answer can list".to_owned();
    write_reply(id, &Err(CustodyError::Unsupported { detail }))
}

/// `body` is the frame without its length field.
pub fn decode_reply(body: &[u8]) -> Result<(u64, Reply), FrameError> {
    let (id, mut fields) = open(body, MAX_REPLY)?;
    let reply = match fields.u8()? {
        1 => Ok(Answer::Token(read_description(&mut fields)?)),
        2 => {
            let count = fields.count(10)?;
            Ok(Answer::Tokens((0..count).map(|_| read_summary(&mut fields)).collect::<Result<_, _>>()?))
        }
        3 => {
            let count = fields.count(3)?;
            let cmk = |fields: &mut Reader<'_>| {
                Ok::<_, FrameError>(CmkObject { root_id: read_root(fields)?, label: fields.text(MAX_NAME)?.to_owned() })
            };
            Ok(Answer::Cmks((0..count).map(|_| cmk(&mut fields)).collect::<Result<_, _>>()?))
        }
        4 => {
            let wrap = read_wrap(&mut fields)?;
            Ok(Answer::NewKek { wrap, kek: read_kek(&mut fields)? })
        }
        5 => Ok(Answer::Kek(read_kek(&mut fields)?)),
        6 => {
            let count = fields.count(8)?;
            Ok(Answer::Epochs((0..count).map(|_| fields.u64()).collect::<Result<_, _>>()?))
        }
        7 => Ok(Answer::EpochKey(Zeroizing::new(*fields.array()?))),
        8 => Ok(Answer::Done),
        9 => Err(read_error(&mut fields)?),
        10 => Ok(Answer::Wrapped(read_wrap(&mut fields)?)),
        11 => Ok(Answer::Process(ProcessReport {
            uid: fields.u32()?,
            no_new_privs: fields.bool()?,
            dumpable: fields.bool()?,
            system_calls_filtered: fields.bool()?,
        })),
        _ => return Err(FrameError::Malformed("an unknown answer")),
    };
    fields.end()?;
    Ok((id, reply))
}

/// Bytes of the length field.
pub const LENGTH: usize = 4;

/// Length of the body that follows, checked against `max` before anything is allocated for it.
pub fn body_len(prefix: [u8; LENGTH], max: usize) -> Result<usize, FrameError> {
    let len = u32::from_be_bytes(prefix) as usize;
    if len > max { Err(FrameError::TooLong(len)) } else { Ok(len) }
}

fn begin(id: u64) -> Writer {
    let mut out = Writer::with_capacity(USUAL);
    out.u32(0); // the length, known at the end
    out.u8(VERSION);
    out.u64(id);
    out
}

fn finish(out: Writer) -> Frame {
    let mut frame = out.into_bytes();
    // No frame that begins here comes near 4 GiB.
    let len = (frame.len() - LENGTH) as u32;
    frame[..LENGTH].copy_from_slice(&len.to_be_bytes());
    frame
}

fn open(body: &[u8], max: usize) -> Result<(u64, Reader<'_>), FrameError> {
    if body.len() > max {
        return Err(FrameError::TooLong(body.len()));
    }
    let mut fields = Reader::new(body);
    let version = fields.u8()?;
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    let id = fields.u64()?;
    Ok((id, fields))
}

fn write_context(out: &mut Writer, context: &WrapContext) {
    out.bytes(context.keyring.as_str().as_bytes());
    out.u64(context.generation.0);
    out.bytes(context.key_id.as_str().as_bytes());
    out.u8(context.root_kind.into());
    out.bytes(context.root_id.as_bytes());
}

fn read_context(fields: &mut Reader<'_>) -> Result<WrapContext, FrameError> {
    Ok(WrapContext {
        keyring: fields.parsed(KeyringId::MAX_LEN)?,
        generation: GenerationNumber(fields.u64()?),
        key_id: fields.parsed(KeyId::MAX_LEN)?,
        root_kind: fields.u8()?.into(),
        root_id: read_root(fields)?,
    })
}

fn read_root(fields: &mut Reader<'_>) -> Result<RootId, FrameError> {
    RootId::new(fields.bytes(RootId::MAX_LEN)?).map_err(|_| FrameError::Malformed("an empty root ID"))
}

fn write_epoch(out: &mut Writer, epoch: &EpochRef) {
    out.bytes(epoch.keyring.as_str().as_bytes());
    out.bytes(epoch.node.as_str().as_bytes());
    out.u64(epoch.number);
}

fn read_epoch(fields: &mut Reader<'_>) -> Result<EpochRef, FrameError> {
    Ok(EpochRef {
        keyring: fields.parsed(KeyringId::MAX_LEN)?,
        node: fields.parsed::<NodeId>(MAX_NAME)?,
        number: fields.u64()?,
    })
}

fn write_wrap(out: &mut Writer, wrap: &WrappedKek) {
    out.u8(wrap.root_kind.into());
    out.bytes(wrap.root_id.as_bytes());
    out.bytes(&wrap.bytes);
}

fn read_wrap(fields: &mut Reader<'_>) -> Result<WrappedKek, FrameError> {
    let root_kind = fields.u8()?.into();
    let root_id = read_root(fields)?;
    Ok(WrappedKek { root_kind, root_id, bytes: fields.bytes(MAX_WRAP_LEN)?.to_vec() })
}

fn read_kek(fields: &mut Reader<'_>) -> Result<Kek, FrameError> {
    let mut bytes = Zeroizing::new(*fields.array::<{ Kek::LEN }>()?);
    Ok(Kek::take(&mut bytes))
}

fn write_reply(id: u64, reply: &Reply) -> Frame {
    let mut out = begin(id);
    match reply {
        Ok(answer) => write_answer(&mut out, answer),
        Err(error) => {
            out.u8(9);
            write_error(&mut out, error);
        }
    }
    finish(out)
}

fn write_answer(out: &mut Writer, answer: &Answer) {
    match answer {
        Answer::Token(description) => {
            out.u8(1);
            write_description(out, description);
        }
        Answer::Tokens(tokens) => {
            out.u8(2);
            out.u32(tokens.len() as u32);
            tokens.iter().for_each(|token| write_summary(out, token));
        }
        Answer::Cmks(cmks) => {
            out.u8(3);
            out.u32(cmks.len() as u32);
            for cmk in cmks {
                out.bytes(cmk.root_id.as_bytes());
                out.text(&cmk.label, MAX_NAME);
            }
        }
        Answer::NewKek { wrap, kek } => {
            out.u8(4);
            write_wrap(out, wrap);
            out.raw(kek.expose());
        }
        Answer::Kek(kek) => {
            out.u8(5);
            out.raw(kek.expose());
        }
        Answer::Epochs(numbers) => {
            out.u8(6);
            out.u32(numbers.len() as u32);
            numbers.iter().for_each(|number| out.u64(*number));
        }
        Answer::EpochKey(key) => {
            out.u8(7);
            out.raw(key.as_slice());
        }
        Answer::Done => out.u8(8),
        // 9 is an error.
        Answer::Wrapped(wrap) => {
            out.u8(10);
            write_wrap(out, wrap);
        }
        Answer::Process(report) => {
            out.u8(11);
            out.u32(report.uid);
            for flag in [report.no_new_privs, report.dumpable, report.system_calls_filtered] {
                out.u8(flag.into());
            }
        }
    }
}

fn write_description(out: &mut Writer, description: &TokenDescription) {
    write_summary(out, &description.token);
    out.u8(description.root_kind.into());
    out.text(&description.module, MAX_MODULE);
    out.text(&description.mechanism, MAX_NAME);
    out.text(&description.authentication, MAX_NAME);
    out.u32(description.sessions);
    out.u64(description.openings);
    out.u64(description.device_operations);
    out.u8(description.clock.is_some().into());
    let DeviceClock { seconds, resets } = description.clock.unwrap_or(DeviceClock { seconds: 0, resets: 0 });
    out.u64(seconds);
    out.u32(resets);
}

fn read_description(fields: &mut Reader<'_>) -> Result<TokenDescription, FrameError> {
    Ok(TokenDescription {
        token: read_summary(fields)?,
        root_kind: fields.u8()?.into(),
        module: fields.text(MAX_MODULE)?.to_owned(),
        mechanism: fields.text(MAX_NAME)?.to_owned(),
        authentication: fields.text(MAX_NAME)?.to_owned(),
        sessions: fields.u32()?,
        openings: fields.u64()?,
        device_operations: fields.u64()?,
        clock: {
            let (known, seconds, resets) = (fields.bool()?, fields.u64()?, fields.u32()?);
            known.then_some(DeviceClock { seconds, resets })
        },
    })
}

fn write_summary(out: &mut Writer, token: &TokenSummary) {
    out.u64(token.slot);
    for name in [&token.label, &token.serial, &token.manufacturer, &token.model, &token.firmware] {
        out.text(name, MAX_NAME);
    }
    out.u8(u8::from(token.initialized));
    out.u8(match token.pin {
        PinState::Fine => 0,
        PinState::FinalTry => 1,
        PinState::CountLow => 2,
        PinState::Locked => 3,
        PinState::NotSet => 4,
    });
}

fn read_summary(fields: &mut Reader<'_>) -> Result<TokenSummary, FrameError> {
    Ok(TokenSummary {
        slot: fields.u64()?,
        label: fields.text(MAX_NAME)?.to_owned(),
        serial: fields.text(MAX_NAME)?.to_owned(),
        manufacturer: fields.text(MAX_NAME)?.to_owned(),
        model: fields.text(MAX_NAME)?.to_owned(),
        firmware: fields.text(MAX_NAME)?.to_owned(),
        initialized: fields.bool()?,
        pin: match fields.u8()? {
            0 => PinState::Fine,
            1 => PinState::FinalTry,
            2 => PinState::CountLow,
            3 => PinState::Locked,
            4 => PinState::NotSet,
            _ => return Err(FrameError::Malformed("an unknown PIN state")),
        },
    })
}

fn write_error(out: &mut Writer, error: &CustodyError) {
    let mut with_text = |code, text: &str| {
        out.u8(code);
        out.text(text, MAX_DETAIL);
    };
    match error {
        CustodyError::Gone => out.u8(1),
        CustodyError::TimedOut => out.u8(2),
        CustodyError::Busy => out.u8(3),
        CustodyError::ModuleUnusable { detail } => with_text(4, detail),
        CustodyError::TokenMissing { wanted } => with_text(5, wanted),
        CustodyError::TokenAmbiguous { label } => with_text(6, label),
        CustodyError::PinRejected { serial, final_try } => {
            with_text(7, serial);
            out.u8(u8::from(*final_try));
        }
        CustodyError::PinLocked { serial } => with_text(8, serial),
        CustodyError::PinFinalTry { serial } => with_text(9, serial),
        CustodyError::PinUnreadable { detail } => with_text(10, detail),
        CustodyError::Unsupported { detail } => with_text(11, detail),
        CustodyError::CmkMissing { root_id } => with_text(12, root_id),
        CustodyError::EpochMissing { number } => {
            out.u8(13);
            out.u64(*number);
        }
        CustodyError::WrapRejected => out.u8(14),
        CustodyError::Device { detail } => with_text(15, detail),
        CustodyError::TokenReplaced { serial, expected } => {
            with_text(16, serial);
            out.u8(u8::from(expected.is_some()));
            out.text(expected.as_deref().unwrap_or_default(), MAX_DETAIL);
        }
        CustodyError::TokenReinitialized { serial } => with_text(17, serial),
        CustodyError::TokenOlder { serial, record, token } => {
            with_text(18, serial);
            out.u64(*record);
            out.u64(*token);
        }
        CustodyError::TpmUnreachable { tcti, detail } => {
            with_text(19, tcti);
            out.text(detail, MAX_DETAIL);
        }
        CustodyError::AuthRejected { file } => with_text(20, file),
        CustodyError::BootNotApproved { detail } => with_text(21, detail),
    }
}

fn read_error(fields: &mut Reader<'_>) -> Result<CustodyError, FrameError> {
    let code = fields.u8()?;
    let mut text = || fields.text(MAX_DETAIL).map(str::to_owned);
    Ok(match code {
        1 => CustodyError::Gone,
        2 => CustodyError::TimedOut,
        3 => CustodyError::Busy,
        4 => CustodyError::ModuleUnusable { detail: text()? },
        5 => CustodyError::TokenMissing { wanted: text()? },
        6 => CustodyError::TokenAmbiguous { label: text()? },
        7 => CustodyError::PinRejected { serial: text()?, final_try: fields.bool()? },
        8 => CustodyError::PinLocked { serial: text()? },
        9 => CustodyError::PinFinalTry { serial: text()? },
        10 => CustodyError::PinUnreadable { detail: text()? },
        11 => CustodyError::Unsupported { detail: text()? },
        12 => CustodyError::CmkMissing { root_id: text()? },
        13 => CustodyError::EpochMissing { number: fields.u64()? },
        14 => CustodyError::WrapRejected,
        15 => CustodyError::Device { detail: text()? },
        16 => {
            let serial = text()?;
            let known = fields.bool()?;
            let expected = fields.text(MAX_DETAIL)?.to_owned();
            CustodyError::TokenReplaced { serial, expected: known.then_some(expected) }
        }
        17 => CustodyError::TokenReinitialized { serial: text()? },
        18 => CustodyError::TokenOlder { serial: text()?, record: fields.u64()?, token: fields.u64()? },
        19 => CustodyError::TpmUnreachable { tcti: text()?, detail: text()? },
        20 => CustodyError::AuthRejected { file: text()? },
        21 => CustodyError::BootNotApproved { detail: text()? },
        _ => return Err(FrameError::Malformed("an unknown error")),
    })
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;
