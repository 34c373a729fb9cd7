//! What can be wrong with a TPM under the daemon, as its operators meet it: neighbours, permissions, owners, lockout, lost indices;
//! and what goes over the bus and into memory meanwhile.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::chip::Swtpm;
use crate::daemon::{DEADLINE, Daemon, Finished, Site, decrypt, encrypt};
use crate::etcd::Etcd;
use crate::load::Load;
use crate::memory::{occurrences, ran_as_root_of_a_namespace, wait_until_async};
use crate::tpm::{TpmSite, json};
use crate::tpm_proxy::Proxy;

/// TPM library part 2, "TPM_CC".
const NV_WRITE: u32 = 0x137;
const NV_DEFINE_SPACE: u32 = 0x12a;
const NV_UNDEFINE_SPACE: u32 = 0x122;
const EVICT_CONTROL: u32 = 0x120;
const ECDH_ZGEN: u32 = 0x154;
const GET_RANDOM: u32 = 0x17b;

/// A site on somebody else's chip.
fn neighbour(chip: &Swtpm, keyring: &str) -> Site {
    let site = Site::bare("");
    let auth = site.path().join("tpm-auth");
    let custody = format!(
        "[custody]\nkind = \"tpm\"\ntcti = \"{}\"\nauth_file = \"{}\"\nprobe_interval = \"1s\"\n",
        chip.tcti,
        auth.display()
    );
    site.configure(&custody, "");
    let config = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), config.replace("keyring = \"test\"", &format!("keyring = \"{keyring}\""))).unwrap();
    site
}

/// The findings of doctor's group `custody`, as JSON.
fn doctor(site: &Site) -> String {
    let report = site.keystead(["doctor", "--only", "custody", "--output", "json"]);
    String::from_utf8(report.stdout).unwrap()
}

fn custody_state(status: &keystead_wire::admin::v1::GetStatusResponse) -> String {
    status.custody.clone().unwrap_or_default().state
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_daemons_with_keyrings_of_their_own_share_one_tpm() {
    let one = TpmSite::initialized();
    let two = neighbour(&one.chip, "other");
    two.keystead(["tpm", "provision"]).expect_success();
    two.keystead(["init", "--no-recovery"]).expect_success();
    let daemons = [one.site.serve().await, two.serve().await];
    let loads = [Load::start(&daemons[0].kms().await), Load::start(&daemons[1].kms().await)];
    let mut sealed = Vec::new();
    for _ in 0..3 {
        for (site, daemon) in [&one.site, &two].into_iter().zip(&daemons) {
            sealed.push(encrypt(&mut daemon.kms().await, b"shared").await);
            rotate_beside_a_neighbour(site, daemon).await;
        }
    }
    for load in loads {
        assert!(load.stop().await > 0);
    }
    for daemon in daemons {
        assert!(daemon.stop().success());
    }
    let daemons = [one.site.serve().await, two.serve().await];
    for (index, encrypted) in sealed.iter().enumerate() {
        assert_eq!(decrypt(&mut daemons[index % 2].kms().await, encrypted).await.unwrap(), b"shared");
    }
}

/// Without a resource manager in between, each throws out the other's objects now and then: refused for a moment at most.
async fn rotate_beside_a_neighbour(site: &Site, daemon: &Daemon) {
    let started = Instant::now();
    loop {
        daemon.until("ready", |status| status.availability == "online" && custody_state(status) == "ready").await;
        let rotated = site.rotate();
        if rotated.status.success() {
            return;
        }
        let refused = rotated.expect_failure(4);
        assert!(refused.contains("custody is away") || refused.contains("the token failed"), "{refused}");
        assert!(started.elapsed() < DEADLINE, "never rotated: {refused}");
    }
}

#[tokio::test]
async fn second_daemon_for_the_same_keyring_is_refused_wherever_it_begins() {
    let one = TpmSite::initialized();
    let daemon = one.site.serve().await;
    let two = neighbour(&one.chip, "test");
    // With an auth file of its own.
    let refused = two.keystead(["tpm", "provision"]).expect_failure(1);
    for word in ["keyring test on node node-1", "auth value of another auth file", "tpm2_nvundefine"] {
        assert!(refused.contains(word), "no {word} in {refused}");
    }
    assert!(!two.path().join("tpm-auth").exists(), "an auth file that fits nothing was left behind");
    // With a copy of the first one's.
    fs::copy(one.site.path().join("tpm-auth"), two.path().join("tpm-auth")).unwrap();
    two.keystead(["tpm", "provision"]).expect_success();
    let refused = two.keystead(["init", "--no-recovery"]).expect_failure(1);
    assert!(refused.contains("a store was lost"), "{refused}");
    // With the first one's store, too.
    let config = fs::read_to_string(two.config()).unwrap();
    let store = |site: &Site| format!("path = \"{}/store\"", site.path().display());
    fs::write(two.config(), config.replace(&store(&two), &store(&one.site))).unwrap();
    let mut second = two.spawn(&[]);
    assert!(!second.wait().success());
    assert!(second.log().contains("is in use by another keystead process"), "{}", second.log());
    assert_eq!(daemon.status().await.availability, "online");
    one.site.rotate().expect_success();
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn device_without_permission_is_said_with_the_group_to_join() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: only root can give the custodian a user of its own");
        return;
    }
    let users = "[process]\nserver_user = 54011\ncustodian_user = 54012\n[sandbox]\nlandlock = false\n";
    let tpm = TpmSite::configured(users);
    let site = &tpm.site;
    fs::set_permissions(site.path(), fs::Permissions::from_mode(0o711)).unwrap();
    site.keystead(["init", "--no-recovery"]).expect_success();
    // What stands for it: only the kernel's device behaves otherwise once it is open, and it never is.
    let device = site.path().join("tpmrm0");
    fs::write(&device, "").unwrap();
    fs::set_permissions(&device, fs::Permissions::from_mode(0o660)).unwrap();
    tpm.reach_with(&format!("device:{}", device.display()), users);
    let check = || String::from_utf8(site.keystead(["config", "check"]).stdout).unwrap();
    let refused = check();
    assert!(refused.contains("custody.tcti: ") && refused.contains("may not be read"), "{refused}");
    // Of the custodian's own group, it may.
    std::os::unix::fs::chown(&device, None, Some(54_012)).unwrap();
    assert!(!check().contains("custody.tcti: "));
    std::os::unix::fs::chown(&device, None, Some(0)).unwrap();
    let daemon = site.spawn(&[]);
    let status = daemon.until("refused", |status| status.reason.contains("Permission denied")).await;
    assert_eq!((status.availability.as_str(), custody_state(&status).as_str()), ("sealed", "tpm-unreachable"));
    for word in [device.display().to_string().as_str(), "group that owns it"] {
        assert!(status.reason.contains(word), "no {word} in {}", status.reason);
    }
    let doctor = doctor(site);
    for word in ["custody.tpm", "Permission denied", "permissions", "critical"] {
        assert!(doctor.contains(word), "no {word} in {doctor}");
    }
    assert!(daemon.stop().success());
}

#[test]
fn wrong_owner_auth_value_makes_nothing_and_is_never_shown() {
    let site = Site::bare("");
    let chip = Swtpm::start(&site.path().join("tpm"));
    chip.tool_does(&["changeauth", "-c", "o", "the-owner-s"]);
    let two = neighbour(&chip, "test");
    let file = |name: &str, content: &str| {
        let path = two.path().join(name).display().to_string();
        fs::write(&path, content).unwrap();
        path
    };
    let (wrong, right) = (file("wrong", "not-the-owner-s\n"), file("right", "the-owner-s\n"));
    let without = two.keystead(["tpm", "provision"]).expect_failure(1);
    let refused = two.keystead(["tpm", "provision", "--owner-auth-file", &wrong]).expect_failure(1);
    for said in [&without, &refused] {
        assert!(said.contains("right auth value of the owner") && said.contains("--owner-auth-file"), "{said}");
        assert!(!said.contains("not-the-owner-s"), "{said}");
    }
    let listed = chip.tool_does(&["getcap", "handles-nv-index"]);
    assert_eq!((listed.trim(), chip.tool_does(&["getcap", "handles-persistent"]).trim()), ("", ""));
    assert!(!two.path().join("tpm-auth").exists());
    let told = two.keystead(["tpm", "provision", "--owner-auth-file", &right]).expect_success();
    assert!(told.contains("The TPM is ready") && !told.contains("the-owner-s"), "{told}");
    two.keystead(["init", "--no-recovery"]).expect_success();
    let info = json(&two.keystead(["tpm", "info", "--output", "json"]).expect_success());
    // Tried by hand and by us: the owner's auth value is not one that locks.
    assert_eq!((&info["owner_auth_set"], &info["lockout"]["failed"]), (&true.into(), &0.into()), "{info}");
}

#[tokio::test]
async fn lockout_that_somebody_else_caused_costs_the_daemon_nothing() {
    let tpm = TpmSite::initialized();
    let site = &tpm.site;
    let daemon = site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"before").await;
    tpm.chip.tool_does(&["nvdefine", "0x1500000", "-C", "o", "-s", "8", "-a", "authread|authwrite", "-p", "right"]);
    for _ in 0..4 {
        tpm.chip.tool(&["nvread", "0x1500000", "-C", "0x1500000", "-P", "wrong", "-s", "8"]);
    }
    let locked = tpm.chip.tool(&["nvread", "0x1500000", "-C", "0x1500000", "-P", "right", "-s", "8"]);
    assert!(!locked.status.success(), "the TPM is not in lockout");
    site.rotate().expect_success();
    site.keystead(["custodian", "restart"]).expect_success();
    daemon.until("ready", |status| status.availability == "online" && custody_state(status) == "ready").await;
    let doctor = doctor(site);
    assert!(!doctor.contains("critical"), "{doctor}");
    assert!(daemon.stop().success());
    let daemon = site.serve().await;
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"before");
    let tokens = site.keystead(["token", "list", "--output", "json"]).expect_success();
    assert!(tokens.contains("locked"), "{tokens}");
    let info = site.keystead(["tpm", "info"]).expect_success();
    assert!(info.contains("LOCKED") && info.contains("Keystead's keys do not"), "{info}");
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn lost_nv_indices_are_told_from_another_tpm_and_recovered_from() {
    let tpm = TpmSite::initialized();
    let site = &tpm.site;
    let etcd = Etcd::start();
    let daemon = site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, &[5; 32]).await;
    etcd.put_secret("a", "edge", &sealed);
    let snapshot = etcd.snapshot(&site.path().join("snapshot.db")).display().to_string();
    let listed = tpm.chip.tool_does(&["getcap", "handles-nv-index"]);
    let indices: Vec<&str> = listed.lines().filter_map(|line| line.trim().strip_prefix("- ")).collect();
    assert_eq!(indices.len(), 2);
    for index in &indices {
        tpm.chip.tool_does(&["nvundefine", index, "-C", "o"]);
    }
    // A running one looks every few minutes, and whenever its custodian is a new one.
    site.keystead(["custodian", "restart"]).expect_failure(5);
    let missing = |status: &keystead_wire::admin::v1::GetStatusResponse| custody_state(status) == "epoch-missing";
    let status = daemon.until("missed", missing).await;
    assert!(status.availability == "degraded" && status.reason.contains("DO NOT RESTART"), "{}", status.reason);
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), [5; 32]);
    assert!(daemon.stop().success());

    let daemon = site.spawn(&[]);
    let status = daemon.until("sealed", |status| status.reason.contains("NV indices were undefined")).await;
    assert_eq!((status.availability.as_str(), custody_state(&status).as_str()), ("sealed", "epoch-missing"));
    let doctor = doctor(site);
    assert!(doctor.contains("custody.token") && doctor.contains("keystead recover"), "{doctor}");
    assert!(daemon.stop().success());
    site.keystead(["recover", "--snapshot", &snapshot, "--no-recovery", "--replace-store"]).expect_success();
    let daemon = site.serve().await;
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), [5; 32]);
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn nv_memory_is_written_twice_a_rotation_and_never_else() {
    let tpm = TpmSite::bare();
    let site = &tpm.site;
    let bus = Proxy::listening(&tpm.chip.tcti, Duration::ZERO).unwrap();
    tpm.reach(&bus.tcti);
    // Whatever writes to memory that wears out.
    let written = || {
        [NV_WRITE, NV_DEFINE_SPACE, NV_UNDEFINE_SPACE, EVICT_CONTROL].map(|code| bus.count(code)).iter().sum::<usize>()
    };
    site.keystead(["tpm", "info"]).expect_success();
    site.keystead(["tpm", "provision"]).expect_success();
    assert_eq!(written(), 0, "provisioned a second time");
    site.keystead(["init", "--no-recovery"]).expect_success();
    // The first epoch, and its end when the first generation was activated under the next.
    assert_eq!(written(), 3);
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    for _ in 0..100 {
        let sealed = encrypt(&mut kms, b"steady").await;
        decrypt(&mut kms, &sealed).await.unwrap();
    }
    // Six probes, which are hours with the interval that a site would set.
    let before = bus.count(ECDH_ZGEN);
    wait_until_async("probes", async || bus.count(ECDH_ZGEN) >= before + 6).await;
    site.keystead(["custodian", "restart"]).expect_success();
    daemon.until("ready", |status| custody_state(status) == "ready").await;
    drop(kms);
    assert!(daemon.stop().success());
    let daemon = site.serve().await;
    assert_eq!(written(), 3, "written to without a rotation");
    for rotations in 1..=3 {
        let random = bus.count(GET_RANDOM);
        site.rotate().expect_success();
        // For the KEK and for the epoch secret, besides the kernel's.
        assert!(bus.count(GET_RANDOM) >= random + 2);
        assert_eq!(written(), 3 + 2 * rotations);
    }
    assert!(daemon.stop().success());
}

/// Half a secret each, as it lies in memory.
fn halves(secret: &[u8]) -> [[u8; 8]; 2] {
    [secret[..8].try_into().unwrap(), secret[24..32].try_into().unwrap()]
}

#[tokio::test]
async fn auth_value_is_in_the_custodian_s_memory_only_and_in_no_log_argument_or_environment() {
    if ran_as_root_of_a_namespace(
        "tpm_faults::auth_value_is_in_the_custodian_s_memory_only_and_in_no_log_argument_or_environment",
    ) {
        return;
    }
    let tpm = TpmSite::configured("[log]\nlevel = \"trace\"\n");
    let site = &tpm.site;
    site.keystead(["init", "--no-recovery"]).expect_success();
    let text = fs::read_to_string(site.path().join("tpm-auth")).unwrap();
    let digits = text.lines().nth(1).unwrap().strip_prefix("auth ").unwrap().to_owned();
    let auth: Vec<u8> = (0..32).map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap()).collect();
    let daemon = site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"x").await;
    site.rotate().expect_success();
    decrypt(&mut daemon.kms().await, &sealed).await.unwrap();
    let told = [
        site.keystead(["status"]).expect_success(),
        site.keystead(["tpm", "info"]).expect_success(),
        site.keystead(["tpm", "provision"]).expect_success(),
        site.keystead(["config", "check"]).expect_success(),
        crate::clients::metrics(&daemon).await,
    ];
    let copies = |pid| occurrences(pid, &halves(&auth));
    let custodian = daemon.role("custodian").unwrap();
    assert!(copies(custodian) >= 2, "the scanner is blind");
    let processes = [daemon.pid(), daemon.role("server").unwrap(), custodian];
    assert_eq!(processes[..2].iter().map(|pid| copies(*pid)).sum::<usize>(), 0, "outside the custodian");
    // Keys come and go; copies of their auth value do not gather.
    let few = copies(custodian);
    for _ in 0..8 {
        site.rotate().expect_success();
    }
    let more = copies(custodian);
    eprintln!("copies of halves of the auth value: {few}, after eight rotations {more}");
    assert!(more <= few + 4, "{few} copies became {more}");
    for pid in processes {
        for shown in ["cmdline", "environ"] {
            let shown = fs::read(format!("/proc/{pid}/{shown}")).unwrap();
            assert!(!String::from_utf8_lossy(&shown).contains(&digits[..16]));
        }
    }
    assert!(daemon.stop().success());
    let log = fs::read_to_string(site.path().join("log")).unwrap();
    assert!(log.contains("\"level\":\"TRACE\"") || log.contains("\"level\":\"DEBUG\""), "the log is not talkative");
    let decimal = format!("{:?}", &auth[..8]);
    for said in told.iter().chain([&log]) {
        assert!(!said.contains(&digits[..16]) && !said.contains(decimal.trim_matches(['[', ']'])), "it is shown");
    }
    assert!(!holds(site.path(), &digits[..16], &auth[..8]), "a file of the daemon holds it");
}

/// Whether a file below `folder` holds the auth value; its own file and the chip's state are left out.
fn holds(folder: &Path, digits: &str, bytes: &[u8]) -> bool {
    fs::read_dir(folder).unwrap().flatten().any(|entry| {
        let path = entry.path();
        let name = entry.file_name();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            return name != "tpm" && name != "token" && holds(&path, digits, bytes);
        }
        if !kind.is_file() || name == "tpm-auth" {
            return false;
        }
        let content = fs::read(&path).unwrap();
        memchr::memmem::find(&content, digits.as_bytes()).is_some() || memchr::memmem::find(&content, bytes).is_some()
    })
}
