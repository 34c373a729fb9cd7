//! systemd's unit files, as far as they decide whether and when something starts. Read from the files: asking systemd takes
//! a bus and its answer depends on who asks.

use std::path::{Path, PathBuf};

use super::look::{self, Look};
use crate::config::Site;

/// Where units are looked for, most important first (systemd.unit(5)).
const FOLDERS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// A unit file with its drop-ins, in the order in which systemd reads them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    pub file: PathBuf,
    pub texts: Vec<String>,
    /// Linked into a target's `.wants` or `.requires`.
    pub enabled: bool,
    /// Linked to /dev/null: cannot be started.
    pub masked: bool,
}

impl Unit {
    pub fn find(site: &Site, name: &str) -> Option<Self> {
        let folders = FOLDERS.map(|folder| site.path(folder));
        let file = folders.iter().map(|folder| folder.join(name)).find(|file| file.symlink_metadata().is_ok())?;
        let masked = std::fs::read_link(&file).is_ok_and(|target| target == Path::new("/dev/null"));
        let mut drop_ins = Vec::new();
        for folder in &folders {
            let folder = folder.join(format!("{name}.d"));
            let names = look::names(&folder).into_iter().filter(|name| name.ends_with(".conf"));
            for name in names {
                if !drop_ins.iter().any(|(known, _)| *known == name) {
                    drop_ins.push((name.clone(), folder.join(name)));
                }
            }
        }
        drop_ins.sort();
        let files = std::iter::once(file.clone()).chain(drop_ins.into_iter().map(|(_, file)| file));
        let texts = files.filter_map(|file| match look::read(&file) {
            Look::Found(text) => Some(text),
            _ => None,
        });
        Some(Self { texts: texts.collect(), enabled: enabled(&folders, name), masked, file })
    }

    /// The words of every `key=`; an empty one forgets those before.
    pub fn words(&self, key: &str) -> Vec<String> {
        let mut words = Vec::new();
        for text in &self.texts {
            // A backslash at the end joins lines.
            for line in text.replace("\\\n", " ").lines() {
                let Some((name, value)) = line.split_once('=') else { continue };
                if name.trim() != key || line.trim_start().starts_with(['#', ';']) {
                    continue;
                }
                if value.trim().is_empty() {
                    words.clear();
                }
                words.extend(value.split_whitespace().map(ToOwned::to_owned));
            }
        }
        words
    }
}

fn enabled(folders: &[PathBuf], name: &str) -> bool {
    folders.iter().any(|folder| {
        look::names(folder)
            .iter()
            .filter(|entry| entry.ends_with(".wants") || entry.ends_with(".requires"))
            .any(|entry| folder.join(entry).join(name).symlink_metadata().is_ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn drop_ins_add_and_an_empty_value_forgets() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("usr/lib/systemd/system/a.service", "[Unit]\nBefore=b.service \\\n c.service\n#Before=x.service\n");
        put("etc/systemd/system/a.service.d/10-x.conf", "[Unit]\nBefore=\nBefore = d.service\n");
        put("usr/lib/systemd/system/a.service.d/10-x.conf", "[Unit]\nBefore=hidden.service\n");
        put("usr/lib/systemd/system/a.service.d/20-y.conf", "[Unit]\nBefore=e.service\n");
        put("usr/lib/systemd/system/a.service.d/readme", "Before=no.service\n");
        let site = Site { root: folder.path().to_owned(), uid: 0, credentials: None };
        let unit = Unit::find(&site, "a.service").unwrap();
        assert_eq!(unit.words("Before"), ["d.service", "e.service"]);
        assert!(!unit.enabled && !unit.masked);
        put("etc/systemd/system/multi-user.target.wants/a.service", "");
        assert!(Unit::find(&site, "a.service").unwrap().enabled);
        std::os::unix::fs::symlink("/dev/null", folder.path().join("etc/systemd/system/a.service")).unwrap();
        assert!(Unit::find(&site, "a.service").unwrap().masked);
        assert_eq!(Unit::find(&site, "b.service"), None);
    }
}
