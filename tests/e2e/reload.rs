//! The configuration read again while the daemon runs: by command and by signal, whole or not at all, without losing a request.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use keystead_wire::admin::v1::{ReloadRequest, RotateRequest};
use keystead_wire::kms::v2::EncryptRequest;
use rustix::process::Signal;
use serde_json::Value;
use tonic::Code;

use crate::daemon::{DEADLINE, Daemon, Finished, Kms, Site};
use crate::load::Load;

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The configuration as it was at first, with `changes` made to its text.
fn edit(site: &Site, original: &str, changes: &[(&str, &str)]) {
    let text = changes.iter().fold(original.to_owned(), |text, (before, after)| {
        assert!(text.contains(before), "{before} is not in {text}");
        text.replacen(before, after, 1)
    });
    fs::write(site.config(), text).unwrap();
}

fn original(site: &Site) -> String {
    fs::read_to_string(site.config()).unwrap()
}

async fn encrypts(kms: &mut Kms, bytes: usize) -> Result<(), Code> {
    let request = EncryptRequest { plaintext: vec![7; bytes], uid: "uid".into() };
    kms.encrypt(request).await.map(drop).map_err(|status| status.code())
}

fn status(site: &Site) -> Value {
    serde_json::from_str(&site.keystead(["status", "--output", "json"]).expect_success()).unwrap()
}

/// Until the log says so: a signal is answered nowhere else.
fn until_logged(daemon: &Daemon, text: &str) {
    let started = Instant::now();
    while !daemon.log().contains(text) {
        assert!(started.elapsed() < DEADLINE, "{text} is not in\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn roles_bite_the_next_call_also_on_a_connection_that_is_open() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let all = original(&site);
    let mut admin = daemon.admin().await;
    let mut rotated = admin.rotate(RotateRequest { force: String::new() }).await.unwrap().into_inner();
    while rotated.message().await.unwrap().is_some() {}

    let mine = format!("crypto-admin = {{ uids = [{}] }}", own_uid());
    edit(&site, &all, &[(&mine, "crypto-admin = { uids = [54321] }")]);
    let told: Value = serde_json::from_str(&site.keystead(["reload", "--output", "json"]).expect_success()).unwrap();
    assert_eq!(told["applied"][0]["key"], "roles");
    assert_eq!(told["applied"][0]["after"]["crypto-admin"]["uids"][0], 54321);
    assert!(told["unchanged"].as_array().unwrap().contains(&"log.level".into()), "{told}");
    let refused = admin.rotate(RotateRequest { force: "for a test".into() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(site.rotate().status.code(), Some(4));
    assert_eq!(status(&site)["configuration"]["file_differs"], false);

    // Nor may one reload who is no operator; whoever may send a signal needs no role.
    let operator = format!("operator = {{ uids = [{}] }}", own_uid());
    edit(&site, &all, &[(&operator, "operator = { uids = [54321] }")]);
    site.keystead(["reload"]).expect_success();
    assert_eq!(site.keystead(["reload"]).status.code(), Some(4));
    fs::write(site.config(), &all).unwrap();
    daemon.signal(Signal::HUP);
    let sha256 = sha2::Digest::finalize(sha2::Digest::chain_update(sha2::Sha256::default(), all.as_bytes())).to_vec();
    daemon
        .until("the signal is heeded", |status| status.configuration.as_ref().is_some_and(|now| now.sha256 == sha256))
        .await;
    let mut rotated = admin.rotate(RotateRequest { force: "for a test".into() }).await.unwrap().into_inner();
    while rotated.message().await.unwrap().is_some() {}

    let trail = site.keystead(["audit", "query", "--action", "reload", "--output", "json"]).expect_success();
    let lines: Vec<Value> = serde_json::from_str(&trail).unwrap();
    let phases: Vec<&str> = lines.iter().map(|line| line["phase"].as_str().unwrap()).collect();
    assert_eq!(phases, ["intent", "done", "intent", "done", "refused", "intent", "done"], "{trail}");
    assert_eq!(lines[0]["who"]["uid"], own_uid());
    assert!(lines[1]["details"]["roles"].as_str().unwrap().contains("54321"), "{trail}");
    assert_eq!(lines[5]["who"], "signal");
    drop(admin);
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn limits_log_and_audit_level_change_while_connections_are_open_and_outlive_the_server() {
    let site = Site::initialized("");
    let mut daemon = site.serve().await;
    let text = original(&site);
    let mut kms = daemon.kms().await;
    assert_eq!(encrypts(&mut kms, 5000).await, Err(Code::InvalidArgument));
    // Whoever is over the bound by far is cut off before his message is read.
    assert_eq!(encrypts(&mut kms, 60_000).await, Err(Code::OutOfRange));
    let more = "max_plaintext = \"64KiB\"\n\n[admin]";
    edit(
        &site,
        &text,
        &[("[admin]", more), ("[roles]", "[log]\nlevel = \"debug\"\n[audit]\nlevel = \"requests\"\n[roles]")],
    );
    let said = site.keystead(["reload"]).expect_success();
    for part in ["kms.max_plaintext", "\"4KiB\" to \"64KiB\"", "log.level", "audit.level"] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(encrypts(&mut kms, 5000).await, Ok(()));
    assert_eq!(encrypts(&mut kms, 60_000).await, Ok(()));
    until_logged(&daemon, "\"method\":\"Encrypt\"");
    let trail = site.keystead(["audit", "query", "--action", "encrypt", "--output", "json"]).expect_success();
    assert_eq!(serde_json::from_str::<Vec<Value>>(&trail).unwrap().len(), 2, "{trail}");

    // A server that comes after runs by the same.
    daemon.kill_role("server", Signal::KILL);
    daemon.until_serving().await;
    let mut kms = daemon.kms().await;
    assert_eq!(encrypts(&mut kms, 5000).await, Ok(()));
    fs::write(site.config(), &text).unwrap();
    site.keystead(["reload"]).expect_success();
    assert_eq!(encrypts(&mut kms, 5000).await, Err(Code::InvalidArgument));
    assert!(site.keystead(["reload"]).expect_success().contains("nothing has changed"));
    drop(kms);
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn one_key_that_needs_a_restart_is_named_and_nothing_is_applied() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let text = original(&site);
    let mut kms = daemon.kms().await;
    edit(&site, &text, &[("[admin]", "max_plaintext = \"64KiB\"\ndrain_timeout = \"2s\"\n\n[admin]")]);
    let refused = site.keystead(["reload"]).expect_failure(4);
    assert!(refused.contains("kms.drain_timeout (\"10s\" to \"2s\") needs a restart of the daemon"), "{refused}");
    assert!(!refused.contains("max_plaintext"), "{refused}");
    assert_eq!(encrypts(&mut kms, 5000).await, Err(Code::InvalidArgument));
    let now = &status(&site)["configuration"];
    assert_eq!(now["file_differs"], true);
    assert!(now["refused"].as_str().unwrap().contains("drain_timeout"), "{now}");
    let shown = site.keystead(["status"]).expect_success();
    let words = shown.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("THE FILE HAS CHANGED SINCE: `keystead reload`"), "{shown}");
    let found = site.keystead(["doctor", "--only", "daemon", "--output", "json"]);
    assert!(String::from_utf8_lossy(&found.stdout).contains("daemon.configuration"), "{found:?}");

    daemon.signal(Signal::HUP);
    until_logged(&daemon, "the configuration was not reloaded");
    fs::write(site.config(), &text).unwrap();
    assert!(site.keystead(["reload"]).expect_success().contains("nothing has changed"));
    assert_eq!(status(&site)["configuration"]["refused"], Value::Null);
    drop(kms);
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn file_that_is_no_configuration_is_refused_as_config_check_does_and_the_daemon_goes_on() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let text = original(&site);
    edit(&site, &text, &[("[admin]", "max_plaintexts = \"8KiB\"\n[admin]")]);
    let checked = site.keystead(["config", "check"]).expect_failure(2);
    assert_eq!(site.keystead(["reload"]).expect_failure(2), checked);
    let refused = daemon.admin().await.reload(ReloadRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(checked.contains(refused.message()), "{checked}\n{refused}");
    daemon.signal(Signal::HUP);
    until_logged(&daemon, "did you mean `max_plaintext`?");
    let mut kms = daemon.kms().await;
    assert_eq!(encrypts(&mut kms, 32).await, Ok(()));
    drop(kms);
    fs::remove_file(site.config()).unwrap();
    let refused = daemon.admin().await.reload(ReloadRequest {}).await.unwrap_err();
    assert!(refused.message().contains("config.toml"), "{refused}");
    fs::write(site.config(), text).unwrap();
    assert!(daemon.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reload_under_load_loses_no_request() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let text = original(&site);
    let load = Load::start(&daemon.kms().await);
    for round in 0..10 {
        let size = format!("max_plaintext = \"{}KiB\"\n[admin]", 8 + round);
        let connections = format!("max_connections = {}\n{size}", 32 + round);
        edit(&site, &text, &[("[admin]", &connections)]);
        if round % 2 == 0 {
            site.keystead(["reload"]).expect_success();
        } else {
            daemon.signal(Signal::HUP);
        }
    }
    // Of those who ask together some are told to try again, and none waits for ever.
    let together = (0..8).map(|_| async {
        let mut admin = daemon.admin().await;
        admin.reload(ReloadRequest {}).await.map(drop).map_err(|status| status.code())
    });
    let told = tokio::time::timeout(DEADLINE, futures_util::future::join_all(together)).await.expect("answers");
    assert!(told.iter().all(|told| matches!(told, Ok(()) | Err(Code::Aborted))), "{told:?}");
    assert!(load.stop().await > 0);
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn server_killed_while_it_applies_leaves_the_settings_before_and_a_word_in_the_trail() {
    let site = Site::initialized("");
    let mut daemon = site.spawn(&[("KEYSTEAD_KILL_AT", "reload.applied")]);
    daemon.until_serving().await;
    let text = original(&site);
    edit(&site, &text, &[("[admin]", "max_plaintext = \"64KiB\"\n\n[admin]")]);
    let server = daemon.role("server").unwrap();
    let broken = site.keystead(["reload"]);
    assert_eq!(broken.status.code(), Some(3), "{broken:?}");
    crate::daemon::until_gone(server);
    daemon.until_serving().await;
    daemon.until("online", |status| status.availability == "online").await;
    let mut kms = daemon.kms().await;
    assert_eq!(encrypts(&mut kms, 5000).await, Err(Code::InvalidArgument));
    assert_eq!(status(&site)["configuration"]["file_differs"], true);
    assert!(daemon.log().contains("runs by the configuration before"), "{}", daemon.log());
    let trail = site.keystead(["audit", "query", "--action", "reload", "--output", "json"]).expect_success();
    let lines: Vec<Value> = serde_json::from_str(&trail).unwrap();
    assert_eq!(lines.iter().map(|line| line["phase"].as_str().unwrap()).collect::<Vec<_>>(), ["intent"], "{trail}");
    drop(kms);
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn service_manager_hears_when_a_reload_begins_and_ends() {
    let site = Site::initialized("");
    let socket = site.path().join("notify.sock");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut daemon = site.spawn(&[("NOTIFY_SOCKET", socket.to_str().unwrap())]);
    daemon.until_serving().await;
    let hear = |wanted: &str| {
        loop {
            let mut bytes = [0; 2048];
            let count = manager.recv(&mut bytes).unwrap_or_else(|error| panic!("never {wanted}: {error}"));
            let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
            if text.contains(wanted) {
                return text;
            }
        }
    };
    hear("READY=1");
    for (changes, outcome) in [(&[][..], "changed: nothing"), (&[("node-1", "node-2")], "Reload refused: node")] {
        edit(&site, &original(&site), changes);
        daemon.signal(Signal::HUP);
        assert!(hear("RELOADING=1").contains("MONOTONIC_USEC="));
        // In this order: the outcome is told before the reload is over, or right after.
        let (mut ready, mut told) = (false, false);
        while !(ready && told) {
            let text = hear("=");
            ready |= text.contains("READY=1");
            told |= text.contains(outcome);
        }
    }
    assert!(daemon.stop().success());
}
