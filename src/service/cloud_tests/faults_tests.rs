//! Faults of the upstream and of the machine, each with the state it must lead to.

use keystead_core::FaultClass;
use keystead_core::availability::{Availability, Cause, SealReason};

use super::world_tests::{HOUR, LEASE, Mood, PROBE, World};
use crate::service::keys::ServeError;

const FLOOR: u64 = 15 * 60;
const YEAR: i64 = 365 * 24 * 3600;

fn cause(world: &World) -> Cause {
    match world.availability() {
        Availability::Degraded { cause, .. } => cause,
        other => panic!("{other:?}: {}", world.reason()),
    }
}

async fn offline() -> World {
    let world = World::online().await;
    world.cloud_says(Mood::Fails(FaultClass::Unreachable)).await;
    assert_eq!(cause(&world), Cause::Upstream(FaultClass::Unreachable));
    world
}

#[tokio::test]
async fn answers_that_are_no_revocation_degrade_and_a_success_brings_back() {
    use FaultClass::{Billing, Corrupt, CredentialFault, Denied, Unclassified, Unreachable};
    let world = World::online().await;
    let (id, encrypted) = (world.key_id().unwrap(), world.encrypt(b"seed").unwrap());
    for class in [Unreachable, CredentialFault, Billing, Denied, Corrupt, Unclassified] {
        world.cloud_says(Mood::Fails(class)).await;
        assert_eq!(cause(&world), Cause::Upstream(class));
        assert_eq!(world.key_id().unwrap(), id, "{class}: the key ID changed by an outage");
        assert!(world.decrypts(&encrypted, b"seed").await, "{class}");
        assert!(world.reason().contains("cloud"), "{}", world.reason());
        world.cloud_says(Mood::Works).await;
        assert_eq!(world.availability(), Availability::Online, "{class}");
        assert_eq!(world.report().lease_left, LEASE);
    }
    world.cloud_says(Mood::OtherKey).await;
    assert_eq!(cause(&world), Cause::Upstream(FaultClass::Corrupt), "an answer for another key");
    assert!(world.serves());
}

#[tokio::test]
async fn upstream_that_is_back_is_noticed_within_a_probe_interval() {
    let world = offline().await;
    world.pass(HOUR, 5).await;
    world.cloud.says(Mood::Works);
    world.pass(PROBE, 1).await;
    assert_eq!(world.availability(), Availability::Online);
}

#[tokio::test]
async fn answer_that_is_corrupt_at_a_start_is_no_reason_to_fall_back() {
    let mut world = World::online().await;
    world.cloud.says(Mood::Fails(FaultClass::Corrupt));
    world.restart().await;
    assert_eq!(world.availability(), Availability::Sealed(SealReason::NothingOpens));
    world.cloud_says(Mood::Works).await;
    assert_eq!(world.availability(), Availability::Online);
}

#[tokio::test]
async fn reboot_offline_serves_the_same_key_for_at_least_the_floor_less() {
    let mut world = offline().await;
    let (id, encrypted) = (world.key_id().unwrap(), world.encrypt(b"seed").unwrap());
    let (left, stored, epoch) = (world.left(), world.stored_left(), world.keyring().epoch);
    world.reboot(30, false).await;
    assert_eq!(world.key_id().unwrap(), id);
    assert!(world.decrypts(&encrypted, b"seed").await);
    assert!(world.encrypt(b"another").is_ok(), "an apiserver could not start");
    assert!(world.left() <= stored - FLOOR && world.left() <= left - 30, "{} of {left}", world.left());
    let left = world.left();
    assert_eq!(world.keyring().epoch, epoch + 1);
    assert_eq!(world.token.epochs(), [epoch + 1], "the old epoch is destroyed");
    world.reboot(5 * HOUR, false).await;
    assert!(world.left() <= left - 5 * HOUR, "the wall clock counts the time powered off");
}

/// Nobody knows how long another system ran on this machine, but the device that had power all the while.
#[tokio::test]
async fn device_with_a_clock_of_its_own_counts_what_the_wall_clock_has_lost() {
    let mut world = offline().await;
    world.token.shows(1000, 5);
    world.restart().await;
    // Stored with what it showed by then.
    world.pass(HOUR, 60).await;
    let stored = world.stored_left();
    world.token.shows(1000 + HOUR + 7 * HOUR, 6);
    world.reboot(0, true).await;
    let taken = stored - world.left();
    assert!((7 * HOUR..7 * HOUR + 15 * 60).contains(&taken), "{taken} s");
    // A restart reads it anew, and takes nothing for it.
    let left = world.left();
    world.token.shows(1000 + 20 * HOUR, 6);
    world.restart().await;
    assert_eq!(world.left(), left);
    // A device that was replaced, or cleared, gives nothing back.
    world.token.shows(1, 1_000_000);
    world.reboot(0, true).await;
    assert!((left - 2 * FLOOR..=left - FLOOR).contains(&world.left()), "{} of {left}", world.left());
}

/// Between two rolls an older record may be put back; a device that counts its resets makes it pay for the boots since.
#[tokio::test]
async fn folder_put_back_before_a_boot_pays_for_the_boots_that_the_device_counts() {
    let mut world = offline().await;
    world.token.shows(1000, 41);
    world.reboot(0, true).await;
    let (backup, left) = (world.back_up(), world.left());
    world.kill();
    // Boots of something else, or of a system whose records are thrown away.
    world.put_back(&backup);
    world.token.shows(1010, 41 + 20);
    world.clock.reboot(0, true);
    world.start().await;
    assert!(world.serves(), "{}", world.reason());
    assert!(world.left() <= left - 20 * FLOOR, "{} of {left}", world.left());
}

#[tokio::test]
async fn fifty_restarts_offline_change_nothing_but_the_time() {
    let mut world = offline().await;
    let (id, encrypted, left) = (world.key_id().unwrap(), world.encrypt(b"seed").unwrap(), world.left());
    let from = world.clock_now();
    for round in 0..50 {
        world.clock.run(7);
        world.restart().await;
        assert_eq!(world.key_id().unwrap(), id, "restart {round}");
        assert!(world.decrypts(&encrypted, b"seed").await, "restart {round}");
    }
    assert_eq!(left - world.left(), world.clock_now() - from);
}

#[tokio::test]
async fn three_hundred_crashes_in_one_boot_cost_the_time_that_passed_and_no_writes_of_their_own() {
    let mut world = offline().await;
    let (left, from) = (world.left(), world.clock_now());
    let (epoch, revision) = (world.keyring().epoch, world.keyring().revision);
    for _ in 0..300 {
        world.clock.run(2);
        world.restart().await;
        assert!(world.serves(), "{}", world.reason());
    }
    assert_eq!(left - world.left(), world.clock_now() - from);
    assert_eq!(world.keyring().epoch, epoch);
    assert!(world.keyring().revision - revision <= 2, "a crash loop wears the disk out");
}

#[tokio::test]
async fn reboots_use_the_lease_up_even_if_the_clock_is_lost_each_time() {
    let mut world = offline().await;
    let mut boots = 0;
    while world.availability() != Availability::Expired {
        world.reboot(10 * HOUR, true).await;
        boots += 1;
        assert!(boots <= 72 * 4, "the lease lives on reboots");
    }
    assert!(boots >= 72 * 3);
    assert!(matches!(world.key_id(), Err(ServeError::Refused(_))));
}

#[tokio::test]
async fn clock_set_back_or_forward_a_year_while_running_changes_nothing() {
    let world = offline().await;
    let (left, from) = (world.left(), world.clock_now());
    for by in [-YEAR, YEAR, YEAR, -YEAR] {
        world.clock.set_wall(by);
        world.pass(600, 60).await;
        assert!(world.serves());
    }
    assert_eq!(left - world.left(), world.clock_now() - from);
}

#[tokio::test]
async fn clock_back_a_year_over_a_reboot_gives_nothing_and_forward_takes_the_lease() {
    let mut world = offline().await;
    let (left, stored) = (world.left(), world.stored_left());
    world.clock.set_wall(-YEAR);
    world.reboot(60, false).await;
    assert!(world.serves() && world.left() <= stored - FLOOR && world.left() <= left - 60);
    world.clock.set_wall(2 * YEAR);
    world.reboot(60, false).await;
    assert_eq!(world.availability(), Availability::Expired);
    world.clock.set_wall(-YEAR);
    world.restart().await;
    assert_eq!(world.availability(), Availability::Expired, "a clock that is put back brings nothing back");
    world.cloud_says(Mood::Works).await;
    assert_eq!(world.availability(), Availability::Online);
}

#[tokio::test]
async fn folder_of_yesterday_gives_no_time_back_in_the_same_boot() {
    let mut world = offline().await;
    let backup = world.back_up();
    world.pass(24 * HOUR, 300).await;
    let left = world.left();
    world.kill();
    world.put_back(&backup);
    world.start().await;
    assert!(world.serves(), "{}", world.reason());
    assert!(world.left() <= left);
}

#[tokio::test]
async fn folder_from_before_a_start_offline_is_refused() {
    let mut world = offline().await;
    let backup = world.back_up();
    world.reboot(60, false).await;
    assert!(world.serves());
    world.kill();
    world.put_back(&backup);
    world.clock.reboot(60, true);
    world.start().await;
    assert_eq!(world.availability(), Availability::Sealed(SealReason::RecordRejected), "{}", world.reason());
    assert!(world.reason().contains("stale"), "{}", world.reason());
}

#[tokio::test]
async fn folder_from_before_a_boot_that_found_the_lease_used_up_is_refused() {
    let mut world = offline().await;
    let backup = world.back_up();
    world.pass(71 * HOUR, 600).await;
    assert!(world.serves());
    world.reboot(2 * HOUR, false).await;
    assert_eq!(world.availability(), Availability::Expired);
    world.kill();
    world.put_back(&backup);
    world.clock.reboot(60, true);
    world.start().await;
    assert_eq!(world.availability(), Availability::Sealed(SealReason::RecordRejected), "{}", world.reason());
}

#[tokio::test]
async fn full_disk_at_renewal_keeps_serving_and_is_made_up_for() {
    let world = World::online().await;
    world.fill_disk(true);
    let revision = world.record().revision;
    world.pass(3 * HOUR, 60).await;
    assert_eq!(world.availability(), Availability::Online);
    assert_eq!(world.record().revision, revision);
    world.cloud_says(Mood::Fails(FaultClass::Unreachable)).await;
    world.pass(HOUR, 60).await;
    assert!(world.serves());
    world.fill_disk(false);
    world.pass(120, 10).await;
    assert!(world.record().revision > revision);
    assert!(world.stored_left() - world.left() <= FLOOR);
}

#[tokio::test]
async fn full_disk_at_the_first_start_of_a_boot_offline_serves_nothing_that_is_not_stored() {
    let mut world = offline().await;
    world.fill_disk(true);
    world.restart().await;
    assert!(world.serves(), "in the same boot the countdown is exact without a write");
    world.reboot(60, false).await;
    assert!(matches!(world.availability(), Availability::Sealed(_)), "a reboot loop would cost nothing");
    world.fill_disk(false);
    world.pass(60, 10).await;
    assert!(world.serves(), "{}", world.reason());
}

#[tokio::test]
async fn custody_away_while_offline_serves_on_and_goes_on_storing_the_lease() {
    let world = offline().await;
    let encrypted = world.encrypt(b"seed").unwrap();
    world.token.take_away(true);
    world.pass(60, 5).await;
    assert_eq!(cause(&world), Cause::Both(FaultClass::Unreachable));
    assert!(world.reason().contains("DO NOT RESTART"), "{}", world.reason());
    let revision = world.record().revision;
    world.pass(2 * HOUR, 60).await;
    assert!(world.decrypts(&encrypted, b"seed").await);
    assert!(world.record().revision > revision, "the lease stands still on the disk");
    world.token.take_away(false);
    world.pass(60, 5).await;
    assert_eq!(cause(&world), Cause::Upstream(FaultClass::Unreachable));
    world.cloud_says(Mood::Works).await;
    assert_eq!(world.availability(), Availability::Online);
}

#[tokio::test]
async fn custody_away_at_a_start_is_sealed_until_it_is_back() {
    let mut world = offline().await;
    world.kill();
    world.token.take_away(true);
    world.start().await;
    assert!(matches!(world.availability(), Availability::Sealed(_)));
    world.token.take_away(false);
    world.pass(20, 5).await;
    assert!(world.serves(), "{}", world.reason());
}

#[tokio::test]
async fn lease_that_is_used_up_refuses_and_wipes_and_the_cloud_brings_back() {
    let mut world = offline().await;
    let encrypted = world.encrypt(b"seed").unwrap();
    world.pass(world.left() - 60, 120).await;
    assert!(world.serves(), "before its time");
    world.pass(180, 10).await;
    assert_eq!(world.availability(), Availability::Expired);
    assert!(matches!(world.encrypt(b"x"), Err(ServeError::Refused(_))));
    assert_eq!(world.daemon().keys().serving().keys.as_ref().unwrap().loaded(), 0);
    assert_eq!(world.keyring().upstream.unwrap().copies.len(), 1, "the copy is kept, sealed");
    assert_eq!(world.stored_left(), 0);
    world.restart().await;
    assert_eq!(world.availability(), Availability::Expired);
    world.reboot(0, true).await;
    assert_eq!(world.availability(), Availability::Expired, "a reboot has given something back");
    world.cloud_says(Mood::Works).await;
    assert_eq!(world.availability(), Availability::Online);
    assert!(world.decrypts(&encrypted, b"seed").await);
}
