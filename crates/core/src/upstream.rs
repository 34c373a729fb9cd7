//! What a failure of the upstream means for the right to serve: one class a reaction, whatever the cloud.
//!
//! Each provider sorts its service's own error codes into these; the availability state machine knows nothing else.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why an upstream call did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultClass {
    /// No answer, or none that is surely the service's: DNS, TCP, TLS, a captive portal, throttling, a 5xx. The lease runs on.
    Unreachable,
    /// The service does not know the credential, or refuses its signature or its time. Alarm; no renewal.
    CredentialFault,
    /// The account is in debt or suspended. Alarm; no renewal.
    Billing,
    /// The credential is good and may not use this key. Revokes once confirmed over time.
    Denied,
    /// The key is disabled or pending deletion. Revokes; enabling it in the cloud brings service back.
    KeyDisabled,
    /// There is no such key. Revokes, if this configuration has used the key before; else it is a mistyped configuration.
    KeyGone,
    /// The ciphertext or its context is refused, or the answer is another key's. Alarm; neither fallback nor revocation.
    Corrupt,
    /// The service refused with a code that nobody has sorted yet. Treated like [`FaultClass::Unreachable`], with an alarm.
    Unclassified,
}

impl FaultClass {
    pub const ALL: [Self; 8] = [
        Self::Unreachable,
        Self::CredentialFault,
        Self::Billing,
        Self::Denied,
        Self::KeyDisabled,
        Self::KeyGone,
        Self::Corrupt,
        Self::Unclassified,
    ];

    /// As in logs, metrics and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::CredentialFault => "credential-fault",
            Self::Billing => "billing",
            Self::Denied => "denied",
            Self::KeyDisabled => "key-disabled",
            Self::KeyGone => "key-gone",
            Self::Corrupt => "corrupt",
            Self::Unclassified => "unclassified",
        }
    }
}

impl fmt::Display for FaultClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_name_is_the_shown_one() {
        for class in FaultClass::ALL {
            assert_eq!(serde_json::to_string(&class).unwrap(), format!("\"{class}\""));
        }
    }
}
