//! The world: one queue of events, the hub, the machines and what is between them.
//!
//! Responsible for when things happen; what happens is decided by the hub, the daemons and systemd. Invariant: the
//! same settings and the same steps give the same run, to the last event.

/// A machine: power, clock, link, systemd and daemon.
mod machine;
/// What is done to the cluster, carried out.
mod steps;
/// Tables of how things are.
mod view;

pub use machine::Machine;

use crate::{
    daemon::{CALL_TIMEOUT, Mutation},
    hub::Hub,
    message::{Ask, Failure, Host, Input, Output, Peer, Request, Said, Schedule, StreamId},
    queue::Queue,
    rest,
    rng::Rng,
    rules::{Rules, Violation},
    step::Step,
    systemd::{Behaviour, Changed, Planned},
    time::Time,
    trace::{Level, Trace},
};
use model::UnitName;
use muster_core::fence::Fence;
use std::{collections::BTreeMap, time::Duration};

/// A connection is given up when nothing has come through for so long: `registry` pings every 5 s and waits 3 s.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(8);
/// systemd starts a daemon again that was killed.
const RESTART: Duration = Duration::from_millis(300);
/// From power to the daemon's start.
const BOOT: Duration = Duration::from_secs(4);
/// From the order to shut down until power is off.
const SHUTDOWN: Duration = Duration::from_secs(3);

/// What a run depends on.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How many machines.
    pub machines: usize,
    /// Where randomness begins.
    pub seed: u64,
    /// Delays vary, signals and changes get lost or come twice, units misbehave. Without it everything takes its
    /// usual time.
    pub noise: bool,
    /// A deliberate mistake.
    pub mutation: Option<Mutation>,
    /// How much is told.
    pub level: Level,
}

#[derive(Debug)]
enum Event {
    /// A call arrives at the hub.
    Call(Peer, u64, Request),
    /// Something arrives from the hub.
    FromHub(Peer, Input),
    /// Something of the machine's own: a timer, a word of systemd's.
    Local(Peer, Input),
    /// A lease may be over.
    Lapse,
    /// systemd gets what a daemon asked for.
    Ask(Peer, u32, Ask),
    /// A unit's start, stop or own end is due.
    Planned(Host, u32, Planned),
    /// Power goes off, if it is still that boot.
    PowerOff(Host, u32),
    /// Power comes.
    PowerOn(Host),
    /// The daemon starts, if it is still that boot.
    Daemon(Host, u32),
    /// The connection is given up, if it is still that cut.
    Broken(Host, u32),
    /// The last known schedule is on disk, if power was not cut before.
    Remember(Host, u32, Schedule),
    /// The fence's watcher starts.
    Arm(Peer, u32),
    /// The fence's watcher looks.
    Watch(Host, u32),
    /// Something is done to the cluster.
    Step(Step),
}

/// A whole cluster.
#[derive(Debug)]
pub struct World {
    settings: Settings,
    now: Time,
    queue: Queue<Event>,
    rng: Rng,
    /// The hub.
    pub hub: Hub,
    machines: Vec<Machine>,
    behaviours: BTreeMap<UnitName, Behaviour>,
    duplicates: bool,
    lapse: Option<Time>,
    rules: Rules,
    /// What happened.
    pub trace: Trace,
    events: u64,
}

impl World {
    /// A cluster whose machines have just got power.
    pub fn new(settings: Settings) -> Self {
        let mut rng = Rng::new(settings.seed);
        let machines = (0..settings.machines)
            .map(|index| Machine::new(Host(index), settings.noise.then(|| rng.fork())))
            .collect();
        let mut world = Self {
            settings,
            now: Time::default(),
            queue: Queue::default(),
            rng,
            hub: Hub::default(),
            machines,
            behaviours: BTreeMap::new(),
            duplicates: false,
            lapse: None,
            rules: Rules::new(),
            trace: Trace::new(settings.level),
            events: 0,
        };
        for index in 0..settings.machines {
            let delay = world.delay(Duration::from_millis(10), Duration::from_millis(300));
            let boot = world.machines[index].power_on();
            world.queue.push(world.now + delay, Event::Daemon(Host(index), boot));
        }
        world
    }

    /// What time it is.
    pub fn now(&self) -> Time {
        self.now
    }

    /// How many events there were.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The machines.
    pub fn machines(&self) -> &[Machine] {
        &self.machines
    }

    /// The rules, with what they have seen.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Does `step` at `at`.
    pub fn plan(&mut self, at: Time, step: Step) {
        self.queue.push(at, Event::Step(step));
    }

    /// Goes on until `end`, or until a rule is broken.
    pub fn run_until(&mut self, end: Time) -> Result<(), Violation> {
        while let Some((at, event)) = self.queue.pop_until(end) {
            self.now = at;
            self.events += 1;
            self.happen(event);
            self.spread();
            if let Some(violation) = self.rules.violation() {
                return Err(violation);
            }
        }
        self.now = self.now.max(end);
        Ok(())
    }

    /// Goes on until everything is as it should be, for `limit` at most; says what is not.
    pub fn settle(&mut self, limit: Duration) -> Result<Result<(), Vec<String>>, Violation> {
        let end = self.now + limit;
        loop {
            let missing = rest::missing(self);
            if missing.is_empty() {
                return Ok(Ok(()));
            }
            if self.now >= end {
                return Ok(Err(missing));
            }
            self.run_until((self.now + Duration::from_millis(500)).min(end))?;
        }
    }

    /// A usual time, or with noise one between the two, rarely much more.
    fn delay(&mut self, least: Duration, most: Duration) -> Duration {
        if !self.settings.noise {
            return least;
        }
        if self.rng.chance(3) {
            return self.rng.span(most, most * 20);
        }
        self.rng.span(least, most)
    }

    fn hop(&mut self) -> Duration {
        self.delay(Duration::from_millis(1), Duration::from_millis(30))
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Call(peer, call, request) => self.call(peer, call, request),
            Event::FromHub(peer, input) => {
                let machine = &mut self.machines[peer.host.0];
                if machine.link.blocks_from_hub() {
                    machine.link.park(Event::FromHub(peer, input));
                } else {
                    self.deliver(peer, input);
                }
            }
            Event::Local(peer, input) => self.deliver(peer, input),
            Event::Lapse => {
                self.lapse = None;
                if self.hub.expire(self.now) > 0 {
                    self.trace.detail(self.now, || "hub: a lease has ended".to_owned());
                }
            }
            Event::Ask(peer, boot, ask) => self.ask(peer, boot, ask),
            Event::Planned(host, boot, planned) => {
                let machine = &mut self.machines[host.0];
                if machine.is_boot(boot)
                    && let Some((changed, next)) = machine.systemd.proceed(&planned.unit, planned.plan)
                {
                    self.changed(host, &planned.unit, changed, next);
                }
            }
            Event::PowerOff(host, boot) => {
                if self.machines[host.0].is_boot(boot) {
                    self.power_off(host);
                    self.trace.story(self.now, || format!("{host} is off"));
                }
            }
            Event::PowerOn(host) => {
                if !self.machines[host.0].powered {
                    let boot = self.machines[host.0].power_on();
                    self.trace.story(self.now, || format!("{host} boots"));
                    let delay = self.delay(BOOT, BOOT * 2);
                    self.queue.push(self.now + delay, Event::Daemon(host, boot));
                }
            }
            Event::Daemon(host, boot) => self.start_daemon(host, boot),
            Event::Broken(host, cut) => {
                if self.machines[host.0].link.give_up(cut) {
                    self.trace.detail(self.now, || format!("{host}: the connection is given up"));
                    let streams = self.hub.disconnect(|peer| peer.host == host);
                    self.break_streams(streams);
                }
            }
            Event::Remember(host, boot, schedule) => {
                if self.machines[host.0].is_boot(boot) {
                    self.machines[host.0].notes.schedule = schedule;
                }
            }
            Event::Arm(peer, boot) => {
                let machine = &mut self.machines[peer.host.0];
                if machine.is_boot(boot) {
                    if machine.watcher.is_none() {
                        machine.watcher = Some(Fence::default());
                        self.queue.push(self.now, Event::Watch(peer.host, boot));
                    }
                    self.queue.push(self.now, Event::Local(peer, Input::Systemd(Said::Armed)));
                }
            }
            Event::Watch(host, boot) => self.watch(host, boot),
            Event::Step(step) => self.step(step),
        }
    }

    fn start_daemon(&mut self, host: Host, boot: u32) {
        let mutation = self.settings.mutation;
        let machine = &mut self.machines[host.0];
        if !machine.is_boot(boot) || machine.daemon.is_some() || machine.stopping {
            return;
        }
        let outputs = machine.start_daemon(self.now, mutation);
        self.trace.detail(self.now, || format!("{host}: the daemon starts"));
        self.perform(host, outputs);
    }

    fn deliver(&mut self, peer: Peer, input: Input) {
        let machine = &mut self.machines[peer.host.0];
        if let Some(outputs) = machine.deliver(self.now, peer, input) {
            self.perform(peer.host, outputs);
        }
    }

    /// Does what a daemon wants done.
    fn perform(&mut self, host: Host, outputs: Vec<Output>) {
        let Some(peer) = self.machines[host.0].daemon.as_ref().map(|daemon| daemon.peer()) else { return };
        let boot = self.machines[host.0].boot;
        for output in outputs {
            match output {
                Output::Call(call, request) => {
                    self.trace.detail(self.now, || format!("{host} → hub: {}", brief(&request)));
                    let arrives = self.now + self.hop();
                    self.queue.push(arrives, Event::Call(peer, call, request));
                    let late = self.now + self.machines[host.0].clock.takes(CALL_TIMEOUT);
                    self.queue.push(late, Event::Local(peer, Input::Answer(call, Err(Failure::Late))));
                }
                Output::Unwatch(stream) => self.hub.unwatch(stream),
                Output::After(delay, timer) => {
                    let at = self.now + self.machines[host.0].clock.takes(delay);
                    self.queue.push(at, Event::Local(peer, Input::Timer(timer)));
                }
                Output::Systemd(ask) => {
                    let takes = match ask {
                        Ask::Load(_) | Ask::Unload(_) => {
                            self.delay(Duration::from_millis(20), Duration::from_millis(150))
                        }
                        _ => self.delay(Duration::from_millis(2), Duration::from_millis(10)),
                    };
                    self.queue.push(self.now + takes, Event::Ask(peer, boot, ask));
                }
                Output::Remember(schedule) => {
                    // It is written at leisure.
                    let takes = self.delay(Duration::from_millis(5), Duration::from_millis(500));
                    self.queue.push(self.now + takes, Event::Remember(host, boot, schedule));
                }
                Output::NoteFence(note) => self.machines[host.0].notes.fence = note,
                Output::Arm => {
                    let takes = self.delay(Duration::from_millis(20), Duration::from_millis(100));
                    self.queue.push(self.now + takes, Event::Arm(peer, boot));
                }
                Output::Note(done) => self.machines[host.0].notes.done = done,
                Output::NoteLease(lease) => self.machines[host.0].notes.lease = lease,
                Output::Say(text) => self.trace.story(self.now, || format!("{host} {text}")),
                Output::End => self.machines[host.0].daemon = None,
            }
        }
    }

    /// A call arrives at the hub.
    fn call(&mut self, peer: Peer, call: u64, request: Request) {
        let machine = &mut self.machines[peer.host.0];
        if machine.link.blocks_to_hub() {
            machine.link.park(Event::Call(peer, call, request));
            return;
        }
        // What a killed daemon has sent arrives all the same; only its watches end with it.
        let alive = machine.runs(peer);
        let stream = match &request {
            Request::Watch { .. } if !alive => return,
            Request::Watch { stream, .. } => Some(*stream),
            _ => None,
        };
        let answer = if self.hub.up { self.hub.serve(self.now, request) } else { Err(Failure::Away) };
        let input = Input::Answer(call, answer);
        let Some(stream) = stream else {
            let arrives = self.now + self.hop();
            self.queue.push(arrives, Event::FromHub(peer, input));
            return;
        };
        // A watch's answer comes in its stream, in front of its changes.
        self.tell(peer, input);
        if let Some(events) = self.hub.missed(stream) {
            self.tell(peer, Input::Changes(stream, Some(events)));
        }
    }

    /// Sends in order with everything else that is sent so.
    fn tell(&mut self, peer: Peer, input: Input) {
        let arrives = self.now + self.hop();
        let arrives = self.machines[peer.host.0].link.in_order(arrives);
        self.queue.push(arrives, Event::FromHub(peer, input));
    }

    fn break_streams(&mut self, streams: Vec<StreamId>) {
        for stream in streams {
            let at = self.now + self.hop();
            self.queue.push(at, Event::Local(stream.peer, Input::Changes(stream, None)));
        }
    }

    /// Takes what is new in the hub to the rules and to those who watch.
    fn spread(&mut self) {
        let (batches, told) = self.hub.news();
        for batch in &batches {
            self.rules.batch(self.now, batch, &mut self.trace);
        }
        for (stream, events) in told {
            let twice = self.duplicates || (self.settings.noise && self.rng.chance(20));
            if twice {
                self.tell(stream.peer, Input::Changes(stream, Some(events.clone())));
            }
            self.tell(stream.peer, Input::Changes(stream, Some(events)));
        }
        let next = self.hub.next_deadline().filter(|_| self.hub.up);
        if let Some(next) = next
            && self.lapse.is_none_or(|at| next < at)
        {
            self.lapse = Some(next);
            self.queue.push(next, Event::Lapse);
        }
    }

    /// systemd gets what a daemon asked for.
    fn ask(&mut self, peer: Peer, boot: u32, ask: Ask) {
        let host = peer.host;
        // Files are the daemon's own doing; what systemd was asked for it does even if the daemon is gone by then.
        let own = matches!(ask, Ask::Load(_) | Ask::Unload(_));
        if !self.machines[host.0].is_boot(boot) || (own && !self.machines[host.0].runs(peer)) {
            return;
        }
        let said = match ask {
            Ask::Load(units) => {
                for (unit, file) in &units {
                    self.rules.loads(self.now, &self.machines[host.0], unit);
                    self.machines[host.0].systemd.load(unit, file);
                }
                Said::Loaded(units.into_iter().map(|(unit, file)| (unit, Ok(file))).collect())
            }
            Ask::Unload(units) => {
                for unit in &units {
                    self.rules.unloads(self.now, &self.machines[host.0], unit);
                    self.machines[host.0].systemd.unload(unit);
                }
                Said::Unloaded(units)
            }
            Ask::Start(unit, launch) => {
                self.rules.starts(self.now, &self.machines[host.0], unit.clone(), launch);
                let behaviour = self.behaviour(&unit);
                let started = self.machines[host.0].systemd.start(&unit, launch, behaviour);
                let outcome = started.map(|started| {
                    if let Some((changed, planned)) = started {
                        self.changed(host, &unit, changed, Some(planned));
                    }
                });
                Said::Started(unit, launch, outcome)
            }
            Ask::Stop(unit) => {
                self.rules.stops(self.now, &self.machines[host.0], &unit);
                if let Some((changed, planned)) = self.machines[host.0].systemd.stop(&unit) {
                    self.changed(host, &unit, changed, Some(planned));
                }
                Said::Stopped(unit, Ok(()))
            }
            Ask::States(units) => {
                let systemd = &self.machines[host.0].systemd;
                Said::States(
                    units
                        .into_iter()
                        .map(|unit| {
                            let active = systemd.active(&unit).as_str().to_owned();
                            (unit, active)
                        })
                        .collect(),
                )
            }
        };
        let at = self.now + Duration::from_millis(1);
        self.queue.push(at, Event::Local(peer, Input::Systemd(said)));
    }

    /// The fence's watcher looks.
    fn watch(&mut self, host: Host, boot: u32) {
        if !self.machines[host.0].is_boot(boot) || self.settings.mutation == Some(Mutation::NoFence) {
            return;
        }
        let Some((orders, again)) = self.machines[host.0].watch(self.now) else { return };
        // Its programs take their time, or it was frozen and had to be replaced.
        let again = again + self.delay(Duration::ZERO, Duration::from_millis(20));
        self.queue.push(self.now + again, Event::Watch(host, boot));
        for unit in orders.stop {
            self.rules.fences(self.now, &self.machines[host.0], &unit);
            if let Some((changed, planned)) = self.machines[host.0].systemd.stop(&unit) {
                self.trace.story(self.now, || format!("{host} the fence stops {unit}"));
                self.changed(host, &unit, changed, Some(planned));
            }
        }
        for unit in orders.kill {
            if let Some(changed) = self.machines[host.0].systemd.kill(&unit) {
                self.trace.story(self.now, || format!("{host} the fence kills {unit}"));
                self.changed(host, &unit, changed, None);
            }
        }
    }

    fn behaviour(&mut self, unit: &UnitName) -> Behaviour {
        match self.behaviours.get(unit) {
            Some(behaviour) => *behaviour,
            None if self.settings.noise => Behaviour::random(&mut self.rng),
            None => Behaviour::default(),
        }
    }

    /// A unit's state has changed: its daemon hears of it, unless the signal is lost.
    fn changed(&mut self, host: Host, unit: &UnitName, changed: Changed, next: Option<Planned>) {
        let active = changed.active.as_str();
        self.trace.story(self.now, || format!("{host} {unit} {active}"));
        self.rules.ran(self.now, unit, &self.machines);
        let boot = self.machines[host.0].boot;
        if let Some(planned) = next {
            self.queue.push(self.now + planned.after, Event::Planned(host, boot, planned));
        }
        let Some(peer) = self.machines[host.0].daemon.as_ref().map(|daemon| daemon.peer()) else { return };
        let said = Said::State(unit.clone(), active.to_owned());
        let mut words = vec![said];
        if changed.job {
            words.push(Said::JobEnded(unit.clone()));
        }
        // D-Bus keeps the order.
        let at = self.now + Duration::from_millis(1);
        for said in words {
            if !(self.settings.noise && self.rng.chance(5)) {
                self.queue.push(at, Event::Local(peer, Input::Systemd(said)));
            }
        }
    }
}

/// A call in a few words.
fn brief(request: &Request) -> String {
    match request {
        Request::Commit { guards, writes } => format!("commit {guards:?} {}", writes_brief(writes)),
        other => format!("{other:?}"),
    }
}

fn writes_brief(writes: &[crate::message::Write]) -> String {
    let one = |write: &crate::message::Write| match write {
        crate::message::Write::Put { key, .. } => format!("put {key}"),
        crate::message::Write::Delete(key) => format!("delete {key}"),
    };
    writes.iter().map(one).collect::<Vec<_>>().join(", ")
}
