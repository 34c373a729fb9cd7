//! Each line besides to journald or syslog, which can ship it off the box. Never waits: what they do not take is dropped, the
//! trail itself is complete without it.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use super::settings::{AuditSettings, Forward};

const IDENTIFIER: &str = "keystead-audit";
/// RFC 3164: facility 13 (log audit), severity 5 (notice).
const SYSLOG_PRIORITY: u8 = 13 * 8 + 5;

/// The socket that lines leave by, if the site wants them forwarded. To be made before the sandbox, which allows no new one and
/// no connection: each line names its receiver, also one that was restarted.
pub fn outlet(settings: &AuditSettings) -> io::Result<Option<UnixDatagram>> {
    let Some(_) = settings.forward else { return Ok(None) };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok(Some(socket))
}

pub(super) struct Forwarder {
    to: Forward,
    receiver: PathBuf,
    outlet: UnixDatagram,
    message: Vec<u8>,
    /// The receiver was not there, and this was said.
    said: bool,
}

impl Forwarder {
    pub(super) fn new(to: Forward, outlet: UnixDatagram) -> Self {
        Self { to, receiver: to.receiver().into(), outlet, message: Vec::new(), said: false }
    }

    /// `lines` are whole lines.
    pub(super) fn send(&mut self, lines: &[u8]) {
        for line in lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            self.compose(line);
            if let Err(error) = self.outlet.send_to(&self.message, &self.receiver) {
                if !std::mem::replace(&mut self.said, true) {
                    tracing::warn!(%error, to = ?self.to, "the audit trail is not forwarded");
                }
                return;
            }
            self.said = false;
        }
    }

    /// A line is JSON without line ends, so journald's short form holds it.
    fn compose(&mut self, line: &[u8]) {
        self.message.clear();
        let head = match self.to {
            Forward::Journald => format!("SYSLOG_IDENTIFIER={IDENTIFIER}\nPRIORITY=5\nMESSAGE="),
            Forward::Syslog => format!("<{SYSLOG_PRIORITY}>{IDENTIFIER}: "),
        };
        self.message.extend_from_slice(head.as_bytes());
        self.message.extend_from_slice(line);
        if self.to == Forward::Journald {
            self.message.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_form_that_each_receiver_reads() {
        for (to, expected) in [
            (Forward::Journald, "SYSLOG_IDENTIFIER=keystead-audit\nPRIORITY=5\nMESSAGE={\"seq\":1}\n"),
            (Forward::Syslog, "<109>keystead-audit: {\"seq\":1}"),
        ] {
            let mut forwarder = Forwarder::new(to, UnixDatagram::unbound().unwrap());
            forwarder.compose(br#"{"seq":1}"#);
            assert_eq!(String::from_utf8(forwarder.message).unwrap(), expected);
        }
    }

    #[test]
    fn lines_arrive_one_by_one_at_a_receiver_and_without_one_nothing_waits() {
        let folder = tempfile::tempdir().unwrap();
        let receiver = folder.path().join("log");
        let forwarder = Forwarder::new(Forward::Syslog, UnixDatagram::unbound().unwrap());
        let mut forwarder = Forwarder { receiver: receiver.clone(), ..forwarder };
        forwarder.send(b"lost\n");
        assert!(forwarder.said);
        // Restarted in between, it is found again.
        for lines in ["one\ntwo\n", "three\n"] {
            let _ = std::fs::remove_file(&receiver);
            let theirs = UnixDatagram::bind(&receiver).unwrap();
            forwarder.send(lines.as_bytes());
            let mut buffer = [0; 100];
            for line in lines.lines() {
                let read = theirs.recv(&mut buffer).unwrap();
                assert_eq!(&buffer[..read], format!("<109>keystead-audit: {line}").as_bytes());
            }
            assert!(!forwarder.said);
        }
    }
}
