//! The audit trail of the running daemon.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use keystead_wire::admin::v1::{GetStatusResponse, QueryAuditRequest};
use keystead_wire::kms::v2::{DecryptRequest, StatusRequest};
use serde_json::Value;

use crate::daemon::{Finished, Site, decrypt, encrypt};

fn lines(site: &Site, arguments: &str) -> Vec<Value> {
    let mut command = site.command(["audit", "query", "--limit", "0", "--output", "json"]);
    let output = command.args(arguments.split_whitespace()).output().unwrap().expect_success();
    serde_json::from_str(&output).unwrap()
}

fn text<'a>(line: &'a Value, name: &str) -> &'a str {
    line[name].as_str().unwrap_or_default()
}

#[tokio::test]
async fn an_admin_action_is_in_the_trail_with_who_asked_before_it_is_done_and_after() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    site.keystead(["key", "rotate", "--yes"]).expect_success();
    site.keystead(["custodian", "restart"]).expect_success();
    let rotation = lines(&site, "--since 1h --action rotate");
    assert_eq!(rotation.iter().map(|line| text(line, "phase")).collect::<Vec<_>>(), ["intent", "done"]);
    let own = u64::from(rustix::process::geteuid().as_raw());
    assert!(rotation.iter().all(|line| line["who"]["uid"] == own), "{rotation:?}");
    assert_eq!(rotation[1]["details"]["generation"], 2);
    assert_eq!(lines(&site, "--action restart-custodian").len(), 2);
    assert_eq!(lines(&site, "--generation 2").len(), 1);
    assert!(lines(&site, "--until 1h").is_empty());
    let shown = site.keystead(["audit", "query"]).expect_success();
    assert!(shown.contains("rotate") && shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
    let verified = site.keystead(["audit", "verify"]).expect_success();
    assert!(verified.contains("intact"), "{verified}");
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn with_the_level_requests_every_encrypt_and_decrypt_is_recorded_and_no_secret_is() {
    let site = Site::initialized("[audit]\nlevel = \"requests\"\n");
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    let sealed = encrypt(&mut kms, b"a seed that nobody may see").await;
    decrypt(&mut kms, &sealed).await.unwrap();
    let unknown = DecryptRequest {
        key_id: "nonsense\"\n".into(),
        uid: "u\u{1}".into(),
        ciphertext: vec![1; 80],
        ..Default::default()
    };
    kms.decrypt(unknown).await.unwrap_err();
    kms.status(StatusRequest {}).await.unwrap();
    let requests: Vec<_> = lines(&site, "").into_iter().filter(|line| line["latency_us"].is_u64()).collect();
    let seen: Vec<_> = requests.iter().map(|line| (text(line, "action"), text(line, "outcome"))).collect();
    assert_eq!(seen, [("encrypt", "ok"), ("decrypt", "ok"), ("decrypt", "invalid-argument")]);
    assert_eq!(text(&requests[0], "key_id"), sealed.key_id);
    assert_eq!((&requests[0]["generation"], &requests[2]["generation"]), (&Value::from(1), &Value::from(0)));
    assert_eq!(text(&requests[2], "uid"), "u\u{1}");
    assert_eq!(requests[0]["peer_pid"], std::process::id());
    let trail = fs::read_to_string(site.path().join("store/audit/audit.log")).unwrap();
    assert!(!trail.contains("nobody may see"));
    drop(kms);
    assert!(daemon.stop().success());
}

/// From the first sync after the start on, for ever. The store's disk is well.
async fn on_a_disk_that_hangs(failure: &str) -> (Site, crate::daemon::Daemon) {
    let site = Site::initialized(&format!("[audit]\nlevel = \"requests\"\nfailure = \"{failure}\"\n"));
    let fault = format!("{}=2*off->pause", keystead::failpoint::AUDIT);
    let mut daemon = site.spawn(&[("FAILPOINTS", &fault)]);
    daemon.until_serving().await;
    (site, daemon)
}

#[tokio::test]
async fn with_an_audit_disk_that_hangs_everything_goes_on_with_an_alarm() {
    let (site, daemon) = on_a_disk_that_hangs("continue-with-alarm").await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    // The first action waits for the disk, those after it know.
    let rotated = tokio::task::spawn_blocking(move || {
        site.rotate().expect_success();
        site
    });
    let failing = |status: &GetStatusResponse| status.audit.as_ref().is_some_and(|audit| audit.failing);
    daemon.until("known to hang", failing).await;
    let site = rotated.await.unwrap();
    let mut kms = daemon.kms().await;
    assert_ne!(encrypt(&mut kms, b"seed").await.key_id, sealed.key_id);
    assert_eq!(decrypt(&mut kms, &sealed).await.unwrap(), b"seed");
    site.keystead(["custodian", "restart"]).expect_success();
    daemon.kill();
}

#[tokio::test]
async fn with_an_audit_disk_that_hangs_nothing_is_done_unrecorded_if_the_site_wants_it_so() {
    let (site, daemon) = on_a_disk_that_hangs("stop").await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    let rotated = tokio::task::spawn_blocking(move || {
        let error = site.rotate().expect_failure(5);
        assert!(error.contains("has not answered for 10 seconds"), "{error}");
        site
    });
    let site = rotated.await.unwrap();
    let refused = decrypt(&mut daemon.kms().await, &sealed).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    assert!(refused.message().contains("has not answered"), "{refused}");
    assert_eq!(daemon.status().await.active_generation, 1);
    // What only takes service away is done all the same.
    site.keystead(["key", "disable", "--yes"]).expect_success();
    assert_eq!(daemon.status().await.availability, "disabled");
    daemon.kill();
}

/// While the daemon is down nobody watches: what it finds at its start is held against the store, which custody
/// vouches for.
#[tokio::test]
async fn a_trail_that_was_changed_while_the_daemon_was_down_is_found() {
    type Change = fn(&str) -> String;
    let changes: [(&str, Change); 4] = [
        ("edited", |trail| trail.replacen("\"rotate\"", "\"rot4te\"", 1)),
        ("a line removed", |trail| {
            trail.lines().enumerate().filter(|(at, _)| *at != 2).map(|(_, line)| format!("{line}\n")).collect()
        }),
        ("truncated", |trail| trail.lines().take(2).map(|line| format!("{line}\n")).collect()),
        ("emptied", |_| String::new()),
    ];
    let site = Site::initialized("");
    let daemon = site.serve().await;
    site.keystead(["key", "rotate", "--yes"]).expect_success();
    assert!(daemon.stop().success());
    let path = site.path().join("store/audit/audit.log");
    let good = fs::read_to_string(&path).unwrap();
    for (what, change) in changes {
        fs::write(&path, change(&good)).unwrap();
        let daemon = site.serve().await;
        let verified = site.keystead(["audit", "verify"]);
        let found = lines(&site, "--action trail-changed").len();
        assert!(verified.status.code() == Some(1) || found == 1, "{what}: {verified:?}");
        assert!(daemon.log().contains("audit trail is not what it was"), "{what}: {}", daemon.log());
        assert!(daemon.stop().success());
        fs::write(&path, &good).unwrap();
    }
    // As it was, it is believed again.
    let daemon = site.serve().await;
    site.keystead(["audit", "verify"]).expect_success();
    assert!(lines(&site, "--action trail-changed").is_empty());
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn a_line_cut_by_a_power_cut_is_repaired_and_said_so() {
    let site = Site::initialized("");
    assert!(site.serve().await.stop().success());
    let path = site.path().join("store/audit/audit.log");
    let mut trail = fs::read(&path).unwrap();
    trail.extend_from_slice(b"{\"seq\":99,\"prev\":\"0a");
    fs::write(&path, trail).unwrap();
    let daemon = site.serve().await;
    assert_eq!(lines(&site, "--action trail-repaired")[0]["details"]["unfinished_bytes"], 20);
    site.keystead(["audit", "verify"]).expect_success();
    let verified =
        site.keystead(["audit", "verify", "--folder", path.parent().unwrap().to_str().unwrap()]).expect_success();
    assert!(verified.contains("follow each other"), "{verified}");
    assert!(daemon.stop().success());
}

/// In a mount namespace of its own, where this test is journald.
#[test]
fn lines_reach_journald_from_the_confined_server() {
    const STORY: &str = r#"
        set -eu
        mount -t tmpfs tmpfs /run
        mkdir -p /run/systemd/journal
        : >/run/systemd/journal/socket
        mount --bind "$SITE/journal" /run/systemd/journal/socket
        $KEYSTEAD init --no-recovery >"$SITE/out" 2>&1
        exec $KEYSTEAD serve 2>"$SITE/log""#;
    let site = Site::bare("[audit]\nforward = \"journald\"\n");
    let journal = UnixDatagram::bind(site.path().join("journal")).unwrap();
    journal.set_read_timeout(Some(crate::daemon::DEADLINE)).unwrap();
    let mut daemon = Command::new("unshare")
        .args(["-Urm", "bash", "-c", STORY])
        .env("SITE", site.path())
        .env("KEYSTEAD", env!("CARGO_BIN_EXE_keystead"))
        .env("KEYSTEAD_CONFIG", site.config())
        .spawn()
        .unwrap();
    for action in ["trail-opened", "checkpoint"] {
        let mut message = [0; 4096];
        let received = journal.recv(&mut message);
        let length =
            received.unwrap_or_else(|error| panic!("{error}: {:?}", fs::read_to_string(site.path().join("log"))));
        let message = String::from_utf8_lossy(&message[..length]);
        assert!(message.starts_with("SYSLOG_IDENTIFIER=keystead-audit\n"), "{message}");
        assert!(message.contains(&format!("\"action\":\"{action}\"")), "{message}");
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&daemon), rustix::process::Signal::TERM).unwrap();
    assert!(daemon.wait().unwrap().success());
}

/// What the command line would never ask, an admitted client of another make may.
#[tokio::test]
async fn questions_beyond_every_time_and_count_are_answered() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let mut admin = daemon.admin().await;
    for (request, some) in [
        (QueryAuditRequest { since: u64::MAX, ..Default::default() }, false),
        (QueryAuditRequest { until: u64::MAX, limit: u64::MAX, ..Default::default() }, true),
    ] {
        let mut lines = admin.query_audit(request).await.expect("an answer").into_inner();
        assert_eq!(lines.message().await.unwrap().is_some(), some);
    }
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    drop(admin);
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn without_a_trail_the_commands_say_that_it_is_off() {
    let site = Site::initialized("[audit]\nlevel = \"off\"\n");
    let daemon = site.serve().await;
    site.keystead(["key", "rotate", "--yes"]).expect_success();
    for command in ["query", "verify"] {
        let output = site.keystead(["audit", command]);
        assert_eq!(output.status.code(), Some(4));
        assert!(String::from_utf8_lossy(&output.stderr).contains("audit.level"), "{output:?}");
    }
    assert!(!site.path().join("store/audit").exists());
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn trail_in_a_folder_of_its_own_is_written_by_the_confined_server_and_verified() {
    let elsewhere = tempfile::tempdir().unwrap();
    let folder = elsewhere.path().join("trail");
    let site = Site::initialized(&format!("[audit]\npath = \"{}\"\n", folder.display()));
    let daemon = site.serve().await;
    assert!(daemon.status().await.sandbox.unwrap().landlock);
    site.keystead(["key", "rotate", "--yes"]).expect_success();
    let intact = site.keystead(["audit", "verify", "--output", "json"]).expect_success();
    let intact: Value = serde_json::from_str(&intact).unwrap();
    assert_eq!(intact["folder"].as_str().unwrap(), folder.to_str().unwrap());
    assert!(fs::read_to_string(folder.join("audit.log")).unwrap().contains("\"rotate\""));
    assert!(!site.path().join("store/audit").exists());
    let checked = site.keystead(["config", "check", "--output", "json"]);
    let checked: Value = serde_json::from_slice(&checked.stdout).unwrap();
    assert_eq!(checked["settings"]["audit.path"]["origin"], "file");
    assert!(daemon.stop().success());
    // A restart goes on in the same place.
    let daemon = site.serve().await;
    assert!(lines(&site, "").iter().filter(|line| text(line, "action") == "trail-opened").count() >= 2);
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn trail_s_folder_that_is_missing_and_cannot_be_made_is_alarmed_and_the_key_is_served() {
    let site = Site::initialized("[audit]\npath = \"/proc/nowhere/trail\"\n");
    let daemon = site.serve().await;
    let warnings = daemon.status().await.warnings;
    assert!(warnings.iter().any(|warning| warning.contains("audit trail")), "{warnings:?}");
    assert!(daemon.stop().success());
}

/// The daemon's own word on how far it came, which no chain can give.
#[tokio::test]
async fn lines_cut_off_under_the_running_daemon_are_found_by_verify() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    site.keystead(["key", "rotate", "--yes"]).expect_success();
    site.keystead(["audit", "verify"]).expect_success();
    let path = site.path().join("store/audit/audit.log");
    let good = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    let checkpoints = lines.iter().enumerate().filter(|(_, line)| line.contains("\"checkpoint\"")).map(|(at, _)| at);
    // Each of them ends in a line that custody vouches for, or vouched for.
    let mut shorter = 0;
    for at in checkpoints.filter(|at| at + 1 < lines.len()) {
        fs::write(&path, lines[..=at].iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        let error = site.keystead(["audit", "verify"]).expect_failure(1);
        assert!(error.contains(&format!("it ends at line {}", at + 1)), "{error}");
        shorter += 1;
    }
    assert!(shorter > 0, "{good}");
    fs::write(&path, good).unwrap();
    site.keystead(["audit", "verify"]).expect_success();
    assert!(daemon.stop().success());
}

/// Neither what was begun nor the daemon depends on who listens.
#[tokio::test]
async fn a_client_that_hangs_up_in_mid_stream_leaves_a_whole_rotation_and_a_whole_trail() {
    let site = Site::initialized("[audit]\nlevel = \"requests\"\n");
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    for _ in 0..500 {
        encrypt(&mut kms, &[7; 32]).await;
    }
    let mut admin = daemon.admin().await;
    let progress = admin.rotate(keystead_wire::admin::v1::RotateRequest::default()).await.unwrap().into_inner();
    drop(progress);
    // The connection as well, with everything that was under way on it.
    drop(admin);
    daemon.until("rotated without a listener", |status| status.active_generation == 2).await;
    let mut admin = daemon.admin().await;
    let mut query = admin.query_audit(QueryAuditRequest::default()).await.unwrap().into_inner();
    assert!(query.message().await.unwrap().is_some());
    drop((query, admin));
    let rotation = lines(&site, "--action rotate");
    assert_eq!(rotation.iter().map(|line| text(line, "phase")).collect::<Vec<_>>(), ["intent", "done"]);
    assert_eq!(rotation[1]["details"]["generation"], 2);
    site.keystead(["audit", "verify"]).expect_success();
    encrypt(&mut kms, &[7; 32]).await;
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    drop(kms);
    assert!(daemon.stop().success());
}
