//! What the engine knows, indexed: machines by load and metadata, units by name, who follows whom, what matches
//! which pattern, how many instances of a template each machine has.
//!
//! Not here: any decision. Invariant: [`State::place`] and [`State::unplace`] are the only ways in which a unit comes
//! to or leaves a machine, and they keep every index; their cost depends on the unit and the machine, not on the
//! size of the cluster.

use super::patterns::{P, Patterns, Use};
use model::{Capacity, DesiredState, MachineId, Maintenance, Metadata, Revision, Timestamp, UnitName};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Bound, Index, IndexMut},
    sync::Arc,
};
use unit::{OnPartition, Requirements, Resources};

/// A machine's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct M(pub(super) u32);
/// A unit's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct U(pub(super) u32);
/// A template's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct T(u32);

/// Numbered things whose numbers are used again.
#[derive(Debug, Clone)]
pub(super) struct Slab<X> {
    slots: Vec<Option<X>>,
    free: Vec<u32>,
}

impl<X> Default for Slab<X> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

impl<X> Slab<X> {
    fn add(&mut self, value: X) -> u32 {
        match self.free.pop() {
            Some(number) => {
                self.slots[number as usize] = Some(value);
                number
            }
            None => {
                self.slots.push(Some(value));
                u32::try_from(self.slots.len() - 1).expect("fewer than four billion")
            }
        }
    }

    fn drop(&mut self, number: u32) -> Option<X> {
        self.free.push(number);
        self.slots[number as usize].take()
    }

    fn get(&self, number: u32) -> &X {
        self.slots[number as usize].as_ref().expect("numbers are dropped when nothing refers to them")
    }

    fn get_mut(&mut self, number: u32) -> &mut X {
        self.slots[number as usize].as_mut().expect("numbers are dropped when nothing refers to them")
    }

    fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        (0_u32..).zip(&self.slots).filter(|(_, slot)| slot.is_some()).map(|(number, _)| number)
    }
}

/// In which order machines are tried: units, the larger share of memory or processors taken, id.
pub(super) type Rank = (u32, u32, u128, M);

/// A machine.
#[derive(Debug, Clone)]
pub(super) struct Host {
    pub(super) id: MachineId,
    /// The id as a number: it sorts as the text does.
    order: u128,
    pub(super) present: bool,
    /// It shuts down, or did so when it was last seen: what it says of its units is its last word.
    pub(super) leaving: bool,
    pub(super) own: Metadata,
    pub(super) outside: BTreeMap<String, Option<String>>,
    /// The machine's own with what was set from outside.
    pub(super) metadata: Metadata,
    pub(super) capacity: Option<Capacity>,
    pub(super) maintenance: Option<Maintenance>,
    pub(super) units: BTreeSet<U>,
    /// Limits of its units, added up: bytes, and thousandths of a processor.
    pub(super) memory: u64,
    pub(super) cpu: u64,
    /// Since when it is gone although units are scheduled to it.
    pub(super) lost: Option<Timestamp>,
    /// How many units systemd says to run there.
    pub(super) alive: u32,
    /// Where it stands in the order; `None` while nothing new may come.
    rank: Option<Rank>,
}

/// What a machine is, apart from what runs there.
type Facts = (bool, bool, Metadata, Option<Capacity>, Option<Maintenance>);

impl Host {
    pub(super) fn facts(&self) -> Facts {
        (self.present, self.leaving, self.metadata.clone(), self.capacity, self.maintenance)
    }

    /// True when new units may come.
    pub(super) fn open(&self) -> bool {
        self.present && !self.leaving && self.maintenance.is_none()
    }

    pub(super) fn draining(&self) -> bool {
        self.present && self.maintenance == Some(Maintenance::Draining)
    }

    fn share(&self) -> u32 {
        let Some(capacity) = self.capacity else { return 0 };
        let memory = self.memory.saturating_mul(1000) / capacity.memory.max(1);
        let cpu = self.cpu / u64::from(capacity.cpus.max(1));
        u32::try_from(memory.max(cpu)).unwrap_or(u32::MAX)
    }
}

/// What is wanted of a unit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Order {
    pub(super) hash: Arc<str>,
    pub(super) desired: DesiredState,
    pub(super) launch: u64,
}

/// What a unit's file asks for, in numbers. Most units ask for nothing.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Rules {
    pub(super) unreadable: Option<String>,
    pub(super) machine_id: Option<String>,
    pub(super) peers: Vec<U>,
    pub(super) metadata: BTreeMap<String, BTreeSet<String>>,
    pub(super) conflicts: Vec<P>,
    pub(super) replaces: Vec<P>,
    pub(super) global: bool,
    pub(super) stop: bool,
    pub(super) resources: Resources,
}

/// A unit.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) name: UnitName,
    /// `None` while the cluster does not know it: it was destroyed, or others name it.
    pub(super) order: Option<Order>,
    pub(super) revision: Revision,
    pub(super) rules: Option<Box<Rules>>,
    /// Where it is scheduled, by machine, with what stands in the schedule.
    pub(super) places: Vec<(M, Order)>,
    /// Patterns that its name fits.
    pub(super) matched: Vec<P>,
    template: Option<T>,
}

static NO_RULES: Rules = Rules {
    unreadable: None,
    machine_id: None,
    peers: Vec::new(),
    metadata: BTreeMap::new(),
    conflicts: Vec::new(),
    replaces: Vec::new(),
    global: false,
    stop: false,
    resources: Resources { memory: None, cpu: None },
};

impl Entry {
    pub(super) fn rules(&self) -> &Rules {
        self.rules.as_deref().unwrap_or(&NO_RULES)
    }

    pub(super) fn wanted(&self) -> bool {
        self.order.as_ref().is_some_and(|order| order.desired != DesiredState::Inactive)
    }

    pub(super) fn on(&self, m: M) -> bool {
        self.places.binary_search_by_key(&m, |(machine, _)| *machine).is_ok()
    }
}

/// The instances of a template.
#[derive(Debug, Clone, Default)]
struct Template {
    units: u32,
    hosts: BTreeMap<M, u32>,
    /// How many machines have so many of them.
    sizes: BTreeMap<u32, u32>,
}

impl Template {
    fn resize(&mut self, m: M, add: bool) {
        let before = self.hosts.get(&m).copied().unwrap_or(0);
        let after = if add { before + 1 } else { before.saturating_sub(1) };
        if before > 0 {
            let left = self.sizes.entry(before).or_default();
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.sizes.remove(&before);
            }
        }
        if after > 0 {
            *self.sizes.entry(after).or_default() += 1;
            self.hosts.insert(m, after);
        } else {
            self.hosts.remove(&m);
        }
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct State {
    machines: Slab<Host>,
    pub(super) by_id: BTreeMap<MachineId, M>,
    units: Slab<Entry>,
    pub(super) by_name: BTreeMap<UnitName, U>,
    templates: Slab<Template>,
    by_template: BTreeMap<UnitName, T>,
    pub(super) patterns: Patterns,
    /// Who names a unit in `MachineOf=`.
    pub(super) followers: BTreeMap<U, BTreeSet<U>>,
    pub(super) globals: BTreeSet<U>,
    /// Machines that may take units, the least loaded first; then the same by metadata.
    pub(super) open: BTreeSet<Rank>,
    pub(super) pools: BTreeMap<String, BTreeMap<String, BTreeSet<Rank>>>,
    /// Machines that are gone and have units.
    pub(super) lost: BTreeSet<M>,
    pub(super) present: usize,
    /// Where systemd says that something of a unit runs.
    pub(super) alive: BTreeSet<(U, M)>,
    /// Texts of hashes, each once.
    hashes: BTreeSet<Arc<str>>,
}

impl Index<M> for State {
    type Output = Host;
    fn index(&self, m: M) -> &Host {
        self.machines.get(m.0)
    }
}

impl IndexMut<M> for State {
    fn index_mut(&mut self, m: M) -> &mut Host {
        self.machines.get_mut(m.0)
    }
}

impl Index<U> for State {
    type Output = Entry;
    fn index(&self, u: U) -> &Entry {
        self.units.get(u.0)
    }
}

impl IndexMut<U> for State {
    fn index_mut(&mut self, u: U) -> &mut Entry {
        self.units.get_mut(u.0)
    }
}

impl State {
    pub(super) fn hosts(&self) -> impl Iterator<Item = M> + '_ {
        self.machines.numbers().map(M)
    }

    /// The machine's number, a new one if need be.
    pub(super) fn host(&mut self, id: &MachineId) -> M {
        if let Some(known) = self.by_id.get(id) {
            return *known;
        }
        let host = Host {
            id: id.clone(),
            order: u128::from_str_radix(id.as_str(), 16).unwrap_or(u128::MAX),
            present: false,
            leaving: false,
            own: Metadata::new(),
            outside: BTreeMap::new(),
            metadata: Metadata::new(),
            capacity: None,
            maintenance: None,
            units: BTreeSet::new(),
            memory: 0,
            cpu: 0,
            lost: None,
            alive: 0,
            rank: None,
        };
        let m = M(self.machines.add(host));
        self.by_id.insert(id.clone(), m);
        m
    }

    /// Changes a machine and puts it where it belongs in the order.
    pub(super) fn change(&mut self, m: M, now: Timestamp, change: impl FnOnce(&mut Host)) {
        self.leave_order(m);
        let host = self.machines.get_mut(m.0);
        let before = host.present;
        change(host);
        host.metadata = host.own.clone();
        for (key, value) in &host.outside {
            match value {
                Some(value) => host.metadata.insert(key.clone(), value.clone()),
                None => host.metadata.remove(key),
            };
        }
        match (before, host.present) {
            (false, true) => self.present += 1,
            (true, false) => self.present -= 1,
            _ => {}
        }
        self.recount(m);
        self.note_loss(m, now);
        self.enter_order(m);
    }

    /// Adds up anew what its units may use: percentages depend on the machine.
    fn recount(&mut self, m: M) {
        let total = self[m].capacity.map_or(0, |capacity| capacity.memory);
        let (mut memory, mut cpu) = (0_u64, 0_u64);
        for u in &self[m].units {
            let resources = self[*u].rules().resources;
            memory = memory.saturating_add(resources.memory_of(total));
            cpu += u64::from(resources.cpu.unwrap_or(0));
        }
        let host = &mut self[m];
        (host.memory, host.cpu) = (memory, cpu);
    }

    fn note_loss(&mut self, m: M, now: Timestamp) {
        let host = self.machines.get_mut(m.0);
        if host.present || host.units.is_empty() {
            host.lost = None;
            self.lost.remove(&m);
        } else {
            host.lost.get_or_insert(now);
            self.lost.insert(m);
        }
    }

    fn leave_order(&mut self, m: M) {
        let Some(rank) = self.machines.get_mut(m.0).rank.take() else { return };
        self.open.remove(&rank);
        for (key, value) in &self.machines.get(m.0).metadata {
            let Some(values) = self.pools.get_mut(key) else { continue };
            if let Some(pool) = values.get_mut(value) {
                pool.remove(&rank);
                if pool.is_empty() {
                    values.remove(value);
                }
            }
            if values.is_empty() {
                self.pools.remove(key);
            }
        }
    }

    fn enter_order(&mut self, m: M) {
        let host = self.machines.get_mut(m.0);
        if !host.open() {
            return;
        }
        let units = u32::try_from(host.units.len()).unwrap_or(u32::MAX);
        let rank = (units, host.share(), host.order, m);
        host.rank = Some(rank);
        self.open.insert(rank);
        for (key, value) in &self.machines.get(m.0).metadata {
            if let Some(pool) = self.pools.get_mut(key).and_then(|values| values.get_mut(value)) {
                pool.insert(rank);
                continue;
            }
            self.pools.entry(key.clone()).or_default().entry(value.clone()).or_default().insert(rank);
        }
    }

    /// The machine's place in the order, as if it were open.
    pub(super) fn rank(&self, m: M) -> Rank {
        let host = &self[m];
        let units = u32::try_from(host.units.len()).unwrap_or(u32::MAX);
        host.rank.unwrap_or_else(|| (units, host.share(), host.order, m))
    }

    /// Forgets a machine of which nothing is known any longer; true if it did.
    pub(super) fn forget_host(&mut self, m: M) -> bool {
        let host = &self[m];
        let idle = host.units.is_empty() && host.alive == 0;
        let nothing = !host.present && idle && host.maintenance.is_none() && host.outside.is_empty();
        if nothing {
            self.by_id.remove(&host.id.clone());
            self.machines.drop(m.0);
        }
        nothing
    }

    /// Takes in whether anything of the unit runs there; true if that is new.
    pub(super) fn set_alive(&mut self, u: U, m: M, alive: bool) -> bool {
        let changed = if alive { self.alive.insert((u, m)) } else { self.alive.remove(&(u, m)) };
        if changed {
            let host = &mut self[m];
            host.alive = if alive { host.alive + 1 } else { host.alive.saturating_sub(1) };
        }
        changed
    }

    /// True when new units may come; false also for a machine that was forgotten meanwhile.
    pub(super) fn is_open(&self, m: M) -> bool {
        self.machines.slots.get(m.0 as usize).and_then(Option::as_ref).is_some_and(Host::open)
    }

    pub(super) fn knows(&self, u: U) -> bool {
        self.units.slots.get(u.0 as usize).is_some_and(Option::is_some)
    }

    /// The unit's number, a new one if need be.
    pub(super) fn unit(&mut self, name: &UnitName) -> U {
        if let Some(known) = self.by_name.get(name) {
            return *known;
        }
        let template = name.template().map(|template| {
            let t = match self.by_template.get(&template) {
                Some(known) => *known,
                None => {
                    let t = T(self.templates.add(Template::default()));
                    self.by_template.insert(template, t);
                    t
                }
            };
            self.templates.get_mut(t.0).units += 1;
            t
        });
        let matched = self.patterns.matching(name.as_str());
        let entry = Entry {
            name: name.clone(),
            order: None,
            revision: Revision(0),
            rules: None,
            places: Vec::new(),
            matched,
            template,
        };
        let u = U(self.units.add(entry));
        self.by_name.insert(name.clone(), u);
        for p in self.units.get(u.0).matched.clone() {
            self.patterns.get_mut(p).members.insert(u);
        }
        u
    }

    /// Forgets a unit that nobody knows, runs or names.
    pub(super) fn forget_unit(&mut self, u: U) {
        let entry = &self[u];
        let runs = self.alive.range((u, M(0))..=(u, M(u32::MAX))).next().is_some();
        if entry.order.is_some() || !entry.places.is_empty() || self.followers.contains_key(&u) || runs {
            return;
        }
        self.set_rules(u, None);
        let entry = self.units.drop(u.0).expect("just seen");
        self.by_name.remove(&entry.name);
        for p in entry.matched {
            self.patterns.get_mut(p).members.remove(&u);
        }
        if let (Some(t), Some(template)) = (entry.template, entry.name.template()) {
            let left = self.templates.get_mut(t.0);
            left.units -= 1;
            if left.units == 0 {
                self.by_template.remove(&template);
                self.templates.drop(t.0);
            }
        }
    }

    pub(super) fn hash(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.hashes.get(text) {
            return known.clone();
        }
        // Files come and go; what nobody uses is let go now and then.
        if self.hashes.len() > 2 * self.by_name.len() + 1024 {
            self.hashes.retain(|hash| Arc::strong_count(hash) > 1);
        }
        let hash: Arc<str> = text.into();
        self.hashes.insert(hash.clone());
        hash
    }

    /// Sets what a unit's file asks for.
    pub(super) fn set_requirements(&mut self, u: U, requirements: &Result<Requirements, String>) {
        let rules = match requirements {
            Err(problem) => Rules { unreadable: Some(problem.clone()), ..Rules::default() },
            Ok(asked) => Rules {
                unreadable: None,
                machine_id: asked.machine_id.clone(),
                peers: asked.machine_of.iter().map(|peer| self.unit(peer)).collect(),
                metadata: asked.metadata.clone(),
                conflicts: asked.conflicts.iter().map(|glob| self.pattern(glob)).collect(),
                replaces: asked.replaces.iter().map(|glob| self.pattern(glob)).collect(),
                global: asked.global,
                stop: asked.on_partition == OnPartition::Stop,
                resources: asked.resources,
            },
        };
        let rules = (rules != Rules::default()).then(|| Box::new(rules));
        self.set_rules(u, rules);
    }

    fn pattern(&mut self, glob: &unit::Glob) -> P {
        let (p, new) = self.patterns.intern(glob);
        if new {
            let prefix = glob.prefix();
            // Names sort by their bytes, so those with the prefix stand together.
            let fits: Vec<U> = self
                .by_name
                .range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded))
                .take_while(|(name, _)| name.as_str().starts_with(&prefix))
                .filter(|(name, _)| self.patterns.glob(p).matches(name.as_str()))
                .map(|(_, u)| *u)
                .collect();
            for u in fits {
                let entry = self.units.get_mut(u.0);
                let at = entry.matched.partition_point(|other| *other < p);
                entry.matched.insert(at, p);
                let pattern = self.patterns.get_mut(p);
                pattern.members.insert(u);
                for (m, _) in &entry.places {
                    pattern.count_member(*m, true);
                }
            }
        }
        p
    }

    fn set_rules(&mut self, u: U, rules: Option<Box<Rules>>) {
        let old = std::mem::replace(&mut self.units.get_mut(u.0).rules, rules);
        if old == self.units.get(u.0).rules {
            return;
        }
        let places: Vec<M> = self.units.get(u.0).places.iter().map(|(m, _)| *m).collect();
        let new = self.units.get(u.0).rules.clone();
        for (rules, add) in [(&new, true), (&old, false)] {
            let Some(rules) = rules else { continue };
            for (list, how) in [(&rules.conflicts, Use::Conflicts), (&rules.replaces, Use::Replaces)] {
                let distinct: BTreeSet<P> = list.iter().copied().collect();
                for p in distinct {
                    self.declare(u, p, how, add, &places);
                }
            }
            for peer in &rules.peers {
                if add {
                    self.followers.entry(*peer).or_default().insert(u);
                } else if !new.as_ref().is_some_and(|new| new.peers.contains(peer))
                    && let Some(list) = self.followers.get_mut(peer)
                {
                    list.remove(&u);
                    if list.is_empty() {
                        self.followers.remove(peer);
                        self.forget_unit(*peer);
                    }
                }
            }
        }
        if new.as_ref().is_some_and(|rules| rules.global) {
            self.globals.insert(u);
        } else {
            self.globals.remove(&u);
        }
        let limits =
            |rules: &Option<Box<Rules>>| rules.as_ref().map(|rules| rules.resources).unwrap_or_default();
        if limits(&old) != limits(&new) {
            for m in places {
                self.leave_order(m);
                self.recount(m);
                self.enter_order(m);
            }
        }
    }

    fn declare(&mut self, u: U, p: P, how: Use, add: bool, places: &[M]) {
        let kept = |rules: Option<&Rules>| {
            rules.is_some_and(|rules| match how {
                Use::Conflicts => rules.conflicts.contains(&p),
                Use::Replaces => rules.replaces.contains(&p),
            })
        };
        if !add && kept(self.units.get(u.0).rules.as_deref()) {
            return;
        }
        let pattern = self.patterns.get_mut(p);
        let list = match how {
            Use::Conflicts => &mut pattern.conflicts,
            Use::Replaces => &mut pattern.replaces,
        };
        let changed = if add { list.insert(u) } else { list.remove(&u) };
        if changed {
            for m in places {
                pattern.count_declarer(*m, how, add);
            }
        }
        if !add {
            for member in self.patterns.drop_unused(p) {
                self.units.get_mut(member.0).matched.retain(|other| *other != p);
            }
        }
    }

    /// Puts a unit on a machine, or changes what stands in the schedule there.
    pub(super) fn place(&mut self, u: U, m: M, order: Order, now: Timestamp) {
        let entry = self.units.get_mut(u.0);
        match entry.places.binary_search_by_key(&m, |(machine, _)| *machine) {
            Ok(at) => entry.places[at].1 = order,
            Err(at) => {
                entry.places.insert(at, (m, order));
                self.arrive(u, m, true, now);
            }
        }
    }

    /// Takes a unit off a machine.
    pub(super) fn unplace(&mut self, u: U, m: M, now: Timestamp) {
        let entry = self.units.get_mut(u.0);
        if let Ok(at) = entry.places.binary_search_by_key(&m, |(machine, _)| *machine) {
            entry.places.remove(at);
            self.arrive(u, m, false, now);
        }
    }

    fn arrive(&mut self, u: U, m: M, add: bool, now: Timestamp) {
        self.leave_order(m);
        let entry = self.units.get(u.0);
        let rules = entry.rules();
        for p in &entry.matched {
            self.patterns.get_mut(*p).count_member(m, add);
        }
        for (list, how) in [(&rules.conflicts, Use::Conflicts), (&rules.replaces, Use::Replaces)] {
            for (at, p) in list.iter().enumerate() {
                if !list[..at].contains(p) {
                    self.patterns.get_mut(*p).count_declarer(m, how, add);
                }
            }
        }
        if let Some(t) = entry.template {
            self.templates.get_mut(t.0).resize(m, add);
        }
        let resources = rules.resources;
        let host = self.machines.get_mut(m.0);
        let memory = resources.memory_of(host.capacity.map_or(0, |capacity| capacity.memory));
        let cpu = u64::from(resources.cpu.unwrap_or(0));
        if add {
            host.units.insert(u);
            (host.memory, host.cpu) = (host.memory.saturating_add(memory), host.cpu + cpu);
        } else {
            host.units.remove(&u);
            (host.memory, host.cpu) = (host.memory.saturating_sub(memory), host.cpu.saturating_sub(cpu));
        }
        self.note_loss(m, now);
        self.enter_order(m);
    }

    /// How many instances of the unit's template the machine has.
    pub(super) fn siblings(&self, u: U, m: M) -> u32 {
        let template = self[u].template.map(|t| self.templates.get(t.0));
        template.and_then(|template| template.hosts.get(&m)).copied().unwrap_or(0)
    }

    /// The least number of instances of the unit's template that any machine has.
    pub(super) fn fewest_siblings(&self, u: U) -> u32 {
        let Some(template) = self[u].template.map(|t| self.templates.get(t.0)) else { return 0 };
        if template.hosts.len() < self.present {
            return 0;
        }
        template.sizes.keys().next().copied().unwrap_or(0)
    }
}
