//! A custodian in a child process, and a client that talks to it.
//!
//! The child is the test binary itself, which calls [`play_role`] first thing and finds its role in the environment.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use keystead::custody::client::CustodyClient;
use keystead::custody::contract::{Answer, CustodyError, ProcessReport, Request};
use keystead::custody::settings::{
    BootPolicy, CustodySettings, MechanismChoice, PinSource, TokenSelector, TpmSettings,
};
use keystead::custody::worker;
use serde_json::{Value, json};

const ROLE: &str = "KEYSTEAD_TEST_CUSTODIAN";

/// In the child: runs the custodian on standard input, and never comes back. Else nothing.
pub fn play_role() {
    let Ok(settings) = std::env::var(ROLE) else { return };
    let settings = from_json(&serde_json::from_str(&settings).unwrap());
    let connection: OwnedFd = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let outcome = worker::run(UnixStream::from(connection), ProcessReport::default(), settings);
    std::process::exit(i32::from(outcome.is_err()));
}

/// A client with a custodian of its own, driven from ordinary threads.
pub struct Custody {
    pub client: CustodyClient,
    runtime: tokio::runtime::Runtime,
    settings: CustodySettings,
    child: Child,
}

impl Custody {
    pub fn start(settings: CustodySettings) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = CustodyClient::new(settings.timeout, settings.queue);
        let (child, connection) = spawn(&settings);
        let _in_runtime = runtime.enter();
        client.attach_std(connection).unwrap();
        drop(_in_runtime);
        Self { client, runtime, settings, child }
    }

    pub fn ask(&self, request: Request) -> Result<Answer, CustodyError> {
        self.runtime.block_on(self.client.call(request))
    }

    /// All at once.
    pub fn ask_all(&self, requests: Vec<Request>) -> Vec<Result<Answer, CustodyError>> {
        self.runtime.block_on(async {
            let calls = requests.into_iter().map(|request| {
                let client = self.client.clone();
                tokio::spawn(async move { client.call(request).await })
            });
            let mut replies = Vec::new();
            for call in calls.collect::<Vec<_>>() {
                replies.push(call.await.unwrap());
            }
            replies
        })
    }

    /// Waits until a notice of the client counts at least one.
    pub fn wait_for(&self, mut notice: tokio::sync::watch::Receiver<u64>) {
        self.runtime.block_on(async {
            let noticed = notice.wait_for(|count| *count > 0);
            tokio::time::timeout(Duration::from_secs(20), noticed).await.expect("no notice").unwrap();
        });
    }

    /// Kills the custodian with that signal, as a crash would.
    pub fn kill(&mut self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        // Sent until it works: Rust's own handler returns from the first SIGSEGV that no bad access has caused.
        while self.child.try_wait().unwrap().is_none() {
            rustix::process::kill_process(pid, signal).unwrap();
            std::thread::yield_now();
        }
    }

    /// Another custodian in place of the one there was.
    pub fn replace(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let (child, connection) = spawn(&self.settings);
        let _in_runtime = self.runtime.enter();
        self.client.attach_std(connection).unwrap();
        self.child = child;
    }
}

impl Drop for Custody {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(settings: &CustodySettings) -> (Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .env(ROLE, to_json(settings).to_string())
        .envs(&settings.environment)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    (child, ours)
}

fn to_json(settings: &CustodySettings) -> Value {
    let TokenSelector::Label(label) = &settings.token else { panic!("tests select by label") };
    let PinSource::File(pin) = &settings.pin else { panic!("tests keep the PIN in a file") };
    let mechanism = match settings.mechanism {
        MechanismChoice::Auto => "auto",
        MechanismChoice::AesGcm => "aes-gcm",
        MechanismChoice::EcdhP256 => "ecdh-p256",
        MechanismChoice::RsaOaep => "rsa-oaep",
    };
    json!({
        "module": settings.module, "label": label, "pin": pin, "mechanism": mechanism,
        "sessions": settings.sessions, "queue": settings.queue, "latch": settings.latch_folder,
        "signer": settings.tpm.as_ref().and_then(|tpm| tpm.boot.as_ref()).map(|boot| &boot.signer),
        "series": settings.tpm.as_ref().and_then(|tpm| tpm.boot.as_ref()).map(|boot| boot.series),
        "approvals": settings.tpm.as_ref().map(|tpm| &tpm.approvals),
        "tcti": settings.tpm.as_ref().map(|tpm| &tpm.tcti),
    })
}

fn from_json(value: &Value) -> CustodySettings {
    let text = |name: &str| value[name].as_str().unwrap().to_owned();
    let number = |name: &str| value[name].as_u64().unwrap() as usize;
    CustodySettings {
        module: PathBuf::from(text("module")),
        token: TokenSelector::Label(text("label")),
        pin: PinSource::File(text("pin").into()),
        mechanism: match text("mechanism").as_str() {
            "auto" => MechanismChoice::Auto,
            "aes-gcm" => MechanismChoice::AesGcm,
            "ecdh-p256" => MechanismChoice::EcdhP256,
            _ => MechanismChoice::RsaOaep,
        },
        sessions: number("sessions"),
        queue: number("queue"),
        // The client keeps the deadline, and the environment is this process's already.
        timeout: Duration::ZERO,
        environment: BTreeMap::new(),
        latch_folder: text("latch").into(),
        tpm: value["tcti"].as_str().map(|tcti| TpmSettings {
            tcti: tcti.to_owned(),
            auth: PinSource::File(text("pin").into()),
            approvals: text("approvals").into(),
            boot: value["signer"].as_str().map(|signer| BootPolicy {
                pcrs: vec![16],
                signer: signer.into(),
                series: number("series") as u64,
            }),
        }),
    }
}
