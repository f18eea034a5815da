//! Daemons that are killed, and a hub that is away: nothing that runs is touched.

use crate::{Lab, alone};
use std::{collections::BTreeMap, thread, time::Duration};
use story::eventually;

/// When each unit of the cluster was started, and by which process it is: what a restart would change.
fn fingerprints(cluster: &Lab) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for row in cluster.units().expect("units are listed") {
        let machine = cluster.lab.machine(&row.machine).expect("it is on a machine");
        let ask = [
            "systemctl",
            "show",
            &row.unit,
            "--property=MainPID,ActiveEnterTimestampMonotonic,NRestarts,ActiveState",
        ];
        found.insert(
            format!("{} on {}", row.unit, row.machine),
            machine.exec_ok(&ask).expect("systemd answers"),
        );
    }
    found
}

fn start_some(cluster: &Lab) {
    cluster.sh("muster submit someapp@.service someapp-discovery@.service").expect("submitted");
    cluster.muster(&["start", "someapp@{1..3}"]).expect("active");
    cluster.muster(&["start", "someapp-discovery@{1..3}"]).expect("active");
    eventually("three keys are there", || Ok(cluster.upstreams()?.len() == 3)).expect("they are");
    eventually("nginx serves", || Ok(cluster.page()?.contains("someapp@"))).expect("it does");
}

fn daemon(cluster: &Lab, machine: &str) -> u32 {
    let machine = cluster.lab.machine(machine).expect("known");
    let pid = machine
        .exec_ok(&["systemctl", "show", "muster", "--property=MainPID", "--value"])
        .expect("systemd answers");
    pid.trim().parse().expect("a pid")
}

/// SIGKILL; systemd starts it again.
fn kill_daemon(cluster: &Lab, name: &str) {
    let before = daemon(cluster, name);
    let machine = cluster.lab.machine(name).expect("known");
    machine.exec_ok(&["systemctl", "kill", "--signal=KILL", "--kill-who=main", "muster"]).expect("killed");
    eventually("the daemon is back", || {
        let state = machine.exec(&["systemctl", "is-active", "muster"])?;
        Ok(state.success() && daemon(cluster, name) != before)
    })
    .expect("systemd starts it again");
}

#[test]
fn killed_daemons_lose_nothing_and_touch_no_unit() {
    let _alone = alone();
    let cluster = Lab::up(3);
    start_some(&cluster);
    let before = fingerprints(&cluster);
    let keys = cluster.upstreams().expect("keys are listed");

    // m1's daemon is the hub, and probably the leading engine too.
    kill_daemon(&cluster, "m1");
    eventually("all machines are there", || Ok(cluster.list("machines")?.len() == 3)).expect("they are");
    assert_eq!(fingerprints(&cluster), before, "after the hub was killed");
    assert_eq!(cluster.upstreams().expect("keys are listed"), keys, "what was acknowledged is there");

    kill_daemon(&cluster, "m2");
    eventually("all machines are there", || Ok(cluster.list("machines")?.len() == 3)).expect("they are");
    assert_eq!(fingerprints(&cluster), before, "after an agent was killed");

    // The agent found its units again: it still obeys about them.
    cluster.muster(&["stop", "someapp@{1..3}"]).expect("stopped");
    assert!(
        cluster
            .units()
            .expect("listed")
            .iter()
            .all(|row| row.active != "active" || row.unit.contains("discovery"))
    );
    cluster.muster(&["destroy", "someapp@{1..3}", "someapp-discovery@{1..3}"]).expect("destroyed");
    for machine in cluster.lab.machines() {
        let left = machine.exec_ok(&["sh", "-c", "ls /run/muster/units; docker ps --quiet"]).expect("asked");
        assert_eq!(left.trim(), "", "on {}", machine.name());
    }
}

#[test]
fn a_hub_that_is_away_stops_nothing_and_nobody_is_declared_dead_when_it_is_back() {
    let _alone = alone();
    let cluster = Lab::up(3);
    start_some(&cluster);
    let before = fingerprints(&cluster);
    let m1 = cluster.m1();
    m1.exec_ok(&["systemctl", "stop", "muster"]).expect("stopped");
    let verdict = m1.exec(&["muster", "list-units"]).expect("runs");
    assert!(!verdict.success() && verdict.stderr.contains("no Muster daemon answers"), "{}", verdict.stderr);
    // Three times as long as a machine's lease.
    thread::sleep(Duration::from_secs(15));
    let m2 = cluster.lab.machine("m2").expect("known");
    let verdict = m2.exec(&["muster", "list-units"]).expect("runs");
    assert!(!verdict.success() && verdict.stderr.contains("the hub at http://"), "{}", verdict.stderr);
    let page = cluster.page().expect("nginx serves on");
    assert!(page.contains("someapp@"));
    m1.exec_ok(&["systemctl", "start", "muster"]).expect("started");
    eventually("all machines are there", || Ok(cluster.list("machines")?.len() == 3)).expect("they are");
    assert_eq!(fingerprints(&cluster), before);
    // The engine looked at the cluster since, and moved nothing.
    cluster.sh("printf '[Service]\\nExecStart=/bin/sleep infinity\\n' >late.service && muster start late.service").expect("it works on");
    let mut after = fingerprints(&cluster);
    after.retain(|unit, _| !unit.starts_with("late"));
    assert_eq!(after, before);
}

#[test]
fn a_partitioned_machine_heals_to_one_copy() {
    let _alone = alone();
    let cluster = Lab::up(3);
    cluster.sh("printf '[Service]\\nExecStart=/bin/sleep infinity\\n' >one@.service && muster submit one@.service").expect("submitted");
    cluster.muster(&["start", "one@{1..3}"]).expect("active");
    let victim =
        cluster.units().expect("listed").into_iter().find(|row| row.machine != "m1").expect("not all on m1");
    cluster.lab.cut(&victim.machine).expect("the cable is cut");
    eventually("its unit runs elsewhere", || {
        let running = cluster.units()?;
        Ok(running
            .iter()
            .any(|row| row.unit == victim.unit && row.active == "active" && row.machine != victim.machine))
    })
    .expect("it does");
    let machine = cluster.lab.machine(&victim.machine).expect("known");
    let active = |unit: &str| machine.exec(&["systemctl", "is-active", unit]).map(|output| output.success());
    assert!(active(&victim.unit).expect("asked"), "by default the cut-off machine keeps its unit running");
    cluster.lab.join(&victim.machine).expect("the cable is mended");
    eventually("one copy is left", || {
        let running = cluster.units()?;
        let copies = running.iter().filter(|row| row.unit == victim.unit && row.active == "active").count();
        Ok(copies == 1 && !active(&victim.unit)? && cluster.list("machines")?.len() == 3)
    })
    .expect("it heals");
}

#[test]
fn a_hub_that_lost_its_data_stops_nothing() {
    let _alone = alone();
    let cluster = Lab::up(2);
    cluster.sh("printf '[Service]\\nExecStart=/bin/sleep infinity\\n' >one@.service && muster submit one@.service").expect("submitted");
    cluster.muster(&["start", "one@{1..2}"]).expect("active");
    let before = fingerprints(&cluster);
    assert_eq!(before.len(), 2);
    let m1 = cluster.m1();
    m1.exec_ok(&["sh", "-c", "systemctl stop muster; rm -r /var/lib/muster/hub; systemctl start muster"])
        .expect("wiped");
    for machine in cluster.lab.machines() {
        eventually("the agent says what is wrong", || {
            let journal = machine.exec_ok(&["journalctl", "--unit=muster", "--no-pager"])?;
            Ok(journal.contains("has lost its data or is new"))
        })
        .expect("it does");
        for unit in before.keys().filter(|unit| unit.ends_with(machine.name())) {
            let unit = unit.split(' ').next().expect("a name");
            assert!(
                machine.exec(&["systemctl", "is-active", unit]).expect("asked").success(),
                "{unit} was stopped"
            );
        }
    }
}

#[test]
fn most_machines_cut_off_at_once_are_waited_for() {
    let _alone = alone();
    let cluster = Lab::up(4);
    cluster.sh("printf '[Service]\\nExecStart=/bin/sleep infinity\\n' >one@.service && muster submit one@.service").expect("submitted");
    cluster.muster(&["start", "one@{1..8}"]).expect("active");
    let before = fingerprints(&cluster);
    let schedule =
        || cluster.muster(&["kv", "ls", "--recursive", "/muster/v1/schedule"]).expect("keys are listed");
    let scheduled = schedule();
    // Cut from everybody, the hub's machine loses sight of all others.
    cluster.lab.cut("m1").expect("the cable is cut");
    eventually("m1 sees only itself", || Ok(cluster.list("machines")?.len() == 1)).expect("it does");
    eventually("the engine says that it holds still", || {
        let journal = cluster.m1().exec_ok(&["journalctl", "--unit=muster", "--no-pager"])?;
        Ok(journal.contains("holding still"))
    })
    .expect("it does");
    assert_eq!(schedule(), scheduled, "nothing was moved");
    cluster.lab.join("m1").expect("the cable is mended");
    eventually("all machines are there", || Ok(cluster.list("machines")?.len() == 4)).expect("they are");
    assert_eq!(schedule(), scheduled, "nothing was moved when they came back");
    assert_eq!(fingerprints(&cluster), before);
}
