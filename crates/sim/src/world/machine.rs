//! A machine: power, clock, link to the hub, systemd and daemon.
//!
//! Invariant: without power there is neither daemon nor systemd, and what /run held is gone.

use super::Event;
use crate::{
    daemon::{Daemon, Mutation, Notes},
    message::{File, Host, Input, Output, Peer},
    rng::Rng,
    step::Direction,
    systemd::Systemd,
    time::{Clock, Time},
};
use model::{MachineId, MachineRecord, UnitName};
use muster_core::{
    agent::Done,
    fence::{Fence, Orders},
};
use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

/// The fence's watcher sleeps so long at most, and so long while the time is over, as in `muster`.
const SLEEP: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(100);

/// A machine.
#[derive(Debug)]
pub struct Machine {
    /// Which.
    pub host: Host,
    /// Its identity.
    pub id: MachineId,
    /// What its daemon sees of time.
    pub clock: Clock,
    /// Whether it has power.
    pub powered: bool,
    /// Whether it shuts down.
    pub stopping: bool,
    pub(super) boot: u32,
    runs: u32,
    /// Its daemon, while that runs.
    pub daemon: Option<Daemon>,
    /// What waits for a daemon that stands still.
    pub(super) frozen: Option<VecDeque<Input>>,
    /// Its systemd.
    pub systemd: Systemd,
    /// What is in /run.
    pub notes: Notes,
    /// The fence's watcher, while it runs.
    pub(super) watcher: Option<Fence>,
    /// Units that the fence has stopped.
    marks: BTreeSet<UnitName>,
    pub(super) link: Link,
}

impl Machine {
    pub(super) fn new(host: Host, rng: Option<Rng>) -> Self {
        let number = host.0 + 1;
        // The short form, which is the first 8 digits, tells machines apart.
        let id = format!("{number:08x}{number:024x}").parse().expect("32 hexadecimal digits");
        let clock = rng.map_or_else(Clock::default, |mut rng| Clock {
            offset: rng.span(Duration::ZERO, Duration::from_secs(1000)),
            drift: i32::try_from(rng.below(20_001)).unwrap_or(0) - 10_000,
        });
        Self {
            host,
            id,
            clock,
            powered: false,
            stopping: false,
            boot: 0,
            runs: 0,
            daemon: None,
            frozen: None,
            systemd: Systemd::default(),
            notes: Notes::default(),
            watcher: None,
            marks: BTreeSet::new(),
            link: Link::default(),
        }
    }

    /// What people call the machine of that identity.
    pub fn name_of(id: &MachineId) -> String {
        let number = u64::from_str_radix(id.short(), 16).unwrap_or(0);
        format!("m{number}")
    }

    /// Which boot this is, and which run of the daemon.
    pub(crate) fn generation(&self) -> (u32, u32) {
        (self.boot, self.runs)
    }

    /// Power comes: which boot this is.
    pub(super) fn power_on(&mut self) -> u32 {
        (self.powered, self.stopping) = (true, false);
        self.boot += 1;
        self.boot
    }

    /// Power is gone, and with it whatever ran and whatever was in memory.
    pub(super) fn power_off(&mut self) {
        (self.powered, self.stopping, self.daemon, self.frozen) = (false, false, None, None);
        let schedule = std::mem::take(&mut self.notes.schedule);
        (self.systemd, self.notes) = (Systemd::default(), Notes { schedule, ..Notes::default() });
        (self.watcher, self.marks) = (None, BTreeSet::new());
        self.link.parked.clear();
    }

    pub(super) fn is_boot(&self, boot: u32) -> bool {
        self.powered && self.boot == boot
    }

    /// Whether that run of the daemon is the present one.
    pub(super) fn runs(&self, peer: Peer) -> bool {
        self.daemon.as_ref().is_some_and(|daemon| daemon.peer() == peer)
    }

    /// True when nothing is wrong with it but, perhaps, what its daemon does.
    pub fn is_well(&self) -> bool {
        self.powered
            && !self.stopping
            && self.daemon.is_some()
            && self.frozen.is_none()
            && self.link.cut.is_none()
    }

    pub(super) fn start_daemon(&mut self, now: Time, mutation: Option<Mutation>) -> Vec<Output> {
        self.runs += 1;
        let peer = Peer { host: self.host, run: self.runs };
        let mut notes = self.notes.clone();
        // As the real one: files that are there and not noted were linked by a run that was killed before it could
        // start them.
        for (name, unit) in &self.systemd.units {
            let found = || Done { hash: unit.hash.clone(), ..Done::default() };
            notes.done.entry(name.clone()).or_insert_with(found).fenced = unit.fenced;
            let file = File { hash: unit.hash.clone(), fenced: unit.fenced };
            notes.files.insert(name.clone(), file);
        }
        let octet = u8::try_from(self.host.0 + 1).unwrap_or(u8::MAX);
        let mut record =
            MachineRecord::new(self.host.to_string(), [10, 0, 0, octet].into(), "sim".to_owned());
        record.metadata.insert("name".to_owned(), self.host.to_string());
        record.metadata.insert("odd".to_owned(), (octet % 2 == 1).to_string());
        let mut daemon = Daemon::new(peer, self.id.clone(), record, notes, mutation);
        let outputs = daemon.start(self.clock.shows(now), &mut self.marks);
        self.daemon = Some(daemon);
        outputs
    }

    pub(super) fn kill_daemon(&mut self) {
        (self.daemon, self.frozen) = (None, None);
    }

    /// The fence's watcher looks: what it stops and what it kills, and when it looks again.
    pub(super) fn watch(&mut self, now: Time) -> Option<(Orders, Duration)> {
        let shown = self.clock.shows(now);
        let watcher = self.watcher.as_mut()?;
        let note = &self.notes.fence;
        let left = note.until - shown;
        if !left.is_zero() {
            if watcher.is_closed() {
                watcher.open();
            }
            return Some((Orders::default(), self.clock.takes(left.min(SLEEP))));
        }
        if note.units.is_empty() {
            return Some((Orders::default(), self.clock.takes(SLEEP)));
        }
        let alive: BTreeSet<_> =
            note.units.iter().filter(|unit| self.systemd.active(unit).is_alive()).cloned().collect();
        let orders = watcher.close(shown.0, &note.units, &alive);
        self.marks.extend(orders.stop.intersection(&alive).cloned());
        Some((orders, self.clock.takes(LOOK)))
    }

    /// Gives the daemon an input; `None` if nobody took it.
    pub(super) fn deliver(&mut self, now: Time, peer: Peer, input: Input) -> Option<Vec<Output>> {
        if !self.runs(peer) {
            return None;
        }
        if let Some(waiting) = &mut self.frozen {
            waiting.push_back(input);
            return None;
        }
        let shown = self.clock.shows(now);
        self.daemon.as_mut().map(|daemon| daemon.step(shown, input, &mut self.marks))
    }
}

/// The way between a machine and the hub.
#[derive(Debug, Default)]
pub(super) struct Link {
    cut: Option<(Time, Direction)>,
    /// How often it was cut.
    cuts: u32,
    /// The connection was given up during this cut: nothing waits for the cable any longer.
    broken: bool,
    /// What the kernels send again when the cable is back.
    parked: Vec<Event>,
    /// When the last thing arrives that is sent in order.
    tail: Time,
}

impl Link {
    /// Cuts it; the number of this cut.
    pub(super) fn cut(&mut self, now: Time, direction: Direction) -> u32 {
        self.cuts += 1;
        self.cut = Some((now, direction));
        self.cuts
    }

    /// Heals it; what was waiting.
    pub(super) fn heal(&mut self) -> Vec<Event> {
        (self.cut, self.broken) = (None, false);
        std::mem::take(&mut self.parked)
    }

    /// Nothing came through for too long in this cut: true if that is so.
    pub(super) fn give_up(&mut self, cut: u32) -> bool {
        let now = self.cut.is_some() && self.cuts == cut;
        if now {
            self.broken = true;
            self.parked.clear();
        }
        now
    }

    pub(super) fn blocks_to_hub(&self) -> bool {
        self.cut.is_some_and(|(_, direction)| direction != Direction::FromHub)
    }

    pub(super) fn blocks_from_hub(&self) -> bool {
        self.cut.is_some_and(|(_, direction)| direction != Direction::ToHub)
    }

    pub(super) fn park(&mut self, event: Event) {
        if !self.broken {
            self.parked.push(event);
        }
    }

    /// When something that would arrive at `at` arrives if it may not overtake what was sent before.
    pub(super) fn in_order(&mut self, at: Time) -> Time {
        self.tail = self.tail.max(at);
        self.tail
    }
}
