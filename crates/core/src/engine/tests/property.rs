//! Whatever happens, in whatever order: what the engine came to step by step, an engine that sees the cluster for the
//! first time would leave as it is, and no rule is broken.

use super::*;
use proptest::prelude::*;

const RULES: [&str; 12] = [
    "",
    "",
    "MachineMetadata=zone=a",
    "MachineMetadata=zone=a\nMachineMetadata=zone=b\nMachineMetadata=disk=ssd",
    "Conflicts=u@*.service",
    "Conflicts=v@?.service w@*",
    "MachineOf=u@%i.service",
    "MachineOf=\"u@%i.service\" \"v@1.service\"",
    "Replaces=u@*.service",
    "Global=true\nMachineMetadata=zone=b",
    "OnPartition=stop",
    "CPUQuota=70%|",
];

#[derive(Debug, Clone)]
enum Step {
    Boot(u32, u8),
    Kill(u32),
    Start(u8, u8, u8),
    Inactive(u8, u8),
    Destroy(u8, u8),
    Maintain(u32, u8),
    Metadata(u32, u8),
    Report(u8, u8, u32, bool),
    Wait,
    Meddle(u8, u8, u32),
    Move(u8, u8, u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (machine, kind, number) = (1..6_u32, 0..3_u8, 1..4_u8);
    let step = prop_oneof![
        3 => (machine.clone(), 0..4_u8).prop_map(|(m, facts)| Step::Boot(m, facts)),
        1 => machine.clone().prop_map(Step::Kill),
        8 => (kind.clone(), number.clone(), 0..12_u8).prop_map(|(k, n, rule)| Step::Start(k, n, rule)),
        1 => (kind.clone(), number.clone()).prop_map(|(k, n)| Step::Inactive(k, n)),
        2 => (kind.clone(), number.clone()).prop_map(|(k, n)| Step::Destroy(k, n)),
        2 => (machine.clone(), 0..3_u8).prop_map(|(m, state)| Step::Maintain(m, state)),
        1 => (machine.clone(), 0..3_u8).prop_map(|(m, pairs)| Step::Metadata(m, pairs)),
        2 => (kind.clone(), number.clone(), machine.clone(), any::<bool>())
            .prop_map(|(k, n, m, alive)| Step::Report(k, n, m, alive)),
        2 => Just(Step::Wait),
        1 => (kind.clone(), number.clone(), machine.clone()).prop_map(|(k, n, m)| Step::Meddle(k, n, m)),
        1 => (kind, number, machine).prop_map(|(k, n, m)| Step::Move(k, n, m)),
    ];
    prop::collection::vec(step, 1..60)
}

fn unit(kind: u8, number: u8) -> String {
    format!("{}@{number}.service", ["u", "v", "w"][kind as usize])
}

fn carry_out(world: &mut World, step: &Step) {
    match step {
        Step::Boot(m, facts) => {
            let zone = [("zone", "a"), ("zone", "b"), ("disk", "ssd"), ("disk", "hdd")];
            let metadata = [zone[(*facts % 2) as usize], zone[2 + (*facts / 2) as usize]];
            let capacity = (facts % 2 == 0).then_some(Capacity { memory: 1 << 30, cpus: 1 });
            world.boot_with(*m, &metadata, capacity);
        }
        Step::Kill(m) => {
            world.kill(*m);
        }
        Step::Start(k, n, rule) => {
            // Circles of `MachineOf=` on itself are refused by the file's own check: they make it unreadable here.
            world.start(&unit(*k, *n), RULES[*rule as usize]);
        }
        Step::Inactive(k, n) => {
            world.set(&unit(*k, *n), "", "inactive");
        }
        Step::Destroy(k, n) => {
            world.destroy(&unit(*k, *n));
        }
        Step::Maintain(m, state) => {
            world.maintain(
                *m,
                [None, Some(Maintenance::Cordoned), Some(Maintenance::Draining)][*state as usize],
            );
        }
        Step::Metadata(m, pairs) => {
            let all = [("zone", Some("a")), ("zone", None), ("disk", Some("ssd"))];
            world.set_metadata(*m, &all[*pairs as usize..=*pairs as usize]);
        }
        Step::Report(k, n, m, alive) => {
            if world.cluster.machines.contains_key(&id(*m)) {
                world.report(&unit(*k, *n), *m, if *alive { "active" } else { "inactive" });
            }
        }
        Step::Wait => {
            world.advance(HOLD);
        }
        Step::Meddle(k, n, m) => {
            let key = keys::schedule(&id(*m), &name(&unit(*k, *n)));
            world.delete(&[key]);
        }
        Step::Move(k, n, m) => {
            world.put(&keys::move_order(&name(&unit(*k, *n))), &model::MoveRecord::new(id(*m)));
        }
    }
}

/// Every rule, counted the slow way.
fn broken(world: &World) -> Option<String> {
    let cluster = &world.cluster;
    for (unit, machines) in &cluster.schedule {
        let Some(known) = cluster.units.get(unit) else { return Some(format!("{unit} is not known")) };
        if known.record.desired == model::DesiredState::Inactive {
            return Some(format!("{unit} is inactive and on {machines:?}"));
        }
        if !known.is_global() && machines.len() > 1 {
            return Some(format!("{unit} is on {machines:?}"));
        }
        // What is on a machine that is gone may have to be waited for.
        if !machines.keys().any(|machine| cluster.machines.contains_key(machine)) {
            continue;
        }
        let Ok(asks) = &known.requirements else { return Some(format!("{unit} is unreadable")) };
        for machine in machines.keys().filter(|machine| cluster.machines.contains_key(*machine)) {
            let metadata = cluster.metadata_of(machine);
            let fits = asks.metadata.iter().all(|(k, v)| metadata.get(k).is_some_and(|has| v.contains(has)));
            if !fits {
                return Some(format!("{unit} asks for other metadata than {machine} has"));
            }
            for peer in &asks.machine_of {
                if !cluster.schedule.get(peer).is_some_and(|on| on.contains_key(machine)) {
                    return Some(format!("{unit} is on {machine:?} without {peer}"));
                }
            }
            for (other, on) in &cluster.schedule {
                if other == unit || !on.contains_key(machine) {
                    continue;
                }
                if asks.conflicts.iter().any(|glob| glob.matches(other.as_str())) {
                    return Some(format!("{unit} conflicts with {other} on {machine:?}"));
                }
                let theirs = cluster.units.get(other).and_then(|unit| unit.requirements.as_ref().ok());
                let back = theirs.is_some_and(|t| t.replaces.iter().any(|glob| glob.matches(unit.as_str())));
                if !back && asks.replaces.iter().any(|glob| glob.matches(other.as_str())) {
                    return Some(format!("{unit} is to replace {other} on {machine:?}"));
                }
            }
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn step_by_step_and_all_at_once_agree(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            carry_out(&mut world, step);
            prop_assert_eq!(broken(&world), None, "after {:?}", step);
            // What is held, and what may still run on a machine that is gone, is only known to who saw it go.
            if world.engine.holding.is_some() || !world.engine.fenced.is_empty() {
                continue;
            }
            let mut fresh = Engine::new(Revision(7), Timestamp(0));
            let mut out = Vec::new();
            fresh.step(world.now, Event::Hub(world.cluster.deltas()), &mut out);
            if out.contains(&Effect::Probe) {
                fresh.step(world.now, Event::Overdue(BTreeSet::new()), &mut out);
            }
            if fresh.holding.is_some() {
                continue;
            }
            out.retain(|effect| matches!(effect, Effect::Schedule(_) | Effect::Unschedule { .. }));
            prop_assert_eq!(&out, &[], "after {:?} of {:?}", step, steps);
            for (machine, m) in &fresh.state.by_id {
                let Some(known) = world.engine.state.by_id.get(machine) else { continue };
                let (a, b) = (fresh.state.rank(*m), world.engine.state.rank(*known));
                prop_assert_eq!((a.0, a.1, a.2), (b.0, b.1, b.2), "{:?} after {:?}", machine, step);
            }
        }
        // Nothing is left behind.
        for n in 1..6 {
            world.maintain(n, None);
            world.delete(&[keys::metadata(&id(n))]);
        }
        for name in world.cluster.units.keys().cloned().collect::<Vec<_>>() {
            world.destroy(name.as_str());
        }
        for name in world.cluster.states.keys().cloned().collect::<Vec<_>>() {
            let on: Vec<_> = world.cluster.states[&name].keys().map(|m| keys::state(m, &name)).collect();
            world.delete(&on);
        }
        for n in 1..6 {
            world.kill(n);
        }
        world.advance(HOLD);
        prop_assert!(world.engine.state.by_name.is_empty(), "{:?}", world.engine.state.by_name);
        prop_assert!(world.engine.state.by_id.is_empty(), "{:?}", world.engine.state.by_id);
        prop_assert!(world.engine.state.open.is_empty() && world.engine.state.pools.is_empty());
        prop_assert_eq!(world.engine.waiting(), 0);
    }
}
