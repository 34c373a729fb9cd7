//! hsm-configs/: each file loads as it is, and says first how far it can be trusted.

use keystead::config::{Settings, Site, Source};

#[test]
fn every_example_loads_and_says_where_its_facts_come_from() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("hsm-configs");
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ending| ending != "toml") {
            continue;
        }
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let source = Source::read(&path).unwrap();
        let settings = Settings::from_source(&source, &Site::this_machine());
        let settings = settings.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(settings.custody.module.is_absolute(), "{name}");
        let first = source.text().lines().next().unwrap_or_default().to_owned();
        assert_eq!(settings.upstream.is_some(), name.starts_with("cloud-"), "{name}");
        // Only what the contract suite runs on may claim to be verified.
        let verified = matches!(name.as_str(), "softhsm" | "kryoptic" | "swtpm");
        let claim = if verified { "# verified-on: " } else { "# from-vendor-docs: " };
        assert!(first.starts_with(claim) && first.len() > claim.len() + 10, "{name}: {first}");
        seen.push(name);
    }
    seen.sort();
    let tokens = ["aws-cloudhsm", "kryoptic", "luna", "nitrokey-hsm2", "softhsm", "utimaco", "yubihsm2"];
    let tpms = ["swtpm", "tpm-discrete"];
    let clouds = ["cloud-alibaba", "cloud-aws", "cloud-ibm"];
    let mut expected = [&tokens[..], &tpms, &clouds].concat();
    expected.sort_unstable();
    assert_eq!(seen, expected);
}
