//! Roots that change: to the cloud and back, with and without a recovery key, and what the cloud still decides afterwards.

use keystead_core::availability::Availability;
use keystead_core::hpke_p256::P256PublicKey;
use keystead_core::keyring::RecoveryRoot;
use keystead_core::recovery_key::RecoveryKey;
use keystead_core::{FaultClass, RootKind};
use zeroize::Zeroizing;

use super::world_tests::{FakeCloud, HOUR, Mood, World};
use crate::service::keys::{Encrypted, ServeError};
use crate::service::lease::ExtendError;
use crate::service::roots::{RootsChange, RootsError};
use crate::service::rotation::RotationError;

pub fn key(byte: u8) -> P256PublicKey {
    RecoveryKey::from_random(&Zeroizing::new([byte; 32])).unwrap().public()
}

pub fn add_recovery(byte: u8) -> RootsChange {
    RootsChange::AddRecovery { key: key(byte), replace: false }
}

pub async fn change(world: &World, change: RootsChange) -> Result<(), RotationError> {
    world.daemon().change_roots(change, Some("a test".parse().unwrap()), |_| ()).await.map(drop)
}

/// Kinds of the active generation's roots.
fn roots(world: &World) -> Vec<RootKind> {
    world.keyring().active().unwrap().wraps.iter().map(|wrap| wrap.root_kind).collect()
}

/// A key that went from the token to the cloud and came home; and what was encrypted at each station.
struct Home {
    world: World,
    token: Encrypted,
    cloud: Encrypted,
    home: Encrypted,
}

impl Home {
    async fn new() -> Self {
        Self::come(World::bare()).await
    }

    async fn come(mut world: World) -> Self {
        world.init_as(None).await.unwrap();
        world.start().await;
        let token = world.encrypt(b"token").unwrap();
        change(&world, RootsChange::AddUpstream).await.unwrap();
        assert_eq!(roots(&world), [RootKind::AlibabaKms]);
        let cloud = world.encrypt(b"cloud").unwrap();
        assert!(world.decrypts(&token, b"token").await && world.decrypts(&cloud, b"cloud").await);
        change(&world, RootsChange::RemoveUpstream).await.unwrap();
        assert_eq!(roots(&world), [RootKind::Pkcs11]);
        let home = world.encrypt(b"home").unwrap();
        Self { world, token, cloud, home }
    }

    /// What has its root in the token opens, and is served whatever the cloud says.
    async fn serves_home(&self) {
        let Self { world, token, home, .. } = self;
        assert_eq!(world.availability(), Availability::Online, "{}", world.reason());
        assert!(world.decrypts(token, b"token").await && world.decrypts(home, b"home").await);
        let fresh = world.encrypt(b"fresh").unwrap();
        assert!(world.decrypts(&fresh, b"fresh").await);
    }

    async fn opens_cloud(&self) -> bool {
        self.world.decrypts(&self.cloud, b"cloud").await
    }

    async fn refusal(&self) -> ServeError {
        self.world.daemon().keys().decrypt(&self.cloud.key_id, &self.cloud.ciphertext).await.unwrap_err()
    }
}

#[tokio::test]
async fn key_goes_to_the_cloud_and_home_and_everything_opens_on_the_way_and_after_restarts() {
    let mut at = Home::new().await;
    at.serves_home().await;
    assert!(at.opens_cloud().await);
    at.world.restart().await;
    at.serves_home().await;
    assert!(at.opens_cloud().await);
    // The choice is durable: [upstream] is still configured.
    assert!(at.world.record().custody_only);
    at.world.cloud.rotates();
    at.world.daemon().rotate(Some("a test".parse().unwrap()), |_| ()).await.unwrap();
    at.world.pass(3 * HOUR, 300).await;
    assert_eq!((roots(&at.world), at.world.keyring().generations.len()), (vec![RootKind::Pkcs11], 4));
    // And is taken back by adding it again.
    change(&at.world, RootsChange::AddUpstream).await.unwrap();
    assert_eq!((roots(&at.world), at.world.record().custody_only), (vec![RootKind::AlibabaKms], false));
    at.world.restart().await;
    at.serves_home().await;
    assert!(at.opens_cloud().await);
}

#[tokio::test]
async fn cloud_that_is_away_after_the_way_home_ends_nothing_but_its_own_generations_with_the_lease() {
    let mut at = Home::new().await;
    at.world.cloud_says(Mood::Fails(FaultClass::Unreachable)).await;
    at.serves_home().await;
    assert!(at.opens_cloud().await);
    at.world.restart().await;
    at.serves_home().await;
    assert!(at.opens_cloud().await, "{}", at.refusal().await);
    at.world.reboot(HOUR, true).await;
    at.serves_home().await;
    assert!(at.opens_cloud().await, "{}", at.refusal().await);
    assert!(at.world.left() <= 72 * HOUR - 15 * 60, "a boot costs the floor");
    // Rotations go on: nothing in them asks the cloud.
    at.world.daemon().rotate(Some("a test".parse().unwrap()), |_| ()).await.unwrap();
    at.world.pass(72 * HOUR, 840).await;
    at.serves_home().await;
    assert!(matches!(at.refusal().await, ServeError::Refused(reason) if reason.contains("lease")));
    at.world.restart().await;
    at.serves_home().await;
    assert!(matches!(at.refusal().await, ServeError::Refused(_)));
    // A signed grant opens them, and a real answer for good.
    let grant = at.world.grant(1, 2 * HOUR);
    at.world.daemon().extend_lease(&grant).await.unwrap();
    assert!(at.opens_cloud().await, "{}", at.refusal().await);
    at.world.pass(3 * HOUR, 300).await;
    assert!(!at.opens_cloud().await);
    at.world.cloud_says(Mood::Works).await;
    assert!(at.opens_cloud().await, "{}", at.refusal().await);
    assert!(matches!(at.world.daemon().extend_lease(&grant).await, Err(ExtendError::NotNeeded)));
    at.serves_home().await;
}

/// Found by a random life: the lease was stored at the start of a boot, and no epoch began.
#[tokio::test]
async fn folder_from_before_a_boot_without_the_cloud_gives_generations_of_the_cloud_no_time_back() {
    let mut at = Home::new().await;
    let backup = at.world.back_up();
    at.world.cloud_says(Mood::Fails(FaultClass::Unreachable)).await;
    at.world.pass(4 * HOUR, 420).await;
    at.world.reboot(0, true).await;
    at.serves_home().await;
    assert!(at.opens_cloud().await, "{}", at.refusal().await);
    let (left, epoch) = (at.world.left(), at.world.record().epoch);
    assert_eq!(at.world.token.epochs(), [epoch]);
    at.world.restart().await;
    assert_eq!((at.world.left(), at.world.record().epoch), (left, epoch), "once a boot");
    at.world.kill();
    at.world.put_back(&backup);
    at.world.start().await;
    assert!(!at.world.serves() && at.world.reason().contains("stale"), "{}", at.world.reason());
}

#[tokio::test]
async fn revocation_after_the_way_home_bites_the_generations_of_the_cloud_and_no_others() {
    for class in [FaultClass::KeyDisabled, FaultClass::KeyGone] {
        let mut at = Home::new().await;
        at.world.cloud_says(Mood::Fails(class)).await;
        at.world.tend().await;
        at.serves_home().await;
        assert!(matches!(at.refusal().await, ServeError::Refused(reason) if reason.contains("revoked")));
        let record = at.world.record().upstream.unwrap();
        assert!(record.copies.is_empty() && record.revoked.is_some() && at.world.marker());
        // Neither a restart, nor an outage, nor a reboot with a lost clock, nor a grant lifts it.
        at.world.cloud.says(Mood::Fails(FaultClass::Unreachable));
        at.world.restart().await;
        at.world.reboot(HOUR, true).await;
        at.serves_home().await;
        assert!(matches!(at.refusal().await, ServeError::Refused(_)), "{}", at.refusal().await);
        let grant = at.world.grant(1, HOUR);
        assert!(matches!(at.world.daemon().extend_lease(&grant).await, Err(ExtendError::Revoked)));
        at.world.daemon().rotate(Some("a test".parse().unwrap()), |_| ()).await.unwrap();
        let refused = change(&at.world, RootsChange::AddUpstream).await.unwrap_err();
        assert!(matches!(refused, RotationError::Roots(RootsError::Revoked)), "{refused}");
        // The cloud does.
        at.world.cloud_says(Mood::Works).await;
        at.world.pass(120, 10).await;
        assert!(at.opens_cloud().await, "{}", at.refusal().await);
        assert!(!at.world.marker() && at.world.record().upstream.unwrap().revoked.is_none());
        at.world.cloud.says(Mood::Fails(FaultClass::Unreachable));
        at.world.reboot(60, false).await;
        assert!(at.opens_cloud().await, "no copy was made anew: {}", at.refusal().await);
    }
}

#[tokio::test]
async fn revoked_generation_is_not_opened_by_a_restored_record_or_while_the_disk_is_full() {
    let mut at = Home::new().await;
    let backup = at.world.back_up();
    at.world.fill_disk(true);
    at.world.cloud_says(Mood::Fails(FaultClass::KeyDisabled)).await;
    at.serves_home().await;
    assert!(!at.opens_cloud().await);
    assert!(at.world.marker(), "the marker needs no space");
    at.world.fill_disk(false);
    at.world.pass(60, 5).await;
    assert!(at.world.record().upstream.unwrap().copies.is_empty());
    at.serves_home().await;
    at.world.kill();
    at.world.put_back(&backup);
    at.world.cloud.says(Mood::Fails(FaultClass::Unreachable));
    at.world.start().await;
    assert!(!at.world.serves() && at.world.reason().contains("stale"), "{}", at.world.reason());
}

#[tokio::test]
async fn boot_whose_cost_cannot_be_stored_keeps_the_offline_copies_shut_and_serves_the_rest() {
    let mut at = Home::new().await;
    at.world.cloud_says(Mood::Fails(FaultClass::Unreachable)).await;
    at.world.kill();
    at.world.fill_disk(true);
    at.world.clock.reboot(HOUR, false);
    at.world.start().await;
    at.serves_home().await;
    assert!(matches!(at.refusal().await, ServeError::Sealed(_)));
    at.world.fill_disk(false);
    at.world.pass(60, 10).await;
    assert!(at.opens_cloud().await, "{}", at.refusal().await);
    // Wrong answers are no outage that a copy may stand in for.
    at.world.cloud.says(Mood::OtherKey);
    at.world.restart().await;
    at.serves_home().await;
    assert!(!at.opens_cloud().await, "falls back on a copy though the cloud answers");
    at.world.cloud_says(Mood::Works).await;
    at.world.tend().await;
    assert!(at.opens_cloud().await, "{}", at.refusal().await);
}

#[tokio::test]
async fn without_upstream_in_the_configuration_only_generations_of_the_cloud_are_shut() {
    let mut at = Home::new().await;
    at.world.configured = false;
    at.world.restart().await;
    at.serves_home().await;
    assert!(matches!(at.refusal().await, ServeError::Refused(reason) if reason.contains("no [upstream]")));
    let refused = change(&at.world, RootsChange::AddUpstream).await.unwrap_err();
    assert!(matches!(refused, RotationError::Roots(RootsError::NoUpstream)), "{refused}");
    at.world.daemon().rotate(Some("a test".parse().unwrap()), |_| ()).await.unwrap();
    assert!(!at.opens_cloud().await, "a rotation opens them");
    at.world.configured = true;
    at.world.restart().await;
    assert!(at.opens_cloud().await, "{}", at.refusal().await);
    // With its active generation in the cloud it does not start so.
    change(&at.world, RootsChange::AddUpstream).await.unwrap();
    at.world.configured = false;
    at.world.restart().await;
    assert!(at.world.reason().contains("roots remove upstream"), "{}", at.world.reason());
}

#[tokio::test]
async fn way_home_is_refused_while_the_cloud_is_away_or_has_revoked_and_before_the_rewrite_is_proven() {
    let world = World::online().await;
    let record = world.record();
    world.cloud_says(Mood::Fails(FaultClass::Unreachable)).await;
    let refused = change(&world, RootsChange::RemoveUpstream).await.unwrap_err();
    assert!(matches!(&refused, RotationError::Refused(reason) if reason.contains("cloud")), "{refused}");
    assert!(matches!(change(&world, add_recovery(1)).await, Err(RotationError::Refused(_))));
    world.cloud_says(Mood::Fails(FaultClass::KeyDisabled)).await;
    let refused = change(&world, RootsChange::RemoveUpstream).await.unwrap_err();
    assert!(matches!(&refused, RotationError::Refused(reason) if reason.contains("revoked")), "{refused}");
    world.cloud_says(Mood::Works).await;
    world.pass(60, 10).await;
    assert_eq!(world.record().generations, record.generations);
    // Another key in the configuration is no way round it.
    let mut world = world;
    world.kill();
    world.cloud = std::sync::Arc::new(FakeCloud::other_key());
    world.start().await;
    assert!(matches!(change(&world, RootsChange::RemoveUpstream).await, Err(RotationError::Refused(_))));
    change(&world, RootsChange::AddUpstream).await.unwrap();
    assert_eq!(world.keyring().active().unwrap().wraps[0].root_id.as_bytes(), b"key-2");
    // Unforced, the second change waits for a scan.
    let unproven = world.daemon().change_roots(RootsChange::RemoveUpstream, None, |_| ()).await.unwrap_err();
    assert!(matches!(unproven, RotationError::NotRewritten(_)), "{unproven}");
    assert!(matches!(
        change(&world, RootsChange::AddUpstream).await,
        Err(RotationError::Roots(RootsError::SameUpstream))
    ));
    change(&world, RootsChange::RemoveUpstream).await.unwrap();
    assert!(matches!(
        change(&world, RootsChange::RemoveUpstream).await,
        Err(RotationError::Roots(RootsError::NotInCloud))
    ));
    // Home again; the way back to a cloud that is away is refused beforehand.
    world.cloud_says(Mood::Fails(FaultClass::Unreachable)).await;
    let (number, refused) = (world.record().last_number, change(&world, RootsChange::AddUpstream).await.unwrap_err());
    assert!(matches!(refused, RotationError::Roots(RootsError::CloudAway(_))), "{refused}");
    assert_eq!(world.record().last_number, number);
}

#[tokio::test]
async fn cloud_is_asked_before_anything_is_written_and_what_it_says_is_acted_upon() {
    // Since the last renewal nobody has noticed.
    for class in [FaultClass::Unreachable, FaultClass::KeyDisabled] {
        let world = World::online().await;
        let number = world.record().last_number;
        world.cloud.says(Mood::Fails(class));
        let refused = change(&world, RootsChange::RemoveUpstream).await.unwrap_err();
        assert!(matches!(refused, RotationError::Roots(RootsError::CloudAway(_))), "{refused}");
        assert_eq!(world.record().last_number, number);
        assert_eq!(world.serves(), class == FaultClass::Unreachable, "a key that was revoked is served on");
    }
    let mut world = World::bare();
    world.init_as(None).await.unwrap();
    world.start().await;
    for class in [FaultClass::Unreachable, FaultClass::KeyGone, FaultClass::CredentialFault] {
        world.cloud.says(Mood::Fails(class));
        let refused = change(&world, RootsChange::AddUpstream).await.unwrap_err();
        assert!(matches!(refused, RotationError::Roots(RootsError::CloudAway(_))), "{refused}");
        assert_eq!((world.record().last_number.0, world.availability()), (1, Availability::Online));
    }
    // It only says more when it is used: then what was begun is rolled back.
    world.cloud.says(Mood::Fails(FaultClass::Denied));
    let failed = change(&world, RootsChange::AddUpstream).await.unwrap_err();
    assert!(matches!(failed, RotationError::Upstream(_)), "{failed}");
    world.tend().await;
    assert!(world.record().rotation.is_none() && !world.record().generations[0].is_rooted_in_cloud());
    world.cloud.says(Mood::Works);
    change(&world, RootsChange::AddUpstream).await.unwrap();
}

#[tokio::test]
async fn marker_of_a_key_that_was_given_up_goes_when_the_key_moves_to_the_cloud_again() {
    let mut world = World::bare();
    world.init_as(None).await.unwrap();
    world.start().await;
    std::fs::write(world.path("revoked"), "").unwrap();
    change(&world, RootsChange::AddUpstream).await.unwrap();
    world.pass(120, 10).await;
    assert!(!world.marker());
    let sealed = world.encrypt(b"seed").unwrap();
    world.cloud.says(Mood::Fails(FaultClass::Unreachable));
    world.restart().await;
    assert!(world.decrypts(&sealed, b"seed").await, "{}", world.reason());
}

#[tokio::test]
async fn recovery_key_is_added_replaced_and_removed_with_new_generations_only() {
    for in_cloud in [false, true] {
        let mut world = World::bare();
        world.init_as(in_cloud.then(|| world.init_cloud())).await.unwrap();
        world.start().await;
        let primary = if in_cloud { RootKind::AlibabaKms } else { RootKind::Pkcs11 };
        world.configured = in_cloud;
        world.restart().await;
        let before = world.encrypt(b"one").unwrap();
        let refused = change(&world, RootsChange::RemoveRecovery { leave_one_root: true }).await.unwrap_err();
        assert!(matches!(refused, RotationError::Roots(RootsError::NoRecovery)), "{refused}");

        change(&world, add_recovery(1)).await.unwrap();
        assert_eq!(roots(&world), [primary, RootKind::Recovery]);
        assert_eq!(world.keyring().generations[0].wraps.len(), 1, "an older generation got another root");
        assert!(matches!(change(&world, add_recovery(1)).await, Err(RotationError::Roots(RootsError::SameRecovery))));
        let other = change(&world, add_recovery(2)).await.unwrap_err();
        assert!(matches!(other, RotationError::Roots(RootsError::OtherRecovery(_))), "{other}");
        change(&world, RootsChange::AddRecovery { key: key(2), replace: true }).await.unwrap();
        let wraps = world.keyring().active().unwrap().wraps.clone();
        assert_eq!(wraps[1].root_id, key(2).recovery_root_id());

        world.restart().await;
        world.daemon().rotate(Some("a test".parse().unwrap()), |_| ()).await.unwrap();
        assert_eq!(roots(&world), [primary, RootKind::Recovery], "a rotation keeps the choice");
        let last = change(&world, RootsChange::RemoveRecovery { leave_one_root: false }).await.unwrap_err();
        assert!(matches!(last, RotationError::Roots(RootsError::LastRoot(_))), "{last}");
        change(&world, RootsChange::RemoveRecovery { leave_one_root: true }).await.unwrap();
        assert_eq!((roots(&world), world.record().recovery), (vec![primary], RecoveryRoot::Declined));
        assert!(world.decrypts(&before, b"one").await);
        let removed = world.keyring().removed_roots();
        assert_eq!(removed.len(), 2, "{removed:?}");
    }
}

#[cfg(feature = "failpoints")]
#[tokio::test]
async fn change_that_is_killed_anywhere_is_done_or_undone_with_its_choice() {
    use futures_util::FutureExt;
    use std::panic::AssertUnwindSafe;

    let points = [
        "rotation.intent-written",
        "rotation.cmk-created",
        "rotation.prepared",
        "rotation.verified",
        "epoch.created",
        "epoch.record-written",
        "epoch.old-destroyed",
        "rotation.before-publish",
    ];
    for point in points {
        let mut at = Home::come(World::bare_alone()).await;
        for wanted in [add_recovery(1), RootsChange::AddUpstream, RootsChange::RemoveUpstream] {
            let before = at.world.record();
            fail::cfg(point, "panic(killed)").unwrap();
            let hit = AssertUnwindSafe(change(&at.world, wanted.clone())).catch_unwind().await.is_err();
            fail::remove(point);
            assert!(hit, "{point} is never met by {wanted:?}");
            at.world.kill();
            at.world.start().await;
            at.world.pass(30, 10).await;
            let after = at.world.record();
            assert!(after.rotation.is_none(), "{point}: {wanted:?} is not settled");
            let done = after.active().unwrap().number > before.active().unwrap().number;
            let resumes = !["rotation.intent-written", "rotation.cmk-created"].contains(&point);
            assert_eq!(done, resumes, "{point}: {wanted:?}");
            let choice = (after.recovery.clone(), after.custody_only);
            if !done {
                assert_eq!(
                    choice,
                    (before.recovery.clone(), before.custody_only),
                    "{point}: {wanted:?} left its choice"
                );
                change(&at.world, wanted).await.unwrap();
            }
            let ring = at.world.keyring();
            let active = ring.active().unwrap();
            assert_eq!(active.is_rooted_in_cloud(), !ring.custody_only, "{point}");
            let wrapped = active.wraps.iter().any(|wrap| wrap.root_kind == RootKind::Recovery);
            assert!(wrapped && ring.recovery_key().is_some(), "{point}");
            at.serves_home().await;
            assert!(at.opens_cloud().await, "{point}: {}", at.refusal().await);
        }
        let states: Vec<_> = at.world.keyring().generations.iter().map(|each| each.state).collect();
        assert_eq!(
            states.iter().filter(|state| **state == keystead_core::keyring::GenerationState::Retired).count(),
            states.len() - 1
        );
    }
}

#[cfg(feature = "failpoints")]
#[tokio::test]
async fn revocation_after_the_way_home_that_is_killed_anywhere_stays_in_force() {
    use futures_util::FutureExt;
    use std::panic::AssertUnwindSafe;

    for point in ["revocation.marked", "revocation.shredded", "epoch.created", "epoch.record-written", "return.stored"]
    {
        let mut at = Home::come(World::bare_alone()).await;
        fail::cfg(point, "panic(killed)").unwrap();
        let told = async {
            at.world.cloud_says(Mood::Fails(FaultClass::KeyDisabled)).await;
            at.world.pass(30, 2).await;
        };
        let hit = AssertUnwindSafe(told).catch_unwind().await.is_err();
        fail::remove(point);
        assert_eq!(hit, point != "return.stored", "{point}");
        at.world.kill();
        at.world.cloud.says(Mood::Fails(FaultClass::Unreachable));
        at.world.start().await;
        at.world.pass(30, 5).await;
        at.serves_home().await;
        assert!(!at.opens_cloud().await, "{point}");
        assert!(at.world.record().upstream.unwrap().copies.is_empty(), "{point}");
        fail::cfg(point, "panic(killed)").unwrap();
        let back = AssertUnwindSafe(at.world.cloud_says(Mood::Works)).catch_unwind().await;
        fail::remove(point);
        assert_eq!(back.is_err(), point == "return.stored", "{point}");
        at.world.kill();
        at.world.cloud.says(Mood::Works);
        at.world.start().await;
        at.world.pass(120, 10).await;
        assert!(at.opens_cloud().await && !at.world.marker(), "{point}: {}", at.refusal().await);
    }
}
