//! `keystead status --watch`: the status again and again, until SIGINT. A daemon that goes away is said and waited for.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::connection::runtime;
use crate::cli::exit::{Exit, Failure};
use crate::cli::report::{Format, Report};

#[derive(Debug, Args)]
pub struct Arguments {
    /// Show it again and again until interrupted: redrawn on a terminal; with --output json one document a line
    #[arg(long, short)]
    watch: bool,
    /// How often with --watch, as 500ms, 2s or 1m
    #[arg(long, value_name = "SPAN", value_parser = interval, default_value = "2s", requires = "watch")]
    interval: Duration,
}

const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(24 * 3600);

impl Arguments {
    pub fn watches(&self) -> bool {
        self.watch
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    let wrong = || "an interval is said as 500ms, 2s or 1m; 100ms to 1d".to_owned();
    humantime::parse_duration(text).ok().filter(|span| (SHORTEST..=LONGEST).contains(span)).ok_or_else(wrong)
}

/// What goes to stdout each time.
struct Screen {
    format: Format,
    terminal: bool,
    drawn: bool,
}

/// Runs until SIGINT, SIGTERM, or nobody reads any more; each of these is a good end.
pub fn watch(arguments: &Arguments, socket: &Path, format: Format) -> Result<Report, Failure> {
    runtime()?.block_on(async {
        let failed = |error: io::Error| Failure::new(Exit::Failed, format!("cannot wait for signals: {error}"));
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut screen = Screen { format, terminal: io::stdout().is_terminal(), drawn: false };
        loop {
            let looked = async {
                let shown = super::fetch(socket).await.map(|status| super::report(&status));
                if !screen.show(shown)? {
                    return Ok::<bool, Failure>(false);
                }
                tokio::time::sleep(arguments.interval).await;
                Ok(true)
            };
            let goes_on = tokio::select! {
                goes_on = looked => goes_on?,
                _ = interrupt.recv() => false,
                _ = terminate.recv() => false,
            };
            if !goes_on {
                return Ok(Report::silent());
            }
        }
    })
}

impl Screen {
    /// False when nobody reads any more.
    fn show(&mut self, shown: Result<Report, Failure>) -> Result<bool, Failure> {
        let text = match (self.format, shown) {
            (Format::Json, shown) => format!("{}\n", document(shown)),
            (Format::Text, Ok(report)) => self.frame(&report.text),
            (Format::Text, Err(failure)) => {
                self.frame(&format!("{}\nIt is tried again until this is interrupted.\n", failure.message))
            }
        };
        let mut stdout = io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(Failure::new(Exit::Failed, format!("cannot write the output: {error}"))),
        }
    }

    /// On a terminal over what was there; elsewhere, below it.
    fn frame(&mut self, text: &str) -> String {
        let first = !std::mem::replace(&mut self.drawn, true);
        if !self.terminal {
            return if first { text.to_owned() } else { format!("\n{text}") };
        }
        // Home, each line to its end, then the rest of the screen: nothing flickers.
        let rows = rustix::termios::tcgetwinsize(io::stdout()).map_or(0, |size| usize::from(size.ws_row));
        let shown = cut(text, rows);
        format!("\x1b[H{}\x1b[J", shown.replace('\n', "\x1b[K\n"))
    }
}

/// What fits on the screen: what comes first matters most. 0 rows: nobody knows how many there are.
fn cut(text: &str, rows: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    // The cursor rests below the last line.
    match rows.checked_sub(2) {
        Some(most) if lines.len() > most + 1 => {
            format!("{}\n… {} more lines\n", lines[..most].join("\n"), lines.len() - most)
        }
        _ => text.to_owned(),
    }
}

/// One line.
fn document(shown: Result<Report, Failure>) -> Value {
    match shown {
        Ok(report) => report.json,
        Err(failure) => json!({
            "error": { "exit_code": failure.exit as u8, "message": failure.message, "next": failure.next }
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_bounded() {
        assert_eq!(interval("500ms"), Ok(Duration::from_millis(500)));
        for text in ["", "2", "10ms", "2d", "soon"] {
            assert!(interval(text).unwrap_err().contains("100ms to 1d"), "{text}");
        }
    }

    #[test]
    fn terminal_is_redrawn_and_a_file_is_written_on() {
        let mut screen = Screen { format: Format::Text, terminal: true, drawn: false };
        assert_eq!(screen.frame("a\nb\n"), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
        let mut screen = Screen { terminal: false, ..screen };
        screen.drawn = false;
        assert_eq!((screen.frame("a\n"), screen.frame("b\n")), ("a\n".into(), "\nb\n".into()));
    }

    #[test]
    fn what_does_not_fit_on_the_screen_is_cut_below() {
        let text = "1\n2\n3\n4\n5\n";
        for (rows, expected) in [(0, text), (6, text), (5, "1\n2\n3\n… 2 more lines\n"), (2, "\n… 5 more lines\n")]
        {
            assert_eq!(cut(text, rows), expected, "{rows}");
        }
    }

    #[test]
    fn every_document_is_one_line() {
        let gone = Failure::new(Exit::Unreachable, "no daemon\nlistens").next("start it");
        for shown in [Ok(Report::done("a\nb", json!({"a": {"b": "c\nd"}}))), Err(gone)] {
            assert!(!document(shown).to_string().contains('\n'));
        }
    }
}
