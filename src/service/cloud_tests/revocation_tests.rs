//! Revocation: at once, whatever else is broken; lifted by nothing but the cloud.

use keystead_core::FaultClass;
use keystead_core::availability::{Availability, Cause, SealReason};

use super::world_tests::{HOUR, LEASE, Mood, RENEW, World};
use crate::service::keys::ServeError;

fn is_revoked(world: &World) -> bool {
    matches!(world.availability(), Availability::Revoked { .. })
}

async fn revoked() -> World {
    let world = World::online().await;
    world.cloud_says(Mood::Fails(FaultClass::KeyDisabled)).await;
    assert!(is_revoked(&world), "{}", world.reason());
    world
}

#[tokio::test]
async fn key_disabled_or_gone_refuses_at_the_next_renewal_and_shreds_the_copies() {
    for class in [FaultClass::KeyDisabled, FaultClass::KeyGone] {
        let world = World::online().await;
        let epoch = world.keyring().epoch;
        world.cloud.says(Mood::Fails(class));
        world.pass(RENEW * 12 / 10 + 5, 5).await;
        assert_eq!(world.availability(), Availability::Revoked { class: Some(class) });
        assert!(matches!(world.key_id(), Err(ServeError::Refused(_))));
        assert_eq!(world.daemon().keys().serving().keys.as_ref().unwrap().loaded(), 0, "keys are left in memory");
        let record = world.record();
        let state = record.upstream.unwrap();
        assert_eq!(state.revoked.unwrap().class, class);
        assert!(state.copies.is_empty() && world.marker());
        assert_eq!(world.token.epochs(), [epoch + 1], "the copies' key is still there");
        assert!(!world.report().unstored);
    }
}

#[tokio::test]
async fn nothing_but_the_cloud_lifts_a_revocation() {
    let mut world = revoked().await;
    let backup = world.back_up();
    world.cloud.says(Mood::Fails(FaultClass::Unreachable));
    world.pass(HOUR, 60).await;
    assert!(is_revoked(&world), "an upstream that is away does not leave it");
    world.restart().await;
    assert!(is_revoked(&world));
    world.reboot(HOUR, true).await;
    assert!(is_revoked(&world));
    world.clock.set_wall(-1_000_000_000);
    world.restart().await;
    assert!(is_revoked(&world));
    // Without the marker, the record says it.
    world.kill();
    std::fs::remove_file(world.path("revoked")).unwrap();
    world.start().await;
    assert!(is_revoked(&world));
    // Without the record's word, the marker says it.
    world.kill();
    world.put_back(&backup);
    world.start().await;
    assert!(is_revoked(&world), "{}", world.reason());
    world.cloud_says(Mood::Works).await;
    assert_eq!(world.availability(), Availability::Online);
}

#[tokio::test]
async fn folder_from_before_a_revocation_is_refused() {
    let mut world = World::online().await;
    let backup = world.back_up();
    world.cloud_says(Mood::Fails(FaultClass::KeyDisabled)).await;
    world.kill();
    world.put_back(&backup);
    world.cloud.says(Mood::Fails(FaultClass::Unreachable));
    world.start().await;
    assert_eq!(world.availability(), Availability::Sealed(SealReason::RecordRejected), "{}", world.reason());
}

#[tokio::test]
async fn key_given_back_serves_again_with_every_generation_and_survives_a_restart_offline() {
    let mut world = World::online().await;
    let mut all = Vec::new();
    for round in 0..4_u8 {
        all.push(world.encrypt(&[round]).unwrap());
        world.daemon().rotate(Some("a test".parse().unwrap()), |_| ()).await.unwrap();
    }
    let id = world.key_id().unwrap();
    world.cloud_says(Mood::Fails(FaultClass::KeyDisabled)).await;
    assert!(is_revoked(&world));
    let calls = world.cloud.calls();
    world.cloud_says(Mood::Works).await;
    assert_eq!(world.availability(), Availability::Online);
    assert_eq!(world.key_id().unwrap(), id, "enabled again, the key is the same");
    assert!(!world.marker() && world.record().upstream.unwrap().revoked.is_none());
    assert!(world.report().copies_complete);
    assert!(world.cloud.calls() - calls <= 5 + 1, "one call for each generation");
    world.cloud.says(Mood::Fails(FaultClass::Unreachable));
    world.reboot(60, false).await;
    for (round, encrypted) in (0..4_u8).zip(&all) {
        assert!(world.decrypts(encrypted, &[round]).await, "generation {round}");
    }
    // And it can be revoked again.
    world.cloud_says(Mood::Fails(FaultClass::KeyDisabled)).await;
    assert!(is_revoked(&world) && world.marker());
    assert!(world.record().upstream.unwrap().copies.is_empty());
}

#[tokio::test]
async fn revocation_on_a_full_disk_refuses_at_once_and_stays_over_a_reboot() {
    let mut world = World::online().await;
    world.fill_disk(true);
    world.cloud_says(Mood::Fails(FaultClass::KeyDisabled)).await;
    assert!(is_revoked(&world) && world.marker());
    assert!(world.report().unstored);
    world.cloud.says(Mood::Fails(FaultClass::Unreachable));
    world.reboot(60, true).await;
    assert!(is_revoked(&world), "{}", world.reason());
    assert_eq!(world.record().upstream.unwrap().copies.len(), 1, "nothing could be written");
    world.fill_disk(false);
    world.pass(60, 5).await;
    assert!(is_revoked(&world));
    assert!(world.record().upstream.unwrap().copies.is_empty(), "made up for as soon as there is room");
    assert_eq!(world.token.epochs().len(), 1);
}

#[tokio::test]
async fn revocation_while_custody_is_away_refuses_at_once_and_shreds_when_it_is_back() {
    let mut world = World::online().await;
    world.token.take_away(true);
    world.pass(30, 5).await;
    world.cloud_says(Mood::Fails(FaultClass::KeyGone)).await;
    assert!(is_revoked(&world) && world.marker());
    world.cloud.says(Mood::Fails(FaultClass::Unreachable));
    world.restart().await;
    assert!(!world.serves());
    world.token.take_away(false);
    world.pass(60, 5).await;
    assert!(is_revoked(&world), "{}", world.reason());
    assert!(world.record().upstream.unwrap().copies.is_empty());
}

#[tokio::test]
async fn key_given_back_on_a_full_disk_serves_and_is_stored_later() {
    let world = revoked().await;
    world.fill_disk(true);
    world.cloud_says(Mood::Works).await;
    assert_eq!(world.availability(), Availability::Online);
    assert!(world.marker(), "the marker may go only when the record says so");
    assert!(world.report().unstored);
    world.fill_disk(false);
    world.pass(200, 10).await;
    assert!(!world.marker());
    assert!(world.report().copies_complete && !world.report().unstored);
}

#[tokio::test]
async fn permission_withdrawn_revokes_once_it_is_confirmed_also_over_restarts() {
    let mut world = World::online().await;
    world.cloud_says(Mood::Fails(FaultClass::Denied)).await;
    world.pass(25 * 60, 30).await;
    assert!(world.serves(), "not yet");
    assert!(world.report().denials >= 3);
    world.restart().await;
    assert!(world.serves(), "{}", world.reason());
    world.pass(25 * 60, 30).await;
    assert!(is_revoked(&world), "a restart has given it a second half-hour");
}

#[tokio::test]
async fn crash_loop_does_not_put_off_a_withdrawn_permission() {
    let mut world = World::online().await;
    world.cloud.says(Mood::Fails(FaultClass::Denied));
    let mut seconds = 0;
    while !is_revoked(&world) {
        world.clock.run(120);
        world.restart().await;
        seconds += 120;
        assert!(seconds <= 40 * 60, "restarts have put it off");
    }
    assert!(seconds >= 30 * 60);
}

#[tokio::test]
async fn permission_that_comes_back_is_forgiven() {
    let world = World::online().await;
    for _ in 0..4 {
        world.cloud_says(Mood::Fails(FaultClass::Denied)).await;
        world.pass(20 * 60, 30).await;
        assert!(world.serves());
        world.cloud_says(Mood::Works).await;
    }
    assert_eq!(world.availability(), Availability::Online);
}

#[tokio::test]
async fn wrong_region_in_the_configuration_is_no_revocation() {
    for class in [FaultClass::KeyGone, FaultClass::Denied, FaultClass::KeyDisabled] {
        let mut world = World::online().await;
        let encrypted = world.encrypt(b"seed").unwrap();
        world.kill();
        let right = world.cloud.clone();
        world.cloud = std::sync::Arc::new(right.in_region("two"));
        world.cloud.says(Mood::Fails(class));
        world.start().await;
        world.pass(2 * HOUR, 60).await;
        let Availability::Degraded { cause, .. } = world.availability() else { panic!("{}", world.reason()) };
        assert_eq!(cause, Cause::Configuration(class));
        assert!(world.reason().contains("[upstream]"), "{}", world.reason());
        assert!(world.decrypts(&encrypted, b"seed").await && !world.marker());
        world.kill();
        world.cloud = right;
        world.start().await;
        assert_eq!(world.availability(), Availability::Online, "mended");
        // Moved for good: once it has opened the key, the new configuration can revoke as well.
        world.kill();
        world.cloud = std::sync::Arc::new(world.cloud.in_region("two"));
        world.start().await;
        world.pass(60, 10).await;
        world.cloud_says(Mood::Fails(FaultClass::KeyGone)).await;
        assert!(is_revoked(&world));
    }
}

#[tokio::test]
async fn revocation_learnt_at_a_start_serves_nothing_on_the_way() {
    let mut world = World::online().await;
    world.kill();
    world.cloud.says(Mood::Fails(FaultClass::KeyDisabled));
    world.start().await;
    assert!(is_revoked(&world) && world.marker());
    assert!(world.record().upstream.unwrap().copies.is_empty());
}

#[tokio::test]
async fn with_the_network_cut_a_revocation_takes_effect_at_the_end_of_the_lease() {
    let world = World::online().await;
    world.cloud_says(Mood::Fails(FaultClass::Unreachable)).await;
    world.pass(LEASE.as_secs() + 60, 300).await;
    assert_eq!(world.availability(), Availability::Expired);
    world.cloud_says(Mood::Fails(FaultClass::KeyDisabled)).await;
    assert!(is_revoked(&world));
}
