//! Whether a machine may run a unit, and if not, by which rule.
//!
//! Not here: which of several machines that may. Invariant: a check costs the unit's own rules and the patterns that
//! concern it, whatever else runs; only naming the culprit looks at the machine's units.

use super::{
    Engine,
    patterns::P,
    reason::Refusal,
    state::{M, U},
};
use model::{MachineId, Timestamp};
use std::collections::BTreeSet;

/// What is asked of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// May the unit stay there? Room is not asked for: limits are promises, and nothing is stopped over them.
    Stay,
    /// May it come?
    Come,
}

/// A rule that says no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bar {
    Unreadable,
    MachineId,
    Metadata,
    Circle,
    Peer(U),
    Conflict,
    ReplacedBy(U),
    CannotDisplace(U),
    Leaving,
    Maintenance,
    Memory,
    Cpu,
    Fenced(M),
}

impl Engine {
    /// Fleet's order of rules: machine, metadata, peers, conflicts, replaced units; then ours. `with` come along.
    pub(super) fn check(&self, u: U, m: M, mode: Mode, with: &[U]) -> Result<(), Bar> {
        self.examined.set(self.examined.get() + 1);
        let entry = &self.state[u];
        let host = &self.state[m];
        let rules = entry.rules();
        if rules.unreadable.is_some() {
            return Err(Bar::Unreadable);
        }
        if host.leaving {
            return Err(Bar::Leaving);
        }
        if rules.machine_id.as_ref().is_some_and(|wanted| !host.id.matches(wanted)) {
            return Err(Bar::MachineId);
        }
        let fits = |(key, wanted): (&String, &BTreeSet<String>)| {
            host.metadata.get(key).is_some_and(|value| wanted.contains(value))
        };
        if !rules.metadata.iter().all(fits) {
            return Err(Bar::Metadata);
        }
        if !rules.peers.is_empty() && self.circle(u).is_some() {
            return Err(Bar::Circle);
        }
        for peer in &rules.peers {
            if !self.state[*peer].on(m) && !with.contains(peer) {
                return Err(Bar::Peer(*peer));
            }
        }
        // What the unit itself contributes to the counts where it is already.
        let here = entry.on(m);
        let own = |p: &P, declared: &[P]| u32::from(here && declared.contains(p));
        for p in &rules.conflicts {
            if self.state.patterns.get(*p).on(m).is_some_and(|on| on.members > own(p, &entry.matched)) {
                return Err(Bar::Conflict);
            }
        }
        for p in &entry.matched {
            let Some(on) = self.state.patterns.get(*p).on(m) else { continue };
            if on.conflicts > own(p, &rules.conflicts) {
                return Err(Bar::Conflict);
            }
            if on.replaces > own(p, &rules.replaces)
                && let Some(by) = self.replaced_by(u, m, *p)
            {
                return Err(Bar::ReplacedBy(by));
            }
        }
        if mode == Mode::Stay {
            return Ok(());
        }
        if host.maintenance.is_some() {
            return Err(Bar::Maintenance);
        }
        if let Some(fence) = self.fence(u, m) {
            return Err(Bar::Fenced(fence));
        }
        self.room(m, std::iter::once(u).chain(with.iter().copied().filter(|other| *other != u)))
    }

    /// Whether the machine has room for all of `units`.
    fn room(&self, m: M, units: impl Iterator<Item = U>) -> Result<(), Bar> {
        let host = &self.state[m];
        let Some(capacity) = host.capacity else { return Ok(()) };
        let (mut memory, mut cpu) = (0_u64, 0_u64);
        for u in units.filter(|u| !self.state[*u].on(m)) {
            let resources = self.state[u].rules().resources;
            memory = memory.saturating_add(resources.memory_of(capacity.memory));
            cpu += u64::from(resources.cpu.unwrap_or(0));
        }
        // Units without limits come even where others have promised everything away.
        if memory > 0 && host.memory.saturating_add(memory) > capacity.memory {
            return Err(Bar::Memory);
        }
        if cpu > 0 && host.cpu + cpu > u64::from(capacity.cpus) * 1000 {
            return Err(Bar::Cpu);
        }
        Ok(())
    }

    /// The unit on `m` that replaces `u` by pattern `p`; units that replace each other do not count.
    fn replaced_by(&self, u: U, m: M, p: P) -> Option<U> {
        let pattern = self.state.patterns.get(p);
        let mutual = |by: &U| {
            let theirs = &self.state[*by].matched;
            self.state[u].rules().replaces.iter().any(|own| theirs.contains(own))
        };
        let here = &self.state[m].units;
        let mut both = pattern.replaces.iter().filter(|by| **by != u && here.contains(by) && !mutual(by));
        both.next().copied()
    }

    /// Units on `m` that `u` would replace.
    pub(super) fn victims(&self, u: U, m: M) -> BTreeSet<U> {
        let mut victims = BTreeSet::new();
        for p in &self.state[u].rules().replaces {
            let pattern = self.state.patterns.get(*p);
            if pattern.on(m).is_none_or(|on| on.members == 0) {
                continue;
            }
            for other in &self.state[m].units {
                let mutual = self.state[*other]
                    .rules()
                    .replaces
                    .iter()
                    .any(|theirs| self.state[u].matched.contains(theirs));
                if *other != u && pattern.members.contains(other) && !mutual {
                    victims.insert(*other);
                }
            }
        }
        victims
    }

    /// A machine other than `m` on which a unit with `OnPartition=stop` may still run.
    fn fence(&self, u: U, m: M) -> Option<M> {
        if !self.state[u].rules().stop {
            return None;
        }
        if let Some((machine, _)) = self.fenced.get(&u).filter(|(machine, _)| *machine != m) {
            return Some(*machine);
        }
        let runs = self.state.alive.range((u, M(0))..=(u, M(u32::MAX))).map(|(_, machine)| *machine);
        // Where it is scheduled it shall run; whoever moves it away asks again then.
        let stray = |machine: &M| self.state[*machine].present && !self.state[u].on(*machine);
        runs.filter(|machine| *machine != m).find(stray)
    }

    /// The circle of `MachineOf=` that the unit is part of: itself, what it follows, and so on back to itself.
    pub(super) fn circle(&self, u: U) -> Option<Vec<U>> {
        let mut path = vec![u];
        let mut seen = BTreeSet::from([u]);
        let mut branches = vec![self.state[u].rules().peers.iter()];
        while let Some(branch) = branches.last_mut() {
            match branch.next() {
                Some(peer) if *peer == u => {
                    path.push(u);
                    return Some(path);
                }
                Some(peer) => {
                    if seen.insert(*peer) {
                        path.push(*peer);
                        branches.push(self.state[*peer].rules().peers.iter());
                    }
                }
                None => {
                    branches.pop();
                    path.pop();
                }
            }
        }
        None
    }

    /// The rule in full.
    pub(super) fn refusal(&self, u: U, m: M, bar: Bar) -> Refusal {
        let entry = &self.state[u];
        let host = &self.state[m];
        let rules = entry.rules();
        let name = |u: U| self.state[u].name.clone();
        match bar {
            Bar::Unreadable => Refusal::Unreadable(rules.unreadable.clone().unwrap_or_default()),
            Bar::MachineId => Refusal::MachineId(rules.machine_id.clone().unwrap_or_default()),
            Bar::Metadata => {
                let missing = rules.metadata.iter().find(|(key, wanted)| {
                    !host.metadata.get(*key).is_some_and(|value| wanted.contains(value))
                });
                let (key, wanted) = missing.map(|(k, w)| (k.clone(), w.clone())).unwrap_or_default();
                let has = host.metadata.get(&key).cloned();
                Refusal::Metadata { key, wanted, has }
            }
            Bar::Circle => Refusal::Circle(self.circle(u).into_iter().flatten().map(name).collect()),
            Bar::Peer(peer) => Refusal::PeerElsewhere { peer: name(peer), machine: self.at(peer) },
            Bar::Conflict => Refusal::Conflict(self.culprit(u, m).map_or_else(|| name(u), name)),
            Bar::ReplacedBy(by) => Refusal::ReplacedBy(name(by)),
            Bar::CannotDisplace(victim) => Refusal::CannotDisplace(name(victim)),
            Bar::Leaving => Refusal::Leaving,
            Bar::Maintenance => match host.maintenance {
                Some(state) => Refusal::Maintenance(state),
                None => Refusal::Maintenance(model::Maintenance::Cordoned),
            },
            Bar::Memory => {
                let total = host.capacity.map_or(0, |capacity| capacity.memory);
                Refusal::Memory {
                    needs: rules.resources.memory_of(total),
                    free: total.saturating_sub(host.memory),
                }
            }
            Bar::Cpu => {
                let total = host.capacity.map_or(0, |capacity| u64::from(capacity.cpus) * 1000);
                let needs = u64::from(rules.resources.cpu.unwrap_or(0));
                Refusal::Cpu { needs, free: total.saturating_sub(host.cpu) }
            }
            Bar::Fenced(machine) => Refusal::Fenced(self.state[machine].id.clone()),
        }
    }

    fn at(&self, u: U) -> Option<MachineId> {
        self.state[u].places.first().map(|(m, _)| self.state[*m].id.clone())
    }

    /// Which unit on the machine conflicts with this one.
    fn culprit(&self, u: U, m: M) -> Option<U> {
        let entry = &self.state[u];
        let clash = |other: &&U| {
            let theirs = &self.state[**other];
            **other != u
                && (entry.rules().conflicts.iter().any(|p| theirs.matched.contains(p))
                    || theirs.rules().conflicts.iter().any(|p| entry.matched.contains(p)))
        };
        self.state[m].units.iter().find(clash).copied()
    }

    /// True when members of a group exclude each other, so that no machine can have all of them.
    pub(super) fn quarrels(&self, group: &[U]) -> bool {
        let at_odds = |u: &U| {
            let rules = self.state[*u].rules();
            let mut patterns = rules.conflicts.iter().chain(&rules.replaces);
            patterns.any(|p| group.iter().any(|other| other != u && self.state[*other].matched.contains(p)))
        };
        group.len() > 1 && group.iter().any(at_odds)
    }

    /// From when on a fence no longer stands.
    pub(super) fn fence_ends(&self) -> Option<Timestamp> {
        self.fenced.values().map(|(_, until)| *until).min()
    }
}
