//! The stub of a cloud KMS that the daemon of the cloud profile has its key in; tests/rigs/README.md describes it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::child::Running;
use crate::failure::{Failure, FailureExt};

/// Its Python environment may have to be made first.
const START_LIMIT: Duration = Duration::from_secs(300);
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// A running stub.
pub struct Cloud {
    running: Running,
    /// What it said of itself.
    facts: Value,
}

impl Cloud {
    /// Starts `rig` (scripts/rigs/cloud) in `dir`.
    pub async fn start(rig: &Path, dir: &Path) -> Result<Self, Failure> {
        let state = dir.join("cloud");
        let mut command = Command::new(rig);
        command.args(["alibaba", "--stay", "--state"]).arg(&state).stdin(Stdio::null());
        let mut running = Running::start(&mut command, "the stub of the cloud", &dir.join("cloud.log"))?;
        let started = Instant::now();
        loop {
            running.expect_alive()?;
            // Complete, or not there: it is the last that the stub does before it serves.
            let facts = std::fs::read(state.join("rig.json")).ok().and_then(|text| serde_json::from_slice(&text).ok());
            if let Some(facts) = facts {
                return Ok(Self { running, facts });
            }
            if started.elapsed() > START_LIMIT {
                return Err(Failure::too_long("the start of the cloud's stub", START_LIMIT));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn fact(&self, path: &str) -> Result<&str, Failure> {
        let missing = || Failure::Unusable(format!("the stub of the cloud does not tell {path}"));
        self.facts.pointer(path).and_then(Value::as_str).ok_or_else(missing)
    }

    /// `[upstream]`, with an outage that is always in the middle of a call.
    pub fn table(&self) -> Result<String, Failure> {
        Ok(format!(
            "[upstream]\n\
             kind = 'alibaba'\n\
             key = '{}'\n\
             region = '{}'\n\
             endpoint = '{}'\n\
             token_endpoint = '{}'\n\
             ca_file = '{}'\n\
             credentials_file = '{}'\n\
             connect_timeout = '1s'\n\
             timeout = '2s'\n\
             renew_every = '1s'\n\
             probe_interval = '100ms'\n\
             daily_call_budget = 1000000\n",
            self.fact("/keys/main")?,
            self.fact("/region")?,
            self.fact("/endpoints/kms")?,
            self.fact("/endpoints/sts")?,
            self.fact("/ca_file")?,
            self.fact("/credentials/main")?,
        ))
    }

    /// From now on it takes connections and never answers.
    pub async fn black_hole(&self) -> Result<(), Failure> {
        let address = self.fact("/control")?.trim_start_matches("http://").to_owned();
        let order = r#"{"action": "fault", "fault": "black-hole"}"#;
        let exchange = async {
            let mut stream = tokio::net::TcpStream::connect(&address).await?;
            let length = order.len();
            let head =
                format!("POST /control HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\nConnection: close");
            stream.write_all(format!("{head}\r\n\r\n{order}").as_bytes()).await?;
            let mut answer = String::new();
            stream.take(1 << 16).read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = tokio::time::timeout(ANSWER_LIMIT, exchange)
            .await
            .map_err(|_| Failure::too_long("an order to the cloud's stub", ANSWER_LIMIT))?
            .doing(|| "order the cloud's stub".into())?;
        match answer.contains("\"ok\": true") {
            true => Ok(()),
            false => Err(Failure::Unusable(format!("the stub of the cloud refuses: {answer}"))),
        }
    }

    pub async fn stop(self) -> Result<(), Failure> {
        self.running.stop().await.map(drop)
    }
}
