//! What is recorded, and how it reads as members of a JSON object.

use std::fmt::Display;
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
#[derive(Debug, Clone, Copy)]
pub struct RequestRecord<'a> {
    pub at: SystemTime,
    /// `encrypt` or `decrypt`.
    pub action: &'static str,
    /// The apiserver's request uid.
    pub uid: &'a str,
    pub peer_uid: Option<u32>,
    pub peer_pid: Option<i32>,
    /// As asked for, or as answered.
    pub key_id: &'a str,
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

/// Requests that wait for the writer, their texts one after the other: recording one allocates nothing, and nothing that one thread
/// allocated is freed by another. Of a text no more is kept than is written.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// Each with the lengths of its two texts, which it does not hold itself.
    records: Vec<(RequestRecord<'static>, usize, usize)>,
    texts: String,
}

impl Requests {
    pub(super) fn push(&mut self, record: RequestRecord<'_>) {
        let (uid, key_id) = (cut(record.uid), cut(record.key_id));
        self.texts.push_str(uid);
        self.texts.push_str(key_id);
        let RequestRecord { at, action, peer_uid, peer_pid, outcome, latency, .. } = record;
        let record = RequestRecord { at, action, uid: "", peer_uid, peer_pid, key_id: "", outcome, latency };
        self.records.push((record, uid.len(), key_id.len()));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = RequestRecord<'_>> {
        let mut texts = self.texts.as_str();
        self.records.iter().map(move |(record, uid, key_id)| {
            let (uid, rest) = texts.split_at(*uid);
            let (key_id, rest) = rest.split_at(*key_id);
            texts = rest;
            RequestRecord { uid, key_id, ..*record }
        })
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn clear(&mut self) {
        self.records.clear();
        self.texts.clear();
    }

    /// Bytes that it holds on to, filled or not.
    pub(super) fn footprint(&self) -> usize {
        self.records.capacity() * size_of::<(RequestRecord<'static>, usize, usize)>() + self.texts.capacity()
    }
}

impl RequestRecord<'_> {
    pub(super) fn members(&self, members: &mut String) {
        use std::fmt::Write;
        members.clear();
        // Writing to a String cannot fail.
        let _ = write!(members, r#""time":"{}","action":"{}","uid":"#, time(self.at), self.action);
        push_text(members, self.uid);
        if let Some(uid) = self.peer_uid {
            let _ = write!(members, r#","peer_uid":{uid}"#);
        }
        if let Some(pid) = self.peer_pid {
            let _ = write!(members, r#","peer_pid":{pid}"#);
        }
        members.push_str(r#","key_id":"#);
        push_text(members, self.key_id);
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
pub(super) fn time(at: SystemTime) -> impl Display {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    humantime::format_rfc3339_millis(UNIX_EPOCH + since)
}
