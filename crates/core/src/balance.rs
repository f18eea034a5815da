//! Which endpoint of a service the next request goes to.
//!
//! A `Balancer` owns what is known about the endpoints of one service: what is under way, how fast they answer, how
//! they failed. Whoever sends requests asks it (`pick`), and tells it how it went (`finish`). Not here: connections,
//! clocks, dice; the time is that since any fixed moment, and 64 random bits come with each question.
//! Invariants: a draining endpoint is never chosen; failures never leave a service without an endpoint to choose.

/// How many requests may be tried again.
mod budget;
/// Choosing among those that may be chosen.
mod choose;
/// Taking endpoints out for their failures, and letting them in again.
mod eject;

pub use budget::RetryBudget;
pub use eject::Standing;

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::time::Duration;

/// A point in time: how long after a fixed moment of the caller's choice. It never runs backwards.
pub type Moment = Duration;

/// How the next endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The better of two that are drawn by weight: less under way, times how long it takes to answer.
    #[default]
    P2c,
    /// In turn, as often as the weights say.
    RoundRobin,
    /// The one with the least under way for its weight.
    LeastConn,
    /// By a hash of the request: the same request goes to the same endpoint, and few move when endpoints come or go.
    Hash,
}

/// How a service is balanced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    /// How the next endpoint is chosen.
    pub strategy: Strategy,
    /// How long the share of an endpoint grows after its arrival; zero for its full share at once.
    pub slow_start: Duration,
}

/// An endpoint, as the list of a service has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name within the service.
    pub instance: String,
    /// How often the instance was started: the same address with another generation is another endpoint.
    pub generation: u64,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its share relative to the others'; 0 for none.
    pub weight: u32,
    /// Nothing new goes there.
    pub draining: bool,
}

impl Member {
    fn is_same(&self, other: &Self) -> bool {
        self.instance == other.instance
            && self.generation == other.generation
            && self.address == other.address
    }
}

/// An endpoint's place in its balancer. It stays its own as long as it is listed or something is under way there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(u32);

impl Place {
    /// The place as an index: small, and used again when its endpoint is gone.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a request asks of the choice.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish<'a> {
    /// What `Strategy::Hash` goes by.
    pub hash: Option<u64>,
    /// The instance that it would like to stay with (`stick`).
    pub stick: Option<u64>,
    /// Where it was tried before.
    pub tried: &'a [Place],
    /// It may be tried again if it fails, so it may find out whether an endpoint is well again.
    pub may_probe: bool,
}

/// How something that was under way ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There was an answer, after so long.
    Answered(Duration),
    /// There was an answer that says the endpoint is unwell (502, 503, 504), after so long.
    Unwell(Duration),
    /// The connection was lost before an answer.
    Reset,
    /// There was no connection, or it went dead.
    Unreachable,
    /// Nothing can be said about the endpoint: the client went away, or the request was never sent.
    Nothing,
}

/// What came of an ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing changed.
    Same,
    /// The endpoint was taken out, for so long at first.
    Ejected(Duration),
    /// It is in again.
    Readmitted,
}

/// The endpoints of one service.
#[derive(Debug)]
pub struct Balancer {
    settings: Settings,
    slots: Vec<Option<Slot>>,
    view: View,
}

#[derive(Debug)]
struct Slot {
    member: Member,
    /// False: gone from the list, and only here for what is under way.
    listed: bool,
    arrived: Moment,
    inflight: u32,
    latency: Latency,
    standing: Standing,
    /// Failures in a row.
    streak: u32,
    /// Ejections in a row.
    ejections: u32,
    /// What smooth round robin counts with.
    turn: i64,
    stick: u64,
}

impl Slot {
    fn may_be_chosen(&self) -> bool {
        self.listed && !self.member.draining && self.member.weight > 0
    }
}

/// Who may be chosen, worked out from the slots and valid for a while.
#[derive(Debug, Default)]
struct View {
    /// Endpoints that take requests.
    open: Vec<u32>,
    /// Their weights, slow start included, summed up to each.
    sums: Vec<u64>,
    /// Their weights, in thousandths.
    weights: Vec<u64>,
    heaviest: u64,
    /// Endpoints that one request may try.
    probation: Vec<u32>,
    /// So many are out that being out is disregarded.
    panic: bool,
    /// When it has to be worked out anew.
    until: Moment,
}

/// How long an endpoint takes to answer: a mean in which the newest counts most, and a peak counts at once.
#[derive(Debug, Clone, Copy, Default)]
struct Latency {
    micros: f64,
    at: Moment,
}

/// After this long an observation counts a third.
const MEMORY: f64 = 10e6;
/// Differences below this (1 ms, in µs) are noise.
const NOISE: f64 = 1000.0;

impl Latency {
    fn observe(&mut self, now: Moment, took: Duration) {
        let took = took.as_micros() as f64;
        let aged = self.aged(now);
        let keep = (-((now.saturating_sub(self.at)).as_micros() as f64) / MEMORY).exp();
        // An idle second says little about what comes, but one slow answer says that slow answers are possible.
        self.micros = if took > aged { took } else { self.micros * keep + took * (1.0 - keep) };
        self.at = now;
    }

    fn aged(&self, now: Moment) -> f64 {
        if self.micros <= NOISE {
            return NOISE;
        }
        let age = now.saturating_sub(self.at).as_micros() as f64;
        (self.micros * (-age / MEMORY).exp()).max(NOISE)
    }
}

/// What a client keeps to come back to the same instance, for instance in a cookie.
pub fn stick(instance: &str) -> u64 {
    hash(0x5bd1_e995, instance.as_bytes())
}

/// A hash that is the same on every machine and in every version (FNV-1a, mixed).
pub fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325 ^ seed;
    for byte in bytes {
        state = (state ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    mix(state)
}

/// Spreads what differs in few bits over all of them (the finalizer of splitmix64).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Balancer {
    /// A balancer without endpoints.
    pub fn new(settings: Settings) -> Self {
        Self { settings, slots: Vec::new(), view: View::default() }
    }

    /// Takes other settings; what is known about endpoints stays.
    pub fn configure(&mut self, settings: Settings) {
        self.settings = settings;
        self.view.until = Moment::ZERO;
    }

    /// Takes a new list. What is known about an endpoint survives if it is the same one: instance, generation and
    /// address. Gives the places in the order of the list.
    pub fn update(&mut self, now: Moment, members: &[Member]) -> Vec<Place> {
        for slot in self.slots.iter_mut().flatten() {
            slot.listed = false;
        }
        let mut places = Vec::with_capacity(members.len());
        for member in members {
            let known = self.slots.iter_mut().enumerate().find_map(|(index, slot)| {
                let slot = slot.as_mut().filter(|slot| slot.member.is_same(member))?;
                Some((index, slot))
            });
            if let Some((index, slot)) = known {
                slot.listed = true;
                slot.member = member.clone();
                places.push(Place(index as u32));
                continue;
            }
            let slot = Slot {
                member: member.clone(),
                listed: true,
                arrived: now,
                inflight: 0,
                latency: Latency::default(),
                standing: Standing::In,
                streak: 0,
                ejections: 0,
                turn: 0,
                stick: stick(&member.instance),
            };
            // A place is free only when nobody holds it and it was not given away in this round.
            let index = match self.slots.iter().position(Option::is_none) {
                Some(index) => index,
                None => {
                    self.slots.push(None);
                    self.slots.len() - 1
                }
            };
            self.slots[index] = Some(slot);
            places.push(Place(index as u32));
        }
        for slot in &mut self.slots {
            if slot.as_ref().is_some_and(|slot| !slot.listed && slot.inflight == 0) {
                *slot = None;
            }
        }
        self.view.until = Moment::ZERO;
        self.refresh(now);
        places
    }

    /// An endpoint for a request, counted as under way there from now on; none if the service has none, or has none
    /// that was not tried. `random` is 64 random bits.
    pub fn pick(&mut self, now: Moment, random: u64, wish: &Wish<'_>) -> Option<Place> {
        self.refresh(now);
        let index = self.choose(now, random, wish)?;
        let slot = self.slots[index as usize].as_mut().expect("what is in view has a slot");
        slot.inflight += 1;
        if let Standing::Probation { probing } = &mut slot.standing {
            *probing = true;
            self.view.until = Moment::ZERO;
        }
        Some(Place(index))
    }

    /// Says how it went, once for each `pick`.
    pub fn finish(&mut self, now: Moment, place: Place, outcome: Outcome) -> Verdict {
        let verdict = self.observe(now, place, outcome);
        self.leave(place);
        verdict
    }

    /// Says how it went so far, for what goes on: the answer has begun, its body has not ended. `leave` ends it.
    pub fn observe(&mut self, now: Moment, place: Place, outcome: Outcome) -> Verdict {
        match self.slots.get_mut(place.index()) {
            Some(Some(_)) => self.judge(now, place, outcome),
            _ => Verdict::Same,
        }
    }

    /// Ends what `pick` began, when `observe` has told how it went.
    pub fn leave(&mut self, place: Place) {
        if let Some(entry) = self.slots.get_mut(place.index())
            && let Some(slot) = entry
        {
            slot.inflight = slot.inflight.saturating_sub(1);
            if slot.inflight == 0 && !slot.listed {
                *entry = None;
            }
        }
    }

    /// What is under way at an endpoint.
    pub fn inflight(&self, place: Place) -> u32 {
        self.slots.get(place.index()).and_then(Option::as_ref).map_or(0, |slot| slot.inflight)
    }

    /// Every endpoint that is listed or has something under way.
    pub fn endpoints(&self) -> impl Iterator<Item = EndpointView<'_>> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let slot = slot.as_ref()?;
            Some(EndpointView {
                place: Place(index as u32),
                member: &slot.member,
                listed: slot.listed,
                inflight: slot.inflight,
                standing: slot.standing,
                latency: Duration::from_micros(slot.latency.micros as u64),
            })
        })
    }

    /// Works the view out anew if it is no longer valid.
    fn refresh(&mut self, now: Moment) {
        if now < self.view.until {
            return;
        }
        let mut until = Moment::MAX;
        let (mut all, mut well, mut out) = (0, 0, 0);
        for slot in self.slots.iter_mut().flatten().filter(|slot| slot.may_be_chosen()) {
            all += 1;
            match slot.standing {
                Standing::Out { until: end, unreachable: false } if end <= now => {
                    slot.standing = Standing::Probation { probing: false };
                }
                Standing::Out { until: end, unreachable } => {
                    out += 1;
                    // No request finds out whether it can be reached again: checks do.
                    until = if unreachable { until } else { until.min(end) };
                }
                Standing::In | Standing::Probation { .. } => {}
            }
            well += u32::from(slot.standing == Standing::In);
        }
        let view = &mut self.view;
        // Without anybody who is in, being on probation is as good as it gets.
        view.panic = 2 * out > all || well == 0;
        for list in [&mut view.open, &mut view.probation] {
            list.clear();
        }
        view.sums.clear();
        view.weights.clear();
        view.heaviest = 0;
        let mut sum = 0;
        for (index, slot) in self.slots.iter().enumerate() {
            let Some(slot) = slot.as_ref().filter(|slot| slot.may_be_chosen()) else { continue };
            match slot.standing {
                Standing::In => {}
                _ if view.panic => {}
                Standing::Probation { probing: false } => {
                    view.probation.push(index as u32);
                    continue;
                }
                Standing::Probation { probing: true } | Standing::Out { .. } => continue,
            }
            let grown = grown(now.saturating_sub(slot.arrived), self.settings.slow_start);
            if grown < FULL {
                // A fiftieth of the way is fine enough.
                until = until.min(now + self.settings.slow_start / 50);
            }
            let weight = u64::from(slot.member.weight) * grown;
            sum += weight;
            view.open.push(index as u32);
            view.sums.push(sum);
            view.weights.push(weight);
            view.heaviest = view.heaviest.max(weight);
        }
        view.until = until;
    }
}

/// The full share, in thousandths.
const FULL: u64 = 1000;

/// How much of its share an endpoint has by now, in thousandths: from a tenth on it grows with its age.
fn grown(age: Duration, slow_start: Duration) -> u64 {
    if age >= slow_start {
        return FULL;
    }
    let part = age.as_micros() * u128::from(FULL) / slow_start.as_micros().max(1);
    (part as u64).clamp(FULL / 10, FULL)
}

/// What a balancer knows of an endpoint.
#[derive(Debug, Clone, Copy)]
pub struct EndpointView<'a> {
    /// Its place.
    pub place: Place,
    /// The endpoint.
    pub member: &'a Member,
    /// Whether the list has it; otherwise something is still under way there.
    pub listed: bool,
    /// How much is under way.
    pub inflight: u32,
    /// Whether it takes part.
    pub standing: Standing,
    /// How long it took to answer lately.
    pub latency: Duration,
}

#[cfg(test)]
mod tests;
