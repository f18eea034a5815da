//! A plan that evens out how many units machines have, with as few moves as that takes.
//!
//! Only a plan: nothing changes. Invariant: every move is one that the engine would accept at its turn, and every
//! one makes the busiest machine of the two less busy than it was.

use super::{
    Engine, Reason,
    place::Scope,
    state::{M, U},
};
use model::{MachineId, Timestamp, UnitName};
use serde::Serialize;
use std::collections::BTreeSet;

/// Units that move together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Move {
    /// Which, by name; several when they follow each other.
    pub units: Vec<UnitName>,
    /// Where they are.
    pub from: MachineId,
    /// How many units that machine has before.
    pub from_units: u32,
    /// Where they shall go.
    pub to: MachineId,
    /// How many units that machine has before.
    pub to_units: u32,
}

impl Engine {
    /// What to move, in this order.
    pub fn rebalance(&self) -> Vec<Move> {
        let mut trial = self.clone();
        let mut moves = Vec::new();
        let mut settled: BTreeSet<M> = BTreeSet::new();
        loop {
            // The busiest machine from which something can still go to one that is less busy by more than it.
            let busiest = trial.state.open.iter().rev().map(|rank| rank.3).find(|m| !settled.contains(m));
            let Some(from) = busiest else { return moves };
            match trial.relieve(from) {
                Some(step) => {
                    moves.push(step);
                    // What could not go before may now have a place.
                    settled.clear();
                }
                None => {
                    settled.insert(from);
                }
            }
        }
    }

    /// Moves the smallest group that helps away from a machine.
    fn relieve(&mut self, from: M) -> Option<Move> {
        let from_units = self.state.rank(from).0;
        let least = self.state.open.first().map(|rank| rank.0)?;
        if from_units < least + 2 {
            return None;
        }
        let mut seen: BTreeSet<U> = BTreeSet::new();
        let mut groups: Vec<Vec<U>> = Vec::new();
        for u in &self.state[from].units {
            if !seen.contains(u) && !self.state[*u].rules().global {
                let group = self.companions(*u, from);
                seen.extend(&group);
                groups.push(group);
            }
        }
        // Of groups of one size, first the one whose template crowds here.
        let crowd = |group: &Vec<U>| group.first().map_or(0, |u| self.state.siblings(*u, from));
        groups.sort_by_key(|group| (group.len(), std::cmp::Reverse(crowd(group))));
        for group in groups {
            let size = u32::try_from(group.len()).unwrap_or(u32::MAX);
            if from_units <= least + size {
                return None;
            }
            let Some(found) = self.find(&group, &Scope::All, Some(from), false) else { continue };
            let to_units = self.state.rank(found.machine).0;
            if to_units + size >= from_units {
                continue;
            }
            let step = Move {
                units: group.iter().map(|u| self.state[*u].name.clone()).collect(),
                from: self.state[from].id.clone(),
                from_units,
                to: self.state[found.machine].id.clone(),
                to_units,
            };
            for u in group {
                self.state.unplace(u, from, Timestamp(0));
                self.schedule(u, found.machine, &Reason::Updated, Timestamp(0));
            }
            return Some(step);
        }
        None
    }
}
