//! Killed at every failpoint of a start offline, a renewal, a revocation and the way back. A kill here is a panic that drops
//! the daemon where it stands; tests/e2e sends real signals.

use futures_util::FutureExt;
use keystead_core::FaultClass;
use keystead_core::availability::Availability;
use keystead_core::keyring::Disabling;
use std::panic::AssertUnwindSafe;

use super::world_tests::{HOUR, Mood, World};
use crate::failpoint;

/// Runs `act` with `point` armed, and kills the daemon when it is met; whether it was.
pub async fn killed_at(world: &mut World, point: &str, act: impl AsyncFnOnce(&mut World)) -> bool {
    fail::cfg(point, "panic(killed)").unwrap();
    let outcome = AssertUnwindSafe(act(world)).catch_unwind().await;
    fail::remove(point);
    if world.daemon.is_some() {
        world.kill();
    }
    outcome.is_err()
}

#[tokio::test]
async fn killed_anywhere_it_neither_loses_the_key_nor_gains_rights() {
    let mut met = Vec::new();
    for point in failpoint::CLOUD.iter().chain(&["epoch.created", "epoch.record-written", "epoch.old-destroyed"]) {
        // A renewal, and a lease stored offline.
        let mut world = World::alone().await;
        let encrypted = world.encrypt(b"seed").unwrap();
        let hit = killed_at(&mut world, point, async |world| {
            world.pass(2 * HOUR, 120).await;
            world.cloud_says(Mood::Fails(FaultClass::Unreachable)).await;
            world.pass(HOUR, 120).await;
        })
        .await;
        met.extend(hit.then_some(*point));
        world.cloud.says(Mood::Fails(FaultClass::Unreachable));
        world.start().await;
        assert!(world.decrypts(&encrypted, b"seed").await, "{point} at renewal: {}", world.reason());

        // The first start of a boot, offline.
        world.kill();
        world.clock.reboot(60, true);
        let hit = killed_at(&mut world, point, async |world| world.start().await).await;
        met.extend(hit.then_some(*point));
        world.start().await;
        assert!(world.decrypts(&encrypted, b"seed").await, "{point} at a start offline: {}", world.reason());

        // A revocation; afterwards the cloud is gone.
        let hit = killed_at(&mut world, point, async |world| {
            world.cloud_says(Mood::Fails(FaultClass::KeyDisabled)).await;
        })
        .await;
        met.extend(hit.then_some(*point));
        if *point != "revocation.refused" || !hit {
            world.cloud.says(Mood::Fails(FaultClass::Unreachable));
        }
        // Killed before the marker is on the disk, only the cloud itself knows.
        world.start().await;
        world.pass(30, 5).await;
        assert!(
            matches!(world.availability(), Availability::Revoked { .. }),
            "{point} at revocation: {}",
            world.reason()
        );
        assert!(world.record().upstream.unwrap().copies.is_empty(), "{point}");

        // The way back.
        let hit = killed_at(&mut world, point, async |world| world.cloud_says(Mood::Works).await).await;
        met.extend(hit.then_some(*point));
        world.cloud.says(Mood::Works);
        world.start().await;
        world.pass(120, 10).await;
        assert_eq!(world.availability(), Availability::Online, "{point} on the way back: {}", world.reason());
        assert!(world.decrypts(&encrypted, b"seed").await && !world.marker(), "{point} on the way back");
        world.cloud.says(Mood::Fails(FaultClass::Unreachable));
        world.reboot(60, false).await;
        assert!(world.decrypts(&encrypted, b"seed").await, "{point}: no copy was made anew");
    }
    for point in failpoint::CLOUD {
        assert!(met.contains(point), "{point} is never met");
    }
    println!("killed at {} points, {} times", failpoint::CLOUD.len() + 3, met.len());
}

/// Killed while it is disabled and enabled, with the cloud away: what was durable holds, and the copy outlives it all.
#[tokio::test]
async fn killed_while_it_is_switched_off_and_on_it_keeps_the_copy_and_the_word() {
    let order = || Disabling { since: 1, uid: None, login_uid: None, reason: None };
    for point in failpoint::SWITCH.iter().chain(&["epoch.created", "epoch.record-written", "epoch.old-destroyed"]) {
        let mut world = World::alone().await;
        let encrypted = world.encrypt(b"seed").unwrap();
        world.cloud_says(Mood::Fails(FaultClass::Unreachable)).await;
        let off = killed_at(&mut world, point, async |world| drop(world.daemon().disable(order()).await)).await;
        world.start().await;
        world.pass(10, 5).await;
        let expected = if *point == "disable.refused" { "serves" } else { "disabled" };
        let found = if world.serves() { "serves" } else { "disabled" };
        assert_eq!(found, expected, "{point}: {}", world.reason());
        world.daemon().disable(order()).await.unwrap();
        let on = killed_at(&mut world, point, async |world| drop(world.daemon().enable().await)).await;
        assert!(off || on, "{point} is never met");
        world.start().await;
        world.pass(10, 5).await;
        assert!(world.serves() || world.availability() == Availability::Disabled, "{point}: {}", world.reason());
        world.daemon().enable().await.unwrap();
        assert!(world.decrypts(&encrypted, b"seed").await, "{point}: {}", world.reason());
        assert!(!world.path("disabled").exists());
    }
}
