//! Standard error, which may be a pipe whose reader hangs: the journal of a machine whose disk does, a pager. What it does not
//! take is dropped, counted and told later: whoever logs may be about to refuse a revoked key, and must not wait.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// How long a line waits for a reader that is merely slow. Not again until he has taken one.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// A pipe that can take anything can take so much at once (POSIX: PIPE_BUF).
const CHUNK: usize = 4096;

/// Writes lines to `F`, or not. One at a time: what is free for one is not free for two.
pub struct Lossy<F> {
    to: F,
    dropped: Mutex<u64>,
}

/// For one line.
pub struct Line<'a, F>(&'a Lossy<F>);

impl<F> Lossy<F> {
    pub fn new(to: F) -> Self {
        Self { to, dropped: Mutex::new(0) }
    }
}

impl<'a, F: AsFd + 'a> MakeWriter<'a> for Lossy<F> {
    type Writer = Line<'a, F>;

    fn make_writer(&'a self) -> Self::Writer {
        Line(self)
    }
}

impl<F: AsFd> Write for Line<'_, F> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut dropped = self.0.dropped.lock().unwrap_or_else(PoisonError::into_inner);
        let to = self.0.to.as_fd();
        let patience = if *dropped == 0 { PATIENCE } else { Timespec::default() };
        if !takes(to, &patience) {
            *dropped += 1;
            return Ok(line.len());
        }
        let whole = match *dropped {
            0 => put(to, line)?,
            // At once: there may be room for one write.
            missed => put(to, &[told(missed, line.starts_with(b"{")).as_bytes(), line].concat())?,
        };
        *dropped = u64::from(!whole);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What has begun is finished, if its reader goes on taking it; whether he did.
fn put(to: BorrowedFd<'_>, mut rest: &[u8]) -> io::Result<bool> {
    while !rest.is_empty() {
        if !takes(to, &PATIENCE) {
            return Ok(false);
        }
        match rustix::io::write(to, &rest[..rest.len().min(CHUNK)]) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

fn takes(to: BorrowedFd<'_>, patience: &Timespec) -> bool {
    let mut polled = [PollFd::new(&to, PollFlags::OUT)];
    // One that has hung up is written to, which says so; and so is one of which nothing is known.
    poll(&mut polled, Some(patience)) != Ok(0)
}

/// In the style of the lines around it.
fn told(dropped: u64, json: bool) -> String {
    let mut time = String::new();
    let _ = SystemTime.format_time(&mut format::Writer::new(&mut time));
    let mut line = String::new();
    let _ = match json {
        true => writeln!(
            line,
            r#"{{"timestamp":"{time}","level":"WARN","message":"log lines were dropped: nobody took them","lines":{dropped},"target":"{}"}}"#,
            module_path!()
        ),
        false => {
            writeln!(line, "{time}  WARN {}: log lines were dropped: nobody took them lines={dropped}", module_path!())
        }
    };
    line
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::time::{Duration, Instant};

    use super::*;

    /// The smallest that there is.
    fn pipe() -> (std::fs::File, Lossy<OwnedFd>) {
        let (read, write) = rustix::pipe::pipe().unwrap();
        rustix::pipe::fcntl_setpipe_size(&write, CHUNK).unwrap();
        (read.into(), Lossy::new(write))
    }

    fn log(to: &Lossy<OwnedFd>, line: &str) {
        to.make_writer().write_all(line.as_bytes()).unwrap();
    }

    #[test]
    fn reader_that_hangs_costs_a_moment_once_and_is_told_what_he_missed() {
        for (line, style) in [("{\"message\":\"a\"}\n", "\"lines\":"), ("plain\n", "lines=")] {
            let (mut read, to) = pipe();
            let begun = Instant::now();
            for _ in 0..2000 {
                log(&to, line);
            }
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
            let mut taken = vec![0; CHUNK];
            let length = read.read(&mut taken).unwrap();
            let before = String::from_utf8(taken[..length].to_vec()).unwrap();
            assert!(before.lines().all(|each| each == line.trim_end()), "{before}");
            log(&to, line);
            drop(to);
            let mut after = String::new();
            read.read_to_string(&mut after).unwrap();
            let (told, rest) = after.split_once('\n').unwrap();
            let missed = 2000 - before.lines().count();
            assert!(told.contains("were dropped") && told.contains(&format!("{style}{missed}")), "{told}, {missed}");
            assert_eq!(rest, line);
            if line.starts_with('{') {
                let told: serde_json::Value = serde_json::from_str(told).unwrap();
                assert!(told["timestamp"].is_string() && told["lines"] == missed, "{told}");
            }
        }
    }

    #[test]
    fn lines_longer_than_a_pipe_reach_a_reader_who_reads_whole() {
        let (mut read, to) = pipe();
        let long = format!("{}\n", "x".repeat(5 * CHUNK));
        let reading = std::thread::spawn(move || {
            let mut all = String::new();
            read.read_to_string(&mut all).map(|_| all)
        });
        log(&to, &long);
        drop(to);
        assert!(reading.join().unwrap().unwrap() == long);
    }

    #[test]
    fn reader_who_has_gone_is_an_error_and_no_wait() {
        let (read, to) = pipe();
        drop(read);
        assert_eq!(to.make_writer().write(b"a\n").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
