//! The supervisor's process ID in a file, for scripts and service managers without notification.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Removed when dropped, if it still is ours.
#[derive(Debug)]
pub(super) struct PidFile {
    path: PathBuf,
    text: String,
}

impl PidFile {
    /// Replaces what a former supervisor left. Call it once the sockets are ours: they are what excludes a second one.
    pub(super) fn write(path: &Path) -> io::Result<Self> {
        let text = format!("{}\n", std::process::id());
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        // A reader sees the whole number or the former file, never half of it.
        let mut file = File::create(&fresh)?;
        file.write_all(text.as_bytes())?;
        // Whoever may enter the folder may know the number; the umask would keep it to us.
        rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o644))?;
        fs::rename(&fresh, path)?;
        Ok(Self { path: path.to_owned(), text })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if fs::read_to_string(&self.path).is_ok_and(|text| text == self.text) {
            // What cannot be removed is replaced by the next supervisor.
            let _ = fs::remove_file(&self.path);
        }
    }
}
