//! `keystead doctor`: looks at everything that an operator would look at, and says of each finding what it is, why it matters
//! and what to do.
//!
//! Safe on a live system: it reads files and metadata and asks the daemon for its status, which it answers from memory. No
//! login, no call to the token, nothing written, no daemon woken. One file a group of checks; in each, `check` gathers facts
//! and `judge`, which is pure, makes findings of them. A new group is a file and a line in [`GROUPS`].

mod apiserver;
mod audit;
mod boot;
mod clock;
mod custody;
mod daemon;
mod encryption;
mod files;
mod finding;
mod key;
mod look;
mod pod;
mod protection;
mod reach;
mod roles;
mod scene;
mod show;
mod sockets;
mod store;
mod trail;
mod unit;
mod yaml;

use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::PossibleValuesParser;

use super::exit::Failure;
use super::report::Report;
use super::settings;
use crate::config::Site;
use finding::{Finding, worst};
use scene::Scene;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Only this group of checks; may be given several times
    #[arg(long, value_name = "GROUP", value_parser = PossibleValuesParser::new(GROUPS.map(|group| group.name)))]
    only: Vec<String>,
    /// kube-apiserver's EncryptionConfiguration [default: looked for where kubeadm, k3s, rke2 and MicroShift name it]
    #[arg(long, value_name = "FILE")]
    encryption_config: Option<PathBuf>,
}

/// Checks that belong together.
struct Group {
    /// As `--only` takes it; the first part of its findings' ids.
    name: &'static str,
    title: &'static str,
    check: fn(&Scene<'_>) -> Vec<Finding>,
}

const GROUPS: [Group; 12] = [
    Group { name: "daemon", title: "Daemon", check: daemon::check },
    Group { name: "sockets", title: "Sockets", check: sockets::check },
    Group { name: "files", title: "Files", check: files::check },
    Group { name: "custody", title: "Custody", check: custody::check },
    Group { name: "store", title: "Store and roots", check: store::check },
    Group { name: "key", title: "Key", check: key::check },
    Group { name: "roles", title: "Roles", check: roles::check },
    Group { name: "audit", title: "Audit trail", check: audit::check },
    Group { name: "protection", title: "Protection", check: protection::check },
    Group { name: "clock", title: "Clock", check: clock::check },
    Group { name: "boot", title: "Boot", check: boot::check },
    Group { name: "apiserver", title: "kube-apiserver", check: apiserver::check },
];

pub fn run(arguments: &Arguments, config: Option<&Path>) -> Result<Report, Failure> {
    let (source, settings) = settings(config)?;
    let scene = Scene::of(&settings, source.file(), arguments.encryption_config.as_deref(), Site::this_machine());
    Ok(report(&scene, &arguments.only))
}

fn report(scene: &Scene<'_>, only: &[String]) -> Report {
    let wanted = |group: &&Group| only.is_empty() || only.iter().any(|name| name == group.name);
    let groups: Vec<(&Group, Vec<Finding>)> =
        GROUPS.iter().filter(wanted).map(|group| (group, once((group.check)(scene)))).collect();
    let all: Vec<Finding> = groups.iter().flat_map(|(_, findings)| findings.clone()).collect();
    Report { text: show::text(&groups), json: show::json(&groups), exit: worst(&all).exit() }
}

/// Both sockets may lie in one bad folder.
fn once(findings: Vec<Finding>) -> Vec<Finding> {
    let mut told: Vec<Finding> = Vec::new();
    for finding in findings {
        if !told.contains(&finding) {
            told.push(finding);
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::super::exit::Exit;
    use super::finding::Severity;
    use super::*;
    use crate::config::{Settings, Source};

    #[test]
    fn bare_machine_is_checked_to_the_end_and_ends_critical() {
        let folder = tempfile::tempdir().unwrap();
        let text = "node = 'n'\n[store]\npath = 'store'\n[kms]\nsocket = 'kms.sock'\n[admin]\nsocket = 'admin.sock'\n";
        let source = Source::from_parts(Some(folder.path().join("config.toml")), text.into());
        let site = Site { root: folder.path().to_owned(), uid: 0, credentials: None };
        let settings = Settings::from_source(&source, &site).unwrap();
        let scene = Scene::of(&settings, source.file(), None, site);
        let report = report(&scene, &[]);
        assert_eq!(report.exit, Exit::Critical);
        for group in &GROUPS {
            let silent = ["sockets", "key"].contains(&group.name);
            assert_eq!(report.text.lines().any(|line| line == group.title), !silent, "{}", report.text);
        }
        let findings = report.json["findings"].as_array().unwrap();
        let named = |finding: &serde_json::Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
        for finding in findings {
            let id = named(finding, "id");
            assert!(id.contains('.') && !named(finding, "what").is_empty(), "{finding}");
            let good = finding["severity"] == "ok";
            assert_eq!(finding["next"].is_null(), good, "{finding}");
        }
        assert!(findings.iter().any(|finding| finding["id"] == "daemon.down"));
        assert!(report.text.lines().all(|line| line.chars().count() <= 80), "{}", report.text);
    }

    #[test]
    fn severity_decides_the_exit_code() {
        let codes = Severity::ALL.map(Severity::exit);
        assert_eq!(codes, [Exit::Done, Exit::Done, Exit::Warnings, Exit::Critical]);
    }

    /// Programs and people rely on the list.
    #[test]
    fn every_finding_is_in_the_runbook() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let runbook = std::fs::read_to_string(root.join("docs/runbooks/doctor.md")).unwrap();
        let mut ids = 0;
        for file in std::fs::read_dir(root.join("src/cli/doctor")).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            for word in code.split('"') {
                let is_id = word.split_once('.').is_some_and(|(group, rest)| {
                    GROUPS.iter().any(|known| known.name == group)
                        && !rest.is_empty()
                        && rest.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
                });
                assert!(!is_id || runbook.contains(&format!("`{word}`")), "{word} is not in docs/runbooks/doctor.md");
                ids += usize::from(is_id);
            }
        }
        assert!(ids > 80, "only {ids} found");
    }
}
