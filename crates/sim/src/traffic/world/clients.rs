//! Clients: requests, from a router to an app and back.
//!
//! Invariant: every request that was begun ends, unless its router does.

use super::{Attempt, Event, Flight, Host, MS, Machine, Outcome, Place, Process, World};
use crate::traffic::{
    agent::Topic,
    rules::{KNOWN, Rule},
};

/// How often a gateway tries what could not be reached.
const SUSPECTS: std::time::Duration = std::time::Duration::from_millis(500);

impl World {
    pub(super) fn ask(&mut self, host: Host) {
        let period = self.machines[host.0].period;
        let next = self.rng.span(period / 2, period * 3 / 2);
        self.queue.push(self.now + next, Event::Ask(host));
        let machine = &mut self.machines[host.0];
        if !machine.powered || machine.frozen {
            return;
        }
        let Some(agent) = &mut machine.agent else { return };
        let services: Vec<_> = agent.router.services.keys().cloned().collect();
        if services.is_empty() {
            return;
        }
        let service = self.rng.pick(&services).clone();
        let again = self.rng.chance(700);
        agent.router.begin(&service);
        self.requests += 1;
        let run = agent.run;
        self.attempt(host, run, Attempt::new(service, again));
    }

    pub(super) fn attempt(&mut self, host: Host, run: u32, attempt: Attempt) {
        let (now, random) = (self.local(host), self.rng.below(usize::MAX) as u64);
        let machine = &mut self.machines[host.0];
        let Some(agent) = machine.agent.as_mut().filter(|agent| agent.run == run) else { return };
        let own = agent.own(now);
        let picked = agent.router.pick(own, random, &attempt);
        let view = agent.router.served().services.get(&attempt.service);
        let Some(picked) = picked else {
            let somebody = view.and_then(|view| view.routable().next().map(|(instance, _)| instance.clone()));
            if let Some(instance) = somebody.filter(|_| attempt.tried.is_empty()) {
                let what = format!("{host}: {} has {instance}, and a request found nobody", attempt.service);
                self.broken(Rule::SomebodyIsChosen, what);
            }
            return;
        };
        let instance = &picked.member.instance;
        let routable = view.and_then(|view| view.instances.get(instance)?.routable());
        if routable.map(|endpoint| endpoint.0.into()) != Some(picked.member.address) || !picked.listed {
            let what =
                format!("{host}: a request goes to {}/{instance}, which is {routable:?}", attempt.service);
            self.broken(Rule::NothingToTheDraining, what);
        }
        self.send(host, run, attempt, picked.place, picked.member.address.ip());
    }

    /// The app that takes connections at an address, and whether packets from `host` to there are lost.
    fn reach(&self, host: Host, address: std::net::IpAddr) -> (Option<(Host, usize)>, bool) {
        let find = |machine: &Machine| {
            let app =
                machine.apps.iter().position(|app| address == app.address && app.process != Process::Dead)?;
            Some((machine.host, app))
        };
        let target = self.machines.iter().find_map(find);
        // Packets to a machine without power, or behind a cut, are never heard of again.
        let there = Host(match address {
            std::net::IpAddr::V4(ip) => usize::from(ip.octets()[2]),
            std::net::IpAddr::V6(_) => 0,
        });
        let from = &self.machines[host.0];
        let hole = self
            .machines
            .get(there.0)
            .is_some_and(|to| !to.powered || (there != host && (to.cut || from.cut)));
        let listens = |(host, app): &(Host, usize)| self.machines[host.0].apps[*app].listens(self.now);
        (target.filter(listens), hole)
    }

    /// The router tries to connect to what could not be reached.
    pub(super) fn look_at_suspects(&mut self, host: Host) {
        self.queue.push(self.now + SUSPECTS, Event::Look(host));
        let machine = &self.machines[host.0];
        let Some(agent) = machine.agent.as_ref().filter(|_| machine.powered && !machine.frozen) else {
            return;
        };
        let mut reached = agent.router.unreachable();
        reached.retain(|(_, _, address)| matches!(self.reach(host, *address), (Some(_), false)));
        if let Some(agent) = &mut self.machines[host.0].agent {
            reached.into_iter().for_each(|(service, place, _)| agent.router.reached(&service, place));
        }
    }

    fn send(&mut self, host: Host, run: u32, attempt: Attempt, place: Place, address: std::net::IpAddr) {
        let (target, hole) = self.reach(host, address);
        match target {
            Some(target) if !hole => {
                let id = self.next_flight;
                self.next_flight += 1;
                let app = &mut self.machines[target.0.0].apps[target.1];
                app.inflight.insert(id);
                let sick = app.is_sick(self.now);
                let since = app.sick.0.max(self.disturbed) + KNOWN;
                let (unit, known) = (app.unit.clone(), sick && since < self.now);
                if known && self.undisturbed(host) {
                    let what = format!("{host}: a request goes to {unit}, whose checks fail since long");
                    self.broken(Rule::FailedIsOut, what);
                }
                let takes = if self.rng.chance(30) {
                    self.rng.span(MS(500), MS(6000))
                } else {
                    self.rng.span(MS(2), MS(60))
                };
                let outcome = match (sick, self.rng.chance(600)) {
                    (true, true) => Outcome::Reset,
                    (true, false) => Outcome::Unwell(takes),
                    (false, _) => Outcome::Answered(takes),
                };
                self.flights.insert(id, Flight { host, run, attempt, place, target });
                self.queue.push(self.now + takes, Event::Ended(id, outcome));
            }
            _ => {
                let takes = if hole { MS(300) } else { MS(1) };
                self.queue.push(self.now + takes, Event::Refused(host, run, attempt, place));
            }
        }
    }

    pub(super) fn ended(&mut self, id: u64, outcome: Outcome) {
        let Some(flight) = self.flights.remove(&id) else { return };
        let (host, app) = flight.target;
        self.machines[host.0].apps[app].inflight.remove(&id);
        self.settle_attempt(flight.host, flight.run, flight.attempt, flight.place, outcome, true);
    }

    pub(super) fn settle_attempt(
        &mut self,
        host: Host,
        run: u32,
        mut attempt: Attempt,
        place: Place,
        outcome: Outcome,
        sent: bool,
    ) {
        let now = self.local(host);
        let machine = &mut self.machines[host.0];
        let Some(agent) = machine.agent.as_mut().filter(|agent| agent.run == run) else { return };
        let own = agent.own(now);
        let again = agent.router.ended(own, &mut attempt, place, outcome, sent);
        let overdrawn = agent.router.overdrawn(own);
        let mut out = Vec::new();
        if agent.router.drains() {
            agent.report(now, &mut out);
        }
        if let Some(what) = overdrawn {
            self.broken(Rule::BudgetHolds, format!("{host}: {what}"));
        }
        self.perform(host, out);
        if again {
            self.queue.push(self.now, Event::Try(host, run, attempt));
        }
    }

    /// Nothing is wrong between apps' checks and that router.
    fn undisturbed(&self, host: Host) -> bool {
        let stream = self.streams.get(&(host, Topic::Services)).is_some_and(|stream| !stream.stalled);
        stream && self.hub.up && self.rolling.is_empty() && self.machines.iter().all(Machine::is_well)
    }
}
