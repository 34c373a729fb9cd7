//! The rows of `keystead status` on the key's age, its next rotation, and the generations that are still needed.

use std::time::Duration;

use keystead_wire::admin::v1::Rotation;
use serde_json::{Value, json};

use crate::cli::time;
use crate::config::units::show_duration;

pub fn rows(rotation: &Rotation) -> Vec<(&'static str, String)> {
    let age = time::span(rotation.key_age_seconds);
    let age = if rotation.key_age_uncertain { format!("{age} at least: the clock is, or was, behind") } else { age };
    let mut rows = vec![("Key age", age), ("Rotation", next(rotation))];
    if !rotation.needed.is_empty() {
        let needed = rotation.needed.iter().map(|each| match each.objects {
            Some(objects) => format!("generation {} ({objects} objects)", each.number),
            None => format!("generation {} (objects unknown)", each.number),
        });
        rows.push(("Still needed", needed.collect::<Vec<_>>().join(", ")));
    }
    rows
}

fn next(rotation: &Rotation) -> String {
    if rotation.every_seconds == 0 {
        return "by hand: no schedule is set".into();
    }
    let every = show_duration(Duration::from_secs(rotation.every_seconds));
    let window = match rotation.window.as_str() {
        "" => String::new(),
        window => format!(" ({window} UTC)"),
    };
    let schedule = format!("every {every}{window}");
    let moment = time::rfc3339(rotation.next).unwrap_or_default();
    match (rotation.overdue_seconds, rotation.waits.as_str()) {
        (0, "") => format!("{schedule}, next {moment}"),
        (0, _) => format!("{schedule}, due now, and waits: see below"),
        (overdue, "") => format!("{schedule}, OVERDUE by {}, next {moment}", time::span(overdue)),
        (overdue, _) => format!("{schedule}, OVERDUE by {}, and waits: see below", time::span(overdue)),
    }
}

pub fn json(rotation: &Rotation) -> Value {
    json!({
        "key_age_seconds": rotation.key_age_seconds,
        "key_age_uncertain": rotation.key_age_uncertain,
        "every_seconds": (rotation.every_seconds > 0).then_some(rotation.every_seconds),
        "jitter_seconds": rotation.jitter_seconds,
        "window": (!rotation.window.is_empty()).then_some(&rotation.window),
        "next": time::rfc3339(rotation.next),
        "waits": (!rotation.waits.is_empty()).then_some(&rotation.waits),
        "overdue_seconds": rotation.overdue_seconds,
        "failures": rotation.failures,
        "needed": rotation.needed.iter().map(|each| json!({
            "number": each.number, "objects": each.objects,
        })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use keystead_wire::admin::v1::NeededGeneration;

    fn scheduled() -> Rotation {
        Rotation {
            key_age_seconds: 12 * 86_400 + 3 * 3600,
            every_seconds: 90 * 86_400,
            next: 1_763_816_645,
            window: "sat,sun 01:00-05:00".into(),
            ..Rotation::default()
        }
    }

    #[test]
    fn age_and_next_rotation_are_told() {
        let expected = [
            ("Key age", "12d 3h".to_owned()),
            ("Rotation", "every 90d (sat,sun 01:00-05:00 UTC), next 2025-11-22T13:04:05Z".to_owned()),
        ];
        assert_eq!(rows(&scheduled()), expected);
        assert_eq!(json(&scheduled())["next"], "2025-11-22T13:04:05Z");
        let by_hand = Rotation { every_seconds: 0, next: 0, ..scheduled() };
        assert!(rows(&by_hand)[1].1.starts_with("by hand"));
        assert_eq!(json(&by_hand)["every_seconds"], Value::Null);
    }

    #[test]
    fn what_waits_or_is_still_needed_stands_out() {
        let needed =
            vec![NeededGeneration { number: 1, objects: Some(2) }, NeededGeneration { number: 2, objects: None }];
        let late =
            Rotation { overdue_seconds: 7200, waits: "x".into(), needed, key_age_uncertain: true, ..scheduled() };
        let rows = rows(&late);
        assert!(
            rows[0].1.contains("at least") && rows[1].1.ends_with("OVERDUE by 2h 0m, and waits: see below"),
            "{rows:?}"
        );
        assert_eq!(rows[2].1, "generation 1 (2 objects), generation 2 (objects unknown)");
        assert_eq!(json(&late)["needed"][1]["objects"], Value::Null);
    }
}
