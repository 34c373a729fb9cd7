//! What a command has to say, once for people and once for programs, and where it goes: stdout.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

use super::exit::{Exit, Failure};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Text,
    Json,
}

/// The outcome of a command that did what it is for. `exit` is not `Done` where what it found is not as it should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    pub text: String,
    /// Fields are only ever added: programs rely on them.
    pub json: Value,
    pub exit: Exit,
}

impl Report {
    pub fn done(text: impl Into<String>, json: Value) -> Self {
        Self { text: text.into(), json, exit: Exit::Done }
    }

    /// For a command that has written its output itself, or has none.
    pub fn silent() -> Self {
        Self { text: String::new(), json: Value::Null, exit: Exit::Done }
    }

    pub fn print(&self, format: Format) -> Result<Exit, Failure> {
        let text = match format {
            Format::Text => self.text.clone(),
            Format::Json if self.json.is_null() => String::new(),
            Format::Json => format!("{:#}", self.json),
        };
        if !text.is_empty() {
            write(format!("{}\n", text.trim_end_matches('\n')).as_bytes())?;
        }
        Ok(self.exit)
    }
}

/// Writes to stdout. A reader that has gone away (`| head`) is no failure.
pub fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Failed, format!("cannot write the output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Tells a person at a terminal how far a command is. Not output: it goes to stderr, and nowhere if nobody watches.
pub fn progress(format: Format, text: &str) {
    if format == Format::Text && io::stderr().is_terminal() {
        let _ = writeln!(io::stderr(), "{text}");
    }
}
