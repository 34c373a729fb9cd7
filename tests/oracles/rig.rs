//! One rig of each cloud for all tests of this binary, which take turns and find it as it was at its start.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use keystead::upstream::settings::TransportSettings;
use keystead::upstream::transport::Transport;
use keystead_core::{GenerationNumber, KeyId, KeyringId, RootId, RootKind, WrapContext};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

/// What it announced is its `facts`.
pub struct Rig {
    pub facts: Value,
    folder: TempDir,
    /// Ends when its standard input does.
    _child: Child,
}

pub type Turn = MutexGuard<'static, Rig>;

pub async fn ibm() -> Turn {
    static RIG: LazyLock<Mutex<Rig>> = LazyLock::new(|| Mutex::new(Rig::start("ibm")));
    turn(&RIG).await
}

pub async fn aws() -> Turn {
    static RIG: LazyLock<Mutex<Rig>> = LazyLock::new(|| Mutex::new(Rig::start("aws")));
    turn(&RIG).await
}

async fn turn(rig: &'static Mutex<Rig>) -> Turn {
    let rig = rig.lock().await;
    rig.order(json!({"action": "reset"}));
    rig
}

impl Rig {
    fn start(provider: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(script())
            .arg(provider)
            .arg("--state")
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let facts =
            serde_json::from_str(&line).unwrap_or_else(|_| panic!("the {provider} rig did not start: {line:?}"));
        Self { facts, folder, _child: child }
    }

    pub fn order(&self, order: Value) {
        let answer = self.http("POST", "/control", &order.to_string());
        assert_eq!(answer, json!({"ok": true}), "{order}");
    }

    /// What the services were asked since the start of the turn.
    pub fn requests(&self) -> Vec<Value> {
        self.http("GET", "/state", "")["requests"].as_array().unwrap().clone()
    }

    /// `operation: code` of each request to `service`.
    pub fn seen(&self, service: &str) -> Vec<String> {
        let requests = self.requests();
        let of_service = requests.iter().filter(|request| request["service"] == service);
        of_service
            .map(|seen| format!("{}: {}", seen["operation"].as_str().unwrap(), seen["code"].as_str().unwrap()))
            .collect()
    }

    /// What it announced at this JSON pointer.
    pub fn text(&self, pointer: &str) -> &str {
        self.facts.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("the rig announced no {pointer}"))
    }

    pub fn path(&self, pointer: &str) -> PathBuf {
        PathBuf::from(self.text(pointer))
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// With generous times: the machine may be loaded, and nothing here waits for them to pass.
    pub fn transport(&self) -> Transport {
        let settings = TransportSettings {
            ca_file: Some(self.path("/ca_file")),
            connect_timeout: Duration::from_secs(20),
            timeout: Duration::from_secs(60),
            ..TransportSettings::default()
        };
        Transport::new(settings, Arc::new(SystemTime::now))
    }

    fn http(&self, method: &str, path: &str, body: &str) -> Value {
        let address = self.text("/control").trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }
}

pub fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/rigs/cloud")
}

/// Of generation 1 of a keyring `edge`.
pub fn context(root_kind: RootKind, root_id: &RootId) -> WrapContext {
    let keyring: KeyringId = "edge".parse().unwrap();
    let key_id = KeyId::mint(&keyring, GenerationNumber::FIRST, [7; 16]);
    WrapContext { keyring, generation: GenerationNumber::FIRST, key_id, root_kind, root_id: root_id.clone() }
}
