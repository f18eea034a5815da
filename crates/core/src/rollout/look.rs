//! What a unit looks like to a rollout: whether it does what is wanted of it, with the text that it has now.
//!
//! Only looking: how long that may last is not decided here. Invariant: a state of another text, or of an older order
//! to start, never counts.

use crate::{cluster::Cluster, engine::Engine};
use model::{DesiredState, UnitName};
use std::{cell::OnceCell, collections::BTreeMap};

/// How a unit looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Look {
    /// As it should.
    Good,
    /// It was started and is over.
    Ended(String),
    /// It is on its way.
    Coming(String),
    /// Something is in its way, which may pass.
    Trouble(String),
    /// It has failed.
    Broken(String),
}

/// How units look now.
pub(super) fn looks<'a>(
    cluster: &Cluster,
    units: impl Iterator<Item = &'a UnitName>,
) -> BTreeMap<UnitName, Look> {
    // Made when the first unit is nowhere: only then somebody has to say why.
    let engine = OnceCell::new();
    units.map(|unit| (unit.clone(), look(cluster, unit, &engine))).collect()
}

/// How a unit looks on all its machines: the worst counts.
fn look(cluster: &Cluster, unit: &UnitName, engine: &OnceCell<Engine>) -> Look {
    let Some(known) = cluster.units.get(unit) else { return Look::Coming("not known".to_owned()) };
    let record = &known.record;
    if record.desired == DesiredState::Inactive {
        return Look::Good;
    }
    let Some(schedule) = cluster.schedule.get(unit).filter(|machines| !machines.is_empty()) else {
        return nowhere(cluster, unit, known.is_global(), engine);
    };
    let mut best = Look::Good;
    for (machine, scheduled) in schedule {
        let name =
            cluster.machines.get(machine).map_or_else(|| machine.short(), |machine| machine.name.as_str());
        let state = cluster.states.get(unit).and_then(|states| states.get(machine));
        let seen = match state {
            _ if scheduled.hash != record.hash => Look::Coming("not scheduled yet".to_owned()),
            None => Look::Coming(format!("waiting for {name}")),
            Some(state) => match &state.error {
                Some(error) => Look::Trouble(format!("{error} (on {name})")),
                None if state.hash != record.hash => Look::Coming(format!("loading on {name}")),
                None if record.desired == DesiredState::Loaded => Look::Good,
                None if state.launch < record.launch => Look::Coming(format!("starting on {name}")),
                None => active(&state.active, format!("{} ({}) on {name}", state.active, state.sub)),
            },
        };
        if rank(&seen) > rank(&best) {
            best = seen;
        }
    }
    best
}

fn active(state: &str, seen: String) -> Look {
    match state {
        "active" | "reloading" => Look::Good,
        "failed" => Look::Broken(seen),
        "inactive" => Look::Ended(seen),
        _ => Look::Coming(seen),
    }
}

fn rank(look: &Look) -> u8 {
    match look {
        Look::Good => 0,
        Look::Ended(_) => 1,
        Look::Coming(_) => 2,
        Look::Trouble(_) => 3,
        Look::Broken(_) => 4,
    }
}

/// It is on no machine: perhaps none fits.
fn nowhere(cluster: &Cluster, unit: &UnitName, global: bool, engine: &OnceCell<Engine>) -> Look {
    if global {
        // It runs wherever it fits, and that may be nowhere.
        return Look::Good;
    }
    let refusals = engine.get_or_init(|| Engine::of(cluster)).refusals(unit);
    let named = refusals.iter().map(|(id, refusal)| {
        let machine = cluster.machines.get(id).map_or_else(|| id.short(), |machine| machine.name.as_str());
        format!("{machine}: {refusal}")
    });
    let refusals: Vec<_> = named.take(3).collect();
    if refusals.is_empty() {
        Look::Coming("waiting for a machine".to_owned())
    } else {
        Look::Trouble(format!("no machine fits ({})", refusals.join("; ")))
    }
}
