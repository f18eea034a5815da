//! When everything is as it should be: what is wanted runs where the hub says, and nothing else does.
//!
//! Invariant: only looks. What is found missing may well be under way.

use crate::{
    systemd::Active,
    world::{Machine, World},
};
use model::{DesiredState, Revision, Timestamp, UnitName, keys};
use muster_core::engine::{Effect, Engine, Event};
use std::collections::BTreeSet;

/// What is not as it should be.
pub fn missing(world: &World) -> Vec<String> {
    let mut missing = Vec::new();
    if !world.hub.up {
        missing.push("the hub is down".to_owned());
    }
    let truth = world.rules().truth();
    if truth.leader.is_none() {
        missing.push("nobody leads".to_owned());
    }
    for machine in world.machines() {
        if machine.powered && !machine.stopping && machine.daemon.is_none() {
            missing.push(format!("the daemon of {} does not run yet", machine.host));
        }
        if machine.is_well() != truth.machines.contains_key(&machine.id) {
            let how = if machine.is_well() { "well and gone" } else { "not well and present" };
            missing.push(format!("{} is {how}", machine.host));
        }
    }
    placed(world, &mut missing);
    decided(world, &mut missing);
    carried_out(world, &mut missing);
    missing
}

/// A new engine, shown what the hub has, would change nothing.
fn decided(world: &World, missing: &mut Vec<String>) {
    let mut effects = Vec::new();
    let deltas = world.rules().truth().deltas();
    Engine::new(Revision(0), Timestamp(0)).step(Timestamp(1), Event::Hub(deltas), &mut effects);
    for effect in effects {
        match effect {
            Effect::Schedule(placement) => {
                let machine = Machine::name_of(&placement.machine);
                missing.push(format!("a new engine would put {} on {machine}", placement.unit));
            }
            Effect::Unschedule { unit, machine, why } => {
                let machine = Machine::name_of(&machine);
                missing.push(format!("a new engine would take {unit} off {machine}: {why}"));
            }
            _ => {}
        }
    }
}

/// Every unit that is wanted has its place, or there is none.
fn placed(world: &World, missing: &mut Vec<String>) {
    let truth = world.rules().truth();
    for (name, unit) in &truth.units {
        let on = truth.schedule.get(name);
        let places = on.map_or(0, |on| on.len());
        if unit.record.desired == DesiredState::Inactive {
            if places > 0 {
                missing.push(format!("{name} is on {places} machines and wanted on none"));
            }
            continue;
        }
        let refused = || truth.machines.is_empty() || !Engine::of(truth).refusals(name).is_empty();
        match places {
            0 if !refused() => {
                missing.push(format!("{name} is on no machine, and some machine would take it"))
            }
            places if places > 1 && !unit.is_global() => {
                missing.push(format!("{name} is on {places} machines"));
            }
            _ => {}
        }
        for (machine, record) in on.into_iter().flatten() {
            if !truth.machines.contains_key(machine) {
                missing.push(format!("{name} is on {}, which is gone", machine.short()));
            }
            let wanted = &unit.record;
            if (&record.hash, record.desired, record.launch) != (&wanted.hash, wanted.desired, wanted.launch)
            {
                missing.push(format!("{name} is scheduled as it was, not as it is wanted"));
            }
        }
    }
    for name in truth.schedule.keys().filter(|name| !truth.units.contains_key(*name)) {
        missing.push(format!("{name} is scheduled and unknown"));
    }
}

/// Every machine runs what it should and nothing else, and the hub knows it.
fn carried_out(world: &World, missing: &mut Vec<String>) {
    let truth = world.rules().truth();
    for machine in world.machines().iter().filter(|machine| machine.is_well()) {
        let host = machine.host;
        let here =
            |name: &&UnitName| truth.schedule.get(*name).is_some_and(|on| on.contains_key(&machine.id));
        let wanted: BTreeSet<_> = truth.schedule.keys().filter(here).collect();
        for name in &wanted {
            let record = &truth.schedule[*name][&machine.id];
            let Some(unit) = machine.systemd.units.get(*name) else {
                missing.push(format!("{name} is not loaded on {host}"));
                continue;
            };
            if unit.hash != record.hash {
                missing.push(format!("{name} has another file on {host}"));
            }
            match record.desired {
                DesiredState::Launched if unit.launch != record.launch => {
                    missing.push(format!("{name} has not been started on {host} by order {}", record.launch));
                }
                DesiredState::Loaded if unit.active.is_alive() => {
                    missing.push(format!("{name} runs on {host} and should not"));
                }
                _ if matches!(unit.active, Active::Activating | Active::Deactivating) => {
                    missing.push(format!("{name} is {} on {host}", unit.active.as_str()));
                }
                _ => {}
            }
            let told = truth.states.get(*name).and_then(|on| on.get(&machine.id));
            if told.is_none_or(|told| told.active != unit.active.as_str() || told.hash != unit.hash) {
                missing
                    .push(format!("the hub does not know that {name} is {} on {host}", unit.active.as_str()));
            }
        }
        for name in machine.systemd.units.keys().filter(|name| !wanted.contains(name)) {
            missing.push(format!("{name} is left on {host}"));
        }
    }
    let dead = world.machines().iter().filter(|machine| !machine.is_well());
    for machine in dead {
        if !world.hub.list(&keys::states_of(&machine.id)).is_empty() {
            missing.push(format!("the hub has states of {}, which is not well", machine.host));
        }
    }
}
