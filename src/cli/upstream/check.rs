//! `keystead upstream check`: which step on the way to the cloud key fails, and what to do about it.

use std::path::Path;

use serde_json::json;

use crate::cli::exit::{Exit, Failure};
use crate::cli::report::{Format, Report, progress};
use crate::cli::wiring::{self, Checked};
use crate::cli::{settings, table};
use crate::service::upstream_check::{Outcome, Step};

pub(super) fn run(config: Option<&Path>, format: Format) -> Result<Report, Failure> {
    let (_, settings) = settings(config)?;
    progress(format, "Asking the cloud …");
    Ok(report(&wiring::check_upstream(&settings)?))
}

fn report(checked: &Checked) -> Report {
    let rows: Vec<_> = checked.steps.iter().map(|step| vec![step.name.into(), word(step).into(), took(step)]).collect();
    let mut text = format!("{}, key {} at {}\n\n", checked.provider, checked.key, checked.endpoint);
    text.push_str(&table::columns(&["STEP", "", "TIME"], &rows));
    let told: Vec<_> = checked.steps.iter().filter(|step| !step.detail.is_empty()).map(line).collect();
    text.push('\n');
    text.push_str(&table::list(&told));
    let json = json!({
        "provider": checked.provider,
        "key": checked.key,
        "endpoint": checked.endpoint,
        "ok": exit(&checked.steps) == Exit::Done,
        "steps": checked.steps.iter().map(|step| json!({
            "name": step.name,
            "outcome": word(step),
            "detail": step.detail,
            "next": (!step.hint.is_empty()).then_some(&step.hint),
            "milliseconds": step.took.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
        })).collect::<Vec<_>>(),
    });
    Report { text, json, exit: exit(&checked.steps) }
}

/// The way there is one thing, what the service says another.
fn exit(steps: &[Step]) -> Exit {
    match steps.iter().find(|step| step.outcome == Outcome::Failed) {
        None => Exit::Done,
        Some(step) if matches!(step.name, "name" | "connection" | "tls") => Exit::Unreachable,
        Some(_) => Exit::Refused,
    }
}

fn word(step: &Step) -> &'static str {
    match step.outcome {
        Outcome::Passed => "passed",
        Outcome::Warned => "warning",
        Outcome::Failed => "failed",
        Outcome::Skipped => "skipped",
    }
}

fn took(step: &Step) -> String {
    step.took.map_or_else(String::new, |took| format!("{} ms", took.as_millis()))
}

fn line(step: &Step) -> String {
    match step.hint.as_str() {
        "" => format!("{}: {}", step.name, step.detail),
        hint => format!("{}: {}. {hint}", step.name, step.detail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn checked(outcome: Outcome, name: &'static str) -> Checked {
        let step = |name, outcome, detail: &str, hint: &str| Step {
            name,
            outcome,
            detail: detail.into(),
            hint: hint.into(),
            took: Some(Duration::from_millis(12)),
        };
        Checked {
            provider: "Alibaba Cloud KMS".into(),
            key: "key-1".into(),
            endpoint: "https://kms.cn-hangzhou.aliyuncs.com".into(),
            steps: vec![
                step("name", Outcome::Passed, "kms is 10.0.0.1", ""),
                step(name, outcome, &"a long reason ".repeat(20), "Look at the network"),
                step("latency", Outcome::Skipped, "", ""),
            ],
        }
    }

    #[test]
    fn exit_code_tells_a_lost_way_from_a_refusal() {
        for (outcome, name, exit) in [
            (Outcome::Passed, "tls", Exit::Done),
            (Outcome::Warned, "clock", Exit::Done),
            (Outcome::Failed, "connection", Exit::Unreachable),
            (Outcome::Failed, "tls", Exit::Unreachable),
            (Outcome::Failed, "credentials", Exit::Refused),
            (Outcome::Failed, "decrypt", Exit::Refused),
        ] {
            let report = report(&checked(outcome, name));
            assert_eq!(report.exit, exit, "{name}");
            assert!(report.text.lines().all(|line| line.chars().count() <= 80), "{}", report.text);
        }
    }

    #[test]
    fn failed_step_is_followed_by_what_to_do() {
        let report = report(&checked(Outcome::Failed, "tls"));
        assert!(report.text.contains("Look at the network"), "{}", report.text);
        assert_eq!(report.json["steps"][1]["next"], "Look at the network");
        assert_eq!(report.json["ok"], false);
    }
}
