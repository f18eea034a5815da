//! Explanations: what each machine says to a unit, and how the machines that would take it rank.
//!
//! Pure questions: nothing changes. Invariant: the verdicts are those by which the engine decides.

use super::{
    Engine, Refusal,
    state::{M, U},
};
use model::{DesiredState, MachineId, UnitName};
use serde::Serialize;
use std::collections::BTreeMap;

/// Why a unit is where it is, or nowhere.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Why {
    /// Which unit.
    pub unit: UnitName,
    /// What is wanted of it; absent when the cluster does not know it.
    pub desired: Option<DesiredState>,
    /// Where it is scheduled.
    pub machines: Vec<MachineId>,
    /// Units that must be on the same machine, this one included when there are others.
    pub group: Vec<UnitName>,
    /// What each machine that is there says, the best first, then those that refuse, by id.
    pub verdicts: Vec<Verdict>,
}

/// What one machine says to a unit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// Which machine.
    pub machine: MachineId,
    /// Whether the unit is scheduled there.
    pub here: bool,
    /// Its place among the machines that would take the unit if it were placed now, from 1.
    pub rank: Option<u32>,
    /// Units that it has.
    pub units: u32,
    /// Instances of the same template that it has, this unit not counted.
    pub siblings: u32,
    /// The larger share of its memory or processors that limits of its units take, in thousandths.
    pub share: u32,
    /// Of the units that must come together, the one that is refused, and by which rule.
    pub refused: Option<(UnitName, Refusal)>,
}

impl Engine {
    /// Why `unit` is where it is, or nowhere; `None` when the cluster does not know it.
    pub fn why(&self, unit: &UnitName) -> Option<Why> {
        let u = *self.state.by_name.get(unit)?;
        let entry = &self.state[u];
        let order = entry.order.as_ref()?;
        let group = self.group_of(u);
        let mut verdicts: Vec<(Option<(u32, u32)>, Verdict)> = self
            .state
            .by_id
            .values()
            .filter(|m| self.state[**m].present)
            .map(|m| self.verdict(u, *m, &group))
            .collect();
        // Stable: equals stay in the order of ids.
        verdicts.sort_by_key(|(score, _)| (score.is_none(), *score));
        for (rank, (score, verdict)) in (1_u32..).zip(&mut verdicts) {
            verdict.rank = score.map(|_| rank);
        }
        let name = |u: &U| self.state[*u].name.clone();
        Some(Why {
            unit: unit.clone(),
            desired: Some(order.desired),
            machines: entry.places.iter().map(|(m, _)| self.state[*m].id.clone()).collect(),
            group: if group.len() > 1 { group.iter().map(name).collect() } else { Vec::new() },
            verdicts: verdicts.into_iter().map(|(_, verdict)| verdict).collect(),
        })
    }

    /// Each machine's refusal of `unit`, as things stand; empty when some machine would take it.
    pub fn refusals(&self, unit: &UnitName) -> BTreeMap<MachineId, Refusal> {
        let Some(u) = self.state.by_name.get(unit).copied() else { return BTreeMap::new() };
        let mut refusals = BTreeMap::new();
        for m in self.state.by_id.values().copied().filter(|m| self.state[*m].present) {
            match self.come(&[u], m, true) {
                Ok(()) => return BTreeMap::new(),
                Err((_, bar)) => refusals.insert(self.state[m].id.clone(), self.refusal(u, m, bar)),
            };
        }
        refusals
    }

    /// The units that are decided together with this one.
    fn group_of(&self, u: U) -> Vec<U> {
        match self.state[u].places.first() {
            Some((m, _)) if !self.state[u].rules().global => self.companions(u, *m),
            Some(_) => vec![u],
            None => self.component(u, |other| {
                let entry = &self.state[other];
                entry.wanted() && entry.places.is_empty()
            }),
        }
    }

    fn verdict(&self, u: U, m: M, group: &[U]) -> (Option<(u32, u32)>, Verdict) {
        let (units, share, ..) = self.state.rank(m);
        let here = self.state[u].on(m);
        let siblings = self.state.siblings(u, m).saturating_sub(u32::from(here));
        // Where the unit is, the question is whether it may stay; elsewhere, whether it may come with its group, or
        // else, which is what is tried next, alone.
        let outcome = if here {
            self.check(u, m, super::fit::Mode::Stay, &[]).map_err(|bar| (u, bar))
        } else {
            self.come(group, m, true)
        };
        let refused = outcome
            .err()
            .map(|(member, bar)| (self.state[member].name.clone(), self.refusal(member, m, bar)));
        let score = refused.is_none().then_some((units + siblings, share));
        let machine = self.state[m].id.clone();
        (score, Verdict { machine, here, rank: None, units, siblings, share, refused })
    }
}
