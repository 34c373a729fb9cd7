//! Which room may import which: read from the code itself, so that the picture in docs/architecture.md stays true.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::Visit;

/// A room and the rooms below it, in the order of docs/architecture.md.
const ROOMS: &[(&str, &[&str])] = &[
    ("failpoint", &[]),
    ("memory", &[]),
    ("custody", &["memory"]),
    ("store", &["failpoint"]),
    ("audit", &[]),
    ("upstream", &[]),
    ("cluster", &[]),
    ("service", &["custody", "upstream", "store", "audit", "memory", "failpoint"]),
    ("rpc", &["service", "custody", "audit", "memory"]),
    ("telemetry", &["service", "custody"]),
    ("config", &["custody", "upstream", "store", "audit", "service", "rpc", "telemetry", "process"]),
    (
        "process",
        &["config", "custody", "upstream", "store", "audit", "service", "rpc", "telemetry", "memory", "failpoint"],
    ),
    (
        "cli",
        &["config", "process", "service", "custody", "upstream", "store", "audit", "cluster", "telemetry", "failpoint"],
    ),
];

/// What no file of the pure core may name.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::net",
    "std::io",
    "std::env",
    "std::process",
    "std::thread",
    "SystemTime",
    "time::Instant",
    "getrandom",
    "tokio",
];

/// Every path that a file names, in code and in macros that parse as expressions, test modules left out.
struct Paths(BTreeSet<String>);

impl<'ast> Visit<'ast> for Paths {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.0.insert(names.join("::"));
        syn::visit::visit_path(self, path);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        flatten(&item.tree, &mut Vec::new(), &mut self.0);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let is_test = item.attrs.iter().any(|attribute| {
            attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Ident>().is_ok_and(|name| name == "test")
        });
        if !is_test {
            syn::visit::visit_item_mod(self, item);
        }
    }
}

fn flatten(tree: &syn::UseTree, prefix: &mut Vec<String>, paths: &mut BTreeSet<String>) {
    match tree {
        syn::UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            flatten(&path.tree, prefix, paths);
            prefix.pop();
        }
        syn::UseTree::Group(group) => group.items.iter().for_each(|item| flatten(item, prefix, paths)),
        syn::UseTree::Name(name) => {
            paths.insert([prefix.as_slice(), &[name.ident.to_string()]].concat().join("::"));
        }
        syn::UseTree::Rename(rename) => {
            paths.insert([prefix.as_slice(), &[rename.ident.to_string()]].concat().join("::"));
        }
        syn::UseTree::Glob(_) => {
            paths.insert(prefix.join("::"));
        }
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Rust files below `folder`, files of tests left out.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs")
            && !path.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("tests"))
        {
            found.push(path);
        }
    }
    found
}

fn paths(file: &Path) -> BTreeSet<String> {
    let parsed = syn::parse_file(&fs::read_to_string(file).expect("readable")).expect("Rust");
    let mut paths = Paths(BTreeSet::new());
    paths.visit_file(&parsed);
    paths.0
}

fn room_of(file: &Path) -> Option<String> {
    let inside = file.strip_prefix(root().join("src")).ok()?;
    let first = inside.components().next()?.as_os_str().to_string_lossy().into_owned();
    let name = first.strip_suffix(".rs").unwrap_or(&first).to_owned();
    (!matches!(name.as_str(), "lib" | "main")).then_some(name)
}

#[test]
fn rooms_import_only_what_lies_below_them() {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for file in files(&root().join("src")) {
        let Some(room) = room_of(&file) else { continue };
        let (_, below) =
            ROOMS.iter().find(|(name, _)| *name == room).unwrap_or_else(|| panic!("{room} is no known room"));
        seen.insert(room.clone());
        for path in paths(&file) {
            let Some(target) = path.strip_prefix("crate::").and_then(|rest| rest.split("::").next()) else { continue };
            if target != room && !below.contains(&target) {
                wrong.push(format!("{} names {path}", file.strip_prefix(root()).unwrap_or(&file).display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(seen.len(), ROOMS.len(), "a room of the list is gone");
}

#[test]
fn vendor_code_is_named_in_custody_only() {
    for file in files(&root().join("src")) {
        if room_of(&file).as_deref() != Some("custody") {
            assert!(!paths(&file).iter().any(|path| path.starts_with("cryptoki")), "{} names cryptoki", file.display());
        }
    }
}

#[test]
fn the_core_is_pure() {
    for file in files(&root().join("crates/core/src")) {
        for path in paths(&file) {
            assert!(!IMPURE.iter().any(|impure| path.contains(impure)), "{} names {path}", file.display());
        }
    }
}

#[test]
fn the_wire_crate_holds_nothing_but_generated_code_and_its_codec() {
    let codec = root().join("crates/wire/src/codec.rs");
    for file in files(&root().join("crates/wire/src")).into_iter().filter(|file| *file != codec) {
        let parsed = syn::parse_file(&fs::read_to_string(&file).expect("readable")).expect("Rust");
        fn only_modules(items: &[syn::Item]) -> bool {
            items.iter().all(|item| match item {
                syn::Item::Mod(module) => module.content.as_ref().is_none_or(|(_, items)| only_modules(items)),
                syn::Item::Macro(item) => {
                    item.mac.path.segments.last().is_some_and(|name| name.ident == "include_proto")
                }
                syn::Item::Const(item) => matches!(&*item.expr, syn::Expr::Macro(item)
                    if item.mac.path.segments.last().is_some_and(|name| name.ident == "include_file_descriptor_set")),
                _ => false,
            })
        }
        assert!(only_modules(&parsed.items), "{}", file.display());
    }
}

#[test]
fn every_module_says_what_it_is() {
    for folder in ["src", "crates/core/src", "crates/wire/src"] {
        for file in files(&root().join(folder)) {
            let text = fs::read_to_string(&file).expect("readable");
            assert!(text.starts_with("//!"), "{} has no header", file.display());
        }
    }
}

/// docs/adr/0004-unsafe-code.md lists each file by name.
#[test]
fn unsafe_code_is_only_where_its_adr_says() {
    let adr = fs::read_to_string(root().join("docs/adr/0004-unsafe-code.md")).expect("the ADR");
    for folder in ["src", "crates"] {
        for file in files(&root().join(folder)) {
            if fs::read_to_string(&file).expect("readable").contains("allow(unsafe_code)") {
                let name = file.strip_prefix(root()).expect("in the repository").display().to_string();
                assert!(adr.contains(&name), "{name} allows unsafe code; the ADR does not list it");
            }
        }
    }
}
