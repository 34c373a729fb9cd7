//! Each line besides to journald or syslog, which can ship it off the box. Never waits: what they do not take is dropped, the
//! trail itself is complete without it.

use std::os::unix::net::UnixDatagram;

use super::settings::Forward;

const JOURNALD: &str = "/run/systemd/journal/socket";
const SYSLOG: &str = "/dev/log";
const IDENTIFIER: &str = "keystead-audit";
/// RFC 3164: facility 13 (log audit), severity 5 (notice).
const SYSLOG_PRIORITY: u8 = 13 * 8 + 5;

pub(super) struct Forwarder {
    to: Forward,
    socket: Option<UnixDatagram>,
    message: Vec<u8>,
    /// The receiver was not there, and this was said.
    said: bool,
}

impl Forwarder {
    pub(super) fn new(to: Forward) -> Self {
        Self { to, socket: None, message: Vec::new(), said: false }
    }

    /// `lines` are whole lines.
    pub(super) fn send(&mut self, lines: &[u8]) {
        for line in lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            self.compose(line);
            if let Err(error) = self.send_message() {
                // The receiver may have been restarted: connect anew with the next line.
                self.socket = None;
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

    fn send_message(&mut self) -> std::io::Result<()> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => {
                let socket = UnixDatagram::unbound()?;
                socket.set_nonblocking(true)?;
                socket.connect(match self.to {
                    Forward::Journald => JOURNALD,
                    Forward::Syslog => SYSLOG,
                })?;
                socket
            }
        };
        socket.send(&self.message)?;
        self.socket = Some(socket);
        Ok(())
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
            let mut forwarder = Forwarder::new(to);
            forwarder.compose(br#"{"seq":1}"#);
            assert_eq!(String::from_utf8(forwarder.message).unwrap(), expected);
        }
    }

    #[test]
    fn lines_arrive_one_by_one_at_a_receiver_and_without_one_nothing_waits() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let mut forwarder = Forwarder { socket: Some(ours), ..Forwarder::new(Forward::Syslog) };
        forwarder.send(b"one\ntwo\n");
        let mut buffer = [0; 100];
        for expected in ["<109>keystead-audit: one", "<109>keystead-audit: two"] {
            let read = theirs.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..read], expected.as_bytes());
        }
        drop(theirs);
        forwarder.send(b"three\n");
        assert!(forwarder.said);
    }
}
