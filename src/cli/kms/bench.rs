//! `keystead kms bench`: how fast the daemon answers, as one client sees it.
//!
//! For a look on the spot; `scripts/bench` compares with an echo server and is what the budgets are measured by.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use keystead_wire::kms::v2::{DecryptRequest, EncryptRequest, StatusRequest};
use serde_json::json;
use tokio::runtime::Builder;
use tokio::task::JoinSet;

use super::document::Document;
use super::{Service, request_uid};
use crate::cli::exit::{Exit, Failure};
use crate::cli::report::{Format, Report, progress};
use crate::cli::table;

#[derive(Debug, Args)]
pub struct Arguments {
    /// How long to measure
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Requests in flight
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: u16,
    /// What to call
    #[arg(long, value_enum, value_name = "OPERATION", default_value_t = Operation::Decrypt)]
    operation: Operation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Operation {
    Encrypt,
    Decrypt,
    Status,
}

/// Distinct ciphertexts that Decrypt is given in turn: no answer could be remembered from the request before.
const DISTINCT: usize = 256;
/// What kube-apiserver sends: a DEK seed.
const SEED_BYTES: usize = 32;
/// Answers whose latency is kept, in all: 64 MiB. Beyond it only throughput goes on being counted.
const KEPT: usize = 16 << 20;

pub fn run(arguments: &Arguments, socket: &Path, format: Format) -> Result<Report, Failure> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot start: {error}")))?;
    runtime.block_on(async {
        let service = Service::open(socket).await?;
        progress(format, &format!("measuring for {} s…", arguments.seconds));
        measure(arguments.operation, arguments.concurrency, Duration::from_secs(arguments.seconds), service).await
    })
}

pub(super) async fn measure(
    operation: Operation,
    concurrency: u16,
    duration: Duration,
    service: Service,
) -> Result<Report, Failure> {
    let prepared = Arc::new(prepare(operation, &service).await?);
    let start = Instant::now();
    let end = start + duration;
    let workers = usize::from(concurrency);
    let mut running = JoinSet::new();
    for worker in 0..workers {
        running.spawn(work(operation, service.clone(), Arc::clone(&prepared), worker, end, KEPT / workers));
    }
    let mut sample = Sample::default();
    while let Some(outcome) = running.join_next().await {
        let part = outcome.map_err(|error| Failure::new(Exit::Failed, format!("a worker died: {error}")))??;
        sample.answers += part.answers;
        sample.latencies.extend(part.latencies);
    }
    Ok(report(operation, concurrency, sample, start.elapsed()))
}

/// The requests' bodies: ciphertexts for Decrypt, nothing for the rest.
async fn prepare(operation: Operation, service: &Service) -> Result<Vec<Document>, Failure> {
    let mut documents = Vec::new();
    if operation == Operation::Decrypt {
        for _ in 0..DISTINCT {
            documents.push(super::encrypt::encrypt(service.clone(), &seed()?).await?);
        }
    }
    Ok(documents)
}

fn seed() -> Result<[u8; SEED_BYTES], Failure> {
    let mut seed = [0; SEED_BYTES];
    getrandom::fill(&mut seed).map_err(|error| Failure::new(Exit::Failed, format!("no randomness: {error}")))?;
    Ok(seed)
}

#[derive(Debug, Default)]
struct Sample {
    answers: u64,
    /// Microseconds.
    latencies: Vec<u32>,
}

async fn work(
    operation: Operation,
    mut service: Service,
    documents: Arc<Vec<Document>>,
    worker: usize,
    end: Instant,
    keep: usize,
) -> Result<Sample, Failure> {
    let uid = request_uid()?;
    let mut sample = Sample::default();
    // Workers start at different documents.
    let mut turn = worker.wrapping_mul(31);
    loop {
        let sent = Instant::now();
        if sent >= end {
            return Ok(sample);
        }
        let Service { connection, kms } = &mut service;
        match operation {
            Operation::Status => drop(connection.answer(kms.status(StatusRequest {})).await?),
            Operation::Encrypt => {
                let request = EncryptRequest { plaintext: seed()?.to_vec(), uid: uid.clone() };
                drop(connection.answer(kms.encrypt(request)).await?);
            }
            Operation::Decrypt => {
                let document = &documents[turn % documents.len()];
                turn = turn.wrapping_add(1);
                let request = DecryptRequest {
                    ciphertext: document.ciphertext.0.clone(),
                    uid: uid.clone(),
                    key_id: document.key_id.clone(),
                    annotations: document.annotations(),
                };
                drop(connection.answer(kms.decrypt(request)).await?);
            }
        }
        sample.answers += 1;
        if sample.latencies.len() < keep {
            sample.latencies.push(u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
    }
}

fn report(operation: Operation, concurrency: u16, mut sample: Sample, took: Duration) -> Report {
    sample.latencies.sort_unstable();
    let rate = sample.answers as f64 / took.as_secs_f64();
    let (p50, p99) = (percentile(&sample.latencies, 50), percentile(&sample.latencies, 99));
    let name = match operation {
        Operation::Encrypt => "encrypt",
        Operation::Decrypt => "decrypt",
        Operation::Status => "status",
    };
    let text = table::fields(&[
        ("Operation", format!("{name}, {concurrency} in flight, one connection")),
        ("Throughput", format!("{rate:.0}/s ({} answers in {:.1} s)", sample.answers, took.as_secs_f64())),
        ("Latency", format!("p50 {p50} µs, p99 {p99} µs")),
    ]);
    let json = json!({
        "operation": name,
        "concurrency": concurrency,
        "seconds": took.as_secs_f64(),
        "answers": sample.answers,
        "per_second": rate,
        "p50_microseconds": p50,
        "p99_microseconds": p99,
    });
    Report::done(text, json)
}

/// The value below which `percent` of the sorted sample lie (nearest rank); 0 for an empty one.
fn percentile(sorted: &[u32], percent: usize) -> u32 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let sorted: Vec<u32> = (1..=200).collect();
        assert_eq!((percentile(&sorted, 50), percentile(&sorted, 99)), (100, 198));
        assert_eq!((percentile(&[7], 50), percentile(&[7], 99), percentile(&[], 99)), (7, 7, 0));
    }
}
