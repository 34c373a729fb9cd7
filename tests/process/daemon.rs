//! A supervisor under test: started in a folder of its own, asked through its socket, killed at the end whatever happens.

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// Far above what anything here takes; a broken supervisor fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Daemon {
    pub folder: tempfile::TempDir,
    pub supervisor: Child,
    notifications: UnixDatagram,
}

impl Daemon {
    pub fn start(mode: &str) -> Self {
        let folder = folder();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("supervise").arg(folder.path()).arg(mode);
        Self::start_by(command, folder)
    }

    pub fn start_by(mut command: Command, folder: tempfile::TempDir) -> Self {
        let notify = folder.path().join("notify.sock");
        let notifications = UnixDatagram::bind(&notify).unwrap();
        notifications.set_nonblocking(true).unwrap();
        command.env("NOTIFY_SOCKET", &notify).env("CREDENTIALS_DIRECTORY", folder.path()).env("A_SECRET", "x");
        let supervisor = command.spawn().unwrap();
        Self { folder, supervisor, notifications }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Asks until the daemon answers with all that a settled one knows.
    pub fn facts(&self) -> Facts {
        eventually("the daemon to answer", || {
            let facts = self.ask("f")?;
            (facts.0.contains("custodian_sees")).then_some(facts)
        })
    }

    pub fn ask(&self, question: &str) -> Option<Facts> {
        let mut stream = UnixStream::connect(self.path("kms.sock")).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(question.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(Facts(answer))
    }

    /// Waits until the service manager was told `state`.
    pub fn notified(&self, state: &str) {
        eventually(state, || {
            let mut bytes = [0; 1024];
            let count = self.notifications.recv(&mut bytes).ok()?;
            std::str::from_utf8(&bytes[..count]).unwrap().contains(state).then_some(())
        });
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(pid(self.supervisor.id()), signal).unwrap();
    }

    pub fn end(&mut self) -> ExitStatus {
        eventually("the supervisor to end", || self.supervisor.try_wait().unwrap())
    }

    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.end().code(), Some(0));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The children die with it.
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
    }
}

pub struct Facts(pub String);

impl Facts {
    pub fn get(&self, name: &str) -> &str {
        let prefix = format!("{name}=");
        self.0.lines().rev().find_map(|line| line.split_once(&prefix).map(|(_, value)| value)).unwrap_or_else(|| {
            panic!("no {name} in {}", self.0);
        })
    }

    pub fn pid(&self, name: &str) -> u32 {
        self.get(name).parse().unwrap()
    }
}

pub fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("store")).unwrap();
    std::fs::write(folder.path().join("pin"), "1234").unwrap();
    folder
}

pub fn pid(number: u32) -> Pid {
    Pid::from_raw(number.try_into().unwrap()).unwrap()
}

pub fn kill(number: u32) {
    rustix::process::kill_process(pid(number), Signal::KILL).unwrap();
}

/// Dead, whether or not somebody has reaped it.
pub fn is_dead(number: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{number}/stat")) else { return true };
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
}

pub fn eventually<T>(what: &str, mut happens: impl FnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = happens() {
            return value;
        }
        assert!(Instant::now() < give_up, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
