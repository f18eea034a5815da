//! Taking in what changed, and looking at what it concerns until nothing is left to do.
//!
//! Not here: rules, and the choice among machines. Invariant: whatever a change may let come or make go is looked
//! at in the same step.

use super::{
    Effect, Engine, FENCE, FORGET, HOLD, LOOK_AGAIN, Notice,
    fit::Mode,
    place::Scope,
    reason::{Reason, Removal},
    state::{Host, M, Order, U},
};
use crate::cluster::{Delta, Said};
use model::{DesiredState, MachineId, Timestamp};
use std::collections::BTreeSet;

impl Engine {
    pub(super) fn take(&mut self, now: Timestamp, mut deltas: Vec<Delta>) {
        // A lease that ends takes presence and states together: who was alive must be known when the loss is seen.
        deltas.sort_by_key(|delta| !matches!(delta, Delta::Machine(..)));
        for delta in deltas {
            match delta {
                Delta::Machine(id, record) => {
                    self.host(&id, now, |host| {
                        host.present = record.is_some();
                        // A machine that is gone has left if that was its last word.
                        host.leaving = record.as_ref().map_or(host.leaving, |record| record.leaving);
                        host.own = record.as_ref().map(|record| record.metadata.clone()).unwrap_or_default();
                        host.capacity = record.and_then(|record| record.capacity);
                    });
                }
                Delta::Metadata(id, record) => self.host(&id, now, |host| {
                    host.outside = record.map(|record| record.metadata).unwrap_or_default();
                }),
                Delta::Maintenance(id, record) => {
                    self.host(&id, now, |host| host.maintenance = record.map(|record| record.state));
                }
                Delta::Unit(name, unit) => {
                    let u = self.state.unit(&name);
                    self.waiting.remove(&u);
                    match unit {
                        Some(unit) => {
                            let order = Order {
                                hash: self.state.hash(&unit.hash),
                                desired: unit.desired,
                                launch: unit.launch,
                            };
                            let entry = &mut self.state[u];
                            (entry.order, entry.revision) = (Some(order), unit.revision);
                            if let Some(requirements) = &unit.requirements {
                                self.release(u);
                                self.touch_peers(u);
                                self.state.set_requirements(u, requirements);
                                for m in self.places(u) {
                                    let victims = self.victims(u, m);
                                    self.dirty.extend(victims);
                                }
                            }
                            if self.state[u].rules().global {
                                self.wake(u, Scope::All);
                            }
                        }
                        None => {
                            // Its number may go to another unit before this one is looked at.
                            self.fenced.remove(&u);
                            self.state[u].order = None;
                        }
                    }
                    self.dirty.insert(u);
                    self.touch_all_followers(u);
                }
                Delta::Schedule(id, name, record) => {
                    let (m, u) = (self.state.host(&id), self.state.unit(&name));
                    match record {
                        Some(record) => {
                            let hash = self.state.hash(&record.hash);
                            let order = Order { hash, desired: record.desired, launch: record.launch };
                            if self.state[u].places.binary_search(&(m, order.clone())).is_ok() {
                                continue;
                            }
                            self.state.place(u, m, order, now);
                        }
                        None if self.state[u].on(m) => {
                            self.state.unplace(u, m, now);
                            self.freed(u, m);
                            if self.state[u].rules().global {
                                self.wake(u, Scope::On([m].into()));
                            }
                        }
                        None => {}
                    }
                    self.dirty.insert(u);
                    self.touch_followers(u);
                }
                Delta::State(id, name, said) => {
                    let (m, u) = (self.state.host(&id), self.state.unit(&name));
                    let alive = said == Said::Runs;
                    if !alive {
                        self.has_stopped(u, m, said, now);
                    }
                    if self.state.set_alive(u, m, alive) && !alive && self.state[u].rules().stop {
                        self.dirty.insert(u);
                    }
                    self.state.forget_unit(u);
                    self.forget_host(m);
                }
                Delta::Move(name, order) => {
                    let u = self.state.unit(&name);
                    match order {
                        Some(to) => self.moves.insert(u, to),
                        None => self.moves.remove(&u),
                    };
                }
            }
        }
    }

    fn host(&mut self, id: &MachineId, now: Timestamp, change: impl FnOnce(&mut Host)) {
        let m = self.state.host(id);
        let before = self.state[m].facts();
        self.state.change(m, now, change);
        let host = &self.state[m];
        if host.present || (host.maintenance.is_none() && host.outside.is_empty()) {
            self.absent.remove(&m);
        } else {
            self.absent.entry(m).or_insert(now);
        }
        if before == host.facts() {
            return self.forget_host(m);
        }
        let (was, is) = (before.0, host.present);
        if was != is && self.begun {
            let notice = if is { Notice::MachineJoined } else { Notice::MachineLost };
            self.out.push(Effect::Tell(notice(id.clone())));
        }
        self.dirty.extend(&self.state[m].units);
        if is {
            self.given_up.remove(&m);
            self.probed.remove(&m);
            // What was taken off it may run there still.
            let state = &self.state;
            self.fenced.retain(|u, (machine, _)| *machine != m || (state.knows(*u) && !state[*u].on(m)));
            // Whoever waits may come here, and nowhere else.
            let candidates: BTreeSet<U> = self.waiting.union(&self.state.globals).copied().collect();
            for u in candidates {
                let broad = !self.state[u].rules().replaces.is_empty();
                self.wake(u, if broad { Scope::All } else { Scope::On([m].into()) });
            }
        } else if was {
            let ran: Vec<U> =
                self.state.alive.iter().filter(|(_, machine)| *machine == m).map(|(u, _)| *u).collect();
            self.fence_all(m, &ran, now);
            // Whatever it was about to start it may start still, as long as its own fence lets it.
            let held = self.fenced.values_mut().filter(|(machine, _)| *machine == m);
            held.for_each(|(_, until)| *until = now.after(FENCE));
        }
        self.forget_host(m);
    }

    /// What was stopped by its fence before the machine learned that it goes elsewhere may start there again.
    fn has_stopped(&mut self, u: U, m: M, said: Said, now: Timestamp) {
        let (Some(told), Said::Stands { launch }) = (self.told.remove(&(u, m)), said) else { return };
        let host = &self.state[m];
        if launch < told && host.present && !host.leaving {
            self.fenced.insert(u, (m, now.after(FENCE)));
        }
    }

    fn forget_host(&mut self, m: M) {
        if !self.fenced.values().any(|(machine, _)| *machine == m) && self.state.forget_host(m) {
            self.given_up.remove(&m);
            self.probed.remove(&m);
            self.seen_lost.remove(&m);
        }
    }

    /// The machine is gone, and these units may run there: not elsewhere for a while.
    fn fence_all(&mut self, m: M, units: &[U], now: Timestamp) {
        for u in units.iter().filter(|u| self.state[**u].rules().stop) {
            self.fenced.insert(*u, (m, now.after(FENCE)));
        }
    }

    /// A unit's rules change where it is: who waits because of the old ones may come.
    fn release(&mut self, u: U) {
        for m in self.places(u) {
            self.freed(u, m);
        }
    }

    fn places(&self, u: U) -> Vec<M> {
        self.state[u].places.iter().map(|(m, _)| *m).collect()
    }

    /// Followers, theirs, and so on: a circle may have been closed or opened.
    fn touch_all_followers(&mut self, u: U) {
        let mut open = vec![u];
        let mut seen = BTreeSet::from([u]);
        while let Some(next) = open.pop() {
            for follower in self.state.followers.get(&next).into_iter().flatten() {
                if seen.insert(*follower) {
                    self.dirty.insert(*follower);
                    open.push(*follower);
                }
            }
        }
    }

    pub(super) fn decide(&mut self, now: Timestamp) {
        let over: Vec<U> =
            self.fenced.iter().filter(|(_, (_, until))| *until <= now).map(|(u, _)| *u).collect();
        for u in over {
            self.fenced.remove(&u);
            self.dirty.insert(u);
        }
        let mass = self.judge_losses(now);
        loop {
            while let Some(u) = self.dirty.pop_first() {
                if self.state.knows(u) {
                    self.settle(u, now);
                }
            }
            if self.queue.is_empty() {
                if self.moves.is_empty() {
                    break;
                }
                self.carry_out_moves(now);
                continue;
            }
            let mut round: Vec<_> = std::mem::take(&mut self.queue).into_iter().collect();
            round.retain(|(u, _)| self.state.knows(*u));
            round.sort_by(|(a, _), (b, _)| self.state[*a].name.cmp(&self.state[*b].name));
            for (u, scope) in round {
                self.try_place(u, &scope, now);
            }
        }
        self.set_timer(now, mass);
    }

    /// Which of the machines that are gone are believed to be; true while most of them are not.
    fn judge_losses(&mut self, now: Timestamp) -> bool {
        let lost = &self.state.lost;
        self.seen_lost.retain(|m| lost.contains(m));
        for m in self.state.lost.difference(&self.seen_lost.clone()).copied().collect::<Vec<_>>() {
            self.seen_lost.insert(m);
            let units: Vec<U> = self.state[m].units.iter().copied().collect();
            self.fence_all(m, &units, now);
            // It said that it would go: nobody need be asked, and it is no sign that the hub or the network is ill.
            if self.state[m].leaving {
                self.given_up.insert(m);
                self.dirty.extend(units);
            }
        }
        let lost = &self.state.lost;
        self.probed.retain(|m| lost.contains(m));
        self.given_up.retain(|m| lost.contains(m));
        if lost.is_empty() {
            self.overdue.clear();
            self.asked = false;
            self.release_hold();
            return false;
        }
        if now < self.believe {
            return false;
        }
        if !self.asked && lost.iter().any(|m| !self.probed.contains(m) && !self.given_up.contains(m)) {
            self.asked = true;
            self.out.push(Effect::Probe);
        }
        if self.asked {
            return false;
        }
        let present = |id: &&MachineId| self.state.by_id.get(*id).is_some_and(|m| self.state[*m].present);
        let late = self.overdue.iter().filter(present).count();
        let gone = lost.iter().filter(|m| !self.given_up.contains(m)).count();
        let (away, left) = (gone + late, self.state.present - late);
        let most = away > 1 && away > left;
        let waits = self.holding.is_some_and(|since| now < since.after(HOLD));
        if gone > 0 && (most || waits) {
            self.holding.get_or_insert(now);
            let held: BTreeSet<_> = lost
                .iter()
                .filter(|m| !self.given_up.contains(m))
                .map(|m| self.state[*m].id.clone())
                .collect();
            if held != self.told_held {
                self.told_held = held.clone();
                self.out.push(Effect::Tell(Notice::Holding(held)));
            }
            return true;
        }
        self.release_hold();
        for m in self.state.lost.clone() {
            if self.given_up.insert(m) {
                self.dirty.extend(&self.state[m].units);
            }
        }
        false
    }

    fn release_hold(&mut self) {
        if self.holding.take().is_some() {
            self.told_held.clear();
            self.out.push(Effect::Tell(Notice::Released));
        }
    }

    fn set_timer(&mut self, now: Timestamp, mass: bool) {
        let mut at = self.fence_ends();
        let over: Vec<M> =
            self.absent.iter().filter(|(_, since)| since.after(FORGET) <= now).map(|(m, _)| *m).collect();
        for m in over {
            self.absent.remove(&m);
            self.out.push(Effect::ForgetMachine(self.state[m].id.clone()));
        }
        let mut sooner = |when: Timestamp| at = Some(at.map_or(when, |at| at.min(when)));
        if mass {
            sooner(now.after(LOOK_AGAIN));
        }
        if !self.state.lost.is_empty() && now < self.believe {
            sooner(self.believe);
        }
        if let Some(since) = self.absent.values().min() {
            sooner(since.after(FORGET));
        }
        self.out.extend(at.map(Effect::SetTimer));
    }

    /// Looks at one unit: takes it off where it may not be, updates what stays, and queues it if it is missing.
    fn settle(&mut self, u: U, now: Timestamp) {
        let machines = self.places(u);
        let entry = &self.state[u];
        if !entry.wanted() {
            let why = if entry.order.is_some() { Removal::Inactive } else { Removal::Destroyed };
            for m in machines {
                self.remove(u, m, why.clone(), now);
                self.forget_host(m);
            }
            self.wait(u, false);
            if self.state[u].order.is_none() {
                self.queue.remove(&u);
                self.fenced.remove(&u);
                if !self.moves.contains_key(&u) {
                    self.state.forget_unit(u);
                }
            }
            return;
        }
        let global = entry.rules().global;
        let keep = if global { None } else { self.keeper(u, &machines) };
        let mut drain = false;
        for m in machines {
            if keep.is_some_and(|keep| keep != m) {
                self.remove(u, m, Removal::Duplicate, now);
            } else if !self.state[m].present {
                let fenced = self.fenced.get(&u).is_some_and(|(machine, _)| *machine == m);
                if self.given_up.contains(&m) && !fenced {
                    self.remove(u, m, Removal::MachineLost, now);
                }
            } else if let Err(bar) = self.check(u, m, Mode::Stay, &[]) {
                let refusal = self.refusal(u, m, bar);
                self.remove(u, m, Removal::Refused(refusal), now);
                if global {
                    self.waiting.insert(u);
                }
            } else {
                let entry = &self.state[u];
                let current = entry.places.iter().find(|(machine, _)| *machine == m).map(|(_, order)| order);
                if current != entry.order.as_ref() {
                    self.schedule(u, m, &Reason::Updated, now);
                }
                drain |= self.state[m].draining();
            }
            self.forget_host(m);
        }
        if global {
            // Where it is missing it has been queued, or waits.
        } else if drain || self.state[u].places.is_empty() {
            self.wake(u, Scope::All);
        } else {
            self.wait(u, false);
        }
    }

    /// Of several machines that have a unit which may be on one: where it may stay, else that is there, else any.
    fn keeper(&self, u: U, machines: &[M]) -> Option<M> {
        let there = |m: &&M| self.state[**m].present;
        let stays = |m: &&M| self.check(u, **m, Mode::Stay, &[]).is_ok();
        match machines {
            [] | [_] => machines.first().copied(),
            several => several
                .iter()
                .filter(there)
                .find(stays)
                .or_else(|| several.iter().find(there))
                .or_else(|| several.first())
                .copied(),
        }
    }

    fn carry_out_moves(&mut self, now: Timestamp) {
        for (u, to) in std::mem::take(&mut self.moves) {
            if !self.state.knows(u) {
                continue;
            }
            let unit = self.state[u].name.clone();
            self.out.push(Effect::Forget(unit.clone()));
            if let Err(why) = self.carry_out_move(u, &to, now) {
                self.out.push(Effect::Tell(Notice::MoveRefused { unit, machine: to, why }));
            }
            self.state.forget_unit(u);
        }
    }

    fn carry_out_move(&mut self, u: U, to: &MachineId, now: Timestamp) -> Result<(), String> {
        let entry = &self.state[u];
        if entry.rules().global || entry.order.as_ref().is_none_or(|o| o.desired == DesiredState::Inactive) {
            return Err("it is global, or nobody wants it to run".to_owned());
        }
        let Some((from, _)) = entry.places.first().cloned() else {
            return Err("it is on no machine".to_owned());
        };
        let Some(target) = self.state.by_id.get(to).copied().filter(|m| self.state[*m].open()) else {
            return Err("nothing new may come to that machine".to_owned());
        };
        if from == target {
            return Ok(());
        }
        if !self.state[from].present {
            return Err("its machine is gone just now".to_owned());
        }
        let group = self.companions(u, from);
        match self.find(&group, &Scope::On([target].into()), None, false) {
            Some(found) => {
                self.relocate(&group, from, found, &Removal::Rebalanced, now);
                Ok(())
            }
            None => Err(match self.come(&group, target, false) {
                Err((member, bar)) => {
                    format!("{}: {}", self.state[member].name, self.refusal(member, target, bar))
                }
                Ok(()) => "units that must move together exclude each other".to_owned(),
            }),
        }
    }
}
