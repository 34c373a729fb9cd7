//! Picks lines of a trail: since when, which action, whose, which generation.

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::time::SystemTime;

use keystead_core::audit::MAX_LINE;
use serde_json::Value;

use super::files::{list, open_to_read};

/// Which lines are wanted; what is `None` is not asked for.
#[derive(Debug, Default)]
pub struct Filter {
    pub since: Option<SystemTime>,
    pub until: Option<SystemTime>,
    pub action: Option<String>,
    /// Of the peer, or that it logged in as.
    pub uid: Option<u64>,
    pub generation: Option<u64>,
    pub outcome: Option<String>,
}

/// Calls `each` with every line that `filter` picks, oldest first, until it says that it has enough. Lines that are damaged
/// are left out; `verify` says where they are.
pub fn query(folder: &Path, filter: &Filter, mut each: impl FnMut(String) -> bool) -> io::Result<()> {
    for path in list(folder)? {
        let mut reader = BufReader::new(open_to_read(&path)?);
        let mut line = Vec::new();
        loop {
            line.clear();
            if (&mut reader).take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            let picked = serde_json::from_slice::<Value>(&line).is_ok_and(|value| filter.picks(&value));
            if picked && !each(String::from_utf8_lossy(line.trim_ascii_end()).into_owned()) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// [`query`], but only the last `limit` lines; 0 is all. Reads twice rather than hold so many lines in memory.
pub fn query_last(
    folder: &Path,
    filter: &Filter,
    limit: usize,
    mut each: impl FnMut(String) -> bool,
) -> io::Result<()> {
    if limit == 0 {
        return query(folder, filter, each);
    }
    let mut earlier = 0_usize;
    query(folder, filter, |_| {
        earlier += 1;
        true
    })?;
    earlier = earlier.saturating_sub(limit);
    query(folder, filter, |line| match earlier.checked_sub(1) {
        Some(rest) => {
            earlier = rest;
            true
        }
        None => each(line),
    })
}

impl Filter {
    fn picks(&self, line: &Value) -> bool {
        let text = |name: &str| line.get(name).and_then(Value::as_str);
        let number = |value: Option<&Value>| value.and_then(Value::as_u64);
        let time = || text("time").and_then(|time| humantime::parse_rfc3339(time).ok());
        let detail = |name: &str| line.get("details").and_then(|details| details.get(name));
        self.since.is_none_or(|since| time().is_some_and(|time| time >= since))
            && self.until.is_none_or(|until| time().is_some_and(|time| time <= until))
            && self.action.as_deref().is_none_or(|action| text("action") == Some(action))
            && self.outcome.as_deref().is_none_or(|outcome| text("outcome").or_else(|| text("phase")) == Some(outcome))
            && self.uid.is_none_or(|uid| {
                let who = |name: &str| line.get("who").and_then(|who| who.get(name));
                [line.get("peer_uid"), who("uid"), who("login_uid")].into_iter().any(|value| number(value) == Some(uid))
            })
            && self.generation.is_none_or(|generation| {
                number(line.get("generation").or_else(|| detail("generation"))) == Some(generation)
            })
    }
}
