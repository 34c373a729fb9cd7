//! A cloud's rig: started as tests/rigs/README.md says, told what to do, asked what it has seen.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

/// Names the folder of the rigs' Python environments; scripts/test sets it.
const ENVIRONMENTS: &str = "KEYSTEAD_TEST_CLOUD";

pub struct Rig {
    child: Child,
    announced: Value,
    folder: tempfile::TempDir,
    cloud: &'static str,
}

impl Rig {
    pub fn start(cloud: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(python(cloud))
            .arg(program(cloud, "serve.py"))
            .arg("--state")
            .arg(folder.path().join("rig"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the rig's interpreter");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let announced = serde_json::from_str(&line).unwrap_or_else(|_| panic!("the {cloud} rig did not start: {line}"));
        Self { child, announced, folder, cloud }
    }

    /// A text of the announcement, by its JSON pointer: `/endpoints/kms`.
    pub fn text(&self, pointer: &str) -> &str {
        let found = self.announced.pointer(pointer).and_then(Value::as_str);
        found.unwrap_or_else(|| panic!("the {} rig announces no {pointer}", self.cloud))
    }

    /// A file of the announcement, copied, so that a case may change it.
    pub fn copy_of(&self, pointer: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy");
        std::fs::copy(self.text(pointer), &copy).unwrap();
        (folder, copy)
    }

    /// The folder of its files.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join("rig")
    }

    /// Runs another program of the rig's folder to its end.
    pub fn run(&self, name: &str) {
        let status =
            Command::new(python(self.cloud)).arg(program(self.cloud, name)).arg(self.folder()).status().unwrap();
        assert!(status.success(), "{name}: {status}");
    }

    /// As [`Self::run`], with something to read; returns what it prints.
    pub fn talk(&self, name: &str, input: &str) -> String {
        let mut command = Command::new(python(self.cloud));
        command.arg(program(self.cloud, name)).arg(self.folder());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{name}: {}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn control(&self, order: &str) {
        let answer = self.ask("POST", "/control", order);
        assert_eq!(answer["ok"], true, "{order}: {answer}");
    }

    /// What clients have asked for since the last reset: service, operation, code.
    pub fn requests(&self) -> Vec<(String, String, String)> {
        let state = self.ask("GET", "/state", "");
        let text = |request: &Value, name: &str| request[name].as_str().unwrap_or_default().to_owned();
        let entry = |request: &Value| (text(request, "service"), text(request, "operation"), text(request, "code"));
        state["requests"].as_array().unwrap().iter().map(entry).collect()
    }

    /// All that the rig kept of each request.
    pub fn journal(&self) -> Vec<Value> {
        self.ask("GET", "/state", "")["requests"].as_array().unwrap().clone()
    }

    pub fn count(&self, operation: &str) -> usize {
        self.requests().iter().filter(|(_, asked, _)| asked == operation).count()
    }

    /// Where the proxy was asked to go.
    pub fn tunnels(&self) -> usize {
        self.ask("GET", "/state", "")["tunnels"].as_array().unwrap().len()
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Value {
        let address = self.text("/control").strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: rig\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // It ends with its standard input.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn python(cloud: &str) -> PathBuf {
    let environments = std::env::var_os(ENVIRONMENTS).unwrap_or_else(|| {
        panic!(
            "{ENVIRONMENTS} is not set: run scripts/test, or `scripts/rigs/cloud {cloud} python` and export {ENVIRONMENTS}=$PWD/target/rigs"
        )
    });
    Path::new(&environments).join(cloud).join("bin/python")
}

fn program(cloud: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rigs").join(cloud).join(name)
}
