//! What is between apps, daemons, the hub and clients, and when things happen.
//!
//! Invariant: the same settings and the same steps give the same run, to the last event.

/// Apps.
mod apps;
/// Clients.
mod clients;
/// Faults.
mod steps;

use super::{
    agent::{Agent, Out, Tag, Timer, Topic, Unit},
    router::Attempt,
    rules::{History, Rule, Violation, Watched, missing},
    scenario::Step,
};
use crate::{
    hub::Hub,
    message::{Answer, Failure, Host, Request},
    queue::Queue,
    rng::Rng,
    time::{Clock, Time},
    trace::{Level, Trace},
};
use model::{LeaseId, MachineId, Timestamp, UnitName};
use muster_core::{
    balance::{Outcome, Place},
    registrar::{Activity, Found, Id},
};
use mvcc::Batch;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};
use unit::Registration;

const MS: fn(u64) -> Duration = Duration::from_millis;
/// A broken connection is noticed within so long.
const NOTICED: Duration = Duration::from_secs(8);
/// An app that does not stop is killed.
const PATIENCE: Duration = Duration::from_secs(9);

/// A deliberate mistake, to prove that a rule can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// A router's list does not say who drains.
    RoutesToDraining,
    /// A router takes those that are out off its list.
    DropsEjected,
    /// A request is tried again whatever the budget says.
    IgnoresTheBudget,
    /// A router says that it serves what it has not heard of.
    AcknowledgesEarly,
    /// A router believes whatever it hears.
    BelievesMassLoss,
    /// A registrar takes every check for passed.
    BelievesInHealth,
    /// What was written under a lease that is over is not written again.
    ForgetsTheLease,
}

/// An app's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    Dead,
    Up {
        ready: Time,
    },
    /// It has got SIGTERM: it listens no more.
    Ending,
}

pub(super) struct App {
    pub(super) unit: UnitName,
    pub(super) service: model::ServiceName,
    pub(super) instance: String,
    pub(super) address: Ipv4Addr,
    registrations: Arc<[Registration]>,
    run: u64,
    process: Process,
    /// It is sick from then on, until then.
    sick: (Time, Time),
    activity: Activity,
    inflight: BTreeSet<u64>,
    /// When its stop began, by its daemon's own time, in which run of the daemon, and whether it was in service.
    stops: Option<(Duration, u32, bool)>,
}

impl App {
    fn listens(&self, now: Time) -> bool {
        matches!(self.process, Process::Up { ready } if ready <= now)
    }

    fn is_sick(&self, now: Time) -> bool {
        now < self.sick.1
    }

    fn sicken(&mut self, now: Time, until: Time) {
        let since = if self.is_sick(now) { self.sick.0 } else { now };
        self.sick = (since, until);
    }

    pub(super) fn is_well(&self, now: Time) -> bool {
        self.listens(now) && !self.is_sick(now) && self.activity == Activity::Active
    }
}

pub(super) struct Machine {
    pub(super) host: Host,
    pub(super) id: MachineId,
    clock: Clock,
    skew: u64,
    powered: bool,
    pub(super) agent: Option<Agent>,
    runs: u32,
    frozen: bool,
    parked: Vec<Event>,
    cut: bool,
    lease: Option<LeaseId>,
    pub(super) apps: Vec<App>,
    watched: Watched,
    period: Duration,
}

impl Machine {
    pub(super) fn is_well(&self) -> bool {
        self.powered && self.agent.is_some() && !self.frozen && !self.cut
    }
}

/// What reaches a daemon.
#[derive(Debug, Clone)]
enum Input {
    Answer(Tag, Result<Answer, Failure>),
    Changes(Topic, u32, Arc<Batch>),
    Lost(Topic, u32),
    Timer(Timer),
    Found(UnitName, Result<Found, String>),
    Checked(Id, u64, Result<(), String>),
    Unit(usize),
    Drain(usize),
}

#[derive(Debug, Clone)]
enum Event {
    Call(Host, u32, Tag, Request),
    Agent(Host, u32, Input),
    Daemon(Host),
    /// A client asks a machine's router.
    Ask(Host),
    /// A router's check of what could not be reached.
    Look(Host),
    Try(Host, u32, Attempt),
    Ended(u64, Outcome),
    /// What was refused a connection is told so.
    Refused(Host, u32, Attempt, Place),
    /// An app comes up, if it is still that run.
    Start(Host, usize, u64),
    /// An app has ended, or is killed.
    Exit(Host, usize, u64),
    Find(Host, u32, UnitName),
    Roll,
    Lapse,
    Step(Step),
}

struct Flight {
    host: Host,
    run: u32,
    attempt: Attempt,
    place: Place,
    target: (Host, usize),
}

struct Stream {
    run: u32,
    number: u32,
    /// What is sent later arrives later.
    last: Time,
    stalled: bool,
}

pub(super) struct World {
    now: Time,
    queue: Queue<Event>,
    rng: Rng,
    hub: Hub,
    pub(super) machines: Vec<Machine>,
    pub(super) history: History,
    streams: BTreeMap<(Host, Topic), Stream>,
    numbers: u32,
    flights: BTreeMap<u64, Flight>,
    next_flight: u64,
    rolling: Vec<(Host, usize)>,
    lapse: Option<Time>,
    violation: Option<Violation>,
    /// When something was last done to machines, daemons or the hub.
    disturbed: Time,
    planted: Option<Planted>,
    pub(super) trace: Trace,
    pub(super) events: u64,
    pub(super) requests: u64,
    calm: bool,
}

impl World {
    pub(super) fn new(
        machines: usize,
        copies: &[usize],
        seed: u64,
        planted: Option<Planted>,
        level: Level,
    ) -> Self {
        let mut rng = Rng::new(seed);
        let mut world = Self {
            now: Time::default(),
            queue: Queue::default(),
            hub: Hub::default(),
            machines: Vec::new(),
            history: History::default(),
            streams: BTreeMap::new(),
            numbers: 0,
            flights: BTreeMap::new(),
            next_flight: 0,
            rolling: Vec::new(),
            lapse: None,
            violation: None,
            disturbed: Time::default(),
            planted,
            trace: Trace::new(level),
            events: 0,
            requests: 0,
            calm: false,
            rng: rng.fork(),
        };
        for index in 0..machines {
            let clock = Clock {
                offset: rng.span(Duration::ZERO, Duration::from_secs(1000)),
                drift: i32::try_from(rng.below(100_000)).unwrap_or(0) - 50_000,
            };
            world.machines.push(Machine {
                host: Host(index),
                id: format!("{:032x}", index + 1).parse().expect("32 digits"),
                clock,
                // Wall clocks are hours apart.
                skew: rng.below(10_000_000) as u64,
                powered: true,
                agent: None,
                runs: 0,
                frozen: false,
                parked: Vec::new(),
                cut: false,
                lease: None,
                apps: Vec::new(),
                watched: Watched::default(),
                // Some have much to do.
                period: if rng.chance(150) { MS(25) } else { rng.span(MS(150), MS(600)) },
            });
            world.queue.push(Time(MS(10 * index as u64)), Event::Daemon(Host(index)));
            world.queue.push(Time(MS(500)), Event::Ask(Host(index)));
            world.queue.push(Time(MS(500)), Event::Look(Host(index)));
        }
        let mut count = 0;
        for (service, copies) in copies.iter().enumerate() {
            for copy in 1..=*copies {
                let name = ["web", "api", "rpc"][service % 3];
                let unit: UnitName = format!("{name}@{copy}.service").parse().expect("a name");
                let drain = *rng.pick(&[2, 4]);
                let text = format!("[Service]\nExecStart=/a\n[X-Service]\nPort=80\nDrain={drain}s\n");
                let registrations = unit::check(&unit, &text).expect("valid").registrations.into();
                let host = Host(count % machines);
                count += 1;
                let index = world.machines[host.0].apps.len();
                world.machines[host.0].apps.push(App {
                    service: name.parse().expect("a name"),
                    instance: format!("{name}@{copy}"),
                    unit,
                    registrations,
                    address: Ipv4Addr::UNSPECIFIED,
                    run: 0,
                    process: Process::Dead,
                    sick: Default::default(),
                    activity: Activity::Inactive,
                    inflight: BTreeSet::new(),
                    stops: None,
                });
                let at = rng.span(MS(100), MS(3000));
                world.queue.push(Time(at), Event::Start(host, index, 0));
            }
        }
        world
    }

    pub(super) fn now(&self) -> Time {
        self.now
    }

    pub(super) fn plan(&mut self, at: Time, step: Step) {
        self.queue.push(at, Event::Step(step));
    }

    pub(super) fn run_until(&mut self, end: Time) -> Result<(), Violation> {
        while let Some((at, event)) = self.queue.pop_until(end) {
            self.now = at;
            self.events += 1;
            self.happen(event);
            if let Some(violation) = self.violation.take() {
                return Err(violation);
            }
        }
        self.now = self.now.max(end);
        Ok(())
    }

    /// Nothing goes wrong any more; goes on until everything is as it should be.
    pub(super) fn settle(&mut self, limit: Duration) -> Result<(), Violation> {
        self.calm = true;
        let end = self.now + limit;
        loop {
            let missing = missing(self);
            if missing.is_empty() {
                return Ok(());
            }
            if self.now >= end {
                return Err(Violation { at: self.now, rule: Rule::ComesToRest, what: missing.join("; ") });
            }
            self.run_until(self.now + MS(500))?;
        }
    }

    fn broken(&mut self, rule: Rule, what: String) {
        self.violation.get_or_insert(Violation { at: self.now, rule, what });
    }

    fn delay(&mut self, least: u64, most: u64) -> Duration {
        if !self.calm && self.rng.chance(10) {
            return self.rng.span(MS(most), MS(most * 20));
        }
        self.rng.span(MS(least), MS(most))
    }

    fn local(&self, host: Host) -> Duration {
        self.machines[host.0].clock.shows(self.now).0
    }

    fn wall(&self, host: Host) -> Timestamp {
        let shown = self.local(host).as_millis() as u64;
        Timestamp(shown + self.machines[host.0].skew)
    }

    fn say(&mut self, host: Host, text: impl FnOnce() -> String) {
        self.trace.story(self.now, || format!("{host} {}", text()));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Call(host, run, tag, request) => self.call(host, run, tag, request),
            Event::Agent(host, run, input) => self.agent(host, run, input),
            Event::Daemon(host) => self.daemon(host),
            Event::Ask(host) => self.ask(host),
            Event::Look(host) => self.look_at_suspects(host),
            Event::Try(host, run, attempt) => self.attempt(host, run, attempt),
            Event::Ended(flight, outcome) => self.ended(flight, outcome),
            Event::Refused(host, run, attempt, place) => {
                self.settle_attempt(host, run, attempt, place, Outcome::Unreachable, false);
            }
            Event::Start(host, app, run) => self.start(host, app, run),
            Event::Exit(host, app, run) => {
                if self.machines[host.0].apps[app].run == run {
                    self.exit(host, app, true);
                }
            }
            Event::Find(host, run, unit) => self.find(host, run, unit),
            Event::Roll => self.roll(),
            Event::Lapse => {
                self.lapse = None;
                self.hub.expire(self.now);
                self.spread(true);
            }
            Event::Step(step) => self.step(step),
        }
        if let Some(at) = self.hub.next_deadline().filter(|_| self.hub.up)
            && self.lapse.is_none_or(|set| at < set || set < self.now)
        {
            self.lapse = Some(at.max(self.now));
            self.queue.push(at.max(self.now), Event::Lapse);
        }
    }

    fn call(&mut self, host: Host, run: u32, tag: Tag, request: Request) {
        let machine = &self.machines[host.0];
        if !machine.powered {
            return;
        }
        if machine.cut {
            let late = self.now + Duration::from_secs(2);
            self.queue.push(late, Event::Agent(host, run, Input::Answer(tag, Err(Failure::Late))));
            return;
        }
        let answer = if self.hub.up { self.hub.serve(self.now, request) } else { Err(Failure::Away) };
        let back = self.delay(1, 20);
        let mut arrives = self.now + back;
        if let (Tag::Follow(topic), Ok(_)) = (&tag, &answer) {
            // The watch begins where the list was true, and what it carries comes behind the list.
            self.numbers += 1;
            arrives = arrives.max(self.streams.get(&(host, *topic)).map_or(arrives, |old| old.last));
            let stream = Stream { run, number: self.numbers, last: arrives, stalled: false };
            self.streams.insert((host, *topic), stream);
        }
        self.queue.push(arrives, Event::Agent(host, run, Input::Answer(tag, answer)));
        self.spread(false);
    }

    /// Tells everybody what is new.
    fn spread(&mut self, by_lease: bool) {
        let (batches, _) = self.hub.news();
        for batch in batches {
            self.history.note(&batch, by_lease);
            if by_lease {
                self.trace.story(self.now, || {
                    format!("hub: {} keys are gone with their lease", batch.events.len())
                });
            }
            let mut sent = Vec::new();
            for ((host, topic), stream) in self.streams.iter().filter(|(_, stream)| !stream.stalled) {
                let wanted = |e: &mvcc::Event| e.kv.key.starts_with(topic.prefix().as_bytes());
                if batch.events.iter().any(wanted) && !self.machines[host.0].cut {
                    sent.push((*host, *topic, stream.run, stream.number));
                }
            }
            for (host, topic, run, number) in sent {
                let hop = self.delay(1, 15);
                let twice = !self.calm && self.rng.chance(20);
                let Some(stream) = self.streams.get_mut(&(host, topic)) else { continue };
                stream.last = stream.last.max(self.now + hop);
                let input = Input::Changes(topic, number, Arc::clone(&batch));
                for _ in 0..1 + usize::from(twice) {
                    self.queue.push(stream.last, Event::Agent(host, run, input.clone()));
                }
            }
        }
    }

    fn break_streams(&mut self, which: impl Fn(Host) -> bool, within: Duration) {
        let gone: Vec<_> = self.streams.keys().filter(|(host, _)| which(*host)).copied().collect();
        for (host, topic) in gone {
            if let Some(stream) = self.streams.remove(&(host, topic)) {
                let at = self.now + self.rng.span(MS(1), within.max(MS(2)));
                self.queue.push(at, Event::Agent(host, stream.run, Input::Lost(topic, stream.number)));
            }
        }
    }

    fn daemon(&mut self, host: Host) {
        let (now, planted) = (self.local(host), self.planted);
        let machine = &mut self.machines[host.0];
        if !machine.powered || machine.agent.is_some() {
            return;
        }
        machine.runs += 1;
        let mut agent = Agent::new(machine.runs, machine.id.clone(), host.to_string(), now, planted);
        let mut out = Vec::new();
        agent.start(machine.lease, &mut out);
        machine.agent = Some(agent);
        machine.watched = Watched::default();
        self.say(host, || "the daemon starts".to_owned());
        self.perform(host, out);
        for app in 0..self.machines[host.0].apps.len() {
            self.tell_unit(host, app);
        }
    }

    fn agent(&mut self, host: Host, run: u32, input: Input) {
        let (now, at) = (self.local(host), self.wall(host));
        let machine = &mut self.machines[host.0];
        if machine.agent.as_ref().is_none_or(|agent| agent.run != run) {
            return;
        }
        if machine.frozen {
            machine.parked.push(Event::Agent(host, run, input));
            return;
        }
        let units = |app: &App| Unit {
            unit: app.unit.clone(),
            registrations: app.registrations.clone(),
            activity: app.activity,
        };
        let Some(agent) = &mut machine.agent else { return };
        let mut out = Vec::new();
        let looks = match input {
            Input::Answer(tag, answer) => {
                // A list that was overtaken by the end of its stream is as good as none.
                let ended = matches!((&tag, &answer), (Tag::Follow(topic), Ok(_)) if self.streams.get(&(host, *topic)).is_none_or(|s| s.run != run));
                let looks = matches!(tag, Tag::Follow(Topic::Services) | Tag::Ask(_));
                let answer = if ended { Err(Failure::Away) } else { answer };
                agent.answer(now, at, tag, answer, &mut out);
                looks
            }
            Input::Changes(topic, number, batch) => {
                if self.streams.get(&(host, topic)).is_some_and(|stream| stream.number == number) {
                    agent.changes(now, topic, &batch, &mut out);
                }
                topic == Topic::Services
            }
            Input::Lost(topic, number) => {
                if self.streams.get(&(host, topic)).is_none_or(|stream| stream.number == number) {
                    agent.lost(now, topic, &mut out);
                }
                false
            }
            Input::Timer(timer) => {
                agent.timer(now, timer, &mut out);
                timer == Timer::Tick
            }
            Input::Found(unit, found) => {
                agent.found(now, unit, found, &mut out);
                false
            }
            Input::Checked(id, generation, outcome) => {
                agent.checked(now, id, generation, outcome, &mut out);
                false
            }
            Input::Drain(app) => {
                let one = &mut machine.apps[app];
                let view = self.history.latest().services.get(&one.service);
                let there = view.and_then(|view| view.instances.get(&one.instance)?.endpoint).is_some();
                // A daemon that has only just begun may not know yet what an earlier one has registered.
                let id = (one.service.clone(), one.instance.clone());
                let ours = agent.registrar.records().1.get(&id).is_some_and(|record| record.upstream);
                one.stops = Some((agent.own(now), run, there && ours));
                agent.drain(now, one.unit.clone(), &mut out);
                false
            }
            Input::Unit(app) => {
                let unit = units(&machine.apps[app]);
                agent.systemd(now, at, vec![unit], &mut out);
                false
            }
        };
        if looks {
            self.look(host);
        }
        self.perform(host, out);
    }

    fn look(&mut self, host: Host) {
        let now = self.local(host);
        let machine = &mut self.machines[host.0];
        let Some(agent) = &machine.agent else { return };
        let away = !self.streams.contains_key(&(host, Topic::Services));
        let broken = machine.watched.look(agent.own(now), away, &agent.router, &self.history);
        let reloads = &agent.router.reloads;
        let hasty = reloads.windows(2).find(|pair| pair[1] - pair[0] < MS(500)).map(|pair| pair[1] - pair[0]);
        if let Some((rule, what)) = broken {
            self.broken(rule, format!("{host}: {what}"));
        } else if let Some(apart) = hasty {
            self.broken(Rule::FilesFollow, format!("{host}: two reloads are {apart:?} apart"));
        }
    }

    fn perform(&mut self, host: Host, outs: Vec<Out>) {
        let Some(run) = self.machines[host.0].agent.as_ref().map(|agent| agent.run) else { return };
        for out in outs {
            match out {
                Out::Call(tag, request) => {
                    let hop = self.delay(1, 20);
                    self.queue.push(self.now + hop, Event::Call(host, run, tag, request));
                }
                Out::After(pause, timer) => {
                    // Timers are late rather than early: clocks do not agree to the last digit.
                    let at = self.now + self.machines[host.0].clock.takes(pause) + MS(1);
                    self.queue.push(at, Event::Agent(host, run, Input::Timer(timer)));
                }
                Out::Find(unit) => {
                    let takes = self.delay(2, 30);
                    self.queue.push(self.now + takes, Event::Find(host, run, unit));
                }
                Out::Check(id, generation, address, timeout) => {
                    let machine = &self.machines[host.0];
                    let app = machine.apps.iter().find(|app| (&app.service, &app.instance) == (&id.0, &id.1));
                    let listens = app.is_some_and(|app| app.address == address && app.listens(self.now));
                    let sick = app.is_some_and(|app| app.is_sick(self.now));
                    let (takes, outcome) = match (listens, sick) {
                        (true, false) => (self.rng.span(MS(1), MS(20)), Ok(())),
                        (true, true) => (timeout, Err("no answer".to_owned())),
                        (false, _) => (MS(1), Err("refused".to_owned())),
                    };
                    let input = Input::Checked(id, generation, outcome);
                    self.queue.push(self.now + takes, Event::Agent(host, run, input));
                }
                Out::Drained(unit) => self.drained(host, &unit),
                Out::NoteLease(lease) => self.machines[host.0].lease = Some(lease),
                Out::Say(text) => self.say(host, || text),
            }
        }
    }
}
