//! Rotation on a schedule, with clocks that jump, a cloud that stays away, and Secrets that nobody rewrote.

use std::collections::BTreeMap;
use std::time::Duration;

use keystead_core::FaultClass;
use keystead_core::scan::{Findings, Source};
use keystead_core::schedule::Schedule;

use super::world_tests::{HOUR, Mood, World};
use crate::service::schedule::RotationOutlook;

const DAY: u64 = 24 * HOUR;
const YEAR: i64 = 365 * 86_400;

fn every(days: u64) -> Option<Schedule> {
    Some(Schedule { every: Duration::from_secs(days * DAY), jitter: Duration::ZERO, window: None })
}

/// With a key of now, and a rotation every 90 days. Its clock has run steadily for long enough to be believed.
async fn scheduled() -> World {
    let world = World::online().await;
    // The key was made by the machine's own clock and not by the test's.
    let activated = world.keyring().active().unwrap().activated.unwrap();
    let wall = i64::try_from(crate::service::clock::Clock::now(&*world.clock).wall).unwrap();
    world.clock.set_wall(i64::try_from(activated).unwrap() - wall);
    world.daemon().set_schedule(every(90));
    days_pass(&world, 0).await;
    world
}

/// With the daemon looked after, twice a day.
async fn days_pass(world: &World, days: u64) {
    for _ in 0..days * 2 {
        world.clock.run(DAY / 2);
        looked_after(world).await;
    }
    // Where a day begins, the cloud has just been asked.
    world.clock.run(2 * HOUR);
    looked_after(world).await;
}

async fn looked_after(world: &World) {
    world.tend().await;
    world.daemon().follow_schedule().await;
}

fn outlook(world: &World) -> RotationOutlook {
    world.daemon().rotation_outlook().unwrap()
}

fn generation(world: &World) -> u64 {
    world.keyring().active().unwrap().number.0
}

/// Everything is rewritten, and a scan shows it.
async fn rewrite(world: &World) {
    let key_id = world.keyring().active().unwrap().key_id.clone();
    let findings = Findings {
        source: Source::Etcd { cluster: 1, member: 1 },
        revision: 9,
        restricted: false,
        objects: BTreeMap::from([(key_id, 3)]),
        unknown: 0,
    };
    world.daemon().record_scan(findings).await.unwrap();
}

#[tokio::test]
async fn key_is_rotated_when_it_is_old_enough_and_the_next_waits_for_the_rewrite() {
    let world = scheduled().await;
    let old = world.encrypt(b"old").unwrap();
    days_pass(&world, 89).await;
    assert_eq!((generation(&world), outlook(&world).overdue), (1, 0));
    days_pass(&world, 1).await;
    assert_eq!(generation(&world), 2);
    assert!(world.decrypts(&old, b"old").await);
    let fresh = outlook(&world);
    assert!(fresh.age.seconds < DAY && fresh.waits.is_empty(), "{fresh:?}");
    assert_eq!(fresh.needed.iter().map(|(number, objects)| (number.0, *objects)).collect::<Vec<_>>(), [(1, None)]);

    days_pass(&world, 100).await;
    assert_eq!(generation(&world), 2, "nobody forces it");
    let late = outlook(&world);
    assert!(late.waits.contains("keystead etcd scan") && late.overdue > 9 * DAY && late.failures == 0, "{late:?}");
    rewrite(&world).await;
    world.daemon().follow_schedule().await;
    assert_eq!(generation(&world), 3, "it goes on by itself");
}

#[tokio::test]
async fn nothing_is_rotated_while_the_daemon_is_not_online() {
    let world = scheduled().await;
    days_pass(&world, 88).await;
    world.cloud_says(Mood::Fails(FaultClass::Unreachable)).await;
    for _ in 0..12 {
        world.clock.run(5 * HOUR);
        looked_after(&world).await;
    }
    let waits = outlook(&world);
    assert_eq!(generation(&world), 1);
    assert!(waits.waits.contains("not online") && waits.overdue > 0, "{waits:?}");
    world.cloud_says(Mood::Works).await;
    world.daemon().follow_schedule().await;
    assert_eq!(generation(&world), 2);
}

#[tokio::test]
async fn failed_rotation_is_tried_again_ever_later_and_counted() {
    let world = scheduled().await;
    days_pass(&world, 89).await;
    // Between two renewals the daemon does not know yet.
    world.cloud.says(Mood::Fails(FaultClass::Unreachable));
    world.clock.run(DAY);
    world.cloud.says(Mood::Works);
    world.tend().await;
    world.cloud.says(Mood::Fails(FaultClass::Denied));
    let mut tries = vec![];
    let mut minutes = 0;
    while tries.len() < 4 {
        world.daemon().follow_schedule().await;
        if outlook(&world).failures > tries.len() as u64 {
            tries.push(minutes);
        }
        assert_eq!(generation(&world), 1);
        world.clock.run(60);
        minutes += 1;
        assert!(minutes < 60, "{tries:?}");
    }
    assert_eq!(tries, [0, 5, 15, 35]);
    assert!(outlook(&world).waits.contains("is repeated in"), "{:?}", outlook(&world));
    world.cloud.says(Mood::Works);
    world.clock.run(3 * HOUR);
    looked_after(&world).await;
    // Each try took a number, and gave it up.
    assert_eq!(generation(&world), 6);
    assert_eq!((outlook(&world).waits.as_str(), outlook(&world).failures), ("", 4));
}

#[tokio::test]
async fn clock_that_jumps_makes_one_rotation_and_no_storm() {
    let mut world = scheduled().await;
    days_pass(&world, 1).await;
    world.clock.set_wall(YEAR);
    looked_after(&world).await;
    assert_eq!(generation(&world), 1);
    assert!(outlook(&world).waits.contains("run steadily"), "{:?}", outlook(&world));
    world.clock.set_wall(-YEAR);
    days_pass(&world, 1).await;
    assert_eq!(generation(&world), 1, "it was set right in time");

    world.clock.set_wall(YEAR);
    looked_after(&world).await;
    days_pass(&world, 1).await;
    assert_eq!(generation(&world), 2, "nobody could tell");
    rewrite(&world).await;
    for step in [-YEAR, YEAR, YEAR, -2 * YEAR, 3 * YEAR] {
        world.clock.set_wall(step);
        looked_after(&world).await;
        days_pass(&world, 2).await;
        assert_eq!(generation(&world), 2, "nothing hangs on the older one, and still");
    }
    // Not even by starting anew: what was activated a year from now is young.
    world.clock.set_wall(-3 * YEAR);
    world.restart().await;
    world.daemon().set_schedule(every(90));
    days_pass(&world, 2).await;
    assert_eq!(generation(&world), 2);
    assert!(outlook(&world).age.uncertain);
}

#[tokio::test]
async fn rotation_that_follows_the_cloud_s_key_version_begins_the_schedule_anew() {
    let world = scheduled().await;
    days_pass(&world, 60).await;
    world.cloud.rotates();
    days_pass(&world, 1).await;
    assert_eq!(generation(&world), 2, "followed");
    rewrite(&world).await;
    days_pass(&world, 45).await;
    assert_eq!(generation(&world), 2, "105 days after the first");
    days_pass(&world, 46).await;
    assert_eq!(generation(&world), 3, "90 days after the second");
}

#[tokio::test]
async fn announced_key_version_is_taken_up_by_the_scheduled_rotation() {
    let mut world = World::bare();
    world.policy = crate::service::cloud::OnKeyVersion::Announce;
    world.init().await;
    world.start().await;
    let wall = i64::try_from(crate::service::clock::Clock::now(&*world.clock).wall).unwrap();
    let activated = i64::try_from(world.keyring().active().unwrap().activated.unwrap()).unwrap();
    world.clock.set_wall(activated - wall);
    world.daemon().set_schedule(every(90));
    days_pass(&world, 80).await;
    world.cloud.rotates();
    days_pass(&world, 2).await;
    assert_eq!(generation(&world), 1);
    assert!(world.report().pending_version.is_some());
    days_pass(&world, 9).await;
    assert_eq!(generation(&world), 2);
    assert_eq!(world.report().pending_version, None);
}

#[tokio::test]
async fn generations_still_needed_are_those_that_no_scan_of_everything_cleared() {
    let world = scheduled().await;
    for _ in 0..2 {
        world.daemon().rotate(Some("a test".parse().unwrap()), |_| ()).await.unwrap();
    }
    let needed = || outlook(&world).needed.into_iter().map(|(number, objects)| (number.0, objects)).collect::<Vec<_>>();
    assert_eq!(needed(), [(1, None), (2, None)]);
    let scan = |counts: [u64; 3], restricted| Findings {
        source: Source::Etcd { cluster: 1, member: 1 },
        revision: 9,
        restricted,
        objects: world.keyring().generations.iter().map(|each| each.key_id.clone()).zip(counts).collect(),
        unknown: 0,
    };
    for (counts, restricted, expected) in [
        ([2, 0, 3], false, &[(1, Some(2))][..]),
        ([2, 0, 3], true, &[(1, Some(2)), (2, Some(0))]),
        // Older than the rotation, or another cluster's: it clears nothing.
        ([2, 0, 0], false, &[(1, Some(2)), (2, Some(0))]),
        ([0, 0, 0], false, &[(1, Some(0)), (2, Some(0))]),
        ([0, 0, 3], false, &[]),
    ] {
        world.daemon().record_scan(scan(counts, restricted)).await.unwrap();
        assert_eq!(needed(), expected, "{counts:?} {restricted}");
    }
}

#[tokio::test]
async fn schedule_that_is_changed_while_the_daemon_runs_holds_at_once() {
    let world = scheduled().await;
    days_pass(&world, 30).await;
    assert_eq!(generation(&world), 1);
    world.daemon().set_schedule(None);
    assert_eq!((outlook(&world).next, outlook(&world).age.seconds > 30 * DAY), (0, true));
    days_pass(&world, 70).await;
    assert_eq!(generation(&world), 1, "by hand only");
    world.daemon().set_schedule(every(95));
    world.daemon().follow_schedule().await;
    assert_eq!(generation(&world), 2, "what was seen of the clock is not forgotten");
}
