//! The processes under test: the real composition roots, with a server that answers questions about itself instead of
//! serving keys, and a custodian that only says who it is.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keystead::config::{Settings, Site, Source, UpstreamTable};
use keystead::process::config_copy::ConfigCopy;
use keystead::process::egress::Egress;
use keystead::process::sandbox::SandboxSettings;
use keystead::process::server::{CANNOT_START, follow_orders};
use keystead::process::supervisor::{SupervisorSettings, supervise as run_supervisor};
use keystead::process::{custodian as custodian_root, server as server_root};
use keystead::rpc::login::Logins;
use keystead::rpc::socket::SocketSettings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub const DRAIN_TIMEOUT: Duration = Duration::from_millis(200);

/// `supervise FOLDER MODE`
pub fn supervise(arguments: &[String]) -> ExitCode {
    let folder = PathBuf::from(&arguments[0]);
    let socket = |name| SocketSettings { path: folder.join(name), mode: 0o600, group: None };
    let settings = SupervisorSettings {
        kms: socket("kms.sock"),
        admin: socket("admin.sock"),
        metrics: Some(([127, 0, 0, 1], 0).into()),
        drain_timeout: DRAIN_TIMEOUT,
        pid_file: Some(folder.join("keystead.pid")),
        custodian_environment: BTreeMap::from([("MODULE_CONF".to_owned(), "for the module".to_owned())]),
        config: ConfigCopy { path: Some(folder.join("config.toml")), text: arguments[1].clone() },
        reader: None,
    };
    match run_supervisor(settings) {
        Ok(outcome) => ExitCode::from(outcome.exit_code()),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(99)
        }
    }
}

pub fn custodian() -> ExitCode {
    let mut parts = custodian_root::begin().unwrap();
    let said = format!("custodian_pid={}\n{}\n", std::process::id(), environment("custodian"));
    // A server that could not start is gone already.
    let _ = parts.stream.write_all(said.as_bytes());
    if parts.config.text == "deaf custodian" {
        loop {
            std::thread::park();
        }
    }
    // Until the server is gone.
    while parts.stream.read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
    ExitCode::SUCCESS
}

/// What a question is answered with, line by line.
type Facts = Arc<Mutex<BTreeMap<&'static str, String>>>;

pub fn server() -> ExitCode {
    let parts = server_root::begin().unwrap();
    let mode = parts.config.text.clone();
    if mode == "cannot start" {
        return ExitCode::from(CANNOT_START);
    }
    let folder = parts.config.path.as_deref().and_then(Path::parent).unwrap().to_owned();
    let pin = folder.join("pin");
    let sandbox = SandboxSettings {
        store: folder.join("store"),
        trail: None,
        landlock: true,
        seccomp: true,
        egress: cloud_table(&mode, &folder).map(|table| Egress::of(&table, None, Some(&pin))),
        pin: Some(pin),
    };
    let facts = Facts::default();
    let fact = |name, value: String| drop(facts.lock().unwrap().insert(name, value));
    fact("server_pid", std::process::id().to_string());
    fact("server_environment", environment("server"));
    parts
        .run(&sandbox, 2, async |listeners, control, report| {
            fact("report", format!("{report:?}"));
            reaches(&folder).into_iter().for_each(|(what, reached)| fact(what, reached.to_string()));
            fact("metrics", format!("{:?}", listeners.metrics.as_ref().map(|listener| listener.local_addr().unwrap())));
            let listener = tokio::net::UnixListener::from_std(listeners.kms).unwrap();
            let (tell, hung) = tokio::sync::watch::channel(0);
            let answering = tokio::spawn(answer(listener, Arc::clone(&facts), tell));
            let reporter = control.reporter();
            reporter.status("serving").unwrap();
            reporter.ready().unwrap();
            let facts = Arc::clone(&facts);
            let nobody = Arc::new(Logins::new(|_| Ok(())));
            let orders = follow_orders(
                control,
                tokio::runtime::Handle::current(),
                hung,
                nobody,
                move |stream, restarts| {
                    stream.set_nonblocking(true)?;
                    let stream = tokio::net::UnixStream::from_std(stream)?;
                    facts.lock().unwrap().insert("restarts", restarts.to_string());
                    tokio::spawn(listen(stream, Arc::clone(&facts)));
                    Ok(())
                },
                |_| Ok(()),
            );
            orders.await.unwrap();
            if mode == "deaf server" {
                std::future::pending::<()>().await;
            }
            answering.abort();
        })
        .unwrap();
    ExitCode::SUCCESS
}

/// The cloud profile in which `cloud` is the mode, with the port that stands in the folder.
fn cloud_table(mode: &str, folder: &Path) -> Option<UpstreamTable> {
    if mode != "cloud" {
        return None;
    }
    let port = std::fs::read_to_string(folder.join("cloud-port")).unwrap();
    let text = format!(
        "[upstream]\nkind = 'alibaba'\nkey = 'a'\nregion = 'b'\nendpoint = 'https://127.0.0.1:{port}'\ntoken_endpoint = \
         'https://127.0.0.1:{port}'\nca_file = 'cloud/ca.pem'\ncredentials_file = 'cloud/credentials'\n"
    );
    let source = Source::from_parts(Some(folder.join("config.toml")), text);
    Settings::from_source(&source, &Site::this_machine()).unwrap().upstream
}

/// What the confined server gets at, of what lies around it.
fn reaches(folder: &Path) -> Vec<(&'static str, bool)> {
    let read = |name: &str| std::fs::read(folder.join(name)).is_ok();
    let connect = |name: &str| {
        let port = std::fs::read_to_string(folder.join("store").join(name)).unwrap_or_default();
        std::net::TcpStream::connect(format!("127.0.0.1:{port}")).is_ok()
    };
    vec![
        ("reaches_cloud", connect("cloud-port")),
        ("reaches_elsewhere", connect("other-port")),
        ("resolves", ("localhost", 1).to_socket_addrs().is_ok_and(|mut found| found.next().is_some())),
        ("reads_ca", read("cloud/ca.pem")),
        ("reads_credentials", read("cloud/credentials")),
        ("reads_pin", read("pin")),
        ("reads_accounts", std::fs::read("/etc/passwd").is_ok()),
        ("starts_programs", std::process::Command::new("/bin/true").spawn().is_ok()),
    ]
}

/// Keeps what the custodian says of itself, until it is gone.
async fn listen(mut stream: tokio::net::UnixStream, facts: Facts) {
    let mut said = String::new();
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut bytes).await {
        said.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        facts.lock().unwrap().insert("custodian", said.clone());
    }
}

/// One connection, one question: `f` for the facts, `h` to have the custodian replaced.
async fn answer(listener: tokio::net::UnixListener, facts: Facts, hung: tokio::sync::watch::Sender<u64>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut question = [0];
        if stream.read_exact(&mut question).await.is_err() {
            continue;
        }
        if question == *b"h" {
            hung.send_modify(|count| *count += 1);
        }
        let text: String = facts.lock().unwrap().iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        let _ = stream.write_all(text.as_bytes()).await;
    }
}

fn environment(role: &str) -> String {
    let mut names: Vec<_> = std::env::vars().map(|(name, _)| name).collect();
    names.sort();
    format!("{role}_sees={}", names.join(","))
}
