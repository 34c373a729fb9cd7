//! Lease grants: good once, for one site, in one epoch, and never against a revocation.

use std::time::Duration;

use keystead_core::FaultClass;
use keystead_core::availability::Availability;
use keystead_core::grant::GrantError;

use super::world_tests::{HOUR, LEASE, Mood, World};
use crate::service::lease::ExtendError;

async fn expired() -> World {
    let world = World::online().await;
    world.cloud_says(Mood::Fails(FaultClass::Unreachable)).await;
    world.pass(LEASE.as_secs() + 600, 600).await;
    assert_eq!(world.availability(), Availability::Expired);
    world
}

#[tokio::test]
async fn grant_brings_expired_service_back_for_its_time_and_once() {
    let mut world = expired().await;
    let grant = world.grant(1, 24 * HOUR);
    let left = world.daemon().extend_lease(&grant).await.unwrap();
    assert_eq!(left, Duration::from_secs(24 * HOUR));
    assert!(world.serves(), "{}", world.reason());
    let again = world.daemon().extend_lease(&grant).await.unwrap_err();
    assert!(matches!(again, ExtendError::Grant(GrantError::OtherEpoch { .. })), "{again}");
    world.restart().await;
    assert!(world.serves());
    world.pass(24 * HOUR + 60, 600).await;
    assert_eq!(world.availability(), Availability::Expired);
    assert!(world.daemon().extend_lease(&grant).await.is_err());
}

#[tokio::test]
async fn folder_from_before_a_grant_does_not_make_it_good_again() {
    let mut world = expired().await;
    let backup = world.back_up();
    let grant = world.grant(1, 24 * HOUR);
    world.daemon().extend_lease(&grant).await.unwrap();
    world.kill();
    world.put_back(&backup);
    world.start().await;
    assert!(!world.serves());
    assert!(world.daemon().extend_lease(&grant).await.is_err());
}

#[tokio::test]
async fn grant_before_the_end_adds_to_what_is_left() {
    let world = World::online().await;
    world.cloud_says(Mood::Fails(FaultClass::Unreachable)).await;
    world.pass(60 * HOUR, 600).await;
    let left = world.left();
    world.daemon().extend_lease(&world.grant(1, 24 * HOUR)).await.unwrap();
    assert_eq!(world.left(), left + 24 * HOUR);
    assert!(world.serves());
}

#[tokio::test]
async fn grants_of_others_for_others_and_damaged_ones_change_nothing() {
    let world = expired().await;
    let before = world.record();
    let foreign = world.daemon().extend_lease(&world.grant(2, HOUR)).await.unwrap_err();
    assert!(matches!(foreign, ExtendError::Grant(GrantError::NotAuthentic)), "{foreign}");
    let elsewhere = world.beside().await;
    let other = world.daemon().extend_lease(&elsewhere.grant(1, HOUR)).await.unwrap_err();
    assert!(matches!(other, ExtendError::Grant(GrantError::OtherKey(_))), "{other}");
    let mut damaged = world.grant(1, HOUR);
    *damaged.last_mut().unwrap() ^= 1;
    assert!(world.daemon().extend_lease(&damaged).await.is_err());
    assert_eq!(world.availability(), Availability::Expired);
    assert_eq!(world.record(), before);
}

#[tokio::test]
async fn grant_while_online_or_revoked_is_refused() {
    let world = World::online().await;
    let refused = world.daemon().extend_lease(&world.grant(1, HOUR)).await.unwrap_err();
    assert!(matches!(refused, ExtendError::NotNeeded), "{refused}");
    world.cloud_says(Mood::Fails(FaultClass::KeyDisabled)).await;
    let refused = world.daemon().extend_lease(&world.grant(1, HOUR)).await.unwrap_err();
    assert!(matches!(refused, ExtendError::Revoked), "{refused}");
    assert!(!world.serves());
}

#[tokio::test]
async fn full_disk_applies_no_grant() {
    let world = expired().await;
    world.fill_disk(true);
    let failed = world.daemon().extend_lease(&world.grant(1, HOUR)).await.unwrap_err();
    assert!(matches!(failed, ExtendError::Storage(_)), "{failed}");
    assert_eq!(world.availability(), Availability::Expired);
    world.fill_disk(false);
    world.pass(30, 5).await;
    world.daemon().extend_lease(&world.grant(1, HOUR)).await.unwrap();
    assert!(world.serves());
}
