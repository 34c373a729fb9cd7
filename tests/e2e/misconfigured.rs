//! A tired operator's mistakes: each is named, none costs a PIN try or a key.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::daemon::{Finished, Site};
use crate::token::Token;

#[tokio::test]
async fn wrong_label_two_tokens_and_no_token_are_told_apart() {
    let site = Site::bare("");
    site.configure(&site.token.custody("keysted"), "");
    let error = site.keystead(["init", "--no-recovery"]).expect_failure(1);
    assert!(error.contains("keysted") && error.contains("next: ") && error.contains("token list"), "{error}");

    // A second token of the same label in the same place.
    let second = tempfile::tempdir().unwrap();
    Token::new(second.path(), "keystead");
    for entry in fs::read_dir(second.path().join("tokens")).unwrap() {
        let entry = entry.unwrap();
        fs::rename(entry.path(), site.token.folder.join("tokens").join(entry.file_name())).unwrap();
    }
    site.configure(&site.token.custody("keystead"), "");
    let error = site.keystead(["init", "--no-recovery"]).expect_failure(1);
    assert!(error.contains("token_serial"), "{error}");
    let listed = site.keystead(["token", "list", "--output", "json"]);
    assert_eq!(listed.status.code(), Some(1), "no one token is the configured one");
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let serials: Vec<&str> = listed["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|token| token["label"] == "keystead")
        .map(|token| token["serial"].as_str().unwrap())
        .collect();
    assert_eq!(serials.len(), 2, "{listed:#}");
}

#[tokio::test]
async fn a_wrong_pin_in_a_file_costs_one_try_however_often_file_and_daemon_are_made_anew() {
    let site = Site::initialized("");
    let write = |pin: &str| {
        // Another inode, another time: as a tool does that rolls out files.
        let fresh = site.path().join("fresh");
        fs::write(&fresh, pin).unwrap();
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(&fresh, site.token.pin_file()).unwrap();
    };
    wrong_pins_cost_one_try_each(&site, &write, &[]).await;
}

#[tokio::test]
async fn a_wrong_pin_as_a_credential_costs_one_try_however_often_the_unit_is_started() {
    let site = Site::initialized("");
    let custody = site.token.custody("keystead");
    let line = custody.lines().find(|line| line.starts_with("pin_file")).unwrap();
    site.configure(&custody.replace(line, "pin_credential = \"keystead-pin\""), "");
    let credentials = site.path().join("credentials");
    // The service manager makes folder and file at each start.
    let write = |pin: &str| {
        let _ = fs::remove_dir_all(&credentials);
        fs::create_dir(&credentials).unwrap();
        fs::write(credentials.join("keystead-pin"), pin).unwrap();
        fs::set_permissions(credentials.join("keystead-pin"), fs::Permissions::from_mode(0o400)).unwrap();
    };
    wrong_pins_cost_one_try_each(&site, &write, &[("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap())]).await;
}

async fn wrong_pins_cost_one_try_each(site: &Site, write: &dyn Fn(&str), environment: &[(&str, &str)]) {
    let right = fs::read_to_string(site.token.pin_file()).unwrap();
    // The second start has the first one's PIN again; so has the last, after another one in between.
    for pin in ["00000000", "00000000", "00000001", "00000000"] {
        write(pin);
        let daemon = site.spawn(environment);
        daemon.until("pin rejected", |status| status.custody.clone().unwrap_or_default().state == "pin-rejected").await;
        daemon.kill_role("custodian", rustix::process::Signal::KILL);
        daemon
            .until("still rejected by the next custodian", |status| {
                let custody = status.custody.clone().unwrap_or_default();
                custody.restarts > 0 && custody.state == "pin-rejected"
            })
            .await;
        assert_eq!(crate::clients::kms_code(site).await, tonic::Code::Unavailable);
        assert!(daemon.stop().success());
    }
    // SoftHSM shows a count that is low after the first failure and never the number; the log counts the tries.
    let tries = || fs::read_to_string(site.path().join("log")).unwrap().matches("login was rejected").count();
    assert_eq!(tries(), 2, "one for each PIN");
    let note = fs::read_to_string(site.path().join("store/pin-rejected")).unwrap();
    assert!(!note.contains("0000000"), "{note}");
    // The right PIN mends it with no further word, and voids the note.
    write(right.trim());
    let mut daemon = site.spawn(environment);
    daemon.until_serving().await;
    assert_eq!(tries(), 2);
    assert!(!site.path().join("store/pin-rejected").exists());
}

/// A service manager must not hold up the whole boot for what only a person can mend.
#[tokio::test]
async fn what_only_a_person_can_mend_does_not_hold_up_what_starts_after_the_daemon() {
    let site = Site::initialized("");
    let right = fs::read_to_string(site.token.pin_file()).unwrap();
    let socket = site.path().join("notify");
    let notifications = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    notifications.set_read_timeout(Some(crate::daemon::DEADLINE)).unwrap();
    let ready = |state: &str| {
        let daemon = site.spawn(&[("NOTIFY_SOCKET", socket.to_str().unwrap())]);
        let mut said = [0; 4096];
        loop {
            let length = notifications.recv(&mut said).expect("the daemon tells the service manager");
            if String::from_utf8_lossy(&said[..length]).lines().any(|line| line == "READY=1") {
                break;
            }
        }
        // Said when its patience has ended.
        let log = daemon.log();
        assert!(!log.contains("custody takes its time") && log.contains(&format!("\"{state}\"")), "{state}: {log}");
        assert!(daemon.stop().success());
        // What else it said on its way out is not the next one's.
        notifications.set_nonblocking(true).unwrap();
        while notifications.recv(&mut said).is_ok() {}
        notifications.set_nonblocking(false).unwrap();
    };
    fs::write(site.token.pin_file(), "00000000").unwrap();
    ready("pin-rejected");
    fs::write(site.token.pin_file(), right).unwrap();
    let tokens = site.token.folder.join("tokens");
    fs::rename(&tokens, site.token.folder.join("aside")).unwrap();
    fs::create_dir(&tokens).unwrap();
    ready("token-missing");
}

#[test]
fn a_module_that_is_none_is_named() {
    let site = Site::bare("");
    for (module, word) in [("/nonexistent/module.so", "/nonexistent/module.so"), ("/bin/true", "/bin/true")] {
        site.configure(&format!("{}module = \"{module}\"\n", site.token.custody("keystead")), "");
        let error = site.keystead(["init", "--no-recovery"]).expect_failure(1);
        assert!(error.contains(word) && error.contains("next: set custody.module"), "{error}");
    }
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_a_suggestion() {
    let site = Site::bare("");
    let config = fs::read_to_string(site.config()).unwrap().replace("token_label", "token_lable");
    let line = 1 + config.lines().position(|line| line.starts_with("token_lable")).unwrap();
    fs::write(site.config(), config).unwrap();
    for command in [["config", "check"], ["serve", "--output=text"]] {
        let error = site.keystead(command).expect_failure(2);
        assert!(error.contains(&format!("{line}")) && error.contains("token_label"), "{error}");
    }
}

#[test]
fn a_read_only_state_folder_and_a_loose_pin_file_are_named() {
    let site = Site::bare("");
    fs::set_permissions(site.token.pin_file(), fs::Permissions::from_mode(0o644)).unwrap();
    let error = site.keystead(["init", "--no-recovery"]).expect_failure(1);
    assert!(error.contains("PIN") && error.contains("next: "), "{error}");
    fs::set_permissions(site.token.pin_file(), fs::Permissions::from_mode(0o600)).unwrap();
    // A file where the folder should be: refused as root too, whom no mode stops.
    fs::remove_dir_all(site.path().join("store")).unwrap();
    fs::write(site.path().join("store"), "").unwrap();
    let error = site.keystead(["init", "--no-recovery"]).expect_failure(1);
    assert!(error.contains("store") && error.contains("next: "), "{error}");
}

#[test]
fn init_and_config_check_agree_on_the_store_folder_s_mode() {
    let site = Site::bare("");
    let store = site.path().join("store");
    fs::create_dir_all(&store).unwrap();
    fs::set_permissions(&store, fs::Permissions::from_mode(0o777)).unwrap();
    site.keystead(["config", "check"]).expect_failure(2);
    let error = site.keystead(["init", "--no-recovery"]).expect_failure(1);
    assert!(error.contains("others") && error.contains("next: `chmod 0700"), "{error}");
    fs::set_permissions(&store, fs::Permissions::from_mode(0o755)).unwrap();
    let said = site.keystead(["config", "check"]).expect_success();
    assert!(said.contains("note: store.path"), "{said}");
    site.keystead(["init", "--no-recovery"]).expect_success();
}

#[test]
fn init_that_cannot_be_done_twice_says_what_to_do_instead() {
    let site = Site::initialized("");
    let error = site.keystead(["init", "--no-recovery"]).expect_failure(1);
    assert!(error.contains("next: `keystead serve`"), "{error}");
    fs::remove_file(site.store_file()).unwrap();
    let error = site.keystead(["init", "--no-recovery"]).expect_failure(1);
    assert!(error.contains("next: look for the store first"), "{error}");
}
