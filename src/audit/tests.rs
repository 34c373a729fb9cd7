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
        verify(&self.settings.folder, &keyring(), None)
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

fn request(uid: &str) -> RequestRecord<'_> {
    RequestRecord {
        at: SystemTime::now(),
        action: "decrypt",
        uid,
        peer_uid: Some(0),
        peer_pid: Some(12),
        key_id: "ks1.edge-7.3.00112233445566778899aabbccddeeff",
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

/// A trail of three files, its last line a checkpoint, under a daemon that goes on with it.
async fn long_trail(site: &mut Site) -> (Trail, Vec<(PathBuf, String)>) {
    site.settings.max_bytes = 800;
    let trail = site.open();
    trail.set_key(key());
    for number in 0..3 {
        trail.record(admin("rotate")).await.unwrap();
        trail.record_request(request(&format!("uid {number}"))).unwrap();
        trail.checkpoint().await.unwrap();
    }
    let files = super::files::list(&site.settings.folder).unwrap();
    assert!(files.len() >= 3, "{files:?}");
    let lines = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        text.lines().map(|line| (path.clone(), line.to_owned())).collect::<Vec<_>>()
    };
    let lines: Vec<_> = files.into_iter().flat_map(lines).collect();
    trail.verify().unwrap();
    (trail, lines)
}

/// In place, as an editor would.
fn put_back(lines: &[(PathBuf, String)]) {
    let mut texts: std::collections::BTreeMap<&Path, String> = std::collections::BTreeMap::new();
    for (path, line) in lines {
        texts.entry(path).or_default().push_str(&format!("{line}\n"));
    }
    texts.into_iter().for_each(|(path, text)| fs::write(path, text).unwrap());
}

/// The number of the line that is named, counted through all files from 0.
fn named(error: &VerifyError, lines: &[(PathBuf, String)]) -> Option<usize> {
    let VerifyError::Line { path, line, .. } = error else { return None };
    Some(lines.iter().position(|(of, _)| of == path)? + usize::try_from(*line).unwrap() - 1)
}

#[tokio::test]
async fn every_line_that_is_edited_is_found_there_or_at_the_next() {
    let mut site = Site::new();
    let (trail, good) = long_trail(&mut site).await;
    type Edit = fn(&str) -> String;
    let edits: [(&str, Edit); 6] = [
        ("another time", |line| line.replacen("T", "t", 1)),
        ("another action", |line| line.replacen("\"action\":\"", "\"action\":\"x", 1)),
        ("a member more", |line| line.replacen("{", "{\"more\":1,", 1)),
        ("a space", |line| line.replacen(",", ", ", 1)),
        ("emptied", |_| String::new()),
        ("no JSON", |line| line[1..].to_owned()),
    ];
    for at in 0..good.len() {
        for (what, edit) in edits {
            let mut edited = good.clone();
            edited[at].1 = edit(&good[at].1);
            assert_ne!(edited[at], good[at], "{what}");
            put_back(&edited);
            let error = trail.verify().expect_err("an edited trail");
            match named(&error, &good) {
                Some(line) => assert!(line == at || line == at + 1, "line {at}, {what}: {error}"),
                // Nothing names the last line but what this daemon knows, and custody.
                None => assert_eq!(at, good.len() - 1, "{what}: {error}"),
            }
        }
    }
    put_back(&good);
    trail.verify().unwrap();
}

#[tokio::test]
async fn lines_taken_out_put_in_or_moved_are_found_where_it_happened() {
    let mut site = Site::new();
    let (trail, good) = long_trail(&mut site).await;
    let last = good.len() - 1;
    let begins_a_file = |at: usize| at > 0 && good[at].0 != good[at - 1].0;
    for at in 0..=last {
        let line = |error: &VerifyError| named(error, &good);
        let mut removed = good.clone();
        let (of, _) = removed.remove(at);
        // The file whose only line it was is empty then, not gone.
        fs::write(&of, "").unwrap();
        put_back(&removed);
        match trail.verify() {
            // As if older files had been removed by age: said where it begins, and no more can be said.
            Ok(verified) => assert!(at == 0 && of == site.log() && verified.first == 2, "line {at} removed"),
            Err(VerifyError::Short { .. }) => assert_eq!(at, last),
            Err(error) => assert!(line(&error).is_some_and(|line| line >= at), "line {at} removed: {error}"),
        }
        let mut doubled = good.clone();
        doubled.insert(at, good[at].clone());
        put_back(&doubled);
        let error = trail.verify().expect_err("a line too many");
        assert_eq!(line(&error), Some(at + 1), "line {at} doubled: {error}");
        // One that follows the line before it: the chain breaks right after.
        let mut before = Position::start(&keyring());
        good[..at].iter().for_each(|(_, line)| drop(before.follow(line.as_bytes()).unwrap()));
        let mut forged = Vec::new();
        before.append("\"time\":\"2026-11-22T04:00:00.000Z\",\"action\":\"rotate\"", &mut forged);
        let forged = String::from_utf8(forged).unwrap().trim_end().to_owned();
        let mut inserted = good.clone();
        inserted.insert(at, (good[at].0.clone(), forged));
        put_back(&inserted);
        let error = trail.verify().expect_err("a forged line");
        assert_eq!(line(&error), Some(at + 1), "before line {at}: {error}");
        if at < last && !begins_a_file(at + 1) {
            let mut swapped = good.clone();
            let next = swapped[at + 1].1.clone();
            swapped[at + 1].1 = std::mem::replace(&mut swapped[at].1, next);
            put_back(&swapped);
            let error = trail.verify().expect_err("two lines swapped");
            assert!(line(&error).is_some_and(|line| line == at || line == at + 1), "line {at} swapped: {error}");
        }
    }
    put_back(&good);
    trail.verify().unwrap();
}

/// By a daemon that wrote them; without one only the store's record and what left the box tell (docs/audit.md).
#[tokio::test]
async fn a_tail_that_is_cut_off_under_the_daemon_is_found_however_much_of_it() {
    let mut site = Site::new();
    let (trail, good) = long_trail(&mut site).await;
    for left in 1..good.len() {
        for (path, _) in &good {
            let _ = fs::remove_file(path);
        }
        put_back(&good[..left]);
        let error = trail.verify().expect_err("a tail that is gone");
        assert!(matches!(error, VerifyError::Short { written, .. } if written == good.len() as u64), "{left}: {error}");
        let alone = site.verify().unwrap();
        assert_eq!(alone.end.sequence, left as u64, "the chain itself holds");
    }
    // Of the head, it is said where the trail begins.
    put_back(&good);
    let second = good.iter().position(|(path, _)| *path != good[0].0).unwrap();
    fs::remove_file(&good[0].0).unwrap();
    assert_eq!(trail.verify().unwrap().first, second as u64 + 1);
    // Cut within a closed file, whose name says which line it begins with.
    put_back(&good[1..]);
    let error = trail.verify().expect_err("a head that is gone");
    assert!(error.to_string().contains("number 2 where 1 must follow"), "{error}");
}

#[tokio::test]
async fn lines_that_no_daemon_writes_are_named_and_neither_fill_the_memory_nor_are_they_repaired() {
    let site = Site::new();
    site.open().record(admin("rotate")).await.unwrap();
    let good = fs::read(site.log()).unwrap();
    let count = site.actions().len();
    let deep = "[".repeat(100_000);
    let nested = format!("{{\"seq\":3,\"prev\":{}", "{\"a\":".repeat(2_000));
    for hostile in
        ["\0".repeat(4_000), deep, nested, "\u{feff}{}".into(), "{\"seq\":1e400}".into(), "x".repeat(64 << 20)]
    {
        fs::write(site.log(), [&good[..], hostile.as_bytes(), b"\n"].concat()).unwrap();
        let error = site.verify().expect_err("a hostile line");
        assert!(
            matches!(error, VerifyError::Line { line, source: ChainError::Malformed, .. } if line == count as u64 + 1),
            "{error}"
        );
        assert_eq!(site.actions().len(), count, "what is no line is not shown");
    }
    // Longer than any line that a power cut can have left: not ours, and left as it is.
    let torn = [&good[..], "y".repeat(1 << 20).as_bytes()].concat();
    fs::write(site.log(), &torn).unwrap();
    assert!(Trail::open(&site.settings, &keyring(), None).is_err());
    assert_eq!(fs::read(site.log()).unwrap(), torn);
}

/// Whoever can write the folder must get neither another file read or written nor a thread that waits for ever.
#[tokio::test]
async fn links_pipes_and_folders_in_place_of_a_file_are_refused() {
    type Put = fn(&Path, &Path);
    let puts: [Put; 3] = [
        |path, target| std::os::unix::fs::symlink(target, path).unwrap(),
        |path, _| {
            let mode = rustix::fs::Mode::from(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        },
        |path, _| fs::create_dir(path).unwrap(),
    ];
    for put in puts {
        let mut site = Site::new();
        let (trail, good) = long_trail(&mut site).await;
        let target = site.folder.path().join("target");
        fs::write(&target, "other\n").unwrap();
        for path in [&good[0].0, &site.log()] {
            let aside = site.folder.path().join("aside");
            fs::rename(path, &aside).unwrap();
            put(path, &target);
            assert!(matches!(trail.verify(), Err(VerifyError::Io { .. })), "{path:?}");
            assert!(query(&site.settings.folder, &Filter::default(), |_| true).is_err());
            assert_eq!(Trail::open(&site.settings, &keyring(), None).is_err(), *path == site.log());
            let _ = fs::remove_file(path).or_else(|_| fs::remove_dir(path));
            fs::rename(&aside, path).unwrap();
        }
        assert_eq!(fs::read_to_string(&target).unwrap(), "other\n");
    }
}

#[test]
fn of_a_peer_s_texts_no_more_waits_than_is_written() {
    let mut requests = super::lines::Requests::default();
    let long = "\u{1F512}".repeat(100_000);
    requests.push(RequestRecord { key_id: &long, ..request(&long) });
    requests.push(request("short"));
    assert!(requests.footprint() < 8 << 10, "{}", requests.footprint());
    let texts: Vec<_> =
        requests.iter().map(|record| (record.uid.len(), record.key_id.len(), record.uid == "short")).collect();
    assert_eq!(texts, [(512, 512, false), (5, 45, true)]);
    requests.clear();
    assert_eq!(requests.iter().count(), 0);
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
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
