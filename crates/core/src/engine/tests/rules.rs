//! Each rule, one after another.

use super::*;

const STOP: &str = "OnPartition=stop";

#[test]
fn four_copies_run_on_four_machines_each_with_its_sidekick() {
    let mut world = World::with_machines(4);
    for n in 1..=4 {
        world.start(&format!("app@{n}.service"), "");
    }
    for n in 1..=4 {
        world.start(&format!("side@{n}.service"), "MachineOf=app@%i.service");
    }
    let homes: BTreeSet<_> = (1..=4).filter_map(|n| world.at(&format!("app@{n}.service"))).collect();
    assert_eq!(homes.len(), 4);
    for n in 1..=4 {
        assert_eq!(world.at(&format!("app@{n}.service")), world.at(&format!("side@{n}.service")));
    }
    assert!(world.advance(HOLD).is_empty(), "a settled cluster is left alone");
}

#[test]
fn a_dead_machines_units_move_together_and_nothing_else_moves() {
    let mut world = World::with_machines(4);
    for n in 1..=4 {
        world.start(&format!("side@{n}.service"), "MachineOf=app@%i.service");
        world.start(&format!("app@{n}.service"), "");
    }
    let before = world.schedule();
    let victim = world.at("app@3.service").expect("placed");
    let done = world.kill(victim);
    assert_eq!((done.scheduled.len(), done.unscheduled.len()), (2, 2), "{done:?}");
    assert_eq!(world.at("app@3.service"), world.at("side@3.service"));
    assert_ne!(world.at("app@3.service"), Some(victim));
    for (unit, machines) in before {
        if !machines.contains(&id(victim)) {
            assert_eq!(world.schedule().get(&unit), Some(&machines), "{unit} moved");
        }
    }
    assert!(world.boot(victim, &[]).is_empty(), "a machine that comes back takes nothing");
}

#[test]
fn a_group_goes_where_all_of_it_may_run() {
    let mut world = World::new();
    world.boot(1, &[]);
    world.boot(2, &[("disk", "ssd")]);
    world.boot(3, &[]);
    world.start("busy.service", "MachineMetadata=disk=ssd");
    world.start("side.service", "MachineOf=app.service\nMachineMetadata=disk=ssd");
    assert_eq!(world.at("side.service"), None);
    world.start("app.service", "");
    assert_eq!((world.at("app.service"), world.at("side.service")), (Some(2), Some(2)));
    // One that fits nowhere holds up nobody else.
    world.start("odd.service", "MachineOf=app.service\nMachineMetadata=disk=hdd");
    assert_eq!(world.at("odd.service"), None);
    world.kill(2);
    assert_eq!(world.at("app.service"), Some(1), "alone, for no machine takes all");
    assert_eq!(world.at("side.service"), None);
}

#[test]
fn circles_are_told() {
    let mut world = World::with_machines(2);
    world.start("a.service", "MachineOf=b.service");
    world.start("b.service", "MachineOf=c.service");
    world.start("c.service", "MachineOf=a.service");
    world.start("d.service", "MachineOf=a.service");
    assert!(world.cluster.schedule.is_empty());
    assert_eq!(
        world.why("a.service", 1),
        "MachineOf goes round in a circle: a.service → b.service → c.service → a.service (remove one of them)"
    );
    world.start("c.service", "");
    assert_eq!(world.schedule().len(), 4, "the circle is open: all run, together");
    assert_eq!(world.at("d.service"), world.at("c.service"));
    world.start("c.service", "MachineOf=a.service");
    assert!(world.cluster.schedule.is_empty());
}

#[test]
fn most_machines_gone_at_once_is_not_believed() {
    let mut world = World::with_machines(4);
    for n in 1..=4 {
        world.start(&format!("app@{n}.service"), "");
    }
    let before = world.schedule();
    world.overdue = [id(2), id(3)].into();
    world.kill(1);
    assert_eq!(world.schedule(), before, "leases that end one after another are one event");
    assert!(matches!(world.notices.last(), Some(Notice::Holding(held)) if held.len() == 1));
    world.kill(2);
    world.kill(3);
    world.overdue.clear();
    assert_eq!(world.schedule(), before);
    world.boot(1, &[]);
    world.boot(2, &[]);
    world.advance(Duration::from_secs(1));
    assert_eq!(world.schedule(), before, "the third may be on its way back, too");
    assert_eq!(world.timer, Some(world.now.after(Duration::from_secs(1))));
    world.advance(HOLD);
    assert_ne!(world.schedule(), before, "it stayed away: its unit moves");
    assert_eq!(world.notices.last(), Some(&Notice::Released));
}

#[test]
fn after_the_hub_was_away_nobody_is_given_up_before_leases_could_be_renewed() {
    let mut world = World::with_machines(3);
    world.start("a.service", "MachineID=00000001");
    world.start("b.service", "");
    let home = world.at("b.service").expect("placed");
    let mut cluster = world.cluster.clone();
    cluster.machines.remove(&id(home));
    let mut engine = Engine::new(Revision(8), world.now.after(Duration::from_secs(5)));
    let mut out = Vec::new();
    engine.step(world.now, Event::Hub(cluster.deltas()), &mut out);
    assert_eq!(out, [Effect::SetTimer(world.now.after(Duration::from_secs(5)))]);
    out.clear();
    engine.step(world.now.after(Duration::from_secs(5)), Event::Tick, &mut out);
    assert_eq!(out, [Effect::Probe]);
    out.clear();
    engine.step(world.now.after(Duration::from_secs(5)), Event::Overdue(BTreeSet::new()), &mut out);
    assert!(out.iter().any(|effect| matches!(effect, Effect::Schedule(_))), "{out:?}");
}

#[test]
fn refusals_name_the_rule() {
    let mut world = World::with_machines(1);
    world.boot(2, &[("region", "eu")]);
    world.start("a.service", "MachineMetadata=region=us");
    assert_eq!(world.why("a.service", 1), "MachineMetadata region=us is asked for, it has no region");
    assert_eq!(world.why("a.service", 2), "MachineMetadata region=us is asked for, it has region=eu");
    world.start("a.service", "MachineOf=b.service");
    assert!(world.why("a.service", 1).starts_with("MachineOf=b.service is not scheduled anywhere"));
    world.start("a.service", "MachineID=ffffffff");
    assert!(world.why("a.service", 1).starts_with("MachineID=ffffffff"));
    world.destroy("a.service");
    assert_eq!(world.engine.why(&name("a.service")), None);
    world.start("c@1.service", "Conflicts=c@*.service");
    world.start("c@2.service", "Conflicts=c@*.service");
    world.start("c@3.service", "");
    assert!(world.why("c@3.service", 1).starts_with("conflicts with c@"), "conflicts are symmetric");
    assert_eq!(world.engine.refusals(&name("c@3.service")).len(), 2);
    world.destroy("c@1.service");
    assert!(world.at("c@3.service").is_some(), "the place that becomes free is taken");
}

#[test]
fn metadata_of_one_key_is_or_and_of_several_keys_is_and() {
    let mut world = World::new();
    world.boot(1, &[("region", "eu"), ("disk", "hdd")]);
    world.boot(2, &[("region", "us"), ("disk", "ssd")]);
    let wanted = "MachineMetadata=region=eu\nMachineMetadata=region=us\nMachineMetadata=disk=ssd";
    world.start("a.service", wanted);
    assert_eq!(world.at("a.service"), Some(2));
    world.set_metadata(1, &[("disk", Some("ssd"))]);
    world.set_metadata(2, &[("disk", None)]);
    assert_eq!(world.at("a.service"), Some(1), "metadata from outside move units");
    world.delete(&[keys::metadata(&id(1)), keys::metadata(&id(2))]);
    assert_eq!(world.at("a.service"), Some(2));
}

#[test]
fn global_units_run_everywhere_and_conflict_with_others() {
    let mut world = World::with_machines(2);
    world.start("g.service", "Global=true");
    assert_eq!(world.schedule()[&name("g.service")].len(), 2);
    world.boot(3, &[]);
    assert_eq!(world.schedule()[&name("g.service")].len(), 3);
    world.start("follower.service", "MachineOf=g.service");
    assert!(world.at("follower.service").is_some(), "it is where a global unit is: anywhere");
    world.start("alone.service", "Conflicts=g.*");
    assert_eq!(world.at("alone.service"), None);
    world.start("h.service", "Global=true\nConflicts=g.service");
    assert_eq!(world.at("h.service"), None);
    world.set("g.service", "Global=true", "inactive");
    assert_eq!(world.schedule()[&name("h.service")].len(), 3);
    assert!(world.at("alone.service").is_some());
    world.destroy("h.service");
    world.start("g.service", "Global=true");
    let taken = world.at("alone.service").expect("it stays");
    assert!(!world.schedule()[&name("g.service")].contains(&id(taken)));
    world.destroy("alone.service");
    assert_eq!(world.schedule()[&name("g.service")].len(), 3);
}

#[test]
fn a_unit_takes_the_place_of_those_that_it_replaces() {
    let mut world = World::with_machines(2);
    world.start("old@1.service", "");
    world.start("side.service", "MachineOf=old@1.service");
    let home = world.at("old@1.service");
    let done = world.start("new.service", "Replaces=old@*.service");
    assert_eq!(world.at("new.service"), home);
    assert!(world.at("old@1.service").is_some() && world.at("old@1.service") != home);
    assert_eq!(world.at("side.service"), world.at("old@1.service"), "the sidekick goes along");
    assert!(done.unscheduled.iter().all(|(.., why)| *why == Removal::Replaced(name("new.service"))));
    world.start("old@2.service", "");
    assert_eq!(world.at("old@2.service"), world.at("old@1.service"));
    assert!(
        world.why("old@2.service", home.expect("placed")).contains("new.service"),
        "it may not come back"
    );
}

#[test]
fn who_cannot_go_elsewhere_is_not_replaced() {
    let mut world = World::with_machines(1);
    world.start("old.service", "");
    world.start("new.service", "Replaces=old.service");
    assert_eq!((world.at("old.service"), world.at("new.service")), (Some(1), None));
    assert!(
        world.why("new.service", 1).contains("no other machine can run"),
        "{}",
        world.why("new.service", 1)
    );
    world.boot(2, &[]);
    assert!(world.at("new.service").is_some() && world.at("new.service") != world.at("old.service"));
    let mut world = World::with_machines(1);
    world.start("a.service", "Replaces=b.service");
    world.start("b.service", "Replaces=a.service");
    assert_eq!((world.at("a.service"), world.at("b.service")), (Some(1), Some(1)), "a circle is ignored");
}

#[test]
fn limits_are_added_up_and_never_stop_what_runs() {
    let mut world = World::new();
    let capacity = |gib: u64| Some(Capacity { memory: gib << 30, cpus: 2 });
    world.boot_with(1, &[], capacity(4));
    world.start("a.service", "MemoryMax=3G|");
    world.start("b.service", "MemoryMax=50%|");
    assert_eq!(world.why("b.service", 1), "MemoryMax is 2048 MiB, 1024 MiB left");
    world.start("none.service", "");
    assert_eq!(world.at("none.service"), Some(1), "without a limit there is nothing to add up");
    world.boot_with(2, &[], capacity(4));
    assert_eq!(world.at("b.service"), Some(2));
    world.start("c.service", "CPUQuota=150%|");
    assert_eq!(world.at("c.service"), Some(2), "fewer units");
    world.start("d.service", "CPUQuota=100%|MachineID=00000002");
    assert_eq!(world.why("d.service", 2), "CPUQuota is 100%, 50% left");
    world.destroy("c.service");
    assert_eq!(world.at("d.service"), Some(2));
    world.start("a.service", "MemoryMax=9G|");
    assert_eq!(world.at("a.service"), Some(1), "it was updated where it is");
    world.boot_with(1, &[], capacity(1));
    assert_eq!(world.at("a.service"), Some(1));
}

#[test]
fn a_machine_that_is_drained_is_left_in_groups() {
    let mut world = World::new();
    world.boot(1, &[]);
    world.start("app.service", "");
    world.start("side.service", "MachineOf=app.service");
    world.start("pinned.service", "MachineID=00000001");
    world.start("g.service", "Global=true");
    world.boot(2, &[]);
    assert!(world.maintain(1, Some(Maintenance::Cordoned)).is_empty(), "what runs stays");
    world.start("next.service", "");
    assert_eq!(world.at("next.service"), Some(2));
    let done = world.maintain(1, Some(Maintenance::Draining));
    assert_eq!((done.scheduled.len(), done.unscheduled.len()), (2, 2), "{done:?}");
    assert_eq!((world.at("app.service"), world.at("side.service")), (Some(2), Some(2)));
    assert_eq!(world.at("pinned.service"), Some(1));
    let stuck = Notice::Stuck { unit: name("pinned.service"), machine: id(1) };
    assert!(world.notices.contains(&stuck), "{:?}", world.notices);
    assert_eq!(world.schedule()[&name("g.service")].len(), 2, "global units stay");
    world.start("pinned.service", "");
    assert_eq!(world.at("pinned.service"), Some(2), "free to go, it goes");
    assert!(world.maintain(1, None).is_empty(), "nothing comes back by itself");
}

#[test]
fn a_unit_that_stops_on_partition_is_never_started_twice() {
    let mut world = World::with_machines(3);
    world.start("db.service", STOP);
    world.start("web.service", "");
    let home = world.at("db.service").expect("placed");
    world.report("db.service", home, "active");
    world.kill(home);
    assert_eq!(world.at("db.service"), Some(home), "it may still run there");
    assert_eq!(world.timer, Some(world.now.after(FENCE)));
    world.set("db.service", STOP, "inactive");
    world.start("db.service", STOP);
    assert_eq!(world.at("db.service"), None, "not even after it was taken away by hand");
    world.advance(FENCE - Duration::from_millis(1));
    assert_eq!(world.at("db.service"), None);
    world.advance(Duration::from_millis(1));
    let second = world.at("db.service").expect("healed");
    assert_ne!(second, home);
    // A move in order: first one stops, then the other starts.
    world.report("db.service", second, "active");
    world.maintain(second, Some(Maintenance::Draining));
    assert_eq!(world.at("db.service"), None);
    world.report("db.service", second, "deactivating");
    assert_eq!(world.at("db.service"), None);
    world.delete(&[keys::state(&id(second), &name("db.service"))]);
    assert!(world.at("db.service").is_some_and(|at| at != second));
}

#[test]
fn a_fenced_unit_that_may_be_starting_is_waited_for() {
    let mut world = World::with_machines(2);
    world.start("db.service", STOP);
    let home = world.at("db.service").expect("placed");
    // Its machine has not said yet that anything runs: the start may be under way.
    world.maintain(home, Some(Maintenance::Draining));
    assert_eq!(world.at("db.service"), None);
    world.advance(FENCE - Duration::from_millis(1));
    assert_eq!(world.at("db.service"), None);
    world.advance(Duration::from_millis(1));
    assert!(world.at("db.service").is_some_and(|at| at != home));
}

#[test]
fn a_machine_that_shuts_down_is_left_at_once() {
    let mut world = World::with_machines(4);
    for n in 1..=4 {
        world.start(&format!("app@{n}.service"), "");
        world.start(&format!("side@{n}.service"), "MachineOf=app@%i.service");
    }
    world.start("g.service", "Global=true");
    let first = world.at("app@1.service").expect("placed");
    let done = world.leave(first);
    assert_eq!((done.scheduled.len(), done.unscheduled.len()), (2, 3), "{done:?}");
    assert!(world.at("app@1.service").is_some_and(|at| at != first), "while it is still there");
    assert_eq!(world.at("app@1.service"), world.at("side@1.service"));
    world.start("late.service", &format!("MachineID={}", id(first).short()));
    assert_eq!(world.why("late.service", first), "the machine shuts down");
    // Most machines at once, all of them on purpose: nothing to wait for.
    let second = world.at("app@2.service").expect("placed");
    let third = (1..=4).find(|n| ![first, second].contains(n)).expect("four");
    for n in [second, third] {
        world.leave(n);
    }
    for n in [first, second, third] {
        assert!(world.kill(n).is_empty(), "nothing was there any more");
    }
    assert!(!world.notices.iter().any(|notice| matches!(notice, Notice::Holding(_))));
    let on: BTreeSet<_> = (1..=4).map(|n| world.at(&format!("app@{n}.service"))).collect();
    assert_eq!(on.len(), 1, "all on the last one: {on:?}");
    assert_eq!(world.boot(first, &[]).scheduled.len(), 2, "the global unit, and the one that waited for it");
}

#[test]
fn a_fenced_unit_follows_when_its_machine_that_shuts_down_calls_it_dead() {
    let mut world = World::with_machines(3);
    world.start("db.service", STOP);
    let home = world.at("db.service").expect("placed");
    world.report("db.service", home, "active");
    world.leave(home);
    assert_eq!(world.at("db.service"), None);
    world.report("db.service", home, "deactivating");
    assert_eq!(world.at("db.service"), None);
    world.report("db.service", home, "inactive");
    let second = world.at("db.service").expect("at once, and not after the fence");
    assert_ne!(second, home);
    // The next one says good-bye while the unit still stops.
    world.report("db.service", second, "active");
    world.leave(second);
    world.kill(second);
    assert_eq!(world.at("db.service"), None);
    world.advance(FENCE - Duration::from_millis(1));
    assert_eq!(world.at("db.service"), None);
    world.advance(Duration::from_millis(1));
    assert!(world.at("db.service").is_some_and(|at| at != second));
}

#[test]
fn who_says_good_bye_before_anybody_has_looked_is_not_asked_after() {
    // A leader of this moment, before which no machine counts as gone.
    let mut world = World::with_machines(3);
    world.start("web.service", "");
    let home = world.at("web.service").expect("placed");
    let mut record = world.cluster.machines[&id(home)].clone();
    record.leaving = true;
    world.engine = Engine::new(Revision(8), world.now.after(HOLD));
    world.step(Event::Hub(world.cluster.deltas()));
    let both = vec![Delta::Machine(id(home), Some(record)), Delta::Machine(id(home), None)];
    world.cluster.delete(&keys::machine(&id(home)));
    world.step(Event::Hub(both));
    assert!(world.at("web.service").is_some_and(|at| at != home));
}

#[test]
fn a_unit_that_its_fence_stopped_may_start_where_it_was() {
    let mut world = World::with_machines(2);
    world.start("db.service", STOP);
    let home = world.at("db.service").expect("placed");
    world.report("db.service", home, "active");
    world.maintain(home, Some(Maintenance::Draining));
    // Its machine has not heard of that, and the hub's news of the stop are older than the next start.
    world.report_launch("db.service", home, "inactive", 0);
    assert_eq!(world.at("db.service"), None);
    world.report("db.service", home, "active");
    world.advance(FENCE);
    assert_eq!(world.at("db.service"), None, "it did");
    world.report("db.service", home, "inactive");
    assert!(world.at("db.service").is_some_and(|at| at != home));
}

#[test]
fn a_fence_begins_anew_when_the_machine_that_was_told_to_stop_is_lost() {
    let mut world = World::with_machines(2);
    world.start("db.service", STOP);
    let home = world.at("db.service").expect("placed");
    world.maintain(home, Some(Maintenance::Draining));
    world.advance(FENCE / 2);
    // It never heard of it: its own fence begins with its lease's end.
    world.kill(home);
    world.advance(FENCE - Duration::from_millis(1));
    assert_eq!(world.at("db.service"), None);
    world.advance(Duration::from_millis(1));
    assert!(world.at("db.service").is_some_and(|at| at != home));
}

#[test]
fn a_changed_unit_is_updated_where_it_is() {
    let mut world = World::with_machines(3);
    world.start("a.service", "");
    let home = world.at("a.service");
    let done = world.set("a.service", "", "loaded");
    assert!(
        done.unscheduled.is_empty() && done.scheduled.len() == 1 && done.scheduled[0].why == Reason::Updated
    );
    assert_eq!(world.at("a.service"), home);
}

#[test]
fn what_somebody_wrote_into_the_schedule_is_put_right() {
    let mut world = World::with_machines(3);
    world.start("a.service", "");
    let (home, record) = world.cluster.schedule[&name("a.service")].iter().next().expect("placed");
    let (home, record) = (home.clone(), record.clone());
    let other = (1..=3).map(id).find(|machine| *machine != home).expect("three");
    world.put(&keys::schedule(&other, &name("a.service")), &record);
    assert_eq!(world.schedule()[&name("a.service")].len(), 1);
    world.put(&keys::schedule(&other, &name("ghost.service")), &record);
    assert!(!world.schedule().contains_key(&name("ghost.service")));
    let key = keys::schedule(&home, &name("a.service"));
    world.delete(&[key]);
    assert!(world.at("a.service").is_some());
}

#[test]
fn what_is_kept_about_machines_that_never_come_back_goes() {
    let mut world = World::with_machines(2);
    world.maintain(2, Some(Maintenance::Cordoned));
    world.set_metadata(3, &[("zone", Some("a"))]);
    world.advance(FORGET);
    assert!(world.cluster.metadata.is_empty(), "set for a machine that never came");
    assert_eq!(world.cluster.maintenance.len(), 1, "this one is there");
    world.kill(2);
    world.advance(FORGET - Duration::from_millis(1));
    assert_eq!(world.cluster.maintenance.len(), 1);
    world.advance(Duration::from_millis(1));
    assert!(world.cluster.maintenance.is_empty());
}

#[test]
fn rebalance_moves_as_little_as_it_takes() {
    let mut world = World::with_machines(1);
    for n in 1..=6 {
        world.start(&format!("app@{n}.service"), "");
    }
    world.start("side.service", "MachineOf=app@1.service");
    world.start("pinned.service", "MachineID=00000001");
    world.boot(2, &[]);
    let plan = world.engine.rebalance();
    assert_eq!(plan.len(), 4, "{plan:?}");
    assert!(plan.iter().all(|step| step.units.len() == 1 && step.to == id(2)));
    for step in &plan {
        for unit in &step.units {
            world.put(&keys::move_order(unit), &model::MoveRecord::new(step.to.clone()));
        }
    }
    let on = |world: &World, n: u32| world.schedule().values().filter(|on| on.contains(&id(n))).count();
    assert_eq!((on(&world, 1), on(&world, 2)), (4, 4));
    assert_eq!(world.engine.rebalance(), []);
    world.put(&keys::move_order(&name("pinned.service")), &model::MoveRecord::new(id(2)));
    assert_eq!(world.at("pinned.service"), Some(1));
    assert!(matches!(world.notices.last(), Some(Notice::MoveRefused { .. })));
}
