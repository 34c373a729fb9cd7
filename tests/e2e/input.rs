//! Clients that mean harm or are broken: garbage, too much, too little, too many.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use keystead_wire::kms::v2::EncryptRequest;
use rustix::process::Signal;

use crate::daemon::{Kms, Site, decrypt, encrypt};

#[tokio::test]
async fn garbage_and_half_requests_disturb_nobody() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    let server = daemon.role("server");
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    // HEADERS of a request that never gets its body, a frame longer than allowed, an unknown stream's DATA, noise.
    let inputs: [Vec<u8>; 6] = [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 4096],
        preface[..10].to_vec(),
        [preface.as_slice(), &settings, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat(),
        [preface.as_slice(), &settings, &[0, 0, 4, 0, 0, 0, 0, 0, 9, 1, 2, 3, 4]].concat(),
        [preface.as_slice(), &settings, &[0, 0, 5, 1, 4, 0, 0, 0, 1, 0x82, 0xff, 0xff, 0xff, 0x7f]].concat(),
    ];
    for input in inputs {
        let mut stream = UnixStream::connect(site.kms_socket()).unwrap();
        stream.write_all(&input).unwrap();
        let encrypted = encrypt(&mut kms, b"seed").await;
        assert_eq!(decrypt(&mut kms, &encrypted).await.unwrap(), b"seed");
    }
    assert_eq!(daemon.role("server"), server, "the server was replaced: it must have crashed");
}

#[tokio::test]
async fn a_hundred_megabyte_message_is_refused_unread() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    let error = kms.encrypt(EncryptRequest { plaintext: vec![1; 100 << 20], uid: "uid".into() }).await.unwrap_err();
    assert!(
        matches!(error.code(), tonic::Code::OutOfRange | tonic::Code::ResourceExhausted | tonic::Code::Unknown),
        "{error}"
    );
    let resident = crate::memory::resident_kib(daemon.role("server").unwrap());
    assert!(resident < 40 << 10, "the server holds {resident} KiB");
    let mut fresh = daemon.kms().await;
    assert_eq!(decrypt(&mut fresh, &encrypt(&mut kms, b"seed").await).await.unwrap(), b"seed");
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused_and_slots_come_back() {
    let site = Site::initialized("[kms]\nmax_connections = 8");
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    encrypt(&mut kms, b"seed").await;
    let descriptors = |pid| std::fs::read_dir(format!("/proc/{pid}/fd")).map(|entries| entries.count()).unwrap_or(0);
    let server = daemon.role("server").unwrap();
    let mut held = Vec::new();
    // 10,000 in all, 200 held open at a time.
    for _ in 0..50 {
        held.clear();
        for _ in 0..200 {
            if let Ok(stream) = UnixStream::connect(site.kms_socket()) {
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                held.push(stream);
            }
        }
        // The last one is beyond the limit: closed at once, not left hanging.
        let refused = held.last_mut().expect("connections are accepted");
        let mut sink = Vec::new();
        let closed = refused.read_to_end(&mut sink);
        // With a GOAWAY that says why, if it could still be read.
        assert!(closed.is_ok() || closed.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
        // The connection that was there first is served on.
        encrypt(&mut kms, b"seed").await;
    }
    if rustix::process::getuid().is_root() {
        assert!(descriptors(server) < 64, "{} descriptors", descriptors(server));
    }
    held.clear();
    // And a new one gets a slot again.
    crate::memory::wait_until_async("a slot is free again", async || {
        match crate::clients::try_channel(site.kms_socket()).await {
            Ok(channel) => Kms::new(channel).status(keystead_wire::kms::v2::StatusRequest {}).await.is_ok(),
            Err(_) => false,
        }
    })
    .await;
    let metrics = crate::clients::metrics(&daemon).await;
    assert!(
        crate::clients::sample(&metrics, "keystead_connections_refused_total", "socket=\"kms\"") > 1000.0,
        "{metrics}"
    );
}

#[tokio::test]
async fn sigterm_under_load_drains_what_was_accepted() {
    let site = Site::initialized("");
    let mut daemon = site.serve().await;
    let kms = daemon.kms().await;
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let mut kms = kms.clone();
            tokio::spawn(async move {
                let mut answered = 0_u64;
                loop {
                    match kms.encrypt(EncryptRequest { plaintext: vec![1; 32], uid: "uid".into() }).await {
                        Ok(_) => answered += 1,
                        // After GOAWAY the client is told so; a request must never be cut in its middle.
                        Err(error) => return (answered, error),
                    }
                }
            })
        })
        .collect();
    tokio::time::timeout(Duration::from_secs(10), daemon.until("load", |_| true)).await.unwrap();
    daemon.signal(Signal::TERM);
    for task in tasks {
        let (answered, error) = task.await.unwrap();
        assert!(answered > 0);
        assert!(
            matches!(error.code(), tonic::Code::Unavailable | tonic::Code::Cancelled | tonic::Code::Unknown),
            "{error}"
        );
        assert!(!error.message().contains("broken pipe"), "{error}");
    }
    assert!(daemon.wait().success());
    assert!(!site.kms_socket().exists(), "the socket is left behind");
}

#[tokio::test]
async fn an_idle_client_does_not_hold_up_shutdown_beyond_the_deadline() {
    let site = Site::initialized("[kms]\ndrain_timeout = \"300ms\"");
    let daemon = site.serve().await;
    let _half = UnixStream::connect(site.kms_socket()).unwrap();
    let started = std::time::Instant::now();
    assert!(daemon.stop().success());
    assert!(started.elapsed() < Duration::from_secs(10));
}
