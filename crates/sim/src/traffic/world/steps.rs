//! What is done to the cluster, carried out.
//!
//! Invariant: a step that has nothing to do does nothing.

use super::{Activity, Event, Host, MS, Machine, NOTICED, Step, World};
use crate::traffic::agent::RELIST;

impl World {
    pub(super) fn roll(&mut self) {
        let Some((host, app)) = self.rolling.first().copied() else { return };
        let one = &self.machines[host.0].apps[app];
        if one.is_well(self.now) {
            self.rolling.remove(0);
            self.stop(host, app);
        }
        self.queue.push(self.now + MS(1500), Event::Roll);
    }

    pub(super) fn step(&mut self, step: Step) {
        self.trace.story(self.now, || format!("> {step}"));
        if !matches!(step, Step::Sicken(..) | Step::SickenAll(_)) {
            self.disturbed = self.now;
        }
        match step {
            Step::Crash(host, app) => {
                let app = app % self.machines[host.0].apps.len().max(1);
                if app < self.machines[host.0].apps.len() {
                    self.exit(host, app, true);
                }
            }
            Step::Sicken(host, app, lasts) => {
                let (now, until) = (self.now, self.now + lasts);
                let count = self.machines[host.0].apps.len().max(1);
                if let Some(app) = self.machines[host.0].apps.get_mut(app % count) {
                    app.sicken(now, until);
                }
            }
            Step::SickenAll(lasts) => {
                let (now, until) = (self.now, self.now + lasts);
                let apps = self.machines.iter_mut().flat_map(|machine| &mut machine.apps);
                apps.for_each(|app| app.sicken(now, until));
            }
            Step::KillDaemon(host, pause) => {
                self.kill_daemon(host);
                self.queue.push(self.now + pause, Event::Daemon(host));
            }
            Step::Freeze(host) => self.machines[host.0].frozen = true,
            Step::Thaw(host) => {
                self.machines[host.0].frozen = false;
                for event in std::mem::take(&mut self.machines[host.0].parked) {
                    self.queue.push(self.now, event);
                }
            }
            Step::PowerOff(host) => {
                self.machines[host.0].powered = false;
                self.kill_daemon(host);
                (0..self.machines[host.0].apps.len()).for_each(|app| self.exit(host, app, false));
                let machine = &mut self.machines[host.0];
                (machine.lease, machine.frozen) = (None, false);
            }
            Step::PowerOn(host) if !self.machines[host.0].powered => {
                self.machines[host.0].powered = true;
                let boot = self.rng.span(MS(1000), MS(4000));
                self.queue.push(self.now + boot, Event::Daemon(host));
                for app in 0..self.machines[host.0].apps.len() {
                    let run = self.machines[host.0].apps[app].run;
                    self.queue.push(self.now + boot + MS(500), Event::Start(host, app, run));
                }
            }
            Step::PowerOn(_) => {}
            Step::Cut(host) => {
                self.machines[host.0].cut = true;
                self.break_streams(|other| other == host, NOTICED);
            }
            Step::Heal(host) => self.machines[host.0].cut = false,
            Step::HubDown => {
                self.hub.crash();
                self.break_streams(|_| true, MS(100));
            }
            Step::HubUp if !self.hub.up => self.hub.restart(self.now),
            Step::HubUp => {}
            Step::BreakStreams(host) => self.break_streams(|other| other == host, MS(500)),
            Step::StallStreams(host) => {
                self.streams
                    .iter_mut()
                    .filter(|((of, _), _)| *of == host)
                    .for_each(|(_, s)| s.stalled = true);
                // It is noticed by the next full look at the latest.
                self.break_streams(|other| other == host, RELIST);
            }
            Step::Roll(service) => {
                if self.rolling.is_empty() {
                    let of = |machine: &Machine| {
                        let apps = machine.apps.iter().enumerate();
                        let mine: Vec<_> = apps
                            .filter(|(_, app)| app.service.as_str() == service)
                            .map(|(index, _)| (machine.host, index))
                            .collect();
                        mine
                    };
                    self.rolling = self.machines.iter().flat_map(of).collect();
                    self.queue.push(self.now, Event::Roll);
                }
            }
        }
    }

    pub(super) fn kill_daemon(&mut self, host: Host) {
        let machine = &mut self.machines[host.0];
        let Some(agent) = machine.agent.take() else { return };
        machine.parked.clear();
        machine.frozen = false;
        // Its requests go with it, and the stops that waited for it wait no more.
        let mine: Vec<u64> = self
            .flights
            .iter()
            .filter(|(_, f)| f.host == host && f.run == agent.run)
            .map(|(id, _)| *id)
            .collect();
        for id in mine {
            if let Some(flight) = self.flights.remove(&id) {
                self.machines[flight.target.0.0].apps[flight.target.1].inflight.remove(&id);
            }
        }
        self.streams.retain(|(of, _), _| *of != host);
        self.say(host, || "the daemon is killed".to_owned());
        for app in 0..self.machines[host.0].apps.len() {
            if self.machines[host.0].apps[app].activity == Activity::Stopping {
                self.terminate(host, app);
            }
        }
    }
}
