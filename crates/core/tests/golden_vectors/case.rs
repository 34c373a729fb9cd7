//! One object of a vector file, read field by field; a field that nobody read is an error.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::str::FromStr;

use serde_json::Value;

pub struct Case {
    name: String,
    value: Value,
    read: RefCell<BTreeSet<String>>,
}

impl Case {
    pub fn new(name: &str, value: Value) -> Self {
        assert!(value.is_object(), "{name} is not an object");
        Self { name: name.to_owned(), value, read: RefCell::default() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn has(&self, field: &str) -> bool {
        self.value.get(field).is_some()
    }

    fn field(&self, field: &str) -> &Value {
        self.read.borrow_mut().insert(field.to_owned());
        self.value.get(field).unwrap_or_else(|| panic!("{} has no {field}", self.name))
    }

    pub fn text(&self, field: &str) -> &str {
        self.field(field).as_str().unwrap_or_else(|| panic!("{}: {field} is not a text", self.name))
    }

    pub fn number(&self, field: &str) -> u64 {
        self.field(field).as_u64().unwrap_or_else(|| panic!("{}: {field} is not a number", self.name))
    }

    pub fn bytes(&self, field: &str) -> Vec<u8> {
        base16ct::lower::decode_vec(self.text(field)).unwrap_or_else(|_| panic!("{}: {field} is not hex", self.name))
    }

    pub fn array<const N: usize>(&self, field: &str) -> [u8; N] {
        self.bytes(field).try_into().unwrap_or_else(|_| panic!("{}: {field} is not {N} bytes", self.name))
    }

    pub fn parsed<T: FromStr<Err: std::fmt::Debug>>(&self, field: &str) -> T {
        self.text(field).parse().unwrap_or_else(|problem| panic!("{}: {field}: {problem:?}", self.name))
    }

    /// A list of objects.
    pub fn cases(&self, field: &str) -> Vec<Case> {
        let list = self.field(field).as_array().unwrap_or_else(|| panic!("{}: {field} is not a list", self.name));
        list.iter()
            .enumerate()
            .map(|(index, value)| {
                let name = value["name"].as_str().map_or_else(|| format!("{field} {index}"), str::to_owned);
                Case::new(&name, value.clone())
            })
            .collect()
    }

    /// Every field was looked at.
    pub fn finish(&self) {
        let fields: BTreeSet<String> = self.value.as_object().unwrap().keys().cloned().collect();
        assert_eq!(*self.read.borrow(), fields, "{}: fields that no reader looked at", self.name);
    }
}
