//! The server's memory after a burst: no copy of a seed, keys on locked pages. And small waiting helpers.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::time::{Duration, Instant};

use memchr::memmem;
use rustix::process::Pid;

use crate::daemon::{DEADLINE, Kms, Site, decrypt, encrypt};

/// Waits for a condition.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The same for a condition that is asked for.
pub async fn wait_until_async(what: &str, condition: impl AsyncFn() -> bool) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < DEADLINE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn resident_kib(pid: Pid) -> u64 {
    field(pid, "VmRSS:")
}

fn field(pid: Pid, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// How often a marker occurs in the writable memory of a process.
pub fn occurrences(pid: Pid, markers: &[[u8; 8]; 2]) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps; run as root");
    let mut memory = File::open(format!("/proc/{pid}/mem")).expect("mem; run as root");
    let mut found = 0;
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.starts_with("rw"))) {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let (start, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
        let mut region = vec![0; (end - start) as usize];
        if memory.seek(SeekFrom::Start(start)).is_err() || memory.read_exact(&mut region).is_err() {
            continue;
        }
        let here: usize = markers.iter().map(|marker| memmem::find_iter(&region, marker).count()).sum();
        found += here;
    }
    found
}

/// Seeds of random bytes, each half of which begins with a random marker that occurs nowhere else.
fn seeds(count: usize) -> (Vec<[u8; 32]>, [[u8; 8]; 2]) {
    let mut markers = [[0; 8]; 2];
    markers.iter_mut().for_each(|marker| getrandom::fill(marker).unwrap());
    let seeds = (0..count)
        .map(|_| {
            let mut seed = [0; 32];
            getrandom::fill(&mut seed).unwrap();
            seed[..8].copy_from_slice(&markers[0]);
            seed[16..24].copy_from_slice(&markers[1]);
            seed
        })
        .collect();
    (seeds, markers)
}

async fn burst(kms: &Kms, seeds: &[[u8; 32]]) {
    let tasks: Vec<_> = seeds
        .iter()
        .map(|seed| {
            let (mut kms, seed) = (kms.clone(), *seed);
            tokio::spawn(async move {
                let encrypted = encrypt(&mut kms, &seed).await;
                assert_eq!(decrypt(&mut kms, &encrypted).await.unwrap(), seed);
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

/// Only root may read the memory of a process that is not dumpable: an ordinary user is root in a namespace of his own,
/// where the whole test is run again. True if that was done.
pub fn ran_as_root_of_a_namespace(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return false;
    }
    let status = std::process::Command::new("unshare")
        .args(["-Ur", "--"])
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed in a user namespace");
    true
}

#[tokio::test]
async fn no_copy_of_a_seed_is_left_after_a_burst() {
    if ran_as_root_of_a_namespace("memory::no_copy_of_a_seed_is_left_after_a_burst") {
        return;
    }
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let server = daemon.role("server").unwrap();
    let (seeds, markers) = seeds(200);
    let kms = daemon.kms().await;
    burst(&kms, &seeds).await;
    drop(kms);
    // The client's connection has ended; give the server the moment to notice.
    wait_until_async("no seed in memory", async || occurrences(server, &markers) == 0).await;
    assert!(field(server, "VmLck:") > 0, "no page is locked");
}

/// kube-apiserver keeps its connection for ever, and HTTP/2 its buffers as long as that: see rpc/serve.rs.
#[tokio::test]
async fn no_copy_of_a_seed_is_left_while_the_client_stays_connected() {
    if ran_as_root_of_a_namespace("memory::no_copy_of_a_seed_is_left_while_the_client_stays_connected") {
        return;
    }
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let server = daemon.role("server").unwrap();
    let (seeds, markers) = seeds(200);
    let mut kms = daemon.kms().await;
    burst(&kms, &seeds).await;
    wait_until_async("no seed in memory", async || occurrences(server, &markers) == 0).await;
    // The same client goes on without noticing.
    let encrypted = encrypt(&mut kms, &[1; 32]).await;
    assert_eq!(decrypt(&mut kms, &encrypted).await.unwrap(), [1; 32]);
}

/// Without this the scan might find nothing because it cannot find anything.
#[test]
fn the_scan_finds_what_is_there() {
    let (seeds, markers) = seeds(4);
    let kept = std::hint::black_box(Box::new(seeds[0]));
    assert!(occurrences(rustix::process::getpid(), &markers) >= 2);
    drop(kept);
}
