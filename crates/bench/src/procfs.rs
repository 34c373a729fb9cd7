//! What the kernel says of a process: CPU time, memory, children. Read from `/proc`, where these stay readable for a
//! process that is not dumpable, to any user (its `smaps_rollup` does not).

use std::path::PathBuf;
use std::time::Duration;

use crate::failure::{Failure, FailureExt};

/// A process by its id; not owned, and it may be gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pid(pub u32);

/// Resident memory in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    pub resident: u64,
    /// The part that is this process's own, not pages of files it has mapped.
    pub anonymous: u64,
}

/// One of the three processes of a running daemon.
#[derive(Debug, Clone, Copy)]
pub struct DaemonPids {
    pub supervisor: Pid,
    pub server: Pid,
    pub custodian: Pid,
}

impl Pid {
    fn path(self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.0))
    }

    fn read(self, name: &str) -> Result<String, Failure> {
        let path = self.path(name);
        std::fs::read_to_string(&path).doing(|| format!("read {}", path.display()))
    }

    /// User and system time of all threads that live, in nanoseconds' resolution; where the kernel has no schedstat, of
    /// all threads ever, in clock ticks of 10 ms.
    pub fn cpu_time(self) -> Result<Duration, Failure> {
        match self.schedstat() {
            Some(time) => Ok(time),
            None => parse_stat(&self.read("stat")?)
                .ok_or_else(|| Failure::Unusable(format!("/proc/{}/stat is not as proc(5) says", self.0))),
        }
    }

    fn schedstat(self) -> Option<Duration> {
        let mut total = 0;
        for task in std::fs::read_dir(self.path("task")).ok()? {
            // A thread that ends meanwhile counts as nothing.
            let Ok(text) = std::fs::read_to_string(task.ok()?.path().join("schedstat")) else { continue };
            total += text.split_whitespace().next()?.parse::<u64>().ok()?;
        }
        (total > 0).then(|| Duration::from_nanos(total))
    }

    pub fn memory(self) -> Result<Memory, Failure> {
        let status = self.read("status")?;
        let bytes = |field| {
            parse_kilobytes(&status, field)
                .ok_or_else(|| Failure::Unusable(format!("/proc/{}/status has no {field}", self.0)))
        };
        Ok(Memory { resident: bytes("VmRSS")?, anonymous: bytes("RssAnon")? })
    }

    pub fn threads(self) -> usize {
        std::fs::read_dir(self.path("task")).map_or(0, Iterator::count)
    }

    fn arguments(self) -> Vec<String> {
        let line = std::fs::read(self.path("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
    }

    fn children(self) -> Vec<Self> {
        let Ok(tasks) = std::fs::read_dir(self.path("task")) else { return Vec::new() };
        tasks
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok())
            .flat_map(|text| text.split_whitespace().filter_map(|id| id.parse().ok().map(Self)).collect::<Vec<_>>())
            .collect()
    }
}

impl DaemonPids {
    /// Finds the two children of `supervisor` by the subcommand that stands in their command lines.
    pub fn of(supervisor: Pid) -> Result<Self, Failure> {
        let children = supervisor.children();
        let role = |name: &str| {
            children
                .iter()
                .copied()
                .find(|child| child.arguments().iter().skip(1).any(|argument| argument == name))
                .ok_or_else(|| Failure::Unusable(format!("process {} has no child `{name}`", supervisor.0)))
        };
        Ok(Self { supervisor, server: role("server")?, custodian: role("custodian")? })
    }
}

/// CPU time that all processes of this machine have had, in ticks of 10 ms; on a virtual machine also what its host
/// withheld.
pub fn machine_cpu_time() -> Result<Duration, Failure> {
    let text = std::fs::read_to_string("/proc/stat").doing(|| "read /proc/stat".into())?;
    parse_machine_stat(&text).ok_or_else(|| Failure::Unusable("/proc/stat is not as proc(5) says".into()))
}

/// Of the first line, all fields but idle and iowait; guests' time is part of user's.
fn parse_machine_stat(text: &str) -> Option<Duration> {
    let fields = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let ticks: Vec<u64> = fields.map(|field| field.parse().ok()).collect::<Option<_>>()?;
    let busy = ticks.iter().take(8).enumerate().filter(|(index, _)| !matches!(index, 3 | 4)).map(|(_, ticks)| ticks);
    Some(Duration::from_millis(busy.sum::<u64>() * 10))
}

/// `utime + stime` of a `/proc/<pid>/stat` line. Linux has used 100 ticks a second on every architecture for decades.
fn parse_stat(line: &str) -> Option<Duration> {
    // The name in the second field may hold anything, a `)` too.
    let after_name = &line[line.rfind(')')? + 1..];
    let mut fields = after_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis((user + system) * 10))
}

fn parse_kilobytes(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_line_whose_name_holds_blanks_and_brackets_is_read() {
        let line = "42 (a b) c)) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 3 0 100 1 1";
        assert_eq!(parse_stat(line), Some(Duration::from_secs(2)));
        assert_eq!(parse_stat("42 (a) S 1"), None);
    }

    #[test]
    fn machine_time_leaves_out_idle_iowait_and_guests() {
        let text = "cpu  1 2 4 1000 1000 8 16 32 1000 1000\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(parse_machine_stat(text), Some(Duration::from_millis(630)));
        assert_eq!(parse_machine_stat("intr 1"), None);
    }

    #[test]
    fn memory_fields_are_told_apart_by_their_whole_name() {
        let status = "Name:\tx\nVmRSS:\t    2048 kB\nRssAnon:\t     512 kB\n";
        assert_eq!(parse_kilobytes(status, "VmRSS"), Some(2048 * 1024));
        assert_eq!(parse_kilobytes(status, "RssAnon"), Some(512 * 1024));
        assert_eq!(parse_kilobytes(status, "Rss"), None);
    }

    #[test]
    fn own_process_can_be_measured() {
        let own = Pid(std::process::id());
        assert!(own.memory().unwrap().resident > 0);
        assert!(own.threads() >= 1);
        own.cpu_time().unwrap();
    }
}
