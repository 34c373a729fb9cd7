//! The stub of a cloud (tests/rigs/README.md), started for one test and told what to do. Alibaba's if nothing is said.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::daemon::{Daemon, Finished, Site};
use crate::token::Make;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    Alibaba,
    Ibm,
    Aws,
}

impl Vendor {
    pub const ALL: [Self; 3] = [Self::Alibaba, Self::Ibm, Self::Aws];

    /// In the configuration, and the folder of its rig.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alibaba => "alibaba",
            Self::Ibm => "ibm",
            Self::Aws => "aws",
        }
    }
}

/// Ends with the test: it reads our end of its standard input.
pub struct Cloud {
    pub vendor: Vendor,
    child: Child,
    /// What it said at its start.
    facts: Value,
}

impl Cloud {
    pub fn start(folder: &Path) -> Self {
        Self::of(Vendor::Alibaba, folder)
    }

    pub fn of(vendor: Vendor, folder: &Path) -> Self {
        let rig = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/rigs/cloud");
        let mut child = Command::new(rig)
            .args([vendor.name(), "--state"])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the rig starts");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("a line");
        let facts = serde_json::from_str(&line).unwrap_or_else(|_| panic!("the rig said {line:?}"));
        Self { vendor, child, facts }
    }

    pub fn fact(&self, path: &str) -> &str {
        self.facts.pointer(path).and_then(Value::as_str).unwrap_or_else(|| panic!("no {path} in {}", self.facts))
    }

    /// `host:port` of its control address.
    pub fn control(&self) -> &str {
        self.fact("/control").trim_start_matches("http://")
    }

    pub fn credentials(&self) -> PathBuf {
        self.fact("/credentials/main").into()
    }

    pub fn endpoint(&self) -> &str {
        self.fact("/endpoints/kms")
    }

    pub fn key(&self) -> &str {
        self.fact("/keys/main")
    }

    pub fn other_key(&self) -> &str {
        self.fact("/keys/other")
    }

    /// The `[upstream]` table that leads here. `extra` may overrule what is quick here and slow in life.
    pub fn table(&self, extra: &str) -> String {
        let (tokens, instance) = match self.vendor {
            Vendor::Ibm => ("/endpoints/iam", Some(("instance", self.fact("/instances/main")))),
            Vendor::Alibaba | Vendor::Aws => ("/endpoints/sts", None),
        };
        let keys = [
            ("kind", self.vendor.name()),
            ("key", self.key()),
            ("region", self.fact("/region")),
            ("endpoint", self.endpoint()),
            ("token_endpoint", self.fact(tokens)),
            ("ca_file", self.fact("/ca_file")),
            ("credentials_file", self.fact("/credentials/main")),
            ("connect_timeout", "2s"),
            ("timeout", "4s"),
            ("renew_every", "500ms"),
            ("probe_interval", "500ms"),
            ("lease", "72h"),
        ];
        let mut table = "[upstream]\n".to_owned();
        for (key, value) in keys.into_iter().chain(instance) {
            if !extra.lines().any(|line| line.starts_with(&format!("{key} "))) {
                table.push_str(&format!("{key} = {value:?}\n"));
            }
        }
        format!("{table}daily_call_budget = 1000000\n{extra}\n")
    }

    /// Has the rig do something, by the words of its README.
    pub fn order(&self, order: &Value) {
        let answer = self.exchange("POST", "/control", &order.to_string());
        assert_eq!(answer["ok"], true, "{order}: {answer}");
    }

    pub fn act(&self, action: &str) {
        self.order(&json!({ "action": action }));
    }

    pub fn fault(&self, fault: &str) {
        self.order(&json!({ "action": "fault", "fault": fault }));
    }

    /// Another of the rig's credentials in the place of the one that is used, as tools do it: a new file under its name.
    pub fn use_credential(&self, name: &str) {
        let file = self.credentials();
        let kept = file.with_extension("kept");
        if !kept.exists() {
            std::fs::copy(&file, &kept).unwrap();
        }
        let from = if name == "main" { kept } else { self.fact(&format!("/credentials/{name}")).into() };
        let new = file.with_extension("new");
        std::fs::copy(from, &new).unwrap();
        std::fs::rename(new, file).unwrap();
    }

    /// Requests that reached it, of all its services.
    pub fn requests(&self) -> Vec<Value> {
        match self.exchange("GET", "/state", "")["requests"].take() {
            Value::Array(requests) => requests,
            other => panic!("no list of requests: {other}"),
        }
    }

    /// Where its proxy was asked to go, so far.
    pub fn tunnels(&self) -> usize {
        self.exchange("GET", "/state", "")["tunnels"].as_array().expect("a list").len()
    }

    fn exchange(&self, method: &str, path: &str, body: &str) -> Value {
        let address = self.control();
        let mut stream = TcpStream::connect(address).expect("the rig's control answers");
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all((head + body).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        serde_json::from_str(body).unwrap_or_else(|_| panic!("{method} {path} {answer}"))
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A site of the cloud profile, its cloud beside it.
pub struct CloudSite {
    // Before the folder that it writes into.
    pub cloud: Cloud,
    pub site: Site,
}

impl CloudSite {
    pub fn bare(extra: &str) -> Self {
        Self::beside(Cloud::start, extra)
    }

    pub fn bare_at(vendor: Vendor, extra: &str) -> Self {
        Self::beside(|folder| Cloud::of(vendor, folder), extra)
    }

    /// On another token than SoftHSM.
    pub fn initialized_on(make: Make) -> Self {
        let site = Site::bare_on(make, "");
        let this = Self { cloud: Cloud::start(&site.path().join("cloud")), site };
        this.configure("");
        this.site.keystead(["init", "--no-recovery"]).expect_success();
        this
    }

    fn beside(start: impl FnOnce(&Path) -> Cloud, extra: &str) -> Self {
        let site = Site::bare("");
        let cloud = start(&site.path().join("cloud"));
        let this = Self { cloud, site };
        this.configure(extra);
        this
    }

    pub fn initialized(extra: &str) -> Self {
        Self::initialized_at(Vendor::Alibaba, extra)
    }

    pub fn initialized_at(vendor: Vendor, extra: &str) -> Self {
        let this = Self::bare_at(vendor, extra);
        this.site.keystead(["init", "--no-recovery"]).expect_success();
        this
    }

    /// Looked after every second: what is due is stored that soon.
    pub fn custody(&self) -> String {
        let (table, module) = (self.site.token.custody("keystead"), self.site.token.module());
        format!("{table}module = {module:?}\nprobe_interval = \"1s\"\n")
    }

    /// `extra` are keys of `[upstream]`.
    pub fn configure(&self, extra: &str) {
        self.site.configure(&self.custody(), &self.cloud.table(extra));
    }

    /// Serving, with the lease just renewed.
    pub async fn serve(&self) -> Daemon {
        let mut daemon = self.site.spawn(&[]);
        daemon.until_serving().await;
        daemon.until("online", |status| status.availability == "online").await;
        daemon
    }
}
