//! Random lives of a site: answers of the cloud, time, restarts, reboots, moved clocks, restored folders, full disks, a
//! custody that comes and goes, rotations. Whatever their order, nothing gains rights.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use keystead_core::FaultClass;
use keystead_core::availability::Availability;
use keystead_core::keyring::Disabling;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::world_tests::{LEASE, Mood, World};
use crate::service::keys::Encrypted;

pub(super) const CASES: u32 = 64;

#[derive(Debug, Clone)]
pub(super) enum Event {
    CloudSays(Mood),
    Pass { seconds: u64, step: u64 },
    Restart,
    Reboot { off: u64, lose_clock: bool },
    SetWall(i64),
    BackUp,
    PutBack,
    Disk { full: bool },
    Custody { away: bool },
    Rotate,
    CloudRotates,
    Disable,
    Enable,
}

fn mood() -> impl Strategy<Value = Mood> {
    prop_oneof![
        4 => Just(Mood::Works),
        1 => Just(Mood::OtherKey),
        4 => Just(Mood::Fails(FaultClass::Unreachable)),
        4 => prop::sample::select(FaultClass::ALL.to_vec()).prop_map(Mood::Fails),
    ]
}

pub(super) fn event() -> impl Strategy<Value = Event> {
    const YEAR: i64 = 365 * 24 * 3600;
    prop_oneof![
        6 => mood().prop_map(Event::CloudSays),
        // Steps that let the lease be stored as often as in a daemon, which looks every few seconds.
        4 => (1..1200_u64).prop_map(|seconds| Event::Pass { seconds, step: 60 }),
        2 => (1..40_u64).prop_map(|hours| Event::Pass { seconds: hours * 3600, step: 420 }),
        3 => Just(Event::Restart),
        2 => (0..200_000_u64, any::<bool>()).prop_map(|(off, lose_clock)| Event::Reboot { off, lose_clock }),
        1 => prop::sample::select(vec![-YEAR, -3600, 3600, YEAR]).prop_map(Event::SetWall),
        1 => Just(Event::BackUp),
        2 => Just(Event::PutBack),
        1 => any::<bool>().prop_map(|full| Event::Disk { full }),
        1 => any::<bool>().prop_map(|away| Event::Custody { away }),
        1 => Just(Event::Rotate),
        1 => Just(Event::CloudRotates),
        1 => Just(Event::Disable),
        2 => Just(Event::Enable),
    ]
}

/// So many seconds, in steps.
pub(super) fn steps(seconds: u64, step: u64) -> impl Iterator<Item = u64> {
    (0..seconds).step_by(usize::try_from(step).unwrap()).map(move |passed| step.min(seconds - passed))
}

pub(super) type BackUp = BTreeMap<String, Vec<u8>>;

/// What every judge sees alike; time that passes and enabling are for each to look at. `revoked`: the daemon was told so.
pub(super) async fn happens(
    event: &Event,
    world: &mut World,
    backups: &mut Vec<BackUp>,
    revoked: bool,
    disabled: &mut bool,
) {
    match *event {
        Event::CloudSays(mood) => world.cloud.says(mood),
        Event::Restart => world.restart().await,
        Event::Reboot { off, lose_clock } => world.reboot(off, lose_clock).await,
        Event::SetWall(by) => world.clock.set_wall(by),
        Event::BackUp => backups.push(world.back_up()),
        Event::PutBack => {
            // What custody and disk have not been able to shred yet, nothing but this process keeps from serving.
            let shredded = !revoked || world.daemon().cloud_report().is_some_and(|report| !report.unstored);
            // Likewise while nothing but the marker tells that it is disabled: the folder is its owner's.
            let recorded = !*disabled || world.daemon().disabled().is_some_and(|disabled| disabled.recorded);
            if let Some(backup) = backups.last().filter(|_| shredded && recorded) {
                world.kill();
                world.put_back(backup);
                // A marker that comes back with the folder disables as one that was raised does.
                *disabled |= backup.contains_key("disabled");
                world.start().await;
            }
        }
        Event::Disk { full } => world.fill_disk(full),
        Event::Custody { away } => world.token.take_away(away),
        Event::Rotate => drop(world.daemon().rotate(Some("a test".parse().unwrap()), |_| ()).await),
        Event::CloudRotates => world.cloud.rotates(),
        Event::Disable => {
            let order = Disabling { since: 1, uid: Some(1), login_uid: None, reason: None };
            world.daemon().disable(order).await.unwrap();
            *disabled = true;
        }
        Event::Pass { .. } | Event::Enable => unreachable!("a judge's own"),
    }
}

/// What an owner who sees everything would say.
#[derive(Default)]
struct Judge {
    /// The daemon was told so, and not told otherwise since.
    revoked: bool,
    /// A class that can revoke was ever given since the last success.
    refused: bool,
    /// An admin was told that it is disabled, and nobody that it is enabled since.
    disabled: bool,
    /// Seconds it served since the upstream last opened the key.
    served: u64,
    encrypted: Vec<(Vec<u8>, Encrypted)>,
}

async fn live(events: Vec<Event>) -> Result<(), TestCaseError> {
    let mut world = World::online().await;
    let mut judge = Judge::default();
    let mut backups: Vec<BackUp> = Vec::new();
    judge.encrypted.push((b"first".to_vec(), world.encrypt(b"first").unwrap()));
    for (round, event) in events.into_iter().enumerate() {
        let before = Before::of(&world);
        match &event {
            Event::Pass { seconds, step } => {
                for now in steps(*seconds, *step) {
                    let before = Before::of(&world);
                    pass(&world, &mut judge, &before, now).await?;
                }
            }
            Event::Enable => {
                let revoked = is_revoked(&world);
                let calls = world.cloud.calls();
                if world.daemon().enable().await.is_ok() {
                    judge.disabled = false;
                }
                let given_back = world.cloud.calls() > calls && world.cloud.mood() == Mood::Works;
                prop_assert!(!revoked || is_revoked(&world) || given_back, "enabling lifted a revocation");
            }
            other => happens(other, &mut world, &mut backups, judge.revoked, &mut judge.disabled).await,
        }
        pass(&world, &mut judge, &before, 1).await?;
        if world.serves() {
            let plaintext = vec![u8::try_from(round).unwrap(); 32];
            let encrypted = world.encrypt(&plaintext).unwrap();
            let on_disk: BTreeSet<String> =
                world.record().generations.iter().map(|generation| generation.key_id.to_string()).collect();
            prop_assert!(on_disk.contains(&encrypted.key_id), "a key ID is served that is not stored");
            judge.encrypted.push((plaintext, encrypted));
        }
        if is_revoked(&world) && !before.revoked {
            // What was given back while the disk was full is, to the next start, not given back yet.
            prop_assert!(judge.refused || before.unstored, "{event:?} revoked what no one refused");
        }
    }
    // All is mended: nothing was lost on the way.
    let disabled = judge.disabled;
    world.fill_disk(false);
    world.token.take_away(false);
    world.cloud.says(Mood::Works);
    for _ in 0..200 {
        world.clock.run(15);
        world.tend().await;
    }
    if disabled && !world.reason().contains("stale") {
        prop_assert_eq!(world.availability(), Availability::Disabled, "{}", world.reason());
        prop_assert!(world.record().disabled.is_some(), "the record does not say it");
        world.daemon().enable().await.unwrap();
        for _ in 0..20 {
            world.clock.run(15);
            world.tend().await;
        }
    }
    if world.availability() == Availability::Online {
        let keyring = world.keyring();
        for (plaintext, encrypted) in &judge.encrypted {
            // A restored record may be from before a rotation; what it names, it opens.
            if keyring.generations.iter().any(|generation| generation.key_id.as_str() == encrypted.key_id) {
                prop_assert!(world.decrypts(encrypted, plaintext).await, "{} is lost", encrypted.key_id);
            }
        }
    } else {
        prop_assert!(world.reason().contains("stale"), "{:?}: {}", world.availability(), world.reason());
    }
    Ok(())
}

fn is_revoked(world: &World) -> bool {
    matches!(world.availability(), Availability::Revoked { .. })
}

/// How things stood before an event. The cloud says one thing throughout it.
struct Before {
    calls: u64,
    revoked: bool,
    unstored: bool,
}

impl Before {
    fn of(world: &World) -> Self {
        let unstored = world.daemon().cloud_report().is_some_and(|report| report.unstored);
        Self { calls: world.cloud.calls(), revoked: is_revoked(world), unstored }
    }
}

/// Lets time pass, and judges what the event before it and this have led to.
async fn pass(world: &World, judge: &mut Judge, before: &Before, seconds: u64) -> Result<(), TestCaseError> {
    judge.served += if world.serves() { seconds } else { 0 };
    world.clock.run(seconds);
    world.tend().await;
    let asked = world.cloud.calls() > before.calls;
    let mood = world.cloud.mood();
    if matches!(mood, Mood::Fails(FaultClass::Denied | FaultClass::KeyDisabled | FaultClass::KeyGone)) {
        judge.refused = true;
    }
    if asked && mood == Mood::Works {
        (judge.revoked, judge.refused, judge.served) = (false, false, 0);
    }
    if asked && matches!(mood, Mood::Fails(FaultClass::KeyDisabled | FaultClass::KeyGone)) {
        prop_assert!(!world.serves(), "told that the key is revoked, it serves");
        judge.revoked = true;
    }
    judge.revoked |= is_revoked(world);
    prop_assert!(!(judge.revoked && world.serves()), "serves what was revoked");
    prop_assert!(!(judge.disabled && world.serves()), "serves what an admin disabled");
    prop_assert!(
        !(before.revoked && world.serves() && !(asked && mood == Mood::Works)),
        "left revoked without the cloud"
    );
    prop_assert!(!world.serves() || judge.served <= LEASE.as_secs() + 600, "serves beyond its lease");
    Ok(())
}

#[test]
fn site_gains_no_rights_whatever_happens_to_it() {
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
    println!("sites: {} random lives, {} events", cases.get(), events.get());
}
