//! Random lives of a site whose key came home from the cloud: the same events as of one whose key is there. What has its root
//! in the token is never taken away by the cloud; what has it there gains no rights.

use std::cell::Cell;

use keystead_core::FaultClass;
use keystead_core::availability::{Availability, Cause};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::property_tests::{CASES, Event, event, happens, steps};
use super::roots_tests::change;
use super::world_tests::{LEASE, Mood, World};
use crate::service::keys::Encrypted;
use crate::service::roots::RootsChange;

/// What an owner who sees everything would say of the generation that is rooted in the cloud.
#[derive(Default)]
struct Judge {
    revoked: bool,
    disabled: bool,
    /// Seconds it was open since the upstream last opened it.
    open: u64,
}

async fn live(events: Vec<Event>) -> Result<(), TestCaseError> {
    let mut world = World::online().await;
    let old = world.encrypt(b"old").unwrap();
    change(&world, RootsChange::RemoveUpstream).await.unwrap();
    let home = world.encrypt(b"home").unwrap();
    let mut judge = Judge::default();
    let mut backups = vec![world.back_up()];
    for event in events {
        let before = world.cloud.calls();
        match &event {
            Event::Pass { seconds, step } => {
                for now in steps(*seconds, *step) {
                    let before = world.cloud.calls();
                    pass(&world, &mut judge, &old, before, now).await?;
                }
            }
            Event::Enable => judge.disabled &= world.daemon().enable().await.is_err(),
            other => happens(other, &mut world, &mut backups, judge.revoked, &mut judge.disabled).await,
        }
        pass(&world, &mut judge, &old, before, 1).await?;
        if world.serves() {
            prop_assert!(world.decrypts(&home, b"home").await, "what came home does not open: {}", world.reason());
        }
    }
    world.fill_disk(false);
    world.token.take_away(false);
    world.cloud.says(Mood::Works);
    for _ in 0..200 {
        world.clock.run(15);
        world.tend().await;
    }
    if judge.disabled && !world.reason().contains("stale") {
        prop_assert_eq!(world.availability(), Availability::Disabled, "{}", world.reason());
        world.daemon().enable().await.unwrap();
        for _ in 0..20 {
            world.clock.run(15);
            world.tend().await;
        }
    }
    if world.availability() == Availability::Online {
        prop_assert!(world.decrypts(&home, b"home").await && world.decrypts(&old, b"old").await, "lost for good");
        prop_assert!(world.keyring().custody_only && !world.keyring().is_rooted_in_cloud());
    } else {
        prop_assert!(world.reason().contains("stale"), "{:?}: {}", world.availability(), world.reason());
    }
    Ok(())
}

async fn pass(
    world: &World,
    judge: &mut Judge,
    old: &Encrypted,
    calls: u64,
    seconds: u64,
) -> Result<(), TestCaseError> {
    judge.open += if world.decrypts(old, b"old").await { seconds } else { 0 };
    world.clock.run(seconds);
    world.tend().await;
    let (asked, mood) = (world.cloud.calls() > calls, world.cloud.mood());
    let opens = world.decrypts(old, b"old").await;
    if asked && mood == Mood::Works {
        *judge = Judge { disabled: judge.disabled, ..Judge::default() };
    }
    if asked && matches!(mood, Mood::Fails(FaultClass::KeyDisabled | FaultClass::KeyGone)) {
        judge.revoked = true;
    }
    prop_assert!(!(judge.revoked && opens), "opens what was revoked");
    prop_assert!(!(judge.disabled && (opens || world.serves())), "serves what an admin disabled");
    prop_assert!(!opens || judge.open <= LEASE.as_secs() + 600, "opens beyond its lease");
    let own = matches!(
        world.availability(),
        Availability::Online | Availability::Degraded { cause: Cause::Custody, .. } | Availability::Sealed(_)
    ) || (judge.disabled && world.availability() == Availability::Disabled);
    prop_assert!(own, "the cloud takes away what is not its own: {:?}", world.availability());
    Ok(())
}

#[test]
fn site_that_came_home_is_neither_ended_by_the_cloud_nor_gains_rights_there() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (cases, events) = (Cell::new(0), Cell::new(0));
    let config =
        ProptestConfig { cases: CASES, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() };
    let outcome = TestRunner::new(config).run(&vec(event(), 1..40), |history| {
        let count = history.len();
        runtime.block_on(live(history))?;
        cases.set(cases.get() + 1);
        events.set(events.get() + count);
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    println!("sites that came home: {} random lives, {} events", cases.get(), events.get());
}
