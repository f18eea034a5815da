//! fleet's functional tests of its cluster (`functional/*_test.go`): where units go when they exclude or replace each
//! other, and when machines come, go and shut down. Which of fleet's 43 tests is told anew where:
//!
//! | fleet's test | ours |
//! |---|---|
//! | `KnownHostsVerification`, `TunnelScheduleBatchUnits` | `fleet.rs`, `a9_tunnel` |
//! | `FleetctlWithEnv`, `ClientVersionFlag`, `ClientVersionHelpOutput`, `ClientHelpFlag` | `fleet.rs`, `a9_help_version_and_environment` |
//! | `DynamicClusterNewMemberUnitMigration` | here, [`a_unit_moves_to_the_free_machine_and_the_others_stay`] |
//! | `DynamicClusterMemberReboot` | here, [`of_a_machine_that_lost_power_one_unit_moves`] |
//! | `SingleNodeConnectivityLoss` | here, [`without_the_hub_every_state_is_kept`]; `faults.rs` |
//! | `InstallUnit` | `agent.rs`, `one_units_trouble_is_its_own_and_install_is_carried_out` |
//! | `MachinesList`, `MachinesListBadNextPageToken`, `MachinesPatchAddModify`, `MachinesPatchDelete`, `MachinesPatchBad` | `fleet.rs`, `a9_machines_and_their_metadata` |
//! | `TemplatesWithSpecifiersInMetadata` | `fleet.rs`, `a9_specifiers_in_metadata` |
//! | `NodeShutdown`, `Shutdown`, `ShutdownVsMonitor` | here, [`a_machine_shuts_down`] and [`without_the_hub_every_state_is_kept`] |
//! | `DetectMachineId` | `agent.rs`, `a_copied_machine_id_is_refused` |
//! | `ScheduleMachineOf` | here, [`a_machine_shuts_down`]; `story_told.rs` |
//! | `ScheduleConflicts`, `ScheduleConditionMachineID` | `placement.rs` |
//! | `ScheduleOneWayConflict`, `ScheduleMultipleConflicts`, `ScheduleGlobalConflicts` | here, [`conflicts`] |
//! | `ScheduleReplace`, `ScheduleCircularReplace` | here, [`replaces`] |
//! | `ScheduleGlobalUnits` | `fleet.rs`, `a9_global_units` |
//! | `ReconfigureServer` | `agent.rs`, the SIGHUP of `machines_keep_their_promises_when_things_go_away` |
//! | `SystemdUnitFlow` | not portable: fleet's own Go interface; `agent.rs` sees the same from outside |
//! | `UnitRunnable`, `UnitSubmit`, `UnitLoad`, `UnitStart` | `fleet.rs`, `a9_submit_load_and_start` |
//! | `UnitSubmitReplace`, `UnitLoadReplace`, `UnitStartReplace` | `fleet.rs`, `a9_replace` |
//! | `UnitRestart`, `UnitSSHActions`, `UnitCat`, `UnitStatus` | `fleet.rs`, `a9_restart_ssh_status_journal_cat` |
//! | `ListUnitFilesOrder` | `fleet.rs`, `a9_units_are_listed_in_order` |
//!
//! One thing differs. Of two units that replace each other fleet's test wants one to run; here such a pair counts as
//! two units that do not know each other, and both run: "no loop" holds either way.

use crate::{Lab, alone};
use lab::Machine;
use std::collections::{BTreeMap, BTreeSet};
use story::eventually;

const SLEEP: &str = "[Service]\nExecStart=/bin/sleep infinity\n";

#[test]
fn a9_fleets_functional_tests_of_scheduling() {
    let _alone = alone();
    let cluster = Lab::up(4);
    conflicts(&cluster);
    replaces(&cluster);
    a_unit_moves_to_the_free_machine_and_the_others_stay(&cluster);
    of_a_machine_that_lost_power_one_unit_moves(&cluster);
    without_the_hub_every_state_is_kept(&cluster);
    a_machine_shuts_down(&cluster);
}

fn submit(cluster: &Lab, name: &str, fleet: &str) {
    let text = format!("{SLEEP}[X-Fleet]\n{fleet}\n");
    cluster.m1().write_file(format!("/root/{name}"), text, 0o644).expect("written");
    cluster.sh(&format!("muster submit {name}")).expect("submitted");
}

/// Where units run whose names begin so.
fn active(cluster: &Lab, prefix: &str) -> BTreeMap<String, String> {
    let rows = cluster.units().expect("listed").into_iter();
    rows.filter(|row| row.unit.starts_with(prefix) && row.active == "active" && row.scheduled)
        .map(|row| (row.unit, row.machine))
        .collect()
}

fn machine(cluster: &Lab, name: &str) -> Machine {
    cluster.lab.machine(name).expect("known")
}

fn systemctl(machine: &Machine, arguments: &[&str]) -> String {
    let command: Vec<_> = ["systemctl"].iter().chain(arguments).copied().collect();
    machine.exec(&command).expect("systemctl runs").stdout.trim().to_owned()
}

fn power_off(machine: &Machine) {
    machine.exec_ok(&["systemctl", "--no-block", "poweroff"]).expect("ordered");
}

fn conflicts(cluster: &Lab) {
    // One way: only the first says so, and only on one machine there is a place for both.
    submit(cluster, "hello.service", "MachineMetadata=number=2");
    submit(cluster, "alone.service", "MachineMetadata=number=2\nConflicts=hello.service");
    cluster.muster(&["start", "alone"]).expect("active");
    cluster.muster(&["start", "--no-block", "hello"]).expect("ordered");
    let why = || cluster.muster(&["why", "hello"]).expect("explained");
    eventually("it waits", || Ok(why().contains("conflicts with alone.service"))).expect("it does");
    assert_eq!(active(cluster, "hello"), BTreeMap::new());
    cluster.muster(&["destroy", "alone"]).expect("destroyed");
    eventually("hello runs", || Ok(active(cluster, "hello").len() == 1)).expect("it does");
    cluster.muster(&["destroy", "hello"]).expect("destroyed");

    // Several in a line, and several lines.
    submit(cluster, "x@1.service", "Conflicts=x@2.service x@3.service");
    submit(cluster, "x@2.service", "Conflicts=x@1.service\nConflicts=x@3.service");
    submit(cluster, "x@3.service", "Conflicts=y*.service\nConflicts=x@[12].service");
    cluster.muster(&["start", "x@{1..3}"]).expect("active");
    let homes: BTreeSet<_> = active(cluster, "x@").into_values().collect();
    assert_eq!(homes.len(), 3, "{homes:?}");
    cluster.muster(&["destroy", "x@{1..3}"]).expect("destroyed");

    // Of two global units that exclude each other the second runs nowhere.
    submit(cluster, "g1.service", "Global=true\nConflicts=g2.service");
    submit(cluster, "g2.service", "Global=true");
    cluster.muster(&["start", "g1"]).expect("triggered");
    let running = |unit: &str| {
        let rows = cluster.units().expect("listed").into_iter();
        rows.filter(|row| row.unit == unit && row.active == "active").count()
    };
    eventually("the first runs everywhere", || Ok(running("g1.service") == 4)).expect("it does");
    cluster.muster(&["start", "--no-block", "g2"]).expect("ordered");
    cluster.muster(&["destroy", "g1"]).expect("destroyed");
    eventually("now the second does", || Ok(running("g2.service") == 4)).expect("it does");
    cluster.muster(&["destroy", "g2"]).expect("destroyed");
}

fn replaces(cluster: &Lab) {
    submit(cluster, "old.service", "MachineMetadata=\"number=2\" \"number=3\"");
    cluster.muster(&["start", "old"]).expect("active");
    let before = active(cluster, "old")["old.service"].clone();
    submit(cluster, "new.service", "Replaces=old.service");
    cluster.muster(&["start", "new"]).expect("active");
    assert_eq!(active(cluster, "new")["new.service"], before, "it takes the other's machine");
    let elsewhere = || Ok(active(cluster, "old").get("old.service").is_some_and(|at| *at != before));
    eventually("the other one runs elsewhere", elsewhere).expect("it does");
    cluster.muster(&["destroy", "old", "new"]).expect("destroyed");

    submit(cluster, "c1.service", "Replaces=c2.service");
    submit(cluster, "c2.service", "Replaces=c1.service");
    cluster.muster(&["start", "c1", "c2"]).expect("both run");
    let decisions =
        || cluster.muster(&["events", "-o", "json"]).expect("listed").matches("\"scheduled\"").count();
    let (first, homes) = (decisions(), active(cluster, "c"));
    assert_eq!(homes.len(), 2);
    cluster.muster(&["start", "c1"]).expect("nothing to do");
    assert_eq!(active(cluster, "c"), homes);
    assert!(decisions() <= first + 1, "they chase each other");
    cluster.muster(&["destroy", "c1", "c2"]).expect("destroyed");
}

/// Three units that exclude each other, on four machines, of which m1 has the hub.
fn a_unit_moves_to_the_free_machine_and_the_others_stay(cluster: &Lab) {
    submit(
        cluster,
        "one@.service",
        "Conflicts=one@*.service\nMachineMetadata=\"number=2\" \"number=3\" \"number=4\"",
    );
    cluster.muster(&["start", "one@{1..2}"]).expect("active");
    let before = active(cluster, "one@");
    let victim = before["one@1.service"].clone();
    power_off(&machine(cluster, &victim));
    let moved = || Ok(active(cluster, "one@").get("one@1.service").is_some_and(|at| *at != victim));
    eventually("it runs on the free machine", moved).expect("it does");
    assert_eq!(active(cluster, "one@")["one@2.service"], before["one@2.service"]);
    eventually("the machine is gone", || {
        Ok(!machine(cluster, &victim).is_running() && cluster.list("machines")?.len() == 3)
    })
    .expect("it is");
    let states = cluster.sh("muster kv ls --recursive /muster/v1/states").expect("listed");
    assert_eq!(states.lines().filter(|key| key.contains("one@")).count(), 2, "{states}");
    machine(cluster, &victim).start().expect("it boots");
}

fn of_a_machine_that_lost_power_one_unit_moves(cluster: &Lab) {
    cluster.muster(&["start", "one@3"]).expect("active, on the machine that is back");
    let before = active(cluster, "one@");
    assert_eq!(before.values().collect::<BTreeSet<_>>().len(), 3);
    let victim = machine(cluster, &before["one@2.service"]);
    victim.kill().expect("the power is cut");
    victim.start().expect("it boots");
    eventually("all three run", || Ok(active(cluster, "one@").len() == 3)).expect("they do");
    let after = active(cluster, "one@");
    let stayed = before.iter().filter(|(unit, at)| after.get(*unit) == Some(at)).count();
    assert!(stayed >= 2, "{before:?} {after:?}");
    cluster.muster(&["destroy", "one@{1..3}"]).expect("destroyed");
}

/// A single and a global unit of each desired state, looked at on m2 while nobody can reach the hub for longer than a
/// machine's lease.
fn without_the_hub_every_state_is_kept(cluster: &Lab) {
    let wanted = ["inactive", "loaded", "launched"];
    let names: Vec<_> = ["single", "global"]
        .iter()
        .flat_map(|kind| wanted.map(|state| format!("{kind}@{state}.service")))
        .collect();
    for name in &names {
        let fleet = if name.starts_with("single") { "MachineMetadata=number=2" } else { "Global=true" };
        submit(cluster, name, fleet);
        if name.contains("loaded") {
            cluster.muster(&["load", name]).expect("loaded");
        } else if name.contains("launched") {
            cluster.muster(&["start", name]).expect("launched");
        }
    }
    let m2 = machine(cluster, "m2");
    let state = || -> BTreeMap<String, String> {
        let ask = |name: &String| {
            systemctl(&m2, &["show", name, "--property=LoadState,ActiveState,SubState,UnitFileState,MainPID"])
        };
        names.iter().map(|name| (name.clone(), ask(name))).collect()
    };
    let launched = |state: &BTreeMap<String, String>| {
        let running = |text: &&String| text.contains("SubState=running");
        let linked = |text: &&String| text.contains("UnitFileState=linked-runtime");
        (state.values().filter(running).count(), state.values().filter(linked).count())
    };
    eventually("all are as they should be", || Ok(launched(&state()) == (2, 4))).expect("they are");
    let before = state();
    let m1 = cluster.m1();
    m1.exec_ok(&["systemctl", "stop", "muster"]).expect("the hub is away");
    // Also an end of the daemon that cannot reach the hub is one in order.
    assert_eq!(systemctl(&m1, &["show", "muster", "-P", "Result,ActiveState"]), "success\ninactive");
    let m3 = machine(cluster, "m3");
    m3.exec_ok(&["systemctl", "stop", "muster"]).expect("stopped");
    assert_eq!(systemctl(&m3, &["show", "muster", "-P", "Result,ActiveState"]), "success\ninactive");
    assert_eq!(systemctl(&m3, &["is-active", "global@launched.service"]), "active");
    std::thread::sleep(std::time::Duration::from_secs(7));
    assert_eq!(state(), before);
    m1.exec_ok(&["systemctl", "start", "muster"]).expect("the hub is back");
    m3.exec_ok(&["systemctl", "start", "muster"]).expect("started");
    eventually("all machines are there", || Ok(cluster.list("machines")?.len() == 4)).expect("they are");
    let row =
        |name: &str| cluster.units().expect("listed").into_iter().filter(|row| row.unit == name).count();
    eventually("all states are told", || {
        Ok(row("global@launched.service") == 4 && row("single@loaded.service") == 1)
    })
    .expect("they are");
    assert_eq!(state(), before);
    let journal = m2.exec_ok(&["journalctl", "--no-pager", "--boot"]).expect("read");
    assert!(!journal.contains("Stopping single@") && !journal.contains("Stopping global@"));
    let all: Vec<_> = ["destroy"].into_iter().chain(names.iter().map(String::as_str)).collect();
    cluster.muster(&all).expect("destroyed");
}

/// What ran there runs elsewhere while the machine still stops: pairs together, a fenced unit when it has stopped.
fn a_machine_shuts_down(cluster: &Lab) {
    let among = "MachineMetadata=\"number=2\" \"number=3\" \"number=4\"";
    submit(cluster, "ping@.service", among);
    submit(cluster, "pong@.service", "MachineOf=ping@%i.service");
    cluster.muster(&["start", "ping@{1..3}"]).expect("active");
    cluster.muster(&["start", "pong@{1..3}"]).expect("active");
    let victim = machine(cluster, &active(cluster, "ping@")["ping@1.service"]);
    let others: Vec<_> =
        ["2", "3", "4"].into_iter().filter(|number| !victim.name().ends_with(*number)).collect();
    let here = format!("number={}", victim.name().trim_start_matches('m'));
    // It takes a while to stop, and goes to one of the others afterwards.
    let fenced = format!(
        "[Service]\nExecStart=/bin/sleep infinity\nExecStop=/bin/sleep 3\n[X-Fleet]\nOnPartition=stop\nMachineMetadata=\"{here}\"\n"
    );
    cluster.m1().write_file("/root/db.service", fenced.as_str(), 0o644).expect("written");
    cluster.sh("muster start db.service").expect("active");
    let free = fenced.replace(&format!("\"{here}\""), &format!("\"{here}\" \"number={}\"", others[0]));
    cluster.m1().write_file("/root/db.service", free, 0o644).expect("written");
    cluster.sh("muster start --replace db.service").expect("replaced");
    let home = active(cluster, "db")["db.service"].clone();
    let victim = machine(cluster, &home);
    let pairs: Vec<_> = active(cluster, "ping@").into_iter().filter(|(_, at)| *at == home).collect();
    assert!(!pairs.is_empty());
    power_off(&victim);
    eventually("pairs run elsewhere, together", || {
        let (ping, pong) = (active(cluster, "ping@"), active(cluster, "pong@"));
        let together = (1..=3).all(|n| {
            let at = ping.get(&format!("ping@{n}.service"));
            at.is_some_and(|at| *at != home) && at == pong.get(&format!("pong@{n}.service"))
        });
        Ok(together)
    })
    .expect("they do");
    assert!(victim.is_running(), "before the machine is down");
    eventually("the fenced unit too", || {
        let there = active(cluster, "db").get("db.service").is_some_and(|at| *at != home);
        let here = victim.is_running() && systemctl(&victim, &["is-active", "db.service"]) == "active";
        assert!(!(here && there), "two copies");
        Ok(there)
    })
    .expect("it does");
    let events = cluster.muster(&["events", "--unit", "db"]).expect("listed");
    assert!(events.contains("the machine shuts down"), "{events}");
    cluster.muster(&["destroy", "db", "ping@{1..3}", "pong@{1..3}"]).expect("destroyed");
}
