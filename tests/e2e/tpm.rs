//! The daemon on a TPM 2.0: made, served, rotated, recovered; and a TPM that is slow, gone, cleared or not there.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use serde_json::Value;

use crate::chip::Swtpm;
use crate::crash;
use crate::daemon::{Finished, Site, decrypt, encrypt};
use crate::etcd::Etcd;
use crate::load::Load;
use crate::tpm_proxy::Proxy;

/// A site on a chip of its own.
struct TpmSite {
    // Ends before its folder goes.
    chip: Swtpm,
    site: Site,
}

impl TpmSite {
    /// Provisioned, without a key.
    fn bare() -> Self {
        Self::configured("")
    }

    fn configured(extra: &str) -> Self {
        let site = Site::bare("");
        let chip = Swtpm::start(&site.path().join("tpm"));
        let this = Self { chip, site };
        this.reach_with(&this.chip.tcti, extra);
        this.site.keystead(["tpm", "provision"]).expect_success();
        this
    }

    fn initialized() -> Self {
        let this = Self::bare();
        this.site.keystead(["init", "--no-recovery"]).expect_success();
        this
    }

    /// Has the configuration name another way to the TPM.
    fn reach(&self, tcti: &str) {
        self.reach_with(tcti, "");
    }

    fn reach_with(&self, tcti: &str, extra: &str) {
        let auth = self.site.path().join("tpm-auth");
        let custody = format!(
            "[custody]\nkind = \"tpm\"\ntcti = \"{tcti}\"\nauth_file = \"{}\"\nprobe_interval = \"1s\"\n",
            auth.display()
        );
        self.site.configure(&custody, extra);
    }
}

fn json(text: &str) -> Value {
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
    const GENERATIONS: u64 = 20;
    let tpm = TpmSite::initialized();
    let daemon = tpm.site.serve().await;
    let mut kms = daemon.kms().await;
    let oldest = encrypt(&mut kms, b"oldest").await;
    for _ in 1..GENERATIONS {
        tpm.site.rotate().expect_success();
    }
    drop(kms);
    assert!(daemon.stop().success());

    let proxy = Proxy::start(&tpm.chip.tcti, Duration::from_millis(300)).unwrap();
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

#[test]
fn info_tells_what_the_tpm_is_and_how_fast_it_unwraps() {
    let tpm = TpmSite::bare();
    let info = json(&tpm.site.keystead(["tpm", "info", "--output", "json"]).expect_success());
    assert_eq!(info["manufacturer"], "IBM", "{info}");
    assert_eq!((&info["ecdh_p256"]["works"], &info["rsa_oaep"]["works"]), (&true.into(), &true.into()), "{info}");
    assert!(info["ecdh_p256"]["unwrap_ms"].as_f64().unwrap() > 0.0, "{info}");
    assert!(info["algorithms"].as_array().unwrap().iter().any(|name| name == "ecdh"), "{info}");
    assert_eq!(info["lockout"]["locked"], false, "{info}");
    // The trial leaves nothing behind, and needs no auth file.
    fs::remove_file(tpm.site.path().join("tpm-auth")).unwrap();
    assert_eq!(tpm.chip.tool_does(&["getcap", "handles-transient"]).trim(), "");
    for _ in 0..3 {
        assert!(!tpm.chip.tool(&["nvread", "0x1400000", "-C", "0x1400000", "-P", "x"]).status.success());
    }
    tpm.chip.tool_does(&["nvdefine", "0x1500000", "-C", "o", "-s", "8", "-a", "authread|authwrite", "-p", "right"]);
    for _ in 0..4 {
        tpm.chip.tool(&["nvread", "0x1500000", "-C", "0x1500000", "-P", "wrong", "-s", "8"]);
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

/// An event log of one boot loader, as the firmware would have written it.
fn event_log(digest: [u8; 32]) -> Vec<u8> {
    let mut spec = b"Spec ID Event03\0".to_vec();
    spec.extend([0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0]);
    spec.extend([0x0b, 0, 32, 0, 0]);
    let mut bytes = [&[0; 4][..], &[3, 0, 0, 0], &[0; 20]].concat();
    bytes.extend((spec.len() as u32).to_le_bytes());
    bytes.extend(spec);
    let name = b"boot loader 1.0";
    bytes.extend([&[16, 0, 0, 0, 0x0d, 0, 0, 0, 1, 0, 0, 0, 0x0b, 0][..], &digest].concat());
    bytes.extend((name.len() as u32).to_le_bytes());
    bytes.extend(name);
    bytes
}

#[tokio::test]
async fn boot_that_was_not_approved_seals_until_its_approval_is_brought() {
    let tpm = TpmSite::bare();
    let site = &tpm.site;
    let at = |name: &str| site.path().join(name).display().to_string();
    fs::create_dir(site.path().join("approvals")).unwrap();
    site.keystead(["recovery", "keygen", "--out", &at("signer.pem"), "--public-out", &at("signer.pub")])
        .expect_success();
    let custody = format!(
        "[custody]\nkind = \"tpm\"\ntcti = \"{}\"\nauth_file = \"tpm-auth\"\npcrs = \"sha256:16\"\nboot_signer = \
         \"signer.pub\"\napprovals = \"approvals\"\nprobe_interval = \"1s\"\n",
        tpm.chip.tcti
    );
    site.configure(&custody, "");
    let refused = site.keystead(["init", "--no-recovery"]).expect_failure(1);
    assert!(refused.contains("no approval") && refused.contains("keystead tpm preview"), "{refused}");

    // The first boot measured one boot loader; an update will measure another.
    let (one, two) = ([0x11; 32], [0x22; 32]);
    let extend = |digest: [u8; 32]| {
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        tpm.chip.tool_does(&["pcrreset", "16"]);
        tpm.chip.tool_does(&["pcrextend", &format!("16:sha256={hex}")]);
        fs::write(site.path().join("log-now"), event_log(digest)).unwrap();
    };
    extend(one);
    let approve = |draft: &str, name: &str| {
        let out = site.path().join("approvals").join(name).display().to_string();
        site.keystead(["tpm", "approve", "--draft", draft, "--signer-key", &at("signer.pem"), "--out", &out])
            .expect_success();
    };
    site.keystead(["tpm", "predict", "--out", &at("draft-1"), "--event-log", &at("log-now")]).expect_success();
    site.keystead(["tpm", "predict", "--out", &at("read")]).expect_success();
    let value = |name: &str| fs::read_to_string(site.path().join(name)).unwrap().lines().nth(4).unwrap().to_owned();
    assert_eq!(value("draft-1"), value("read"), "the replayed value is not the PCR's");
    approve(&at("draft-1"), "boot-1");
    let fits = json(&site.keystead(["tpm", "preview", "--output", "json"]).expect_success());
    assert_eq!(fits["fits"], true, "{fits}");
    site.keystead(["init", "--no-recovery"]).expect_success();
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    let sealed = encrypt(&mut kms, b"measured").await;
    drop(kms);
    assert!(daemon.stop().success());

    // The update, without an approval.
    extend(two);
    let daemon = site.spawn(&[]);
    let status = daemon.until("sealed", |status| status.reason.contains("PCR 16")).await;
    assert_eq!(status.custody.unwrap_or_default().state, "boot-not-approved");
    let preview = site.keystead(["tpm", "preview", "--event-log", &at("log-now")]);
    let shown = String::from_utf8_lossy(&preview.stdout).into_owned();
    assert_eq!(preview.status.code(), Some(1), "{shown}");
    assert!(shown.contains("PCR 16 differ") && shown.contains("new: boot loader: boot loader 1.0"), "{shown}");

    // Predicted before the update, from the log of the boot before it.
    fs::write(site.path().join("log-before"), event_log(one)).unwrap();
    let replace = format!("{}={}", "11".repeat(32), "22".repeat(32));
    let arguments =
        ["tpm", "predict", "--out", &at("draft-2"), "--event-log", &at("log-before"), "--replace", &replace];
    site.keystead(arguments).expect_success();
    approve(&at("draft-2"), "boot-2");
    daemon.until("online", |status| status.availability == "online").await;
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"measured");
    assert!(daemon.stop().success());
    // The first boot is still approved: a rollback is not told from an update.
    extend(one);
    assert!(site.serve().await.stop().success());
}
