//! Starts, watches and stops one daemon in a folder of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use keystead_wire::admin::v1::admin_client::AdminClient;
use keystead_wire::admin::v1::{GetStatusRequest, GetStatusResponse};
use keystead_wire::kms::v2::key_management_service_client::KeyManagementServiceClient;
use keystead_wire::kms::v2::{EncryptRequest, EncryptResponse, StatusRequest};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::clients::channel;
use crate::token::{Make, Token};

pub type Kms = KeyManagementServiceClient<Channel>;
pub type Admin = AdminClient<Channel>;

/// Long enough for a busy machine, short enough to tell that something hangs.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// One site: a folder with a token, a configuration and a store. Removed with everything that runs in it.
pub struct Site {
    folder: TempDir,
    pub token: Token,
}

/// A running `keystead serve`; killed when dropped.
pub struct Daemon {
    child: Child,
    run: PathBuf,
    log: PathBuf,
}

/// Whoever is held at a failpoint; let go when dropped, too.
pub struct Hold(PathBuf);

impl Hold {
    pub fn let_go(self) {}
}

impl Drop for Hold {
    fn drop(&mut self) {
        // The site's folder may be gone before it.
        let _ = fs::write(&self.0, "");
    }
}

impl Site {
    /// A token and a configuration, no key yet. `extra` is appended to the configuration.
    pub fn bare(extra: &str) -> Self {
        Self::bare_on(Make::SoftHsm, extra)
    }

    pub fn bare_on(make: Make, extra: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("ks-").tempdir().expect("a temporary folder");
        let token = Token::made_by(make, &folder.path().join("token"), "keystead");
        let site = Self { folder, token };
        site.configure(&site.token.custody("keystead"), extra);
        site
    }

    /// With a key.
    pub fn initialized(extra: &str) -> Self {
        let site = Self::bare(extra);
        site.keystead(["init", "--no-recovery"]).expect_success();
        site
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn config(&self) -> PathBuf {
        self.path().join("config.toml")
    }

    pub fn store_file(&self) -> PathBuf {
        self.path().join("store/keyring.store")
    }

    pub fn kms_socket(&self) -> PathBuf {
        self.path().join("run/kms.sock")
    }

    pub fn configure(&self, custody: &str, extra: &str) {
        let path = self.path().display();
        let (kms, rest) = match extra.strip_prefix("[kms]\n") {
            Some(rest) => rest.split_once("\n\n").unwrap_or((rest, "")),
            None => ("", extra),
        };
        let metrics = if rest.contains("[metrics]") { "" } else { "[metrics]\nlisten = \"127.0.0.1:0\"\n" };
        let config = format!(
            "keyring = \"test\"\nnode = \"node-1\"\n{custody}\n[store]\npath = \"{path}/store\"\n[kms]\nsocket = \
             \"{path}/run/kms.sock\"\n{kms}\n[admin]\nsocket = \"{path}/run/admin.sock\"\n{metrics}{rest}\n"
        );
        fs::create_dir_all(self.path().join("run")).expect("run folder");
        fs::write(self.config(), config).expect("configuration written");
    }

    pub fn command<const N: usize>(&self, args: [&str; N]) -> Command {
        self.command_of(env!("CARGO_BIN_EXE_keystead").as_ref(), args)
    }

    /// As [`Self::command`], by another copy of the program.
    pub fn command_of<const N: usize>(&self, program: &Path, args: [&str; N]) -> Command {
        let mut command = Command::new(program);
        command.args(args).env_clear().env("KEYSTEAD_CONFIG", self.config()).stdin(Stdio::null());
        command
    }

    /// In the site's folder. Copied by a process of its own: of a file that this one writes, a child that another test starts
    /// at that moment holds a descriptor, and nobody can run what is open for writing.
    pub fn copy_of_the_program(&self) -> PathBuf {
        let copy = self.path().join("keystead");
        let status = Command::new("cp").args([env!("CARGO_BIN_EXE_keystead").as_ref(), copy.as_path()]).status();
        assert!(status.expect("cp runs").success());
        copy
    }

    /// Runs a command to its end, and ends it if it waits for ever.
    pub fn keystead<const N: usize>(&self, args: [&str; N]) -> Output {
        let child = self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("keystead runs");
        let pid = Pid::from_child(&child);
        let (ended, end) = mpsc::channel::<()>();
        let watch = std::thread::spawn(move || {
            if end.recv_timeout(4 * DEADLINE) == Err(RecvTimeoutError::Timeout) {
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        let output = child.wait_with_output().expect("its output");
        drop(ended);
        watch.join().expect("the watch ends");
        output
    }

    /// Rotates, whatever was rewritten.
    pub fn rotate(&self) -> Output {
        self.keystead(["key", "rotate", "--yes", "--force", "for a test"])
    }

    /// Starts the daemon without waiting for it to serve.
    pub fn spawn(&self, environment: &[(&str, &str)]) -> Daemon {
        self.spawn_logging_to(environment, self.log_file())
    }

    /// As [`Self::spawn`], with its log elsewhere.
    pub fn spawn_logging_to(&self, environment: &[(&str, &str)], log: impl Into<Stdio>) -> Daemon {
        let mut command = self.command(["serve"]);
        command.envs(environment.iter().copied()).stderr(log);
        self.start(command)
    }

    /// As [`Self::spawn`], by another copy of the program.
    pub fn spawn_program(&self, program: &Path) -> Daemon {
        let mut command = self.command_of(program, ["serve"]);
        command.stderr(self.log_file());
        self.start(command)
    }

    /// Starts the daemon; whoever comes to the failpoint waits there until the hold is let go.
    pub fn spawn_held_at(&self, failpoint: &str) -> (Daemon, Hold) {
        self.spawn_held_and_killed_at(failpoint, "nowhere")
    }

    /// The same; and behind it, at a failpoint that it comes to later, it is killed.
    pub fn spawn_held_and_killed_at(&self, held: &str, killed: &str) -> (Daemon, Hold) {
        let hold = Hold(self.path().join(format!("let-go-of-{held}")));
        // Of a hold before this one.
        let _ = fs::remove_file(&hold.0);
        let at = format!("{held}:{}", hold.0.display());
        (self.spawn(&[("KEYSTEAD_HOLD_AT", &at), ("KEYSTEAD_KILL_AT", killed)]), hold)
    }

    fn log_file(&self) -> File {
        File::options().append(true).create(true).open(self.path().join("log")).expect("log file")
    }

    fn start(&self, mut serve: Command) -> Daemon {
        let child = serve.spawn().expect("keystead serve starts");
        Daemon { child, run: self.path().join("run"), log: self.path().join("log") }
    }

    /// Starts the daemon and waits until it serves.
    pub async fn serve(&self) -> Daemon {
        let mut daemon = self.spawn(&[]);
        daemon.until_serving().await;
        daemon
    }
}

impl Daemon {
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The process of a role, `server` or `custodian`, if it runs.
    pub fn role(&self, role: &str) -> Option<Pid> {
        let supervisor = self.pid();
        let children = fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).ok()?;
        children.split_whitespace().find_map(|pid| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let is_role = command.split(|&byte| byte == 0).any(|word| word == role.as_bytes());
            is_role.then(|| pid.parse().ok().and_then(Pid::from_raw)).flatten()
        })
    }

    pub fn kill_role(&self, role: &str, signal: Signal) -> Pid {
        let pid = self.role(role).unwrap_or_else(|| panic!("no {role} runs"));
        kill_process(pid, signal).expect("signal sent");
        pid
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("signal sent");
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub async fn kms(&self) -> Kms {
        KeyManagementServiceClient::new(channel(self.run.join("kms.sock")).await)
    }

    pub async fn admin(&self) -> Admin {
        AdminClient::new(channel(self.run.join("admin.sock")).await)
    }

    pub async fn status(&self) -> GetStatusResponse {
        self.admin().await.get_status(GetStatusRequest {}).await.expect("status answers").into_inner()
    }

    /// Waits until Status is ok.
    pub async fn until_serving(&mut self) {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("child") {
                panic!("the daemon ended with {status}:\n{}", self.log());
            }
            if self.run.join("kms.sock").exists()
                && let Ok(mut kms) =
                    crate::clients::try_channel(self.run.join("kms.sock")).await.map(KeyManagementServiceClient::new)
                && kms.status(StatusRequest {}).await.is_ok()
            {
                return;
            }
            assert!(started.elapsed() < DEADLINE, "the daemon does not serve:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the admin's status satisfies `condition`.
    pub async fn until(&self, what: &str, condition: impl Fn(&GetStatusResponse) -> bool) -> GetStatusResponse {
        let started = Instant::now();
        loop {
            let last = match crate::clients::try_channel(self.run.join("admin.sock")).await {
                Ok(channel) => AdminClient::new(channel)
                    .get_status(GetStatusRequest {})
                    .await
                    .map(|answer| answer.into_inner())
                    .ok(),
                Err(_) => None,
            };
            if let Some(status) = &last
                && condition(status)
            {
                return status.clone();
            }
            assert!(started.elapsed() < DEADLINE, "never {what}; last {last:?}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("child").is_some()
    }

    /// Waits for the end of the supervisor, and with it of all.
    pub fn wait(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("child") {
                return status;
            }
            assert!(started.elapsed() < DEADLINE, "the daemon does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGTERM, then waits.
    pub fn stop(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// SIGKILL of the supervisor; its children end with it.
    pub fn kill(mut self) {
        let children: Vec<Pid> = ["server", "custodian"].into_iter().filter_map(|role| self.role(role)).collect();
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
        for child in children {
            until_gone(child);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a process is no more.
pub fn until_gone(pid: Pid) {
    let started = Instant::now();
    while rustix::process::test_kill_process(pid).is_ok() {
        assert!(started.elapsed() < DEADLINE, "process {pid} lives on");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Checks on a finished command.
pub trait Finished {
    fn expect_success(self) -> String;
    fn expect_failure(self, code: i32) -> String;
}

impl Finished for Output {
    /// Standard output of a command that succeeded.
    #[track_caller]
    fn expect_success(self) -> String {
        assert!(self.status.success(), "{}: {}", self.status, String::from_utf8_lossy(&self.stderr));
        String::from_utf8(self.stdout).expect("text")
    }

    /// Standard error of a command that failed with `code`.
    #[track_caller]
    fn expect_failure(self, code: i32) -> String {
        let error = String::from_utf8(self.stderr).expect("text");
        assert_eq!(self.status.code(), Some(code), "{error}");
        error
    }
}

/// Encrypts one seed.
pub async fn encrypt(kms: &mut Kms, plaintext: &[u8]) -> EncryptResponse {
    let request = EncryptRequest { plaintext: plaintext.to_vec(), uid: "uid".into() };
    kms.encrypt(request).await.expect("encrypts").into_inner()
}

/// Decrypts what [`encrypt`] gave.
pub async fn decrypt(kms: &mut Kms, encrypted: &EncryptResponse) -> Result<Vec<u8>, tonic::Status> {
    kms.decrypt(decrypt_request(encrypted)).await.map(|answer| answer.into_inner().plaintext)
}

pub fn decrypt_request(encrypted: &EncryptResponse) -> keystead_wire::kms::v2::DecryptRequest {
    keystead_wire::kms::v2::DecryptRequest {
        ciphertext: encrypted.ciphertext.clone(),
        uid: "uid".into(),
        key_id: encrypted.key_id.clone(),
        annotations: encrypted.annotations.clone(),
    }
}
