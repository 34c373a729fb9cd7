//! Where the configuration's text comes from. Read once: the supervisor hands the same text to its children, so that an edit
//! between two starts cannot split them.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::DeTable;

use super::error::{ConfigError, Place};
use super::raw::Raw;

/// The text of one configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The file, absolute; `None` for the built-in defaults.
    file: Option<PathBuf>,
    text: String,
}

/// A parsed file: what it says, and which keys it says it with.
pub(super) struct Document {
    pub raw: Raw,
    /// Dotted paths of the keys that are set.
    pub keys: Vec<String>,
}

impl Source {
    pub const DEFAULT_FILE: &str = "/etc/keystead/config.toml";
    pub const VARIABLE: &str = "KEYSTEAD_CONFIG";
    /// A configuration is a page long; whatever is larger is some other file.
    const MAX_BYTES: u64 = 1 << 20;

    /// The file named on the command line, else by `$KEYSTEAD_CONFIG`, else [`Source::DEFAULT_FILE`] if it exists, else
    /// the defaults.
    ///
    /// # Errors
    /// `Unreadable` for a file that was named and is not there, and for any that cannot be read: falling back to defaults
    /// would start a daemon with another socket and another key.
    pub fn find(named: Option<&Path>) -> Result<Self, ConfigError> {
        let variable = std::env::var_os(Self::VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(path) = named.map(Path::to_owned).or(variable) {
            return Self::read(&path);
        }
        match Self::read(Path::new(Self::DEFAULT_FILE)) {
            Err(ConfigError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(Self::defaults())
            }
            found => found,
        }
    }

    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
        let file = std::path::absolute(path).map_err(unreadable)?;
        let mut text = String::new();
        let handle = File::open(&file).map_err(unreadable)?;
        handle.take(Self::MAX_BYTES + 1).read_to_string(&mut text).map_err(unreadable)?;
        if text.len() as u64 > Self::MAX_BYTES {
            return Err(unreadable(io::Error::new(io::ErrorKind::InvalidData, "it is larger than 1 MiB")));
        }
        Ok(Self { file: Some(file), text })
    }

    pub fn defaults() -> Self {
        Self { file: None, text: String::new() }
    }

    /// What a child process got from the supervisor: `file` is only for messages and relative paths, it is not opened.
    pub fn from_parts(file: Option<PathBuf>, text: String) -> Self {
        Self { file, text }
    }

    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// Folder that relative paths start from.
    pub(super) fn folder(&self) -> &Path {
        self.file.as_deref().and_then(Path::parent).unwrap_or(Path::new("/"))
    }

    pub(super) fn with_place<T>(&self, then: impl FnOnce(&Place<'_>) -> T) -> T {
        let origin =
            self.file.as_ref().map_or_else(|| "built-in defaults".to_owned(), |file| file.display().to_string());
        then(&Place { origin: &origin, text: &self.text })
    }

    pub(super) fn parse(&self) -> Result<Document, ConfigError> {
        self.with_place(|place| {
            let document = DeTable::parse(&self.text).map_err(|error| place.syntax(&error))?;
            let raw = Raw::deserialize(toml::de::Deserializer::from(document.clone()))
                .map_err(|error| place.schema(&error, document.get_ref()))?;
            let mut keys = Vec::new();
            collect_keys(document.get_ref(), "", &mut keys);
            Ok(Document { raw, keys })
        })
    }
}

fn collect_keys(table: &DeTable<'_>, prefix: &str, keys: &mut Vec<String>) {
    for (name, value) in table.iter() {
        let path = format!("{prefix}{}", name.get_ref());
        if let Some(inner) = value.get_ref().as_table() {
            collect_keys(inner, &format!("{path}."), keys);
        }
        keys.push(path);
    }
}
