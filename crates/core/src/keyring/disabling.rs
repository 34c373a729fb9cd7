//! The key as a whole, switched off and on by an admin. Independent of its generations, and of what the cloud says of it.

use serde::{Deserialize, Serialize};

use super::Keyring;
use crate::reason::Reason;

/// Who switched the key off, when and why. While it stands in the record, no generation is opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disabling {
    /// Unix seconds; for people.
    pub since: u64,
    /// The user who asked for it; absent if only the marker in the store's folder told of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The user who that one had logged in as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login_uid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

impl Keyring {
    /// Switches the key off. False if it was off already: then the first word on it stands.
    pub fn disable(&mut self, disabling: Disabling) -> bool {
        let on = self.disabled.is_none();
        self.disabled.get_or_insert(disabling);
        on
    }

    /// Switches the key on; false if it was on. Lifts nothing else: what is revoked stays revoked, a lease that is used up
    /// stays used up.
    pub fn enable(&mut self) -> bool {
        self.disabled.take().is_some()
    }
}
