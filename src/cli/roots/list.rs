//! `keystead roots list`.
//!
//! A CMK wraps one generation, so a token shows once a generation; a recovery key and a cloud key show once.

use keystead_wire::admin::v1::{ListRootsRequest, ListRootsResponse, RootUse};
use serde_json::json;

use crate::cli::exit::Failure;
use crate::cli::key::{Daemon, generation};
use crate::cli::report::Report;
use crate::cli::{table, time};

pub async fn report(mut daemon: Daemon) -> Result<Report, Failure> {
    let roots = daemon.connection.answer(daemon.admin.list_roots(ListRootsRequest {})).await?;
    Ok(shown(&roots))
}

fn shown(list: &ListRootsResponse) -> Report {
    let total = list.generations.len();
    let rows: Vec<Vec<String>> = list
        .roots
        .iter()
        .map(|root| {
            vec![
                root.kind.clone(),
                if root.opens_active { "yes" } else { "no" }.into(),
                format!("{} of {total}: {}", root.generations.len(), numbers(&root.generations)),
                objects(root),
                root.id.clone(),
            ]
        })
        .collect();
    let mut text = table::columns(&["KIND", "ACTIVE", "GENERATIONS", "OBJECTS", "ID"], &rows);
    text.push('\n');
    text.push_str(&table::list(&notes(list)));
    let roots: Vec<_> = list
        .roots
        .iter()
        .map(|root| {
            json!({
                "kind": root.kind, "id": root.id, "constructions": root.constructions, "durable": true,
                "opens_active": root.opens_active, "generations": root.generations, "objects": root.objects,
                "objects_at_least": root.at_least, "removed": root.removed,
            })
        })
        .collect();
    let json = json!({
        "roots": roots, "generations": total, "on_one_root": list.on_one_root,
        "scan": list.scan.as_ref().map(generation::scan),
    });
    Report::done(text, json)
}

fn objects(root: &RootUse) -> String {
    match root.objects {
        None => "unknown".into(),
        Some(count) if root.at_least => format!("{count} or more"),
        Some(count) => count.to_string(),
    }
}

/// What the numbers mean, and what no number says.
fn notes(list: &ListRootsResponse) -> Vec<String> {
    let mut notes = Vec::new();
    if !list.on_one_root.is_empty() {
        let single = numbers(&list.on_one_root);
        notes.push(format!("Generations on one root only: {single}. If that root is lost, so are their Secrets."));
    }
    notes.push(match &list.scan {
        Some(scan) if list.roots.iter().any(|root| root.objects.is_some()) => {
            let moment = time::rfc3339(scan.recorded).unwrap_or_default();
            match time::rfc3339(scan.rewritten_since).filter(|_| scan.rewritten) {
                Some(since) => format!(
                    "Objects in etcd by the scan of {moment}: every one is under the active generation, proven since {since}."
                ),
                None => format!("Objects in etcd by the scan of {moment}. Not proven to be rewritten: {}.", scan.detail),
            }
        }
        _ => "Objects in etcd: unknown, no scan since the last activation. `keystead etcd scan` counts them.".into(),
    });
    let removed: Vec<&RootUse> = list.roots.iter().filter(|root| root.removed && root.objects != Some(0)).collect();
    for root in removed {
        let opens = match root.objects {
            None => "may still be needed".to_owned(),
            Some(_) => format!("still opens {} objects", objects(root)),
        };
        notes.push(format!("Taken from the key, but {opens}: {} {}. Do not destroy it.", root.kind, root.id));
    }
    notes.push(
        "Backups of etcd keep the wraps of their time: a root opens those for ever, whatever is rewritten here.".into(),
    );
    notes
}

/// `1-3, 5`: many generations in little room.
fn numbers(numbers: &[u64]) -> String {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for &number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let ranges: Vec<String> = ranges
        .into_iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect();
    ranges.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use keystead_wire::admin::v1::Scan;

    fn root(kind: &str, id: &str, generations: &[u64], objects: Option<u64>) -> RootUse {
        let generations = generations.to_vec();
        let opens_active = generations.last() == Some(&3);
        RootUse {
            removed: !opens_active,
            kind: kind.into(),
            id: id.into(),
            generations,
            opens_active,
            objects,
            ..RootUse::default()
        }
    }

    fn list(objects: [Option<u64>; 3], scan: Option<Scan>) -> ListRootsResponse {
        ListRootsResponse {
            roots: vec![
                root("pkcs11", &"a1".repeat(16), &[1], objects[0]),
                root("recovery", &"ff".repeat(32), &[2, 3], objects[1]),
                root("alibaba-kms", "key-hzz65f1f4b3example0001", &[2, 3], objects[2]),
            ],
            scan,
            generations: vec![1, 2, 3],
            on_one_root: vec![1],
        }
    }

    fn folded(report: &Report) -> String {
        assert!(report.text.lines().all(|line| line.chars().count() <= 80), "{}", report.text);
        report.text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn recovery_key_shows_once_and_what_hangs_on_one_root_is_named() {
        let report = shown(&list([None; 3], None));
        let recovery = &report.json["roots"][1];
        assert_eq!((recovery["kind"].as_str(), &recovery["generations"]), (Some("recovery"), &json!([2, 3])));
        assert_eq!((&recovery["objects"], &report.json["on_one_root"]), (&json!(null), &json!([1])));
        let text = folded(&report);
        for part in
            ["2 of 3: 2-3", "one root only: 1.", "unknown, no scan since the last activation", "may still be needed"]
        {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn root_that_was_removed_says_how_many_objects_it_still_opens() {
        let scan = Scan { recorded: 1_763_816_645, detail: "objects under generation 1: 12".into(), ..Scan::default() };
        let report = shown(&list([Some(12), Some(40), Some(40)], Some(scan.clone())));
        let text = folded(&report);
        for part in [
            "but still opens 12 objects: pkcs11",
            "Not proven to be rewritten: objects under generation 1: 12.",
            "Backups",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert_eq!(report.json["roots"][0]["objects"], 12);
        let proven = Scan { rewritten: true, rewritten_since: 1_763_816_645, detail: String::new(), ..scan };
        let text = folded(&shown(&list([Some(0), Some(52), Some(52)], Some(proven))));
        assert!(text.contains("proven since 2025-11-22T13:04:05Z") && !text.contains("Taken from"), "{text}");
    }
}
