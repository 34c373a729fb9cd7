//! What a site may say about its trail.

use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditSettings {
    /// Folder of the trail's files; made 0700 if it is missing.
    pub folder: PathBuf,
    pub level: Level,
    pub failure: FailurePolicy,
    /// A file that has grown beyond this is closed and a new one begun.
    pub max_bytes: u64,
    /// So is one whose first line is older.
    pub max_age: Duration,
    /// Closed files kept; older ones are removed.
    pub keep: usize,
    pub forward: Option<Forward>,
}

/// What is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Admin actions and changes of state.
    Admin,
    /// Every Encrypt and Decrypt besides.
    Requests,
}

/// What happens while the trail cannot be written: the disk is full, the folder gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailurePolicy {
    /// What cannot be recorded is refused.
    Stop,
    /// It is done, counted as lost, and said in status, log and metrics; the trail tells how many are missing.
    ContinueWithAlarm,
}

/// Where each line goes besides: off the box, it proves what the box cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forward {
    /// `/run/systemd/journal/socket`, in journald's own protocol.
    Journald,
    /// `/dev/log`, RFC 3164.
    Syslog,
}

impl Forward {
    /// The datagram socket that takes the lines.
    pub fn receiver(self) -> &'static str {
        match self {
            Self::Journald => "/run/systemd/journal/socket",
            Self::Syslog => "/dev/log",
        }
    }
}
