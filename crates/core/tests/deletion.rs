//! Random lives of a keyring whose generations are deleted: rotations, scans, moved clocks, restarts, lost writes. Whatever
//! their order, none is destroyed before its wait in served time, or against what a scan shows, and no number comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keystead_core::keyring::{GenerationState, Keyring, RecoveryRoot, Suspension, TokenIdentity};
use keystead_core::scan::{Findings, Source};
use keystead_core::waiting_period::ServedTime;
use keystead_core::{GenerationNumber, KeyCommitment, RootId, RootKind, WrappedKek};
use proptest::collection::vec;
use proptest::prelude::*;

const WAIT: u64 = 1000;

#[derive(Debug, Clone)]
enum Event {
    Rotate,
    /// Whether each of the last few generations has objects.
    Scan(Vec<bool>),
    Schedule(usize),
    Cancel(usize),
    Decrypt(usize),
    /// Real time passes.
    Run(u64),
    /// The daemon is sealed, or serves again.
    Serves(bool),
    SetWall(i64),
    Store,
    /// The write fails; whether it reached the disk all the same.
    StoreFails(bool),
    Restart {
        off: u64,
        reboot: bool,
    },
    Tend,
}

fn event() -> impl Strategy<Value = Event> {
    const YEAR: i64 = 365 * 24 * 3600;
    prop_oneof![
        2 => Just(Event::Rotate),
        4 => vec(prop::bool::weighted(0.2), 0..5).prop_map(Event::Scan),
        5 => (0..5_usize).prop_map(Event::Schedule),
        1 => (0..5_usize).prop_map(Event::Cancel),
        1 => (0..5_usize).prop_map(Event::Decrypt),
        8 => (0..700_u64).prop_map(Event::Run),
        1 => any::<bool>().prop_map(Event::Serves),
        1 => prop::sample::select(vec![-YEAR, -3600, 3600, YEAR]).prop_map(Event::SetWall),
        2 => Just(Event::Store),
        1 => any::<bool>().prop_map(Event::StoreFails),
        1 => (0..100_000_u64, any::<bool>()).prop_map(|(off, reboot)| Event::Restart { off, reboot }),
        6 => Just(Event::Tend),
    ]
}

/// A daemon, its disk, and what somebody who sees everything knows.
struct Life {
    memory: Keyring,
    disk: Keyring,
    served: ServedTime,
    serves: bool,
    boot_time: u64,
    wall: u64,
    /// Served since the schedule in force, by generation.
    truth: BTreeMap<GenerationNumber, u64>,
    /// What etcd holds, as last scanned.
    needed: BTreeSet<GenerationNumber>,
    random: u8,
}

impl Life {
    fn new() -> Self {
        let memory = Keyring {
            revision: 1,
            ..Keyring::empty(
                "edge".parse().unwrap(),
                "n1".parse().unwrap(),
                TokenIdentity { serial: "1".into(), label: "a".into() },
                RecoveryRoot::Declined,
            )
        };
        let mut life = Self {
            disk: memory.clone(),
            memory,
            served: ServedTime::default(),
            serves: true,
            boot_time: 5000,
            wall: 1_800_000_000,
            truth: BTreeMap::new(),
            needed: BTreeSet::new(),
            random: 0,
        };
        life.rotate();
        life.rotate();
        life
    }

    fn rotate(&mut self) {
        self.random += 1;
        let (random, ring) = (self.random, &mut self.memory);
        let intent = ring.begin_rotation([random; 16], [random; 16], self.wall).unwrap();
        let wrap = WrappedKek { root_kind: RootKind::Pkcs11, root_id: intent.root_id, bytes: vec![1; 61] };
        ring.prepare(KeyCommitment::from_bytes([random; 32]), vec![wrap], self.wall).unwrap();
        ring.activate(self.wall).unwrap();
        self.disk = self.memory.clone();
    }

    fn number(&self, index: usize) -> GenerationNumber {
        let generations = &self.memory.generations;
        generations[index.min(generations.len() - 1)].number
    }

    fn look(&mut self) {
        self.served.look(self.boot_time, self.serves);
        if self.memory.pending().next().is_none() {
            self.served.take();
        }
    }

    /// What the service does before any write.
    fn settle_time(&mut self) {
        self.look();
        let served = self.served.take();
        self.memory.pass(served);
    }

    fn store(&mut self) {
        self.settle_time();
        self.disk = self.memory.clone();
    }

    fn happens(&mut self, event: Event) -> Result<(), TestCaseError> {
        match event {
            Event::Rotate if self.random < 100 => self.rotate(),
            Event::Rotate => {}
            Event::Scan(objects) => {
                let numbers: Vec<_> = self.memory.generations.iter().map(|each| each.number).collect();
                let active = self.memory.active().unwrap().number;
                self.needed =
                    numbers.iter().zip(&objects).filter(|(_, has)| **has).map(|(number, _)| *number).collect();
                self.needed.insert(active);
                let key_id = |number: &GenerationNumber| self.memory.generation(*number).unwrap().key_id.clone();
                let objects = self.needed.iter().map(|number| (key_id(number), 3)).collect();
                let source = Source::Etcd { cluster: 1, member: 1 };
                self.memory
                    .record_scan(Findings { source, revision: 1, restricted: false, objects, unknown: 0 }, self.wall);
                self.disk = self.memory.clone();
            }
            Event::Schedule(index) => {
                let number = self.number(index);
                self.settle_time();
                if self.memory.schedule_deletion(number, Duration::from_secs(WAIT), None, self.wall).is_ok() {
                    self.truth.insert(number, 0);
                }
                self.disk = self.memory.clone();
            }
            Event::Cancel(index) => {
                let number = self.number(index);
                if self.memory.cancel_deletion(number).is_ok() {
                    self.truth.remove(&number);
                }
                self.store();
            }
            Event::Decrypt(index) => {
                let number = self.number(index);
                self.memory.suspend_deletion(number, Suspension::Decrypts { since: self.wall });
                self.store();
            }
            Event::Run(seconds) => {
                self.boot_time += seconds;
                self.wall += seconds;
                if self.serves {
                    self.truth.values_mut().for_each(|served| *served += seconds);
                }
                self.look();
            }
            Event::Serves(serves) => self.serves = serves,
            Event::SetWall(by) => self.wall = self.wall.saturating_add_signed(by),
            Event::Store => self.store(),
            Event::StoreFails(reached) => {
                let before = self.memory.clone();
                self.settle_time();
                if reached {
                    self.disk = self.memory.clone();
                } else {
                    self.memory = before;
                }
                self.memory = self.disk.clone();
            }
            Event::Restart { off, reboot } => {
                self.wall += off;
                self.boot_time = if reboot { off } else { self.boot_time + off };
                self.served = ServedTime::default();
                self.memory = self.disk.clone();
            }
            Event::Tend => {
                self.look();
                let numbers: Vec<_> = self.memory.pending().map(|(each, _)| each.number).collect();
                for number in numbers {
                    self.settle_time();
                    if self.memory.bury(number, self.wall).is_ok() {
                        let served = self.truth.remove(&number);
                        prop_assert!(
                            served.is_some_and(|served| served >= WAIT),
                            "{number} destroyed after {served:?}"
                        );
                        prop_assert!(!self.needed.contains(&number), "{number} destroyed against the scan");
                        self.disk = self.memory.clone();
                    }
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn none_is_destroyed_before_its_wait_in_served_time_whatever_clocks_say(events in vec(event(), 1..120)) {
        let mut life = Life::new();
        let mut dead: BTreeMap<GenerationNumber, String> = BTreeMap::new();
        for event in events {
            life.happens(event)?;
            prop_assert_eq!(life.memory.check(), Ok(()));
            prop_assert_eq!(life.disk.check(), Ok(()));
            for (number, key_id) in &dead {
                let tombstone = life.memory.generation(*number).expect("a tombstone stays");
                prop_assert_eq!(tombstone.key_id.as_str(), key_id, "a number was used again");
                prop_assert_eq!(tombstone.state, GenerationState::Destroyed);
            }
            for generation in life.memory.generations.iter().filter(|each| each.state == GenerationState::Destroyed) {
                dead.insert(generation.number, generation.key_id.to_string());
            }
            let left: BTreeSet<&RootId> = life.memory.unfinished().flat_map(|(_, left)| left).collect();
            let kept = life.memory.generations.iter().flat_map(|each| &each.wraps);
            prop_assert!(kept.into_iter().all(|wrap| !left.contains(&wrap.root_id)), "a CMK in use is to be destroyed");
        }
    }
}

/// A test that never destroys anything would pass whatever the code does.
#[test]
fn a_life_without_trouble_ends_in_a_tombstone() {
    let mut life = Life::new();
    for event in [Event::Scan(vec![]), Event::Schedule(0), Event::Run(600), Event::Tend, Event::Store, Event::Run(399)]
    {
        life.happens(event).unwrap();
    }
    life.happens(Event::Tend).unwrap();
    assert_eq!(life.memory.generations[0].state, GenerationState::PendingDeletion);
    life.happens(Event::Run(1)).unwrap();
    life.happens(Event::Tend).unwrap();
    assert_eq!(life.disk.generations[0].state, GenerationState::Destroyed);
}
