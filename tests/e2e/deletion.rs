//! The end of a generation on the running daemon: what it takes to have one destroyed, and what is left of it.

use std::path::Path;
use std::time::Instant;

use keystead::failpoint;
use keystead_wire::admin::v1::{
    Generation, ListGenerationsRequest, RecordScanRequest, ScanSource, ScannedKeyId, ScheduleDeletionRequest,
};
use keystead_wire::kms::v2::EncryptResponse;
use serde_json::{Value, json};
use tonic::Code;

use crate::cluster::{Cluster, recover, shown, text};
use crate::daemon::{DEADLINE, Daemon, Finished, Site, decrypt, encrypt, until_gone};
use crate::etcd::Etcd;
use crate::scan::{json, scan};
use crate::token::Make;

/// A site whose generations wait for a second only.
const IN_A_SECOND: &str = "[deletion]\nmin_wait = \"1s\"\n";
/// Where a generation whose wait is over is still whole.
const DUE: &str = "deletion.due";

fn key_id(site: &Site, number: usize) -> String {
    let all = json(site.keystead(["key", "list", "--output", "json"]));
    all["generations"][number - 1]["key_id"].as_str().unwrap().to_owned()
}

pub fn schedule(site: &Site, generation: &str, wait: &str) -> std::process::Output {
    let confirm = key_id(site, generation.parse().unwrap());
    let arguments = ["--generation", generation, "--wait", wait, "--confirm", &confirm, "--output", "json"];
    site.command(["key", "schedule-deletion"]).args(arguments).output().unwrap()
}

async fn generations(daemon: &Daemon) -> Vec<Generation> {
    let answer = daemon.admin().await.list_generations(ListGenerationsRequest {}).await.unwrap();
    answer.into_inner().generations
}

async fn state(daemon: &Daemon, number: usize) -> String {
    generations(daemon).await[number - 1].state.clone()
}

/// Waits until a generation is in a state, with nothing left to do about it.
pub async fn until_state(daemon: &Daemon, number: usize, wanted: &str) -> Generation {
    let started = Instant::now();
    loop {
        let generation = generations(daemon).await[number - 1].clone();
        let left = generation.tombstone.map_or(0, |tombstone| tombstone.objects_left);
        if generation.state == wanted && left == 0 {
            return generation;
        }
        assert!(started.elapsed() < DEADLINE, "never {wanted}: {generation:?}\n{}", daemon.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Has the daemon keep a scan that found so many objects under each generation.
pub async fn scanned(daemon: &Daemon, objects: &[u64]) {
    let all = generations(daemon).await;
    let each = all
        .iter()
        .zip(objects)
        .map(|(generation, objects)| ScannedKeyId { key_id: generation.key_id.clone(), objects: *objects });
    let source = ScanSource { revision: 1, cluster_id: 7, member_id: 8, ..ScanSource::default() };
    let objects = each.collect();
    let request = RecordScanRequest { source: Some(source), objects, ..RecordScanRequest::default() };
    daemon.admin().await.record_scan(request).await.unwrap();
}

/// Two generations; a seed under the first, which no scan has seen since.
async fn rotated(site: &Site) -> EncryptResponse {
    let daemon = site.serve().await;
    let old = encrypt(&mut daemon.kms().await, b"old").await;
    site.rotate().expect_success();
    scanned(&daemon, &[0, 1]).await;
    assert!(daemon.stop().success());
    old
}

/// Keys on the token, by the files that SoftHSM keeps them in.
fn objects(site: &Site) -> usize {
    fn below(folder: &Path) -> usize {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        let count = |entry: std::fs::DirEntry| match entry.file_type().unwrap().is_dir() {
            true => below(&entry.path()),
            false => {
                let name = entry.file_name().into_string().unwrap();
                usize::from(name.ends_with(".object") && name != "token.object")
            }
        };
        entries.map(count).sum()
    }
    assert_eq!(site.token.make(), Make::SoftHsm);
    below(&site.token.storage())
}

#[tokio::test]
async fn generation_that_etcd_needs_no_more_is_destroyed_on_the_token_and_stays_as_a_tombstone() {
    let site = Site::initialized(IN_A_SECOND);
    let etcd = Etcd::start();
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    let old = encrypt(&mut kms, &[1; 32]).await;
    etcd.put_secret("a", "edge", &old);
    etcd.put_secret("b", "edge", &old);
    site.rotate().expect_success();
    let fresh = encrypt(&mut kms, &[2; 32]).await;
    let before = objects(&site);

    // Without proof nothing is scheduled, however it is asked for.
    let refused = |generation: &str| schedule(&site, generation, "1s").expect_failure(4);
    assert!(refused("1").contains("no scan of etcd was recorded since generation 2"), "{}", refused("1"));
    scan(&site, &etcd.arguments());
    assert!(refused("1").contains("saw no object under generation 2") || refused("1").contains("generation 1: 2"));
    etcd.put_secret("a", "edge", &fresh);
    scan(&site, &etcd.arguments());
    assert!(refused("1").contains("objects under generation 1: 1"), "{}", refused("1"));
    etcd.put_secret("b", "edge", &fresh);
    scan(&site, &[&etcd.arguments()[..], &["--prefix".to_owned(), "/registry/secrets/".to_owned()]].concat());
    assert!(refused("1").contains("did not look at every key"), "{}", refused("1"));
    scan(&site, &etcd.arguments());
    assert!(refused("2").contains("generation 2 is active; only a retired generation can be scheduled: 1"));
    assert_eq!(objects(&site), before);

    let done = json(schedule(&site, "1", "1h"));
    assert_eq!((&done["deletion"]["state"], &done["deletion"]["wait_seconds"]), (&json!("waiting"), &json!(3600)));
    assert_eq!(done["deletion"]["roots"][0]["opens"], false);
    let status = site.keystead(["status"]);
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.contains("generation 1: destroyed in"), "{status}");
    assert!(status.lines().all(|line| line.chars().count() <= 80), "{status}");
    let list = site.keystead(["key", "list"]).expect_success();
    assert!(list.contains("Pending deletion:") && list.contains(&key_id(&site, 1)), "{list}");
    let metrics = crate::clients::metrics(&daemon).await;
    assert!(crate::clients::sample(&metrics, "keystead_deletion_remaining_seconds", "1") > 3000.0, "{metrics}");
    let cancelled = json(site.keystead(["key", "cancel-deletion", "--generation", "1", "--output", "json"]));
    assert_eq!(cancelled["generation"]["state"], "retired");

    json(schedule(&site, "1", "1s"));
    let dead = until_state(&daemon, 1, "destroyed").await;
    assert_eq!(objects(&site), before - 1, "one object fewer");
    assert_eq!(dead.tombstone.unwrap().by, Some(rustix::process::geteuid().as_raw()));
    let refusal = decrypt(&mut kms, &old).await.unwrap_err();
    assert_eq!(refusal.code(), Code::FailedPrecondition);
    assert!(refusal.message().contains("destroyed"), "{refusal}");
    assert_eq!(decrypt(&mut kms, &fresh).await.unwrap(), [2; 32]);
    let described = site.keystead(["key", "describe", "1"]).expect_success();
    assert!(described.contains("Destroyed") && described.contains("never again"), "{described}");
    let roots = json(site.keystead(["roots", "list", "--output", "json"]));
    assert_eq!(roots["generations"], 1);
    site.keystead(["key", "cancel-deletion", "--generation", "1"]).expect_failure(4);
    drop(kms);
    assert!(daemon.stop().success());

    let daemon = site.serve().await;
    assert_eq!(decrypt(&mut daemon.kms().await, &old).await.unwrap_err().code(), Code::FailedPrecondition);
    site.rotate().expect_success();
    assert_eq!(daemon.status().await.active_generation, 3);
    // Who asked, and what the daemon did.
    let trail = json(site.keystead(["audit", "query", "--generation", "1", "--output", "json"]));
    let told: Vec<(&str, &str)> = trail
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|line| Some((line["action"].as_str()?, line["phase"].as_str()?)))
        .filter(|(action, _)| action.contains("delet") || action.contains("destroy"))
        .collect();
    // The last one was refused, above.
    let ends = &told[told.len() - 7..told.len() - 1];
    assert_eq!(
        ends,
        [
            ("cancel-deletion", "intent"),
            ("cancel-deletion", "done"),
            ("schedule-deletion", "intent"),
            ("schedule-deletion", "done"),
            ("destroy-generation", "intent"),
            ("destroy-generation", "done"),
        ],
        "{trail}"
    );
    let last = &trail.as_array().unwrap().iter().rfind(|line| line["action"] == "destroy-generation").unwrap();
    assert_eq!((&last["who"], &last["details"]["cmks_destroyed"]), (&json!("deletion"), &json!(1)));
    assert!(site.keystead(["audit", "verify"]).expect_success().contains("intact"));
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn confirmation_must_be_the_whole_key_id_and_waits_have_bounds() {
    let site = Site::initialized("");
    rotated(&site).await;
    let daemon = site.serve().await;
    let key_id = key_id(&site, 1);
    let with = |more: &[&str]| {
        let arguments = ["key", "schedule-deletion", "--generation", "1"];
        site.command([]).args(arguments).args(more).output().unwrap()
    };
    for wrong in ["1", "", &key_id[1..], &key_id.to_uppercase(), &self::key_id(&site, 2)] {
        let told = with(&["--confirm", wrong]).expect_failure(4);
        assert!(told.contains(&key_id), "{told}");
    }
    assert!(with(&[]).expect_failure(2).contains("--confirm"), "nobody is there to be asked");
    for wait in ["1s", "23h", "367d"] {
        assert!(
            with(&["--confirm", &key_id, "--wait", wait]).expect_failure(4).contains("deletion.min_wait"),
            "{wait}"
        );
    }
    with(&["--confirm", &key_id, "--wait", "7"]).expect_failure(2);
    let unknown = site.keystead(["key", "schedule-deletion", "--generation", "9", "--confirm", &key_id]);
    assert!(unknown.expect_failure(4).contains("there is no generation 9; there are: 1 (retired), 2 (active)"));
    assert_eq!(state(&daemon, 1).await, "retired");
    with(&["--confirm", &key_id]).expect_success();
    let status = daemon.status().await;
    assert_eq!(status.deletions[0].wait_seconds, 7 * 24 * 3600);
    assert!(status.warnings.iter().any(|warning| warning.contains("cancel-deletion --generation 1")), "{status:?}");
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn restart_and_sigkill_while_it_waits_neither_lose_nor_shorten_the_wait() {
    let site = Site::initialized(IN_A_SECOND);
    let old = rotated(&site).await;
    let daemon = site.serve().await;
    json(schedule(&site, "1", "1h"));
    assert!(daemon.stop().success());
    for _ in 0..2 {
        let daemon = site.serve().await;
        let waiting = daemon.status().await.deletions.pop().unwrap();
        assert!((3500..=3600).contains(&waiting.remaining_seconds), "{waiting:?}");
        daemon.kill();
    }
    let daemon = site.serve().await;
    assert_eq!(decrypt(&mut daemon.kms().await, &old).await.unwrap(), b"old");
    // And that Decrypt stops it.
    let status =
        daemon.until("suspended", |status| status.deletions.iter().any(|each| each.state == "suspended")).await;
    assert!(status.deletions[0].detail.contains("decrypted while it waited"), "{status:?}");
    let metrics = crate::clients::metrics(&daemon).await;
    assert_eq!(crate::clients::sample(&metrics, "keystead_deletion_suspended", "1"), 1.0, "{metrics}");
    let doctor = site.keystead(["doctor", "--only", "store"]);
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("SUSPENDED"), "{doctor:?}");
    assert!(daemon.stop().success());
    let daemon = site.serve().await;
    assert_eq!(daemon.status().await.deletions[0].state, "suspended");
    assert!(schedule(&site, "1", "1s").expect_failure(4).contains("no scan of etcd"));
    scanned(&daemon, &[0, 1]).await;
    json(schedule(&site, "1", "1s"));
    until_state(&daemon, 1, "destroyed").await;
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn destruction_killed_at_every_failpoint_is_finished_and_takes_nothing_else_along() {
    let site = Site::initialized(IN_A_SECOND);
    let daemon = site.serve().await;
    let mut sealed = vec![encrypt(&mut daemon.kms().await, b"1").await];
    assert!(daemon.stop().success());
    let of_destruction = failpoint::DELETION.iter().skip_while(|name| **name != DUE).skip(1);
    let of_roll = ["epoch.created", "store.half-written", "epoch.record-written", "epoch.old-destroyed"];
    for name in of_destruction.copied().chain(of_roll) {
        // Nothing happens to what is due before the daemon with the failpoint runs.
        let (mut daemon, due) = site.spawn_held_at(DUE);
        daemon.until_serving().await;
        site.rotate().expect_success();
        sealed.push(encrypt(&mut daemon.kms().await, name.as_bytes()).await);
        let last = sealed.len();
        let counts: Vec<u64> = (1..=last).map(|number| u64::from(number == last)).collect();
        scanned(&daemon, &counts).await;
        let old = (last - 1).to_string();
        json(schedule(&site, &old, "1s"));
        daemon.kill();
        drop(due);
        let before = objects(&site);

        let (mut daemon, due) = site.spawn_held_and_killed_at(DUE, name);
        daemon.until_serving().await;
        let server = daemon.role("server").expect("a server runs");
        due.let_go();
        until_gone(server);
        daemon.kill();

        let daemon = site.serve().await;
        until_state(&daemon, last - 1, "destroyed").await;
        assert_eq!(objects(&site), before - 1, "{name}");
        let mut kms = daemon.kms().await;
        assert_eq!(decrypt(&mut kms, &sealed[last - 1]).await.unwrap(), name.as_bytes(), "{name}");
        for dead in &sealed[..last - 1] {
            assert_eq!(decrypt(&mut kms, dead).await.unwrap_err().code(), Code::FailedPrecondition, "{name}");
        }
        drop(kms);
        assert!(daemon.stop().success(), "{name}");
    }
}

#[tokio::test]
async fn schedule_and_cancel_killed_at_their_failpoints_are_done_or_not_done() {
    let site = Site::initialized("");
    let old = rotated(&site).await;
    for (name, before, after) in
        [("deletion.scheduled", "retired", "pending-deletion"), ("deletion.cancelled", "pending-deletion", "retired")]
    {
        let mut daemon = site.spawn(&[("KEYSTEAD_KILL_AT", name)]);
        daemon.until_serving().await;
        assert_eq!(state(&daemon, 1).await, before);
        let server = daemon.role("server").expect("a server runs");
        let output = match name {
            "deletion.scheduled" => schedule(&site, "1", "7d"),
            _ => site.keystead(["key", "cancel-deletion", "--generation", "1"]),
        };
        assert!(!output.status.success(), "{name} was never reached");
        until_gone(server);
        daemon.kill();
        let daemon = site.serve().await;
        assert_eq!(state(&daemon, 1).await, after, "{name}");
        assert!(daemon.stop().success());
    }
    // Suspending: what was seen is either stored, or seen again.
    let daemon = site.serve().await;
    json(schedule(&site, "1", "7d"));
    assert!(daemon.stop().success());
    let mut daemon = site.spawn(&[("KEYSTEAD_KILL_AT", "deletion.suspended")]);
    daemon.until_serving().await;
    let server = daemon.role("server").expect("a server runs");
    decrypt(&mut daemon.kms().await, &old).await.unwrap();
    until_gone(server);
    daemon.kill();
    let daemon = site.serve().await;
    assert_eq!(daemon.status().await.deletions[0].state, "suspended");
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn clients_that_want_different_things_or_hang_up_leave_one_clear_outcome() {
    let site = Site::initialized("");
    rotated(&site).await;
    let (mut daemon, scheduling) = site.spawn_held_at("deletion.scheduled");
    daemon.until_serving().await;
    let key_id = key_id(&site, 1);
    let request =
        ScheduleDeletionRequest { generation: "1".into(), confirm: key_id, ..ScheduleDeletionRequest::default() };
    // The client is gone before the answer: it is done all the same.
    let mut admin = daemon.admin().await;
    let impatient =
        tokio::time::timeout(std::time::Duration::from_millis(100), admin.schedule_deletion(request.clone()));
    assert!(impatient.await.is_err());
    drop(admin);
    scheduling.let_go();
    let (mut one, mut other) = (daemon.admin().await, daemon.admin().await);
    let cancel = keystead_wire::admin::v1::CancelDeletionRequest { generation: "1".into() };
    let (first, second) = tokio::join!(one.cancel_deletion(cancel.clone()), other.cancel_deletion(cancel));
    let codes: Vec<Code> =
        [first.map(drop), second.map(drop)].into_iter().filter_map(Result::err).map(|error| error.code()).collect();
    assert_eq!(codes, [Code::FailedPrecondition], "one cancels, one is told that there is nothing to cancel");
    let (first, second) =
        tokio::join!(one.schedule_deletion(request.clone()), other.schedule_deletion(request.clone()));
    let refused: Vec<_> = [first.map(drop), second.map(drop)].into_iter().filter_map(Result::err).collect();
    assert_eq!(refused.len(), 1);
    assert!(refused[0].message().contains("waits for its deletion already"), "{:?}", refused[0]);
    drop((one, other));
    assert_eq!(state(&daemon, 1).await, "pending-deletion");
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn denied_or_without_the_role_nobody_schedules_and_each_try_is_recorded() {
    let site = Site::initialized("");
    rotated(&site).await;
    let uid = rustix::process::geteuid().as_raw();
    let config = std::fs::read_to_string(site.config()).unwrap();
    let before = config.split("\n[roles]").next().unwrap();
    let roles = format!(
        "[roles]\ncrypto-admin = {{ uids = [{uid}] }}\nauditor = {{ uids = [{uid}] }}\n[[roles.deny]]\nactions = [\"schedule-deletion\"]\nuids = [{uid}]\n"
    );
    std::fs::write(site.config(), format!("{before}\n{roles}")).unwrap();
    let daemon = site.serve().await;
    assert!(schedule(&site, "1", "7d").expect_failure(4).contains("[roles]"));
    let told = site.keystead(["key", "cancel-deletion", "--generation", "1"]).expect_failure(4);
    assert!(told.contains("only one that is pending deletion"), "{told}");
    let refused = site.keystead(["audit", "query", "--outcome", "refused", "--output", "json"]).expect_success();
    assert!(refused.contains("\"schedule-deletion\"") && !refused.contains("\"cancel-deletion\""), "{refused}");
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn registered_backups_are_named_and_open_afterwards_by_what_was_said_and_by_nothing_else() {
    let cluster = Cluster::new().await;
    let site = &cluster.site;
    let config = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), format!("{config}\n{IN_A_SECOND}")).unwrap();
    let torn = text(&cluster.snapshot());
    cluster.etcd.delete("garbled");
    let whole = text(&cluster.etcd.snapshot(&site.path().join("whole.db")));
    let daemon = site.serve().await;

    let register = |name: &str, more: &[&str]| {
        site.command(["backup", "register", "--output", "json", "--name", name]).args(more).output().unwrap()
    };
    assert_eq!(json(site.keystead(["backup", "list", "--output", "json"]))["backups"], json!([]));
    let friday = json(register("friday", &["--snapshot", &whole]))["backup"].clone();
    assert_eq!((&friday["generations"], &friday["unknown"]), (&json!([1, 2]), &json!(0)));
    assert_eq!(friday["source"]["snapshot_sha256"].as_str().unwrap().len(), 64);
    let torn = json(register("torn", &["--snapshot", &torn]))["backup"].clone();
    assert_eq!(torn["unknown"], 1);
    json(register("tape", &["--generations", "2"]));
    assert!(register("friday", &["--generations", "1"]).expect_failure(4).contains("registered already"));
    assert!(register("x", &["--generations", "1,9"]).expect_failure(4).contains("no generation 9"));
    register("", &["--generations", "1"]).expect_failure(4);
    register("x", &["--snapshot", &text(&site.config())]).expect_failure(1);
    let told = site.keystead(["backup", "forget", "--name", "saturday"]).expect_failure(4);
    assert!(told.contains("backup list"), "{told}");

    // Kept over a restart, and named by whoever would have the generation destroyed.
    assert!(daemon.stop().success());
    let daemon = site.serve().await;
    scanned(&daemon, &[0, 4]).await;
    let done = json(schedule(site, "1", "1s"))["deletion"].clone();
    assert_eq!(done["backups"], json!(["friday", "torn"]), "{done}");
    let opens = |index: usize| {
        (done["roots"][index]["kind"].as_str().unwrap().to_owned(), done["roots"][index]["opens"].clone())
    };
    assert_eq!([opens(0), opens(1)], [("pkcs11".into(), json!(false)), ("recovery".into(), json!(true))]);
    until_state(&daemon, 1, "destroyed").await;
    let list = site.keystead(["backup", "list"]).expect_success();
    assert!(list.contains("snapshot  1 (destroyed), 2  ") && list.contains("others?"), "{list}");
    site.keystead(["backup", "forget", "--name", "torn"]).expect_success();
    let trail = json(site.keystead(["audit", "query", "--action", "forget-backup", "--output", "json"]));
    assert_eq!(trail.as_array().unwrap().len(), 4, "{trail}");
    assert!(daemon.stop().success());

    // As it was said: the token opens generation 1 in no backup any more, the recovery key does.
    let by_token = recover(site, &["--snapshot", &whole, "--dry-run"]);
    let by_token: Value = serde_json::from_slice(&by_token.stdout).unwrap();
    let numbers = |report: &Value| -> Vec<u64> {
        report["recovered"].as_array().unwrap().iter().map(|each| each["number"].as_u64().unwrap()).collect()
    };
    assert_eq!(numbers(&by_token), [2], "{by_token}");
    let by_key = shown(&recover(site, &["--snapshot", &whole, "--private", &cluster.private(), "--dry-run"]), 0);
    assert_eq!(numbers(&by_key), [1, 2], "{by_key}");
}

/// Runs a command on a terminal of its own, where somebody types `answer`. Its exit code, and what the terminal showed.
fn on_terminal(site: &Site, command: &str, answer: &str) -> (i32, String) {
    use std::io::Write;
    let line = format!("{} {command}", env!("CARGO_BIN_EXE_keystead"));
    // Of Debian's essential packages; `-e` hands the exit code on.
    let mut child = std::process::Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .env("KEYSTEAD_CONFIG", site.config())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.as_mut().unwrap().write_all(format!("{answer}\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test]
async fn person_at_a_terminal_sees_what_would_be_lost_and_types_the_key_id() {
    let site = Site::initialized("");
    let command = "key schedule-deletion --generation 1";
    rotated(&site).await;
    let daemon = site.serve().await;
    let lines = daemon.status().await.audit.unwrap().last;
    for wrong in ["y", "yes", "1", &key_id(&site, 2)] {
        let (code, shown) = on_terminal(&site, command, wrong);
        assert_eq!(code, 1, "{shown}");
        assert!(shown.contains("Opens it no more") && shown.contains("No root remains"), "{shown}");
        assert!(shown.contains("not scheduled"), "{shown}");
    }
    assert_eq!(daemon.status().await.audit.unwrap().last, lines, "a question is no action");
    assert_eq!(state(&daemon, 1).await, "retired");
    let (code, shown) = on_terminal(&site, command, &key_id(&site, 1));
    assert_eq!(code, 0, "{shown}");
    assert_eq!(state(&daemon, 1).await, "pending-deletion");
    // Refused before anybody is asked to type.
    let (code, shown) = on_terminal(&site, command, &key_id(&site, 1));
    assert!(code == 4 && !shown.contains("Type the key ID"), "{shown}");
    assert!(daemon.stop().success());
}
