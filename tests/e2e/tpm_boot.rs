//! Measured boot under the daemon: event logs as firmware writes them, boots that were approved, and one that was not.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use crate::chip::Swtpm;
use crate::daemon::{Finished, Site, decrypt, encrypt};
use crate::tcg_log::{Log, digest};
use crate::tpm::{TpmSite, json};

/// Every PCR that [`Log::of_a_boot`] measures into.
const PCRS: &str = "sha256:0,1,2,3,4,5,6,7,8,9,12";

/// A site whose new CMKs open after approved boots only. Its signer's key lies in its folder.
struct Measured {
    tpm: TpmSite,
}

impl Measured {
    fn new(pcrs: &str) -> Self {
        let tpm = TpmSite::bare();
        let site = &tpm.site;
        fs::create_dir(site.path().join("approvals")).unwrap();
        let at = |name: &str| site.path().join(name).display().to_string();
        site.keystead(["recovery", "keygen", "--out", &at("signer.pem"), "--public-out", &at("signer.pub")])
            .expect_success();
        let custody = format!(
            "[custody]\nkind = \"tpm\"\ntcti = \"{}\"\nauth_file = \"tpm-auth\"\npcrs = \"{pcrs}\"\nboot_signer = \
             \"signer.pub\"\napprovals = \"approvals\"\nprobe_interval = \"1s\"\n",
            tpm.chip.tcti
        );
        site.configure(&custody, "");
        Self { tpm }
    }

    fn site(&self) -> &Site {
        &self.tpm.site
    }

    fn at(&self, name: &str) -> String {
        self.site().path().join(name).display().to_string()
    }

    fn approve(&self, draft: &str, name: &str) {
        let out = self.site().path().join("approvals").join(name).display().to_string();
        let arguments =
            ["tpm", "approve", "--draft", &self.at(draft), "--signer-key", &self.at("signer.pem"), "--out", &out];
        self.site().keystead(arguments).expect_success();
    }

    /// A draft's values by PCR.
    fn values(&self, draft: &str) -> BTreeMap<u32, String> {
        let text = fs::read_to_string(self.at(draft)).unwrap();
        let pcr = |line: &str| {
            let (number, value) = line.strip_prefix("pcr ")?.split_once(' ')?;
            Some((number.parse().ok()?, value.to_owned()))
        };
        text.lines().filter_map(pcr).collect()
    }

    /// What `tpm preview` says, which ends with `code`.
    fn preview(&self, log: &str, code: i32) -> String {
        let output = self.site().keystead(["tpm", "preview", "--event-log", &self.at(log)]);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Power off, power on, and what the firmware measures on the way.
fn boot(chip: &Swtpm, log: &Log) {
    chip.stop();
    chip.start_again();
    let extends: Vec<String> =
        log.events.iter().map(|event| format!("{}:sha256={}", event.pcr, hex(&event.sha256))).collect();
    if !extends.is_empty() {
        let mut arguments = vec!["pcrextend"];
        arguments.extend(extends.iter().map(String::as_str));
        chip.tool_does(&arguments);
    }
}

/// The SHA-256 values that `tpm2_eventlog` gets from a log.
fn by_another_program(log: &str) -> BTreeMap<u32, String> {
    let output = Command::new("tpm2_eventlog").arg(log).env("TSS2_LOG", "all+NONE").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let values = text.split("\npcrs:").nth(1).and_then(|rest| rest.split("  sha256:").nth(1)).unwrap();
    let pcr = |line: &str| {
        let (number, value) = line.split_once(':')?;
        Some((number.trim().parse().ok()?, value.trim().strip_prefix("0x")?.to_owned()))
    };
    values.lines().skip(1).map_while(pcr).collect()
}

#[test]
fn event_log_of_a_uefi_boot_replays_to_what_the_chip_and_another_program_say() {
    let measured = Measured::new(PCRS);
    let log = Log::of_a_boot();
    boot(&measured.tpm.chip, &log);
    fs::write(measured.at("log"), log.bytes()).unwrap();
    let site = measured.site();
    site.keystead(["tpm", "predict", "--out", &measured.at("read")]).expect_success();
    site.keystead(["tpm", "predict", "--out", &measured.at("replayed"), "--event-log", &measured.at("log")])
        .expect_success();
    let replayed = measured.values("replayed");
    assert_eq!(replayed.len(), 11);
    assert_eq!(replayed, measured.values("read"), "the chip holds something else");
    assert_eq!(replayed, by_another_program(&measured.at("log")), "tpm2_eventlog gets something else");

    // Begun from another locality, which only shows in PCR 0.
    let mut elsewhere = Log::new(&[4, 0x0b]);
    elsewhere.event(0, 3, b"StartupLocality\0\x03").event(0, 8, b"1.0\0").event(4, 0xd, b"loader\0");
    fs::write(measured.at("log-3"), elsewhere.bytes()).unwrap();
    site.keystead(["tpm", "predict", "--out", &measured.at("three"), "--event-log", &measured.at("log-3")])
        .expect_success();
    let (mine, theirs) = (measured.values("three"), by_another_program(&measured.at("log-3")));
    assert_eq!(mine[&4], theirs[&4]);
    // tpm2-tools 5.4 knows nothing of localities.
    let mut begin = [0; 32];
    begin[31] = 3;
    assert_eq!(mine[&0], hex(&digest(&[begin, digest(b"1.0\0")].concat())));

    // What is no log, or is cut off, is said and not guessed at.
    for (name, bytes, word) in [
        ("cut", log.bytes()[..log.bytes().len() - 5].to_vec(), "damaged at byte"),
        ("empty", Vec::new(), "no event log"),
        ("sha1", Log::new(&[4]).bytes(), "no SHA-256"),
        ("huge", [&log.bytes()[..], &[4, 0, 0, 0, 0xd, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]].concat(), "damaged at byte"),
    ] {
        fs::write(measured.at(name), bytes).unwrap();
        let arguments = ["tpm", "predict", "--out", &measured.at("none"), "--event-log", &measured.at(name)];
        let refused = site.keystead(arguments).expect_failure(2);
        assert!(refused.contains(word), "{name}: {refused}");
    }
    assert!(!site.path().join("none").exists());

    // A chip whose firmware has switched the SHA-256 bank off.
    measured.tpm.chip.tool_does(&["pcrallocate", "sha1:all+sha256:none"]);
    boot(&measured.tpm.chip, &Log::new(&[4]));
    let refused = site.keystead(["tpm", "predict", "--out", &measured.at("none")]).expect_failure(1);
    assert!(refused.contains("a SHA-256 bank with all PCRs of custody.pcrs"), "{refused}");
}

#[tokio::test]
async fn update_of_the_boot_loader_is_named_and_predicted_before_it() {
    let measured = Measured::new(PCRS);
    let site = measured.site();
    let (before, after) = (Log::of_a_boot(), Log::of_boot_with("grub 2.12"));
    boot(&measured.tpm.chip, &before);
    fs::write(measured.at("before"), before.bytes()).unwrap();
    fs::write(measured.at("after"), after.bytes()).unwrap();
    site.keystead(["tpm", "predict", "--out", &measured.at("draft-1"), "--event-log", &measured.at("before")])
        .expect_success();
    measured.approve("draft-1", "boot-1");
    assert!(measured.preview("before", 0).contains("fits this boot"));
    site.keystead(["init", "--no-recovery"]).expect_success();
    let daemon = site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"measured").await;
    assert!(daemon.stop().success());

    boot(&measured.tpm.chip, &after);
    let preview = measured.preview("after", 1);
    assert!(preview.contains("does not fit: PCR 4 differ\n"), "{preview}");
    for line in
        [r"gone: boot loader or kernel \EFI\debian\grubx64.efi", r"new: boot loader or kernel \EFI\debian\grubx64"]
    {
        assert!(preview.contains(&format!("PCR 4: {line}")), "{preview}");
    }
    // Nothing that is as it was.
    assert!(!preview.contains("shim") && preview.matches("PCR 4: ").count() == 2, "{preview}");
    // A log that is not of this boot is not believed.
    assert!(measured.preview("before", 1).contains("the event log does not give its value"));
    let daemon = site.spawn(&[]);
    let status = daemon.until("sealed", |status| status.reason.contains("PCR 4 of this boot differ")).await;
    assert_eq!(status.custody.unwrap_or_default().state, "boot-not-approved");

    let [old, new] = ["grub 2.06", "grub 2.12"].map(|version| hex(&digest(version.as_bytes())));
    let replace = format!("{old}={new}");
    let arguments = [
        "tpm",
        "predict",
        "--out",
        &measured.at("draft-2"),
        "--event-log",
        &measured.at("before"),
        "--replace",
        &replace,
    ];
    site.keystead(arguments).expect_success();
    measured.approve("draft-2", "boot-2");
    daemon.until("online", |status| status.availability == "online").await;
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"measured");
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn boot_that_was_not_approved_seals_until_its_approval_is_brought() {
    let measured = Measured::new("sha256:16");
    let site = measured.site();
    let refused = site.keystead(["init", "--no-recovery"]).expect_failure(1);
    assert!(refused.contains("no approval") && refused.contains("keystead tpm preview"), "{refused}");

    let start = |version: &str| {
        let mut log = Log::new(&[0x0b]);
        log.event(16, 0xd, version.as_bytes());
        boot(&measured.tpm.chip, &log);
        fs::write(measured.at("log-now"), log.bytes()).unwrap();
    };
    start("one");
    site.keystead(["tpm", "predict", "--out", &measured.at("draft-1")]).expect_success();
    measured.approve("draft-1", "boot-1");
    let fits = json(&site.keystead(["tpm", "preview", "--output", "json"]).expect_success());
    assert_eq!(fits["fits"], true, "{fits}");
    site.keystead(["init", "--no-recovery"]).expect_success();
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    let sealed = encrypt(&mut kms, b"measured").await;
    drop(kms);
    assert!(daemon.stop().success());

    // The update, without an approval.
    start("two");
    let daemon = site.spawn(&[]);
    let status = daemon.until("sealed", |status| status.reason.contains("PCR 16")).await;
    assert!(status.reason.contains("keystead tpm preview"), "{}", status.reason);
    assert_eq!(status.custody.unwrap_or_default().state, "boot-not-approved");
    let doctor = site.keystead(["doctor", "--only", "custody", "--output", "json"]);
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    for word in ["custody.boot-not-approved", "PCR 16", "keystead tpm preview", "critical"] {
        assert!(doctor.contains(word), "no {word} in {doctor}");
    }
    site.keystead(["tpm", "predict", "--out", &measured.at("draft-2")]).expect_success();
    measured.approve("draft-2", "boot-2");
    daemon.until("online", |status| status.availability == "online").await;
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"measured");
    assert!(daemon.stop().success());
    // The first boot is still approved: a rollback is not told from an update.
    start("one");
    assert!(site.serve().await.stop().success());
}
