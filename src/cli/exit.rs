//! Exit codes, and failures as a person and a script read them.

use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::json;

use super::report::Format;
use crate::config::ConfigError;
use crate::service::explain::explain;

pub const HELP: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage or configuration
  3  the daemon (upstream check: the cloud) cannot be reached
  4  the daemon (upstream check: the cloud) refused
  5  the daemon answers, but does not serve as it should
  6  `doctor` found warnings
  7  `doctor` found something critical";

/// What a command ends with. Documented in `docs/commands.md`; a number never changes its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Unreachable = 3,
    Refused = 4,
    NotServing = 5,
    Warnings = 6,
    Critical = 7,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command ended without doing what it is for, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub exit: Exit,
    pub message: String,
    pub next: Option<String>,
}

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), next: None }
    }

    /// With the next thing to try.
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// The error and its causes in one line.
    pub fn from_error(exit: Exit, error: &dyn std::error::Error) -> Self {
        Self::new(exit, explain(error))
    }

    pub fn print(&self, format: Format) -> ExitCode {
        let text = match format {
            Format::Text => match &self.next {
                Some(next) => format!("keystead: {}\n  next: {next}", self.message),
                None => format!("keystead: {}", self.message),
            },
            Format::Json => json!({
                "error": { "exit_code": self.exit as u8, "message": self.message, "next": self.next }
            })
            .to_string(),
        };
        // With stderr gone there is nobody left to tell; the exit code still does.
        let _ = writeln!(io::stderr(), "{text}");
        self.exit.into()
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let failure = Self::from_error(Exit::Usage, &error);
        match error {
            ConfigError::Unreadable { .. } => failure.next("name the right file with --config or $KEYSTEAD_CONFIG"),
            ConfigError::Invalid(_) => failure.next("mend it, then `keystead config check`"),
            ConfigError::NoNode => failure.next("set `node` in the config file"),
        }
    }
}

/// Prints what clap has to say: help and version on stdout with 0, anything else on stderr with 2.
pub fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    match error.exit_code() {
        0 => Exit::Done.into(),
        _ => Exit::Usage.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_every_code() {
        for exit in [
            Exit::Done,
            Exit::Failed,
            Exit::Usage,
            Exit::Unreachable,
            Exit::Refused,
            Exit::NotServing,
            Exit::Warnings,
            Exit::Critical,
        ] {
            assert!(HELP.contains(&format!("\n  {}  ", exit as u8)), "{exit:?}");
        }
    }
}
