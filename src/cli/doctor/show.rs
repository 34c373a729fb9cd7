//! Findings as a person reads them, group by group, and as a program does.

use serde_json::{Value, json};

use super::super::paint::Colour;
use super::super::table;
use super::Group;
use super::finding::{Finding, Severity, worst};

/// Wide enough for the longest severity, with a margin.
const LABELS: [(Severity, &str, Colour); 4] = [
    (Severity::Ok, "  ok      ", Colour::Good),
    (Severity::Info, "  info    ", Colour::Good),
    (Severity::Warning, "  warning ", Colour::Uneasy),
    (Severity::Critical, "  critical", Colour::Bad),
];
const NO_LABEL: &str = "          ";

pub fn text(groups: &[(&Group, Vec<Finding>)]) -> String {
    let mut text = String::new();
    // With the daemon down there may be no socket to speak of.
    for (group, findings) in groups.iter().filter(|(_, findings)| !findings.is_empty()) {
        let mut rows = Vec::new();
        for finding in findings {
            let (_, label, colour) = LABELS[finding.severity as usize];
            let what = if finding.checked { finding.what.clone() } else { format!("not checked: {}", finding.what) };
            let loud = finding.severity >= Severity::Warning;
            rows.push((label, what, loud.then_some(colour)));
            if !finding.why.is_empty() {
                rows.push((NO_LABEL, format!("why: {}", finding.why), None));
            }
            if !finding.next.is_empty() {
                rows.push((NO_LABEL, format!("do:  {}", finding.next), None));
            }
        }
        text.push_str(&format!("{}\n{}\n", group.title, table::painted_fields(&rows)));
    }
    text.push_str(&sum(groups));
    text
}

fn sum(groups: &[(&Group, Vec<Finding>)]) -> String {
    let all = || groups.iter().flat_map(|(_, findings)| findings);
    let count = |severity| all().filter(|finding| finding.severity == severity).count();
    let unchecked = all().filter(|finding| !finding.checked).count();
    let mut counts: Vec<String> = Severity::ALL
        .into_iter()
        .rev()
        .map(|severity| (count(severity), severity))
        .filter(|(count, _)| *count > 0)
        .map(|(count, severity)| format!("{count} {}", severity.as_str()))
        .collect();
    if unchecked > 0 {
        counts.push(format!("of these {unchecked} not checked"));
    }
    format!("{}\n", counts.join(", "))
}

pub fn json(groups: &[(&Group, Vec<Finding>)]) -> Value {
    let all: Vec<(&Group, &Finding)> =
        groups.iter().flat_map(|(group, findings)| findings.iter().map(move |finding| (*group, finding))).collect();
    let findings: Vec<Finding> = all.iter().map(|(_, finding)| (*finding).clone()).collect();
    json!({
        "worst": worst(&findings).as_str(),
        "unchecked": findings.iter().filter(|finding| !finding.checked).count(),
        "findings": all.iter().map(|(group, finding)| json!({
            "id": finding.id,
            "group": group.name,
            "severity": finding.severity.as_str(),
            "checked": finding.checked,
            "what": finding.what,
            "why": some(finding.why),
            "next": some(&finding.next),
        })).collect::<Vec<_>>(),
    })
}

fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_fit_eighty_columns_and_are_counted() {
        let long = "word ".repeat(40);
        let findings = vec![
            Finding::ok("a.a", long.clone()),
            Finding::critical("a.b", "what\x1b[2J", "why", long.trim_end()),
            Finding::unchecked("a.c", "closed", "run it as root"),
        ];
        let group = Group { name: "a", title: "A", check: |_| Vec::new() };
        let groups = [(&group, findings)];
        let text = text(&groups);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(!text.contains('\x1b') && text.contains("  critical  what"), "{text}");
        assert!(text.ends_with("1 critical, 1 info, 1 ok, of these 1 not checked\n"), "{text}");
        let json = json(&groups);
        assert_eq!((&json["worst"], &json["unchecked"]), (&"critical".into(), &1.into()));
        assert_eq!(json["findings"][0]["why"], Value::Null);
        assert_eq!(json["findings"][2]["checked"], false);
    }

    #[test]
    fn labels_stand_in_the_order_of_severity() {
        for (index, severity) in Severity::ALL.into_iter().enumerate() {
            assert_eq!(LABELS[index].0, severity);
            assert_eq!(severity as usize, index);
        }
    }
}
