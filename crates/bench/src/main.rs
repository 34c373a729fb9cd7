//! Measures Keystead against a tonic echo server of the same protocol. `docs/performance.md` is the method.

mod child;
mod client;
mod cloud;
mod echo;
mod failure;
mod load;
mod procfs;
mod report;
mod run;
mod stats;
mod subject;
#[allow(dead_code, reason = "the daemon's tests use the rest")]
mod tpm_proxy;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::client::Connection;
use crate::failure::{Failure, FailureExt};
use crate::load::{Call, Stretch, Target};
use crate::procfs::Pid;

/// Measures Keystead against a tonic echo server of the same protocol.
#[derive(Debug, Parser)]
#[command(name = "keystead-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve KMS v2 with answers of fixed bytes
    Echo(echo::EchoArgs),
    /// Load one server for one stretch of time and print what it showed as JSON
    Load(LoadArgs),
    /// Measure a fresh daemon against an echo server, interleaved, and report
    Run(run::RunArgs),
}

#[derive(Debug, Args)]
struct LoadArgs {
    /// Socket of a KMS v2 server
    #[arg(long)]
    socket: PathBuf,
    /// The server's process, whose CPU time and memory are read [default: this one]
    #[arg(long)]
    pid: Option<u32>,
    #[arg(long, value_enum, default_value = "encrypt")]
    call: Call,
    /// Callers at a time, over one connection
    #[arg(long, default_value_t = 8)]
    concurrency: usize,
    /// Seconds measured
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Seconds of load before that
    #[arg(long, default_value_t = 0.3, value_parser = seconds)]
    warm_up: f64,
    /// Threads of the generator
    #[arg(long, default_value_t = 1)]
    client_threads: usize,
}

/// Parses a length of time that is more than nothing and at most an hour.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 3600.0 => Ok(seconds),
        _ => Err("must be more than 0 and at most 3600".into()),
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Echo(args) => in_runtime(args.workers, echo::serve(&args)),
        Command::Load(args) => in_runtime(args.client_threads, load(&args)),
        Command::Run(args) => in_runtime(args.client_threads, until_signal(run::run(&args))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("keystead-bench: {}", failure.chain());
            ExitCode::FAILURE
        }
    }
}

/// A runtime as the daemon's server has it; with one thread, a plain one.
fn in_runtime<T>(threads: usize, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let mut builder = match threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.worker_threads(threads.max(1)).enable_all().build().doing(|| "start the runtime".into())?.block_on(work)
}

/// Gives up `work` on SIGINT and SIGTERM; dropping it stops every process it started.
async fn until_signal<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let mut terminate = signal(SignalKind::terminate()).doing(|| "listen for signals".into())?;
    let mut interrupt = signal(SignalKind::interrupt()).doing(|| "listen for signals".into())?;
    tokio::select! {
        result = work => result,
        _ = terminate.recv() => Err(Failure::Interrupted),
        _ = interrupt.recv() => Err(Failure::Interrupted),
    }
}

async fn load(args: &LoadArgs) -> Result<(), Failure> {
    let connection = Connection::open(&args.socket).await?;
    load::status(&mut connection.kms()).await?;
    let sealed = Arc::new(load::seal(&connection, 1024, 8).await?);
    let server = Pid(args.pid.unwrap_or_else(std::process::id));
    let target = Target { connection: &connection, server, watched: vec![server], sealed: &sealed };
    let stretch =
        Stretch { warm_up: Duration::from_secs_f64(args.warm_up), measured: Duration::from_secs_f64(args.seconds) };
    let sample = target.measure(args.call, args.concurrency, stretch).await?;
    println!("{}", serde_json::to_string(&sample).map_err(|source| Failure::transport("JSON", source))?);
    Ok(())
}
