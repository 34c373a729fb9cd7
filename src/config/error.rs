//! What can be wrong with a configuration, said so that the line can be found and mended.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the config file {}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Invalid(Box<Fault>),
    /// Neither the file nor the machine says which node this is.
    #[error("this machine has neither a machine ID nor a usable host name. Set `node` in the config file")]
    NoNode,
}

/// One value, or one piece of syntax, that cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file, or what stands for it.
    pub origin: String,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// Dotted path of the key, empty for a fault of syntax.
    pub key: String,
    pub problem: String,
    /// What would be right, where that can be said.
    pub help: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.origin, self.line, self.column)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.problem)?;
        match &self.help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

/// The text a fault is found in, and how to point into it.
pub struct Place<'a> {
    pub origin: &'a str,
    pub text: &'a str,
}

impl Place<'_> {
    /// A fault in the value at `span`.
    pub fn fault(&self, span: Range<usize>, key: &str, problem: impl fmt::Display, help: Option<&str>) -> ConfigError {
        let (line, column) = self.position(span.start);
        ConfigError::Invalid(Box::new(Fault {
            origin: self.origin.to_owned(),
            line,
            column,
            key: key.to_owned(),
            problem: problem.to_string(),
            help: help.map(str::to_owned),
        }))
    }

    /// A fault that the TOML parser found: no document exists to look the key up in.
    pub fn syntax(&self, error: &toml::de::Error) -> ConfigError {
        self.fault(error.span().unwrap_or(0..0), "", format_args!("is not TOML: {}", one_line(error.message())), None)
    }

    /// A fault that the schema found, at a key of `document`.
    pub fn schema(&self, error: &toml::de::Error, document: &DeTable<'_>) -> ConfigError {
        let span = error.span().unwrap_or(0..0);
        let key = key_at(document, &span);
        let message = one_line(error.message());
        if let Some((given, allowed)) = alternatives(&message, "unknown field") {
            return self.fault(span, &key, "unknown key", Some(&suggest(given, &allowed)));
        }
        if let Some((given, allowed)) = alternatives(&message, "unknown variant") {
            return self.fault(span, &key, format_args!("unknown value {given:?}"), Some(&suggest(given, &allowed)));
        }
        self.fault(span, &key, message, None)
    }

    fn position(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

fn one_line(message: &str) -> String {
    message.lines().collect::<Vec<_>>().join(", ")
}

/// Takes serde's "unknown field `a`, expected one of `b`, `c`" apart. serde builds that text itself and hands a format
/// no other form of it; the tests of this file hold it still.
fn alternatives<'m>(message: &'m str, what: &str) -> Option<(&'m str, Vec<&'m str>)> {
    let rest = message.strip_prefix(what)?;
    let mut quoted = rest.split('`').skip(1).step_by(2);
    let given = quoted.next()?;
    Some((given, quoted.collect()))
}

fn suggest(given: &str, allowed: &[&str]) -> String {
    // People look for a place to put the PIN; the nearest key by spelling would be the wrong lesson.
    if given == "pin" && allowed.contains(&"pin_file") {
        return "the config file never holds a PIN: put it into a file of its own and name that in `pin_file`".into();
    }
    let nearest = allowed
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&given.to_ascii_lowercase(), name), name))
        .min_by_key(|(distance, _)| *distance)
        // Further away than a third of its letters, a guess is noise.
        .filter(|(distance, name)| *distance <= 1 + name.len() / 3);
    match nearest {
        Some((_, name)) => format!("did you mean `{name}`?"),
        None if allowed.is_empty() => "no keys are allowed here".into(),
        None => format!("allowed: {}", allowed.join(", ")),
    }
}

/// Dotted path of the innermost key whose name or value contains `span`.
fn key_at(table: &DeTable<'_>, span: &Range<usize>) -> String {
    let covers = |range: Range<usize>| range.start <= span.start && span.end <= range.end;
    for (name, value) in table.iter() {
        if covers(name.span()) {
            return name.get_ref().to_string();
        }
        // A table's own span is its header only, so its content is always looked at.
        if let DeValue::Table(inner) = value.get_ref() {
            let below = key_at(inner, span);
            if !below.is_empty() {
                return format!("{}.{below}", name.get_ref());
            }
        }
        if covers(Spanned::span(value)) {
            return name.get_ref().to_string();
        }
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_key_is_suggested_and_a_far_one_is_not() {
        assert_eq!(suggest("max_conections", &["socket", "max_connections"]), "did you mean `max_connections`?");
        assert_eq!(suggest("Socket", &["socket", "mode"]), "did you mean `socket`?");
        assert_eq!(suggest("colour", &["socket", "mode"]), "allowed: socket, mode");
        assert!(suggest("pin", &["pin_file", "module"]).contains("never holds a PIN"));
    }

    #[test]
    fn position_counts_characters_not_bytes() {
        let place = Place { origin: "f", text: "a = 1\né = \"ü\" x" };
        assert_eq!(place.position(0), (1, 1));
        assert_eq!(place.position(place.text.find('x').unwrap()), (2, 9));
        assert_eq!(place.position(10_000).0, 2);
    }
}
