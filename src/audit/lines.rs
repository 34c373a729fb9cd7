//! What is recorded, and how it reads as members of a JSON object.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keystead_core::KeyId;
use serde::Serialize;
use serde_json::{Map, Value};

/// Longest string of a peer's that is written, in bytes.
const MAX_TEXT: usize = 512;

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Who {
    Peer(AuditedPeer),
    /// The daemon itself, by this part of it: `schedule`, `signal`.
    Daemon(&'static str),
}

/// The kernel's word on the peer of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AuditedPeer {
    pub uid: u32,
    /// Whose session it is, whoever the peer has become since; `None` where the kernel was not told, or it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login_uid: Option<u32>,
    pub gid: u32,
    /// `None` where the peer lives in another process namespace.
    pub pid: Option<i32>,
}

/// An admin action, before and after, or a change of state that nobody asked for.
#[derive(Debug, Clone)]
pub struct AdminRecord {
    pub at: SystemTime,
    /// `rotate`, `disable`, …
    pub action: &'static str,
    pub phase: Phase,
    /// `None` for what nobody asked for.
    pub who: Option<Who>,
    /// What it was about: generation, key ID, reason. No secrets.
    pub details: Map<String, Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Written and synced before anything is done.
    Intent,
    Done,
    Failed,
    /// The caller may not.
    Refused,
    /// Something that happened, not an action.
    Event,
}

/// One Encrypt or Decrypt.
#[derive(Debug, Clone)]
pub struct RequestRecord {
    pub at: SystemTime,
    /// `encrypt` or `decrypt`.
    pub action: &'static str,
    /// The apiserver's request uid.
    pub uid: String,
    pub peer_uid: Option<u32>,
    pub peer_pid: Option<i32>,
    /// As asked for, or as answered.
    pub key_id: String,
    pub outcome: Outcome,
    pub latency: Duration,
}

/// What a request came to: `ok`, or the gRPC code's name.
pub type Outcome = &'static str;

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Intent => "intent",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Event => "event",
        }
    }
}

impl AdminRecord {
    /// As members of a JSON object.
    pub(super) fn members(&self) -> String {
        let mut members =
            format!(r#""time":"{}","action":"{}","phase":"{}""#, time(self.at), self.action, self.phase.name());
        if let Some(who) = &self.who {
            push(&mut members, "who", who);
        }
        if !self.details.is_empty() {
            push(&mut members, "details", &bounded(&self.details));
        }
        members
    }
}

impl RequestRecord {
    pub(super) fn members(&self, members: &mut String) {
        use std::fmt::Write;
        members.clear();
        // Writing to a String cannot fail.
        let _ = write!(members, r#""time":"{}","action":"{}","uid":"#, time(self.at), self.action);
        push_text(members, &self.uid);
        if let Some(uid) = self.peer_uid {
            let _ = write!(members, r#","peer_uid":{uid}"#);
        }
        if let Some(pid) = self.peer_pid {
            let _ = write!(members, r#","peer_pid":{pid}"#);
        }
        members.push_str(r#","key_id":"#);
        push_text(members, &self.key_id);
        let _ = write!(
            members,
            r#","generation":{},"outcome":"{}","latency_us":{}"#,
            // 0 where it is no key ID of ours.
            self.key_id.parse().map_or(0, |id: KeyId| id.generation().0),
            self.outcome,
            self.latency.as_micros()
        );
    }
}

fn push(members: &mut String, name: &str, value: &impl Serialize) {
    members.push_str(&format!(r#","{name}":"#));
    members.push_str(&serde_json::to_string(value).unwrap_or_else(|_| "null".into()));
}

/// As JSON, cut where it is longer than anything that belongs there.
fn push_text(members: &mut String, text: &str) {
    let text = cut(text);
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\') {
        members.push('"');
        members.push_str(text);
        members.push('"');
    } else {
        members.push_str(&Value::from(text).to_string());
    }
}

fn bounded(details: &Map<String, Value>) -> Map<String, Value> {
    let bounded = |value: &Value| match value {
        Value::String(text) => Value::from(cut(text)),
        other => other.clone(),
    };
    details.iter().map(|(name, value)| (name.clone(), bounded(value))).collect()
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

/// `2026-11-22T04:00:00.123Z`.
pub(super) fn time(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = humantime::format_rfc3339_millis(UNIX_EPOCH + since);
    time.to_string()
}
