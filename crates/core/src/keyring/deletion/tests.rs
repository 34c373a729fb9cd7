use super::*;
use crate::keyring::{RecoveryRoot, TokenIdentity, TransitionError};
use crate::scan::{Findings, Source};
use crate::secret::KeyCommitment;
use crate::wrap::WrappedKek;

const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

fn wrap(byte: u8) -> WrappedKek {
    WrappedKek { root_kind: RootKind::Pkcs11, root_id: RootId::new(&[byte; 16]).unwrap(), bytes: vec![1; 61] }
}

fn number(number: u64) -> GenerationNumber {
    GenerationNumber(number)
}

/// As many generations as asked for; the last one is active.
fn keyring(generations: u8) -> Keyring {
    let mut keyring = Keyring {
        revision: 1,
        ..Keyring::empty(
            "edge".parse().unwrap(),
            "n1".parse().unwrap(),
            TokenIdentity { serial: "1".into(), label: "a".into() },
            RecoveryRoot::Declined,
        )
    };
    for byte in 1..=generations {
        rotate(&mut keyring, byte);
    }
    keyring
}

fn rotate(keyring: &mut Keyring, byte: u8) {
    keyring.begin_rotation([byte; 16], [byte; 16], 1).unwrap();
    keyring.prepare(KeyCommitment::from_bytes([byte; 32]), vec![wrap(byte)], 2).unwrap();
    keyring.activate(3).unwrap();
}

fn scan(keyring: &mut Keyring, objects: &[(u64, u64)]) {
    let key_id = |wanted: &u64| keyring.generation(number(*wanted)).unwrap().key_id.clone();
    let objects = objects.iter().map(|(wanted, objects)| (key_id(wanted), *objects)).collect();
    let source = Source::Etcd { cluster: 7, member: 8 };
    keyring.record_scan(Findings { source, revision: 9, restricted: false, objects, unknown: 0 }, 5);
}

/// Generation 1 of three waits.
fn waiting() -> Keyring {
    let mut keyring = keyring(3);
    scan(&mut keyring, &[(2, 4), (3, 1)]);
    keyring.schedule_deletion(number(1), WEEK, Some(1000), 10).unwrap();
    keyring
}

fn over(mut keyring: Keyring) -> Keyring {
    keyring.pass(WEEK.as_secs());
    keyring
}

#[test]
fn retired_generation_without_objects_waits_is_cancelled_and_waits_anew() {
    let mut keyring = waiting();
    assert!(keyring.generations[0].decrypts());
    assert_eq!(keyring.check(), Ok(()));
    keyring.pass(100);
    assert_eq!(keyring.generations[0].pending.as_ref().unwrap().wait.left(), WEEK - Duration::from_secs(100));
    assert_eq!(
        keyring.schedule_deletion(number(1), WEEK, None, 11),
        Err(DeletionError::Waits(number(1))),
        "the wait cannot be changed by asking again"
    );
    keyring.cancel_deletion(number(1)).unwrap();
    assert_eq!((keyring.generations[0].state, &keyring.generations[0].pending), (GenerationState::Retired, &None));
    keyring.schedule_deletion(number(1), WEEK, None, 12).unwrap();
    assert_eq!(keyring.generations[0].pending.as_ref().unwrap().wait.left(), WEEK);
}

#[test]
fn forbidden_transitions_name_what_is_allowed() {
    let mut keyring = waiting();
    let told = |outcome: Result<(), DeletionError>| outcome.unwrap_err().to_string();
    assert_eq!(
        told(keyring.schedule_deletion(number(3), WEEK, None, 1)),
        "generation 3 is active; only a retired generation can be scheduled: 2"
    );
    assert_eq!(
        told(keyring.cancel_deletion(number(2))),
        "generation 2 is retired; only one that is pending deletion can be cancelled: 1"
    );
    keyring.begin_rotation([9; 16], [9; 16], 1).unwrap();
    keyring.prepare(KeyCommitment::from_bytes([9; 32]), vec![wrap(9)], 2).unwrap();
    assert!(told(keyring.schedule_deletion(number(4), WEEK, None, 1)).contains("generation 4 is prepared"));
    assert_eq!(
        told(keyring.named("77\u{1b}[2J").map(drop)),
        "there is no generation 77[2J; there are: 1 (pending-deletion), 2 (retired), 3 (active), 4 (prepared)"
    );
    let key_id = keyring.generations[1].key_id.to_string();
    assert_eq!(keyring.named(&key_id).unwrap().number, number(2));
    assert_eq!(keyring.named("2").unwrap().number, number(2));
    for near in ["02", "+2", " 2", "", &key_id[..key_id.len() - 1]] {
        assert!(keyring.named(near).is_err(), "{near}");
    }
    let many = self::keyring(40);
    assert!(told(many.named("99").map(drop)).ends_with("there are: …, 31 (retired), 32 (retired), 33 (retired), 34 (retired), 35 (retired), 36 (retired), 37 (retired), 38 (retired), 39 (retired), 40 (active)"));
}

#[test]
fn only_a_scan_since_the_last_activation_that_shows_none_lets_it_be_scheduled() {
    let mut keyring = keyring(3);
    let refused = |keyring: &mut Keyring| match keyring.schedule_deletion(number(1), WEEK, None, 1) {
        Err(DeletionError::Needed { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&mut keyring), NotRewritten::NoScan(number(3)));
    scan(&mut keyring, &[(1, 2), (3, 1)]);
    assert_eq!(refused(&mut keyring), NotRewritten::StillNeeded { number: number(1), objects: 2 });
    scan(&mut keyring, &[(2, 2)]);
    assert_eq!(refused(&mut keyring), NotRewritten::NothingNew(number(3)));
    scan(&mut keyring, &[(3, 1)]);
    keyring.scan.as_mut().unwrap().restricted = true;
    assert_eq!(refused(&mut keyring), NotRewritten::Restricted);
    scan(&mut keyring, &[(3, 1)]);
    keyring.scan.as_mut().unwrap().unknown = 1;
    assert_eq!(refused(&mut keyring), NotRewritten::Unknown(1));
    scan(&mut keyring, &[(2, 7), (3, 1)]);
    rotate(&mut keyring, 4);
    assert_eq!(refused(&mut keyring), NotRewritten::NoScan(number(4)));
    // Objects under another retired generation are no reason.
    scan(&mut keyring, &[(2, 7), (4, 1)]);
    keyring.schedule_deletion(number(1), WEEK, None, 1).unwrap();
}

#[test]
fn tombstone_keeps_number_and_key_id_and_names_its_cmk_until_that_is_gone() {
    let mut keyring = over(waiting());
    let key_id = keyring.generations[0].key_id.clone();
    keyring.bury(number(1), 20).unwrap();
    assert_eq!(keyring.check(), Ok(()));
    let dead = &keyring.generations[0];
    assert_eq!((dead.state, &dead.key_id, dead.wraps.len()), (GenerationState::Destroyed, &key_id, 0));
    let left = Some(vec![wrap(1).root_id]);
    assert_eq!(dead.tombstone, Some(Tombstone { scheduled: 10, destroyed: 20, by: Some(1000), left }));
    assert!(!dead.decrypts());
    keyring.finish_deletion(number(1));
    assert_eq!(keyring.unfinished().count(), 0);
    let refused = keyring.schedule_deletion(number(1), WEEK, None, 21).unwrap_err();
    assert!(refused.to_string().contains("generation 1 is destroyed"), "{refused}");
    assert!(keyring.cancel_deletion(number(1)).is_err());
    rotate(&mut keyring, 4);
    assert_eq!(keyring.active().unwrap().number, number(4));
}

#[test]
fn nothing_is_destroyed_before_its_wait_or_without_proof() {
    let mut keyring = waiting();
    keyring.pass(WEEK.as_secs() - 1);
    assert_eq!(keyring.bury(number(1), 20), Err(DeletionError::NotOver(number(1))));
    keyring.pass(1);
    let whole = keyring.clone();
    rotate(&mut keyring, 4);
    assert!(matches!(keyring.bury(number(1), 20), Err(DeletionError::Needed { .. })), "a rotation voids the proof");
    assert!(matches!(keyring.bury(number(2), 20), Err(DeletionError::NotPending { .. })));
    scan(&mut keyring, &[(4, 1)]);
    keyring.bury(number(1), 20).unwrap();
    for why in [Suspension::Decrypts { since: 15 }, Suspension::Objects { since: 15, objects: 2 }] {
        let mut keyring = whole.clone();
        keyring.suspend_deletion(number(1), why);
        assert_eq!(keyring.bury(number(1), 20), Err(DeletionError::Suspended(number(1))));
    }
}

#[test]
fn suspended_deletion_stands_still_until_a_new_scan_lets_it_be_scheduled_anew() {
    let mut keyring = waiting();
    keyring.pass(100);
    keyring.suspend_deletion(number(1), Suspension::Decrypts { since: 15 });
    keyring.pass(1000);
    assert_eq!(keyring.check(), Ok(()));
    assert_eq!(keyring.generations[0].pending.as_ref().unwrap().wait.left(), WEEK - Duration::from_secs(100));
    // The scan that did not see what was decrypted proves nothing any more.
    let refused = keyring.schedule_deletion(number(1), WEEK, None, 16);
    assert!(matches!(refused, Err(DeletionError::Needed { why: NotRewritten::NoScan(_), .. })), "{refused:?}");
    scan(&mut keyring, &[(3, 1)]);
    keyring.schedule_deletion(number(1), WEEK, None, 17).unwrap();
    assert_eq!(keyring.generations[0].pending.as_ref().unwrap().wait.left(), WEEK);

    scan(&mut keyring, &[(1, 3), (3, 1)]);
    assert_eq!(keyring.contradiction(number(1), 18), Some(Suspension::Objects { since: 18, objects: 3 }));
    assert_eq!(keyring.contradiction(number(2), 18), None);
}

#[test]
fn cmk_that_a_kept_generation_names_is_never_left_to_be_destroyed() {
    let mut shared = waiting();
    shared.generations[1].wraps.push(wrap(1));
    let mut shared = over(shared);
    shared.bury(number(1), 20).unwrap();
    assert_eq!(shared.generations[0].tombstone.as_ref().unwrap().left, Some(vec![]));
    let mut forged = over(waiting());
    forged.bury(number(1), 20).unwrap();
    let tombstone = forged.generations[0].tombstone.as_mut().unwrap();
    tombstone.left = Some(vec![wrap(3).root_id]);
    assert!(matches!(forged.check(), Err(TransitionError::Inconsistent(_))));
}

#[test]
fn records_that_no_transition_makes_are_refused() {
    type Change = fn(&mut Keyring);
    let changes: [(&str, Change); 6] = [
        ("no wait", |ring| ring.generations[0].pending = None),
        ("wait of a retired one", |ring| ring.generations[0].state = GenerationState::Retired),
        ("destroyed with wraps", |ring| {
            ring.generations[0].pending = None;
            ring.generations[0].state = GenerationState::Destroyed;
        }),
        ("retired without wraps", |ring| ring.generations[1].wraps.clear()),
        ("tombstone of a retired one", |ring| {
            ring.generations[1].tombstone = Some(Tombstone { scheduled: 1, destroyed: 2, by: None, left: None });
        }),
        ("active and pending", |ring| ring.generations[2].pending = ring.generations[0].pending.clone()),
    ];
    for (name, change) in changes {
        let mut ring = waiting();
        change(&mut ring);
        assert!(matches!(ring.check(), Err(TransitionError::Inconsistent(_))), "{name}");
    }
}
