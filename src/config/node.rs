//! Which node this is when the file does not say: derived from the machine ID, else the host name.

use std::fmt::Write;

use keystead_core::NodeId;
use sha2::{Digest, Sha256};

use super::error::ConfigError;
use super::site::Site;

/// # Errors
/// [`ConfigError::NoNode`] when the machine has neither; inventing a name would orphan the epoch secrets at the next start.
pub fn derive(site: &Site) -> Result<NodeId, ConfigError> {
    if let Some(id) = site.read("/etc/machine-id").as_deref().map(str::trim).filter(|id| is_machine_id(id)) {
        return from_machine_id(id).ok_or(ConfigError::NoNode);
    }
    let host = site.read("/proc/sys/kernel/hostname").ok_or(ConfigError::NoNode)?;
    match host.trim() {
        // What the kernel says when nobody named the machine.
        "(none)" => Err(ConfigError::NoNode),
        name => name.parse().map_err(|_| ConfigError::NoNode),
    }
}

/// The raw machine ID is confidential (machine-id(5)) and a node name is not: 128 bits of a hash of it, for this use only.
fn from_machine_id(id: &str) -> Option<NodeId> {
    let digest = Sha256::new().chain_update(b"keystead node name\0").chain_update(id).finalize();
    let name = digest.iter().take(16).fold(String::new(), |mut name, byte| {
        // Writing to a String does not fail.
        let _ = write!(name, "{byte:02x}");
        name
    });
    name.parse().ok()
}

/// During early boot of an image the file may be empty or say `uninitialized`.
fn is_machine_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) && text.bytes().any(|byte| byte != b'0')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn site_with(machine_id: Option<&str>, hostname: Option<&str>) -> (tempfile::TempDir, Site) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        fs::create_dir_all(root.path().join("proc/sys/kernel")).unwrap();
        if let Some(id) = machine_id {
            fs::write(root.path().join("etc/machine-id"), id).unwrap();
        }
        if let Some(name) = hostname {
            fs::write(root.path().join("proc/sys/kernel/hostname"), name).unwrap();
        }
        let site = Site { root: root.path().to_owned(), uid: 0, credentials: None };
        (root, site)
    }

    #[test]
    fn machine_id_gives_a_stable_name_that_does_not_show_it() {
        let id = "0123456789abcdef0123456789abcdef";
        let (_root, site) = site_with(Some(&format!("{id}\n")), Some("host\n"));
        let node = derive(&site).unwrap();
        // sha256("keystead node name\0" ‖ id), first 16 bytes: a changed derivation would orphan epoch secrets.
        assert_eq!(node.as_str(), "557e8cfb3cfcbf0f0a068b495553ce1b");
        assert_ne!(node.as_str(), id);
    }

    #[test]
    fn host_name_serves_when_the_machine_id_does_not() {
        for id in [None, Some(""), Some("uninitialized\n"), Some("00000000000000000000000000000000")] {
            let (_root, site) = site_with(id, Some("edge-1.example\n"));
            assert_eq!(derive(&site).unwrap().as_str(), "edge-1.example");
        }
    }

    #[test]
    fn nameless_machine_is_an_error_and_not_a_guess() {
        for host in [None, Some(""), Some("(none)\n"), Some("has space\n")] {
            let (_root, site) = site_with(None, host);
            assert!(matches!(derive(&site), Err(ConfigError::NoNode)), "{host:?}");
        }
    }
}
