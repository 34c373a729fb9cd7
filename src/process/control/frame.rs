//! The packets' bytes: one for the kind, then what belongs to it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use super::{Order, Report};

const NEW_CUSTODIAN: u8 = b'C';
const DRAIN: u8 = b'D';
const ASK: u8 = b'?';
const LOGIN: u8 = b'L';
const READY: u8 = b'R';
const CUSTODIAN_HUNG: u8 = b'H';
const ALIVE: u8 = b'A';
const REPLACE_CUSTODIAN: u8 = b'P';
const ASK_LOGIN: u8 = b'W';
const STATUS: u8 = b'S';
const VERDICT: u8 = b'V';
const RELOAD: u8 = b'L';
const APPLIED: u8 = b'Y';
const REFUSED: u8 = b'N';

/// In place of a user: the kernel's own word for none.
const NO_USER: u32 = u32::MAX;

/// Longer ones are cut.
const MOST_STATUS_BYTES: usize = 512;
const MOST_BYTES: usize = 1 + MOST_STATUS_BYTES;

pub(super) fn encode_new_custodian(restarts: u32) -> Vec<u8> {
    [&[NEW_CUSTODIAN][..], &restarts.to_be_bytes()].concat()
}

pub(super) fn encode_drain() -> Vec<u8> {
    vec![DRAIN]
}

pub(super) fn encode_ask() -> Vec<u8> {
    vec![ASK]
}

pub(super) fn encode_login(pid: i32, uid: Option<u32>) -> Vec<u8> {
    [&[LOGIN][..], &pid.to_be_bytes(), &uid.unwrap_or(NO_USER).to_be_bytes()].concat()
}

pub(super) fn encode_verdict() -> Vec<u8> {
    vec![VERDICT]
}

pub(super) fn decode_order(bytes: &[u8], fd: Option<OwnedFd>) -> io::Result<Order> {
    match (bytes.split_first(), fd) {
        (Some((&NEW_CUSTODIAN, restarts)), Some(fd)) => {
            Ok(Order::NewCustodian { stream: fd.into(), restarts: number(restarts)? })
        }
        (Some((&DRAIN, [])), None) => Ok(Order::Drain),
        (Some((&ASK, [])), None) => Ok(Order::Ask),
        (Some((&LOGIN, [pid @ .., _, _, _, _])), None) => {
            let uid = number(&bytes[bytes.len() - 4..])?;
            Ok(Order::Login { pid: number(pid)?.cast_signed(), uid: (uid != NO_USER).then_some(uid) })
        }
        (Some((&VERDICT, [])), Some(fd)) => Ok(Order::Reload { verdict: fd }),
        _ => Err(malformed()),
    }
}

pub(super) fn encode_report(report: &Report) -> Vec<u8> {
    match report {
        Report::Ready => vec![READY],
        Report::Alive => vec![ALIVE],
        Report::CustodianHung { restarts } => [&[CUSTODIAN_HUNG][..], &restarts.to_be_bytes()].concat(),
        Report::ReplaceCustodian => vec![REPLACE_CUSTODIAN],
        Report::AskLogin { pid } => [&[ASK_LOGIN][..], &pid.to_be_bytes()].concat(),
        Report::Reload { ticket } => [&[RELOAD][..], &ticket.to_be_bytes()].concat(),
        Report::Reloaded { ticket, applied: true } => [&[APPLIED][..], &ticket.to_be_bytes()].concat(),
        Report::Reloaded { ticket, applied: false } => [&[REFUSED][..], &ticket.to_be_bytes()].concat(),
        Report::Status(text) => {
            let end = text.floor_char_boundary(MOST_STATUS_BYTES);
            [&[STATUS], &text.as_bytes()[..end]].concat()
        }
    }
}

pub(super) fn decode_report(bytes: &[u8]) -> io::Result<Report> {
    match bytes.split_first() {
        Some((&READY, [])) => Ok(Report::Ready),
        Some((&ALIVE, [])) => Ok(Report::Alive),
        Some((&CUSTODIAN_HUNG, restarts)) => Ok(Report::CustodianHung { restarts: number(restarts)? }),
        Some((&REPLACE_CUSTODIAN, [])) => Ok(Report::ReplaceCustodian),
        Some((&ASK_LOGIN, pid)) => Ok(Report::AskLogin { pid: number(pid)?.cast_signed() }),
        Some((&RELOAD, ticket)) => Ok(Report::Reload { ticket: number(ticket)? }),
        Some((&APPLIED, ticket)) => Ok(Report::Reloaded { ticket: number(ticket)?, applied: true }),
        Some((&REFUSED, ticket)) => Ok(Report::Reloaded { ticket: number(ticket)?, applied: false }),
        Some((&STATUS, text)) => {
            let text = std::str::from_utf8(text).map_err(|_| malformed())?;
            Ok(Report::Status(text.to_owned()))
        }
        _ => Err(malformed()),
    }
}

fn number(bytes: &[u8]) -> io::Result<u32> {
    bytes.try_into().map(u32::from_be_bytes).map_err(|_| malformed())
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed packet on the control channel")
}

/// Sends one packet, with a descriptor if one is given. `WouldBlock` when the other side does not read.
pub(super) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = fd.as_slice();
    // The space is that of one descriptor, which is the most that `fds` holds.
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)?;
    Ok(())
}

/// Receives one packet and the descriptor that came with it. Nothing when the other side is gone, `WouldBlock` when
/// there is no packet.
pub(super) fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
    let mut bytes = vec![0; MOST_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = match rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags) {
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        outcome => outcome?,
    };
    let mut fd = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            fd = fds.last();
        }
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(malformed());
    }
    // No packet of ours is empty, so this is the end.
    if received.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(received.bytes);
    Ok(Some((bytes, fd)))
}
