//! A key with its root in the cloud, switched off and on by an admin here: beside the lease, and beside what the cloud says.

use keystead_core::FaultClass;
use keystead_core::availability::{Availability, Cause};
use keystead_core::keyring::Disabling;

use super::roots_tests::change;
use super::world_tests::{HOUR, LEASE, Mood, World};
use crate::service::disable::{SwitchedOff, SwitchedOn};
use crate::service::keys::ServeError;
use crate::service::roots::RootsChange;

const AWAY: Mood = Mood::Fails(FaultClass::Unreachable);

fn order() -> Disabling {
    Disabling { since: 1, uid: Some(1000), login_uid: None, reason: Some("INC-7".parse().unwrap()) }
}

async fn disable(world: &World) -> SwitchedOff {
    world.daemon().disable(order()).await.unwrap()
}

async fn enable(world: &World) -> SwitchedOn {
    world.daemon().enable().await.unwrap()
}

fn is_disabled(world: &World) -> bool {
    world.availability() == Availability::Disabled
        && matches!(world.key_id(), Err(ServeError::Refused(_)))
        && world.daemon().keys().serving().keys.as_ref().is_none_or(|keys| keys.loaded() == 0)
}

#[tokio::test]
async fn renewals_keep_the_lease_of_a_disabled_key_and_never_bring_it_back() {
    let mut world = World::online().await;
    let encrypted = world.encrypt(b"seed").unwrap();
    assert!(disable(&world).await.changed);
    assert!(is_disabled(&world), "{}", world.reason());
    let calls = world.cloud.calls();
    world.pass(100 * HOUR, 120).await;
    assert!(is_disabled(&world));
    assert!(world.cloud.calls() > calls + 100, "the cloud is not asked any more");
    assert!(world.left() > LEASE.as_secs() - 2 * HOUR && world.stored_left() > LEASE.as_secs() - 2 * HOUR);
    assert_eq!(world.record().upstream.unwrap().copies.len(), 1, "the copy stays, sealed");
    world.restart().await;
    assert!(is_disabled(&world));
    world.cloud_says(Mood::Works).await;
    assert!(is_disabled(&world));
    assert_eq!(enable(&world).await.availability, Availability::Online);
    assert!(world.decrypts(&encrypted, b"seed").await);
}

#[tokio::test]
async fn key_disabled_and_enabled_without_the_cloud_serves_again_while_the_lease_runs() {
    let mut world = World::online().await;
    let encrypted = world.encrypt(b"seed").unwrap();
    world.cloud_says(AWAY).await;
    disable(&world).await;
    assert!(is_disabled(&world));
    world.pass(10 * HOUR, 420).await;
    world.reboot(60, true).await;
    assert!(is_disabled(&world), "{}", world.reason());
    let (left, epoch) = (world.left(), world.record().epoch);
    assert!(left < LEASE.as_secs() - 10 * HOUR, "the lease runs on");
    let on = enable(&world).await;
    assert!(matches!(on.availability, Availability::Degraded { cause: Cause::Upstream(_), .. }), "{on:?}");
    assert!(world.decrypts(&encrypted, b"seed").await);
    assert!(world.left() <= left && world.record().epoch > epoch);
    // What this boot has cost stands in the record: it is not given back by another reboot.
    world.reboot(60, true).await;
    assert!(world.left() <= left.saturating_sub(15 * 60), "{} of {left}", world.left());
}

#[tokio::test]
async fn folder_from_before_a_boot_without_the_cloud_gives_a_disabled_key_no_time_back() {
    let mut world = World::online().await;
    world.cloud_says(AWAY).await;
    disable(&world).await;
    let backup = world.back_up();
    world.pass(10 * HOUR, 420).await;
    world.reboot(60, true).await;
    world.kill();
    world.put_back(&backup);
    world.start().await;
    assert!(!world.serves() && world.reason().contains("stale"), "{}", world.reason());
}

#[tokio::test]
async fn lease_used_up_while_disabled_needs_the_cloud_after_enabling() {
    let world = World::online().await;
    let encrypted = world.encrypt(b"seed").unwrap();
    world.cloud_says(AWAY).await;
    disable(&world).await;
    world.pass(LEASE.as_secs() + 600, 600).await;
    assert!(is_disabled(&world));
    assert_eq!(enable(&world).await.availability, Availability::Expired);
    world.cloud_says(Mood::Works).await;
    assert_eq!(world.availability(), Availability::Online, "{}", world.reason());
    assert!(world.decrypts(&encrypted, b"seed").await);
}

#[tokio::test]
async fn revocation_is_heard_while_disabled_and_neither_lifts_the_other() {
    let mut world = World::online().await;
    let encrypted = world.encrypt(b"seed").unwrap();
    disable(&world).await;
    world.cloud_says(Mood::Fails(FaultClass::KeyDisabled)).await;
    assert!(matches!(world.availability(), Availability::Revoked { .. }), "{}", world.reason());
    assert!(world.reason().contains("INC-7"), "{}", world.reason());
    assert!(world.marker() && world.record().upstream.unwrap().copies.is_empty(), "it is shredded");
    world.restart().await;
    assert!(matches!(world.availability(), Availability::Revoked { .. }));
    // The cloud gives it back, the admin has not.
    world.cloud_says(Mood::Works).await;
    assert!(is_disabled(&world), "{}", world.reason());
    world.cloud_says(Mood::Fails(FaultClass::KeyGone)).await;
    // The admin gives it back, the cloud has not.
    let on = enable(&world).await;
    assert!(on.changed && matches!(on.availability, Availability::Revoked { .. }), "{on:?}");
    world.restart().await;
    assert!(matches!(world.availability(), Availability::Revoked { .. }), "{}", world.reason());
    world.cloud_says(Mood::Works).await;
    assert_eq!(world.availability(), Availability::Online, "{}", world.reason());
    assert!(world.decrypts(&encrypted, b"seed").await);
    world.pass(120, 10).await;
    assert!(!world.marker() && world.report().copies_complete);
}

#[tokio::test]
async fn disabled_on_a_full_disk_or_without_custody_it_stays_so_over_a_reboot_and_is_recorded_later() {
    for custody in [false, true] {
        let mut world = World::online().await;
        let encrypted = world.encrypt(b"seed").unwrap();
        let before = world.back_up();
        world.fill_disk(!custody);
        world.token.take_away(custody);
        let off = disable(&world).await;
        assert!(off.changed && !off.disabled.recorded, "{off:?}");
        assert!(is_disabled(&world) && world.path("disabled").exists());
        assert!(world.daemon().enable().await.is_err(), "nothing could be written");
        assert!(is_disabled(&world));
        world.reboot(60, false).await;
        assert!(is_disabled(&world), "{}", world.reason());
        world.fill_disk(false);
        world.token.take_away(false);
        world.pass(60, 5).await;
        assert!(is_disabled(&world) && !world.path("disabled").exists());
        assert!(world.record().disabled.is_some());
        assert!(world.daemon().disabled().unwrap().recorded);
        world.kill();
        world.put_back(&before);
        world.start().await;
        assert!(!world.serves() && world.reason().contains("stale"), "{}", world.reason());
        drop(encrypted);
    }
}

#[tokio::test]
async fn rotation_is_refused_with_what_is_allowed_and_a_second_word_changes_nothing() {
    let world = World::online().await;
    disable(&world).await;
    let error = world.daemon().rotate(Some("a test".parse().unwrap()), |_| ()).await.unwrap_err().to_string();
    assert!(error.contains("INC-7") && error.contains("keystead key enable"), "{error}");
    let again = disable(&world).await;
    assert!(!again.changed && again.disabled.recorded);
    assert!(enable(&world).await.changed);
    let again = enable(&world).await;
    assert!(!again.changed && again.availability == Availability::Online);
}

#[tokio::test]
async fn grant_makes_the_lease_of_a_disabled_key_longer_and_leaves_it_disabled() {
    let world = World::online().await;
    world.cloud_says(AWAY).await;
    disable(&world).await;
    let left = world.left();
    world.daemon().extend_lease(&world.grant(1, 3600)).await.unwrap();
    assert!(world.left() > left && is_disabled(&world));
    assert!(world.record().disabled.is_some());
    assert!(matches!(enable(&world).await.availability, Availability::Degraded { .. }));
}

/// Renewals go on while it is disabled, and what they hear gives nothing back by itself.
#[tokio::test]
async fn older_generation_that_the_cloud_gave_back_meanwhile_opens_as_soon_as_the_key_is_enabled() {
    let world = World::online().await;
    let old = world.encrypt(b"old").unwrap();
    change(&world, RootsChange::RemoveUpstream).await.unwrap();
    world.cloud.says(Mood::Fails(FaultClass::KeyDisabled));
    world.pass(HOUR, 120).await;
    assert!(!world.decrypts(&old, b"old").await, "{}", world.reason());
    disable(&world).await;
    world.cloud.says(Mood::Works);
    world.pass(HOUR, 120).await;
    assert!(is_disabled(&world));
    assert_eq!(enable(&world).await.availability, Availability::Online);
    world.pass(2, 1).await;
    assert!(world.decrypts(&old, b"old").await, "{}", world.reason());
}
