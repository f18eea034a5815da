//! Rollouts in a cluster that a test makes up: a machine, instances of a template, and what becomes of new texts.

use super::*;
use model::{MachineId, MachineRecord, Revision, ScheduleRecord, UnitRecord, UnitState, keys};
use proptest::prelude::*;

const OLD: &str = "[Service]\nExecStart=/bin/old\n";
const NEW: &str = "[Service]\nExecStart=/bin/new\n";

fn name(text: &str) -> UnitName {
    text.parse().expect("valid")
}

fn machine() -> MachineId {
    "0123456789abcdef0123456789abcdef".parse().expect("valid")
}

fn app(n: usize) -> UnitName {
    name(&format!("app@{n}.service"))
}

/// A hub, a machine and its systemd. `broken` instances never become active with the new text.
struct World {
    cluster: Cluster,
    record: RolloutRecord,
    rollout: Rollout,
    now: Timestamp,
    broken: Vec<UnitName>,
    revision: i64,
    messages: Vec<String>,
    /// The most instances that were out of service after any step.
    worst: usize,
}

impl World {
    fn new(instances: usize, at_once: u32) -> Self {
        let mut world = Self {
            cluster: Cluster::default(),
            record: RolloutRecord {
                v: 1,
                text: NEW.to_owned(),
                hash: NEW.to_owned(),
                at_once,
                ready_timeout: 60_000,
                settle: 2_000,
                rollback: true,
                state: RolloutState::Running,
                units: Vec::new(),
                former: BTreeMap::new(),
                message: String::new(),
                by: "test".to_owned(),
                at: Timestamp(1),
                unknown: Default::default(),
            },
            rollout: Rollout::default(),
            now: Timestamp(1_000),
            broken: Vec::new(),
            revision: 1,
            messages: Vec::new(),
            worst: 0,
        };
        let presence = MachineRecord::new("m1".to_owned(), [10, 0, 0, 1].into(), String::new());
        world.put(&keys::machine(&machine()), &presence);
        world.set("app@.service", OLD, DesiredState::Inactive);
        for n in 1..=instances {
            world.set(app(n).as_str(), OLD, DesiredState::Launched);
        }
        let units = units_of(&world.cluster, &name("app@.service"));
        world.record.units = units.into_iter().map(RolloutUnit::new).collect();
        world.machine_obeys(true);
        world
    }

    fn put(&mut self, key: &str, record: &impl serde::Serialize) {
        self.revision += 1;
        let value = serde_json::to_vec(record).expect("renders");
        self.cluster.put(key, &value, Revision(self.revision));
    }

    fn set(&mut self, unit: &str, text: &str, desired: DesiredState) {
        let mut record = UnitRecord::new(text.to_owned(), text.to_owned());
        (record.desired, record.launch) = (desired, 1);
        self.put(&keys::unit(&name(unit)), &record);
    }

    fn state(&mut self, unit: &UnitName, active: &str) {
        let record = self.cluster.units[unit].record.clone();
        let state = UnitState {
            v: 1,
            load: "loaded".to_owned(),
            active: active.to_owned(),
            sub: "x".to_owned(),
            hash: record.hash,
            launch: record.launch,
            error: None,
        };
        self.put(&keys::state(&machine(), unit), &state);
    }

    /// Engine and agent do what the records say: new texts stop and start their units.
    fn machine_obeys(&mut self, at_once: bool) {
        for (unit, known) in self.cluster.units.clone() {
            if known.record.desired == DesiredState::Inactive {
                continue;
            }
            let hash = &known.record.hash;
            let on = self.cluster.schedule.get(&unit).and_then(|on| on.get(&machine()));
            if on.is_none_or(|record| record.hash != *hash) {
                let record = ScheduleRecord {
                    v: 1,
                    hash: hash.clone(),
                    desired: known.record.desired,
                    launch: known.record.launch,
                    term: Revision(1),
                    why: String::new(),
                    unknown: Default::default(),
                };
                self.put(&keys::schedule(&machine(), &unit), &record);
            }
            let state = self.cluster.states.get(&unit).and_then(|on| on.get(&machine())).cloned();
            let current = state.is_some_and(|s| {
                s.hash == *hash && s.launch == known.record.launch && s.active != "activating"
            });
            if current {
                continue;
            }
            let fails = *hash == NEW && self.broken.contains(&unit);
            let starts = matches!(&self.cluster.states.get(&unit).and_then(|on| on.get(&machine())), Some(s) if s.hash == *hash);
            let active = match () {
                () if !at_once && !starts => "activating",
                () if fails => "failed",
                () => "active",
            };
            self.state(&unit, active);
        }
    }

    fn out(&self) -> usize {
        let looks = looks(&self.cluster, self.record.units.iter().map(|entry| &entry.unit));
        looks.values().filter(|look| **look != Look::Good).count()
    }

    /// Decides and writes.
    fn step(&mut self) -> Decision {
        let decision = self.rollout.step(self.now, &name("app@.service"), &self.record, &self.cluster);
        self.record = decision.record.clone();
        for change in &decision.changes {
            let (unit, text) = match change {
                Change::Replace { unit, text, .. } | Change::Restore { unit, text, .. } => (unit, Some(text)),
                Change::Relaunch { unit } => (unit, None),
            };
            let mut record = self.cluster.units[unit].record.clone();
            match text {
                Some(text) => (record.text, record.hash) = (text.clone(), text.clone()),
                None => record.launch += 1,
            }
            self.put(&keys::unit(unit), &record);
        }
        self.messages.extend(decision.notices.iter().map(|notice| notice.message.clone()));
        self.worst = self.worst.max(self.out());
        decision
    }

    fn pass(&mut self, milliseconds: u64) {
        self.now = self.now.after(Duration::from_millis(milliseconds));
    }

    /// Until it is over.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            self.step();
            if !self.record.state.is_active() {
                return;
            }
            self.machine_obeys(false);
            self.pass(500);
        }
        panic!("it does not end: {:?}", self.record);
    }

    fn has(&self, text: &str) -> Vec<usize> {
        (1..100).filter(|n| self.cluster.units.get(&app(*n)).is_some_and(|u| u.record.text == text)).collect()
    }
}

#[test]
fn one_after_another_and_the_template_last() {
    let mut world = World::new(4, 1);
    world.step();
    assert_eq!(world.has(NEW), [1]);
    world.step();
    assert_eq!(world.has(NEW), [1], "the first is not ready yet");
    world.finish();
    assert_eq!((world.record.state, world.has(NEW)), (RolloutState::Done, vec![1, 2, 3, 4]));
    assert_eq!(world.cluster.units[&name("app@.service")].record.text, NEW);
    assert_eq!(world.worst, 1);
    assert!(world.record.former.is_empty(), "a finished record is short");
}

#[test]
fn a_unit_must_stay_ready_for_the_settle_time() {
    let mut world = World::new(2, 1);
    world.step();
    world.machine_obeys(true);
    world.step();
    world.pass(1_999);
    assert_eq!(world.step().wake, Some(world.now.after(Duration::from_millis(1))));
    assert_eq!(world.has(NEW), [1]);
    // It falls over for a moment: the time begins anew.
    world.state(&app(1), "activating");
    world.step();
    world.state(&app(1), "active");
    world.pass(1_000);
    world.step();
    assert_eq!(world.has(NEW), [1]);
    world.pass(2_000);
    world.step();
    assert_eq!(world.has(NEW), [1, 2]);
}

#[test]
fn what_failed_and_what_went_before_gets_its_text_back() {
    let mut world = World::new(4, 1);
    world.broken = vec![app(3)];
    world.finish();
    assert_eq!((world.record.state, world.has(NEW)), (RolloutState::RolledBack, vec![]));
    assert_eq!(world.cluster.units[&name("app@.service")].record.text, OLD);
    assert!(world.record.message.contains("app@3.service: failed"), "{}", world.record.message);
    assert_eq!(world.record.units[3].progress, Progress::Waiting, "the fourth was never touched");
    assert!(world.messages.iter().any(|message| message.contains("rolls back")), "{:?}", world.messages);
}

#[test]
fn without_rollback_it_stops_where_it_is() {
    let mut world = World::new(3, 1);
    (world.broken, world.record.rollback) = (vec![app(2)], false);
    world.finish();
    assert_eq!((world.record.state, world.has(NEW)), (RolloutState::Failed, vec![1, 2]));
}

#[test]
fn patience_ends() {
    let mut world = World::new(2, 1);
    world.step();
    world.state(&app(1), "activating");
    world.step();
    world.pass(59_999);
    world.step();
    assert_eq!(world.record.state, RolloutState::Running);
    world.pass(1);
    world.step();
    assert_eq!(world.record.state, RolloutState::RollingBack);
    assert!(world.record.message.contains("not ready after 60s"), "{}", world.record.message);
}

#[test]
fn a_unit_that_no_machine_takes_fails_it() {
    let mut world = World::new(1, 1);
    world.step();
    let known = world.cluster.units[&app(1)].clone();
    let text = format!("{NEW}[X-Fleet]\nMachineMetadata=disk=ssd\n");
    world.put(&keys::unit(&app(1)), &UnitRecord { text, ..known.record });
    world.cluster.delete(&keys::schedule(&machine(), &app(1)));
    world.step();
    assert_eq!(world.record.state, RolloutState::Running, "it may only be between two machines");
    world.pass(2_000);
    world.step();
    assert_eq!(world.record.state, RolloutState::RollingBack);
    assert!(world.record.message.contains("no machine fits (m1: "), "{}", world.record.message);
}

#[test]
fn a_new_leader_goes_on() {
    let mut world = World::new(4, 1);
    world.step();
    world.machine_obeys(true);
    world.pass(500);
    world.rollout = Rollout::default();
    world.step();
    assert_eq!(world.has(NEW), [1], "nothing is done twice");
    world.finish();
    assert_eq!((world.record.state, world.worst), (RolloutState::Done, 1));
}

#[test]
fn paused_and_resumed_and_given_up() {
    let mut world = World::new(3, 1);
    world.step();
    world.record.state = RolloutState::Paused;
    for _ in 0..10 {
        world.machine_obeys(true);
        world.pass(1_000);
        world.step();
    }
    assert_eq!((world.record.state, world.has(NEW)), (RolloutState::Paused, vec![1]));
    world.record.state = RolloutState::Running;
    world.step();
    assert_eq!(world.has(NEW), [1, 2]);
    world.record.state = RolloutState::RollingBack;
    world.finish();
    assert_eq!((world.record.state, world.has(OLD)), (RolloutState::RolledBack, vec![1, 2, 3]));
    assert_eq!(world.worst, 1);
}

#[test]
fn what_somebody_else_replaced_is_left_alone() {
    let mut world = World::new(2, 1);
    world.step();
    world.machine_obeys(true);
    world.set("app@1.service", "[Service]\nExecStart=/bin/other\n", DesiredState::Launched);
    world.finish();
    assert_eq!(world.record.state, RolloutState::RolledBack);
    assert!(world.cluster.units[&app(1)].record.text.contains("other"));
}

#[test]
fn instances_that_come_meanwhile_belong_to_it() {
    let mut world = World::new(1, 1);
    world.step();
    world.set("app@2.service", OLD, DesiredState::Launched);
    world.finish();
    assert_eq!((world.record.state, world.has(NEW)), (RolloutState::Done, vec![1, 2]));
}

#[test]
fn nothing_more_is_taken_while_another_is_out_for_whatever_reason() {
    let mut world = World::new(3, 1);
    let turn = |world: &mut World| {
        for app in [app(2), app(3)] {
            let hash = world.cluster.units[&app].record.hash.clone();
            let record = world.cluster.schedule[&app][&machine()].clone();
            world.put(&keys::schedule(&machine(), &app), &ScheduleRecord { hash, ..record });
            world.state(&app, "active");
        }
        world.step();
        world.pass(2_000);
        world.step();
    };
    world.step();
    world.machine_obeys(true);
    world.step();
    world.pass(2_000);
    world.step();
    assert_eq!(world.has(NEW), [1, 2]);
    world.state(&app(1), "activating");
    turn(&mut world);
    assert_eq!((world.record.units[1].progress, world.has(NEW)), (Progress::Ready, vec![1, 2]));
    world.state(&app(1), "active");
    turn(&mut world);
    assert_eq!(world.has(NEW), [1, 2, 3]);
}

#[test]
fn what_is_out_of_service_already_goes_first() {
    let mut world = World::new(3, 1);
    world.state(&app(3), "failed");
    world.step();
    assert_eq!(world.has(NEW), [3]);
    world.finish();
    assert_eq!((world.record.state, world.worst), (RolloutState::Done, 1));
}

#[test]
fn a_sidekick_that_stopped_with_its_unit_starts_again() {
    let mut world = World::new(1, 1);
    let text = "[Service]\nExecStart=/bin/true\n[X-Fleet]\nMachineOf=app@1.service\n";
    world.set("side.service", text, DesiredState::Launched);
    world.machine_obeys(true);
    let side = name("side.service");
    world.step();
    assert_eq!(world.record.units[0].followers, std::slice::from_ref(&side));
    world.state(&side, "inactive");
    assert_eq!(world.cluster.units[&side].record.launch, 1, "its unit is not back yet");
    world.machine_obeys(true);
    world.step();
    assert_eq!(world.cluster.units[&side].record.launch, 2);
    world.finish();
    assert_eq!((world.record.state, world.cluster.units[&side].record.launch), (RolloutState::Done, 2));
}

#[test]
fn a_job_that_ended_may_end_again() {
    let mut world = World::new(1, 1);
    world.state(&app(1), "inactive");
    world.step();
    world.state(&app(1), "inactive");
    world.machine_obeys(true);
    world.finish();
    assert_eq!(world.record.state, RolloutState::Done);
}

proptest! {
    /// Whatever fails and whoever leads: never more out of service than allowed, and all or nothing in the end.
    #[test]
    fn all_or_nothing(
        instances in 1_usize..9,
        at_once in 1_u32..4,
        broken in proptest::option::of(1_usize..9),
        leaders in proptest::collection::vec(any::<bool>(), 200),
        fast in proptest::collection::vec(any::<bool>(), 200),
    ) {
        let mut world = World::new(instances, at_once);
        world.broken = broken.into_iter().map(app).collect();
        let fails = broken.is_some_and(|n| n <= instances);
        for turn in 0..10_000 {
            if leaders[turn % leaders.len()] && turn % 7 == 0 {
                world.rollout = Rollout::default();
            }
            // What was not written yet is decided again in the same way.
            let again = world.rollout.step(world.now, &name("app@.service"), &world.record, &world.cluster);
            let decision = world.step();
            prop_assert_eq!(again, decision);
            if !world.record.state.is_active() {
                break;
            }
            if fast[turn % fast.len()] {
                world.machine_obeys(false);
            }
            world.pass(400);
        }
        let all: Vec<_> = (1..=instances).collect();
        let expected = if fails { RolloutState::RolledBack } else { RolloutState::Done };
        prop_assert_eq!(world.record.state, expected, "{:?}", world.record);
        prop_assert_eq!(world.has(if fails { OLD } else { NEW }), all);
        // One that has failed stays out of service until it has its former text again.
        prop_assert!(world.worst <= usize::try_from(at_once).expect("small"), "{} were out", world.worst);
    }
}
