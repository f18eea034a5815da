//! A machine's daemon: `muster agent` without sockets. Each part is a state machine; an input goes to the part it
//! concerns, then every part acts on what it knows.
//!
//! Not here: any decision about units, which are `core`'s. Invariant: a daemon knows the world by its inputs only,
//! and changes it by its outputs only.

mod engine;
mod follow;
mod records;
mod session;
mod units;

use crate::{
    message::{Context, Failure, File, Input, Note, Output, Peer, Request, Schedule, Timer, Topic},
    time::Time,
};
use engine::Engine;
use follow::Follow;
use model::{LeaseId, MachineId, MachineRecord, Revision, UnitName, keys};
use muster_core::agent::Done;
use records::{Presence, Publisher};
use session::Session;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use units::Units;

/// After how long a machine without a sign of life counts as dead, as in `muster`'s default configuration.
pub const LEASE_TTL: Duration = Duration::from_secs(5);
/// The longest that a call may take, as in `registry`.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// For units that are stopped last, as in `muster`: until the engine has read of it and placed them.
const NOTICE: Duration = Duration::from_secs(1);

/// A deliberate mistake, to see that an invariant notices it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// The agent takes a lost hub for an empty schedule.
    ForgetsWithoutHub,
    /// The agent does not note which start orders it has carried out.
    ForgetsStarts,
    /// The engine schedules to two machines.
    SchedulesTwice,
    /// The engine writes without looking whether it still leads.
    Unguarded,
    /// The engine does not hold still when most machines are gone.
    NeverHolds,
    /// The machine has no watcher that stops units with `OnPartition=stop`.
    NoFence,
    /// The engine believes that lost machines are there.
    BlindToLoss,
}

/// What a call was for.
#[derive(Debug, Clone)]
pub enum Purpose {
    /// The session's lease.
    Session(session::Call),
    /// The machine's record as it is.
    PresenceRead(LeaseId),
    /// The machine's record under that lease, in place of an older lease's.
    PresenceWritten {
        /// Under which lease.
        lease: LeaseId,
        /// What it says.
        record: Box<MachineRecord>,
        /// An older lease of this machine's, which is over now.
        old: Option<LeaseId>,
    },
    /// Whatever the answer, it makes no difference.
    Nothing,
    /// What of this machine's states is in the hub.
    StatesListed(LeaseId),
    /// The machine's states.
    StatesWritten,
    /// A follower's listing.
    List(Topic, u32),
    /// A follower's watch.
    Watch(Topic, u32),
    /// Unit files, with the hashes that are wanted.
    Files(BTreeMap<UnitName, String>),
    /// A lease for the leadership.
    Leadership,
    /// The election.
    Campaign,
    /// The leadership's renewal of that number.
    Renewal(u32),
    /// The end of a leadership's lease.
    GiveBack,
    /// A machine's lease, asked by the engine.
    TimeLeft(Revision, MachineId),
    /// The engine's decisions of a term.
    Schedule(Revision),
    /// Good-bye.
    Goodbye,
}

/// What a machine keeps for its daemon's next run: in /run, which a reboot clears, but for the schedule, which is on
/// disk.
#[derive(Debug, Clone, Default)]
pub struct Notes {
    /// What was carried out.
    pub done: BTreeMap<UnitName, Done>,
    /// The files of that.
    pub files: BTreeMap<UnitName, File>,
    /// Under which lease the machine is present.
    pub lease: Option<LeaseId>,
    /// Until when units with `OnPartition=stop` may run.
    pub fence: Note,
    /// The last known schedule.
    pub schedule: Schedule,
}

/// A daemon.
#[derive(Debug)]
pub struct Daemon {
    peer: Peer,
    calls: BTreeMap<u64, Purpose>,
    next_call: u64,
    session: Session,
    presence: Presence,
    publisher: Publisher,
    schedule: Follow,
    units: Units,
    engine: Engine,
    /// Under which lease the schedule is followed.
    following: Option<LeaseId>,
    leaving: bool,
    /// Something had to stop first; the last of it has stopped; good-bye is said.
    waited: bool,
    noticed: bool,
    left: bool,
}

impl Daemon {
    /// A daemon that starts, with what an earlier run left.
    pub fn new(
        peer: Peer,
        id: MachineId,
        record: MachineRecord,
        notes: Notes,
        mutation: Option<Mutation>,
    ) -> Self {
        Self {
            peer,
            calls: BTreeMap::new(),
            next_call: 0,
            session: Session::new(LEASE_TTL, notes.lease),
            presence: Presence::new(id.clone(), record),
            publisher: Publisher::new(id.clone()),
            schedule: Follow::new(peer, Topic::Schedule, keys::schedule_of(&id)),
            units: Units::new(notes, mutation),
            engine: Engine::new(peer, id, mutation),
            following: None,
            leaving: false,
            waited: false,
            noticed: false,
            left: false,
        }
    }

    /// Which run of which machine's daemon this is.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Whether its engine believes that it leads, and since which revision.
    pub fn term(&self) -> Option<Revision> {
        self.engine.term()
    }

    /// Begins.
    pub fn start(&mut self, now: Time, marks: &mut BTreeSet<UnitName>) -> Vec<Output> {
        self.with(now, marks, |daemon, ctx| {
            daemon.session.act(ctx);
            daemon.units.start(ctx);
            daemon.engine.start(ctx);
        })
    }

    /// Takes in what reached it, and gives what it wants done.
    pub fn step(&mut self, now: Time, input: Input, marks: &mut BTreeSet<UnitName>) -> Vec<Output> {
        self.with(now, marks, |daemon, ctx| match input {
            Input::Answer(call, answer) => {
                if let Some(purpose) = ctx.calls.remove(&call) {
                    daemon.answered(purpose, answer, ctx);
                }
            }
            Input::Changes(stream, events) => daemon.follow(stream.topic).changed(stream, events, ctx),
            Input::Timer(timer) => daemon.woken(timer, ctx),
            Input::Systemd(said) => daemon.units.systemd_said(said, ctx),
            Input::Shutdown => daemon.leave(),
        })
    }

    fn with(
        &mut self,
        now: Time,
        marks: &mut BTreeSet<UnitName>,
        work: impl FnOnce(&mut Self, &mut Context<'_>),
    ) -> Vec<Output> {
        let (mut out, mut calls) = (Vec::new(), std::mem::take(&mut self.calls));
        let mut next_call = self.next_call;
        let mut ctx = Context { now, out: &mut out, calls: &mut calls, next_call: &mut next_call, marks };
        work(self, &mut ctx);
        self.act(&mut ctx);
        (self.calls, self.next_call) = (calls, next_call);
        out
    }

    fn act(&mut self, ctx: &mut Context<'_>) {
        if self.left {
            return;
        }
        // Once the hub has what stands since nothing is started any more.
        self.presence.record.leaving |=
            self.leaving && self.publisher.has_told(self.presence.admitted, &self.units.states);
        self.presence.act(self.session.lease, ctx);
        // Only a machine that is in the cluster has a share of the schedule; under a new lease all is asked anew.
        let admitted = self.presence.admitted;
        if self.following != admitted {
            self.following = admitted;
            match admitted {
                Some(_) => self.schedule.start(ctx),
                None => self.schedule.stop(ctx),
            }
        }
        while let Some(delta) = self.schedule.inbox.pop_front() {
            self.units.schedule_said(delta, admitted, ctx);
        }
        self.units.act(self.session.acknowledged, self.leaving, ctx);
        self.publisher.act(admitted, &self.units.states, ctx);
        self.engine.act(ctx);
        if self.presence.has_told_of_leaving() && !self.noticed && !self.units.fenced_alive() {
            self.noticed = true;
            ctx.after(if self.waited { NOTICE } else { Duration::ZERO }, Timer::Leave);
        }
    }

    fn follow(&mut self, topic: Topic) -> &mut Follow {
        match topic {
            Topic::Schedule => &mut self.schedule,
            Topic::Leader | Topic::Cluster => self.engine.follow(topic),
        }
    }

    fn answered(
        &mut self,
        purpose: Purpose,
        answer: Result<crate::message::Answer, Failure>,
        ctx: &mut Context<'_>,
    ) {
        match purpose {
            Purpose::Session(call) => self.session.answered(call, answer, ctx),
            Purpose::PresenceRead(lease) => self.presence.read(lease, answer, ctx),
            Purpose::PresenceWritten { lease, record, old } => {
                self.presence.written(lease, *record, old, &answer, ctx);
            }
            Purpose::Nothing => {}
            Purpose::StatesListed(lease) => self.publisher.listed(lease, answer, ctx),
            Purpose::StatesWritten => self.publisher.written(&answer, ctx),
            Purpose::List(topic, number) => self.follow(topic).listed(number, answer, ctx),
            Purpose::Watch(topic, number) => self.follow(topic).watching(number, answer, ctx),
            Purpose::Files(units) => self.units.fetched(units, answer, ctx),
            Purpose::Leadership => self.engine.granted(answer, ctx),
            Purpose::Renewal(number) => self.engine.renewed(number, answer, ctx),
            Purpose::GiveBack => self.engine.pause(ctx),
            Purpose::Campaign => self.engine.elected(answer, ctx),
            Purpose::TimeLeft(term, machine) => {
                self.engine.with_lead(ctx, |lead| lead.time_left(term, &machine, answer));
            }
            Purpose::Schedule(term) => self.engine.with_lead(ctx, |lead| lead.committed(term, answer)),
            Purpose::Goodbye => ctx.out.push(Output::End),
        }
    }

    fn woken(&mut self, timer: Timer, ctx: &mut Context<'_>) {
        match timer {
            Timer::Session => self.session.act(ctx),
            Timer::Presence => self.presence.woken(),
            Timer::States => self.publisher.woken(),
            Timer::Follow(topic, number) => self.follow(topic).woken(number, ctx),
            Timer::Resync => self.units.resync(ctx),
            Timer::Retry => {}
            Timer::Patience => {
                if self.session.lease.is_none() {
                    self.units.recall();
                }
            }
            Timer::Leave => self.say_goodbye(ctx),
            Timer::Engine(number) => self.engine.with_lead(ctx, |lead| lead.tick(number)),
            Timer::Echo(number) => self.engine.with_lead(ctx, |lead| lead.echo_late(number)),
            Timer::Renewal(number) => self.engine.renewal_due(number, false, ctx),
            Timer::RenewalLate(number) => self.engine.renewal_due(number, true, ctx),
            Timer::Stand => self.engine.stand_again(ctx),
        }
    }

    /// The machine shuts down in order: its session ends now, not when its lease would; but units that may not run
    /// twice have stopped before.
    fn leave(&mut self) {
        (self.leaving, self.waited) = (true, self.units.fenced_alive());
    }

    fn say_goodbye(&mut self, ctx: &mut Context<'_>) {
        self.left = true;
        self.engine.step_down(ctx);
        ctx.out.push(Output::NoteLease(None));
        match self.session.lease.take() {
            Some(lease) => ctx.call(Purpose::Goodbye, Request::Revoke(lease)),
            None => ctx.out.push(Output::End),
        }
    }
}
