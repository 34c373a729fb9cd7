//! The sockets as an operator finds them: modes, strangers, leftovers, activation.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::process::Command;

use rustix::process::Signal;

use crate::daemon::{Finished, Site, encrypt};

#[tokio::test]
async fn sockets_have_the_mode_asked_for_and_go_away_with_the_daemon() {
    let site = Site::initialized("[kms]\nmode = \"0660\"");
    let daemon = site.serve().await;
    let metadata = std::fs::metadata(site.kms_socket()).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
    assert_eq!(std::fs::metadata(site.path().join("run/admin.sock")).unwrap().mode() & 0o777, 0o600);
    assert!(daemon.stop().success());
    assert!(!site.kms_socket().exists());
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_never_stolen() {
    let site = Site::initialized("");
    drop(UnixListener::bind(site.kms_socket()).unwrap());
    assert!(site.kms_socket().exists());
    let daemon = site.serve().await;
    encrypt(&mut daemon.kms().await, b"seed").await;

    let error = site.keystead(["serve"]).expect_failure(1);
    assert!(error.contains("in use"), "{error}");
    encrypt(&mut daemon.kms().await, b"seed").await;
    // After a power cut the sockets are still there.
    daemon.kill();
    assert!(site.kms_socket().exists());
    let daemon = site.serve().await;
    encrypt(&mut daemon.kms().await, b"seed").await;
}

#[tokio::test]
async fn peers_outside_the_allowed_uids_are_denied() {
    let site = Site::initialized("[kms]\nallow_uids = [54321]");
    let daemon = site.spawn(&[]);
    daemon.until("online", |status| status.availability == "online").await;
    assert_eq!(crate::clients::kms_code(&site).await, tonic::Code::PermissionDenied);
}

#[tokio::test]
async fn abstract_and_misplaced_sockets_are_refused() {
    let site = Site::initialized("");
    let config = std::fs::read_to_string(site.config()).unwrap();
    let socket = site.kms_socket().display().to_string();
    std::fs::write(site.config(), config.replace(&socket, "@abstract")).unwrap();
    let error = site.keystead(["serve"]).expect_failure(2);
    assert!(error.contains("abstract"), "{error}");

    let open = site.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    std::fs::write(site.config(), config.replace(&socket, &open.join("kms.sock").display().to_string())).unwrap();
    let error = site.keystead(["serve"]).expect_failure(1);
    assert!(error.contains("writable"), "{error}");

    std::fs::write(site.config(), &config).unwrap();
    std::fs::write(site.kms_socket(), "a file").unwrap();
    let error = site.keystead(["serve"]).expect_failure(1);
    assert!(error.contains("not a stream socket"), "{error}");
    assert_eq!(std::fs::read(site.kms_socket()).unwrap(), b"a file");
}

#[tokio::test]
async fn sockets_from_systemd_are_used_and_left_in_place() {
    let site = Site::initialized("");
    // As systemd does it: listening sockets from descriptor 3 on, named in the environment of the daemon's own pid.
    let kms = UnixListener::bind(site.kms_socket()).unwrap();
    let admin = UnixListener::bind(site.path().join("run/admin.sock")).unwrap();
    let inode = std::fs::metadata(site.kms_socket()).unwrap().ino();
    // bash sets LISTEN_PID to its own pid and becomes the daemon.
    let script = "export LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=kms:admin; exec \"$0\" serve";
    let mut command = Command::new("bash");
    command.args(["-c", script, env!("CARGO_BIN_EXE_keystead")]).env("KEYSTEAD_CONFIG", site.config());
    use command_fds::{CommandFdExt, FdMapping};
    command
        .fd_mappings(vec![
            FdMapping { parent_fd: kms.into(), child_fd: 3 },
            FdMapping { parent_fd: admin.into(), child_fd: 4 },
        ])
        .unwrap();
    let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    drop(command);
    crate::memory::wait_until_async("served", async || crate::clients::kms_code(&site).await == tonic::Code::Ok).await;
    assert_eq!(std::fs::metadata(site.kms_socket()).unwrap().ino(), inode);
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(site.kms_socket().exists(), "systemd's socket was removed");
}
