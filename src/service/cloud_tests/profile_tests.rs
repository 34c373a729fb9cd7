//! The cloud profile when all is well: one root, one call a renewal, few writes, and the way there and on.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use keystead_core::annotation::Annotation;
use keystead_core::availability::{Availability, Cause};
use keystead_core::keyring::GenerationState;
use keystead_core::recovery::Sighting;
use keystead_core::{FaultClass, RootKind};

use super::world_tests::{FakeCloud, HOUR, LEASE, Mood, RENEW, World};
use crate::service::cloud::OnKeyVersion;
use crate::service::init::InitError;
use crate::service::keys::Encrypted;
use crate::service::recover::RecoverError;
use crate::service::rotation::RotationError;

const DAY: u64 = 24 * HOUR;

#[tokio::test]
async fn key_in_the_cloud_is_the_only_durable_root_and_its_copy_stays_in_the_record() {
    let world = World::online().await;
    let encrypted = world.encrypt(b"seed").unwrap();
    assert!(world.decrypts(&encrypted, b"seed").await);
    let annotation = Annotation::decode(&encrypted.annotation).unwrap();
    let kinds: Vec<_> = annotation.wraps.iter().map(|wrap| wrap.root_kind).collect();
    assert_eq!(kinds, [RootKind::AlibabaKms]);
    let record = world.record();
    let copy = &record.upstream.as_ref().unwrap().copies[0].sealed;
    assert!(annotation.wraps.iter().all(|wrap| wrap.bytes != *copy));
    assert!(world.report().proven && world.report().copies_complete);
    assert_eq!(world.report().lease_left, LEASE);
}

#[tokio::test]
async fn a_day_online_costs_a_call_a_renewal_and_few_writes_whatever_is_encrypted() {
    let world = World::online().await;
    let (calls, revision) = (world.cloud.calls(), world.record().revision);
    for _ in 0..DAY / 60 {
        world.clock.run(60);
        world.tend().await;
        let encrypted = world.encrypt(b"seed").unwrap();
        assert!(world.decrypts(&encrypted, b"seed").await);
        world.key_id().unwrap();
    }
    let (calls, writes) = (world.cloud.calls() - calls, world.record().revision - revision);
    let expected = DAY / RENEW;
    assert!((expected * 7 / 10..=expected * 13 / 10).contains(&calls), "{calls} renewals");
    assert!(world.cloud.describes.load(Ordering::Relaxed) <= 30);
    // The file and its folder are synced each time.
    assert!(writes * 2 <= 300, "{writes} writes");
    println!("a day online: {calls} unwraps, {writes} writes");
}

#[tokio::test]
async fn a_day_offline_costs_few_writes_and_forgets_no_more_than_the_floor() {
    let world = World::online().await;
    world.cloud_says(Mood::Fails(FaultClass::Unreachable)).await;
    let revision = world.record().revision;
    for _ in 0..DAY / 30 {
        world.clock.run(30);
        world.tend().await;
        let stored = world.record().upstream.unwrap().lease.left().as_secs();
        assert!(stored - world.left() <= 15 * 60, "a power cut would forget more than the floor");
    }
    let writes = world.record().revision - revision;
    assert!(writes * 2 <= 300, "{writes} writes");
    println!("a day offline: {writes} writes");
}

#[tokio::test]
async fn new_version_of_the_cloud_key_makes_one_generation_and_old_data_stays_readable() {
    let world = World::online().await;
    let before = world.encrypt(b"old").unwrap();
    world.cloud.rotates();
    world.pass(2 * HOUR, 300).await;
    let after = world.encrypt(b"new").unwrap();
    assert_ne!(before.key_id, after.key_id);
    assert!(world.decrypts(&before, b"old").await && world.decrypts(&after, b"new").await);
    assert_eq!(world.keyring().generations.len(), 2);
    world.pass(DAY, 600).await;
    assert_eq!(world.keyring().generations.len(), 2, "one version, one generation");
    assert_eq!(world.report().pending_version, None);
}

#[tokio::test]
async fn announced_version_changes_nothing_until_a_person_rotates() {
    let mut world = World::online().await;
    world.policy = OnKeyVersion::Announce;
    world.restart().await;
    let before = world.key_id().unwrap();
    world.cloud.rotates();
    world.pass(4 * HOUR, 600).await;
    assert_eq!(world.key_id().unwrap(), before);
    assert_eq!(world.report().pending_version.as_deref(), Some("v2"));
    world.daemon().rotate(Some("a test".parse().unwrap()), |_| ()).await.unwrap();
    world.pass(4 * HOUR, 600).await;
    assert_eq!(world.report().pending_version, None);
    assert_eq!(world.keyring().generations.len(), 2);
}

#[tokio::test]
async fn rotation_offline_is_refused_with_the_reason() {
    let world = World::online().await;
    world.cloud_says(Mood::Fails(FaultClass::Unreachable)).await;
    let before = world.record();
    let refused = world.daemon().rotate(Some("a test".parse().unwrap()), |_| ()).await.unwrap_err();
    assert!(matches!(&refused, RotationError::Refused(reason) if reason.contains("cloud")), "{refused}");
    assert_eq!(world.record().generations, before.generations);
}

#[tokio::test]
async fn rotation_that_the_cloud_breaks_off_leaves_the_key_before_it_in_service() {
    let world = World::online().await;
    let before = world.key_id().unwrap();
    // Still online, as nothing has been asked since.
    world.cloud.says(Mood::Fails(FaultClass::Unreachable));
    let failed = world.daemon().rotate(Some("a test".parse().unwrap()), |_| ()).await.unwrap_err();
    assert!(matches!(failed, RotationError::Upstream(_)), "{failed}");
    assert_eq!(world.key_id().unwrap(), before);
    world.cloud_says(Mood::Works).await;
    world.pass(60, 10).await;
    assert!(world.keyring().rotation.is_none());
    assert_eq!(world.availability(), Availability::Online);
    world.daemon().rotate(Some("a test".parse().unwrap()), |_| ()).await.unwrap();
    assert_ne!(world.key_id().unwrap(), before);
}

#[tokio::test]
async fn retired_generations_open_from_their_copies_without_a_call() {
    let mut world = World::online().await;
    let mut all = Vec::new();
    for round in 0..5_u8 {
        all.push(world.encrypt(&[round]).unwrap());
        world.daemon().rotate(Some("a test".parse().unwrap()), |_| ()).await.unwrap();
    }
    world.kill();
    world.cloud.says(Mood::Fails(FaultClass::Unreachable));
    world.start().await;
    let calls = world.cloud.calls();
    for (round, encrypted) in (0..5_u8).zip(&all) {
        assert!(world.decrypts(encrypted, &[round]).await, "generation {round}");
    }
    assert_eq!(world.cloud.calls(), calls);
}

#[tokio::test]
async fn key_that_was_local_moves_to_the_cloud_by_rotation() {
    let mut world = World::bare();
    world.init_as(None).await.unwrap();
    world.start().await;
    assert_eq!(world.availability(), Availability::Online, "{}", world.reason());
    let old = world.encrypt(b"old").unwrap();
    world.daemon().rotate(Some("a test".parse().unwrap()), |_| ()).await.unwrap();
    let keyring = world.keyring();
    assert!(keyring.active().unwrap().upstream_wrap().is_some());
    assert_eq!(keyring.generations[0].state, GenerationState::Retired);
    world.cloud.says(Mood::Fails(FaultClass::Unreachable));
    world.reboot(60, false).await;
    let expected = Cause::Upstream(FaultClass::Unreachable);
    assert!(
        matches!(world.availability(), Availability::Degraded { cause, .. } if cause == expected),
        "{}",
        world.reason()
    );
    assert!(world.decrypts(&old, b"old").await, "the old generation's root is still in custody");
}

#[tokio::test]
async fn clock_at_1970_with_the_cloud_reachable_is_online() {
    let mut world = World::online().await;
    world.cloud.says(Mood::Fails(FaultClass::Unreachable));
    world.reboot(HOUR, true).await;
    assert!(world.serves(), "{}", world.reason());
    world.cloud_says(Mood::Works).await;
    assert_eq!(world.availability(), Availability::Online);
    assert_eq!(world.report().lease_left, LEASE);
}

#[tokio::test]
async fn refused_init_can_be_run_again_once_the_cloud_works() {
    let world = World::bare();
    world.cloud.says(Mood::Fails(FaultClass::Denied));
    assert!(world.try_init().await.is_err(), "a keyring was made without its root");
    world.cloud.says(Mood::Works);
    let keyring = world.init().await;
    assert!(keyring.upstream.unwrap().proven.is_some());
}

#[tokio::test]
async fn key_moves_to_another_cloud_key_by_rotation_while_its_copy_serves() {
    let mut world = World::online().await;
    let (id, old) = (world.key_id().unwrap(), world.encrypt(b"old").unwrap());
    world.kill();
    world.cloud = Arc::new(FakeCloud::other_key());
    world.start().await;
    assert_eq!(world.key_id().unwrap(), id);
    assert!(world.reason().contains("another cloud key"), "{}", world.reason());
    world.daemon().rotate(Some("a test".parse().unwrap()), |_| ()).await.unwrap();
    world.pass(60, 10).await;
    assert_eq!(world.availability(), Availability::Online, "{}", world.reason());
    let keyring = world.keyring();
    assert_eq!(keyring.active().unwrap().wraps[0].root_id.as_bytes(), b"key-2");
    assert_eq!(keyring.upstream.unwrap().root_id.as_bytes(), b"key-2");
    assert!(world.decrypts(&old, b"old").await);
    world.cloud_says(Mood::Fails(FaultClass::KeyDisabled)).await;
    assert!(!world.serves(), "the new key can revoke");
}

/// What a survey of etcd makes of one object.
fn sighting(encrypted: &Encrypted) -> Sighting {
    Sighting {
        key_id: encrypted.key_id.parse().unwrap(),
        objects: 1,
        annotations: vec![Annotation::decode(&encrypted.annotation).unwrap()],
        envelopes: vec![(encrypted.ciphertext.clone(), 1)],
        incomplete: false,
    }
}

#[tokio::test]
async fn lost_store_is_rebuilt_out_of_etcd_and_the_cloud() {
    let mut world = World::online().await;
    let one = world.encrypt(b"one").unwrap();
    world.daemon().rotate(Some("a test".parse().unwrap()), |_| ()).await.unwrap();
    let two = world.encrypt(b"two").unwrap();
    let epoch = world.keyring().epoch;
    world.kill();
    std::fs::remove_dir_all(world.folder.path().join("store")).unwrap();
    assert!(matches!(world.try_init().await, Err(InitError::LostStore)));
    world.cloud.says(Mood::Fails(FaultClass::Unreachable));
    let without = world.recover(vec![sighting(&one), sighting(&two)]).await.unwrap_err();
    assert!(matches!(without, RecoverError::Upstream(_)), "{without}");
    world.cloud.says(Mood::Works);
    let rebuilt = world.recover(vec![sighting(&one), sighting(&two)]).await.unwrap();
    assert!(rebuilt.keyring.epoch > epoch && rebuilt.keyring.generations.len() == 3);
    assert!(rebuilt.keyring.generations.iter().all(|generation| generation.custody_wrap().is_none()));
    world.start().await;
    assert_eq!(world.availability(), Availability::Online, "{}", world.reason());
    assert!(world.decrypts(&one, b"one").await && world.decrypts(&two, b"two").await);
    world.cloud.says(Mood::Fails(FaultClass::Unreachable));
    world.reboot(60, false).await;
    assert!(world.decrypts(&one, b"one").await && world.decrypts(&two, b"two").await, "{}", world.reason());
    world.cloud_says(Mood::Fails(FaultClass::KeyDisabled)).await;
    assert!(!world.serves() && !world.decrypts(&one, b"one").await, "a recovered key outlives its revocation");
}
