//! The engine: on which machine each unit runs. fleet's rules (`[X-Fleet]`), least loaded first, instances of a
//! template spread out, followers (`MachineOf=`) placed in the same decision as the unit that they follow.
//!
//! It owns what it knows, indexed; [`Engine::step`] takes changes and gives effects, and costs what the changes
//! concern. Not here: who leads, and writing effects. Invariants: a unit that is not global is on one machine at
//! most after every step; nothing moves that may stay; every effect and every refusal carries its reason; after a
//! step nothing is left that a new engine, given the same cluster, would change.

mod fit;
mod patterns;
mod place;
mod reason;
mod rebalance;
mod settle;
mod state;
#[cfg(test)]
mod tests;
mod why;

pub use reason::{Reason, Refusal, Removal};
pub use rebalance::Move;
pub use why::{Verdict, Why};

use crate::{
    agent::FENCE_STOP,
    cluster::{Cluster, Delta},
};
use model::{MachineId, Revision, ScheduleRecord, Timestamp, UnitName};
use place::Scope;
use serde::Serialize;
use state::{M, State, U};
use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// How long a unit with `OnPartition=stop` is not placed anew after its machine was lost. The machine's agent stops
/// such units when its lease's time to live has passed since the last renewal that the hub acknowledged, and the hub
/// ends the lease that time after it got the renewal, which is later. So the stop has begun when the loss is seen;
/// this is what a stop may take, and more than the clocks of two machines drift apart in a lease's time.
pub const FENCE: Duration = Duration::from_secs(10);
const _: () = assert!(FENCE.as_millis() > FENCE_STOP.as_millis(), "the other copy is dead by then");
/// For how long machines that went with most others are waited for once most are back.
pub const HOLD: Duration = Duration::from_secs(60);
/// How long metadata and maintenance of a machine that is gone are kept. Longer than a repair takes, shorter than a
/// name that comes up again by chance.
pub const FORGET: Duration = Duration::from_secs(7 * 24 * 3600);
/// While holding, how often it is looked whether that is still right.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What the engine is told.
#[derive(Debug, Clone)]
pub enum Event {
    /// What changed in the hub since the last time; at first, everything there is.
    Hub(Vec<Delta>),
    /// The answer to [`Effect::Probe`]: machines that are present, but have not renewed their lease when they should
    /// have.
    Overdue(BTreeSet<MachineId>),
    /// The time of the last [`Effect::SetTimer`] has come.
    Tick,
}

/// What the engine wants done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Effect {
    /// Run the unit there, or run it there in another way.
    Schedule(Placement),
    /// Do not run it there any longer.
    Unschedule {
        /// Which unit.
        unit: UnitName,
        /// On which machine.
        machine: MachineId,
        /// Why.
        why: Removal,
    },
    /// Delete the order to move this unit: it was carried out or refused.
    Forget(UnitName),
    /// Delete what is kept about this machine: it has been gone for [`FORGET`].
    ForgetMachine(MachineId),
    /// Look which machines are late with their leases, and answer with [`Event::Overdue`].
    Probe,
    /// Send [`Event::Tick`] then. It replaces the timer before.
    SetTimer(Timestamp),
    /// Something that people may want to know, and that no other effect says.
    Tell(Notice),
}

/// A unit on a machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Placement {
    /// Which unit.
    pub unit: UnitName,
    /// On which machine.
    pub machine: MachineId,
    /// What to write.
    pub record: ScheduleRecord,
    /// Why there.
    pub why: Reason,
}

/// What people may want to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Notice {
    /// No machine can run the unit now; [`Engine::why`] says why.
    Waiting {
        /// Which unit.
        unit: UnitName,
    },
    /// The unit's machine is drained, and no other can run it, or what follows it.
    Stuck {
        /// Which unit.
        unit: UnitName,
        /// Where it stays.
        machine: MachineId,
    },
    /// An order to move a unit cannot be carried out.
    MoveRefused {
        /// Which unit.
        unit: UnitName,
        /// Where it should have gone.
        machine: MachineId,
        /// Why not.
        why: String,
    },
    /// A machine came.
    MachineJoined(MachineId),
    /// A machine is gone.
    MachineLost(MachineId),
    /// These machines are gone together with too many others to be believed: their units stay where they are.
    Holding(BTreeSet<MachineId>),
    /// Decisions are made again.
    Released,
}

/// The engine of one term.
#[derive(Debug, Clone)]
pub struct Engine {
    term: Revision,
    /// Until when nobody who is missing is believed to be gone.
    believe: Timestamp,
    state: State,
    /// Units to look at.
    dirty: BTreeSet<U>,
    /// Units to place, and where to look.
    queue: BTreeMap<U, Scope>,
    /// Units that no machine can take; those that cannot leave a drained machine; global units that some refuse.
    waiting: BTreeSet<U>,
    /// Units with `OnPartition=stop` that may still run on a machine that is gone, and until when.
    fenced: BTreeMap<U, (M, Timestamp)>,
    /// Start orders of units with `OnPartition=stop` that were taken off a machine while they ran there, as long as they
    /// do.
    told: BTreeMap<(U, M), u64>,
    /// Orders to move a unit.
    moves: BTreeMap<U, MachineId>,
    /// Machines that are present, but late.
    overdue: BTreeSet<MachineId>,
    /// Machines that were gone when it was last asked who is late.
    probed: BTreeSet<M>,
    /// Machines that are gone and whose units are fenced.
    seen_lost: BTreeSet<M>,
    /// Machines whose units are decided as if it were gone.
    given_up: BTreeSet<M>,
    /// Machines that are gone and of which metadata or maintenance is kept, and since when.
    absent: BTreeMap<M, Timestamp>,
    holding: Option<Timestamp>,
    told_held: BTreeSet<MachineId>,
    asked: bool,
    /// False until the first event: machines that are there then have not just joined.
    begun: bool,
    examined: Cell<u64>,
    out: Vec<Effect>,
}

impl Engine {
    /// An engine that knows nothing yet. `term` goes into every record. Before `believe` no machine counts as gone:
    /// after the hub was away, leases must have had time to be renewed.
    pub fn new(term: Revision, believe: Timestamp) -> Self {
        Self {
            term,
            believe,
            state: State::default(),
            dirty: BTreeSet::new(),
            queue: BTreeMap::new(),
            waiting: BTreeSet::new(),
            fenced: BTreeMap::new(),
            told: BTreeMap::new(),
            moves: BTreeMap::new(),
            overdue: BTreeSet::new(),
            probed: BTreeSet::new(),
            seen_lost: BTreeSet::new(),
            given_up: BTreeSet::new(),
            absent: BTreeMap::new(),
            holding: None,
            told_held: BTreeSet::new(),
            asked: false,
            begun: false,
            examined: Cell::new(0),
            out: Vec::new(),
        }
    }

    /// An engine that knows `cluster` and has decided nothing: for questions.
    pub fn of(cluster: &Cluster) -> Self {
        let mut engine = Self::new(Revision(0), Timestamp(0));
        engine.take(Timestamp(0), cluster.deltas());
        engine
    }

    /// Takes in an event and says what is to be done, in an order in which it may be done one after another. The
    /// engine counts on it that every effect is carried out; if one cannot be, its term is over.
    pub fn step(&mut self, now: Timestamp, event: Event, out: &mut Vec<Effect>) {
        match event {
            Event::Hub(deltas) => self.take(now, deltas),
            Event::Overdue(overdue) => {
                self.overdue = overdue;
                self.probed = self.state.lost.clone();
                self.asked = false;
            }
            // While most machines are gone: who is late by now?
            Event::Tick if self.holding.is_some() => self.probed.clear(),
            Event::Tick => {}
        }
        self.begun = true;
        self.decide(now);
        out.append(&mut self.out);
    }

    /// How often a machine was asked whether it may run a unit, since the beginning.
    pub fn examined(&self) -> u64 {
        self.examined.get()
    }

    /// How many units wait for a machine, the ones that cannot leave a drained machine included.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether the unit's file is known with this hash: then its requirements need not be read again.
    pub fn has_file(&self, unit: &UnitName, hash: &str) -> bool {
        let known = self.state.by_name.get(unit).and_then(|u| self.state[*u].order.as_ref());
        known.is_some_and(|order| *order.hash == *hash)
    }

    /// Where a unit is scheduled.
    pub fn machines_of(&self, unit: &UnitName) -> Vec<MachineId> {
        let places =
            self.state.by_name.get(unit).map(|u| self.state[*u].places.as_slice()).unwrap_or_default();
        places.iter().map(|(m, _)| self.state[*m].id.clone()).collect()
    }
}
