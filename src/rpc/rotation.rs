//! Age of the key and schedule of its rotation, on the wire.

use keystead_wire::admin::v1::{NeededGeneration, Rotation};

use crate::service::schedule::RotationOutlook;

pub fn shown(outlook: &RotationOutlook) -> Rotation {
    let schedule = outlook.schedule.as_ref();
    let window = schedule.and_then(|schedule| schedule.window);
    Rotation {
        key_age_seconds: outlook.age.seconds,
        key_age_uncertain: outlook.age.uncertain,
        every_seconds: schedule.map_or(0, |schedule| schedule.every.as_secs()),
        jitter_seconds: schedule.map_or(0, |schedule| schedule.jitter.as_secs()),
        window: window.map(|window| window.to_string()).unwrap_or_default(),
        next: outlook.next,
        waits: outlook.waits.clone(),
        overdue_seconds: outlook.overdue,
        failures: outlook.failures,
        needed: outlook
            .needed
            .iter()
            .map(|(number, objects)| NeededGeneration { number: number.0, objects: *objects })
            .collect(),
    }
}

/// What an operator should know of it.
pub fn warnings(rotation: &Rotation) -> Vec<String> {
    let mut warnings = Vec::new();
    if !rotation.waits.is_empty() {
        warnings.push(format!("a scheduled rotation is due and waits: {}", rotation.waits));
    }
    if rotation.key_age_uncertain && rotation.every_seconds > 0 {
        warnings.push(
            "the key's age is not known: this machine's clock is behind, or was when the key was made. Set the clock; the \
             schedule goes by what it has seen meanwhile"
                .into(),
        );
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warns_of_what_waits_and_of_an_age_that_a_schedule_cannot_tell() {
        assert!(warnings(&Rotation { key_age_uncertain: true, ..Rotation::default() }).is_empty(), "no schedule");
        let due =
            Rotation { every_seconds: 1, waits: "rewrite".into(), key_age_uncertain: true, ..Rotation::default() };
        let warnings = warnings(&due);
        assert!(warnings[0].ends_with("waits: rewrite") && warnings[1].contains("clock"), "{warnings:?}");
    }
}
