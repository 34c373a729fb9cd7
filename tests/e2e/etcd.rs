//! A real etcd, Debian's, in a folder of its own on free loopback ports; filled as kube-apiserver fills it.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use keystead_wire::kms::v2::EncryptResponse;
use prost::Message;

use crate::daemon::DEADLINE;

/// `k8s.io/apiserver`'s message of that name, written down here a second time: the reader must not be its own oracle.
#[derive(Clone, PartialEq, Message)]
pub struct EncryptedObject {
    #[prost(bytes = "vec", tag = "1")]
    pub data: Vec<u8>,
    #[prost(string, tag = "2")]
    pub key_id: String,
    #[prost(bytes = "vec", tag = "3")]
    pub dek_source: Vec<u8>,
    #[prost(map = "string, bytes", tag = "4")]
    pub annotations: HashMap<String, Vec<u8>>,
    #[prost(int32, tag = "5")]
    pub dek_source_type: i32,
}

/// A running etcd; killed when dropped.
pub struct Etcd {
    folder: tempfile::TempDir,
    endpoint: String,
    child: Child,
}

impl Etcd {
    pub fn start() -> Self {
        // Another process may take a port between its choice and its use: try again then.
        (0..5)
            .find_map(|_| Self::try_start())
            .expect("etcd starts; scripts/test installs Debian's etcd-server and etcd-client")
    }

    fn try_start() -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("ks-etcd-").tempdir().expect("a temporary folder");
        let port =
            || TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
        let [endpoint, peer] = [port(), port()].map(|port| format!("http://127.0.0.1:{port}"));
        let log = fs::File::create(folder.path().join("log")).expect("log file");
        let child = Command::new("etcd")
            .args(["--name", "one", "--data-dir"])
            .arg(folder.path().join("data"))
            .args(["--listen-client-urls", &endpoint, "--advertise-client-urls", &endpoint])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("one={peer}")])
            .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH.replace("aarch64", "arm64"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd is installed (Debian: etcd-server)");
        let mut etcd = Self { folder, endpoint, child };
        let started = Instant::now();
        while started.elapsed() < DEADLINE {
            if etcd.child.try_wait().expect("child").is_some() {
                return None;
            }
            if etcd.ctl(&["endpoint", "health"], b"").status.success() {
                return Some(etcd);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        None
    }

    fn ctl(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.endpoint])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("etcdctl is installed (Debian: etcd-client)");
        child.stdin.take().expect("stdin").write_all(input).expect("input written");
        child.wait_with_output().expect("etcdctl ends")
    }

    fn done(&self, args: &[&str], input: &[u8]) {
        let output = self.ctl(args, input);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn put(&self, key: &str, value: &[u8]) {
        self.done(&["put", key], value);
    }

    /// As the apiserver stores a Secret whose seed the daemon has encrypted.
    pub fn put_secret(&self, name: &str, provider: &str, encrypted: &EncryptResponse) {
        let object = EncryptedObject {
            data: vec![0x5e; 200],
            key_id: encrypted.key_id.clone(),
            dek_source: encrypted.ciphertext.clone(),
            annotations: encrypted.annotations.clone(),
            dek_source_type: 1,
        };
        let value = [format!("k8s:enc:kms:v2:{provider}:").into_bytes(), object.encode_to_vec()].concat();
        self.put(&format!("/registry/secrets/default/{name}"), &value);
    }

    pub fn delete(&self, name: &str) {
        self.done(&["del", &format!("/registry/secrets/default/{name}")], b"");
    }

    /// What else is in a cluster's etcd: objects in the clear and of other providers.
    pub fn put_others(&self) {
        self.put("/registry/configmaps/default/a", br#"{"kind":"ConfigMap","apiVersion":"v1"}"#);
        self.put("/registry/pods/default/a", b"k8s\0\n\x09\n\x02v1\x12\x03Pod");
        self.put("/registry/secrets/default/aescbc", b"k8s:enc:aescbc:v1:key1:\x00\xff\x13binary");
        self.put("/registry/secrets/default/other-kms", b"k8s:enc:kms:v2:vault:\x12\x05other\x1a\x01a");
        self.put("/registry/secrets/default/garbled", b"k8s:enc:kms:v2:edge:\xff\xff\xff\xff");
        // Large enough for overflow pages.
        self.put("/registry/configmaps/default/large", &vec![b'x'; 300_000]);
        // Many at once, so that keys lie on more than one page: no condition, these requests, no others.
        let leases: String =
            (0..40).map(|number| format!("put /registry/leases/node-{number} {}\n", "y".repeat(900))).collect();
        self.done(&["txn"], format!("\n{leases}\n\n").as_bytes());
    }

    /// `etcdctl snapshot save`.
    pub fn snapshot(&self, path: &Path) -> PathBuf {
        self.done(&["snapshot", "save", path.to_str().expect("UTF-8")], b"");
        path.to_owned()
    }

    /// The database file as it lies in etcd's folder, after etcd has ended.
    pub fn stop_and_copy(mut self, path: &Path) -> PathBuf {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::TERM)
            .expect("signal sent");
        self.child.wait().expect("reaped");
        fs::copy(self.folder.path().join("data/member/snap/db"), path).expect("copied");
        path.to_owned()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
