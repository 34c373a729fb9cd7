//! Tokens and modules that come, go, change and fail under load: told apart, served through, recovered from. On two tokens that
//! share no code.
//!
//! Each test prints its row of docs/runbooks/faults.md:
//! `cargo test --test e2e hotswap -- --nocapture | grep '^|'`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use keystead_wire::admin::v1::GetStatusResponse;
use keystead_wire::kms::v2::StatusRequest;

use crate::clients::metrics;
use crate::daemon::{Daemon, Finished, Site, decrypt, encrypt};
use crate::load::Load;
use crate::token::{Make, Token};

/// Each case on each token.
macro_rules! on_both {
    ($($case:ident)*) => {
        mod softhsm {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(crate::token::Make::SoftHsm).await;
            })*
        }
        mod kryoptic {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(crate::token::Make::Kryoptic).await;
            })*
        }
    };
}

on_both! {
    token_pulled_and_put_back
    another_token_of_the_same_label_is_not_taken_for_the_right_one
    token_initialised_anew_is_told_from_another_one
    token_restored_from_a_backup_is_older_than_the_store
    older_token_seals_a_start_and_the_right_one_opens_it
    module_that_crashes
    module_that_hangs
    device_that_says_it_was_removed
    pin_that_was_locked
    pin_rejected_after_a_change_is_tried_once_until_another_is_written
    slow_device_degrades_nothing
    custodian_is_replaced_on_command_without_a_failed_call
    pin_is_changed_without_losing_service
}

/// A fault as the operator meets it.
struct Fault {
    name: &'static str,
    /// `custody.state` may say any of these.
    states: &'static [&'static str],
    /// Stands in the reason.
    reason: &'static str,
}

/// Lets the fault come under load, looks at what status, metrics, log and rotation say, and mends it: nobody restarts
/// anything but where `inject` does.
async fn survives(site: &Site, fault: Fault, inject: impl FnOnce(), mend: impl FnOnce()) {
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    let before = encrypt(&mut kms, b"before").await;
    let load = Load::start(&kms);
    daemon.until("calm", is_calm).await;

    let started = Instant::now();
    inject();
    let seen = |status: &GetStatusResponse| {
        let state = status.custody.clone().unwrap_or_default().state;
        status.availability == "degraded" && fault.states.contains(&state.as_str())
    };
    let status = daemon.until(fault.name, seen).await;
    let noticed = started.elapsed();
    assert!(status.reason.contains(fault.reason), "{}", status.reason);
    assert!(status.reason.contains("DO NOT RESTART"), "{}", status.reason);
    let state = status.custody.clone().unwrap_or_default().state;
    let log = daemon.log();
    assert!(fault.states.iter().any(|state| log.contains(&format!("\"state\":\"{state}\""))), "{log}");
    assert!(metric_says(&daemon, fault.states).await, "no metric says {:?}", fault.states);
    assert_eq!(kms.status(StatusRequest {}).await.unwrap().into_inner().healthz, "ok");
    let error = site.rotate().expect_failure(4);
    assert!(error.contains("refused"), "{error}");
    // The fault lasts, and so does the service.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(daemon.status().await.availability, "degraded");

    let mended = Instant::now();
    mend();
    daemon.until("recovered", is_calm).await;
    let recovered = mended.elapsed();
    site.rotate().expect_success();
    assert_eq!(decrypt(&mut kms, &before).await.unwrap(), b"before");
    let calls = load.stop().await;
    assert!(calls > 0);
    println!(
        "| {} | {:?} | `degraded`, custody `{state}` | {:.1} s | 0 of {calls} | {:.1} s |",
        fault.name,
        site.token.make(),
        noticed.as_secs_f64(),
        recovered.as_secs_f64()
    );
}

fn is_calm(status: &GetStatusResponse) -> bool {
    status.availability == "online" && status.custody.clone().unwrap_or_default().state == "ready"
}

async fn metric_says(daemon: &Daemon, states: &[&str]) -> bool {
    let page = metrics(daemon).await;
    states.iter().any(|state| page.contains(&format!("keystead_custody_state{{state=\"{state}\"}} 1")))
}

fn restart_custodian(site: &Site) -> std::process::Output {
    site.keystead(["custodian", "restart"])
}

/// What the token is kept in, and a place beside it.
fn folders(site: &Site) -> (PathBuf, PathBuf) {
    (site.token.storage(), site.token.folder.join("aside"))
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

/// Puts `other`, if any, where the module looks; the token that was there goes to `aside`.
fn swap_in(site: &Site, other: Option<&Path>) {
    let (tokens, aside) = folders(site);
    fs::rename(&tokens, aside).unwrap();
    match other {
        Some(other) => fs::rename(other, tokens).unwrap(),
        // SoftHSM wants its folder, also without a token in it.
        None if site.token.make() == Make::SoftHsm => fs::create_dir(tokens).unwrap(),
        None => {}
    }
    have_noticed(site);
}

/// SoftHSM looks at its files again and again. Kryoptic keeps them open, as a token keeps its slot: it is another one
/// only when the module is started again.
fn have_noticed(site: &Site) {
    if site.token.make() == Make::Kryoptic && site.path().join("run/admin.sock").exists() {
        assert_eq!(restart_custodian(site).status.code(), Some(5));
    }
}

fn swap_back(site: &Site) {
    let (tokens, aside) = folders(site);
    // There is none, unless the module has made an empty one.
    let _ = fs::rename(&tokens, site.token.folder.join("wrong"));
    fs::rename(aside, tokens).unwrap();
}

/// As the security officer does it by hand.
fn change_pin(token: &Token, new: &str) {
    let old = fs::read_to_string(token.pin_file()).unwrap();
    let status = token
        .tool("pkcs11-tool")
        .args(["--token-label", "keystead", "--login", "--change-pin"])
        .args(["--pin", old.trim(), "--new-pin", new])
        .output()
        .expect("pkcs11-tool cannot be run; install the package opensc (scripts/test does)");
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
}

fn write_pin(token: &Token, pin: &str) {
    fs::write(token.pin_file(), pin).unwrap();
}

async fn token_pulled_and_put_back(make: Make) {
    let site = Site::behind_shim(make);
    let fault = Fault {
        name: "token pulled while the custodian lives",
        states: &["token-missing"],
        reason: "no token with the label",
    };
    survives(&site, fault, || swap_in(&site, None), || swap_back(&site)).await;
}

async fn another_token_of_the_same_label_is_not_taken_for_the_right_one(make: Make) {
    let site = Site::behind_shim(make);
    // Made with the same PINs, so that nothing but its keys tells it apart.
    let other = site.token.folder.join("other");
    fs::create_dir(&other).unwrap();
    for pin in ["pin", "so-pin"] {
        copy(&site.token.folder.join(pin), &other.join(pin));
    }
    let other = Token::made_by(make, &other, "keystead").storage();
    let fault = Fault {
        name: "another token of the same label in its place",
        states: &["token-replaced"],
        reason: "which was here before",
    };
    survives(&site, fault, || swap_in(&site, Some(&other)), || swap_back(&site)).await;
}

async fn token_initialised_anew_is_told_from_another_one(make: Make) {
    let site = Site::behind_shim(make);
    let name = "token initialised anew";
    let fault = match make {
        Make::SoftHsm => Fault { name, states: &["token-reinitialized"], reason: "was initialised anew" },
        // It takes another serial number, and so is another token.
        Make::Kryoptic => Fault { name, states: &["token-replaced"], reason: "which was here before" },
    };
    let inject = || {
        let (tokens, aside) = folders(&site);
        copy(&tokens, &aside);
        reinitialise(&site.token);
        have_noticed(&site);
    };
    survives(&site, fault, inject, || swap_back(&site)).await;
}

/// In its slot: label and serial number stay.
fn reinitialise(token: &Token) {
    let read = |name: &str| fs::read_to_string(token.folder.join(name)).unwrap().trim().to_owned();
    let output = token
        .tool("softhsm2-util")
        .args(["--init-token", "--token", "keystead", "--label", "keystead"])
        .args(["--pin", &read("pin"), "--so-pin", &read("so-pin")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn token_restored_from_a_backup_is_older_than_the_store(make: Make) {
    let site = Site::behind_shim(make);
    let (tokens, _) = folders(&site);
    let backup = site.token.folder.join("backup");
    copy(&tokens, &backup);
    let daemon = site.serve().await;
    site.rotate().expect_success();
    assert!(daemon.stop().success());
    let fault = Fault {
        name: "token older than the store (restored from a backup)",
        states: &["token-older"],
        reason: "is older than the store",
    };
    survives(&site, fault, || swap_in(&site, Some(&backup)), || swap_back(&site)).await;
}

async fn older_token_seals_a_start_and_the_right_one_opens_it(make: Make) {
    let site = Site::behind_shim(make);
    let backup = site.token.folder.join("backup");
    copy(&folders(&site).0, &backup);
    let daemon = site.serve().await;
    site.rotate().expect_success();
    assert!(daemon.stop().success());
    swap_in(&site, Some(&backup));
    let daemon = site.spawn(&[]);
    let status =
        daemon.until("older", |status| status.custody.clone().unwrap_or_default().state == "token-older").await;
    assert_eq!(status.availability, "sealed");
    swap_back(&site);
    daemon.until("online", is_calm).await;
}

async fn module_that_crashes(make: Make) {
    let site = Site::behind_shim(make);
    let fault = Fault {
        name: "module crashes (SIGSEGV), each time it is loaded",
        states: &["restarting"],
        reason: "the custodian is not running",
    };
    survives(&site, fault, || site.inject("* crash"), || site.inject("")).await;
}

async fn module_that_hangs(make: Make) {
    let site = Site::behind_shim(make);
    let fault = Fault { name: "module hangs", states: &["hung", "restarting"], reason: "custodian" };
    survives(&site, fault, || site.inject("C_DecryptInit hang\nC_Initialize hang"), || site.inject("")).await;
}

async fn device_that_says_it_was_removed(make: Make) {
    let site = Site::behind_shim(make);
    let fault =
        Fault { name: "device reports CKR_DEVICE_REMOVED", states: &["device-failed"], reason: "DeviceRemoved" };
    let script = "C_OpenSession error CKR_DEVICE_REMOVED\nC_DecryptInit error CKR_DEVICE_REMOVED";
    survives(&site, fault, || site.inject(script), || site.inject("")).await;
}

async fn pin_that_was_locked(make: Make) {
    let site = Site::behind_shim(make);
    let fault =
        Fault { name: "PIN locked, custodian restarted", states: &["pin-locked"], reason: "the user PIN of token" };
    let inject = || {
        site.inject("C_GetTokenInfo flags locked");
        let report = restart_custodian(&site);
        assert_eq!(report.status.code(), Some(5), "{report:?}");
        assert!(String::from_utf8_lossy(&report.stdout).contains("pin-locked"), "{report:?}");
    };
    survives(&site, fault, inject, || site.inject("")).await;
}

async fn pin_rejected_after_a_change_is_tried_once_until_another_is_written(make: Make) {
    let site = Site::behind_shim(make);
    let fault = Fault {
        name: "PIN changed on the token only, custodian restarted",
        states: &["pin-rejected"],
        reason: "rejected the user PIN",
    };
    let inject = || {
        change_pin(&site.token, "another-pin-1234");
        assert_eq!(restart_custodian(&site).status.code(), Some(5));
        // Latched: another custodian does not try it again, nor when the same PIN is written once more.
        assert_eq!(restart_custodian(&site).status.code(), Some(5));
        write_pin(&site.token, fs::read_to_string(site.token.pin_file()).unwrap().trim());
        assert_eq!(restart_custodian(&site).status.code(), Some(5));
    };
    survives(&site, fault, inject, || write_pin(&site.token, "another-pin-1234")).await;
    let log = fs::read_to_string(site.path().join("log")).unwrap();
    assert_eq!(log.matches("login was rejected").count(), 1, "{log}");
}

async fn slow_device_degrades_nothing(make: Make) {
    let site = Site::behind_shim(make);
    let daemon = site.serve().await;
    let load = Load::start(&daemon.kms().await);
    site.inject("* latency 20ms");
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(is_calm(&daemon.status().await));
    }
    let calls = load.stop().await;
    println!("| device slow (20 ms a call) | {make:?} | `online`, custody `ready` | – | 0 of {calls} | – |");
}

async fn custodian_is_replaced_on_command_without_a_failed_call(make: Make) {
    let site = Site::behind_shim(make);
    let daemon = site.serve().await;
    let kms = daemon.kms().await;
    let load = Load::start(&kms);
    daemon.until("calm", is_calm).await;
    let mut before = daemon.role("custodian");
    let started = Instant::now();
    for restarts in 1..=20 {
        let report = site.keystead(["custodian", "restart", "--output", "json"]).expect_success();
        assert!(report.contains("\"state\":\"ready\"") || report.contains("\"state\": \"ready\""), "{report}");
        let status = daemon.status().await;
        assert_eq!(status.availability, "online", "{}", status.reason);
        assert_eq!(status.custody.unwrap_or_default().restarts, restarts);
        let now = daemon.role("custodian");
        assert!(now.is_some() && now != before, "{now:?}");
        before = now;
    }
    let each = started.elapsed() / 20;
    site.rotate().expect_success();
    let calls = load.stop().await;
    assert!(!daemon.log().contains("ended unexpectedly"), "{}", daemon.log());
    println!(
        "| `keystead custodian restart` | {make:?} | `online`, custody `ready` | – | 0 of {calls} | {:.2} s |",
        each.as_secs_f64()
    );
}

async fn pin_is_changed_without_losing_service(make: Make) {
    let site = Site::behind_shim(make);
    let daemon = site.serve().await;
    let load = Load::start(&daemon.kms().await);
    daemon.until("calm", is_calm).await;
    change_pin(&site.token, "another-pin-1234");
    // The session that is open goes on; so do rotations.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(is_calm(&daemon.status().await));
    site.rotate().expect_success();
    write_pin(&site.token, "another-pin-1234");
    restart_custodian(&site).expect_success();
    assert!(is_calm(&daemon.status().await));
    site.rotate().expect_success();
    let calls = load.stop().await;
    println!(
        "| PIN changed, file rewritten, custodian restarted | {make:?} | `online`, custody `ready` | – | 0 of {calls} | – |"
    );
}
