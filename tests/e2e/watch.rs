//! `keystead status --watch`, while its daemon comes and goes.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::daemon::{DEADLINE, Site};

/// The running command, and its lines as they come.
struct Watch {
    child: Child,
    lines: Receiver<String>,
}

impl Watch {
    fn start(site: &Site, format: &str) -> Self {
        let mut command = site.command(["status", "--watch", "--interval", "100ms", "--output", format]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = read(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// Waits for a line that is as wanted.
    fn until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|_| panic!("never {what}"));
            if wanted(&line) {
                return line;
            }
        }
    }

    fn interrupt(mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        self.child.wait().unwrap().code()
    }
}

fn read(stdout: ChildStdout) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    lines
}

#[tokio::test]
async fn daemon_that_goes_away_is_said_and_waited_for() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let json = Watch::start(&site, "json");
    let text = Watch::start(&site, "text");
    let online = |line: &str| serde_json::from_str::<Value>(line).unwrap()["availability"] == "online";
    for _ in 0..2 {
        json.until("online", online);
        text.until("online", |line| line.starts_with("Availability") && line.ends_with("online"));
    }
    assert!(daemon.stop().success());
    let gone = json.until("gone", |line| !serde_json::from_str::<Value>(line).unwrap()["error"].is_null());
    assert_eq!(serde_json::from_str::<Value>(&gone).unwrap()["error"]["exit_code"], 3, "{gone}");
    text.until("gone", |line| line == "It is tried again until this is interrupted.");
    let daemon = site.serve().await;
    json.until("online again", online);
    text.until("online again", |line| line.starts_with("Availability"));
    assert_eq!((json.interrupt(), text.interrupt()), (Some(0), Some(0)));
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn it_ends_when_nobody_reads_any_more() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let mut command = site.command(["status", "--watch", "--interval", "100ms"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let deadline = Instant::now() + DEADLINE;
    let ended = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "it goes on for nobody");
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    assert!(ended.success(), "{ended}");
    assert!(daemon.stop().success());
}
