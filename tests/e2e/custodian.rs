//! A custodian that is killed, crashes or hangs: replaced, while what is loaded is served without one failed call.

use rustix::process::Signal;

use crate::daemon::{Daemon, Finished, Site, decrypt, encrypt};
use crate::load::Load;

async fn survives(daemon: &Daemon, site: &Site, signal: Signal) {
    let mut kms = daemon.kms().await;
    let load = Load::start(&kms);
    let restarts = daemon.status().await.custody.unwrap_or_default().restarts;
    let killed = daemon.kill_role("custodian", signal);
    if signal == Signal::SEGV {
        // Rust's handler takes the first one for a stack overflow to be looked at, and steps aside for the next.
        crate::memory::wait_until("the custodian has crashed", || {
            let _ = rustix::process::kill_process(killed, signal);
            daemon.role("custodian") != Some(killed)
        });
    }
    daemon
        .until("a new custodian that answers", |status| {
            let custody = status.custody.clone().unwrap_or_default();
            custody.restarts > restarts && custody.state == "ready" && status.availability == "online"
        })
        .await;
    assert_ne!(daemon.role("custodian"), Some(killed));
    assert!(load.stop().await > 0);
    // The new one does everything the old one did.
    let before = encrypt(&mut kms, b"before").await;
    site.rotate().expect_success();
    assert_eq!(decrypt(&mut kms, &before).await.unwrap(), b"before");
}

#[tokio::test]
async fn killed_custodian_is_replaced_while_requests_are_served() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    survives(&daemon, &site, Signal::KILL).await;
}

#[tokio::test]
async fn crashed_custodian_is_replaced_while_requests_are_served() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    survives(&daemon, &site, Signal::SEGV).await;
}

#[tokio::test]
async fn hung_custodian_is_replaced_while_requests_are_served() {
    let site = Site::initialized("");
    let custody = site.token.custody("keystead") + "timeout = \"2s\"\n";
    site.configure(&custody, "");
    let daemon = site.serve().await;
    let kms = daemon.kms().await;
    let load = Load::start(&kms);
    let hung = daemon.kill_role("custodian", Signal::STOP);
    // Anything that needs custody finds out; a rotation does at once.
    site.rotate().expect_failure(4);
    daemon
        .until("a new custodian that answers", |status| {
            let custody = status.custody.clone().unwrap_or_default();
            custody.restarts > 0 && custody.state == "ready" && status.availability == "online"
        })
        .await;
    assert_ne!(daemon.role("custodian"), Some(hung));
    assert!(load.stop().await > 0);
    site.rotate().expect_success();
}

#[tokio::test]
async fn a_killed_server_is_started_anew_on_the_same_sockets() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let encrypted = encrypt(&mut daemon.kms().await, b"seed").await;
    let killed = daemon.kill_role("server", Signal::KILL);
    // The supervisor holds the socket: connecting never fails, the answer waits for the new server.
    let channel = crate::clients::try_channel(site.kms_socket()).await.expect("the socket is never gone");
    let _ = channel;
    daemon.until("served again", |status| status.availability == "online").await;
    assert_ne!(daemon.role("server"), Some(killed));
    assert_eq!(decrypt(&mut daemon.kms().await, &encrypted).await.unwrap(), b"seed");
}

#[tokio::test]
async fn a_token_that_goes_away_degrades_and_comes_back() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    let encrypted = encrypt(&mut kms, b"seed").await;
    let tokens = site.token.folder.join("tokens");
    let away = site.token.folder.join("tokens-away");
    std::fs::rename(&tokens, &away).unwrap();
    daemon.kill_role("custodian", Signal::KILL);
    let status = daemon
        .until("degraded", |status| {
            status.availability == "degraded" && status.custody.clone().unwrap_or_default().state != "ready"
        })
        .await;
    assert!(status.reason.contains("DO NOT RESTART"), "{}", status.reason);
    assert_eq!(decrypt(&mut kms, &encrypted).await.unwrap(), b"seed");
    assert_eq!(encrypt(&mut kms, b"seed").await.key_id, encrypted.key_id);
    let error = site.rotate().expect_failure(4);
    assert!(error.contains("refused"), "{error}");
    std::fs::rename(&away, &tokens).unwrap();
    daemon.until("online", |status| status.availability == "online").await;
    site.rotate().expect_success();
    assert_eq!(decrypt(&mut kms, &encrypted).await.unwrap(), b"seed");
}

#[tokio::test]
async fn only_the_custodian_loads_the_module_and_can_read_the_pin() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let sandbox = daemon.status().await.sandbox.expect("a sandbox report");
    assert!(
        sandbox.landlock
            && sandbox.system_calls_filtered
            && sandbox.no_new_privs
            && !sandbox.dumpable
            && sandbox.keys_locked,
        "{sandbox:?}"
    );
    assert!(!sandbox.server_can_read_pin);
    let process = daemon.status().await.custody.unwrap().process.expect("the custodian says how it is confined");
    assert!(process.system_calls_filtered && process.no_new_privs && !process.dumpable, "{process:?}");
    assert_eq!([sandbox.uid, process.uid], [rustix::process::getuid().as_raw(); 2]);
    let maps =
        |pid| std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("readable as root or by ptrace rights");
    if rustix::process::getuid().is_root() {
        assert!(maps(daemon.role("custodian").unwrap()).contains("libsofthsm2"));
        assert!(!maps(daemon.role("server").unwrap()).contains("libsofthsm2"));
        assert!(!maps(daemon.pid()).contains("libsofthsm2"));
    }
    drop(daemon);
    // The report is a finding, not a constant: without the sandbox it says so.
    site.configure(&site.token.custody("keystead"), "[sandbox]\nlandlock = false\nseccomp = false\n");
    let daemon = site.serve().await;
    let sandbox = daemon.status().await.sandbox.expect("a sandbox report");
    assert!(sandbox.server_can_read_pin && !sandbox.landlock && !sandbox.system_calls_filtered, "{sandbox:?}");
    let process = daemon.status().await.custody.unwrap().process.unwrap();
    assert!(!process.system_calls_filtered && process.no_new_privs, "{process:?}");
}
