//! The servers that are measured: the echo server, and a real daemon on a SoftHSM token of its own, in a folder that
//! goes with it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use keystead_wire::admin::v1::{GetStatusRequest, GetStatusResponse};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::child::{self, Running};
use crate::client::Connection;
use crate::echo::Lengths;
use crate::failure::{Failure, FailureExt};
use crate::load;
use crate::procfs::{DaemonPids, Pid};

/// The daemon's counter of requests to its custodian, by operation.
const DEVICE_OPERATIONS: &str = "keystead_custody_operations_total";
/// The label that names the operation.
const OPERATION_LABEL: &str = "kind";
/// Operations that the daemon makes by the clock, whatever it is asked.
const BY_THE_CLOCK: [&str; 2] = ["probe", "describe"];

const START_LIMIT: Duration = Duration::from_secs(30);
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// How often a starting server is asked; bounds the resolution of a start time.
const START_POLL: Duration = Duration::from_micros(250);

/// A running echo server.
pub struct Echo {
    running: Running,
    pub connection: Connection,
    /// From spawn to the first `ok`.
    pub start: Duration,
}

impl Echo {
    /// Starts one on `<dir>/<name>.sock`.
    pub async fn start(dir: &Path, name: &str, workers: usize, lengths: &Lengths) -> Result<Self, Failure> {
        let socket = dir.join(format!("{name}.sock"));
        if socket.exists() {
            std::fs::remove_file(&socket).doing(|| format!("remove {}", socket.display()))?;
        }
        let own = std::env::current_exe().doing(|| "find this program".into())?;
        let mut command = Command::new(own);
        command.args(["echo", "--until-eof", "--socket"]).arg(&socket);
        command.arg(format!("--workers={workers}")).args(lengths.to_args()).stdin(Stdio::piped());
        let started = Instant::now();
        let mut running = Running::start(&mut command, "keystead-bench echo", &dir.join(format!("{name}.log")))?;
        let connection = first_ok(&socket, &mut running).await?;
        Ok(Self { running, connection, start: started.elapsed() })
    }

    pub fn pid(&self) -> Pid {
        self.running.pid()
    }

    pub async fn stop(self) -> Result<(), Failure> {
        drop(self.connection);
        // Ended by the signal, so its exit status says nothing.
        self.running.stop().await.map(drop)
    }
}

/// An installation of Keystead in a folder: token, configuration, initialised store. Not running yet.
pub struct Installation {
    keystead: PathBuf,
    dir: PathBuf,
    metrics: SocketAddr,
}

/// What holds the CMKs of an [`Installation`].
pub enum Custody {
    SoftHsm { module: PathBuf },
    Tpm { tcti: String },
}

/// A running daemon of an [`Installation`].
pub struct Daemon<'a> {
    installation: &'a Installation,
    running: Running,
    pub pids: DaemonPids,
    pub connection: Connection,
    /// From spawn to the first `ok`.
    pub start: Duration,
}

/// What the daemon counts.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Counts {
    pub generations: u32,
    pub generations_loaded: u32,
    /// Requests to the custodian since the daemon started, by operation.
    pub device_operations: BTreeMap<String, u64>,
}

impl Installation {
    /// Makes a token or provisions a TPM, and makes a configuration and a keyring without a recovery root in `dir`, which
    /// must be private. `upstream` is the cloud profile's table.
    pub async fn new(keystead: &Path, custody: &Custody, dir: &Path, upstream: &str) -> Result<Self, Failure> {
        let installation =
            Self { keystead: keystead.to_owned(), dir: dir.to_owned(), metrics: free_loopback_address()? };
        for folder in ["tokens", "store", "run"] {
            installation.make_dir(folder)?;
        }
        installation.write("config.toml", &(installation.configuration(custody) + upstream))?;
        match custody {
            Custody::SoftHsm { module } => installation.make_token(module).await?,
            Custody::Tpm { .. } => drop(installation.keystead(&["tpm", "provision"]).await?),
        }
        installation.keystead(&["init", "--no-recovery"]).await?;
        Ok(installation)
    }

    async fn make_token(&self, module: &Path) -> Result<(), Failure> {
        self.write(
            "softhsm2.conf",
            &format!(
                "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
                self.dir.join("tokens").display()
            ),
        )?;
        // On the command line others may read it; the token it opens lies in a folder that only we can enter, and goes
        // with this run.
        let pin = format!("{:016x}", getrandom::u64().unwrap_or(1));
        self.write("pin", &pin)?;
        let mut command = Command::new("softhsm2-util");
        command.arg("--module").arg(module).args(["--init-token", "--free", "--label", "bench"]);
        command.args(["--so-pin", &pin, "--pin", &pin]).env("SOFTHSM2_CONF", self.dir.join("softhsm2.conf"));
        child::output(&mut command, COMMAND_LIMIT).await.map(drop)
    }

    fn configuration(&self, custody: &Custody) -> String {
        let dir = self.dir.display();
        let custody = match custody {
            Custody::SoftHsm { module } => format!(
                "kind = 'pkcs11'\nmodule = '{}'\ntoken_label = 'bench'\npin_file = '{dir}/pin'\nenvironment = {{ \
                 SOFTHSM2_CONF = '{dir}/softhsm2.conf' }}",
                module.display()
            ),
            Custody::Tpm { tcti } => format!("kind = 'tpm'\ntcti = '{tcti}'\nauth_file = '{dir}/tpm-auth'"),
        };
        format!(
            "keyring = 'bench'\n\
             node = 'bench-{port}'\n\
             [custody]\n\
             {custody}\n\
             [store]\n\
             path = '{dir}/store'\n\
             [kms]\n\
             socket = '{dir}/run/kms.sock'\n\
             [admin]\n\
             socket = '{dir}/run/admin.sock'\n\
             [metrics]\n\
             listen = '{metrics}'\n",
            // One that no other installation of this run has: on a TPM they share a chip.
            port = self.metrics.port(),
            metrics = self.metrics,
        )
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Failure> {
        let path = self.dir.join(name);
        std::fs::write(&path, text)
            .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)))
            .doing(|| format!("write {}", path.display()))
    }

    fn make_dir(&self, name: &str) -> Result<(), Failure> {
        let path = self.dir.join(name);
        std::fs::create_dir(&path)
            .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)))
            .doing(|| format!("make {}", path.display()))
    }

    /// Runs one `keystead` command on this installation.
    async fn keystead(&self, arguments: &[&str]) -> Result<String, Failure> {
        child::output(self.command().args(arguments), COMMAND_LIMIT).await
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.keystead);
        command.env("KEYSTEAD_CONFIG", self.dir.join("config.toml"));
        command
    }

    /// Starts the daemon and waits until it serves.
    pub async fn start(&self) -> Result<Daemon<'_>, Failure> {
        let mut command = self.command();
        command.arg("serve").stdin(Stdio::null());
        let started = Instant::now();
        let mut running = Running::start(&mut command, "keystead serve", &self.dir.join("serve.log"))?;
        let connection = first_ok(&self.dir.join("run/kms.sock"), &mut running).await?;
        let start = started.elapsed();
        let pids = DaemonPids::of(running.pid())?;
        Ok(Daemon { installation: self, running, pids, connection, start })
    }
}

impl Daemon<'_> {
    pub async fn stop(self) -> Result<(), Failure> {
        let Self { running, connection, .. } = self;
        drop(connection);
        let said = running.last_words();
        match running.stop().await? {
            status if status.success() => Ok(()),
            status => Err(Failure::Command {
                command: "keystead serve, on SIGTERM".into(),
                status: status.to_string(),
                output: said,
            }),
        }
    }

    /// Makes one more generation, as a person does.
    pub async fn rotate(&mut self) -> Result<(), Failure> {
        self.installation.keystead(&["key", "rotate", "--yes", "--force", "measured with many generations"]).await?;
        self.reconnect().await
    }

    /// On a slow TPM the connection has rested meanwhile, and the daemon has ended it. A gRPC client connects anew by itself.
    pub async fn reconnect(&mut self) -> Result<(), Failure> {
        self.connection = Connection::open(&self.installation.dir.join("run/kms.sock")).await?;
        Ok(())
    }

    /// Waits until the daemon says that its cloud is away, and serves all the same.
    pub async fn until_degraded(&self) -> Result<(), Failure> {
        let admin = Connection::open(&self.installation.dir.join("run/admin.sock")).await?;
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline {
            let status = admin.admin().get_status(GetStatusRequest {}).await;
            let status = status.map_err(|source| Failure::Refused { call: "GetStatus", source })?.into_inner();
            if status.availability == "degraded" {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(Failure::too_long("the outage to be noticed", START_LIMIT))
    }

    /// Lines of the audit trail, and requests that it lacks.
    pub async fn lines(&self) -> Result<(u64, u64), Failure> {
        let audit = self.status().await?.audit.unwrap_or_default();
        Ok((audit.last, audit.lost))
    }

    async fn status(&self) -> Result<GetStatusResponse, Failure> {
        let admin = Connection::open(&self.installation.dir.join("run/admin.sock")).await?;
        let status = tokio::time::timeout(COMMAND_LIMIT, admin.admin().get_status(GetStatusRequest {}))
            .await
            .map_err(|_| Failure::too_long("GetStatus", COMMAND_LIMIT))?
            .map_err(|source| Failure::Refused { call: "GetStatus", source })?;
        Ok(status.into_inner())
    }

    pub async fn counts(&self) -> Result<Counts, Failure> {
        let status = self.status().await?;
        let metrics = self.metrics().await?;
        let device_operations = counter_by_operation(&metrics, DEVICE_OPERATIONS);
        if device_operations.is_empty() {
            return Err(Failure::Unusable(format!("the daemon's metrics have no {DEVICE_OPERATIONS}")));
        }
        Ok(Counts { generations: status.generations, generations_loaded: status.generations_loaded, device_operations })
    }

    async fn metrics(&self) -> Result<String, Failure> {
        let address = self.installation.metrics;
        let exchange = async {
            let mut stream = tokio::net::TcpStream::connect(address).await?;
            stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").await?;
            let mut answer = String::new();
            stream.take(4 << 20).read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        tokio::time::timeout(COMMAND_LIMIT, exchange)
            .await
            .map_err(|_| Failure::too_long("GET /metrics", COMMAND_LIMIT))?
            .doing(|| "read the daemon's metrics".into())
    }
}

impl Counts {
    /// Device operations of all kinds.
    pub fn total(&self) -> u64 {
        self.device_operations.values().sum()
    }

    /// Device operations between `earlier` and now that requests may have caused, by operation.
    pub fn caused_since(&self, earlier: &Self) -> BTreeMap<String, u64> {
        self.device_operations
            .iter()
            .filter(|(operation, _)| !BY_THE_CLOCK.contains(&operation.as_str()))
            .map(|(operation, count)| {
                let before = earlier.device_operations.get(operation).copied().unwrap_or(0);
                (operation.clone(), count.saturating_sub(before))
            })
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

/// Asks until the server says `ok`, and keeps the connection that it said so on.
async fn first_ok(socket: &Path, running: &mut Running) -> Result<Connection, Failure> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        running.expect_alive()?;
        let refused = match Connection::open(socket).await {
            Ok(connection) => match load::status(&mut connection.kms()).await {
                Ok(_) => return Ok(connection),
                Err(refused) => refused,
            },
            Err(refused) => refused,
        };
        if Instant::now() > deadline {
            let said = format!("{}\n{}", refused.chain(), running.last_words());
            return Err(Failure::TooLong { what: "the start".into(), limit: START_LIMIT, said });
        }
        tokio::time::sleep(START_POLL).await;
    }
}

/// A loopback port that was free a moment ago.
fn free_loopback_address() -> Result<SocketAddr, Failure> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .doing(|| "find a free loopback port".into())
}

/// Sums the samples of counter `name` in a Prometheus text by operation; those that name none go under "all".
fn counter_by_operation(text: &str, name: &str) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(name) else { continue };
        let (labels, value) = match rest.strip_prefix('{').and_then(|rest| rest.rsplit_once('}')) {
            Some(parts) => parts,
            None if rest.starts_with(' ') => ("", rest),
            None => continue,
        };
        let operation = labels
            .split(',')
            .filter_map(|label| label.trim().split_once('='))
            .find(|(name, _)| *name == OPERATION_LABEL)
            .map_or("all", |(_, operation)| operation.trim_matches('"'));
        // A sample may be followed by a time stamp.
        let Some(value) = value.split_whitespace().next().and_then(|value| value.parse::<f64>().ok()) else { continue };
        *sums.entry(operation.to_owned()).or_insert(0) += value as u64;
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# TYPE keystead_custody_requests counter
keystead_custody_operations_total{kind=\"unwrap\",outcome=\"ok\"} 3
keystead_custody_operations_total{outcome=\"failed\",kind=\"unwrap\"} 1
keystead_custody_operations_total{kind=\"probe\",outcome=\"ok\"} 7 1700000000
keystead_custody_operations_total_of_another 9
other_total 5
";

    #[test]
    fn counter_is_summed_by_operation() {
        let sums = counter_by_operation(TEXT, DEVICE_OPERATIONS);
        assert_eq!(sums, BTreeMap::from([("probe".into(), 7), ("unwrap".into(), 4)]));
        assert_eq!(counter_by_operation("other_total 5\n", "other_total"), BTreeMap::from([("all".into(), 5)]));
        assert_eq!(counter_by_operation("", DEVICE_OPERATIONS), BTreeMap::new());
    }

    #[test]
    fn operations_by_the_clock_are_not_blamed_on_requests() {
        let counts = |unwrap, probe| Counts {
            generations: 1,
            generations_loaded: 1,
            device_operations: BTreeMap::from([("unwrap".into(), unwrap), ("probe".into(), probe)]),
        };
        assert_eq!(counts(3, 9).caused_since(&counts(2, 1)), BTreeMap::from([("unwrap".into(), 1)]));
        assert_eq!(counts(2, 9).caused_since(&counts(2, 1)), BTreeMap::new());
        assert_eq!(counts(2, 9).total(), 11);
    }
}
