//! On which machine: groups of units that follow each other, machines in the order of their load, and the moves.
//!
//! Not here: when that is asked. Invariants: a group goes to one machine in one decision; a scan ends as soon as no
//! later machine can be better, so that a placement costs the machines that refuse, and one.

use super::{
    Effect, Engine, FENCE, Notice, Placement,
    fit::{Bar, Mode},
    reason::{Reason, Removal},
    state::{M, Order, Rank, U},
};
use model::{DesiredState, RECORD_VERSION, ScheduleRecord, Timestamp};
use std::{collections::BTreeSet, ops::Bound};

/// Where to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scope {
    /// Everywhere.
    All,
    /// Only where something has changed: all others have refused before.
    On(BTreeSet<M>),
}

impl Scope {
    fn has(&self, m: M) -> bool {
        match self {
            Self::All => true,
            Self::On(machines) => machines.contains(&m),
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        match (self, other) {
            (Self::All, _) => {}
            (both, Self::All) => *both = Self::All,
            (Self::On(machines), Self::On(more)) => machines.extend(more),
        }
    }
}

/// How good a machine is; the least wins.
type Score = (u32, u32, u128);

/// A machine that was found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) machine: M,
    /// True when every other machine was asked, too, and refused.
    only: bool,
}

impl Engine {
    /// The units that must be where `u` is, itself included, of those that `pick` takes; by name.
    pub(super) fn component(&self, u: U, pick: impl Fn(U) -> bool) -> Vec<U> {
        let mut found = BTreeSet::from([u]);
        let mut open = vec![u];
        while let Some(next) = open.pop() {
            let followers = self.state.followers.get(&next).into_iter().flatten();
            for other in self.state[next].rules().peers.iter().chain(followers) {
                if !found.contains(other) && !self.state[*other].rules().global && pick(*other) {
                    found.insert(*other);
                    open.push(*other);
                }
            }
        }
        let mut group: Vec<U> = found.into_iter().collect();
        group.sort_by(|a, b| self.state[*a].name.cmp(&self.state[*b].name));
        group
    }

    /// The units on `m` that must move with `u`.
    pub(super) fn companions(&self, u: U, m: M) -> Vec<U> {
        self.component(u, |other| self.state[other].on(m))
    }

    /// Whether all of `group` may come to `m` together. `displace`: also if others must leave for it.
    pub(super) fn come(&self, group: &[U], m: M, displace: bool) -> Result<(), (U, Bar)> {
        for u in group {
            self.check(*u, m, Mode::Come, group).map_err(|bar| (*u, bar))?;
        }
        for u in group.iter().filter(|u| !self.state[**u].rules().replaces.is_empty()) {
            for victim in self.victims(*u, m) {
                let moves = displace
                    && !group.contains(&victim)
                    && !self.state[victim].rules().global
                    && self.find(&self.companions(victim, m), &Scope::All, Some(m), false).is_some();
                if !moves {
                    return Err((*u, Bar::CannotDisplace(victim)));
                }
            }
        }
        Ok(())
    }

    /// The best machine for all of `group`, but for `not`.
    pub(super) fn find(&self, group: &[U], scope: &Scope, not: Option<M>, displace: bool) -> Option<Found> {
        let leads = |u: &&U| !self.state[**u].rules().peers.iter().any(|peer| group.contains(peer));
        let leader = *group.iter().find(leads).or_else(|| group.first())?;
        if self.quarrels(group) {
            return None;
        }
        if let Some(candidates) = self.bound_to(group) {
            let candidates = candidates.into_iter().filter(|m| scope.has(*m));
            return self.best_of(candidates, group, leader, not, displace);
        }
        if let Scope::On(machines) = scope {
            return self.best_of(machines.iter().copied(), group, leader, not, displace);
        }
        if displace {
            // A unit that replaces others goes where they are.
            let patterns = group.iter().flat_map(|u| &self.state[*u].rules().replaces);
            let hosts = patterns.flat_map(|p| {
                let hosts = self.state.patterns.get(*p).hosts.iter();
                hosts.filter(|(_, on)| on.members > 0).map(|(m, _)| *m)
            });
            let hosts: BTreeSet<M> =
                hosts.filter(|m| group.iter().any(|u| !self.victims(*u, *m).is_empty())).collect();
            if let Some(found) = self.best_of(hosts.into_iter(), group, leader, not, true) {
                return Some(Found { only: false, ..found });
            }
        }
        self.scan(group, leader, not, displace)
    }

    /// The few machines that come into question by the units' own words: where a peer is, or by id.
    fn bound_to(&self, group: &[U]) -> Option<Vec<M>> {
        for u in group {
            let rules = self.state[*u].rules();
            if let Some(peer) = rules.peers.iter().find(|peer| !group.contains(peer)) {
                return Some(self.state[*peer].places.iter().map(|(m, _)| *m).collect());
            }
            if let Some(id) = &rules.machine_id {
                let named =
                    self.state.by_id.range::<str, _>((Bound::Included(id.as_str()), Bound::Unbounded));
                let named = named.take_while(|(known, _)| known.as_str().starts_with(id.as_str()));
                return Some(named.map(|(_, m)| *m).collect());
            }
        }
        None
    }

    fn best_of(
        &self,
        candidates: impl Iterator<Item = M>,
        group: &[U],
        leader: U,
        not: Option<M>,
        displace: bool,
    ) -> Option<Found> {
        let candidates = candidates
            .filter(|m| Some(*m) != not && self.state.is_open(*m))
            .filter(|m| self.come(group, *m, displace).is_ok());
        let scored: Vec<_> = candidates.map(|m| (self.score(leader, self.state.rank(m)), m)).collect();
        let (_, machine) = scored.iter().min()?;
        Some(Found { machine: *machine, only: scored.len() == 1 && self.state.present > 1 })
    }

    fn score(&self, leader: U, (units, share, order, m): Rank) -> Score {
        (units + self.state.siblings(leader, m), share, order)
    }

    fn scan(&self, group: &[U], leader: U, not: Option<M>, displace: bool) -> Option<Found> {
        let floor = self.state.fewest_siblings(leader);
        let mut best: Option<(Score, M)> = None;
        let (mut fits, mut all) = (0_u32, true);
        for pool in self.pools(group) {
            for rank in pool {
                let (units, share, order, m) = *rank;
                if best.is_some_and(|(score, _)| (units + floor, share, order) > score) {
                    all = false;
                    break;
                }
                if Some(m) == not || self.come(group, m, displace).is_err() {
                    continue;
                }
                fits += 1;
                let score = self.score(leader, *rank);
                if best.is_none_or(|(known, _)| score < known) {
                    best = Some((score, m));
                }
            }
        }
        best.map(|(_, machine)| Found { machine, only: all && fits == 1 && self.state.present > 1 })
    }

    /// The open machines, or of those only the ones that have what the group asks for, by its rarest key.
    fn pools(&self, group: &[U]) -> Vec<&BTreeSet<Rank>> {
        let mut narrowest: Option<(usize, Vec<&BTreeSet<Rank>>)> = None;
        for (key, wanted) in group.iter().flat_map(|u| &self.state[*u].rules().metadata) {
            let pools: Vec<_> = match self.state.pools.get(key) {
                Some(values) => wanted.iter().filter_map(|value| values.get(value)).collect(),
                None => Vec::new(),
            };
            let machines = pools.iter().map(|pool| pool.len()).sum();
            if narrowest.as_ref().is_none_or(|(known, _)| machines < *known) {
                narrowest = Some((machines, pools));
            }
        }
        narrowest.map_or_else(|| vec![&self.state.open], |(_, pools)| pools)
    }

    /// Places what is wanted and is nowhere, or moves what is on a drained machine.
    pub(super) fn try_place(&mut self, u: U, scope: &Scope, now: Timestamp) {
        let entry = &self.state[u];
        if !entry.wanted() || entry.rules().unreadable.is_some() {
            self.wait(u, entry.wanted());
            return;
        }
        if entry.rules().global {
            return self.place_global(u, scope, now);
        }
        if let Some((m, _)) = entry.places.first() {
            let m = *m;
            if self.state[m].draining() {
                let group = self.companions(u, m);
                match self.find(&group, scope, Some(m), true) {
                    Some(found) => self.relocate(&group, m, found, &Removal::Drained, now),
                    None => {
                        for member in group {
                            self.wait(member, true);
                        }
                    }
                }
            } else {
                self.wait(u, false);
            }
            return;
        }
        let group = self.component(u, |other| {
            let entry = &self.state[other];
            entry.wanted() && entry.places.is_empty() && entry.rules().unreadable.is_none()
        });
        if let Some(found) = self.find(&group, scope, None, true) {
            return self.put(&group, found, now);
        }
        if group.len() == 1 {
            return self.wait(u, true);
        }
        // No machine takes all of them: those that follow none of the others first, then who can follow.
        let mut left = group;
        loop {
            let before = left.len();
            for member in std::mem::take(&mut left) {
                match self.find(&[member], scope, None, true) {
                    Some(found) => self.put(&[member], found, now),
                    None => left.push(member),
                }
            }
            if left.len() == before || left.is_empty() {
                break;
            }
        }
        for member in left {
            self.wait(member, true);
        }
    }

    fn place_global(&mut self, u: U, scope: &Scope, now: Timestamp) {
        let machines: Vec<M> = match scope {
            Scope::All => self.state.hosts().filter(|m| self.state.is_open(*m)).collect(),
            Scope::On(machines) => machines.iter().copied().filter(|m| self.state.is_open(*m)).collect(),
        };
        let mut refused = false;
        for m in machines {
            if self.state[u].on(m) {
                continue;
            }
            match self.come(&[u], m, false) {
                Ok(()) => self.schedule(u, m, &Reason::Global, now),
                Err(_) => refused = true,
            }
        }
        if refused {
            self.waiting.insert(u);
        }
    }

    /// Notes that a unit waits for another machine, or no longer.
    pub(super) fn wait(&mut self, u: U, waits: bool) {
        if !waits {
            self.waiting.remove(&u);
            return;
        }
        if !self.waiting.insert(u) {
            return;
        }
        let entry = &self.state[u];
        let unit = entry.name.clone();
        let notice = match entry.places.first() {
            Some((m, _)) => Notice::Stuck { unit, machine: self.state[*m].id.clone() },
            None => Notice::Waiting { unit },
        };
        self.out.push(Effect::Tell(notice));
    }

    /// Puts all of a group on a machine.
    pub(super) fn put(&mut self, group: &[U], found: Found, now: Timestamp) {
        let m = found.machine;
        let units = self.state.rank(m).0;
        let mut victims = BTreeSet::new();
        for u in group {
            let first = self.victims(*u, m);
            for victim in &first {
                let by = Removal::Replaced(self.state[*u].name.clone());
                for companion in self.companions(*victim, m) {
                    self.remove(companion, m, by.clone(), now);
                    self.dirty.insert(companion);
                }
            }
            victims.extend(first);
        }
        // Leaders first: an agent that is quick sees the unit before its sidekick.
        let mut order: Vec<U> = group.to_vec();
        order.sort_by_key(|u| self.state[*u].rules().peers.iter().any(|peer| group.contains(peer)));
        for u in order {
            let follows = self.state[u].rules().peers.first().map(|peer| self.state[*peer].name.clone());
            let reason = match (follows, victims.first()) {
                (Some(peer), _) => Reason::Follows(peer),
                (None, Some(victim)) => Reason::Replaces(self.state[*victim].name.clone()),
                (None, None) if found.only => Reason::OnlyFit,
                (None, None) => Reason::LeastLoaded { units },
            };
            self.schedule(u, m, &reason, now);
        }
    }

    /// Moves a group to another machine in one decision.
    pub(super) fn relocate(&mut self, group: &[U], from: M, to: Found, why: &Removal, now: Timestamp) {
        for u in group {
            self.remove(*u, from, why.clone(), now);
        }
        let fenced = |u: &U| self.check(*u, to.machine, Mode::Come, group) == Err(Bar::Fenced(from));
        if group.iter().any(fenced) {
            // It is placed when the first copy has stopped.
            self.dirty.extend(group);
        } else {
            self.put(group, to, now);
        }
    }

    pub(super) fn schedule(&mut self, u: U, m: M, reason: &Reason, now: Timestamp) {
        let Some(order) = self.state[u].order.clone() else { return };
        let record = ScheduleRecord {
            v: RECORD_VERSION,
            hash: order.hash.to_string(),
            desired: order.desired,
            launch: order.launch,
            term: self.term,
            why: reason.to_string(),
            unknown: Default::default(),
        };
        let new = !self.state[u].on(m);
        self.state.place(u, m, order, now);
        let (unit, machine) = (self.state[u].name.clone(), self.state[m].id.clone());
        self.out.push(Effect::Schedule(Placement { unit, machine, record, why: reason.clone() }));
        if new {
            if !self.state[u].rules().global {
                self.wait(u, false);
            }
            self.touch_followers(u);
        }
    }

    pub(super) fn remove(&mut self, u: U, m: M, why: Removal, now: Timestamp) {
        if self.may_be_starting(u, m) {
            self.fenced.insert(u, (m, now.after(FENCE)));
        }
        let entry = &self.state[u];
        if entry.rules().stop && self.state.alive.contains(&(u, m)) {
            let mut orders = entry.places.iter().filter(|(machine, _)| *machine == m).map(|(_, order)| order);
            let order = orders.next().filter(|order| order.desired == DesiredState::Launched);
            self.told.extend(order.map(|order| ((u, m), order.launch)));
        }
        self.state.unplace(u, m, now);
        let (unit, machine) = (self.state[u].name.clone(), self.state[m].id.clone());
        self.out.push(Effect::Unschedule { unit, machine, why });
        self.touch_followers(u);
        self.touch_peers(u);
        self.freed(u, m);
    }

    /// Whether the machine may be about to start a unit with `OnPartition=stop`: it was told to, and its last word
    /// was that nothing runs. That word may be from before the start; but a machine that shuts down has said all.
    fn may_be_starting(&self, u: U, m: M) -> bool {
        let entry = &self.state[u];
        let launched =
            |(machine, order): &(M, Order)| *machine == m && order.desired == DesiredState::Launched;
        let told = entry.places.iter().any(launched);
        let host = &self.state[m];
        let obeys = host.present && !host.leaving;
        entry.rules().stop && told && obeys && !self.state.alive.contains(&(u, m))
    }

    pub(super) fn touch_followers(&mut self, u: U) {
        if let Some(followers) = self.state.followers.get(&u) {
            self.dirty.extend(followers);
        }
    }

    /// A unit no longer goes where these go: what could not leave with it may leave without.
    pub(super) fn touch_peers(&mut self, u: U) {
        let peers = self.state[u].rules().peers.iter().filter(|peer| self.waiting.contains(peer));
        self.dirty.extend(peers);
    }

    /// A unit has left a machine, or asks for less there: who waits because of it may come.
    pub(super) fn freed(&mut self, u: U, m: M) {
        if self.waiting.is_empty() || !self.state.is_open(m) {
            return;
        }
        let entry = &self.state[u];
        let rules = entry.rules();
        let mut woken = BTreeSet::new();
        let mut wake = |some: &BTreeSet<U>| {
            let (few, many) =
                if some.len() < self.waiting.len() { (some, &self.waiting) } else { (&self.waiting, some) };
            woken.extend(few.iter().filter(|u| many.contains(u)));
        };
        for p in rules.conflicts.iter().chain(&rules.replaces) {
            wake(&self.state.patterns.get(*p).members);
        }
        for p in &entry.matched {
            let pattern = self.state.patterns.get(*p);
            wake(&pattern.conflicts);
            wake(&pattern.replaces);
        }
        let limits = |resources: unit::Resources| resources != unit::Resources::default();
        if limits(rules.resources) {
            woken.extend(self.waiting.iter().filter(|u| limits(self.state[**u].rules().resources)));
        }
        for waiting in woken {
            self.wake(waiting, Scope::On([m].into()));
        }
        // Where the units that it would replace may go has changed.
        let broad: Vec<U> =
            self.waiting.iter().copied().filter(|u| !self.state[*u].rules().replaces.is_empty()).collect();
        for waiting in broad {
            self.wake(waiting, Scope::All);
        }
    }

    pub(super) fn wake(&mut self, u: U, scope: Scope) {
        match self.queue.get_mut(&u) {
            Some(known) => known.add(scope),
            None => {
                self.queue.insert(u, scope);
            }
        }
    }
}
