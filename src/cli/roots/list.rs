//! `keystead roots list`.
//!
//! A CMK wraps one generation, so a token shows once a generation; a recovery key shows once.

use std::collections::BTreeMap;

use keystead_wire::admin::v1::Generation;
use serde_json::json;

use crate::cli::exit::Failure;
use crate::cli::key::Daemon;
use crate::cli::report::Report;
use crate::cli::table;

/// One root over all generations.
#[derive(Debug, Default)]
struct Root {
    constructions: Vec<String>,
    generations: Vec<u64>,
    opens_active: bool,
}

pub async fn report(mut daemon: Daemon) -> Result<Report, Failure> {
    let generations = daemon.generations().await?;
    Ok(shown(&generations))
}

fn shown(generations: &[Generation]) -> Report {
    let alive = || generations.iter().filter(|generation| generation.state != "destroyed");
    let mut roots: BTreeMap<(String, String), Root> = BTreeMap::new();
    for generation in alive() {
        for root in &generation.roots {
            let entry = roots.entry((root.kind.clone(), root.id.clone())).or_default();
            if !entry.constructions.contains(&root.construction) {
                entry.constructions.push(root.construction.clone());
            }
            if entry.generations.last() != Some(&generation.number) {
                entry.generations.push(generation.number);
            }
            entry.opens_active |= generation.state == "active";
        }
    }
    let total = alive().count();
    let single: Vec<u64> =
        alive().filter(|generation| generation.roots.len() < 2).map(|generation| generation.number).collect();
    let rows: Vec<Vec<String>> = roots
        .iter()
        .map(|((kind, id), root)| {
            let active = if root.opens_active { "yes" } else { "no" };
            vec![
                kind.clone(),
                "yes".into(),
                active.into(),
                format!("{} of {total}: {}", root.generations.len(), numbers(&root.generations)),
                id.clone(),
            ]
        })
        .collect();
    let mut text = table::columns(&["KIND", "DURABLE", "ACTIVE", "OPENS", "ID"], &rows);
    if !single.is_empty() {
        text.push_str(&format!(
            "Generations on one root only: {}. If that root is lost, so are their Secrets.\n",
            numbers(&single)
        ));
    }
    let list: Vec<_> = roots
        .iter()
        .map(|((kind, id), root)| {
            json!({
                "kind": kind, "id": id, "constructions": root.constructions, "durable": true,
                "opens_active": root.opens_active, "generations": root.generations,
            })
        })
        .collect();
    Report::done(text, json!({ "roots": list, "generations": total, "on_one_root": single }))
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
    use keystead_wire::admin::v1::Root as Wire;

    fn generation(number: u64, state: &str, roots: &[(&str, &str)]) -> Generation {
        let root = |(kind, id): &(&str, &str)| Wire {
            kind: (*kind).into(),
            id: (*id).into(),
            construction: "hpke-p256".into(),
        };
        Generation { number, state: state.into(), roots: roots.iter().map(root).collect(), ..Generation::default() }
    }

    #[test]
    fn recovery_key_shows_once_and_what_hangs_on_one_root_is_named() {
        let report = shown(&[
            generation(1, "retired", &[("pkcs11", "a1")]),
            generation(2, "retired", &[("pkcs11", "a2"), ("recovery", "ff")]),
            generation(3, "active", &[("pkcs11", "a3"), ("recovery", "ff")]),
            generation(4, "destroyed", &[]),
        ]);
        let recovery = &report.json["roots"][3];
        assert_eq!((recovery["kind"].as_str(), &recovery["generations"]), (Some("recovery"), &json!([2, 3])));
        assert_eq!(report.json["on_one_root"], json!([1]));
        assert!(report.text.contains("2 of 3: 2-3") && report.text.contains("one root only: 1."), "{}", report.text);
    }
}
