//! Logs and metrics: what they must tell, and what must never be in them.

use crate::daemon::{Finished, Site, decrypt, encrypt};

#[tokio::test]
async fn requests_are_logged_once_and_nothing_secret_is() {
    let site = Site::initialized("[log]\nlevel = \"trace\"\n");
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    let seed = *b"\x01a-seed-that-must-never-be-seen\x02";
    let encrypted = encrypt(&mut kms, &seed).await;
    decrypt(&mut kms, &encrypted).await.unwrap();
    let mut tampered = encrypted.clone();
    tampered.ciphertext[40] ^= 1;
    decrypt(&mut kms, &tampered).await.unwrap_err();
    site.rotate().expect_success();
    let metrics = crate::clients::metrics(&daemon).await;
    let log_so_far = daemon.log();
    assert!(daemon.stop().success());
    let log = std::fs::read_to_string(site.path().join("log")).unwrap();
    assert!(log.len() >= log_so_far.len());

    let requests: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("not JSON ({error}): {line}")))
        .filter(|line: &serde_json::Value| line["message"] == "request" && line["method"] != "Status")
        .collect();
    assert_eq!(requests.len(), 3, "{requests:#?}");
    assert!(requests.iter().all(|line| line["latency_us"].is_number() && line["uid"] == "\"uid\""));

    let pin = std::fs::read_to_string(site.token.pin_file()).unwrap();
    let hex: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
    for secret in [pin.trim(), "a-seed-that-must-never-be-seen", &hex, &hex[2..40]] {
        assert!(!log.contains(secret), "the log holds a secret");
        assert!(!metrics.contains(secret), "the metrics hold a secret");
    }
}

/// As of a journal whose disk hangs. Each request is logged here, on the thread that serves it.
#[tokio::test]
async fn log_that_nobody_reads_holds_nothing_up_and_says_later_what_is_missing() {
    let site = Site::initialized("[log]\nlevel = \"debug\"\n");
    let (read, write) = rustix::pipe::pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&write, 4096).unwrap();
    std::fs::write(site.path().join("log"), "").unwrap();
    let mut daemon = site.spawn_logging_to(&[], write);
    daemon.until_serving().await;
    let server = daemon.role("server");
    let mut kms = daemon.kms().await;
    let sealed = encrypt(&mut kms, b"seed").await;
    for _ in 0..200 {
        assert_eq!(decrypt(&mut kms, &sealed).await.unwrap(), b"seed");
    }
    let rotation = site.command(["key", "rotate", "--yes"]).output().unwrap();
    rotation.expect_success();
    assert_eq!((daemon.status().await.active_generation, daemon.role("server")), (2, server));

    let log = tokio::task::spawn_blocking(move || {
        let lines = std::io::BufRead::lines(std::io::BufReader::new(std::fs::File::from(read)));
        lines.map(|line| line.unwrap()).collect::<Vec<_>>()
    });
    // Until one line more is logged and taken.
    decrypt(&mut kms, &sealed).await.unwrap();
    drop(kms);
    assert!(daemon.stop().success());
    let log = log.await.unwrap();
    assert!(log.iter().any(|line| line.contains("were dropped")), "{log:#?}");
    assert!(log[0].contains("supervising"), "{log:#?}");
}

#[tokio::test]
async fn metrics_and_health_say_what_happened() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    let encrypted = encrypt(&mut kms, b"seed").await;
    for _ in 0..4 {
        decrypt(&mut kms, &encrypted).await.unwrap();
    }
    let metrics = crate::clients::metrics(&daemon).await;
    let sample = |name: &str, label: &str| crate::clients::sample(&metrics, name, label);
    assert_eq!(sample("keystead_kms_requests_total", "method=\"Decrypt\",code=\"Ok\""), 4.0, "{metrics}");
    assert_eq!(sample("keystead_kms_requests_total", "method=\"Encrypt\",code=\"Ok\""), 1.0, "{metrics}");
    assert_eq!(sample("keystead_kms_request_duration_seconds_count", "Decrypt"), 4.0, "{metrics}");
    assert_eq!(sample("keystead_active_generation", ""), 1.0, "{metrics}");
    assert_eq!(sample("keystead_custodian_restarts", ""), 0.0, "{metrics}");
    assert!(sample("keystead_custody_operations_total", "unwrap") >= 1.0, "{metrics}");
    for (path, code) in [("/livez", "200"), ("/readyz", "200"), ("/", "404"), ("/metrics/../x", "404")] {
        let (status, _) = crate::clients::get(&daemon, path).await;
        assert!(status.contains(code), "{path}: {status}");
    }
}

#[tokio::test]
async fn a_sealed_daemon_is_alive_and_not_ready() {
    let site = Site::bare("");
    let daemon = site.spawn(&[]);
    let status = daemon.until("told to init", |status| status.reason.contains("keystead init")).await;
    assert_eq!(status.availability, "sealed");
    assert!(crate::clients::get(&daemon, "/livez").await.0.contains("200"));
    assert!(crate::clients::get(&daemon, "/readyz").await.0.contains("503"));
    assert_eq!(crate::clients::kms_code(&site).await, tonic::Code::Unavailable);
    // Initialised while it runs: it must not be restarted to see it. The store is locked by the daemon, so it says so.
    assert!(daemon.stop().success());
}
