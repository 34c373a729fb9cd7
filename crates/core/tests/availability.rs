//! The availability machine and the lease over random histories, and the page that draws them, held against the code.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use keystead_core::FaultClass;
use keystead_core::availability::{
    Availability, DENIALS, DENIED_FOR, Effect, Observation, Past, Root, SealReason, Source, State, step,
};
use keystead_core::lease::{Clocks, FLOOR, Lease};
use keystead_core::upstream_state::Denials;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};

const CASES: u32 = 4096;

fn class() -> impl Strategy<Value = FaultClass> {
    prop::sample::select(FaultClass::ALL.to_vec())
}

fn source() -> impl Strategy<Value = Source> {
    prop_oneof![Just(Source::Upstream), Just(Source::OfflineCopy), Just(Source::Custody)]
}

prop_compose! {
    fn past()(
        proven: bool,
        denials in prop::option::of((0..4_u32, 0..2400_u64)),
        written in prop::option::of((0..1000_u64).prop_map(Duration::from_secs)),
        revoked in prop::option::weighted(0.1, prop::option::of(class())),
    ) -> Past {
        Past { proven, denials: denials.map(|(count, spread)| Denials { count, spread }), written, revoked }
    }
}

fn observation() -> impl Strategy<Value = Observation> {
    prop_oneof![
        6 => source().prop_map(Observation::Loaded),
        1 => Just(Observation::RecordRejected),
        2 => past().prop_map(Observation::Remembered),
        2 => Just(Observation::CustodyLost),
        2 => Just(Observation::CustodyAnswered),
        3 => Just(Observation::Renewed),
        8 => class().prop_map(Observation::UpstreamFailed),
        1 => Just(Observation::NothingOpens),
        1 => Just(Observation::LeaseUsedUp),
        1 => Just(Observation::LeaseExtended),
        2 => Just(Observation::Disabled),
        2 => Just(Observation::Enabled),
        2 => prop_oneof![Just(Root::Custody), Just(Root::Upstream)].prop_map(Observation::Rooted),
        2 => Just(Observation::Tick),
    ]
}

/// What a person with the whole history at hand would say.
#[derive(Default)]
struct Judge {
    /// The active generation's root is in custody.
    local: bool,
    proven: bool,
    revoked: bool,
    expired: bool,
    disabled: bool,
    denied_at: Vec<Duration>,
    /// Denials before this start, and their spread.
    carried: Option<(u32, Duration, Option<Duration>)>,
    custody_lost: Option<Duration>,
}

impl Judge {
    fn opened_by_upstream(&mut self) {
        *self = Self {
            local: self.local,
            proven: true,
            disabled: self.disabled,
            custody_lost: self.custody_lost,
            ..Self::default()
        };
    }

    fn hears(&mut self, observation: Observation, now: Duration, served: bool) {
        match observation {
            Observation::Loaded(Source::Upstream) => self.opened_by_upstream(),
            Observation::Renewed if served || (self.disabled && !self.revoked) => self.opened_by_upstream(),
            Observation::UpstreamFailed(FaultClass::KeyDisabled | FaultClass::KeyGone) => self.revoked |= self.proven,
            Observation::UpstreamFailed(FaultClass::Denied) if self.proven => {
                self.denied_at.push(now);
                let (count, spread, written) = self.carried.unwrap_or_default();
                let spread = spread + written.map_or(Duration::ZERO, |written| self.denied_at[0] - written);
                let here = self.denied_at[self.denied_at.len() - 1] - self.denied_at[0];
                let count = count + u32::try_from(self.denied_at.len()).unwrap();
                self.revoked |= count >= DENIALS && spread + here >= DENIED_FOR;
            }
            Observation::Remembered(past) => {
                self.proven |= past.proven;
                self.revoked |= past.revoked.is_some();
                if self.denied_at.is_empty() && self.carried.is_none() {
                    self.carried = past.denials.map(|denials| (denials.count, denials.spread(), past.written));
                }
            }
            Observation::LeaseUsedUp => self.expired = true,
            Observation::LeaseExtended => self.expired = false,
            Observation::Disabled => self.disabled = true,
            Observation::Enabled => self.disabled = false,
            Observation::Rooted(root) => self.local = root == Root::Custody,
            _ => {}
        }
        match observation {
            Observation::CustodyLost if served => self.custody_lost = self.custody_lost.or(Some(now)),
            Observation::CustodyAnswered | Observation::Loaded(_) => self.custody_lost = None,
            _ => {}
        }
    }

    /// What the cloud takes, it takes from the generations whose root is there.
    fn closes_cloud(&self) -> bool {
        self.revoked || self.expired
    }

    fn forbids(&self) -> bool {
        (self.closes_cloud() && !self.local) || self.disabled
    }
}

/// Runs a property over [`CASES`] random histories and tells how many there were.
fn hold<S: Strategy>(what: &str, histories: S, property: impl Fn(S::Value) -> Result<usize, TestCaseError>) {
    let (cases, steps) = (Cell::new(0), Cell::new(0));
    let config = ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() };
    let outcome = TestRunner::new(config).run(&histories, |history| {
        steps.set(steps.get() + property(history)?);
        cases.set(cases.get() + 1);
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{what}: {failure}");
    }
    println!("{what}: {} random histories, {} steps", cases.get(), steps.get());
}

#[test]
fn nothing_serves_that_may_not_and_nothing_gains_rights() {
    let histories = (vec((observation(), 0..1200_u64), 1..60), prop::option::of(0..2000_u64));
    hold("availability", histories, |(steps, grace)| {
        let count = steps.len();
        let grace = grace.map(Duration::from_secs);
        let mut state = State::default();
        let mut judge = Judge::default();
        let mut now = Duration::from_secs(1000);
        for (observation, seconds) in steps {
            now += Duration::from_secs(seconds);
            let served = state.serves();
            let (was_revoked, was_disabled) = (judge.revoked, judge.disabled);
            judge.hears(observation, now, served);
            let (next, effect) = step(&state, observation, now, grace);

            prop_assert_eq!(next.is_revoked(), judge.revoked, "revoked by {:?}, or not", observation);
            prop_assert_eq!(next.is_proven(), judge.proven);
            prop_assert_eq!(next.opens_cloud(), !judge.closes_cloud(), "opens what is rooted in the cloud, or not");
            if next.serves() {
                prop_assert!(!judge.forbids(), "serves what is revoked, expired or disabled");
            }
            prop_assert_eq!(next.is_disabled(), judge.disabled, "only an admin switches off and on");
            if observation == Observation::Enabled {
                prop_assert_eq!(next.is_revoked(), was_revoked, "enabling lifts a revocation");
                // A start, and it alone, is what enabling leads to: where nothing else refuses.
                let leads = was_disabled && !judge.revoked && !judge.expired;
                prop_assert_eq!(effect == Some(Effect::Load), leads);
            }
            if !served && next.serves() {
                prop_assert!(matches!(observation, Observation::Loaded(_)), "serves without a loaded key");
            }
            if served && !next.serves() {
                prop_assert!(matches!(effect, Some(Effect::WipeKeks | Effect::Revoke)), "refuses with keys in memory");
                let by_grace = observation == Observation::Tick
                    && now - judge.custody_lost.expect("custody is away")
                        >= grace.expect("else keys are kept for ever");
                prop_assert!(judge.forbids() || by_grace, "{:?} took the keys away", observation);
            }
            // What only says that there is no answer takes nothing away and gives nothing back.
            if matches!(
                observation,
                Observation::UpstreamFailed(
                    FaultClass::Unreachable
                        | FaultClass::CredentialFault
                        | FaultClass::Billing
                        | FaultClass::Corrupt
                        | FaultClass::Unclassified
                )
            ) {
                prop_assert_eq!((next.serves(), was_revoked), (served, judge.revoked));
            }
            prop_assert_eq!(
                effect == Some(Effect::Revoke),
                !was_revoked && judge.revoked && !matches!(observation, Observation::Remembered(_))
            );
            prop_assert_eq!(effect == Some(Effect::Restore), was_revoked && !judge.revoked);
            if !next.serves() {
                judge.custody_lost = None;
            } else if observation == Observation::Tick
                && let (Some(since), Some(grace)) = (judge.custody_lost, grace)
            {
                prop_assert!(now - since < grace, "serves on after its grace");
            }
            if next.serves() {
                let troubled = judge.custody_lost.is_some() || (next.upstream_fault().is_some() && !judge.local);
                prop_assert_eq!(next.availability() == Availability::Online, !troubled);
            }
            state = next;
        }
        Ok(count)
    });
}

/// Whatever is restarted, rebooted or set: never more time than there was.
#[test]
fn lease_never_gives_more_than_its_length() {
    hold("lease", (1..80_u64, vec(clock_move(), 1..80)), |(length, moves)| {
        let count = moves.len();
        let length = Duration::from_secs(length * 3600);
        let mut machine = Machine { boot: 1, boot_time: 500, wall: 1_700_000_000, off_by: 0 };
        let mut lease = Lease::full(length, machine.clocks());
        let mut stored = lease.clone();
        // Time the machine ran since the renewal; and in all, of which the clock tells as long as nobody moves it.
        let (mut ran, mut passed, mut honest) = (0, 0, true);
        for step in moves {
            match step {
                ClockMove::Run(seconds) => {
                    // Stored at least every FLOOR, as the service does.
                    let seconds = seconds.min(
                        FLOOR.as_secs()
                            - machine.clocks().boot_time.saturating_sub(stored.seen().boot_time).min(FLOOR.as_secs()),
                    );
                    machine.run(seconds);
                    ran += seconds;
                    passed += seconds;
                    lease.count(machine.clocks());
                    if lease.seen().boot_time - stored.seen().boot_time >= FLOOR.as_secs() {
                        stored = lease.clone();
                    }
                }
                ClockMove::Store => stored = lease.clone(),
                ClockMove::Restart => {
                    lease = stored.clone();
                    lease.count(machine.clocks());
                }
                ClockMove::Reboot { off, lose_clock } => {
                    machine = Machine { boot: machine.boot + 1, boot_time: 3, ..machine };
                    machine.wall += off;
                    passed += off;
                    if lose_clock {
                        machine.off_by = -i64::try_from(machine.wall).unwrap();
                        honest = false;
                    }
                    lease = stored.clone();
                    lease.count(machine.clocks());
                    // As a start offline does before it serves.
                    stored = lease.clone();
                }
                ClockMove::SetClock(by) => {
                    machine.off_by = by;
                    honest &= by == 0;
                }
            }
            prop_assert!(
                lease.left() <= length.saturating_sub(Duration::from_secs(ran)),
                "more than the time it ran leaves"
            );
            if honest {
                prop_assert!(
                    lease.left() <= length.saturating_sub(Duration::from_secs(passed)),
                    "more than the time that passed leaves"
                );
            }
            prop_assert!(lease.is_sound());
        }
        Ok(count)
    });
}

struct Machine {
    boot: u32,
    boot_time: u64,
    /// The true time.
    wall: u64,
    off_by: i64,
}

impl Machine {
    fn clocks(&self) -> Clocks {
        let wall = self.wall.saturating_add_signed(self.off_by);
        Clocks { boot: self.boot.to_string(), boot_time: self.boot_time, wall, device: None, resets: None }
    }

    fn run(&mut self, seconds: u64) {
        self.boot_time += seconds;
        self.wall += seconds;
    }
}

#[derive(Debug, Clone)]
enum ClockMove {
    Run(u64),
    Store,
    Restart,
    Reboot { off: u64, lose_clock: bool },
    SetClock(i64),
}

fn clock_move() -> impl Strategy<Value = ClockMove> {
    const YEAR: i64 = 365 * 24 * 3600;
    prop_oneof![
        6 => (0..1800_u64).prop_map(ClockMove::Run),
        1 => Just(ClockMove::Store),
        2 => Just(ClockMove::Restart),
        1 => (0..40_000_u64, prop::bool::weighted(0.3)).prop_map(|(off, lose_clock)| ClockMove::Reboot { off, lose_clock }),
        1 => prop::sample::select(vec![-YEAR, 0, YEAR, -3600, 3600]).prop_map(ClockMove::SetClock),
    ]
}

// Single sentences of the specification.

fn after(observations: &[(u64, Observation)]) -> State {
    let mut state = State::default();
    for (second, observation) in observations {
        state = step(&state, *observation, Duration::from_secs(*second), None).0;
    }
    state
}

const PROVEN: Observation = Observation::Remembered(Past { proven: true, denials: None, written: None, revoked: None });
const UPSTREAM: Observation = Observation::Loaded(Source::Upstream);
const DENIED: Observation = Observation::UpstreamFailed(FaultClass::Denied);

#[test]
fn unproven_configuration_never_revokes() {
    for class in FaultClass::ALL {
        let mut history: Vec<_> = (0..50).map(|each| (each * 600, Observation::UpstreamFailed(class))).collect();
        history.push((40_000, Observation::Loaded(Source::OfflineCopy)));
        let state = after(&history);
        assert!(state.serves() && !state.is_revoked(), "{class}");
    }
}

#[test]
fn denied_is_confirmed_by_several_refusals_over_half_an_hour() {
    let revoked = |seconds: &[u64]| {
        let history: Vec<_> =
            [(0, UPSTREAM)].into_iter().chain(seconds.iter().map(|second| (*second, DENIED))).collect();
        after(&history).is_revoked()
    };
    assert!(!revoked(&[10]));
    assert!(!revoked(&[10, 1810]), "two are not several");
    assert!(!revoked(&[10, 11, 12, 13, 14, 15, 1809]), "too soon");
    assert!(revoked(&[10, 900, 1810]));
}

#[test]
fn denials_before_a_restart_count_and_those_before_a_success_do_not() {
    let past = Past { proven: true, denials: Some(Denials { count: 2, spread: 1700 }), ..Past::default() };
    let start = [(0, Observation::Remembered(past)), (5, Observation::Loaded(Source::OfflineCopy))];
    assert!(!after(&[start[0], start[1], (10, DENIED)]).is_revoked(), "the gap over a reboot is not measured");
    let written = Some(Duration::from_secs(1));
    let same_boot = (150, Observation::Remembered(Past { written, ..past }));
    assert!(after(&[same_boot, (151, Observation::Loaded(Source::OfflineCopy)), (160, DENIED)]).is_revoked());
    assert!(after(&[start[0], start[1], (10, DENIED), (110, DENIED)]).is_revoked());
    assert!(!after(&[start[0], start[1], (10, DENIED), (20, Observation::Renewed), (110, DENIED)]).is_revoked());
}

#[test]
fn grant_brings_back_what_expired_and_nothing_that_was_revoked() {
    let expired = after(&[(0, UPSTREAM), (1, Observation::LeaseUsedUp)]);
    let (extended, effect) = step(&expired, Observation::LeaseExtended, Duration::from_secs(2), None);
    assert_eq!((extended.availability(), effect), (Availability::Sealed(SealReason::Starting), Some(Effect::Load)));
    let gone = Observation::UpstreamFailed(FaultClass::KeyGone);
    let revoked = after(&[(0, UPSTREAM), (1, gone), (2, Observation::LeaseUsedUp)]);
    let (extended, effect) = step(&revoked, Observation::LeaseExtended, Duration::from_secs(3), None);
    assert!(extended.is_revoked() && effect.is_none());
}

#[test]
fn disabled_key_is_renewed_without_coming_back_and_is_fresh_when_enabled() {
    let used_up = [(0, UPSTREAM), (1, Observation::Disabled), (2, Observation::LeaseUsedUp)];
    let renewed = after(&[used_up[0], used_up[1], used_up[2], (3, Observation::Renewed)]);
    assert_eq!(renewed.availability(), Availability::Disabled);
    let (enabled, effect) = step(&renewed, Observation::Enabled, Duration::from_secs(4), None);
    assert_eq!((enabled.availability(), effect), (Availability::Sealed(SealReason::Starting), Some(Effect::Load)));
    let (expired, effect) = step(&after(&used_up), Observation::Enabled, Duration::from_secs(4), None);
    assert_eq!((expired.availability(), effect), (Availability::Expired, None));
}

#[test]
fn enabling_the_key_here_does_not_lift_a_revocation() {
    let gone = Observation::UpstreamFailed(FaultClass::KeyDisabled);
    let state = after(&[(0, UPSTREAM), (1, gone), (2, Observation::Disabled), (3, Observation::Enabled)]);
    assert!(state.is_revoked());
    let state = after(&[(0, UPSTREAM), (1, gone), (2, Observation::Disabled), (3, UPSTREAM)]);
    assert_eq!(state.availability(), Availability::Disabled, "nor does the cloud enable what an admin disabled");
}

#[test]
fn cloud_decides_over_older_generations_only_once_the_active_one_is_rooted_in_custody() {
    let custody = (1, Observation::Rooted(Root::Custody));
    let gone = Observation::UpstreamFailed(FaultClass::KeyGone);
    for (taken, revoked) in [(gone, true), (Observation::LeaseUsedUp, false)] {
        let state = after(&[(0, UPSTREAM), custody, (2, taken)]);
        assert_eq!((state.availability(), state.opens_cloud()), (Availability::Online, false));
        let (back, effect) = step(&state, Observation::Renewed, Duration::from_secs(3), None);
        assert!(back.opens_cloud(), "a real unwrap gives back what was taken");
        assert_eq!(effect, revoked.then_some(Effect::Restore));
        // What goes back to the cloud goes back under its word.
        let (back, effect) = step(&state, Observation::Rooted(Root::Upstream), Duration::from_secs(3), None);
        assert_eq!((back.serves(), effect), (false, Some(Effect::WipeKeks)));
    }
    let unreachable = Observation::UpstreamFailed(FaultClass::Unreachable);
    let away = after(&[(0, UPSTREAM), custody, (2, unreachable)]);
    assert_eq!((away.availability(), away.opens_cloud()), (Availability::Online, true));
}

// The page.

/// Where an arrow may begin: each reached the way the daemon reaches it.
fn beginnings() -> Vec<(&'static str, State)> {
    let disabled = Observation::UpstreamFailed(FaultClass::KeyDisabled);
    let unreachable = Observation::UpstreamFailed(FaultClass::Unreachable);
    vec![
        ("sealed", after(&[(0, PROVEN)])),
        ("online", after(&[(0, UPSTREAM)])),
        ("degraded", after(&[(0, UPSTREAM), (1, unreachable)])),
        ("expired", after(&[(0, UPSTREAM), (1, unreachable), (2, Observation::LeaseUsedUp)])),
        ("revoked", after(&[(0, UPSTREAM), (1, disabled)])),
        ("disabled", after(&[(0, UPSTREAM), (1, Observation::Disabled)])),
    ]
}

fn name(state: &State) -> &'static str {
    match state.availability() {
        Availability::Sealed(_) => "sealed",
        Availability::Online => "online",
        Availability::Degraded { .. } => "degraded",
        Availability::Expired => "expired",
        Availability::Revoked { .. } => "revoked",
        Availability::Disabled => "disabled",
    }
}

fn observations() -> Vec<(String, Vec<(u64, Observation)>)> {
    let one = |name: &str, observation| (name.to_owned(), vec![(100, observation)]);
    let mut all = vec![
        one("loaded by custody", Observation::Loaded(Source::Custody)),
        one("loaded by the upstream", UPSTREAM),
        one("loaded from the offline copy", Observation::Loaded(Source::OfflineCopy)),
        one("record rejected", Observation::RecordRejected),
        one("record or marker says revoked", Observation::Remembered(Past { revoked: Some(None), ..Past::default() })),
        one("custody lost", Observation::CustodyLost),
        one("custody answered", Observation::CustodyAnswered),
        one("renewed", Observation::Renewed),
        one("nothing opens", Observation::NothingOpens),
        one("lease used up", Observation::LeaseUsedUp),
        one("grant applied", Observation::LeaseExtended),
        one("disabled by an admin", Observation::Disabled),
        one("enabled by an admin", Observation::Enabled),
    ];
    for class in FaultClass::ALL {
        all.push(one(&format!("upstream: {class}"), Observation::UpstreamFailed(class)));
    }
    let confirmed = vec![(100, DENIED), (1000, DENIED), (1900, DENIED)];
    all.push(("upstream: denied, confirmed".to_owned(), confirmed));
    all
}

/// The generated part of docs/availability.md: the diagram, then every step that changes or causes something.
fn page() -> String {
    let mut arrows: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
    let mut rows = String::from("| in | on | goes to | and |\n|---|---|---|---|\n");
    for (from, state) in beginnings() {
        assert_eq!(from, name(&state));
        for (on, steps) in observations() {
            let (mut next, mut effect) = (state.clone(), None);
            for (second, observation) in steps {
                let (stepped, caused) = step(&next, observation, Duration::from_secs(second), None);
                effect = effect.or(caused);
                next = stepped;
            }
            let to = name(&next);
            let does = match effect {
                None => "",
                Some(Effect::WipeKeks) => "wipes the KEKs",
                Some(Effect::Load) => "loads",
                Some(Effect::Revoke) => "wipes the KEKs, raises the marker, shreds the offline copies",
                Some(Effect::Restore) => "seals offline copies anew, takes the marker down",
            };
            if from == to && does.is_empty() {
                continue;
            }
            writeln!(rows, "| {from} | {on} | {to} | {does} |").unwrap();
            if from != to {
                arrows.entry((from, to)).or_default().push(on);
            }
        }
    }
    let mut diagram = String::from("```mermaid\nstateDiagram-v2\n    [*] --> sealed\n");
    for ((from, to), on) in arrows {
        writeln!(diagram, "    {from} --> {to}: {}", on.join("<br>").replace(": ", " ")).unwrap();
    }
    format!("{diagram}```\n\n{rows}")
}

#[test]
fn page_shows_the_machine_as_it_is() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/availability.md");
    let text = std::fs::read_to_string(&path).expect("docs/availability.md");
    let (begin, end) = ("<!-- made from step() -->\n", "<!-- end -->");
    let shown = text.split_once(begin).and_then(|(_, rest)| rest.split_once(end)).expect("the generated part").0;
    let made = page();
    if shown.trim() != made.trim() {
        let written = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("availability.md");
        std::fs::write(&written, &made).unwrap();
        panic!("docs/availability.md shows another machine; what it should show is in {}", written.display());
    }
}
