//! Operators' verbs on real machines: why, cordon, drain, rebalance, events; and a leader that dies.

use crate::{Lab, alone};
use story::eventually;

#[test]
fn machines_are_drained_and_filled_again() {
    let _alone = alone();
    let cluster = Lab::up(3);
    let submit = |name: &str, fleet: &str| {
        let text = format!("[Service]\nExecStart=/bin/sleep infinity\n[X-Fleet]\n{fleet}\n");
        cluster.m1().write_file(format!("/root/{name}"), text, 0o644).expect("written");
        cluster.sh(&format!("muster submit {name}")).expect("submitted");
    };
    let at = |unit: &str| {
        let running = cluster.units().expect("listed").into_iter();
        let mut on = running.filter(|row| row.unit == unit && row.active == "active").map(|row| row.machine);
        (on.next(), on.next())
    };
    submit("app@.service", "");
    submit("side@.service", "MachineOf=app@%i.service");
    submit("pinned.service", "MachineMetadata=number=2");
    submit("everywhere.service", "Global=true");
    cluster.muster(&["start", "app@{1..6}"]).expect("active");
    cluster.muster(&["start", "side@{1..6}", "pinned", "everywhere"]).expect("active");

    let drained = cluster.m1().exec(&["muster", "drain", "m2", "--reason", "new disk"]).expect("runs");
    assert_eq!(drained.code(), 3, "the pinned unit stays: {drained:?}");
    assert!(drained.stderr.contains("pinned.service stays on m2"), "{}", drained.stderr);
    assert!(drained.stderr.contains("everywhere.service is global and stays"), "{}", drained.stderr);
    // The machine is empty when its units have stopped; the others may still be starting theirs.
    eventually("each app runs elsewhere, with its sidekick", || {
        let moved = |n: u32| {
            let (app, second) = at(&format!("app@{n}.service"));
            let with_sidekick = app == at(&format!("side@{n}.service")).0;
            app.is_some_and(|app| app != "m2") && second.is_none() && with_sidekick
        };
        Ok((1..=6).all(moved))
    })
    .expect("it does");
    let list = cluster.muster(&["list-machines"]).expect("listed");
    assert!(list.contains("draining (new disk)"), "{list}");
    let why = cluster.muster(&["why", "pinned"]).expect("explained");
    assert!(why.contains("MachineMetadata number=2 is asked for, it has number=1"), "{why}");

    cluster.muster(&["undrain", "m2"]).expect("open");
    assert_ne!(at("app@1.service").0.as_deref(), Some("m2"), "nothing comes back by itself");
    let plan = cluster.muster(&["rebalance", "--plan"]).expect("planned");
    assert!(plan.contains("m2 ("), "{plan}");
    cluster.muster(&["rebalance", "--yes"]).expect("moved");
    let counts = || -> Vec<usize> {
        let rows = cluster.units().expect("listed");
        let on = |machine: &str| rows.iter().filter(|row| row.machine == machine).count();
        ["m1", "m2", "m3"].map(on).into()
    };
    eventually("the load is even", || {
        let counts = counts();
        Ok(counts.iter().max().zip(counts.iter().min()).is_some_and(|(most, least)| most - least <= 2))
    })
    .expect("it is");
    let events = cluster.muster(&["events", "--unit", "app@1"]).expect("listed");
    assert!(events.contains("scheduled"), "{events}");
    let watched =
        cluster.m1().exec(&["timeout", "2", "muster", "events", "--watch", "--unit", "app@1"]).expect("runs");
    assert!(watched.stdout.contains("app@1.service"), "{watched:?}");
    let why = cluster.muster(&["why", "app@1", "-o", "json"]).expect("explained");
    assert!(why.contains("\"verdicts\""), "{why}");
}

#[test]
fn another_engine_leads_when_the_leader_dies() {
    let _alone = alone();
    let cluster = Lab::up_with(3, story::cluster::Hub::Etcd);
    let text = "[Service]\nExecStart=/bin/sleep infinity\n";
    cluster.m1().write_file("/root/app@.service".to_owned(), text, 0o644).expect("written");
    cluster.sh("muster submit app@.service").expect("submitted");
    cluster.muster(&["start", "app@{1..6}"]).expect("active");
    let leader = || -> Option<String> {
        let record = cluster.muster(&["kv", "get", "/muster/v1/engine/leader"]).ok()?;
        let machines = cluster.lab.machines();
        let is_leader = |id: &str| record.contains(id.trim());
        let mut leaders = machines
            .iter()
            .filter(|machine| machine.exec_ok(&["cat", "/etc/machine-id"]).is_ok_and(|id| is_leader(&id)));
        leaders.next().map(|machine| machine.name().to_owned())
    };
    let first = leader().expect("somebody leads");
    // From a machine that lives on; the hub is etcd on m1, and stays.
    let victim = cluster.lab.machine(&first).expect("known");
    let since = std::time::Instant::now();
    // The stop is only so that systemd does not start it again.
    let kill = "systemctl kill --signal=KILL --kill-who=main muster; systemctl stop muster";
    victim.exec_ok(&["sh", "-c", kill]).expect("killed");
    let asks = cluster.lab.machines().into_iter().find(|machine| machine.name() != first).expect("three");
    eventually("another one leads", || {
        let record = asks.exec(&["muster", "kv", "get", "/muster/v1/engine/leader"])?;
        let id = victim.exec_ok(&["cat", "/etc/machine-id"])?;
        Ok(record.success() && !record.stdout.contains(id.trim()))
    })
    .expect("it does");
    eprintln!("another engine led {:?} after the first was killed", since.elapsed());
    // The daemon is dead and its machine's lease ends later: only then do units move.
    asks.exec_ok(&["muster", "start", "app@7"]).expect("decided by the new leader");
    let events = asks.exec_ok(&["muster", "events"]).expect("listed");
    assert!(events.contains("leads"), "{events}");
}
