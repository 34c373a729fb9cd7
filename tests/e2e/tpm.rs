//! The daemon on a TPM 2.0: made, served, rotated, recovered; and a TPM that is slow, gone, cleared or not there.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use keystead_core::annotation::{self, Annotation};
use keystead_core::wrap::Construction;
use serde_json::Value;

use crate::chip::Swtpm;
use crate::crash;
use crate::daemon::{Finished, Site, decrypt, encrypt};
use crate::deletion;
use crate::etcd::Etcd;
use crate::load::Load;
use crate::tpm_proxy::Proxy;

/// A site on a chip of its own.
pub struct TpmSite {
    // Ends before its folder goes.
    pub chip: Swtpm,
    pub site: Site,
}

impl TpmSite {
    /// Provisioned, without a key.
    pub fn bare() -> Self {
        Self::configured("")
    }

    pub fn configured(extra: &str) -> Self {
        let site = Site::bare("");
        let chip = Swtpm::start(&site.path().join("tpm"));
        let this = Self { chip, site };
        this.reach_with(&this.chip.tcti, extra);
        this.site.keystead(["tpm", "provision"]).expect_success();
        this
    }

    pub fn initialized() -> Self {
        let this = Self::bare();
        this.site.keystead(["init", "--no-recovery"]).expect_success();
        this
    }

    /// Has the configuration name another way to the TPM.
    pub fn reach(&self, tcti: &str) {
        self.reach_with(tcti, "");
    }

    pub fn reach_with(&self, tcti: &str, extra: &str) {
        let auth = self.site.path().join("tpm-auth");
        let custody = format!(
            "[custody]\nkind = \"tpm\"\ntcti = \"{tcti}\"\nauth_file = \"{}\"\nprobe_interval = \"1s\"\n",
            auth.display()
        );
        self.site.configure(&custody, extra);
    }
}

pub fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[tokio::test]
async fn key_in_a_tpm_is_served_rotated_and_an_old_store_refused() {
    let tpm = TpmSite::initialized();
    let site = &tpm.site;
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    let first = encrypt(&mut kms, b"first").await;
    let yesterday = fs::read(site.store_file()).unwrap();
    site.rotate().expect_success();
    let second = encrypt(&mut kms, b"second").await;
    assert_ne!(first.key_id, second.key_id);
    assert_eq!(decrypt(&mut kms, &first).await.unwrap(), b"first");
    let status = daemon.status().await;
    assert_eq!(status.durable_roots, ["tpm"]);
    assert!(!status.sandbox.unwrap_or_default().server_can_read_pin, "the server reads the auth file");
    drop(kms);
    assert!(daemon.stop().success());

    // Over a power cycle of machine and chip.
    tpm.chip.stop();
    tpm.chip.start_again();
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    assert_eq!(decrypt(&mut kms, &first).await.unwrap(), b"first");
    assert_eq!(decrypt(&mut kms, &second).await.unwrap(), b"second");
    drop(kms);
    assert!(daemon.stop().success());

    let today = fs::read(site.store_file()).unwrap();
    fs::write(site.store_file(), &yesterday).unwrap();
    let daemon = site.spawn(&[]);
    let status = daemon.until("stale", |status| status.reason.contains("stale")).await;
    assert!(status.reason.contains("put the newest record back"), "{}", status.reason);
    assert!(daemon.stop().success());
    fs::write(site.store_file(), &today).unwrap();
    assert!(site.serve().await.stop().success());

    // The way out: here a wrap proves nothing of who made it, and no object on the chip tells of a number.
    fs::write(site.store_file(), &yesterday).unwrap();
    let daemon = site.spawn(&[]);
    daemon.until("stale", |status| status.reason.contains("stale")).await;
    let restored = site.keystead(["store", "restore", "--accept-rollback", "--yes"]).expect_success();
    let restored = restored.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(restored.contains(&first.key_id) && restored.contains("origin unproven"), "{restored}");
    site.keystead(["key", "enable", "--yes"]).expect_success();
    let status = daemon.status().await;
    assert!(status.active_generation > 2 && status.active_key_id != second.key_id, "{}", status.active_key_id);
    assert_eq!(decrypt(&mut daemon.kms().await, &first).await.unwrap(), b"first");
    assert!(decrypt(&mut daemon.kms().await, &second).await.is_err());
}

/// Its key lives in its wraps: the tombstone stays, and nobody is told that anything was shredded.
#[tokio::test]
async fn destroyed_generation_of_a_tpm_is_said_to_open_from_backups() {
    let tpm = TpmSite::configured("[deletion]\nmin_wait = \"1s\"\n");
    let site = &tpm.site;
    site.keystead(["init", "--no-recovery"]).expect_success();
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    let old = encrypt(&mut kms, b"old").await;
    site.rotate().expect_success();
    deletion::scanned(&daemon, &[0, 1]).await;
    let done = json(&deletion::schedule(site, "1", "1s").expect_success());
    let root = &done["deletion"]["roots"][0];
    assert_eq!((root["kind"].as_str(), root["opens"].as_bool()), (Some("tpm"), Some(true)), "{done}");
    assert!(root["why"].as_str().unwrap().contains("until it is cleared"), "{done}");
    deletion::until_state(&daemon, 1, "destroyed").await;
    assert_eq!(decrypt(&mut kms, &old).await.unwrap_err().code(), tonic::Code::FailedPrecondition);
    let new = encrypt(&mut kms, b"new").await;
    drop(kms);
    assert!(daemon.stop().success());
    let daemon = site.serve().await;
    assert_eq!(decrypt(&mut daemon.kms().await, &new).await.unwrap(), b"new");
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn auth_file_belongs_to_the_custodian_s_user_and_the_server_s_cannot_read_it() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: only root can give server and custodian users of their own");
        return;
    }
    let users = "[process]\nserver_user = 54001\ncustodian_user = 54002\n[sandbox]\nlandlock = false\n";
    let tpm = TpmSite::configured(users);
    let site = &tpm.site;
    fs::set_permissions(site.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let auth = fs::metadata(site.path().join("tpm-auth")).unwrap();
    assert_eq!((auth.uid(), auth.mode() & 0o777), (54_002, 0o600));
    site.keystead(["init", "--no-recovery"]).expect_success();
    let daemon = site.serve().await;
    let sandbox = daemon.status().await.sandbox.unwrap();
    assert_eq!((sandbox.uid, sandbox.server_can_read_pin), (54_001, false));
    let mut kms = daemon.kms().await;
    let before = encrypt(&mut kms, b"before").await;
    site.rotate().expect_success();
    site.keystead(["custodian", "restart"]).expect_success();
    assert_eq!(decrypt(&mut kms, &before).await.unwrap(), b"before");
    drop(kms);
    assert!(daemon.stop().success());
    assert!(site.serve().await.stop().success());
}

#[tokio::test]
async fn doctor_looks_at_the_tpm_and_its_auth_file_and_at_no_module() {
    let tpm = TpmSite::initialized();
    let site = &tpm.site;
    let doctor = || {
        let report = site.keystead(["doctor", "--only", "files", "--only", "custody", "--output", "json"]);
        String::from_utf8(report.stdout).unwrap()
    };
    let daemon = site.serve().await;
    let sound = doctor();
    assert!(sound.contains("files.tpm") && !sound.contains("files.module") && !sound.contains("critical"), "{sound}");
    let auth = site.path().join("tpm-auth");
    fs::set_permissions(&auth, fs::Permissions::from_mode(0o644)).unwrap();
    let open = doctor();
    assert!(open.contains("the auth file") && open.contains("mode 0644") && open.contains("critical"), "{open}");
    fs::set_permissions(&auth, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn rotation_and_init_on_a_tpm_killed_at_every_failpoint_resume_or_roll_back() {
    crash::rotation_survives_every_kill(&TpmSite::initialized().site).await;
    for name in crash::of_init() {
        crash::init_survives_a_kill(&TpmSite::bare().site, name).await;
    }
}

#[tokio::test]
async fn snapshot_and_tpm_and_auth_file_bring_every_secret_back() {
    let tpm = TpmSite::bare();
    let site = &tpm.site;
    let public = site.path().join("recovery.pub").display().to_string();
    let private = site.path().join("recovery.pem").display().to_string();
    site.keystead(["recovery", "keygen", "--out", &private, "--public-out", &public]).expect_success();
    site.keystead(["init", "--recovery", &public]).expect_success();
    let etcd = Etcd::start();
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    let first = encrypt(&mut kms, &[1; 32]).await;
    etcd.put_secret("a", "edge", &first);
    let length: usize = first.annotations.values().map(Vec::len).sum();
    assert!(length <= 1024, "an annotation of {length} bytes");
    site.rotate().expect_success();
    let second = encrypt(&mut kms, &[2; 32]).await;
    etcd.put_secret("b", "edge", &second);
    drop(kms);
    assert!(daemon.stop().success());
    let snapshot = etcd.snapshot(&site.path().join("snapshot.db")).display().to_string();

    fs::remove_dir_all(site.path().join("store")).unwrap();
    let lost = site.keystead(["init", "--no-recovery"]).expect_failure(1);
    assert!(lost.contains("a store was lost") && lost.contains("keystead recover"), "{lost}");
    let report =
        site.keystead(["recover", "--snapshot", &snapshot, "--no-recovery", "--output", "json"]).expect_success();
    let report = json(&report);
    assert_eq!(report["recovered"][0]["root"], "tpm", "{report}");
    // Anybody can wrap to a public key, also to a TPM's.
    assert_eq!(report["recovered"][0]["origin"], "unproven", "{report}");
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    assert_eq!(decrypt(&mut kms, &first).await.unwrap(), [1; 32]);
    assert_eq!(decrypt(&mut kms, &second).await.unwrap(), [2; 32]);
    drop(kms);
    assert!(daemon.stop().success());

    // Without this TPM, the recovery key does it, on another one.
    let other = TpmSite::bare();
    let site = &other.site;
    site.keystead(["recover", "--snapshot", &snapshot, "--no-recovery"]).expect_failure(1);
    site.keystead(["recover", "--snapshot", &snapshot, "--private", &private, "--no-recovery"]).expect_success();
    let daemon = site.serve().await;
    assert_eq!(decrypt(&mut daemon.kms().await, &second).await.unwrap(), [2; 32]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tpm_that_goes_and_comes_back_costs_no_call() {
    let tpm = TpmSite::initialized();
    let daemon = tpm.site.serve().await;
    let load = Load::start(&daemon.kms().await);
    let calm = |status: &keystead_wire::admin::v1::GetStatusResponse| status.availability == "online";
    daemon.until("calm", calm).await;
    tpm.chip.stop();
    let status = daemon.until("degraded", |status| status.availability == "degraded").await;
    assert!(status.reason.contains("DO NOT RESTART"), "{}", status.reason);
    let state = |status: &keystead_wire::admin::v1::GetStatusResponse| status.custody.clone().unwrap_or_default().state;
    daemon.until("unreachable", |status| state(status) == "tpm-unreachable").await;
    let custodian = daemon.role("custodian");
    let refused = tpm.site.keystead(["key", "rotate", "--yes"]).expect_failure(4);
    assert!(refused.contains("refused"), "{refused}");
    tpm.chip.start_again();
    daemon.until("back", |status| calm(status) && state(status) == "ready").await;
    assert_eq!(daemon.role("custodian"), custodian, "it was to be recovered in place");
    tpm.site.rotate().expect_success();
    assert!(load.stop().await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tpm_cleared_under_the_daemon_is_said_and_loaded_keys_are_served_on() {
    let tpm = TpmSite::initialized();
    let daemon = tpm.site.serve().await;
    let mut kms = daemon.kms().await;
    let before = encrypt(&mut kms, b"before").await;
    let load = Load::start(&kms);
    tpm.chip.tool_does(&["clear", "-c", "p"]);
    let replaced = |status: &keystead_wire::admin::v1::GetStatusResponse| {
        status.availability == "degraded" && status.custody.clone().unwrap_or_default().state == "token-replaced"
    };
    let status = daemon.until("told apart", replaced).await;
    assert!(status.reason.contains("DO NOT RESTART"), "{}", status.reason);
    assert_eq!(decrypt(&mut kms, &before).await.unwrap(), b"before");
    assert!(load.stop().await > 0);
    // What is in memory can still be saved.
    let public = tpm.site.path().join("r.pub").display().to_string();
    let private = tpm.site.path().join("r.pem").display().to_string();
    tpm.site.keystead(["recovery", "keygen", "--out", &private, "--public-out", &public]).expect_success();
    let rescue = tpm.site.path().join("rescue.txt").display().to_string();
    tpm.site.keystead(["roots", "rescue", "--to", &public, "--out", &rescue]).expect_success();
    drop(kms);
    assert!(daemon.stop().success());
    // A cleared TPM is a new one: provisioned with a new auth file, the rescue file brings the keys to it.
    fs::remove_file(tpm.site.path().join("tpm-auth")).unwrap();
    tpm.site.keystead(["tpm", "provision"]).expect_success();
    let arguments = ["recover", "--rescue", &rescue, "--private", &private, "--no-recovery", "--replace-store"];
    tpm.site.keystead(arguments).expect_success();
    let daemon = tpm.site.serve().await;
    assert_eq!(decrypt(&mut daemon.kms().await, &before).await.unwrap(), b"before");
}

#[tokio::test]
async fn slow_tpm_serves_the_active_generation_first_and_costs_no_call() {
    const GENERATIONS: u64 = 12;
    let tpm = TpmSite::initialized();
    let daemon = tpm.site.serve().await;
    let mut kms = daemon.kms().await;
    let oldest = encrypt(&mut kms, b"oldest").await;
    let mut cmks = vec![cmk_of(&oldest)];
    for _ in 1..GENERATIONS {
        tpm.site.rotate().expect_success();
        cmks.push(cmk_of(&encrypt(&mut kms, b"seed").await));
    }
    drop(kms);
    assert!(daemon.stop().success());

    let proxy = Proxy::listening(&tpm.chip.tcti, Duration::from_millis(300)).unwrap();
    tpm.reach(&proxy.tcti);
    let daemon = tpm.site.serve().await;
    let commands = proxy.commands();
    let status = daemon.status().await;
    assert_eq!(status.generations, GENERATIONS as u32);
    assert!(status.generations_loaded < status.generations, "the retired ones were waited for");
    // Connecting, the epochs, the record's key, the active KEK; then three for each retired one, and what was begun.
    assert!(commands <= 23 + 3 * u64::from(status.generations_loaded), "{commands} commands: {status:?}");
    let mut kms = daemon.kms().await;
    let sealed = encrypt(&mut kms, b"now").await;
    let (before, loaded) = (proxy.commands(), daemon.status().await.generations_loaded);
    for _ in 0..500 {
        let encrypted = encrypt(&mut kms, b"again").await;
        decrypt(&mut kms, &encrypted).await.unwrap();
    }
    // What the chip did meanwhile is the background's loading, some three commands a generation.
    let (commands, more) = (proxy.commands() - before, daemon.status().await.generations_loaded - loaded);
    assert!(commands <= u64::from(more + 1) * 3 + 3, "{commands} commands for 1,000 calls and {more} generations");
    assert_eq!(decrypt(&mut kms, &sealed).await.unwrap(), b"now");
    // A retired one that is asked for comes when it comes, not when all are there.
    assert_eq!(decrypt(&mut kms, &oldest).await.unwrap(), b"oldest");
    daemon.until("all loaded", |status| status.generations_loaded == status.generations).await;
    // The order in which the bus saw the CMKs: the active one before any other.
    let heard = proxy.heard();
    let mut seen: Vec<(usize, usize)> = cmks
        .iter()
        .enumerate()
        .map(|(index, cmk)| (memchr::memmem::find(&heard, cmk).expect("never loaded"), index))
        .collect();
    seen.sort_unstable();
    assert_eq!(seen[0].1, cmks.len() - 1, "the active generation was not the first: {seen:?}");
}

/// The public half of the CMK, as it goes over the bus when the key is loaded.
fn cmk_of(encrypted: &keystead_wire::kms::v2::EncryptResponse) -> Vec<u8> {
    let annotation = Annotation::decode(&encrypted.annotations[annotation::KEY]).unwrap();
    match Construction::parse(&annotation.wraps[0].bytes) {
        Ok(Construction::TpmEcdh { key, .. }) => key.public,
        _ => panic!("no wrap of a TPM"),
    }
}

#[tokio::test]
async fn tpm_that_is_not_there_seals_the_start_and_says_where_it_was_looked_for() {
    let tpm = TpmSite::initialized();
    let nowhere = tpm.site.path().join("tpmrm0").display().to_string();
    tpm.reach(&format!("device:{nowhere}"));
    let check = tpm.site.keystead(["config", "check"]);
    let shown = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(!check.status.success() && shown.contains("custody.tcti") && shown.contains("firmware setup"), "{shown}");
    let failed = tpm.site.keystead(["tpm", "info"]).expect_failure(1);
    assert!(failed.contains(&nowhere) && failed.contains("firmware setup"), "{failed}");
    let daemon = tpm.site.spawn(&[]);
    let status = daemon.until("sealed", |status| status.reason.contains("cannot be reached")).await;
    assert_eq!(status.availability, "sealed");
    assert!(status.reason.contains(&nowhere), "{}", status.reason);
    // The socket stays, and the TPM is found when it is there.
    tpm.reach(&tpm.chip.tcti);
    assert!(daemon.stop().success());
    assert!(tpm.site.serve().await.stop().success());
}

/// A name without what two programs spell differently.
fn plain(name: &str) -> String {
    name.replace('_', "")
}

#[test]
fn info_tells_what_the_tpm_is_and_how_fast_it_unwraps() {
    let tpm = TpmSite::bare();
    let info = json(&tpm.site.keystead(["tpm", "info", "--output", "json"]).expect_success());
    assert_eq!(info["manufacturer"], "IBM", "{info}");
    assert_eq!((&info["ecdh_p256"]["works"], &info["rsa_oaep"]["works"]), (&true.into(), &true.into()), "{info}");
    assert!(info["ecdh_p256"]["unwrap_ms"].as_f64().unwrap() > 0.0, "{info}");
    assert!(info["algorithms"].as_array().unwrap().iter().any(|name| name == "ecdh"), "{info}");
    assert_eq!(info["lockout"]["locked"], false, "{info}");
    // Held against what another program asks of the chip.
    let listed = tpm.chip.tool_does(&["getcap", "algorithms"]);
    let listed: Vec<String> =
        listed.lines().filter(|line| !line.starts_with(' ')).map(|line| plain(line.trim_end_matches(':'))).collect();
    let ours: Vec<String> = serde_json::from_value(info["algorithms"].clone()).unwrap();
    assert_eq!(ours.iter().map(|name| plain(name)).collect::<Vec<_>>(), listed);
    let fixed = tpm.chip.tool_does(&["getcap", "properties-fixed"]);
    let raw = |text: &str, name: &str| {
        let value = text.split(&format!("{name}:")).nth(1).and_then(|rest| rest.split("0x").nth(1)).unwrap();
        u32::from_str_radix(value.split_whitespace().next().unwrap(), 16).unwrap()
    };
    let halves = ["TPM2_PT_FIRMWARE_VERSION_1", "TPM2_PT_FIRMWARE_VERSION_2"].map(|name| raw(&fixed, name));
    let firmware = halves.map(|half| format!("{}.{}", half >> 16, half & 0xffff)).join(".");
    assert_eq!((&info["firmware"], raw(&fixed, "TPM2_PT_MANUFACTURER")), (&firmware.into(), 0x4942_4d00), "{info}");
    let variable = tpm.chip.tool_does(&["getcap", "properties-variable"]);
    for (field, property) in [
        ("failed", "TPM2_PT_LOCKOUT_COUNTER"),
        ("allowed", "TPM2_PT_MAX_AUTH_FAIL"),
        ("forgotten_after_seconds", "TPM2_PT_LOCKOUT_INTERVAL"),
    ] {
        assert_eq!(info["lockout"][field], raw(&variable, property), "{field}");
    }
    // The trial leaves nothing behind, and needs no auth file.
    fs::remove_file(tpm.site.path().join("tpm-auth")).unwrap();
    assert_eq!(tpm.chip.tool_does(&["getcap", "handles-transient"]).trim(), "");
    for _ in 0..3 {
        assert!(!tpm.chip.tool(&["nvread", "0x1400000", "-C", "0x1400000", "-P", "x"]).status.success());
    }
    tpm.chip.tool_does(&["nvdefine", "0x1500000", "-C", "o", "-s", "8", "-a", "authread|authwrite", "-p", "right"]);
    let guess = || tpm.chip.tool(&["nvread", "0x1500000", "-C", "0x1500000", "-P", "wrong", "-s", "8"]);
    guess();
    let info = json(&tpm.site.keystead(["tpm", "info", "--output", "json"]).expect_success());
    assert!(info["warnings"].to_string().contains("1 failed tries of 3 until lockout"), "{info}");
    for _ in 0..3 {
        guess();
    }
    let info = json(&tpm.site.keystead(["tpm", "info", "--output", "json"]).expect_success());
    assert_eq!(info["lockout"]["locked"], true, "{info}");
    assert!(info["warnings"].to_string().contains("lockout"), "{info}");
}

#[test]
fn keys_of_the_other_kind_are_refused_with_their_place() {
    let site = Site::bare("");
    site.configure("[custody]\nkind = \"tpm\"\npin_file = \"pin\"\n", "");
    let error = site.keystead(["config", "check"]).expect_failure(2);
    assert!(error.contains("custody.pin_file") && error.contains("pkcs11"), "{error}");
    site.configure("[custody]\ntcti = \"device:/dev/tpm0\"\n", "");
    let error = site.keystead(["config", "check"]).expect_failure(2);
    assert!(error.contains("custody.tcti") && error.contains("kind = \"tpm\""), "{error}");
}
