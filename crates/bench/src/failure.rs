//! Why a measurement could not be made. A missed budget is no failure: it stands in the report.

use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("cannot {what}")]
    Io { what: String, source: std::io::Error },
    #[error("{what}")]
    Transport { what: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{call} was refused")]
    Refused { call: &'static str, source: tonic::Status },
    #[error("{call} answered wrongly: {problem}")]
    WrongAnswer { call: &'static str, problem: String },
    #[error("`{command}` failed ({status}):\n{output}")]
    Command { command: String, status: String, output: String },
    #[error("{what} took longer than {limit:?}; the last thing it said:\n{said}")]
    TooLong { what: String, limit: Duration, said: String },
    #[error("{0}")]
    Unusable(String),
    #[error("stopped by a signal; everything that was started has been stopped")]
    Interrupted,
}

impl Failure {
    pub fn transport(what: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Transport { what: what.to_owned(), source: source.into() }
    }

    pub fn too_long(what: impl Into<String>, limit: Duration) -> Self {
        Self::TooLong { what: what.into(), limit, said: String::new() }
    }

    /// The whole chain of sources on one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(inner) = source {
            text.push_str(": ");
            text.push_str(&inner.to_string());
            source = inner.source();
        }
        text
    }
}

/// Says what was being done when an I/O error came.
pub trait FailureExt<T> {
    /// # Errors
    /// [`Failure::Io`] with `what`, which completes "cannot …".
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<std::io::Error>> FailureExt<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|source| Failure::Io { what: what(), source: source.into() })
    }
}
