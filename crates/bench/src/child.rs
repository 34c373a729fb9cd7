//! Processes that this one starts, and therefore stops: whatever way a measurement ends, nothing of it stays behind.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::failure::{Failure, FailureExt};
use crate::procfs::Pid;

/// Longer than the daemon's default drain deadline.
const STOP_LIMIT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(1);

/// A server that runs until it is stopped or dropped: SIGTERM first, SIGKILL when that does not help.
#[derive(Debug)]
pub struct Running {
    child: Child,
    what: String,
    log: PathBuf,
}

impl Running {
    /// Starts `command`, appending what it says to `log`.
    pub fn start(command: &mut Command, what: &str, log: &Path) -> Result<Self, Failure> {
        let output =
            File::options().create(true).append(true).open(log).doing(|| format!("write {}", log.display()))?;
        let errors = output.try_clone().doing(|| format!("write {}", log.display()))?;
        let child = command.stdout(output).stderr(errors).spawn().doing(|| format!("start {what}"))?;
        Ok(Self { child, what: what.to_owned(), log: log.to_owned() })
    }

    pub fn pid(&self) -> Pid {
        Pid(self.child.id())
    }

    /// # Errors
    /// When the process has ended by itself, with the end of its log.
    pub fn expect_alive(&mut self) -> Result<(), Failure> {
        match self.child.try_wait().doing(|| format!("wait for {}", self.what))? {
            None => Ok(()),
            Some(status) => Err(Failure::Command {
                command: self.what.clone(),
                status: status.to_string(),
                output: self.last_words(),
            }),
        }
    }

    /// The end of what it wrote to its log.
    pub fn last_words(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let start = text.len().saturating_sub(2000);
        String::from_utf8_lossy(&text[start..]).into_owned()
    }

    /// Stops it in good order, while the runtime goes on closing our connections to it.
    pub async fn stop(mut self) -> Result<ExitStatus, Failure> {
        self.terminate();
        let deadline = Instant::now() + STOP_LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().doing(|| format!("wait for {}", self.what))? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                let (what, said) = (format!("{} did not stop, which", self.what), self.last_words());
                return Err(Failure::TooLong { what, limit: STOP_LIMIT, said });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn terminate(&mut self) {
        // Its own stdin ending is the echo server's signal, should the process have been replaced meanwhile.
        drop(self.child.stdin.take());
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // Not yet waited for, so the id cannot name another process.
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        self.terminate();
        let deadline = Instant::now() + STOP_LIMIT;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(POLL);
        }
        // The daemon's other processes end with their supervisor.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `command` to its end and gives what it printed; kills it after `limit`.
pub async fn output(command: &mut Command, limit: Duration) -> Result<String, Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut printed = tempfile::tempfile().doing(|| "make a temporary file".into())?;
    let for_child = |file: &File| file.try_clone().map(Stdio::from).doing(|| format!("start {name}"));
    command.stdin(Stdio::null()).stdout(for_child(&printed)?).stderr(for_child(&printed)?);
    let mut child = Short(command.spawn().doing(|| format!("start {name}"))?);

    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.0.try_wait().doing(|| format!("wait for {name}"))? {
            break Some(status);
        }
        if Instant::now() > deadline {
            break None;
        }
        tokio::time::sleep(POLL).await;
    };
    let mut text = String::new();
    printed.rewind().and_then(|()| printed.read_to_string(&mut text)).doing(|| format!("read what {name} printed"))?;
    match status {
        Some(status) if status.success() => Ok(text),
        Some(status) => Err(Failure::Command { command: line(command), status: status.to_string(), output: text }),
        None => Err(Failure::TooLong { what: format!("`{}`", line(command)), limit, said: text }),
    }
}

fn line(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    words.join(" ")
}

/// A command that is given no time to end when nobody waits for it any more.
struct Short(Child);

impl Drop for Short {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
