//! A file that is read again when it changes: CA certificates, credentials, platform tokens.
//!
//! Looked at when its content is needed, not watched in the background. A file that is broken or gone does not take away
//! what was read before: whether an old credential still counts is for the cloud to say.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FileType, Mode, OFlags};
use zeroize::Zeroizing;

/// What a mode may grant at most when the content is secret: 0640.
const TOO_OPEN: u32 = 0o037;

type Parse<T> = Box<dyn Fn(&[u8]) -> Result<T, String> + Send + Sync>;

/// `T` is what the file says, parsed.
pub struct Watched<T>(Arc<Inner<T>>);

struct Inner<T> {
    path: PathBuf,
    max_len: u64,
    secrecy: Secrecy,
    parse: Parse<T>,
    state: Mutex<State<T>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secrecy {
    /// Refused when others than its owner and group may read it, or others than its owner may write it.
    Private,
    /// Its mode is the platform's business.
    AnyMode,
}

struct State<T> {
    good: Option<Arc<T>>,
    /// The state of the file that was judged last, and how.
    judged: Option<(Identity, Result<(), String>)>,
    warned: Option<String>,
}

/// Changes whenever somebody changes the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    modified_ns: i128,
    changed_ns: i128,
    size: i64,
}

/// Nothing was ever read from this file. Holds none of its content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct FileFault {
    pub path: PathBuf,
    pub problem: String,
}

impl<T> Clone for Watched<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// `parse` says what is wrong in words without any of the content. Opens nothing yet.
    pub fn new(
        path: PathBuf,
        max_len: u64,
        secrecy: Secrecy,
        parse: impl Fn(&[u8]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Self {
        let state = Mutex::new(State { good: None, judged: None, warned: None });
        Self(Arc::new(Inner { path, max_len, secrecy, parse: Box::new(parse), state }))
    }

    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// What the file says now; what it said last, with a warning in the log, while it is broken or gone.
    ///
    /// Reads on a blocking thread: a file on a dead disk must hold up nobody else.
    ///
    /// # Errors
    /// [`FileFault`] while nothing good was ever read.
    pub async fn get(&self) -> Result<Arc<T>, FileFault> {
        let inner = Arc::clone(&self.0);
        let path = self.0.path.clone();
        tokio::task::spawn_blocking(move || inner.read())
            .await
            .unwrap_or_else(|_| Err(FileFault { path, problem: "it could not be read: the reader stopped".into() }))
    }

    /// What was read last. Opens nothing.
    pub fn last(&self) -> Option<Arc<T>> {
        self.0.state().good.clone()
    }
}

impl<T> Inner<T> {
    fn state(&self) -> std::sync::MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> Result<Arc<T>, FileFault> {
        let opened = self.open();
        let mut state = self.state();
        let verdict = match opened {
            Err(problem) => Err(problem),
            Ok((_, identity)) if state.judged.as_ref().is_some_and(|(judged, _)| *judged == identity) => {
                // Judged before: neither read nor complained about again.
                state.judged.as_ref().map_or(Ok(()), |(_, verdict)| verdict.clone())
            }
            Ok((file, identity)) => {
                let verdict = self.parsed(file).map(|content| state.good = Some(Arc::new(content)));
                state.judged = Some((identity, verdict.clone()));
                verdict
            }
        };
        match (verdict, state.good.clone()) {
            (Ok(()), Some(good)) => {
                state.warned = None;
                Ok(good)
            }
            (Err(problem), Some(good)) => {
                if state.warned.as_ref() != Some(&problem) {
                    tracing::warn!(file = %self.path.display(), problem, "file cannot be used; what it said before is used on");
                    state.warned = Some(problem);
                }
                Ok(good)
            }
            (Err(problem), None) => Err(FileFault { path: self.path.clone(), problem }),
            // A verdict of `Ok` has left its content in `good`.
            (Ok(()), None) => Err(FileFault { path: self.path.clone(), problem: "it was not read".into() }),
        }
    }

    fn open(&self) -> Result<(File, Identity), String> {
        // Non-blocking, so that a FIFO in the file's place is refused instead of waited for.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::open(&self.path, flags, Mode::empty()).map_err(|error| error.to_string())?;
        let status = rustix::fs::fstat(&file).map_err(|error| error.to_string())?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return Err("it is not a regular file".into());
        }
        let mode = status.st_mode & 0o777;
        if self.secrecy == Secrecy::Private && mode & TOO_OPEN != 0 {
            return Err(format!("its mode is {mode:04o}; make it 0640 or narrower"));
        }
        let nanoseconds = |seconds: i64, rest: i128| i128::from(seconds) * 1_000_000_000 + rest;
        let identity = Identity {
            device: status.st_dev,
            inode: status.st_ino,
            modified_ns: nanoseconds(status.st_mtime, i128::from(status.st_mtime_nsec)),
            changed_ns: nanoseconds(status.st_ctime, i128::from(status.st_ctime_nsec)),
            size: status.st_size,
        };
        Ok((File::from(file), identity))
    }

    fn parsed(&self, file: File) -> Result<T, String> {
        let mut content = Zeroizing::new(Vec::new());
        file.take(self.max_len + 1).read_to_end(&mut content).map_err(|error| error.to_string())?;
        if content.len() as u64 > self.max_len {
            return Err(format!("it is longer than {} bytes", self.max_len));
        }
        (self.parse)(&content)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn watched(secrecy: Secrecy) -> (tempfile::TempDir, Watched<u32>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        let parse = |bytes: &[u8]| {
            std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).ok_or("it is no number".into())
        };
        (folder, Watched::new(path, 8, secrecy, parse))
    }

    fn write(watched: &Watched<u32>, content: &str, mode: u32) {
        // Another inode each time, as a secret's update by rename has.
        let next = watched.path().with_extension("next");
        fs::write(&next, content).unwrap();
        fs::set_permissions(&next, fs::Permissions::from_mode(mode)).unwrap();
        fs::rename(next, watched.path()).unwrap();
    }

    #[tokio::test]
    async fn changed_file_is_read_again_and_a_broken_one_keeps_what_was_read() {
        let (_folder, number) = watched(Secrecy::Private);
        assert!(number.get().await.unwrap_err().to_string().contains("number: No such file"));
        write(&number, "1", 0o640);
        assert_eq!(*number.get().await.unwrap(), 1);
        write(&number, "2", 0o600);
        assert_eq!(*number.get().await.unwrap(), 2);
        write(&number, "two", 0o600);
        assert_eq!(*number.get().await.unwrap(), 2);
        fs::remove_file(number.path()).unwrap();
        assert_eq!(*number.get().await.unwrap(), 2);
        write(&number, "3", 0o600);
        assert_eq!(*number.get().await.unwrap(), 3);
    }

    #[tokio::test]
    async fn open_secret_long_file_folder_and_garbage_are_refused() {
        let (_folder, number) = watched(Secrecy::Private);
        write(&number, "1", 0o644);
        assert!(number.get().await.unwrap_err().problem.contains("make it 0640"));
        write(&number, "123456789", 0o600);
        assert!(number.get().await.unwrap_err().problem.contains("longer than 8 bytes"));
        write(&number, "x", 0o600);
        assert_eq!(number.get().await.unwrap_err().problem, "it is no number");
        fs::remove_file(number.path()).unwrap();
        fs::create_dir(number.path()).unwrap();
        assert!(number.get().await.unwrap_err().problem.contains("not a regular file"));
        let (_folder, public) = watched(Secrecy::AnyMode);
        write(&public, "1", 0o644);
        assert_eq!(*public.get().await.unwrap(), 1);
    }
}
