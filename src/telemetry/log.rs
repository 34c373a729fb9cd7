//! Logging: text on a terminal, JSON elsewhere, always to stderr. stdout belongs to the commands' own output.
//!
//! Dependencies log at `warn` whatever the level is: at `debug` some of them print what passes through them, and that may be a
//! seed. Keystead's own events carry key IDs and request uids, never a secret.

use std::io::{self, IsTerminal};

use serde::{Deserialize, Serialize};
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use super::stderr::Lossy;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogSettings {
    pub level: Level,
    pub format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Text if stderr is a terminal, else JSON.
    #[default]
    Auto,
    Text,
    Json,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    fn filter(self) -> LevelFilter {
        match self {
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        }
    }
}

impl Format {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// A log was set up before in this process.
#[derive(Debug, thiserror::Error)]
#[error("logging is set up already")]
pub struct AlreadySetUp;

/// How much a log says, to be changed while it is written.
#[derive(Debug, Clone)]
pub struct Verbosity(reload::Handle<Targets, Registry>);

impl Verbosity {
    pub fn set(&self, level: Level) {
        // Fails only where the log is gone, and then there is nobody to tell.
        let _ = self.0.reload(targets(level));
    }
}

/// Sets this process's log up; call it once, first thing in a composition root.
pub fn init(settings: LogSettings) -> Result<Verbosity, AlreadySetUp> {
    let terminal = io::stderr().is_terminal();
    let (subscriber, verbosity) = subscriber(settings, terminal, Lossy::new(io::stderr()));
    subscriber.try_init().map_err(|_| AlreadySetUp)?;
    Ok(verbosity)
}

/// Of no log at all: for tests of those who hold one.
#[cfg(test)]
pub fn detached() -> Verbosity {
    Verbosity(reload::Layer::new(targets(Level::Info)).1)
}

fn targets(level: Level) -> Targets {
    let dependencies = level.filter().min(LevelFilter::WARN);
    Targets::new().with_default(dependencies).with_target("keystead", level.filter())
}

fn subscriber<W>(settings: LogSettings, terminal: bool, writer: W) -> (Box<dyn Subscriber + Send + Sync>, Verbosity)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(targets(settings.level));
    let text = match settings.format {
        Format::Auto => terminal,
        Format::Text => true,
        Format::Json => false,
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let subscriber: Box<dyn Subscriber + Send + Sync> = if text {
        // Colour is for eyes: a text log in a file stays plain.
        Box::new(Registry::default().with(lines.with_ansi(terminal).with_filter(filter)))
    } else {
        let lines = lines.json().flatten_event(true).with_current_span(false).with_span_list(false);
        Box::new(Registry::default().with(lines.with_filter(filter)))
    };
    (subscriber, Verbosity(handle))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(settings: LogSettings, terminal: bool) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        tracing::subscriber::with_default(subscriber(settings, terminal, move || writer.clone()).0, || {
            tracing::info!(target: "keystead::rpc", key_id = "ks1.a", "served");
            tracing::debug!(target: "keystead::rpc", "detail");
            tracing::debug!(target: "h2::codec", "frame with content");
            tracing::warn!(target: "h2::codec", "dependency in trouble");
        });
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn terminal_gets_text_and_anything_else_one_json_object_a_line() {
        let text = logged(LogSettings::default(), true);
        assert!(text.contains("served") && !text.starts_with('{'), "{text}");
        let json = logged(LogSettings::default(), false);
        let first: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
        assert_eq!(first["message"], "served");
        assert_eq!(first["key_id"], "ks1.a");
        assert_eq!(first["level"], "INFO");
    }

    #[test]
    fn level_changes_while_the_log_is_written() {
        let lines = Lines::default();
        let writer = lines.clone();
        let settings = LogSettings { level: Level::Info, format: Format::Json };
        let (subscriber, verbosity) = subscriber(settings, false, move || writer.clone());
        tracing::subscriber::with_default(subscriber, || {
            for (level, text) in [(Level::Info, "first"), (Level::Debug, "second"), (Level::Error, "third")] {
                verbosity.set(level);
                tracing::debug!(target: "keystead::rpc", "{text}");
            }
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("second") && !text.contains("first") && !text.contains("third"), "{text}");
    }

    #[test]
    fn asked_format_wins_over_the_terminal() {
        let json = logged(LogSettings { format: Format::Json, ..Default::default() }, true);
        assert!(json.starts_with('{'), "{json}");
        let text = logged(LogSettings { format: Format::Text, ..Default::default() }, false);
        assert!(!text.starts_with('{') && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn dependencies_stay_at_warn_however_verbose_keystead_is() {
        let lines = logged(LogSettings { level: Level::Trace, format: Format::Json }, false);
        assert!(lines.contains("detail") && lines.contains("in trouble"), "{lines}");
        assert!(!lines.contains("frame with content"), "{lines}");
        let quiet = logged(LogSettings { level: Level::Error, format: Format::Json }, false);
        assert_eq!(quiet, "");
    }
}
