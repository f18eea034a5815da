//! Apps and their units: they start, end, and are stopped in order.
//!
//! Invariant: nothing that is under way at an app outlives it.

use super::{
    Activity, Duration, Event, Found, Host, Input, Ipv4Addr, MS, Machine, Outcome, PATIENCE, Process, World,
};
use crate::traffic::rules::Rule;
use model::{UnitName, keys};

impl World {
    pub(super) fn find(&mut self, host: Host, run: u32, unit: UnitName) {
        let Some(app) = self.machines[host.0].apps.iter().find(|app| app.unit == unit) else { return };
        let found = match app.process {
            Process::Dead => Err("its container has ended".to_owned()),
            _ => Ok(Found { address: app.address, run: app.run.to_string(), unhealthy: None }),
        };
        if found.is_err() && app.activity == Activity::Active {
            self.queue.push(self.now + MS(500), Event::Find(host, run, unit.clone()));
        }
        self.queue.push(self.now + MS(1), Event::Agent(host, run, Input::Found(unit, found)));
    }

    pub(super) fn tell_unit(&mut self, host: Host, app: usize) {
        if let Some(agent) = &self.machines[host.0].agent {
            let run = agent.run;
            let takes = self.rng.span(MS(1), MS(30));
            self.queue.push(self.now + takes, Event::Agent(host, run, Input::Unit(app)));
        }
    }

    pub(super) fn start(&mut self, host: Host, app: usize, run: u64) {
        let ready = self.now + self.rng.span(MS(1), MS(2000));
        let machine = &mut self.machines[host.0];
        let one = &mut machine.apps[app];
        if !machine.powered || one.run != run || one.process != Process::Dead {
            return;
        }
        one.run += 1;
        // Addresses are given out again and again.
        let last = 2 + u8::try_from((app + self.rng.below(3)) % 5).unwrap_or(0);
        one.address = Ipv4Addr::new(10, 1, u8::try_from(host.0).unwrap_or(0), last * 10 + app as u8);
        one.process = Process::Up { ready };
        one.activity = Activity::Active;
        one.stops = None;
        let unit = one.unit.clone();
        self.say(host, || format!("{unit} starts"));
        self.tell_unit(host, app);
        let run = self.machines[host.0].agent.as_ref().map(|agent| agent.run);
        if let Some(run) = run {
            // The engine says that there is a container.
            self.queue.push(self.now + MS(40), Event::Find(host, run, unit));
        }
    }

    /// An app's process ends; systemd starts it again.
    pub(super) fn exit(&mut self, host: Host, app: usize, again: bool) {
        let one = &mut self.machines[host.0].apps[app];
        if one.process == Process::Dead {
            return;
        }
        one.process = Process::Dead;
        one.activity = Activity::Inactive;
        one.stops = None;
        let (run, unit, flights) = (one.run, one.unit.clone(), std::mem::take(&mut one.inflight));
        self.say(host, || format!("{unit} has ended, {} requests with it", flights.len()));
        let gone = if self.machines[host.0].powered {
            (MS(1), Outcome::Reset)
        } else {
            (MS(1000), Outcome::Unreachable)
        };
        for flight in flights {
            self.queue.push(self.now + gone.0, Event::Ended(flight, gone.1));
        }
        self.tell_unit(host, app);
        if let Some(agent) = self.machines[host.0].agent.as_ref().map(|agent| agent.run) {
            self.queue.push(self.now + MS(2), Event::Find(host, agent, unit));
        }
        if again {
            let pause = self.rng.span(MS(100), MS(2500));
            self.queue.push(self.now + pause, Event::Start(host, app, run));
        }
    }

    /// `systemctl restart`: the drain first, where there is a daemon to ask.
    pub(super) fn stop(&mut self, host: Host, app: usize) {
        let machine = &mut self.machines[host.0];
        let one = &mut machine.apps[app];
        if one.activity != Activity::Active {
            return;
        }
        one.activity = Activity::Stopping;
        let (unit, run) = (one.unit.clone(), one.run);
        let agent = machine.agent.as_ref().map(|agent| agent.run);
        self.say(host, || format!("{unit} is to stop"));
        let Some(agent) = agent else { return self.terminate(host, app) };
        self.tell_unit(host, app);
        let takes = self.rng.span(MS(1), MS(30));
        self.queue.push(self.now + takes, Event::Agent(host, agent, Input::Drain(app)));
        // Its `ExecStop=` has a limit.
        self.queue.push(self.now + PATIENCE, Event::Exit(host, app, run));
    }

    pub(super) fn terminate(&mut self, host: Host, app: usize) {
        let one = &mut self.machines[host.0].apps[app];
        if matches!(one.process, Process::Up { .. }) {
            one.process = Process::Ending;
            let (run, unit) = (one.run, one.unit.clone());
            self.say(host, || format!("{unit} gets SIGTERM"));
            let takes = self.rng.span(MS(1), MS(300));
            self.queue.push(self.now + takes, Event::Exit(host, app, run));
        }
    }

    /// A drain is over: SIGTERM comes next.
    pub(super) fn drained(&mut self, host: Host, unit: &UnitName) {
        let Some(app) = self.machines[host.0].apps.iter().position(|app| app.unit == *unit) else { return };
        let now = self.local(host);
        let machine = &self.machines[host.0];
        let one = &machine.apps[app];
        let Some((since, run, in_service)) = one.stops else { return };
        let Some(agent) = machine.agent.as_ref().filter(|agent| agent.run == run) else { return };
        let took = agent.own(now).saturating_sub(since);
        let limit = one.registrations.first().map_or(Duration::ZERO, |registration| registration.drain);
        // With the hub away nobody can be told, and that is found out in 2 s.
        let told = took < MS(1990);
        // Those that have only just begun may not be known yet.
        let waits = |router: &Machine| {
            let own = router.agent.as_ref().map(|agent| agent.own(self.local(router.host)));
            own.is_some_and(|own| own > Duration::from_secs(5))
                && self.hub.get(&keys::router(&router.id)).is_some()
        };
        let mut broken = None;
        // Where it was not in service, there was nothing to wait for.
        if in_service && took < limit && told && self.hub.up && !machine.cut {
            for router in self.machines.iter().filter(|router| router.powered) {
                let Some(agent) = router.agent.as_ref().filter(|_| waits(router)) else { continue };
                let count = agent.router.under_way(&one.service, &one.instance);
                let view = agent.router.served().services.get(&one.service);
                let routed = view.and_then(|view| view.instances.get(&one.instance)?.routable()).is_some();
                if count > 0 || routed {
                    broken = Some(format!(
                        "{unit} stops after {took:?}, and the router of {} has {count} requests there{}",
                        router.host,
                        if routed { " and sends more" } else { "" }
                    ));
                }
            }
        }
        if let Some(what) = broken {
            self.broken(Rule::StopWaits, what);
        }
        self.terminate(host, app);
    }
}
