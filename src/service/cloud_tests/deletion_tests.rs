//! Generations that are deleted, on a test's clock: how long they wait, what holds them up, and what is left of them.

use std::cell::Cell;
use std::time::Duration;

use keystead_core::availability::Availability;
use keystead_core::keyring::GenerationState;
use keystead_core::scan::{Findings, Source};
use keystead_core::{FaultClass, GenerationNumber};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::world_tests::{HOUR, Mood, World};
use crate::service::deletion::{DeleteError, DeletionReport, ScheduleRequest, Standing};
use crate::service::keys::{Encrypted, ServeError};

const DAY: u64 = 24 * HOUR;

fn request(generation: &str, confirm: Option<&str>) -> ScheduleRequest {
    let confirm = confirm.map(str::to_owned);
    ScheduleRequest { generation: generation.into(), wait: None, confirm, by: Some(7) }
}

async fn rotate(world: &World) {
    world.daemon().rotate(Some("a test".parse().unwrap()), |_| ()).await.unwrap();
}

/// Has the daemon keep a scan that found so many objects under the first generation, and one under the active one.
async fn scan(world: &World, old: u64) {
    assert!(try_scan(world, old).await);
}

async fn try_scan(world: &World, old: u64) -> bool {
    let keyring = world.keyring();
    let active = keyring.active().unwrap().key_id.clone();
    let objects = [(keyring.generations[0].key_id.clone(), old), (active, 1)].into();
    let source = Source::Etcd { cluster: 1, member: 1 };
    let findings = Findings { source, revision: 1, restricted: false, objects, unknown: 0 };
    world.daemon().record_scan(findings).await.is_ok()
}

async fn schedule(world: &World) -> Result<DeletionReport, DeleteError> {
    let key_id = world.keyring().generations[0].key_id.to_string();
    world.daemon().schedule_deletion(request("1", Some(&key_id))).await
}

/// Generation 1 waits for seven days; generation 2 is active.
async fn waiting(world: &World) -> Encrypted {
    let old = world.encrypt(b"old").unwrap();
    rotate(world).await;
    scan(world, 0).await;
    schedule(world).await.unwrap();
    old
}

fn state(world: &World) -> GenerationState {
    world.keyring().generations[0].state
}

fn report(world: &World) -> DeletionReport {
    world.daemon().deletions().pop().expect("a deletion")
}

async fn decrypt(world: &World, sealed: &Encrypted) -> Result<(), ServeError> {
    world.daemon().keys().decrypt(&sealed.key_id, &sealed.ciphertext).await.map(drop)
}

#[tokio::test]
async fn generation_is_destroyed_after_seven_served_days_and_not_before() {
    let mut world = World::online().await;
    let old = waiting(&world).await;
    let epoch = world.keyring().epoch;
    world.pass(7 * DAY - 60, 600).await;
    assert_eq!((state(&world), report(&world).left.as_secs()), (GenerationState::PendingDeletion, 60));
    world.pass(60, 20).await;
    let keyring = world.keyring();
    let dead = &keyring.generations[0];
    assert_eq!((dead.state, dead.wraps.len()), (GenerationState::Destroyed, 0));
    assert_eq!((dead.tombstone.as_ref().unwrap().by, keyring.unfinished().count()), (Some(7), 0));
    assert!(keyring.epoch > epoch, "earlier records are worthless");
    let copies = &keyring.upstream.as_ref().unwrap().copies;
    assert_eq!(copies.iter().map(|copy| copy.generation.0).collect::<Vec<_>>(), [2]);
    assert_eq!(decrypt(&world, &old).await, Err(ServeError::Destroyed));
    world.restart().await;
    assert_eq!(decrypt(&world, &old).await, Err(ServeError::Destroyed));
    rotate(&world).await;
    assert_eq!(world.keyring().active().unwrap().number, GenerationNumber(3));
}

#[tokio::test]
async fn cmk_of_a_destroyed_generation_is_gone_from_the_token_and_no_other() {
    let mut world = World::bare();
    world.init_as(None).await.unwrap();
    world.start().await;
    let old = world.encrypt(b"old").unwrap();
    assert_eq!(world.token.cmks(), 1);
    rotate(&world).await;
    scan(&world, 0).await;
    schedule(&world).await.unwrap();
    world.token.take_away(true);
    // It is over while the token is away: nothing is destroyed, and the key in memory serves on.
    world.pass(8 * DAY, 600).await;
    assert_eq!((state(&world), report(&world).standing), (GenerationState::PendingDeletion, Standing::Held));
    assert!(report(&world).detail.contains("online"), "{}", report(&world).detail);
    world.token.take_away(false);
    world.pass(60, 10).await;
    assert_eq!((state(&world), world.token.cmks()), (GenerationState::Destroyed, 0));
    assert_eq!(decrypt(&world, &old).await, Err(ServeError::Destroyed));
    assert_eq!(world.availability(), Availability::Online);
}

#[tokio::test]
async fn deletion_is_cancelled_also_while_the_token_is_away() {
    let mut world = World::online().await;
    let old = waiting(&world).await;
    world.token.take_away(true);
    world.pass(8 * DAY, 600).await;
    world.daemon().cancel_deletion("1").await.unwrap();
    assert_eq!(world.record().generations[0].state, GenerationState::Retired);
    world.token.take_away(false);
    world.pass(60, 10).await;
    world.restart().await;
    assert_eq!((state(&world), world.availability()), (GenerationState::Retired, Availability::Online));
    assert!(world.decrypts(&old, b"old").await);
}

#[tokio::test]
async fn clocks_that_jump_and_machines_that_are_off_neither_shorten_nor_reset_the_wait() {
    const YEAR: i64 = 365 * 24 * 3600;
    let mut world = World::online().await;
    waiting(&world).await;
    world.pass(2 * DAY, 600).await;
    for by in [YEAR, -YEAR, -YEAR, 2 * YEAR] {
        world.clock.set_wall(by);
        world.tend().await;
    }
    assert_eq!(report(&world).left.as_secs(), 5 * DAY);
    for lose_clock in [false, true] {
        world.reboot(30 * DAY, lose_clock).await;
        world.pass(60, 20).await;
        let left = report(&world).left.as_secs();
        assert!((5 * DAY - 120..=5 * DAY + HOUR).contains(&left), "{left}");
    }
    // Half a year in which the daemon does not run, on a machine that does.
    world.kill();
    world.clock.run(180 * DAY);
    world.start().await;
    assert!(report(&world).left.as_secs() >= 5 * DAY - 120, "{}", report(&world).left.as_secs());
    assert_eq!(state(&world), GenerationState::PendingDeletion);
    // A restart gives nothing back beyond the last hour.
    for _ in 0..10 {
        world.pass(10 * HOUR, 600).await;
        world.restart().await;
    }
    let left = report(&world).left.as_secs();
    assert!((20 * HOUR - 300..=31 * HOUR).contains(&left), "{left}");
}

#[tokio::test]
async fn waiting_costs_the_disk_an_hourly_write_and_nothing_once_it_is_over() {
    let world = World::online().await;
    waiting(&world).await;
    let revision = |world: &World| world.record().revision;
    // The cloud's lease is stored hourly by itself: what comes on top is the countdown.
    let before = revision(&world);
    world.pass(DAY, 600).await;
    let writes = revision(&world) - before;
    assert!(writes <= 50, "{writes} writes a day, two syncs each");
    assert!(world.record().generations[0].pending.as_ref().unwrap().wait.left().as_secs() <= 6 * DAY + HOUR);
}

#[tokio::test]
async fn decrypt_while_it_waits_suspends_the_deletion_until_a_person_acts() {
    let mut world = World::online().await;
    let old = waiting(&world).await;
    world.pass(DAY, 600).await;
    decrypt(&world, &old).await.unwrap();
    world.tend().await;
    let suspended = report(&world);
    assert_eq!((suspended.standing, suspended.decrypts), (Standing::Suspended, 1));
    for word in ["decrypted while it waited", "keystead etcd scan", "cancel-deletion --generation 1"] {
        assert!(suspended.detail.contains(word), "{}", suspended.detail);
    }
    world.restart().await;
    world.pass(30 * DAY, 3000).await;
    assert_eq!((state(&world), report(&world).standing), (GenerationState::PendingDeletion, Standing::Suspended));
    decrypt(&world, &old).await.unwrap();
    // Only after a new scan; and it begins anew.
    assert!(schedule(&world).await.unwrap_err().to_string().contains("no scan of etcd"));
    scan(&world, 0).await;
    schedule(&world).await.unwrap();
    world.tend().await;
    let again = report(&world);
    assert_eq!((again.standing, again.left.as_secs(), again.decrypts), (Standing::Waiting, 7 * DAY, 0));
    world.pass(7 * DAY, 600).await;
    assert_eq!(state(&world), GenerationState::Destroyed);
}

#[tokio::test]
async fn decrypt_after_the_scan_voids_it_for_a_suspended_deletion_too() {
    let world = World::online().await;
    let old = waiting(&world).await;
    scan(&world, 3).await;
    world.tend().await;
    assert_eq!(report(&world).standing, Standing::Suspended);
    scan(&world, 0).await;
    decrypt(&world, &old).await.unwrap();
    assert!(schedule(&world).await.unwrap_err().to_string().contains("no scan of etcd"));
    // However often it is used meanwhile, that costs no writes, and a scan after it counts.
    let before = world.record().revision;
    for _ in 0..20 {
        decrypt(&world, &old).await.unwrap();
        world.pass(30, 10).await;
    }
    assert!(world.record().revision <= before + 1, "{} writes", world.record().revision - before);
    scan(&world, 0).await;
    world.tend().await;
    schedule(&world).await.unwrap();
    assert_eq!(report(&world).standing, Standing::Waiting);
}

#[tokio::test]
async fn scan_that_finds_objects_suspends_and_one_that_proves_nothing_holds() {
    let world = World::online().await;
    waiting(&world).await;
    rotate(&world).await;
    world.tend().await;
    assert!(report(&world).detail.contains("no scan of etcd was recorded since generation 3"));
    world.pass(8 * DAY, 600).await;
    assert_eq!((state(&world), report(&world).standing), (GenerationState::PendingDeletion, Standing::Held));
    scan(&world, 5).await;
    world.tend().await;
    let suspended = report(&world);
    assert_eq!(suspended.standing, Standing::Suspended);
    assert!(suspended.detail.contains("found 5 objects"), "{}", suspended.detail);
    // A clean scan alone does not take it up again: a person does.
    scan(&world, 0).await;
    world.pass(DAY, 600).await;
    assert_eq!(report(&world).standing, Standing::Suspended);
    world.daemon().cancel_deletion("1").await.unwrap();
    assert_eq!(state(&world), GenerationState::Retired);
    scan(&world, 0).await;
    schedule(&world).await.unwrap();
    world.pass(7 * DAY, 600).await;
    assert_eq!(state(&world), GenerationState::Destroyed);
}

#[tokio::test]
async fn what_holds_a_deletion_lets_it_go_on_once_a_scan_proves_it() {
    let world = World::online().await;
    waiting(&world).await;
    rotate(&world).await;
    world.pass(8 * DAY, 600).await;
    assert_eq!(report(&world).standing, Standing::Held);
    scan(&world, 0).await;
    world.tend().await;
    assert_eq!(state(&world), GenerationState::Destroyed);
}

#[tokio::test]
async fn cancelled_deletion_cannot_be_brought_back_by_an_earlier_record() {
    let mut world = World::online().await;
    let old = waiting(&world).await;
    world.pass(6 * DAY, 600).await;
    let late = world.back_up();
    world.daemon().cancel_deletion("1").await.unwrap();
    world.kill();
    let cancelled = world.back_up();
    world.put_back(&late);
    world.start().await;
    assert!(world.reason().contains("stale"), "{}", world.reason());
    world.kill();
    world.put_back(&cancelled);
    world.start().await;
    assert_eq!(state(&world), GenerationState::Retired);
    assert!(world.decrypts(&old, b"old").await);
}

#[tokio::test]
async fn refusals_say_what_is_allowed_and_change_nothing() {
    let world = World::online().await;
    let refused = async |request: ScheduleRequest| {
        let before = world.record();
        let refused = world.daemon().schedule_deletion(request).await.unwrap_err().to_string();
        assert_eq!(world.record(), before);
        refused
    };
    let told = refused(request("1", None)).await;
    assert_eq!(told, "generation 1 is active; only a retired generation can be scheduled: there is none");
    rotate(&world).await;
    assert!(refused(request("1", None)).await.contains("no scan of etcd"));
    scan(&world, 2).await;
    assert!(refused(request("1", None)).await.contains("objects under generation 1: 2"));
    scan(&world, 0).await;
    assert!(refused(request("9", None)).await.contains("there is no generation 9"));
    let key_id = world.keyring().generations[0].key_id.to_string();
    for wrong in ["", "1", "yes", &key_id[..key_id.len() - 1], world.keyring().generations[1].key_id.as_str()] {
        assert!(refused(request("1", Some(wrong))).await.contains("not confirmed"), "{wrong}");
    }
    for seconds in [0, 1, DAY - 1, 367 * DAY, u64::MAX] {
        let wait = Some(Duration::from_secs(seconds));
        assert!(refused(ScheduleRequest { wait, ..request("1", Some(&key_id)) }).await.contains("86400"), "{seconds}");
    }
    // A question changes nothing either.
    let before = world.record();
    let would = world.daemon().schedule_deletion(request(&key_id, None)).await.unwrap();
    assert_eq!((would.left.as_secs(), world.record()), (7 * DAY, before));
    let told = world.daemon().cancel_deletion("1").await.unwrap_err().to_string();
    assert!(told.contains("only one that is pending deletion can be cancelled: there is none"), "{told}");
    assert!(world.daemon().deletions().is_empty());
    world.cloud_says(Mood::Fails(FaultClass::KeyDisabled)).await;
    assert!(matches!(schedule(&world).await, Err(DeleteError::Refused(_))));
}

#[tokio::test]
async fn two_who_want_different_things_have_one_outcome_each() {
    let world = World::online().await;
    waiting(&world).await;
    let (cancelled, again) = tokio::join!(world.daemon().cancel_deletion("1"), world.daemon().cancel_deletion("1"));
    assert!(cancelled.is_ok() && again.is_err());
    let rotation = world.daemon().rotate(Some("a test".parse().unwrap()), |_| ());
    let (rotated, scheduled) = tokio::join!(rotation, schedule(&world));
    rotated.unwrap();
    // The rotation came first: its proof is void.
    assert!(scheduled.unwrap_err().to_string().contains("no scan of etcd was recorded since generation 3"));
    scan(&world, 0).await;
    let (first, second) = tokio::join!(schedule(&world), schedule(&world));
    assert!(first.is_ok());
    assert!(second.unwrap_err().to_string().contains("waits for its deletion already"));
}

#[tokio::test]
async fn full_disk_destroys_nothing_and_costs_at_most_time() {
    let world = World::online().await;
    let old = waiting(&world).await;
    world.pass(7 * DAY - 600, 600).await;
    world.fill_disk(true);
    world.pass(DAY, 600).await;
    assert_eq!(state(&world), GenerationState::PendingDeletion);
    assert_eq!(world.record().generations[0].state, GenerationState::PendingDeletion);
    assert!(world.daemon().cancel_deletion("1").await.is_err());
    world.fill_disk(false);
    world.pass(60, 10).await;
    assert_eq!(state(&world), GenerationState::PendingDeletion);
    assert!(world.decrypts(&old, b"old").await, "what was not destroyed opens");
    world.daemon().cancel_deletion("1").await.unwrap();
    assert_eq!(world.token.epochs().len(), 1);
}

/// The object on a token is for tests/e2e; here it is the offline copy that must not outlive its generation.
#[cfg(feature = "failpoints")]
#[tokio::test]
async fn destruction_killed_anywhere_is_finished_and_leaves_no_offline_copy() {
    use super::kills_tests::killed_at;
    let of_destruction = crate::failpoint::DELETION.iter().skip_while(|name| **name != "deletion.intent-recorded");
    for point in of_destruction.chain(&["epoch.created", "epoch.record-written", "epoch.old-destroyed"]) {
        let mut world = World::alone().await;
        let old = waiting(&world).await;
        let new = world.encrypt(b"new").unwrap();
        world.pass(7 * DAY - 60, 600).await;
        let hit = killed_at(&mut world, point, async |world| world.pass(120, 20).await).await;
        assert!(hit, "{point} is never met");
        world.cloud.says(Mood::Fails(FaultClass::Unreachable));
        world.start().await;
        assert!(world.decrypts(&new, b"new").await, "{point}: {}", world.reason());
        world.cloud.says(Mood::Works);
        // At most what was served since the last store is served again.
        world.pass(2 * HOUR, 60).await;
        let keyring = world.keyring();
        assert_eq!((state(&world), keyring.unfinished().count()), (GenerationState::Destroyed, 0), "{point}");
        let copies = &keyring.upstream.as_ref().unwrap().copies;
        assert_eq!(copies.iter().map(|copy| copy.generation.0).collect::<Vec<_>>(), [2], "{point}");
        assert_eq!(
            (decrypt(&world, &old).await, world.token.epochs().len()),
            (Err(ServeError::Destroyed), 1),
            "{point}"
        );
    }
}

/// What somebody does, or what happens.
#[derive(Debug, Clone)]
enum Event {
    Pass { seconds: u64, step: u64 },
    Restart,
    Reboot { off: u64, lose_clock: bool },
    SetWall(i64),
    Disk { full: bool },
    Custody { away: bool },
    Cloud { away: bool },
    Rotate,
    Scan { old: u64 },
    Schedule,
    Cancel,
    Decrypt,
}

fn event() -> impl Strategy<Value = Event> {
    const YEAR: i64 = 365 * 24 * 3600;
    prop_oneof![
        8 => (4..30_u64).prop_map(|hours| Event::Pass { seconds: hours * HOUR, step: 1800 }),
        2 => (1..1200_u64).prop_map(|seconds| Event::Pass { seconds, step: 60 }),
        2 => Just(Event::Restart),
        1 => (0..2_000_000_u64, any::<bool>()).prop_map(|(off, lose_clock)| Event::Reboot { off, lose_clock }),
        1 => prop::sample::select(vec![-YEAR, -3600, 3600, YEAR]).prop_map(Event::SetWall),
        1 => any::<bool>().prop_map(|full| Event::Disk { full }),
        1 => any::<bool>().prop_map(|away| Event::Custody { away }),
        1 => any::<bool>().prop_map(|away| Event::Cloud { away }),
        1 => Just(Event::Rotate),
        4 => prop::sample::select(vec![0, 0, 0, 0, 0, 3]).prop_map(|old| Event::Scan { old }),
        4 => Just(Event::Schedule),
        1 => Just(Event::Cancel),
        1 => Just(Event::Decrypt),
    ]
}

/// On the disk: memory may know of no record.
fn is_destroyed(world: &World) -> bool {
    world.record().generations[0].state == GenerationState::Destroyed
}

/// Seconds that were served since the first generation was last scheduled, and whether it was needed since.
async fn live(events: Vec<Event>) -> Result<bool, TestCaseError> {
    let mut world = World::online().await;
    let old = world.encrypt(b"old").unwrap();
    rotate(&world).await;
    // What was decrypted while it waits, and is not on the disk yet: only this process knows.
    let (mut served, mut needed, mut unnoted) = (None, false, false);
    for event in events {
        let dead = is_destroyed(&world);
        match event.clone() {
            Event::Pass { seconds, step } => {
                let mut left = seconds;
                while left > 0 {
                    let now = left.min(step);
                    if world.serves() {
                        served = served.map(|served: u64| served + now);
                    }
                    world.pass(now, now).await;
                    left -= now;
                }
            }
            Event::Restart => {
                unnoted = false;
                world.restart().await;
            }
            Event::Reboot { off, lose_clock } => {
                unnoted = false;
                world.reboot(off, lose_clock).await;
            }
            Event::SetWall(by) => world.clock.set_wall(by),
            Event::Disk { full } => world.fill_disk(full),
            Event::Custody { away } => world.token.take_away(away),
            Event::Cloud { away } => {
                world.cloud.says(if away { Mood::Fails(FaultClass::Unreachable) } else { Mood::Works });
            }
            Event::Rotate => drop(world.daemon().rotate(Some("a test".parse().unwrap()), |_| ()).await),
            // No record was read yet: there is nothing to ask about.
            _ if world.daemon().keys().serving().keys.is_none() => {}
            Event::Scan { old } => {
                if try_scan(&world, old).await {
                    needed = old > 0;
                }
            }
            Event::Schedule => {
                let key_id = world.keyring().generations[0].key_id.to_string();
                let wait = Some(Duration::from_secs(DAY));
                let request = ScheduleRequest { wait, ..request("1", Some(&key_id)) };
                if world.daemon().schedule_deletion(request).await.is_ok() {
                    prop_assert!(!needed, "scheduled although it is needed");
                    served = Some(0);
                }
            }
            Event::Cancel => {
                if world.daemon().cancel_deletion("1").await.is_ok() {
                    (served, unnoted) = (None, false);
                }
            }
            // Before it is scheduled that proves nothing.
            Event::Decrypt => unnoted |= decrypt(&world, &old).await.is_ok() && served.is_some(),
        }
        world.tend().await;
        if unnoted && world.record().generations[0].pending.as_ref().is_some_and(|each| each.suspended.is_some()) {
            (needed, unnoted) = (true, false);
        }
        if is_destroyed(&world) && !dead {
            prop_assert!(served.is_some_and(|served| served >= DAY), "{event:?} destroyed it after {served:?}");
            prop_assert!(!needed && !unnoted, "{event:?} destroyed what is needed");
        }
    }
    world.fill_disk(false);
    world.token.take_away(false);
    world.cloud.says(Mood::Works);
    world.pass(HOUR, 60).await;
    let destroyed = is_destroyed(&world);
    prop_assert_eq!(world.availability(), Availability::Online);
    prop_assert!(destroyed || world.decrypts(&old, b"old").await, "lost, and no tombstone says so");
    prop_assert!(!destroyed || world.keyring().unfinished().next().is_none());
    let fresh = world.encrypt(b"fresh").unwrap();
    prop_assert!(world.decrypts(&fresh, b"fresh").await);
    Ok(destroyed)
}

#[test]
fn generation_is_destroyed_neither_early_nor_against_evidence_whatever_happens_to_its_site() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let destroyed = Cell::new(0);
    let config =
        ProptestConfig { cases: 48, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() };
    let outcome = TestRunner::new(config).run(&vec(event(), 1..60), |events| {
        destroyed.set(destroyed.get() + u32::from(runtime.block_on(live(events))?));
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    println!("destroyed in {} of 48 lives", destroyed.get());
}
