//! The room against real files: chains over restarts and rotations, every fault that a file can have, a full disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use keystead_core::KeyringId;
use keystead_core::audit::{ChainError, Position};
use keystead_core::record::Authenticator;
use serde_json::{Map, json};
use sha2::{Digest, Sha256};

use super::query::{Filter, query};
use super::settings::{AuditSettings, FailurePolicy, Level};
use super::verify::{VerifyError, verify};
use super::*;

struct Key;

impl Authenticator for Key {
    fn tag(&self, message: &[u8]) -> [u8; 32] {
        Sha256::new().chain_update(b"key").chain_update(message).finalize().into()
    }
}

fn key() -> AuditKey {
    AuditKey { epoch: 4, key: Arc::new(Key) }
}

fn keyring() -> KeyringId {
    "edge-7".parse().unwrap()
}

struct Site {
    folder: tempfile::TempDir,
    settings: AuditSettings,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = AuditSettings {
            folder: folder.path().join("audit"),
            level: Level::Requests,
            failure: FailurePolicy::Stop,
            max_bytes: 1 << 20,
            max_age: Duration::from_secs(3600),
            keep: 10,
            forward: None,
        };
        Self { folder, settings }
    }

    fn open(&self) -> Trail {
        Trail::open(&self.settings, &keyring(), None).unwrap()
    }

    fn log(&self) -> PathBuf {
        self.settings.folder.join("audit.log")
    }

    fn verify(&self) -> Result<verify::Verified, VerifyError> {
        verify(&self.settings.folder, &keyring())
    }

    fn actions(&self) -> Vec<String> {
        let mut actions = Vec::new();
        let each = |line: String| {
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            actions.push(line["action"].as_str().unwrap().to_owned());
            true
        };
        query(&self.settings.folder, &Filter::default(), each).unwrap();
        actions
    }
}

fn admin(action: &'static str) -> AdminRecord {
    let details = json!({"generation": 3, "reason": "quote \" and\nline end"});
    let who = Who::Peer(AuditedPeer { uid: 0, login_uid: Some(1000), gid: 1000, pid: Some(7) });
    let serde_json::Value::Object(details) = details else { unreachable!() };
    AdminRecord { at: SystemTime::now(), action, phase: Phase::Intent, who: Some(who), details }
}

fn request(uid: &str) -> RequestRecord {
    RequestRecord {
        at: SystemTime::now(),
        action: "decrypt",
        uid: uid.to_owned(),
        peer_uid: Some(0),
        peer_pid: Some(12),
        key_id: "ks1.edge-7.3.00112233445566778899aabbccddeeff".into(),
        outcome: "ok",
        latency: Duration::from_micros(17),
    }
}

#[tokio::test]
async fn trail_goes_on_over_restarts_and_its_checkpoints_hold() {
    let site = Site::new();
    for _ in 0..3 {
        let trail = site.open();
        trail.set_key(key());
        trail.record(admin("rotate")).await.unwrap();
        for number in 0..100 {
            trail.record_request(request(&format!("uid \u{1F512} {number}"))).unwrap();
        }
    }
    let verified = site.verify().unwrap();
    // Opened, first checkpoint, the rotation, the requests, and the checkpoint of the end; three times.
    assert_eq!((verified.first, verified.lines, verified.unfinished), (1, 3 * 104, 0));
    let checkpoint = verified.checkpoint.unwrap();
    assert_eq!(checkpoint.seq, 3 * 104, "the last thing that a trail says is a checkpoint");
    assert!(checkpoint.is_authentic(&Key));
    assert_eq!(site.actions().iter().filter(|action| *action == "decrypt").count(), 300);
}

#[tokio::test]
async fn every_line_that_is_changed_taken_out_or_moved_is_found() {
    let site = Site::new();
    let trail = site.open();
    trail.set_key(key());
    for _ in 0..5 {
        trail.record(admin("rotate")).await.unwrap();
    }
    drop(trail);
    let good = fs::read_to_string(site.log()).unwrap();
    let end = site.verify().unwrap().end;
    let lines: Vec<&str> = good.lines().collect();
    let write = |lines: &[String]| {
        fs::write(site.log(), lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap()
    };
    for at in 0..lines.len() {
        let mut edited: Vec<String> = lines.iter().map(|line| line.to_string()).collect();
        edited[at] = edited[at].replace("action", "akshun");
        write(&edited);
        assert!(matches!(site.verify(), Err(VerifyError::Line { .. })), "line {at} edited");

        let mut edited: Vec<String> = lines.iter().map(|line| line.to_string()).collect();
        edited[at] = edited[at].replace("Z\"", "z\"");
        write(&edited);
        assert!(site.verify().is_ok_and(|verified| verified.end != end) || at + 1 < lines.len(), "time of line {at}");
        if at + 1 < lines.len() {
            assert!(matches!(site.verify(), Err(VerifyError::Line { source: ChainError::Broken, .. })), "time of {at}");
        }

        let mut removed: Vec<String> = lines.iter().map(|line| line.to_string()).collect();
        removed.remove(at);
        write(&removed);
        match site.verify() {
            Ok(verified) => assert!(verified.end.sequence < end.sequence || verified.first > 1, "line {at} removed"),
            Err(error) => assert!(matches!(error, VerifyError::Line { .. }), "{error}"),
        }
    }
    fs::write(site.log(), good).unwrap();
    assert_eq!(site.verify().unwrap().end, end);
}

#[tokio::test]
async fn unfinished_last_line_is_taken_away_and_told() {
    let site = Site::new();
    site.open().record(admin("rotate")).await.unwrap();
    let whole = fs::read(site.log()).unwrap();
    for cut in [1, 40, 120] {
        fs::write(site.log(), [&whole[..], &whole[..cut]].concat()).unwrap();
        assert_eq!(site.verify().unwrap().unfinished, cut as u64);
        drop(site.open());
        site.verify().unwrap();
        assert!(site.actions().contains(&"trail-repaired".to_owned()));
    }
}

#[tokio::test]
async fn a_trail_that_is_not_what_the_store_knows_is_told_in_the_trail_itself() {
    let site = Site::new();
    let end = site.open().record(admin("rotate")).await.unwrap();
    site.open().expect(end);
    assert!(!site.actions().contains(&"trail-changed".to_owned()));
    for expected in [Position { sequence: end.sequence + 5, ..end }, Position { head: [0; 32], ..end }] {
        site.open().expect(expected);
        assert_eq!(site.actions().pop().unwrap(), "trail-changed");
    }
}

#[tokio::test]
async fn full_files_are_closed_the_oldest_removed_and_the_chain_goes_on() {
    let mut site = Site::new();
    site.settings.max_bytes = 2000;
    site.settings.keep = 3;
    let trail = site.open();
    for _ in 0..60 {
        trail.record(admin("rotate")).await.unwrap();
    }
    drop(trail);
    assert_eq!(fs::read_dir(&site.settings.folder).unwrap().count(), 4);
    let verified = site.verify().unwrap();
    assert!(verified.first > 1 && verified.files == 4, "{verified:?}");
    drop(site.open());
    assert_eq!(site.verify().unwrap().end.sequence, verified.end.sequence + 1);
    // A file in the middle is missing.
    let files = super::files::list(&site.settings.folder).unwrap();
    fs::remove_file(&files[1]).unwrap();
    assert!(matches!(site.verify(), Err(VerifyError::Line { source: ChainError::Sequence { .. }, .. })));
}

/// As where a flood of connections has taken the descriptors: the file is closed, and no next one can be begun.
#[tokio::test]
async fn a_rotation_that_was_cut_off_is_finished_when_there_is_room_and_overwrites_nothing() {
    // The disk itself, its folder, the trail's folder, its file, and one more.
    let Some(disk) = SmallDisk::with(c"size=1m,nr_inodes=4") else {
        println!("no mount of its own here: the case without inodes is run as root only");
        return;
    };
    let mut site = Site::new();
    site.settings.folder = disk.path().join("audit");
    site.settings.max_bytes = 1;
    let taken = disk.path().join("taken");
    fs::write(&taken, "").unwrap();
    let trail = site.open();
    for _ in 0..3 {
        trail.record(admin("rotate")).await.unwrap_err();
    }
    fs::remove_file(taken).unwrap();
    trail.record(admin("disable")).await.unwrap();
    drop(trail);
    let verified = site.verify().unwrap();
    assert_eq!((verified.first, verified.files), (1, 2));
    assert_eq!(site.actions().pop().unwrap(), "disable");
}

#[tokio::test]
async fn an_empty_file_after_a_rotation_is_continued_from_the_closed_one() {
    let mut site = Site::new();
    site.settings.max_bytes = 1;
    let trail = site.open();
    let end = trail.record(admin("rotate")).await.unwrap();
    drop(trail);
    let first = format!("audit-{:020}.log", end.sequence);
    fs::rename(site.log(), site.settings.folder.join(first)).unwrap();
    drop(site.open());
    assert_eq!(site.verify().unwrap().end.sequence, end.sequence + 1);
}

#[tokio::test]
async fn what_is_no_trail_is_neither_followed_nor_overwritten() {
    let site = Site::new();
    fs::create_dir(&site.settings.folder).unwrap();
    let target = site.folder.path().join("target");
    fs::write(&target, "other\n").unwrap();
    std::os::unix::fs::symlink(&target, site.log()).unwrap();
    assert!(Trail::open(&site.settings, &keyring(), None).is_err());
    fs::remove_file(site.log()).unwrap();
    fs::write(site.log(), "something else\n").unwrap();
    assert!(Trail::open(&site.settings, &keyring(), None).is_err());
    assert_eq!(fs::read_to_string(&target).unwrap(), "other\n");
    assert_eq!(fs::read_to_string(site.log()).unwrap(), "something else\n");
}

#[test]
fn filters_pick_by_time_action_person_generation_and_outcome() {
    let site = Site::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let trail = site.open();
        trail.record(admin("rotate")).await.unwrap();
        trail.record(admin("disable")).await.unwrap();
        trail.record_request(request("u")).unwrap();
    });
    let count = |filter: Filter| {
        let mut found = 0;
        query(&site.settings.folder, &filter, |_| {
            found += 1;
            true
        })
        .unwrap();
        found
    };
    let hour = Duration::from_secs(3600);
    assert_eq!(count(Filter { since: Some(SystemTime::now() - hour), ..Filter::default() }), 4);
    assert_eq!(count(Filter { since: Some(SystemTime::now() + hour), ..Filter::default() }), 0);
    assert_eq!(count(Filter { until: Some(SystemTime::now() - hour), ..Filter::default() }), 0);
    assert_eq!(count(Filter { action: Some("rotate".into()), ..Filter::default() }), 1);
    assert_eq!(count(Filter { uid: Some(1000), ..Filter::default() }), 2);
    assert_eq!(count(Filter { uid: Some(0), ..Filter::default() }), 3, "whoever he logged in as");
    assert_eq!(count(Filter { generation: Some(3), ..Filter::default() }), 3);
    assert_eq!(count(Filter { outcome: Some("intent".into()), ..Filter::default() }), 2);
}

/// As many requests at once as nobody can write: each is either in the trail or counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_uncounted() {
    let mut site = Site::new();
    site.settings.failure = FailurePolicy::ContinueWithAlarm;
    let trail = site.open();
    let total = 60_000;
    for _ in 0..total {
        trail.record_request(request("4b7d9c3e-uid")).unwrap();
    }
    trail.checkpoint().await.unwrap();
    let lost = trail.counts().lost;
    drop(trail);
    let written = site.actions().iter().filter(|action| *action == "decrypt").count() as u64;
    assert_eq!(written + lost, total);
    site.verify().unwrap();
}

/// In a mount namespace with a disk of its own, which the parent made; see `tests/e2e/disk.rs` for the daemon's side.
fn fill(folder: &Path) -> PathBuf {
    let filler = folder.join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[0; 512]).is_ok() {}
    filler
}

#[tokio::test]
async fn full_disk_refuses_or_counts_as_the_site_chose_and_the_trail_stays_whole() {
    for failure in [FailurePolicy::Stop, FailurePolicy::ContinueWithAlarm] {
        let Some(disk) = SmallDisk::mount() else {
            println!("no mount of its own here: the case on a full disk is run as root only");
            return;
        };
        let mut site = Site::new();
        site.settings.folder = disk.path().join("audit");
        site.settings.failure = failure;
        let trail = site.open();
        trail.record(admin("rotate")).await.unwrap();
        let filler = fill(disk.path());
        let mut refused = false;
        for _ in 0..200 {
            refused |= trail.record(admin("rotate")).await.is_err();
        }
        assert!(refused && trail.counts().failing);
        assert_eq!(trail.admits_requests().is_err(), failure == FailurePolicy::Stop);
        if failure == FailurePolicy::ContinueWithAlarm {
            trail.record_request(request("lost")).unwrap();
        }
        fs::remove_file(filler).unwrap();
        // By itself, without another record.
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while trail.counts().failing {
            assert!(std::time::Instant::now() < deadline, "the trail does not come back");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        trail.admits_requests().unwrap();
        trail.record(admin("rotate")).await.unwrap();
        drop(trail);
        site.verify().unwrap();
        assert!(site.actions().contains(&"trail-resumed".to_owned()));
    }
}

/// A tmpfs, of 64 KiB if nothing else is said.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        Self::with(c"size=64k")
    }

    fn with(options: &std::ffi::CStr) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", folder.path(), "tmpfs", flags, Some(options)).ok()?;
        Some(Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn only_the_last_lines_are_given_where_a_limit_is() {
    let site = Site::new();
    drop(site.open());
    drop(site.open());
    drop(site.open());
    let mut lines = Vec::new();
    super::query::query_last(&site.settings.folder, &Filter::default(), 2, |line| {
        lines.push(line);
        true
    })
    .unwrap();
    assert!(lines.len() == 2 && lines[0].contains(r#""seq":2"#) && lines[1].contains(r#""seq":3"#), "{lines:?}");
}

#[test]
fn empty_details_leave_no_trace() {
    let record = AdminRecord { who: None, details: Map::new(), ..admin("rotate") };
    assert!(!record.members().contains("details") && !record.members().contains("who"));
}
