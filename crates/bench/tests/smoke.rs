//! The benchmark itself works: it measures, reports and leaves nothing running. No test here looks at a speed.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);

fn calibration(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keystead-bench"));
    command.args(["run", "--calibrate", "--quick"]).env("TMPDIR", dir);
    command
}

/// Processes with `path` in their command line.
fn processes_of(path: &Path) -> Vec<String> {
    let path = path.to_str().unwrap();
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(path))
        .collect()
}

#[test]
fn calibration_reports_every_call_at_every_concurrency_and_cleans_up() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("bench.json");
    let output = calibration(dir.path()).arg("--json").arg(&json).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let cells = report["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 9);
    for cell in cells {
        for server in ["echo", "keystead"] {
            let samples = cell[server].as_array().unwrap();
            assert_eq!(samples.len(), 2);
            assert!(samples.iter().all(|sample| sample["requests"].as_u64().unwrap() > 0));
        }
    }
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().filter(|line| line.starts_with('|')).all(|line| line.chars().count() <= 100));

    std::fs::remove_file(&json).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something was left behind");
    assert_eq!(processes_of(dir.path()), Vec::<String>::new());
}

#[test]
fn interrupted_run_stops_what_it_started() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = calibration(dir.path()).args(["--seconds", "60"]).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while processes_of(dir.path()).len() < 2 {
        assert!(begun.elapsed() < LIMIT, "the servers did not come up");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = rustix::process::Pid::from_raw(i32::try_from(run.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();

    assert!(!run.wait().unwrap().success());
    assert_eq!(processes_of(dir.path()), Vec::<String>::new());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something was left behind");
}

#[test]
fn missing_daemon_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_keystead-bench"))
        .args(["run", "--quick", "--keystead", "/nonexistent/keystead"])
        .env("TMPDIR", dir.path())
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent/keystead"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
