//! Leading: the hub's changes go to `core::engine`, its effects come back as transactions, as in `muster`.
//!
//! No decision is made here. Invariant: the engine is told of everything that it wrote itself before it decides
//! again, so that what it knows is what the hub has.

use super::super::{CALL_TIMEOUT, LEASE_TTL, Mutation, Purpose, follow};
use crate::{
    message::{Answer, Context, Failure, Guard, Request, Timer, Write},
    time::Time,
    world::Machine,
};
use model::{LeaseId, MachineId, Revision, ScheduleRecord, Timestamp, UnitName, keys};
use muster_core::{
    cluster::Delta,
    engine::{self, Effect, Event, Notice, Removal},
};
use mvcc::{EventKind, KeyValue};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Writes in one transaction, as in `muster`.
const CHUNK: usize = 100;
/// Why leading ended when the hub cannot be reached.
pub const AWAY: &str = "the hub is away";
const DEPOSED: &str = "another machine leads";
const STALE: &str = "another machine leads, or a lost machine is back";

/// One term.
#[derive(Debug)]
pub struct Lead {
    /// Since when.
    pub term: Revision,
    mutation: Option<Mutation>,
    engine: engine::Engine,
    /// Keys that the engine knows, and when they were written.
    seen: BTreeMap<String, Revision>,
    leases: BTreeMap<MachineId, LeaseId>,
    /// Up to where the hub was followed, and what was written last.
    view: Revision,
    written: Revision,
    /// The number of the last wait for the engine's own writes to come back.
    echo: u32,
    waiting: bool,
    news: Vec<Delta>,
    /// Units that the news are about.
    changed: BTreeSet<UnitName>,
    ticked: bool,
    /// Which of the engine's timers counts.
    timer: u32,
    queue: VecDeque<Event>,
    writes: VecDeque<(String, Option<Vec<u8>>)>,
    /// Machines that the writes take for lost.
    lost: BTreeSet<MachineId>,
    writing: bool,
    probe: bool,
    /// Machines whose leases are being asked for how long they have, and those that turned out late.
    asking: BTreeSet<MachineId>,
    overdue: BTreeSet<MachineId>,
}

type Going = Result<(), &'static str>;

impl Lead {
    pub fn new(term: Revision, believe: Time, mutation: Option<Mutation>) -> Self {
        Self {
            term,
            mutation,
            engine: engine::Engine::new(term, stamp(believe)),
            seen: BTreeMap::new(),
            leases: BTreeMap::new(),
            view: Revision(0),
            written: Revision(0),
            echo: 0,
            waiting: false,
            news: Vec::new(),
            changed: BTreeSet::new(),
            ticked: false,
            timer: 0,
            queue: VecDeque::new(),
            writes: VecDeque::new(),
            lost: BTreeSet::new(),
            writing: false,
            probe: false,
            asking: BTreeSet::new(),
            overdue: BTreeSet::new(),
        }
    }

    /// Takes in what came, and goes on as far as it can. An error says why leading is over.
    pub fn act(&mut self, inbox: &mut VecDeque<follow::Delta>, ctx: &mut Context<'_>) -> Going {
        while let Some(delta) = inbox.pop_front() {
            self.hear(delta)?;
        }
        loop {
            if self.writing || !self.asking.is_empty() {
                return Ok(());
            }
            if !self.writes.is_empty() {
                self.write(ctx);
            } else if std::mem::take(&mut self.probe) {
                self.ask(ctx);
            } else if let Some(event) = self.queue.pop_front() {
                self.step(event, ctx);
            } else if self.view < self.written {
                if !std::mem::replace(&mut self.waiting, true) {
                    self.echo += 1;
                    ctx.after(CALL_TIMEOUT, Timer::Echo(self.echo));
                }
                return Ok(());
            } else {
                self.waiting = false;
                if !self.news.is_empty() {
                    self.changed.clear();
                    self.queue.push_back(Event::Hub(std::mem::take(&mut self.news)));
                }
                if std::mem::take(&mut self.ticked) {
                    self.queue.push_back(Event::Tick);
                }
                if self.queue.is_empty() {
                    return Ok(());
                }
            }
        }
    }

    /// The engine's timer, if it is the last that was set.
    pub fn tick(&mut self, number: u32) -> Going {
        self.ticked |= self.timer == number;
        Ok(())
    }

    /// The engine's own writes should have come back by now.
    pub fn echo_late(&mut self, number: u32) -> Going {
        if self.waiting && self.echo == number { Err(AWAY) } else { Ok(()) }
    }

    /// A machine's lease has so long.
    pub fn time_left(
        &mut self,
        term: Revision,
        machine: &MachineId,
        answer: Result<Answer, Failure>,
    ) -> Going {
        if self.term != term || !self.asking.remove(machine) {
            return Ok(());
        }
        // A hub that cannot be asked will not take a schedule either.
        if let Ok(Answer::Left(time)) = answer
            && time < LEASE_TTL / 2
        {
            self.overdue.insert(machine.clone());
        }
        if self.asking.is_empty() {
            self.queue.push_front(Event::Overdue(std::mem::take(&mut self.overdue)));
        }
        Ok(())
    }

    /// A transaction was made, or not.
    pub fn committed(&mut self, term: Revision, answer: Result<Answer, Failure>) -> Going {
        if self.term != term {
            return Ok(());
        }
        self.writing = false;
        match answer {
            Ok(Answer::Committed { yes: true, revision }) => {
                self.written = revision;
                Ok(())
            }
            Ok(_) => Err(STALE),
            Err(_) => Err(AWAY),
        }
    }

    fn hear(&mut self, delta: follow::Delta) -> Going {
        match delta {
            follow::Delta::Lost => Err(AWAY),
            follow::Delta::Reset(revision, items) => {
                let mut gone = std::mem::take(&mut self.seen);
                for kv in &items {
                    let Some(key) = text(&kv.key) else { continue };
                    let at = Revision(kv.mod_revision.0);
                    if gone.remove(&key) == Some(at) {
                        self.seen.insert(key, at);
                    } else {
                        self.put(key, kv)?;
                    }
                }
                for key in gone.into_keys() {
                    self.delete(&key)?;
                }
                self.view = revision;
                if self.seen.contains_key(keys::LEADER) { Ok(()) } else { Err(DEPOSED) }
            }
            follow::Delta::Changes(events) => {
                for event in &events {
                    let Some(key) = text(&event.kv.key) else { continue };
                    match event.kind {
                        EventKind::Put => self.put(key, &event.kv)?,
                        EventKind::Delete => self.delete(&key)?,
                    }
                    self.view = self.view.max(Revision(event.kv.mod_revision.0));
                }
                Ok(())
            }
        }
    }

    fn put(&mut self, key: String, kv: &KeyValue) -> Going {
        let at = Revision(kv.mod_revision.0);
        if key == keys::LEADER && at != self.term {
            return Err(DEPOSED);
        }
        // A file that changes twice in one batch is read again.
        let same =
            |unit: &UnitName, hash: &str| !self.changed.contains(unit) && self.engine.has_file(unit, hash);
        // What cannot be read concerns its own entry only.
        if let Ok(Some(delta)) = Delta::read(&key, Some(&kv.value), at, same) {
            if let Delta::Machine(id, Some(_)) = &delta {
                self.leases.insert(id.clone(), LeaseId(kv.lease.0));
            }
            if let Delta::Unit(unit, _) = &delta {
                self.changed.insert(unit.clone());
            }
            self.news.extend(mutated(delta, self.mutation));
        }
        self.seen.insert(key, at);
        Ok(())
    }

    fn delete(&mut self, key: &str) -> Going {
        if key == keys::LEADER {
            return Err("the leadership ended");
        }
        self.seen.remove(key);
        if let Ok(Some(delta)) = Delta::read(key, None, Revision(0), |_, _| false) {
            self.news.extend(mutated(delta, self.mutation));
        }
        Ok(())
    }

    fn step(&mut self, event: Event, ctx: &mut Context<'_>) {
        let mut effects = Vec::new();
        self.engine.step(stamp(ctx.now), event, &mut effects);
        // A key may come up twice: what was wanted last counts.
        let mut writes: Vec<(String, Option<Vec<u8>>)> = Vec::new();
        let mut write =
            |key: String, value: Option<Vec<u8>>| match writes.iter_mut().find(|(known, _)| *known == key) {
                Some(known) => known.1 = value,
                None => writes.push((key, value)),
            };
        for effect in effects {
            match effect {
                Effect::Schedule(placement) => {
                    let (unit, machine) = (&placement.unit, &placement.machine);
                    let value = render(&placement.record);
                    if self.mutation == Some(Mutation::SchedulesTwice)
                        && let Some(other) = self.leases.keys().find(|id| *id != machine)
                    {
                        write(keys::schedule(other, unit), Some(value.clone()));
                    }
                    write(keys::schedule(machine, unit), Some(value));
                }
                Effect::Unschedule { unit, machine, why } => {
                    if why == Removal::MachineLost {
                        self.lost.insert(machine.clone());
                    }
                    ctx.say(format!("takes {unit} off {}: {why}", Machine::name_of(&machine)));
                    write(keys::schedule(&machine, &unit), None);
                }
                Effect::Forget(unit) => write(keys::move_order(&unit), None),
                Effect::ForgetMachine(machine) => {
                    write(keys::maintenance(&machine), None);
                    write(keys::metadata(&machine), None);
                }
                Effect::Probe => self.probe = true,
                Effect::SetTimer(at) => {
                    self.timer += 1;
                    ctx.after(at.since(stamp(ctx.now)), Timer::Engine(self.timer));
                }
                Effect::Tell(notice) => tell(&notice, ctx),
            }
        }
        self.writes.extend(writes);
    }

    fn write(&mut self, ctx: &mut Context<'_>) {
        let chunk: Vec<_> = self.writes.drain(..self.writes.len().min(CHUNK)).collect();
        let writes = chunk
            .into_iter()
            .map(|(key, value)| match value {
                Some(value) => Write::Put { key, value: value.into(), lease: None },
                None => Write::Delete(key),
            })
            .collect();
        let mut guards = vec![Guard::Unchanged(keys::LEADER.to_owned(), self.term)];
        // What this engine follows may have fallen silent: whoever is back keeps its units.
        guards.extend(self.lost.iter().map(|machine| Guard::Absent(keys::machine(machine))));
        if self.writes.is_empty() {
            self.lost.clear();
        }
        if self.mutation == Some(Mutation::Unguarded) {
            guards.clear();
        }
        self.writing = true;
        ctx.call(Purpose::Schedule(self.term), Request::Commit { guards, writes });
    }

    fn ask(&mut self, ctx: &mut Context<'_>) {
        let there = |id: &&MachineId| self.seen.contains_key(&keys::machine(id));
        self.asking = self.leases.keys().filter(there).cloned().collect();
        for machine in &self.asking {
            let request = Request::TimeLeft(self.leases[machine]);
            ctx.call(Purpose::TimeLeft(self.term, machine.clone()), request);
        }
        if self.asking.is_empty() {
            self.queue.push_front(Event::Overdue(BTreeSet::new()));
        }
    }
}

fn tell(notice: &Notice, ctx: &mut Context<'_>) {
    match notice {
        Notice::Holding(machines) => {
            ctx.say(format!("holds still: {} machines are gone at once", machines.len()));
        }
        Notice::Released => ctx.say("holds no longer"),
        Notice::Stuck { unit, .. } => ctx.say(format!("says that {unit} cannot leave its machine")),
        Notice::Waiting { unit } => ctx.say(format!("says that no machine fits {unit}")),
        Notice::MoveRefused { unit, why, .. } => ctx.say(format!("does not move {unit}: {why}")),
        Notice::MachineJoined(_) | Notice::MachineLost(_) => {}
    }
}

/// What the clock shows, as the engine counts.
fn stamp(now: Time) -> Timestamp {
    Timestamp(u64::try_from(now.0.as_millis()).unwrap_or(u64::MAX))
}

fn text(key: &[u8]) -> Option<String> {
    std::str::from_utf8(key).ok().map(str::to_owned)
}

fn render(record: &ScheduleRecord) -> Vec<u8> {
    serde_json::to_vec(record).expect("records always render")
}

/// What the engine is told instead of the truth.
fn mutated(delta: Delta, mutation: Option<Mutation>) -> Vec<Delta> {
    match (mutation, &delta) {
        (Some(Mutation::BlindToLoss), Delta::Machine(_, None)) => Vec::new(),
        (Some(Mutation::NeverHolds), Delta::Machine(..)) => {
            let mut deltas = vec![delta];
            // So many machines are there, to which nothing may come, that those which go are never most of them.
            for number in 0..20 {
                let id: MachineId = format!("{number:032x}").parse().expect("32 hexadecimal digits");
                let record = model::MachineRecord::new("none".into(), [10, 0, 0, 0].into(), "sim".into());
                let cordon = serde_json::from_str(r#"{"v":1,"state":"cordoned","since":0}"#).expect("valid");
                deltas.push(Delta::Maintenance(id.clone(), Some(cordon)));
                deltas.push(Delta::Machine(id, Some(record)));
            }
            deltas
        }
        _ => vec![delta],
    }
}
