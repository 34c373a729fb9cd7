//! `keystead config check`: the settings in force, and what this machine lacks for them.

use std::path::Path;

use clap::Subcommand;
use serde_json::{Map, Value, json};

use super::exit::{Exit, Failure};
use super::report::Report;
use super::{settings, table};
use crate::config::{Effective, Finding, Settings, Severity, Site, Source, check};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Read the configuration, show what is in force, look at files and permissions; changes nothing
    Check,
}

pub fn run(command: &Command, config: Option<&Path>) -> Result<Report, Failure> {
    let Command::Check = command;
    let (source, settings) = settings(config)?;
    report(&source, &settings, &Site::this_machine())
}

fn report(source: &Source, settings: &Settings, site: &Site) -> Result<Report, Failure> {
    let effective = Effective::list(settings, source)?;
    let findings = check(settings, site);
    let problems = findings.iter().any(|finding| finding.severity == Severity::Problem);
    Ok(Report {
        text: text(source, &effective, &findings),
        json: json!({
            "file": source.file().map(|file| file.display().to_string()),
            "ok": !problems,
            "settings": effective.iter().map(|row| {
                (row.key.to_owned(), json!({ "value": row.value, "origin": row.origin.as_str() }))
            }).collect::<Map<String, Value>>(),
            "findings": findings.iter().map(|finding| json!({
                "severity": finding.severity.as_str(), "key": finding.key, "message": finding.message,
            })).collect::<Vec<_>>(),
        }),
        exit: if problems { Exit::Usage } else { Exit::Done },
    })
}

fn text(source: &Source, effective: &[Effective], findings: &[Finding]) -> String {
    let mut text = match source.file() {
        Some(file) => format!("{}\n\n", file.display()),
        None => "No config file: built-in defaults\n\n".to_owned(),
    };
    let rows: Vec<Vec<String>> = effective
        .iter()
        .map(|row| vec![row.key.to_owned(), row.origin.as_str().to_owned(), shown(&row.value)])
        .collect();
    text.push_str(&table::columns(&["KEY", "FROM", "VALUE"], &rows));
    text.push('\n');
    if findings.is_empty() {
        text.push_str("Nothing is missing on this machine.\n");
    } else {
        let lines: Vec<String> = findings
            .iter()
            .map(|finding| format!("{}: {}: {}", finding.severity.as_str(), finding.key, finding.message))
            .collect();
        text.push_str(&table::list(&lines));
    }
    text
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_with_problems_ends_with_the_configuration_s_exit_code() {
        let text = "node = 'n'\n[custody]\nmodule = '/nonexistent/module.so'\n";
        let source = Source::from_parts(Some("/etc/keystead/config.toml".into()), text.into());
        let site = Site::this_machine();
        let settings = Settings::from_source(&source, &site).unwrap();
        let report = report(&source, &settings, &site).unwrap();
        assert_eq!(report.exit, Exit::Usage);
        assert_eq!(report.json["ok"], false);
        assert_eq!(report.json["settings"]["custody.module"]["origin"], "file");
        assert_eq!(report.json["settings"]["kms.mode"]["value"], "0600");
        assert!(report.text.contains("problem: custody.module"), "{}", report.text);
        assert!(report.text.lines().all(|line| line.chars().count() <= 80), "{}", report.text);
    }
}
