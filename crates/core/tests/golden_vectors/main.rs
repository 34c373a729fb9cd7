//! Keystead's own golden vectors: the bytes that stand in etcd, in stores and in backups. `tests/vectors/README.md` says
//! what they are for and why they never change.
//!
//! [`read`] reads the files as any later version must; [`make`] builds them anew from fixed inputs.

mod case;
mod make;
mod read;
mod rsa;

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::case::Case;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors")
}

/// Names of the vector files in `folder`.
fn files_in(folder: PathBuf) -> BTreeSet<String> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".json"))
        .collect()
}

#[test]
fn every_golden_vector_is_read_and_every_bad_one_refused() {
    let readers = read::readers();
    let known: BTreeSet<String> = readers.iter().map(|reader| reader.file.to_owned()).collect();
    assert_eq!(files_in(folder()), known, "a vector file without a reader, or a reader without its file");
    let (mut all_good, mut all_bad) = (0, 0);
    for reader in readers {
        let text = std::fs::read_to_string(folder().join(reader.file)).unwrap();
        let file = Case::new(reader.file, serde_json::from_str(&text).unwrap());
        assert!(!file.text("what").is_empty());
        assert_eq!(file.number("format"), 1, "{}: no reader for this format", reader.file);
        let (good, bad) = (file.cases("good"), file.cases("bad"));
        file.finish();
        assert!(!good.is_empty() && bad.len() > good.len(), "{}: bad vectors must outnumber good ones", reader.file);
        let names: BTreeSet<&str> = good.iter().chain(&bad).map(Case::name).collect();
        assert_eq!(names.len(), good.len() + bad.len(), "{}: a name stands for two cases", reader.file);
        for case in &good {
            case.text("name");
            (reader.good)(case);
            case.finish();
        }
        for case in &bad {
            case.text("name");
            let expected = case.text("error").to_owned();
            let found = (reader.bad)(case).err().unwrap_or_else(|| "accepted".to_owned());
            assert_eq!(found, expected, "{}: {}", reader.file, case.name());
            case.finish();
        }
        println!("{}: {} good, {} bad", reader.file, good.len(), bad.len());
        all_good += good.len();
        all_bad += bad.len();
    }
    println!("in all: {all_good} good, {all_bad} bad");
}

#[test]
fn golden_vectors_are_what_this_version_writes() {
    let made = make::files();
    let on_disk = files_in(folder());
    let mut different = Vec::new();
    for (name, value) in made {
        let mut text = serde_json::to_string_pretty(&value).unwrap();
        text.push('\n');
        if on_disk.contains(name) && std::fs::read_to_string(folder().join(name)).unwrap() == text {
            continue;
        }
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&path, text).unwrap();
        different.push(path);
    }
    assert!(
        different.is_empty(),
        "this version writes other bytes than the golden vectors; what it writes is in {different:?}. A published \
         vector never changes: a new format gets a new file (tests/vectors/README.md)"
    );
}

#[test]
fn every_vector_of_a_standard_has_its_test() {
    // Each is named in tests/standards.rs or in src/hpke_p256.rs.
    let known = ["hkdf-sha256-expand.json", "hpke-p256-sha256-base.json", "xaes-256-gcm.json"];
    assert_eq!(files_in(folder().join("standards")), known.map(str::to_owned).into());
}
