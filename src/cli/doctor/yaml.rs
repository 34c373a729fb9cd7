//! YAML, as much of it as Kubernetes' files use: maps with text keys, lists, scalars as text.
//!
//! Built on the parser's events, with bounds of its own. Anchors and aliases are refused: nobody writes them there, and
//! they are how a small file becomes a large one. JSON is YAML.

use saphyr_parser::{Event, Parser};

/// Deeper than any of these files is.
const MAX_DEPTH: usize = 32;
const MAX_NODES: usize = 20_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Yaml {
    /// Quoted or plain; an absent value is the empty text.
    Scalar(String),
    List(Vec<Yaml>),
    /// In the order of the file; no key twice.
    Map(Vec<(String, Yaml)>),
}

impl Yaml {
    /// Every document of `text`.
    ///
    /// # Errors
    /// What is wrong and where, for a person.
    pub fn documents(text: &str) -> Result<Vec<Self>, String> {
        let mut documents = Vec::new();
        let mut open: Vec<Open> = Vec::new();
        let mut nodes = 0;
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| error.to_string())?;
            let wrong = |what: &str| Err(format!("line {}: {what}", span.start.line()));
            nodes += 1;
            if nodes > MAX_NODES {
                return wrong("there is too much in it");
            }
            let done = match event {
                Event::Alias(_) => return wrong("an alias, which is not followed here"),
                Event::Scalar(text, ..) => Self::Scalar(text.into_owned()),
                Event::SequenceStart(..) | Event::MappingStart(..) if open.len() >= MAX_DEPTH => {
                    return wrong("it is nested too deeply");
                }
                Event::SequenceStart(..) => {
                    open.push(Open::List(Vec::new()));
                    continue;
                }
                Event::MappingStart(..) => {
                    open.push(Open::Map(Vec::new(), None));
                    continue;
                }
                Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                    Some(Open::List(items)) => Self::List(items),
                    Some(Open::Map(entries, _)) => Self::Map(entries),
                    None => return wrong("an end without a start"),
                },
                _ => continue,
            };
            match open.last_mut() {
                None => documents.push(done),
                Some(Open::List(items)) => items.push(done),
                Some(Open::Map(entries, key @ None)) => match done {
                    Self::Scalar(name) if entries.iter().any(|(known, _)| *known == name) => {
                        return wrong(&format!("the key {name:?} is given twice"));
                    }
                    Self::Scalar(name) => *key = Some(name),
                    _ => return wrong("a key that is not text"),
                },
                Some(Open::Map(entries, key)) => entries.push((key.take().unwrap_or_default(), done)),
            }
        }
        Ok(documents)
    }

    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// Empty unless it is a list.
    pub fn items(&self) -> &[Self] {
        match self {
            Self::List(items) => items,
            _ => &[],
        }
    }

    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Scalar(text) => Some(text),
            _ => None,
        }
    }

    /// The text behind `key`, or "".
    pub fn text_of(&self, key: &str) -> &str {
        self.get(key).and_then(Self::text).unwrap_or_default()
    }

    /// The list behind `key`; empty if there is none.
    pub fn items_of(&self, key: &str) -> &[Self] {
        self.get(key).map(Self::items).unwrap_or_default()
    }
}

/// A collection whose end is yet to come.
enum Open {
    List(Vec<Yaml>),
    /// With the key whose value is next.
    Map(Vec<(String, Yaml)>, Option<String>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn files_of_kubernetes_are_read_as_they_are_written() {
        let text = "# comment\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets, 'a: b']\n  providers:\n  - identity: {}\n";
        let yaml = Yaml::documents(text).unwrap().remove(0);
        assert_eq!(yaml.text_of("kind"), "EncryptionConfiguration");
        let resource = &yaml.items_of("resources")[0];
        assert_eq!(resource.items_of("resources")[1].text(), Some("a: b"));
        assert_eq!(resource.items_of("providers")[0].get("identity"), Some(&Yaml::Map(Vec::new())));
        let json = r#"{"kind":"EncryptionConfiguration","resources":[{"resources":["secrets"]}]}"#;
        assert_eq!(Yaml::documents(json).unwrap()[0].text_of("kind"), "EncryptionConfiguration");
        assert_eq!(Yaml::documents("a: 1\n---\nb: 2\n").unwrap().len(), 2);
        assert_eq!(Yaml::documents("").unwrap(), []);
    }

    #[test]
    fn hostile_files_are_refused_with_a_line() {
        let bomb = "a: &a [x, x]\nb: &b [*a, *a]\n";
        let deep = "[".repeat(100) + &"]".repeat(100);
        let many = "- a\n".repeat(MAX_NODES + 1);
        let cases = [
            (bomb, "alias"),
            (&deep, "deep"),
            (&many, "too much"),
            ("a: 1\na: 2\n", "twice"),
            ("? [a]\n: b\n", "not text"),
            ("a: [1, 2\n", "line"),
            ("a:\n\t- tab\n", "line"),
            ("a: 'open\n", "line"),
        ];
        for (text, expected) in cases {
            let error = Yaml::documents(text).unwrap_err();
            assert!(error.contains(expected), "{text:.40?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_or_hang(text in "[-a:{}\\[\\]?&*!|>'\"%@`#, \n\t.0~]{0,120}") {
            let _ = Yaml::documents(&text);
        }

        #[test]
        fn a_damaged_configuration_does_neither(position in 0..400_usize, byte in any::<char>()) {
            let mut text: Vec<char> = include_str!("../../../packaging/static-pod/encryption-config.yaml").chars().collect();
            let position = position % text.len();
            text[position] = byte;
            let _ = Yaml::documents(&text.into_iter().collect::<String>());
        }
    }
}
