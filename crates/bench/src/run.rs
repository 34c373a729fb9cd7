//! One run: starts the servers, takes the measurements that were asked for one after the other, and reports. A
//! measurement that fails is reported as such and does not cost the others.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;

use crate::cloud::Cloud;
use crate::echo::Lengths;
use crate::failure::{Failure, FailureExt};
use crate::load::{self, Call, Sealed, Stretch, Target};
use crate::procfs::Memory;
use crate::report::{Binary, Burst, Cell, Lines, Machine, Options, Report, Start, Step};
use crate::stats;
use crate::subject::{Custody, Daemon, Echo, Installation};
use crate::tpm_proxy::Proxy;

const CONCURRENCIES: [usize; 3] = [1, 8, 64];
/// Callers where concurrency is not what is asked.
const CALLERS: usize = 8;
const BURST_CALLERS: usize = 64;
/// Ciphertexts that Decrypt is measured with.
const SEALED: usize = 1024;
/// Seeds encrypted under each generation: 10,000 at 1,000 generations.
const SEEDS_A_GENERATION: usize = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Measurement {
    /// Requests per second, latency, CPU time and memory
    Throughput,
    /// From spawn to the first ok
    Start,
    /// Device operations of a burst of Decrypts
    Burst,
    /// Cost against the number of generations
    Generations,
    /// Throughput in the cloud profile while the cloud takes connections and never answers; needs --cloud-rig
    Outage,
    /// Throughput and CPU time with every Encrypt and Decrypt in the audit trail
    Audit,
    /// Size of the binary
    Size,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// The daemon's binary [default: `keystead` beside this one]
    #[arg(long)]
    keystead: Option<PathBuf>,
    /// SoftHSM's module [default: the first of the usual places that exists]
    #[arg(long)]
    module: Option<PathBuf>,
    /// Measure on the TPM that is reached so, as swtpm:host=127.0.0.1,port=2321, in place of SoftHSM; it is provisioned
    #[arg(long, conflicts_with = "module")]
    tcti: Option<String>,
    /// Milliseconds that each command of the TPM takes longer; for a software TPM
    #[arg(long, value_name = "MS", requires = "tcti")]
    tpm_latency: Option<u64>,
    /// scripts/rigs/cloud: the stub of a cloud, for the measurement `outage` [default: that is left out]
    #[arg(long, value_name = "SCRIPT")]
    cloud_rig: Option<PathBuf>,
    /// Few and short rounds: shows that everything works, measures nothing well
    #[arg(long)]
    quick: bool,
    /// Rounds of each measurement [default: 51, quick: 2]
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of one round of one call [default: 0.15, quick: 0.1]
    #[arg(long, value_parser = crate::seconds)]
    seconds: Option<f64>,
    /// Take only these measurements
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Measurement>,
    /// Numbers of generations, ascending [default: 1,10,100,1000, quick: 1,3]
    #[arg(long, value_delimiter = ',')]
    generations: Option<Vec<u32>>,
    /// Worker threads of the echo server: as many as the daemon's server has
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Threads of the generator
    #[arg(long, default_value_t = 1)]
    pub client_threads: usize,
    /// Measure a second echo server in Keystead's place: shows what the method resolves
    #[arg(long)]
    calibrate: bool,
    /// Where to write everything that was found, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What a run is to do, with every default filled in.
struct Plan {
    rounds: usize,
    stretch: Stretch,
    starts: usize,
    burst: usize,
    generations: Vec<u32>,
    workers: usize,
    only: Vec<Measurement>,
}

impl Plan {
    fn new(args: &RunArgs) -> Self {
        let (rounds, seconds, starts, burst, generations) = match args.quick {
            true => (2, 0.1, 3, 500, vec![1, 3]),
            false => (51, 0.15, 20, 10_000, vec![1, 10, 100, 1_000]),
        };
        let seconds = args.seconds.unwrap_or(seconds);
        let mut generations = args.generations.clone().unwrap_or(generations);
        generations.sort_unstable();
        generations.dedup();
        Self {
            rounds: args.rounds.unwrap_or(rounds).max(1),
            stretch: Stretch {
                warm_up: Duration::from_secs_f64(seconds / 3.0),
                measured: Duration::from_secs_f64(seconds),
            },
            starts,
            burst,
            generations,
            workers: args.workers,
            only: args.only.clone(),
        }
    }

    fn wants(&self, measurement: Measurement) -> bool {
        self.only.is_empty() || self.only.contains(&measurement)
    }
}

/// Measures, prints the tables to standard output, and writes the JSON.
///
/// # Errors
/// When nothing could be measured, or when one measurement failed; the others are reported all the same.
pub async fn run(args: &RunArgs) -> Result<(), Failure> {
    let plan = Plan::new(args);
    let mut report = Report {
        machine: machine(),
        options: Options {
            rounds: plan.rounds,
            seconds: plan.stretch.measured.as_secs_f64(),
            warm_up: plan.stretch.warm_up.as_secs_f64(),
            workers: plan.workers,
            client_threads: args.client_threads,
            tpm: args.tcti.is_some(),
        },
        calibration: args.calibrate,
        ..Report::default()
    };
    let dir = private_dir()?;
    if args.calibrate {
        calibrate(&plan, dir.path(), &mut report).await?;
    } else {
        measure_daemon(args, &plan, dir.path(), &mut report).await?;
    }
    print!("{}", report.to_markdown());
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&report).map_err(|source| Failure::transport("JSON", source))?;
        std::fs::write(path, json + "\n").doing(|| format!("write {}", path.display()))?;
    }
    match report.failures.len() {
        0 => Ok(()),
        count => Err(Failure::Unusable(format!("{count} measurement(s) failed, see the report"))),
    }
}

/// Removed with everything in it at the end. In the folder for temporary files: a socket's path has at most 107 bytes.
fn private_dir() -> Result<tempfile::TempDir, Failure> {
    tempfile::Builder::new()
        .prefix("keystead-bench-")
        .permissions(std::fs::Permissions::from_mode(0o700))
        .tempdir()
        .doing(|| "make a temporary folder".into())
}

async fn calibrate(plan: &Plan, dir: &Path, report: &mut Report) -> Result<(), Failure> {
    let lengths = Lengths::default();
    let echo = Echo::start(dir, "echo", plan.workers, &lengths).await?;
    let second = Echo::start(dir, "second", plan.workers, &lengths).await?;
    let sealed = Arc::new(load::seal(&second.connection, SEALED, CALLERS).await?);
    let pair = Pair {
        echo: echo_target(&echo, &sealed),
        keystead: echo_target(&second, &sealed),
        roles: vec!["echo", "second echo"],
    };
    pair.all_cells(plan, report).await?;
    report.lengths = Some(lengths);
    second.stop().await?;
    echo.stop().await
}

async fn measure_daemon(args: &RunArgs, plan: &Plan, dir: &Path, report: &mut Report) -> Result<(), Failure> {
    let keystead = match &args.keystead {
        Some(path) => path.clone(),
        None => std::env::current_exe().doing(|| "find this program".into())?.with_file_name("keystead"),
    };
    if !keystead.is_file() {
        let path = keystead.display();
        return Err(Failure::Unusable(format!("there is no daemon at {path}; build it first, or give --keystead")));
    }
    if plan.wants(Measurement::Size) {
        report.binary = note(&mut report.failures, "size", binary(&keystead));
    }
    let custody = custody(args)?;
    let installation = Installation::new(&keystead, &custody, dir, "").await?;

    let daemon = installation.start().await?;
    let sealed = load::seal(&daemon.connection, SEALED, CALLERS).await?;
    let lengths = lengths(&sealed)?;
    report.server_threads = Some(daemon.pids.server.threads());
    report.lengths = Some(lengths.clone());
    let echo = Echo::start(dir, "echo", plan.workers, &lengths).await?;

    if plan.wants(Measurement::Throughput) {
        let sealed = Arc::new(sealed);
        let done = Pair::of(&echo, &daemon, &sealed).all_cells(plan, report).await;
        note(&mut report.failures, "throughput", done);
    }
    daemon.stop().await?;

    if plan.wants(Measurement::Start) {
        let found = starts(&installation, plan, dir, &lengths).await;
        report.start = note(&mut report.failures, "start", found);
    }
    if plan.wants(Measurement::Burst) {
        let found = burst(&installation, plan.burst).await;
        report.burst = note(&mut report.failures, "burst", found);
    }
    if plan.wants(Measurement::Generations) {
        let done = by_generations(&installation, plan, &echo, &mut report.generations).await;
        note(&mut report.failures, "generations", done);
    }
    if plan.wants(Measurement::Audit) {
        let done = audited(&keystead, &custody, plan, dir, report).await;
        note(&mut report.failures, "audit", done);
    }
    if let Some(rig) = args.cloud_rig.as_ref().filter(|_| plan.wants(Measurement::Outage)) {
        let found = outage(rig, &keystead, &custody, plan, dir).await;
        report.outage = note(&mut report.failures, "outage", found).unwrap_or_default();
    }
    echo.stop().await
}

fn custody(args: &RunArgs) -> Result<Custody, Failure> {
    if let Some(tcti) = &args.tcti {
        let Some(latency) = args.tpm_latency else { return Ok(Custody::Tpm { tcti: tcti.clone() }) };
        let proxy = Proxy::start(tcti, Duration::from_millis(latency)).doing(|| "put a proxy before the TPM".into())?;
        return Ok(Custody::Tpm { tcti: proxy.tcti });
    }
    let module = args.module.clone().or_else(softhsm).ok_or_else(|| {
        Failure::Unusable("SoftHSM's module is in none of the usual places; install softhsm2 or give --module".into())
    })?;
    Ok(Custody::SoftHsm { module })
}

/// Throughput of a daemon whose key is in a cloud that has become a black hole. Its echo server answers as many bytes.
async fn outage(rig: &Path, keystead: &Path, custody: &Custody, plan: &Plan, dir: &Path) -> Result<Vec<Cell>, Failure> {
    let dir = dir.join("outage");
    std::fs::create_dir(&dir).doing(|| format!("make {}", dir.display()))?;
    let cloud = Cloud::start(rig, &dir).await?;
    let installation = Installation::new(keystead, custody, &dir, &cloud.table()?).await?;
    let daemon = installation.start().await?;
    let sealed = load::seal(&daemon.connection, SEALED, CALLERS).await?;
    let echo = Echo::start(&dir, "echo", plan.workers, &lengths(&sealed)?).await?;
    cloud.black_hole().await?;
    daemon.until_degraded().await?;
    let kinds: Vec<_> =
        Call::ALL.iter().flat_map(|call| CONCURRENCIES.map(|concurrency| (*call, concurrency))).collect();
    let cells = Pair::of(&echo, &daemon, &Arc::new(sealed)).cells(&kinds, plan.rounds, plan.stretch).await?;
    echo.stop().await?;
    daemon.stop().await?;
    cloud.stop().await?;
    Ok(cells)
}

/// Encrypt and Decrypt of a daemon that records each. It refuses what it cannot record, and a refusal ends the measurement: what is
/// shown is of a trail without gaps.
async fn audited(
    keystead: &Path,
    custody: &Custody,
    plan: &Plan,
    dir: &Path,
    report: &mut Report,
) -> Result<(), Failure> {
    let dir = dir.join("audited");
    std::fs::create_dir(&dir).doing(|| format!("make {}", dir.display()))?;
    let table = "[audit]\nlevel = 'requests'\nfailure = 'stop'\n";
    let installation = Installation::new(keystead, custody, &dir, table).await?;
    let daemon = installation.start().await?;
    let before = daemon.lines().await?;
    let sealed = load::seal(&daemon.connection, SEALED, CALLERS).await?;
    let echo = Echo::start(&dir, "echo", plan.workers, &lengths(&sealed)?).await?;
    let calls = [Call::Encrypt, Call::Decrypt];
    let kinds: Vec<_> = calls.iter().flat_map(|call| CONCURRENCIES.map(|concurrency| (*call, concurrency))).collect();
    report.audited = Pair::of(&echo, &daemon, &Arc::new(sealed)).cells(&kinds, plan.rounds, plan.stretch).await?;
    let after = daemon.lines().await?;
    let measured = report.audited.iter().flat_map(|cell| &cell.keystead).map(|sample| sample.requests).sum::<u64>();
    // What was answered while a stretch warmed up comes on top.
    report.lines = Some(Lines { answered: measured, written: after.0 - before.0, lost: after.1 });
    echo.stop().await?;
    daemon.stop().await
}

/// Keeps why something was not measured.
fn note<T>(failures: &mut Vec<String>, what: &str, result: Result<T, Failure>) -> Option<T> {
    result.map_err(|failure| failures.push(format!("{what}: {}", failure.chain()))).ok()
}

/// The echo server and what is measured against it.
struct Pair<'a> {
    echo: Target<'a>,
    keystead: Target<'a>,
    /// What the watched processes are, the echo server's first.
    roles: Vec<&'static str>,
}

impl<'a> Pair<'a> {
    fn of(echo: &'a Echo, daemon: &'a Daemon<'_>, sealed: &'a Arc<Vec<Sealed>>) -> Self {
        let pids = daemon.pids;
        Self {
            echo: echo_target(echo, sealed),
            keystead: Target {
                connection: &daemon.connection,
                server: pids.server,
                watched: vec![pids.server, pids.custodian, pids.supervisor],
                sealed,
            },
            roles: vec!["echo", "server", "custodian", "supervisor"],
        }
    }

    /// Every call at every concurrency, and the memory that it took.
    async fn all_cells(&self, plan: &Plan, report: &mut Report) -> Result<(), Failure> {
        let kinds: Vec<_> =
            Call::ALL.iter().flat_map(|call| CONCURRENCIES.map(|concurrency| (*call, concurrency))).collect();
        report.cells = self.cells(&kinds, plan.rounds, plan.stretch).await?;
        report.memory = largest_memory(&self.roles, &report.cells);
        Ok(())
    }

    /// Interleaved: in each round each kind once, on both servers one right after the other. Where a round begins, and
    /// which server goes first, changes from round to round.
    async fn cells(&self, kinds: &[(Call, usize)], rounds: usize, stretch: Stretch) -> Result<Vec<Cell>, Failure> {
        let mut cells: Vec<Cell> = kinds
            .iter()
            .map(|(call, concurrency)| Cell { call: *call, concurrency: *concurrency, echo: vec![], keystead: vec![] })
            .collect();
        for round in 0..rounds {
            if round.is_multiple_of(10) {
                eprintln!("round {} of {rounds}", round + 1);
            }
            for step in 0..cells.len() {
                let at = (step + round) % kinds.len();
                let (call, callers) = kinds[at];
                let echo_first = (round + at).is_multiple_of(2);
                if echo_first {
                    cells[at].echo.push(self.echo.measure(call, callers, stretch).await?);
                }
                cells[at].keystead.push(self.keystead.measure(call, callers, stretch).await?);
                if !echo_first {
                    cells[at].echo.push(self.echo.measure(call, callers, stretch).await?);
                }
            }
        }
        Ok(cells)
    }
}

fn echo_target<'a>(echo: &'a Echo, sealed: &'a Arc<Vec<Sealed>>) -> Target<'a> {
    Target { connection: &echo.connection, server: echo.pid(), watched: vec![echo.pid()], sealed }
}

fn largest_memory(roles: &[&'static str], cells: &[Cell]) -> BTreeMap<&'static str, Memory> {
    let seen = cells
        .iter()
        .flat_map(|cell| cell.echo.iter().zip(&cell.keystead))
        .flat_map(|(echo, keystead)| roles.iter().copied().zip(echo.memory.iter().chain(&keystead.memory).copied()));
    let mut largest = BTreeMap::<_, Memory>::new();
    for (role, memory) in seen {
        let most = largest.entry(role).or_default();
        if memory.resident > most.resident {
            *most = memory;
        }
    }
    largest
}

/// Starts and stops both servers in turn; nothing else runs meanwhile.
async fn starts(installation: &Installation, plan: &Plan, dir: &Path, lengths: &Lengths) -> Result<Start, Failure> {
    eprintln!("{} starts", plan.starts);
    let mut start = Start { echo: vec![], keystead: vec![] };
    for _ in 0..plan.starts {
        let daemon = installation.start().await?;
        start.keystead.push(milliseconds(daemon.start));
        daemon.stop().await?;
        let echo = Echo::start(dir, "start", plan.workers, lengths).await?;
        start.echo.push(milliseconds(echo.start));
        echo.stop().await?;
    }
    Ok(start)
}

/// Encrypts, restarts, decrypts everything once.
async fn burst(installation: &Installation, seeds: usize) -> Result<Burst, Failure> {
    eprintln!("{seeds} Decrypts after a restart");
    let daemon = installation.start().await?;
    let sealed = Arc::new(load::seal(&daemon.connection, seeds, BURST_CALLERS).await?);
    daemon.stop().await?;
    let daemon = installation.start().await?;
    let burst = open_burst(&daemon, &sealed).await?;
    daemon.stop().await?;
    Ok(burst)
}

async fn open_burst(daemon: &Daemon<'_>, sealed: &Arc<Vec<Sealed>>) -> Result<Burst, Failure> {
    let before = daemon.counts().await?;
    let started = Instant::now();
    load::open_each(&daemon.connection, sealed, BURST_CALLERS).await?;
    let seconds = started.elapsed().as_secs_f64();
    let after = daemon.counts().await?;
    Ok(Burst {
        seeds: sealed.len(),
        seconds,
        generations: before.generations,
        loaded_before: before.generations_loaded,
        operations_of_start: before.total(),
        operations: after.caused_since(&before),
    })
}

/// Rotates until the keyring is as long as each step asks, and measures there, Decrypts spread over all generations.
async fn by_generations(
    installation: &Installation,
    plan: &Plan,
    echo: &Echo,
    steps: &mut Vec<Step>,
) -> Result<(), Failure> {
    let mut daemon = installation.start().await?;
    let mut all = load::seal(&daemon.connection, SEEDS_A_GENERATION, 1).await?;
    let mut generations = daemon.counts().await?.generations;
    for wanted in plan.generations.iter().copied() {
        eprintln!("{wanted} generations");
        let mut rotations = Vec::new();
        while generations < wanted {
            let started = Instant::now();
            daemon.rotate().await?;
            rotations.push(milliseconds(started.elapsed()));
            generations += 1;
            all.append(&mut load::seal(&daemon.connection, SEEDS_A_GENERATION, 1).await?);
        }
        daemon.stop().await?;

        let mut starts = Vec::new();
        for _ in 0..2 {
            let again = installation.start().await?;
            starts.push(milliseconds(again.start));
            again.stop().await?;
        }
        daemon = installation.start().await?;
        starts.push(milliseconds(daemon.start));

        let sealed = Arc::new(all);
        let burst = open_burst(&daemon, &sealed).await?;
        daemon.reconnect().await?;
        if burst.generations != generations {
            let found = format!("{} generations where {generations} were made", burst.generations);
            return Err(Failure::WrongAnswer { call: "GetStatus", problem: found });
        }
        let pair = Pair::of(echo, &daemon, &sealed);
        let kinds = [(Call::Encrypt, CALLERS), (Call::Decrypt, CALLERS)];
        let cells = pair.cells(&kinds, plan.rounds.min(31), plan.stretch).await?;
        let server = largest_memory(&pair.roles, &cells).remove("server").unwrap_or_default();
        steps.push(Step {
            generations,
            rotation_ms: stats::median(rotations),
            start_ms: stats::median(starts).unwrap_or(f64::NAN),
            burst,
            cells,
            server,
        });
        // Every caller has ended, so nobody else holds it.
        all = Arc::into_inner(sealed).unwrap_or_default();
    }
    daemon.stop().await
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// How long the daemon's answers are, from one that it gave.
fn lengths(sealed: &[Sealed]) -> Result<Lengths, Failure> {
    let problem = |problem: &str| Failure::WrongAnswer { call: "Encrypt", problem: problem.into() };
    let answer = sealed.first().ok_or_else(|| problem("nothing"))?.answer();
    let mut annotations = answer.annotations.iter();
    let (annotation_key, annotation) =
        annotations.next().map_or((String::new(), 0), |(key, value)| (key.clone(), value.len()));
    if annotations.next().is_some() {
        return Err(problem("more annotations than the echo server can imitate"));
    }
    Ok(Lengths {
        ciphertext: answer.ciphertext.len(),
        plaintext: load::SEED_LEN,
        key_id: answer.key_id.len(),
        annotation_key,
        annotation,
    })
}

fn softhsm() -> Option<PathBuf> {
    let multiarch = format!("/usr/lib/{}-linux-gnu/softhsm/libsofthsm2.so", std::env::consts::ARCH);
    ["/usr/lib/softhsm/libsofthsm2.so", &multiarch, "/usr/local/lib/softhsm/libsofthsm2.so"]
        .iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
}

/// Size of a 64-bit ELF file, and whether its symbols are gone.
fn binary(path: &Path) -> Result<Binary, Failure> {
    let file = std::fs::read(path).doing(|| format!("read the daemon's binary {}", path.display()))?;
    let has_symbols = has_symbol_table(&file)
        .ok_or_else(|| Failure::Unusable(format!("{} is not a 64-bit ELF file", path.display())))?;
    Ok(Binary { bytes: file.len() as u64, stripped: !has_symbols })
}

/// Looks for a section of type `SHT_SYMTAB`. `None` if this is no such file. Source: elf(5).
fn has_symbol_table(file: &[u8]) -> Option<bool> {
    const SYMBOL_TABLE: u64 = 2;
    let number = |at: usize, len: usize| {
        let bytes = file.get(at..at.checked_add(len)?)?;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, entry, count) = (number(0x28, 8)?, number(0x3a, 2)?, number(0x3c, 2)?);
    for section in 0..count {
        let header = usize::try_from(table.checked_add(section * entry)?).ok()?;
        if number(header.checked_add(4)?, 4)? == SYMBOL_TABLE {
            return Some(true);
        }
    }
    Some(false)
}

fn machine() -> Machine {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let processor = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim().to_owned()));
    Machine {
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        processor: processor.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        load_before: read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_test_binary_has_symbols() {
        let own = binary(&std::env::current_exe().unwrap()).unwrap();
        assert!(own.bytes > 0 && !own.stripped);
        assert_eq!(has_symbol_table(b"#!/bin/sh"), None);
        assert_eq!(has_symbol_table(b"\x7fELF\x02\x01"), None);
    }

    #[test]
    fn temporary_folder_is_private() {
        let dir = private_dir().unwrap();
        assert_eq!(std::fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
