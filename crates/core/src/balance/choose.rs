//! Choosing among the endpoints that may be chosen.
//!
//! Invariant: nothing that was tried is chosen again while something else is left.

use super::{Balancer, FULL, Moment, Place, Standing, Strategy, Wish, mix};

impl Balancer {
    /// The slot of the next endpoint.
    pub(super) fn choose(&mut self, now: Moment, random: u64, wish: &Wish<'_>) -> Option<u32> {
        if wish.may_probe && wish.tried.is_empty() {
            // Somebody has to find out, and this request can be tried elsewhere if it goes wrong.
            if let Some(index) = self.view.probation.first() {
                return Some(*index);
            }
        }
        if let Some(stick) = wish.stick
            && let Some(index) = self.stuck(stick, wish.tried)
        {
            return Some(index);
        }
        if self.view.open.is_empty() {
            // Everyone that is left is on probation.
            return self.view.probation.iter().copied().find(|index| !wish.tried.contains(&Place(*index)));
        }
        if !wish.tried.is_empty() {
            return self.another(now, wish.tried);
        }
        if let [only] = self.view.open[..] {
            return Some(only);
        }
        match (self.settings.strategy, wish.hash) {
            (Strategy::RoundRobin, _) => Some(self.next_in_turn()),
            (Strategy::LeastConn, _) => Some(self.least(random)),
            (Strategy::Hash, Some(hash)) => Some(self.rendezvous(hash)),
            // A request without what the hash goes by goes anywhere.
            (Strategy::P2c | Strategy::Hash, _) => Some(self.better_of_two(now, random)),
        }
    }

    fn stuck(&self, stick: u64, tried: &[Place]) -> Option<u32> {
        let is_it = |index: &&u32| {
            let slot = self.slots[**index as usize].as_ref();
            slot.is_some_and(|slot| slot.stick == stick) && !tried.contains(&Place(**index))
        };
        self.view.open.iter().find(is_it).copied()
    }

    /// What a further request would have to expect there. With nothing under way it is the latency alone, so that of
    /// equally fast endpoints the one drawn first, by weight, is chosen.
    fn load(&self, now: Moment, position: usize) -> f64 {
        let slot =
            self.slots[self.view.open[position] as usize].as_ref().expect("what is in view has a slot");
        let share = self.view.weights[position] as f64 / self.view.heaviest as f64;
        (f64::from(slot.inflight) / share + 1.0) * slot.latency.aged(now)
    }

    /// A position in view, drawn by weight.
    fn draw(&self, random: u32) -> usize {
        let sum = *self.view.sums.last().expect("somebody is open");
        let at = ((u128::from(random) * u128::from(sum)) >> 32) as u64;
        self.view.sums.partition_point(|upto| *upto <= at)
    }

    fn better_of_two(&self, now: Moment, random: u64) -> u32 {
        let first = self.draw(random as u32);
        let mut dice = (random >> 32) as u32;
        let mut second = self.draw(dice);
        for _ in 0..2 {
            if second != first {
                break;
            }
            dice = mix(u64::from(dice) ^ random) as u32;
            second = self.draw(dice);
        }
        if second == first {
            second = (first + 1) % self.view.open.len();
        }
        let better = if self.load(now, second) < self.load(now, first) { second } else { first };
        self.view.open[better]
    }

    /// Smooth weighted round robin: everyone gains its weight, the richest is chosen and pays for all.
    fn next_in_turn(&mut self) -> u32 {
        let mut richest: Option<(i64, u32)> = None;
        for (position, index) in self.view.open.iter().enumerate() {
            let slot = self.slots[*index as usize].as_mut().expect("what is in view has a slot");
            slot.turn += self.view.weights[position] as i64;
            if richest.is_none_or(|(most, _)| slot.turn > most) {
                richest = Some((slot.turn, *index));
            }
        }
        let (_, index) = richest.expect("somebody is open");
        let sum = *self.view.sums.last().expect("somebody is open");
        self.slots[index as usize].as_mut().expect("what is in view has a slot").turn -= sum as i64;
        index
    }

    fn least(&self, random: u64) -> u32 {
        let count = self.view.open.len();
        let from = random as usize % count;
        let load = |position: usize| {
            let slot = self.slots[self.view.open[position] as usize].as_ref();
            let inflight = slot.map_or(0, |slot| slot.inflight);
            f64::from(inflight + 1) * FULL as f64 / self.view.weights[position] as f64
        };
        let mut best = from;
        for step in 1..count {
            let position = (from + step) % count;
            if load(position) < load(best) {
                best = position;
            }
        }
        self.view.open[best]
    }

    /// Rendezvous hashing with weights: everyone draws a lot from the request's hash and its own name, the best wins.
    /// Who is not there draws none, so only its own requests move.
    fn rendezvous(&self, hash: u64) -> u32 {
        let lot = |position: usize| {
            let slot = self.slots[self.view.open[position] as usize].as_ref();
            let name = slot.map_or(0, |slot| slot.stick);
            let drawn = (mix(hash ^ name) >> 11) as f64 / (1u64 << 53) as f64;
            self.view.weights[position] as f64 / -drawn.max(f64::MIN_POSITIVE).ln()
        };
        let mut best = (lot(0), 0);
        for position in 1..self.view.open.len() {
            let lot = lot(position);
            if lot > best.0 {
                best = (lot, position);
            }
        }
        self.view.open[best.1]
    }

    /// Somewhere it was not tried yet: best one that is in.
    fn another(&self, now: Moment, tried: &[Place]) -> Option<u32> {
        let mut best: Option<(bool, f64, u32)> = None;
        for (position, index) in self.view.open.iter().enumerate() {
            if tried.contains(&Place(*index)) {
                continue;
            }
            let slot = self.slots[*index as usize].as_ref().expect("what is in view has a slot");
            let (out, load) = (slot.standing != Standing::In, self.load(now, position));
            if best.is_none_or(|(o, l, _)| (out, load) < (o, l)) {
                best = Some((out, load, *index));
            }
        }
        best.map(|(_, _, index)| index)
    }
}
