//! Whether the configuration file still says what the daemon runs by. The daemon cannot open it, so this side looks.

use std::fs::File;
use std::io::Read;

use keystead_wire::admin::v1::Configuration;
use sha2::{Digest, Sha256};

/// No configuration is longer.
const MOST_BYTES: u64 = 1 << 20;

/// `None`: there is no file, or this user may not read it.
pub fn differs(configuration: &Configuration) -> Option<bool> {
    // A pipe would hold up whoever opens it, and has its text once.
    if !std::fs::metadata(&configuration.file).ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    File::open(&configuration.file).ok()?.take(MOST_BYTES + 1).read_to_end(&mut text).ok()?;
    Some(Sha256::digest(&text)[..] != configuration.sha256[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_is_told_from_what_was_loaded_and_none_is_unknown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, "node = \"n\"\n").unwrap();
        let sha256 = Sha256::digest(b"node = \"n\"\n").to_vec();
        let configuration =
            Configuration { file: path.display().to_string(), sha256, loaded: 1, refused: String::new() };
        assert_eq!(differs(&configuration), Some(false));
        std::fs::write(&path, "node = \"m\"\n").unwrap();
        assert_eq!(differs(&configuration), Some(true));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(differs(&configuration), None);
        assert_eq!(differs(&Configuration::default()), None);
        let folder = folder.path().display().to_string();
        assert_eq!(differs(&Configuration { file: folder, ..configuration }), None);
    }
}
