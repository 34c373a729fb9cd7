//! What the supervisor promises, one case each.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Instant;

use command_fds::{CommandFdExt, FdMapping};
use rustix::process::Signal;

use crate::daemon::{Daemon, Facts, eventually, folder, is_dead, kill, pid};

type Case = (&'static str, fn());

macro_rules! cases {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name as fn())),*] };
}

pub const ALL: &[Case] = cases![
    daemon_starts_serves_and_ends_in_order,
    children_see_what_they_need_and_no_more,
    children_are_hardened_and_the_server_is_confined,
    server_of_the_local_profile_reaches_no_network,
    server_of_the_cloud_profile_reaches_the_cloud_and_still_no_pin,
    killed_custodian_is_replaced_and_the_server_stays,
    custodian_that_crashes_again_and_again_is_replaced_with_patience,
    hung_custodian_is_killed_and_replaced,
    killed_server_is_replaced_and_no_socket_is_lost,
    stopped_server_is_replaced_and_the_watchdog_fed_by_answers_only,
    deaf_custodian_is_killed_at_the_end,
    server_that_cannot_start_ends_the_daemon,
    deaf_server_is_killed_at_the_deadline,
    second_signal_ends_at_once,
    signals_to_the_whole_group_do_not_cut_the_drain,
    reload_signal_is_survived,
    killed_supervisor_takes_its_children_along,
    second_daemon_leaves_the_first_alone,
    daemon_starts_after_a_kill_left_everything_behind,
    sockets_of_the_service_manager_are_served_and_left,
    socket_of_an_unknown_name_is_refused,
];

/// Facts once they fulfil `condition`.
fn facts_when(daemon: &Daemon, what: &str, condition: impl Fn(&Facts) -> bool) -> Facts {
    eventually(what, || Some(daemon.facts()).filter(&condition))
}

fn daemon_starts_serves_and_ends_in_order() {
    let mut daemon = Daemon::start("");
    daemon.notified("STATUS=serving");
    daemon.notified("READY=1");
    let facts = daemon.facts();
    assert_eq!(facts.get("restarts"), "0");
    assert!(facts.get("metrics").contains("127.0.0.1"));
    UnixStream::connect(daemon.path("admin.sock")).unwrap();
    let written = std::fs::read_to_string(daemon.path("keystead.pid")).unwrap();
    assert_eq!(written, format!("{}\n", daemon.supervisor.id()));
    let threads = std::fs::read_dir(format!("/proc/{}/task", daemon.supervisor.id())).unwrap().count();
    assert_eq!(threads, 1);

    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end().code(), Some(0));
    daemon.notified("STOPPING=1");
    assert!(is_dead(facts.pid("server_pid")) && is_dead(facts.pid("custodian_pid")));
    let mut left: Vec<_> =
        std::fs::read_dir(daemon.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["notify.sock", "pin", "store"]);
}

fn children_see_what_they_need_and_no_more() {
    let daemon = Daemon::start("");
    let facts = daemon.facts();
    let seen = |role: &str| {
        let allowed = ["PATH", "LANG", "TZ", "RUST_BACKTRACE"];
        let names = facts.get(&format!("{role}_sees")).split(',').filter(|name| !allowed.contains(name));
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(seen("custodian"), ["CREDENTIALS_DIRECTORY", "MODULE_CONF"]);
    // To try whether it can read the PIN there.
    assert_eq!(seen("server"), ["CREDENTIALS_DIRECTORY"]);
    let server = facts.pid("server_pid");
    // Only root may look into a process that is not dumpable.
    if let Ok(open) = std::fs::read_dir(format!("/proc/{}/fd", facts.pid("custodian_pid"))) {
        let mut open: Vec<_> = open.map(|entry| entry.unwrap().file_name()).collect();
        open.sort();
        assert_eq!(open, ["0", "1", "2", "41"], "the standard streams and the channel; the configuration was read");
    }
    let command = std::fs::read(format!("/proc/{server}/cmdline")).unwrap();
    assert_eq!(command, b"keystead\0server\0");
    daemon.stop();
}

fn children_are_hardened_and_the_server_is_confined() {
    let daemon = Daemon::start("");
    let facts = daemon.facts();
    let report = facts.get("report");
    for expected in ["no_new_privs: true", "dumpable: false", "core_dumps: false", "system_calls: On"] {
        assert!(report.contains(expected), "{report}");
    }
    if !report.contains("Unavailable") {
        assert!(report.contains("pin_reachable: Some(false)"), "{report}");
    }
    for process in [daemon.supervisor.id(), facts.pid("server_pid"), facts.pid("custodian_pid")] {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        let limits = std::fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"]);
    }
    daemon.stop();
}

/// A daemon beside a cloud and another service, and what its server gets at.
fn surroundings(mode: &str) -> (Daemon, Facts) {
    let folder = folder();
    let [cloud, other] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("cloud")).unwrap();
    for name in ["cloud/ca.pem", "cloud/credentials"] {
        std::fs::write(at(name), "x").unwrap();
    }
    for (name, listener) in [("cloud-port", &cloud), ("other-port", &other)] {
        let port = listener.local_addr().unwrap().port().to_string();
        std::fs::write(at(name), &port).unwrap();
        std::fs::write(at("store").join(name), &port).unwrap();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("supervise").arg(folder.path()).arg(mode);
    let daemon = Daemon::start_by(command, folder);
    let facts = daemon.facts();
    (daemon, facts)
}

fn server_of_the_local_profile_reaches_no_network() {
    let (daemon, facts) = surroundings("");
    if facts.get("report").contains("Full") {
        for what in ["reaches_cloud", "reaches_elsewhere", "resolves", "reads_ca", "reads_credentials", "reads_pin"] {
            assert_eq!(facts.get(what), "false", "{what}");
        }
    }
    daemon.stop();
}

fn server_of_the_cloud_profile_reaches_the_cloud_and_still_no_pin() {
    let (daemon, facts) = surroundings("cloud");
    assert!(facts.get("report").contains("system_calls: On"), "{}", facts.0);
    if facts.get("report").contains("Full") {
        for what in ["reaches_cloud", "resolves", "reads_ca", "reads_credentials"] {
            assert_eq!(facts.get(what), "true", "{what}");
        }
        for what in ["reaches_elsewhere", "reads_pin", "reads_accounts", "starts_programs"] {
            assert_eq!(facts.get(what), "false", "{what}");
        }
        assert!(facts.get("report").contains("pin_reachable: Some(false)"), "{}", facts.0);
    }
    daemon.stop();
}

fn killed_custodian_is_replaced_and_the_server_stays() {
    let daemon = Daemon::start("");
    let before = daemon.facts();
    kill(before.pid("custodian_pid"));
    let after = facts_when(&daemon, "another custodian", |facts| {
        facts.get("restarts") == "1" && facts.get("custodian_pid") != before.get("custodian_pid")
    });
    assert_eq!(after.get("server_pid"), before.get("server_pid"));
    daemon.stop();
}

fn custodian_that_crashes_again_and_again_is_replaced_with_patience() {
    let daemon = Daemon::start("");
    let started = Instant::now();
    let mut former = String::new();
    for restarts in 0..4 {
        let facts = facts_when(&daemon, "the next custodian", |facts| {
            facts.get("restarts") == restarts.to_string() && facts.get("custodian_pid") != former
        });
        former = facts.get("custodian_pid").to_owned();
        kill(facts.pid("custodian_pid"));
    }
    // 100, 200 and 400 ms were waited for the second, third and fourth.
    assert!(started.elapsed().as_millis() >= 700);
    daemon.stop();
}

fn hung_custodian_is_killed_and_replaced() {
    let daemon = Daemon::start("deaf custodian");
    let before = daemon.facts();
    daemon.ask("h").unwrap();
    let after = facts_when(&daemon, "another custodian", |facts| {
        facts.get("restarts") == "1" && facts.get("custodian_pid") != before.get("custodian_pid")
    });
    assert!(is_dead(before.pid("custodian_pid")));
    assert_eq!(after.get("server_pid"), before.get("server_pid"));
}

fn killed_server_is_replaced_and_no_socket_is_lost() {
    let daemon = Daemon::start("");
    let before = daemon.facts();
    kill(before.pid("server_pid"));
    // The supervisor listens, too: whoever connects now waits for the next server.
    eventually("the server to die", || is_dead(before.pid("server_pid")).then_some(()));
    let patient = daemon.ask("f");
    assert!(patient.is_some());
    let after = facts_when(&daemon, "another server", |facts| facts.get("server_pid") != before.get("server_pid"));
    assert_ne!(after.get("custodian_pid"), before.get("custodian_pid"));
    assert_eq!(after.get("metrics"), before.get("metrics"));
    daemon.stop();
}

/// The watchdog's time is short, so that the test is.
fn stopped_server_is_replaced_and_the_watchdog_fed_by_answers_only() {
    let folder = folder();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("supervise").arg(folder.path()).arg("").env("WATCHDOG_USEC", "1500000");
    let daemon = Daemon::start_by(command, folder);
    let before = daemon.facts();
    for _ in 0..2 {
        daemon.notified("WATCHDOG=1");
    }
    rustix::process::kill_process(pid(before.pid("server_pid")), Signal::STOP).unwrap();
    let after = facts_when(&daemon, "another server", |facts| facts.get("server_pid") != before.get("server_pid"));
    assert!(is_dead(before.pid("server_pid")));
    assert_eq!(after.get("metrics"), before.get("metrics"), "no socket was lost");
    daemon.notified("WATCHDOG=1");
    daemon.stop();
}

fn deaf_custodian_is_killed_at_the_end() {
    let mut daemon = Daemon::start("deaf custodian");
    let custodian = daemon.facts().pid("custodian_pid");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end().code(), Some(0));
    assert!(is_dead(custodian));
}

fn server_that_cannot_start_ends_the_daemon() {
    let mut daemon = Daemon::start("cannot start");
    assert_eq!(daemon.end().code(), Some(78));
    assert!(!daemon.path("kms.sock").exists() && !daemon.path("keystead.pid").exists());
}

fn deaf_server_is_killed_at_the_deadline() {
    let mut daemon = Daemon::start("deaf server");
    let server = daemon.facts().pid("server_pid");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end().code(), Some(1));
    assert!(is_dead(server) && !daemon.path("kms.sock").exists());
}

fn second_signal_ends_at_once() {
    let mut daemon = Daemon::start("deaf server");
    daemon.facts();
    let told = Instant::now();
    daemon.signal(Signal::TERM);
    daemon.notified("STOPPING=1");
    daemon.signal(Signal::INT);
    assert_eq!(daemon.end().code(), Some(1));
    assert!(told.elapsed() < crate::children::DRAIN_TIMEOUT * 5, "long before the deadline of 2.2 s");
}

fn signals_to_the_whole_group_do_not_cut_the_drain() {
    let mut daemon = Daemon::start("");
    let facts = daemon.facts();
    for child in ["server_pid", "custodian_pid"] {
        for signal in [Signal::TERM, Signal::INT] {
            rustix::process::kill_process(pid(facts.pid(child)), signal).unwrap();
        }
    }
    let still = daemon.facts();
    assert_eq!(still.get("server_pid"), facts.get("server_pid"));
    assert_eq!(still.get("custodian_pid"), facts.get("custodian_pid"));
    daemon.signal(Signal::INT);
    assert_eq!(daemon.end().code(), Some(0));
}

fn reload_signal_is_survived() {
    let daemon = Daemon::start("");
    let before = daemon.facts();
    daemon.signal(Signal::HUP);
    assert_eq!(daemon.facts().get("server_pid"), before.get("server_pid"));
    daemon.stop();
}

fn killed_supervisor_takes_its_children_along() {
    let mut daemon = Daemon::start("deaf custodian");
    let facts = daemon.facts();
    daemon.signal(Signal::KILL);
    daemon.end();
    eventually("the children to die", || {
        (is_dead(facts.pid("server_pid")) && is_dead(facts.pid("custodian_pid"))).then_some(())
    });
}

fn second_daemon_leaves_the_first_alone() {
    let daemon = Daemon::start("");
    let before = daemon.facts();
    let mut second = Command::new(std::env::current_exe().unwrap());
    let status = second.arg("supervise").arg(daemon.folder.path()).arg("").status().unwrap();
    assert_eq!(status.code(), Some(99));
    assert_eq!(daemon.facts().get("server_pid"), before.get("server_pid"));
    assert!(daemon.path("keystead.pid").exists());
    daemon.stop();
}

fn daemon_starts_after_a_kill_left_everything_behind() {
    let mut first = Daemon::start("");
    first.facts();
    first.signal(Signal::KILL);
    first.end();
    assert!(first.path("kms.sock").exists() && first.path("keystead.pid").exists());
    std::fs::remove_file(first.path("notify.sock")).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("supervise").arg(first.folder.path()).arg("");
    let folder = std::mem::replace(&mut first.folder, folder());
    let second = Daemon::start_by(command, folder);
    second.facts();
    second.stop();
}

/// As a service manager does: descriptors from 3 on, and the process ID of whoever reads it.
fn activated(folder: &tempfile::TempDir, names: &str, sockets: Vec<OwnedFd>) -> Command {
    let mut command = Command::new("/bin/sh");
    command.arg0("sh").arg("-c").arg(r#"LISTEN_PID=$$ exec "$0" "$@""#).arg(std::env::current_exe().unwrap());
    command.arg("supervise").arg(folder.path()).arg("");
    command.env("LISTEN_FDS", sockets.len().to_string()).env("LISTEN_FDNAMES", names);
    let mappings = sockets.into_iter().zip(3..).map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
    command.fd_mappings(mappings.collect()).unwrap();
    command
}

fn sockets_of_the_service_manager_are_served_and_left() {
    let folder = folder();
    let kms = UnixListener::bind(folder.path().join("kms.sock")).unwrap();
    let command = activated(&folder, "kms", vec![kms.try_clone().unwrap().into()]);
    let mut daemon = Daemon::start_by(command, folder);
    daemon.facts();
    assert!(daemon.path("admin.sock").exists(), "the one that was not passed is bound");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end().code(), Some(0));
    assert!(daemon.path("kms.sock").exists() && !daemon.path("admin.sock").exists());
    drop(kms);
}

fn socket_of_an_unknown_name_is_refused() {
    let folder = folder();
    let socket = UnixListener::bind(folder.path().join("other.sock")).unwrap();
    let command = activated(&folder, "other", vec![socket.into()]);
    let mut daemon = Daemon::start_by(command, folder);
    assert_eq!(daemon.end().code(), Some(99));
}
