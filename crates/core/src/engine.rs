//! The engine: on which machine each unit runs. fleet's rules (`[X-Fleet]`), least loaded first, instances of a
//! template spread out, followers (`MachineOf=`) placed in the same decision as the unit they follow.
//!
//! Not here: who leads, and writing the decision. Invariants: a unit that is not global is on one machine at
//! most in every plan; nothing moves that may stay; every action and every refusal carries its reason.

use crate::cluster::{Cluster, Unit};
use model::{
    DesiredState, MachineId, MachineRecord, Metadata, RECORD_VERSION, Revision, ScheduleRecord, UnitName,
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};
use unit::Requirements;

/// A change to the schedule.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Action {
    /// Run the unit there, or run it there in another way.
    Schedule {
        /// Which unit.
        unit: UnitName,
        /// On which machine.
        machine: MachineId,
        /// What to write.
        record: ScheduleRecord,
    },
    /// Do not run it there any longer.
    Unschedule {
        /// Which unit.
        unit: UnitName,
        /// On which machine.
        machine: MachineId,
        /// Why.
        why: Removal,
    },
}

/// Why a unit leaves a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Removal {
    /// It was destroyed.
    Destroyed,
    /// Nobody wants it to run.
    Inactive,
    /// The machine is gone.
    MachineLost,
    /// It may no longer run there.
    Refused(Refusal),
    /// It runs on another machine already.
    Duplicate,
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Destroyed => f.write_str("destroyed"),
            Self::Inactive => f.write_str("no longer wanted"),
            Self::MachineLost => f.write_str("its machine is gone"),
            Self::Refused(refusal) => write!(f, "may no longer run there: {refusal}"),
            Self::Duplicate => f.write_str("scheduled to another machine too"),
        }
    }
}

/// Why a machine was chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Reason {
    /// It had the fewest units of those that fit.
    LeastLoaded {
        /// How many it had.
        units: usize,
    },
    /// It is the only one that fits.
    OnlyFit,
    /// The unit follows another one.
    Follows(UnitName),
    /// The unit is global.
    Global,
    /// The unit was there before, and its file or its desired state changed.
    Updated,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeastLoaded { units } => write!(f, "fewest units ({units}) of the machines that fit"),
            Self::OnlyFit => f.write_str("the only machine that fits"),
            Self::Follows(peer) => write!(f, "where {peer} runs (MachineOf)"),
            Self::Global => f.write_str("global unit"),
            Self::Updated => f.write_str("updated in place"),
        }
    }
}

/// The rule by which a machine cannot run a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Refusal {
    /// `MachineID=` names another machine.
    MachineId(String),
    /// `MachineMetadata=` asks for what the machine has not.
    Metadata {
        /// Which key.
        key: String,
        /// The values that would do.
        wanted: BTreeSet<String>,
        /// What the machine has.
        has: Option<String>,
    },
    /// `MachineOf=` names a unit that is not there.
    PeerElsewhere {
        /// Which unit.
        peer: UnitName,
        /// Where it is.
        machine: Option<MachineId>,
    },
    /// `Conflicts=`, of this unit or of the other.
    Conflict(UnitName),
    /// Its own file cannot be read.
    Unreadable(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MachineId(wanted) => write!(f, "MachineID={wanted} is another machine"),
            Self::Metadata { key, wanted, has } => {
                let wanted = wanted.iter().map(String::as_str).collect::<Vec<_>>().join(" or ");
                match has {
                    Some(has) => write!(f, "MachineMetadata {key}={wanted} is asked for, it has {key}={has}"),
                    None => write!(f, "MachineMetadata {key}={wanted} is asked for, it has no {key}"),
                }
            }
            Self::PeerElsewhere { peer, machine: Some(machine) } => {
                write!(f, "MachineOf={peer} runs on {}", machine.short())
            }
            Self::PeerElsewhere { peer, machine: None } => {
                write!(f, "MachineOf={peer} is not scheduled anywhere (start it first)")
            }
            Self::Conflict(other) => write!(f, "conflicts with {other}, which runs there"),
            Self::Unreadable(problem) => write!(f, "its unit file cannot be read: {problem}"),
        }
    }
}

/// What should change, and what cannot.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Plan {
    /// In an order in which they may be carried out one after another.
    pub actions: Vec<Action>,
    /// Units that no machine can run now, with each machine's reason.
    pub refused: BTreeMap<UnitName, BTreeMap<MachineId, Refusal>>,
    /// Machines that are gone together with too many others to be believed: their units stay where they are.
    pub held: BTreeSet<MachineId>,
}

/// What the engine knows of machines beyond their presence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Doubts {
    /// Machines that are present, but have not renewed their lease when they should have.
    pub overdue: BTreeSet<MachineId>,
    /// Whether most machines were gone a moment ago. Those that are not back yet are waited for.
    pub holding: bool,
}

/// Decides what to change in `cluster`'s schedule. `term` is the leader's, and goes into every record.
pub fn plan(cluster: &Cluster, term: Revision, doubts: &Doubts) -> Plan {
    Planner::new(cluster, term).run(doubts)
}

/// Machines that units are scheduled to and that are gone.
pub fn lost(cluster: &Cluster) -> BTreeSet<&MachineId> {
    let scheduled = cluster.schedule.values().flat_map(BTreeMap::keys);
    scheduled.filter(|machine| !cluster.machines.contains_key(*machine)).collect()
}

/// Why each machine refuses `unit` as things stand; empty when some machine would take it.
pub fn refusals(cluster: &Cluster, unit: &UnitName) -> BTreeMap<MachineId, Refusal> {
    let planner = Planner::new(cluster, Revision(0));
    let Some(subject) = cluster.units.get(unit) else { return BTreeMap::new() };
    let verdicts: Vec<_> =
        cluster.machines.iter().map(|(id, machine)| (id, planner.able(unit, subject, id, machine))).collect();
    if verdicts.iter().any(|(_, verdict)| verdict.is_ok()) {
        return BTreeMap::new();
    }
    verdicts.into_iter().filter_map(|(id, verdict)| Some((id.clone(), verdict.err()?))).collect()
}

struct Planner<'a> {
    cluster: &'a Cluster,
    term: Revision,
    /// Where everything is, the decisions made so far included.
    placed: BTreeMap<&'a UnitName, BTreeSet<&'a MachineId>>,
    on: BTreeMap<&'a MachineId, BTreeSet<&'a UnitName>>,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn new(cluster: &'a Cluster, term: Revision) -> Self {
        let mut planner =
            Self { cluster, term, placed: BTreeMap::new(), on: BTreeMap::new(), plan: Plan::default() };
        for (unit, machines) in &cluster.schedule {
            for machine in machines.keys() {
                planner.place(unit, machine);
            }
        }
        planner
    }

    fn place(&mut self, unit: &'a UnitName, machine: &'a MachineId) {
        self.placed.entry(unit).or_default().insert(machine);
        self.on.entry(machine).or_default().insert(unit);
    }

    fn remove(&mut self, unit: &'a UnitName, machine: &'a MachineId, why: Removal) {
        if let Some(machines) = self.placed.get_mut(unit) {
            machines.remove(machine);
        }
        if let Some(units) = self.on.get_mut(machine) {
            units.remove(unit);
        }
        self.plan.actions.push(Action::Unschedule { unit: unit.clone(), machine: machine.clone(), why });
    }

    fn run(mut self, doubts: &Doubts) -> Plan {
        self.hold(doubts);
        self.clear();
        self.settle();
        self.fill();
        self.plan
    }

    /// When most machines are gone at once, it is the hub or the network that is sick: nothing is moved. Leases
    /// end one after another, so the machines whose leases are about to end count as gone.
    fn hold(&mut self, doubts: &Doubts) {
        let lost = lost(self.cluster);
        let overdue =
            doubts.overdue.iter().filter(|machine| self.cluster.machines.contains_key(*machine)).count();
        let (gone, left) = (lost.len() + overdue, self.cluster.machines.len() - overdue);
        if !lost.is_empty() && (doubts.holding || (gone > 1 && gone > left)) {
            self.plan.held = lost.into_iter().cloned().collect();
        }
    }

    /// Removes what is not wanted, or whose machine is gone.
    fn clear(&mut self) {
        let cluster = self.cluster;
        for (name, machines) in &cluster.schedule {
            let unit = cluster.units.get(name);
            for machine in machines.keys() {
                match unit {
                    None => self.remove(name, machine, Removal::Destroyed),
                    Some(unit) if unit.record.desired == DesiredState::Inactive => {
                        self.remove(name, machine, Removal::Inactive);
                    }
                    Some(_) if self.plan.held.contains(machine) => {}
                    Some(_) if !cluster.machines.contains_key(machine) => {
                        self.remove(name, machine, Removal::MachineLost);
                    }
                    Some(_) => {}
                }
            }
            if unit.is_some_and(|unit| !unit.is_global()) {
                let spare: Vec<_> = self.placed[name].iter().skip(1).copied().collect();
                for machine in spare {
                    self.remove(name, machine, Removal::Duplicate);
                }
            }
        }
    }

    /// Removes what may not stay where it is, followers after what they follow; updates what stays.
    fn settle(&mut self) {
        let cluster = self.cluster;
        // A removal can make a follower homeless; each round removes one at least, so this ends.
        loop {
            let mut evicted = false;
            for (name, unit) in &cluster.units {
                let machines: Vec<_> = self.placed.get(name).into_iter().flatten().copied().collect();
                for machine in machines {
                    let Some(record) = cluster.machines.get(machine) else { continue };
                    if let Err(refusal) = self.able(name, unit, machine, record) {
                        self.remove(name, machine, Removal::Refused(refusal));
                        evicted = true;
                    }
                }
            }
            if !evicted {
                break;
            }
        }
        for (name, unit) in &cluster.units {
            let machines: Vec<_> = self.placed.get(name).into_iter().flatten().copied().collect();
            for machine in machines {
                let Some(current) = cluster.schedule.get(name).and_then(|on| on.get(machine)) else {
                    continue;
                };
                let wanted = &unit.record;
                let same = (&current.hash, current.desired, current.launch)
                    == (&wanted.hash, wanted.desired, wanted.launch);
                if !same && !self.plan.held.contains(machine) {
                    self.schedule(name, unit, machine, &Reason::Updated);
                }
            }
        }
    }

    /// Places what is wanted and is nowhere, units before those that follow them.
    fn fill(&mut self) {
        let cluster = self.cluster;
        let wanted = |unit: &Unit| unit.record.desired != DesiredState::Inactive;
        let mut waiting: Vec<_> = cluster.units.iter().filter(|(_, unit)| wanted(unit)).collect();
        waiting
            .retain(|(name, unit)| unit.is_global() || self.placed.get(name).is_none_or(BTreeSet::is_empty));
        // Followers come up once what they follow is placed, so a round that places nothing is the last.
        loop {
            let before = waiting.len();
            waiting.retain(|(name, unit)| !self.try_place(name, unit));
            if waiting.len() == before || waiting.is_empty() {
                break;
            }
        }
        for (name, _) in waiting {
            let refused = self.refusals_of(name);
            self.plan.refused.insert(name.clone(), refused);
        }
    }

    /// True when nothing is left to do for this unit.
    fn try_place(&mut self, name: &'a UnitName, unit: &'a Unit) -> bool {
        let cluster = self.cluster;
        let fits: Vec<_> = cluster
            .machines
            .iter()
            .filter(|(id, machine)| self.able(name, unit, id, machine).is_ok())
            .map(|(id, _)| id)
            .collect();
        if unit.is_global() {
            for machine in fits {
                if !self.placed.get(name).is_some_and(|on| on.contains(machine)) {
                    self.schedule(name, unit, machine, &Reason::Global);
                }
            }
            return true;
        }
        let Some(&machine) = fits.iter().min_by_key(|machine| (self.load(name, machine), **machine)) else {
            return false;
        };
        let follows = unit.requirements.as_ref().ok().and_then(|r| r.machine_of.first());
        let reason = match follows {
            Some(peer) => Reason::Follows(peer.clone()),
            None if fits.len() == 1 && cluster.machines.len() > 1 => Reason::OnlyFit,
            None => Reason::LeastLoaded { units: self.on.get(machine).map_or(0, BTreeSet::len) },
        };
        self.schedule(name, unit, machine, &reason);
        true
    }

    /// Units on the machine, those of the same template counted twice so that they spread out.
    fn load(&self, name: &UnitName, machine: &MachineId) -> usize {
        let template = name.template();
        let Some(units) = self.on.get(machine) else { return 0 };
        let siblings =
            units.iter().filter(|other| template.is_some() && other.template() == template).count();
        units.len() + siblings
    }

    fn schedule(&mut self, name: &'a UnitName, unit: &'a Unit, machine: &'a MachineId, reason: &Reason) {
        self.place(name, machine);
        let record = ScheduleRecord {
            v: RECORD_VERSION,
            hash: unit.record.hash.clone(),
            desired: unit.record.desired,
            launch: unit.record.launch,
            term: self.term,
            why: reason.to_string(),
            unknown: Default::default(),
        };
        let (unit, machine) = (name.clone(), machine.clone());
        self.plan.actions.push(Action::Schedule { unit, machine, record });
    }

    /// fleet's order of rules: machine, metadata, peers, conflicts.
    fn able(
        &self,
        name: &UnitName,
        unit: &Unit,
        id: &MachineId,
        machine: &MachineRecord,
    ) -> Result<(), Refusal> {
        let requirements = match &unit.requirements {
            Ok(requirements) => requirements,
            Err(problem) => return Err(Refusal::Unreadable(problem.clone())),
        };
        if let Some(wanted) = requirements.machine_id.as_ref().filter(|wanted| !id.matches(wanted)) {
            return Err(Refusal::MachineId(wanted.clone()));
        }
        metadata_fits(requirements, &machine.metadata)?;
        for peer in &requirements.machine_of {
            let placed = self.placed.get(peer);
            if !placed.is_some_and(|on| on.contains(id)) {
                let elsewhere = placed.and_then(|on| on.first()).map(|machine| (*machine).clone());
                return Err(Refusal::PeerElsewhere { peer: peer.clone(), machine: elsewhere });
            }
        }
        let neighbours = self.on.get(id).into_iter().flatten();
        for other in neighbours.filter(|other| ***other != *name) {
            let theirs = self.cluster.units.get(*other).and_then(|unit| unit.requirements.as_ref().ok());
            let clash =
                conflicts(requirements, other) || theirs.is_some_and(|theirs| conflicts(theirs, name));
            if clash {
                return Err(Refusal::Conflict((*other).clone()));
            }
        }
        Ok(())
    }

    fn refusals_of(&self, name: &UnitName) -> BTreeMap<MachineId, Refusal> {
        let unit = &self.cluster.units[name];
        let verdict = |(id, machine): (&MachineId, &MachineRecord)| {
            Some((id.clone(), self.able(name, unit, id, machine).err()?))
        };
        self.cluster.machines.iter().filter_map(verdict).collect()
    }
}

fn metadata_fits(requirements: &Requirements, has: &Metadata) -> Result<(), Refusal> {
    for (key, wanted) in &requirements.metadata {
        if !has.get(key).is_some_and(|value| wanted.contains(value)) {
            let (key, wanted, has) = (key.clone(), wanted.clone(), has.get(key).cloned());
            return Err(Refusal::Metadata { key, wanted, has });
        }
    }
    Ok(())
}

fn conflicts(requirements: &Requirements, other: &UnitName) -> bool {
    requirements.conflicts.iter().any(|glob| glob.matches(other.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::keys;
    use proptest::prelude::*;

    fn id(n: u8) -> MachineId {
        format!("{n:032x}").parse().expect("valid")
    }

    fn name(text: &str) -> UnitName {
        text.parse().expect("valid")
    }

    /// A cluster in a test: machines come and go, units are started, plans are carried out.
    #[derive(Default)]
    struct World {
        cluster: Cluster,
        doubts: Doubts,
        revision: i64,
    }

    impl World {
        fn with_machines(machines: u8) -> Self {
            let mut world = Self::default();
            (1..=machines).for_each(|n| world.boot(n, &[]));
            world
        }

        fn boot(&mut self, n: u8, metadata: &[(&str, &str)]) {
            let mut record = MachineRecord::new(format!("m{n}"), [10, 0, 0, n].into(), "0".into());
            record.metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            self.cluster.machines.insert(id(n), record);
        }

        fn kill(&mut self, n: u8) {
            self.cluster.machines.remove(&id(n));
        }

        fn set(&mut self, unit: &str, fleet: &str, desired: &str) {
            self.revision += 1;
            let text = format!("[Service]\nExecStart=/bin/true\n[X-Fleet]\n{fleet}\n");
            let record =
                serde_json::json!({"v": 1, "text": text, "hash": fleet, "desired": desired, "launch": 1});
            let value = record.to_string();
            self.cluster.put(&keys::unit(&name(unit)), value.as_bytes(), Revision(self.revision));
        }

        /// Plans and carries the plan out; gives it back.
        fn settle(&mut self) -> Plan {
            let plan = plan(&self.cluster, Revision(7), &self.doubts);
            for action in &plan.actions {
                match action {
                    Action::Schedule { unit, machine, record } => {
                        let value = serde_json::to_vec(record).expect("renders");
                        self.cluster.put(&keys::schedule(machine, unit), &value, Revision(9));
                    }
                    Action::Unschedule { unit, machine, .. } => {
                        self.cluster.delete(&keys::schedule(machine, unit));
                    }
                }
            }
            plan
        }

        fn at(&self, unit: &str) -> Option<MachineId> {
            self.cluster.machine_of(&name(unit)).cloned()
        }
    }

    #[test]
    fn four_copies_run_on_four_machines_each_with_its_sidekick() {
        let mut world = World::with_machines(4);
        for n in 1..=4 {
            world.set(&format!("app@{n}.service"), "", "launched");
        }
        world.settle();
        for n in 1..=4 {
            world.set(&format!("app-discovery@{n}.service"), "MachineOf=app@%i.service", "launched");
        }
        world.settle();
        let homes: BTreeSet<_> = (1..=4).filter_map(|n| world.at(&format!("app@{n}.service"))).collect();
        assert_eq!(homes.len(), 4);
        for n in 1..=4 {
            assert_eq!(
                world.at(&format!("app@{n}.service")),
                world.at(&format!("app-discovery@{n}.service"))
            );
        }
        assert_eq!(world.settle(), Plan::default(), "a settled cluster is left alone");
    }

    #[test]
    fn a_dead_machines_units_move_together_and_nothing_else_moves() {
        let mut world = World::with_machines(4);
        for n in 1..=4 {
            world.set(&format!("app@{n}.service"), "", "launched");
            world.set(&format!("side@{n}.service"), "MachineOf=app@%i.service", "launched");
        }
        world.settle();
        let before = world.cluster.schedule.clone();
        let victim = world.at("app@3.service").expect("placed");
        let n = world.cluster.machines.keys().position(|id| *id == victim).expect("known") as u8 + 1;
        world.kill(n);
        let plan = world.settle();
        assert_eq!(plan.actions.len(), 4, "two units leave, two arrive: {plan:?}");
        assert_eq!(world.at("app@3.service"), world.at("side@3.service"));
        assert_ne!(world.at("app@3.service"), Some(victim.clone()));
        for (unit, machines) in before {
            if !machines.contains_key(&victim) {
                assert_eq!(world.cluster.schedule.get(&unit), Some(&machines), "{unit} moved");
            }
        }
        world.boot(n, &[]);
        assert_eq!(world.settle(), Plan::default(), "a machine that comes back takes nothing");
    }

    #[test]
    fn most_machines_gone_at_once_is_not_believed() {
        let mut world = World::with_machines(4);
        for n in 1..=4 {
            world.set(&format!("app@{n}.service"), "", "launched");
        }
        world.settle();
        let before = world.cluster.schedule.clone();
        (1..=3).for_each(|n| world.kill(n));
        let plan = world.settle();
        assert_eq!(plan.held.len(), 3);
        assert_eq!(world.cluster.schedule, before);
        world.boot(1, &[]);
        world.doubts.holding = true;
        world.settle();
        assert_eq!(world.cluster.schedule, before, "the others may be on their way back, too");
        world.doubts.holding = false;
        world.settle();
        assert_ne!(world.cluster.schedule, before, "two of four stayed away: their units move");
    }

    #[test]
    fn leases_that_end_one_after_another_are_one_event() {
        let mut world = World::with_machines(4);
        for n in 1..=4 {
            world.set(&format!("app@{n}.service"), "", "launched");
        }
        world.settle();
        let before = world.cluster.schedule.clone();
        world.kill(1);
        world.doubts.overdue = [id(2), id(3)].into();
        assert_eq!(world.settle().held, [id(1)].into());
        assert_eq!(world.cluster.schedule, before);
        // The others renewed after all: one machine is gone, and its units move.
        world.doubts.overdue.clear();
        world.settle();
        assert_ne!(world.cluster.schedule, before);
    }

    #[test]
    fn refusals_name_the_rule() {
        let mut world = World::with_machines(1);
        world.boot(2, &[("region", "eu")]);
        let why = |world: &World, unit: &str, n: u8| {
            plan(&world.cluster, Revision(1), &world.doubts).refused[&name(unit)][&id(n)].to_string()
        };
        world.set("a.service", "MachineMetadata=region=us", "launched");
        assert_eq!(why(&world, "a.service", 1), "MachineMetadata region=us is asked for, it has no region");
        assert_eq!(why(&world, "a.service", 2), "MachineMetadata region=us is asked for, it has region=eu");
        world.set("a.service", "MachineOf=b.service", "launched");
        assert!(why(&world, "a.service", 1).starts_with("MachineOf=b.service is not scheduled anywhere"));
        world.set("a.service", "MachineID=ffffffff", "launched");
        assert!(why(&world, "a.service", 1).starts_with("MachineID=ffffffff"));
        world.set("a.service", "", "inactive");
        world.set("c@1.service", "Conflicts=c@*.service", "launched");
        world.set("c@2.service", "Conflicts=c@*.service", "launched");
        world.settle();
        world.set("c@3.service", "", "launched");
        assert!(why(&world, "c@3.service", 1).starts_with("conflicts with c@"), "conflicts are symmetric");
        assert_eq!(refusals(&world.cluster, &name("c@3.service")).len(), 2);
    }

    #[test]
    fn metadata_of_one_key_is_or_and_of_several_keys_is_and() {
        let mut world = World::default();
        world.boot(1, &[("region", "eu"), ("disk", "hdd")]);
        world.boot(2, &[("region", "us"), ("disk", "ssd")]);
        world.set(
            "a.service",
            "MachineMetadata=region=eu\nMachineMetadata=region=us\nMachineMetadata=disk=ssd",
            "launched",
        );
        world.settle();
        assert_eq!(world.at("a.service"), Some(id(2)));
    }

    #[test]
    fn global_units_run_everywhere_and_on_machines_that_join() {
        let mut world = World::with_machines(2);
        world.set("g.service", "Global=true", "launched");
        world.settle();
        assert_eq!(world.cluster.schedule[&name("g.service")].len(), 2);
        world.boot(3, &[]);
        world.settle();
        assert_eq!(world.cluster.schedule[&name("g.service")].len(), 3);
        world.set("g.service", "Global=true", "inactive");
        world.settle();
        assert!(world.cluster.schedule.is_empty());
    }

    #[test]
    fn a_changed_unit_is_updated_where_it_is() {
        let mut world = World::with_machines(3);
        world.set("a.service", "", "launched");
        world.settle();
        let home = world.at("a.service");
        world.set("a.service", "", "loaded");
        let plan = world.settle();
        assert!(
            matches!(&plan.actions[..], [Action::Schedule { record, .. }] if record.desired == DesiredState::Loaded)
        );
        assert_eq!(world.at("a.service"), home);
    }

    proptest! {
        /// Whatever happens, a plan carried out leaves nothing to plan, and no unit in two places.
        #[test]
        fn a_plan_settles_the_cluster(steps in prop::collection::vec((0_u8..6, 1_u8..6), 1..40)) {
            let mut world = World::with_machines(3);
            for (step, n) in steps {
                match step {
                    0 => world.boot(n, &[]),
                    1 => world.kill(n),
                    2 => world.set(&format!("app@{n}.service"), "Conflicts=db@*.service", "launched"),
                    3 => world.set(&format!("side@{n}.service"), "MachineOf=app@%i.service", "launched"),
                    4 => world.set(&format!("db@{n}.service"), "", "launched"),
                    _ => world.set(&format!("app@{n}.service"), "", "inactive"),
                }
                world.settle();
                let again = plan(&world.cluster, Revision(7), &world.doubts);
                prop_assert!(again.actions.is_empty(), "{again:?}");
                for (unit, machines) in &world.cluster.schedule {
                    prop_assert!(machines.len() == 1, "{unit} is on {machines:?}");
                }
            }
        }
    }
}
