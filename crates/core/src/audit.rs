//! The audit trail's chain: lines that each name the hash of the line before, and checkpoints that custody vouches for.
//!
//! A line is one JSON object without its line end. Its first two members are `seq`, which grows by one, and `prev`: the
//! SHA-256 of `"keystead-audit" ‖ 0x01 ‖` the line before it, exact to the byte (of the keyring's name for the first line). So
//! no line can be changed, taken out, put in or moved without breaking the line after it, and the last lines are held by
//! a checkpoint or by the position that the store keeps.
//!
//! What this proves: that a trail is the one that custody vouched for up to its last checkpoint. Whoever has root *and*
//! the token's credential can write another trail and vouch for that; only a checkpoint that left the box tells.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hex;
use crate::id::KeyringId;
use crate::record::Authenticator;

const LINE_LABEL: &[u8] = b"keystead-audit\x01";
const CHECKPOINT_LABEL: &[u8] = b"keystead-audit-checkpoint\x01";
/// `action` of a checkpoint's line.
pub const CHECKPOINT: &str = "checkpoint";
/// Longest line read or written, without its line end.
pub const MAX_LINE: usize = 8 << 10;

/// How far a trail has come: the number of its last line and that line's hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// 0 before the first line.
    pub sequence: u64,
    #[serde(with = "hex")]
    pub head: [u8; 32],
}

/// What every line has.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Link {
    seq: u64,
    #[serde(with = "hex")]
    prev: [u8; 32],
    action: String,
}

/// A checkpoint's line: custody's word on all lines before it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Checkpoint {
    pub seq: u64,
    #[serde(with = "hex")]
    pub prev: [u8; 32],
    pub time: String,
    pub keyring: KeyringId,
    /// Whose derived key made the tag.
    pub epoch: u64,
    #[serde(with = "hex")]
    pub tag: [u8; 32],
}

/// Why a line does not follow the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("it is no line of an audit trail: damaged or cut short")]
    Malformed,
    #[error("it has number {found} where {expected} must follow: lines were taken out, put in or moved")]
    Sequence { expected: u64, found: u64 },
    #[error("it does not name the line before it: one of the two was changed")]
    Broken,
}

impl Position {
    /// Before the first line of a keyring's trail.
    pub fn start(keyring: &KeyringId) -> Self {
        Self { sequence: 0, head: hash(keyring.as_str().as_bytes()) }
    }

    /// Appends one line and its line end to `out`, and is the position after it. `members` is the rest of the JSON object, as in
    /// `"time":"…","action":"…"`.
    pub fn append(&mut self, members: &str, out: &mut Vec<u8>) {
        let start = out.len();
        let sequence = self.sequence + 1;
        out.extend_from_slice(br#"{"seq":"#);
        out.extend_from_slice(sequence.to_string().as_bytes());
        out.extend_from_slice(br#","prev":""#);
        out.extend_from_slice(hex::encode(&self.head).as_bytes());
        out.extend_from_slice(br#"","#);
        out.extend_from_slice(members.as_bytes());
        out.push(b'}');
        *self = Self { sequence, head: hash(&out[start..]) };
        out.push(b'\n');
    }

    /// Appends a checkpoint by the epoch secret of number `epoch`, whose key `authenticator` holds.
    pub fn checkpoint(
        &mut self,
        keyring: &KeyringId,
        time: &str,
        epoch: u64,
        authenticator: &(impl Authenticator + ?Sized),
        out: &mut Vec<u8>,
    ) {
        let message = checkpoint_message(keyring, self.sequence + 1, &self.head, time, epoch);
        let tag = hex::encode(&authenticator.tag(&message));
        // A keyring's name and an RFC 3339 time need no escaping.
        let members =
            format!(r#""time":"{time}","action":"{CHECKPOINT}","keyring":"{keyring}","epoch":{epoch},"tag":"{tag}""#);
        self.append(&members, out);
    }

    /// Checks that `line` (without its line end) follows, and is the position after it. With a checkpoint, its content.
    pub fn follow(&mut self, line: &[u8]) -> Result<Option<Checkpoint>, ChainError> {
        if line.len() > MAX_LINE {
            return Err(ChainError::Malformed);
        }
        let link: Link = serde_json::from_slice(line).map_err(|_| ChainError::Malformed)?;
        let expected = self.sequence + 1;
        if link.seq != expected {
            return Err(ChainError::Sequence { expected, found: link.seq });
        }
        if link.prev != self.head {
            return Err(ChainError::Broken);
        }
        let checkpoint = match link.action.as_str() {
            CHECKPOINT => Some(serde_json::from_slice(line).map_err(|_| ChainError::Malformed)?),
            _ => None,
        };
        *self = Self { sequence: expected, head: hash(line) };
        Ok(checkpoint)
    }

    /// Where a line that is believed stands: from there, the lines after it can be followed.
    pub fn at(line: &[u8]) -> Result<Self, ChainError> {
        let link: Link = serde_json::from_slice(line).map_err(|_| ChainError::Malformed)?;
        Ok(Self { sequence: link.seq, head: hash(line) })
    }

    /// Just before `line`, as it says itself: where a trail begins whose older files were removed by age.
    pub fn before(line: &[u8]) -> Result<Self, ChainError> {
        let link: Link = serde_json::from_slice(line).map_err(|_| ChainError::Malformed)?;
        let sequence = link.seq.checked_sub(1).ok_or(ChainError::Malformed)?;
        Ok(Self { sequence, head: link.prev })
    }
}

impl Checkpoint {
    /// Whether custody vouched for exactly the lines before this one. `authenticator` holds the key of [`Self::epoch`].
    pub fn is_authentic(&self, authenticator: &(impl Authenticator + ?Sized)) -> bool {
        authenticator.verify(&self.message(), &self.tag)
    }

    /// What the tag is over.
    pub fn message(&self) -> Vec<u8> {
        checkpoint_message(&self.keyring, self.seq, &self.prev, &self.time, self.epoch)
    }
}

fn hash(line: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(LINE_LABEL).chain_update(line).finalize().into()
}

/// `label ‖ u16 len ‖ keyring ‖ u64 epoch ‖ u64 sequence ‖ head (32) ‖ time`, big-endian.
fn checkpoint_message(keyring: &KeyringId, sequence: u64, head: &[u8; 32], time: &str, epoch: u64) -> Vec<u8> {
    let keyring = keyring.as_str().as_bytes();
    let mut message = CHECKPOINT_LABEL.to_vec();
    // A keyring's name has at most 40 bytes.
    message.extend_from_slice(&(keyring.len() as u16).to_be_bytes());
    message.extend_from_slice(keyring);
    message.extend_from_slice(&epoch.to_be_bytes());
    message.extend_from_slice(&sequence.to_be_bytes());
    message.extend_from_slice(head);
    message.extend_from_slice(time.as_bytes());
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Key(u8);

    impl Authenticator for Key {
        fn tag(&self, message: &[u8]) -> [u8; 32] {
            Sha256::new().chain_update([self.0]).chain_update(message).finalize().into()
        }
    }

    fn keyring() -> KeyringId {
        "edge-7".parse().unwrap()
    }

    /// Nine lines, the fifth and the last of which are checkpoints.
    fn trail() -> (Vec<Vec<u8>>, Position) {
        let mut position = Position::start(&keyring());
        let mut bytes = Vec::new();
        for number in 1..=9 {
            match number {
                5 | 9 => position.checkpoint(&keyring(), "2026-11-22T04:00:00.000Z", 3, &Key(7), &mut bytes),
                _ => position.append(&format!(r#""action":"rotate","generation":{number}"#), &mut bytes),
            }
        }
        (bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect(), position)
    }

    fn follow(lines: &[Vec<u8>]) -> Result<(Position, Vec<Checkpoint>), (usize, ChainError)> {
        let mut position = Position::start(&keyring());
        let mut checkpoints = Vec::new();
        for (at, line) in lines.iter().enumerate() {
            checkpoints.extend(position.follow(line).map_err(|error| (at, error))?);
        }
        Ok((position, checkpoints))
    }

    #[test]
    fn what_was_appended_follows_and_ends_where_it_ended() {
        let (lines, end) = trail();
        let (position, checkpoints) = follow(&lines).unwrap();
        assert_eq!(position, end);
        assert_eq!(checkpoints.iter().map(|checkpoint| checkpoint.seq).collect::<Vec<_>>(), [5, 9]);
        assert!(checkpoints.iter().all(|checkpoint| checkpoint.is_authentic(&Key(7))));
        assert!(!checkpoints.iter().any(|checkpoint| checkpoint.is_authentic(&Key(8))));
    }

    #[test]
    fn a_change_of_any_byte_of_any_line_is_found() {
        let (lines, end) = trail();
        for (at, line) in lines.iter().enumerate() {
            for byte in 0..line.len() {
                let mut changed = lines.clone();
                changed[at][byte] ^= 1;
                match follow(&changed) {
                    // The last line has none after it that names it: its position tells.
                    Ok((position, _)) => assert!(at == lines.len() - 1 && position != end, "line {at}, byte {byte}"),
                    Err((found, _)) => assert!(found == at || found == at + 1, "line {at}, byte {byte}"),
                }
            }
        }
    }

    #[test]
    fn lines_taken_out_doubled_or_swapped_are_found_where_it_happened() {
        let (lines, _) = trail();
        for at in 0..lines.len() - 1 {
            let mut removed = lines.clone();
            removed.remove(at);
            let found = at as u64 + 2;
            assert_eq!(follow(&removed).unwrap_err(), (at, ChainError::Sequence { expected: found - 1, found }));
            let mut doubled = lines.clone();
            doubled.insert(at, lines[at].clone());
            assert_eq!(follow(&doubled).unwrap_err().0, at + 1);
            let mut swapped = lines.clone();
            swapped.swap(at, at + 1);
            assert_eq!(follow(&swapped).unwrap_err().0, at);
        }
    }

    #[test]
    fn a_trail_of_another_keyring_does_not_follow() {
        let (lines, _) = trail();
        let mut other = Position::start(&"edge-8".parse().unwrap());
        assert_eq!(other.follow(&lines[0]), Err(ChainError::Broken));
    }

    #[test]
    fn a_checkpoint_is_bound_to_all_that_it_says() {
        let (lines, _) = trail();
        let good = follow(&lines).unwrap().1.remove(0);
        let bad = [
            Checkpoint { seq: good.seq + 1, ..good.clone() },
            Checkpoint { prev: [0; 32], ..good.clone() },
            Checkpoint { time: "2026-11-22T04:00:00.001Z".into(), ..good.clone() },
            Checkpoint { keyring: "edge-8".parse().unwrap(), ..good.clone() },
            Checkpoint { epoch: good.epoch + 1, ..good.clone() },
        ];
        assert!(good.is_authentic(&Key(7)));
        for checkpoint in bad {
            assert!(!checkpoint.is_authentic(&Key(7)), "{checkpoint:?}");
        }
    }

    #[test]
    fn what_is_no_line_is_refused() {
        let long = format!(r#"{{"seq":1,"prev":"{}","action":"{}"}}"#, "0".repeat(64), "a".repeat(MAX_LINE));
        for bad in ["", "{}", "[]", "\u{0}", r#"{"seq":1}"#, r#"{"seq":-1,"prev":"","action":"a"}"#, &long] {
            assert_eq!(Position::start(&keyring()).follow(bad.as_bytes()), Err(ChainError::Malformed), "{bad:.40}");
        }
    }

    #[test]
    fn a_trail_without_its_oldest_lines_is_followed_from_what_its_first_line_says() {
        let (lines, end) = trail();
        let mut position = Position::before(&lines[4]).unwrap();
        for line in &lines[4..] {
            position.follow(line).unwrap();
        }
        assert_eq!(position, end);
        assert_eq!(Position::at(&lines[8]).unwrap(), end);
    }
}
