//! Server and custodian under users of their own: what the kernel then keeps apart by itself, and that every command of root's
//! leaves files that the daemon can use. Changing users takes root; without, these tests say so and end.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Signal};

use crate::daemon::{Finished, Site, decrypt, encrypt, until_gone};

/// No accounts: numbers that nobody has.
const SERVER: u32 = 54_001;
const CUSTODIAN: u32 = 54_002;
const USERS: &str = "[process]\nserver_user = 54001\ncustodian_user = 54002\n";
/// The users alone keep them apart.
const NO_SANDBOX: &str = "[sandbox]\nlandlock = false\nseccomp = false\n";

/// A site with a token that is the custodian's, in a folder that both can enter; `None` when users cannot be changed.
fn site(extra: &str) -> Option<Site> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: only root can give server and custodian users of their own");
        return None;
    }
    let site = Site::bare(&format!("{USERS}{extra}"));
    fs::set_permissions(site.path(), fs::Permissions::from_mode(0o711)).unwrap();
    own(&site.token.folder, CUSTODIAN);
    Some(site)
}

fn own(path: &Path, uid: u32) {
    chown(path, Some(uid), Some(uid)).unwrap();
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| own(&entry.unwrap().path(), uid));
    }
}

/// Real, effective, saved and file-system user, the same for groups, and whatever else /proc says.
fn proc_status(pid: Pid, line: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|text| text.strip_prefix(line)).unwrap_or_else(|| panic!("no {line}")).trim().to_owned()
}

/// Whether that user can open the file.
fn can_read(uid: u32, file: &Path) -> bool {
    Command::new("cat").arg(file).uid(uid).gid(uid).output().unwrap().status.success()
}

#[tokio::test]
async fn each_process_has_its_user_and_nothing_of_the_other_s() {
    let Some(site) = site(NO_SANDBOX) else { return };
    site.keystead(["init", "--no-recovery"]).expect_success();
    let daemon = site.serve().await;
    let status = daemon.status().await;
    let sandbox = status.sandbox.unwrap();
    assert!(!sandbox.landlock && !sandbox.server_can_read_pin, "the user alone must keep it from the PIN: {sandbox:?}");
    assert!(sandbox.no_new_privs && !sandbox.dumpable, "{sandbox:?}");
    let custodian = status.custody.unwrap().process.expect("the custodian says who it is");
    assert_eq!([sandbox.uid, custodian.uid], [SERVER, CUSTODIAN]);
    assert!(custodian.no_new_privs && !custodian.dumpable && !custodian.system_calls_filtered, "{custodian:?}");
    for (role, uid) in [("server", SERVER), ("custodian", CUSTODIAN)] {
        let pid = daemon.role(role).unwrap();
        assert_eq!(proc_status(pid, "Uid:"), vec![uid.to_string(); 4].join("\t"), "{role}");
        assert_eq!(proc_status(pid, "Gid:"), vec![uid.to_string(); 4].join("\t"), "{role}");
        assert_eq!(proc_status(pid, "Groups:"), "", "{role}");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(u64::from_str_radix(&proc_status(pid, set), 16), Ok(0), "{role} {set}");
        }
    }
    let text = String::from_utf8(site.keystead(["status"]).stdout).unwrap();
    assert!(text.contains("user 54001, Landlock OFF") && text.contains("user 54002, system calls NOT"), "{text}");

    let notes = site.path().join("store-custodian");
    assert_eq!(fs::metadata(site.path().join("store")).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(fs::metadata(&notes).unwrap().uid(), CUSTODIAN);
    assert!(can_read(SERVER, &site.store_file()) && !can_read(CUSTODIAN, &site.store_file()));
    assert!(can_read(CUSTODIAN, &site.token.pin_file()) && !can_read(SERVER, &site.token.pin_file()));

    // The whole life: rotation, a custodian and a server killed, an end in order.
    let mut kms = daemon.kms().await;
    let before = encrypt(&mut kms, b"before").await;
    site.keystead(["key", "rotate", "--yes"]).expect_success();
    site.keystead(["custodian", "restart"]).expect_success();
    let killed = daemon.kill_role("server", Signal::KILL);
    until_gone(killed);
    daemon.until("online again", |status| status.availability == "online").await;
    assert_eq!(decrypt(&mut daemon.kms().await, &before).await.unwrap(), b"before");
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn children_of_other_users_die_with_the_supervisor_and_are_killed_by_it() {
    let Some(site) = site("") else { return };
    site.keystead(["init", "--no-recovery"]).expect_success();
    let daemon = site.serve().await;
    let sandbox = daemon.status().await.sandbox.unwrap();
    assert!(sandbox.landlock && sandbox.system_calls_filtered && sandbox.keys_locked, "{sandbox:?}");
    // One that hangs does not end by itself: it takes a signal to another user's process.
    let hung = daemon.kill_role("server", Signal::STOP);
    until_gone(hung);
    daemon.until("online again", |status| status.availability == "online").await;
    // A change of user makes the kernel forget the parent-death signal.
    let hung = daemon.kill_role("custodian", Signal::STOP);
    let server = daemon.role("server").unwrap();
    daemon.kill();
    until_gone(hung);
    until_gone(server);
}

#[tokio::test]
async fn files_of_every_command_are_the_daemon_s() {
    let Some(site) = site("") else { return };
    site.keystead(["init", "--no-recovery"]).expect_success();
    site.keystead(["init", "--no-recovery", "--if-needed"]).expect_success();
    site.keystead(["token", "list"]).expect_success();
    let daemon = site.serve().await;
    // The store is in use: the running daemon is asked instead, as root.
    site.keystead(["init", "--no-recovery", "--if-needed"]).expect_success();
    let encrypted = encrypt(&mut daemon.kms().await, b"before").await;
    let at = |name: &str| site.path().join(name).display().to_string();
    let (private, public, rescue) = (at("private.pem"), at("public.pem"), at("rescue"));
    site.keystead(["recovery", "keygen", "--out", &private, "--public-out", &public]).expect_success();
    site.keystead(["roots", "rescue", "--to", &public, "--out", &rescue]).expect_success();
    assert!(daemon.stop().success());
    let from = ["recover", "--rescue", &rescue, "--private", &private, "--no-recovery", "--replace-store"];
    site.keystead(from).expect_success();
    let folder = site.path().join("store");
    let owners = |folder: &Path| {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().uid()).collect::<Vec<_>>()
    };
    assert!(owners(&folder).iter().all(|uid| *uid == SERVER), "{:?}", owners(&folder));
    assert!(owners(&site.token.folder.join("tokens")).iter().all(|uid| *uid == CUSTODIAN));
    let daemon = site.serve().await;
    assert_eq!(decrypt(&mut daemon.kms().await, &encrypted).await.unwrap(), b"before");
}

#[tokio::test]
async fn folder_of_another_user_is_refused_with_what_to_do() {
    let Some(site) = site("") else { return };
    site.keystead(["init", "--no-recovery"]).expect_success();
    own(&site.path().join("store"), 0);
    for command in [["serve", "--output=text"], ["init", "--no-recovery"]] {
        let error = site.keystead(command).expect_failure(1);
        assert!(error.contains("chown -R 54001:54001") && error.contains("belongs to user 0"), "{error}");
    }
    let checked = site.keystead(["config", "check"]);
    assert_eq!(checked.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&checked.stdout).contains("store.path"), "{checked:?}");
    own(&site.path().join("store"), SERVER);
    own(&site.token.pin_file(), SERVER);
    let checked = String::from_utf8(site.keystead(["config", "check"]).stdout).unwrap();
    assert!(checked.contains("problem: custody.pin_file"), "{checked}");
}

#[test]
fn without_the_right_to_change_users_the_daemon_says_so_at_once() {
    let Some(site) = site("") else { return };
    own(site.path(), SERVER);
    for command in [["serve", "--output=text"], ["init", "--no-recovery"]] {
        let error = site.command(command).uid(SERVER).gid(SERVER).output().unwrap().expect_failure(1);
        assert!(error.contains("54002") && error.contains("CAP_SETUID"), "{error}");
    }
}

/// The server can open neither the configuration nor /etc/passwd: what it gets are numbers.
#[tokio::test]
async fn reload_reaches_a_server_that_can_read_no_file_and_the_trail_s_folder_is_made_for_it() {
    let Some(site) = site("[audit]\npath = \"trail\"\n[roles]\noperator = { uids = [0] }\nauditor = { uids = [0] }\n")
    else {
        return;
    };
    site.keystead(["init", "--no-recovery"]).expect_success();
    let daemon = site.serve().await;
    let trail = fs::metadata(site.path().join("trail")).unwrap();
    assert_eq!((trail.uid(), trail.mode() & 0o7777), (SERVER, 0o700));
    fs::set_permissions(site.config(), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(!can_read(SERVER, &site.config()));
    let text = fs::read_to_string(site.config()).unwrap();
    fs::write(
        site.config(),
        text.replace("operator = { uids = [0] }", "operator = { uids = [\"root\"], gids = [\"root\"] }"),
    )
    .unwrap();
    let said = site.keystead(["reload"]).expect_success();
    assert!(said.contains("roles"), "{said}");
    let recorded = site.keystead(["audit", "query", "--action", "reload", "--output", "json"]).expect_success();
    assert!(recorded.contains("\"done\""), "{recorded}");
    assert!(daemon.stop().success());
}
