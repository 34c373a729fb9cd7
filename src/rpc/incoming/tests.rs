//! The limit, the deadline and the way back of slots, over real sockets; time is paused where it matters.

use std::path::{Path, PathBuf};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_stream::StreamExt;
use tonic::transport::server::Connected;

use super::*;
use crate::rpc::peer::PeerPolicy;
use crate::rpc::roles::RolePolicy;

const DEADLINE: Duration = Duration::from_secs(10);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn everybody() -> PeerPolicy {
    PeerPolicy { uids: vec![rustix::process::geteuid().as_raw()], gids: vec![] }
}

fn incoming(max_connections: usize, policy: PeerPolicy) -> (tempfile::TempDir, PathBuf, Incoming) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kms.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let settings = IncomingSettings {
        handshake_deadline: DEADLINE,
        admission: Admission { max_connections, policy, roles: RolePolicy::default() },
    };
    (folder, path, Incoming::new(listener, settings))
}

async fn connect(path: &Path) -> UnixStream {
    UnixStream::connect(path).await.unwrap()
}

#[test]
fn refusal_is_well_formed_http2() {
    let goaway = &REFUSAL[9..];
    let length = usize::from(goaway[2]);
    assert_eq!(goaway.len(), 9 + length);
    assert_eq!(&goaway[17..], b"too many connections");
}

#[tokio::test]
async fn beyond_the_limit_is_told_and_closed_and_slots_return() {
    let (_folder, path, mut incoming) = incoming(2, everybody());
    let counters = incoming.counters();
    let _one = connect(&path).await;
    let _two = connect(&path).await;
    let first = incoming.next().await.unwrap().unwrap();
    let _second = incoming.next().await.unwrap().unwrap();

    let mut third = connect(&path).await;
    third.write_all(PREFACE).await.unwrap();
    let polled = tokio::time::timeout(Duration::from_millis(1), incoming.next()).await;
    assert!(polled.is_err(), "nothing is handed to tonic");
    let mut answer = vec![0; REFUSAL.len()];
    third.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, REFUSAL);
    assert!(matches!(third.read(&mut [0]).await, Ok(0) | Err(_)), "and closed");
    assert_eq!(counters.refused.load(Ordering::Relaxed), 1);

    drop(first);
    assert_eq!(counters.open.load(Ordering::Relaxed), 1);
    let _fourth = connect(&path).await;
    incoming.next().await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn connection_that_says_nothing_is_closed_at_the_deadline() {
    let (_folder, path, mut incoming) = incoming(1, everybody());
    let counters = incoming.counters();
    let _silent = connect(&path).await;
    let mut connection = incoming.next().await.unwrap().unwrap();
    let before = tokio::time::Instant::now();
    let error = connection.read(&mut [0; 64]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert!(before.elapsed() >= DEADLINE);
    drop(connection);
    assert_eq!(counters.expired.load(Ordering::Relaxed), 1);
    assert_eq!(counters.open.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn half_a_preface_does_not_stop_the_clock() {
    const HALF: usize = 12;
    let (_folder, path, mut incoming) = incoming(1, everybody());
    let mut slow = connect(&path).await;
    slow.write_all(&PREFACE[..HALF]).await.unwrap();
    let mut connection = incoming.next().await.unwrap().unwrap();
    let mut buffer = [0; 64];
    assert_eq!(connection.read(&mut buffer).await.unwrap(), HALF);
    assert_eq!(connection.read(&mut buffer).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
}
#[tokio::test(start_paused = true)]
async fn idle_connection_stays_once_http2_is_open() {
    let (_folder, path, mut incoming) = incoming(1, everybody());
    let mut client = connect(&path).await;
    client.write_all(PREFACE).await.unwrap();
    let mut connection = incoming.next().await.unwrap().unwrap();
    let mut buffer = [0; 64];
    assert_eq!(connection.read(&mut buffer).await.unwrap(), PREFACE.len());
    let waited = tokio::time::timeout(DEADLINE * 100, connection.read(&mut buffer)).await;
    assert!(waited.is_err(), "still open, nothing to read");
}

#[tokio::test(start_paused = true)]
async fn peer_that_is_not_listed_is_marked_and_may_not_stay() {
    let (_folder, path, mut incoming) = incoming(1, PeerPolicy::default());
    let counters = incoming.counters();
    let mut client = connect(&path).await;
    client.write_all(PREFACE).await.unwrap();
    let mut connection = incoming.next().await.unwrap().unwrap();
    assert!(!connection.connect_info().admitted);
    assert_eq!(counters.unadmitted.load(Ordering::Relaxed), 1);
    let mut buffer = [0; 64];
    assert_eq!(connection.read(&mut buffer).await.unwrap(), PREFACE.len());
    assert_eq!(connection.read(&mut buffer).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn peers_that_are_not_listed_take_no_place_from_those_who_are() {
    let (_folder, path, mut incoming) = incoming(1, PeerPolicy::default());
    let mut clients = Vec::new();
    let mut strangers = Vec::new();
    for _ in 0..MAX_STRANGERS {
        clients.push(connect(&path).await);
        strangers.push(incoming.next().await.unwrap().unwrap());
    }
    let mut refused = connect(&path).await;
    let polled = tokio::time::timeout(Duration::from_millis(1), incoming.next()).await;
    assert!(polled.is_err(), "one stranger too many");
    let mut answer = vec![0; REFUSAL.len()];
    refused.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, REFUSAL);

    let roles = RolePolicy::default();
    incoming.admission().replace(Admission { max_connections: 1, policy: everybody(), roles });
    clients.push(connect(&path).await);
    assert!(incoming.next().await.unwrap().unwrap().connect_info().admitted);
    drop(strangers);
    assert_eq!(incoming.counters().strangers.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn caller_is_this_process() {
    let (_folder, path, mut incoming) = incoming(1, everybody());
    let _client = connect(&path).await;
    let caller = incoming.next().await.unwrap().unwrap().connect_info();
    assert!(caller.admitted);
    assert_eq!(caller.pid, Some(std::process::id().try_into().unwrap()));
}

#[tokio::test]
async fn ten_thousand_connections_leave_nothing_behind() {
    const CONNECTIONS: u64 = 10_000;
    let (_folder, path, mut incoming) = incoming(64, everybody());
    let counters = incoming.counters();
    let server = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Some(Ok(connection)) = incoming.next().await {
            held.push(connection);
        }
    });
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        // Most are refused at once; all client ends together would need more descriptors than tests may count on.
        clients.push(connect(&path).await);
        if clients.len() >= 500 {
            clients.drain(64..);
        }
    }
    let seen = || counters.accepted.load(Ordering::Relaxed) + counters.refused.load(Ordering::Relaxed);
    while seen() < CONNECTIONS {
        tokio::task::yield_now().await;
    }
    assert_eq!(counters.accepted.load(Ordering::Relaxed), 64);
    assert_eq!(counters.refused.load(Ordering::Relaxed), CONNECTIONS - 64);
    server.abort();
    assert!(server.await.unwrap_err().is_cancelled());
    assert_eq!(counters.open.load(Ordering::Relaxed), 0);
}
