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
    pub endpoint: String,
    child: Child,
    listens: Listens,
}

/// How clients reach it.
#[derive(Clone, Copy, PartialEq)]
enum Listens {
    Plain,
    /// With TLS, for clients with a certificate of the same authority.
    Tls,
    /// On a unix socket as well.
    Socket,
}

impl Etcd {
    pub fn start() -> Self {
        Self::listening(Listens::Plain)
    }

    pub fn with_client_certificates() -> Self {
        Self::listening(Listens::Tls)
    }

    pub fn with_socket() -> Self {
        Self::listening(Listens::Socket)
    }

    fn listening(listens: Listens) -> Self {
        // Another process may take a port between its choice and its use: try again then.
        (0..5)
            .find_map(|_| Self::try_start(listens))
            .expect("etcd starts; scripts/test installs Debian's etcd-server and etcd-client")
    }

    fn try_start(listens: Listens) -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("ks-etcd-").tempdir().expect("a temporary folder");
        let port =
            || TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
        let scheme = if listens == Listens::Tls { "https" } else { "http" };
        let (endpoint, peer) = (format!("{scheme}://127.0.0.1:{}", port()), format!("http://127.0.0.1:{}", port()));
        let log = fs::File::create(folder.path().join("log")).expect("log file");
        let mut command = Command::new("etcd");
        if listens == Listens::Tls {
            make_certificates(folder.path());
            command.args(["--client-cert-auth", "--trusted-ca-file", "ca.pem"]);
            command.args(["--cert-file", "server.pem", "--key-file", "server.key"]);
        }
        // etcd makes a file of that name in its folder.
        let clients = match listens {
            Listens::Socket => format!("{endpoint},unix://etcd.sock:1"),
            _ => endpoint.clone(),
        };
        let child = command
            .current_dir(folder.path())
            .args(["--name", "one", "--data-dir"])
            .arg(folder.path().join("data"))
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &endpoint])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("one={peer}")])
            .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH.replace("aarch64", "arm64"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd is installed (Debian: etcd-server)");
        let mut etcd = Self { folder, endpoint, child, listens };
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

    /// A file in etcd's folder: `ca.pem`, `client.pem`, `client.key`, …
    pub fn file(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    pub fn socket(&self) -> String {
        format!("unix://{}", self.file("etcd.sock:1"))
    }

    /// What names this etcd to a command, certificates included.
    pub fn arguments(&self) -> Vec<String> {
        self.arguments_at(&self.endpoint)
    }

    /// The same, at another address.
    pub fn arguments_at(&self, address: &str) -> Vec<String> {
        let mut arguments = vec!["--etcd".to_owned(), address.to_owned()];
        if self.listens == Listens::Tls {
            for (option, name) in
                [("--etcd-cacert", "ca.pem"), ("--etcd-cert", "client.pem"), ("--etcd-key", "client.key")]
            {
                arguments.extend([option.to_owned(), self.file(name)]);
            }
        }
        arguments
    }

    /// SIGSTOP: connections are taken, nothing is answered.
    pub fn freeze(&self) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::STOP)
            .expect("signal sent");
    }

    fn ctl(&self, args: &[&str], input: &[u8]) -> Output {
        let mut command = Command::new("etcdctl");
        if self.listens == Listens::Tls {
            command.args(["--cacert", &self.file("ca.pem"), "--cert", &self.file("client.pem")]);
            command.args(["--key", &self.file("client.key")]);
        }
        let mut child = command
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

    /// `count` keys of `size` bytes each, in the clear.
    pub fn put_many(&self, count: usize, size: usize) {
        let value = "z".repeat(size);
        let puts: Vec<String> =
            (0..count).map(|number| format!("put /registry/events/default/event-{number} {value}\n")).collect();
        // A transaction has a bound in operations, and in bytes.
        let at_once = (1_000_000 / size).clamp(1, 100);
        for puts in puts.chunks(at_once) {
            self.done(&["txn"], format!("\n{}\n\n", puts.concat()).as_bytes());
        }
    }

    /// Writes a key and gives up every revision before that.
    pub fn compact(&self) {
        let output = self.ctl(&["put", "/registry/events/default/last", "-w", "json"], b"x");
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        self.done(&["compact", &answer["header"]["revision"].to_string()], b"");
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

/// An authority, a server's and a client's certificate as kubeadm makes them, and a client's of an authority unknown to etcd.
fn make_certificates(folder: &Path) {
    let script = "
        set -eu
        authority() {
            openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=$1 \
                -addext keyUsage=critical,keyCertSign -keyout $1.key -out $1.pem
        }
        signed() {
            openssl req -new -key $1.key -subj /CN=$1 -out $1.csr
            printf '%s\n' \"$3\" > $1.ext
            openssl x509 -req -in $1.csr -CA $2.pem -CAkey $2.key -CAcreateserial -days 2 -extfile $1.ext -out $1.pem
        }
        authority ca
        authority other-ca
        openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out server.key
        openssl genrsa -traditional -out client.key 2048
        openssl genrsa -traditional -out stranger.key 2048
        signed server ca 'subjectAltName=IP:127.0.0.1,DNS:localhost
extendedKeyUsage=serverAuth,clientAuth'
        signed client ca extendedKeyUsage=clientAuth
        signed stranger other-ca extendedKeyUsage=clientAuth
    ";
    let output = Command::new("sh").args(["-c", script]).current_dir(folder).output().expect("sh runs");
    assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
