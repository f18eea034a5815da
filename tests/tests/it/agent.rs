//! The agent's side of the promises: what a machine does with its units when the hub, the network, the daemon or the
//! machine itself goes away, and that one unit's trouble is no other's.

use crate::{Lab, alone};
use lab::Machine;
use story::eventually;

/// A service that runs until it is stopped.
const SLEEP: &str = "[Service]\\nExecStart=/bin/sleep infinity\\n";
/// One that does not stop when it is asked to, and that systemd alone would wait for longer than the fence does.
const STUBBORN: &str =
    "[Service]\\nTimeoutStopSec=7s\\nExecStart=/bin/sh -c \"trap : TERM; while true; do sleep 1; done\"\\n";

fn write(cluster: &Lab, unit: &str, text: &str) {
    cluster.sh(&format!("printf '%b' '{text}' >{unit}")).expect("written");
}

fn machine(cluster: &Lab, name: &str) -> Machine {
    cluster.lab.machine(name).expect("known")
}

fn active(machine: &Machine, unit: &str) -> bool {
    machine.exec(&["systemctl", "is-active", unit]).is_ok_and(|output| output.stdout.trim() == "active")
}

/// Whether anything of it runs, if only on its way out.
fn alive(machine: &Machine, unit: &str) -> bool {
    let state = machine.exec(&["systemctl", "is-active", unit]).expect("asked").stdout;
    !matches!(state.trim(), "inactive" | "failed" | "unknown")
}

fn pid(machine: &Machine, unit: &str) -> String {
    let ask = ["systemctl", "show", unit, "--property=MainPID", "--value"];
    machine.exec_ok(&ask).expect("systemd answers").trim().to_owned()
}

fn journal_says(machine: &Machine, what: &str) -> bool {
    // All journals: that of a machine whose id has changed is elsewhere.
    machine
        .exec_ok(&["journalctl", "--merge", "--unit=muster", "--no-pager"])
        .is_ok_and(|text| text.contains(what))
}

/// The error that is shown of a unit, on whatever machine.
fn error(cluster: &Lab, unit: &str) -> String {
    let units = cluster.list("units").expect("listed");
    let unit = units.iter().find(|row| row["name"] == unit);
    unit.map(|unit| unit["machines"][0]["state"]["error"].as_str().unwrap_or_default().to_owned())
        .unwrap_or_default()
}

#[test]
fn one_units_trouble_is_its_own_and_install_is_carried_out() {
    let _alone = alone();
    let cluster = Lab::up(2);

    // Three are loaded together; the middle one cannot be enabled.
    write(&cluster, "good@.service", SLEEP);
    write(&cluster, "odd.service", &format!("{SLEEP}[Install]\\nAlias=odd.timer\\n"));
    let load = ["muster", "load", "good@1.service", "odd.service", "good@2.service", "--timeout", "15s"];
    let verdict = cluster.m1().exec(&["sh", "-c", &format!("cd /root && {}", load.join(" "))]).expect("runs");
    assert!(!verdict.success() && verdict.stderr.contains("[Install]"), "{}", verdict.stderr);
    assert!(error(&cluster, "odd.service").contains("cannot be carried out"));
    let loaded = cluster.units().expect("listed");
    assert_eq!(
        loaded.iter().filter(|row| row.unit.starts_with("good@") && row.active == "inactive").count(),
        2
    );
    cluster.muster(&["destroy", "odd.service"]).expect("what failed can be removed");

    // A sidekick that only `WantedBy=` starts: with its service, and its state is shown.
    write(&cluster, "main.service", SLEEP);
    let side = "[Unit]\\nBindsTo=main.service\\nAfter=main.service\\n[Service]\\nExecStart=/bin/sleep infinity\\n\
                [Install]\\nWantedBy=main.service\\n[X-Fleet]\\nMachineOf=main.service\\n";
    write(&cluster, "side.service", side);
    let state = || {
        let rows = cluster.units().expect("listed");
        rows.into_iter().find(|row| row.unit == "side.service").map(|row| row.active).unwrap_or_default()
    };
    cluster.sh("muster load main.service side.service").expect("loaded");
    assert_eq!(state(), "inactive");
    cluster.muster(&["start", "main.service"]).expect("active");
    eventually("systemd has started the sidekick", || Ok(state() == "active")).expect("it has");
    let home = cluster.home("main.service").expect("listed").expect("it runs");
    cluster.muster(&["stop", "main.service"]).expect("stopped");
    eventually("the sidekick has stopped with it", || Ok(state() == "inactive")).expect("it has");
    let first = {
        cluster.muster(&["start", "main.service"]).expect("active again");
        pid(&home, "main.service")
    };
    cluster.muster(&["stop", "main.service"]).expect("stopped");
    cluster.muster(&["start", "main.service"]).expect("active again");
    assert_ne!(pid(&home, "main.service"), first, "stopped, then started");
    cluster.muster(&["destroy", "side.service", "main.service"]).expect("destroyed");
    let left = home.exec_ok(&["sh", "-c", "ls -d /run/systemd/system/*.wants/* 2>/dev/null || true"]);
    assert!(!left.expect("asked").contains("side.service"), "disabled when it was unloaded");

    // Whoever did not give the order can wait for what comes of it, and programs are told in JSON.
    write(&cluster, "job.service", "[Service]\\nExecStart=/bin/sleep 2\\n");
    cluster.sh("muster start --no-block job.service").expect("ordered");
    let ended = cluster.muster(&["wait", "--for", "ended", "job.service"]).expect("it ends by itself");
    assert!(ended.starts_with("Unit job.service has ended on m"), "{ended}");
    let late = cluster.m1().exec(&["muster", "wait", "job.service", "--timeout", "5s"]).expect("runs");
    assert!(late.stderr.contains("it has ended on m"), "{}", late.stderr);
    assert_eq!(late.code(), 1);
    let gone = cluster.muster(&["destroy", "-o", "json", "job.service"]).expect("destroyed");
    let gone: serde_json::Value = serde_json::from_str(&gone).expect("JSON");
    assert_eq!(gone, serde_json::json!({"done": ["job.service"], "failed": [], "triggered": []}));
    cluster.muster(&["wait", "--for", "gone", "job.service"]).expect("it is");

    // The machine's owner takes a name: the unit is left alone from then on, and so is the owner's.
    cluster.muster(&["start", "good@1.service"]).expect("active");
    let home = cluster.home("good@1.service").expect("listed").expect("it runs");
    let take = format!("printf '%b' '{SLEEP}' >/etc/systemd/system/good@1.service; systemctl daemon-reload");
    home.exec_ok(&["sh", "-c", &take]).expect("written");
    eventually("the agent tells of it", || Ok(error(&cluster, "good@1.service").contains("/etc/systemd")))
        .expect("it does");
    cluster.muster(&["destroy", "good@1.service"]).expect("the cluster's unit goes");
    assert!(active(&home, "good@1.service"), "what has the name now is not the cluster's to stop");
    home.exec_ok(&["test", "-e", "/etc/systemd/system/good@1.service"]).expect("the owner's file stays");
    for machine in cluster.lab.machines() {
        machine.exec_ok(&["sh", "-c", &take]).expect("written");
    }
    let start = ["sh", "-c", "cd /root && muster start good@1.service --timeout 10s"];
    let verdict = cluster.m1().exec(&start).expect("runs");
    let said = &verdict.stderr;
    assert!(!verdict.success() && said.contains("has a unit of that name already: /etc/systemd"), "{said}");
}

#[test]
fn machines_keep_their_promises_when_things_go_away() {
    let _alone = alone();
    let cluster = Lab::up(3);
    let (m1, m2, m3) = (cluster.m1(), machine(&cluster, "m2"), machine(&cluster, "m3"));
    let listed = || cluster.list("machines").expect("listed");

    // SIGHUP: metadata change while the daemon runs.
    let daemon = pid(&m2, "muster");
    m2.exec_ok(&["sh", "-c", "sed -i 's/number = \"2\"/number = \"two\"/' /etc/muster/muster.toml"])
        .expect("edited");
    m2.exec_ok(&["systemctl", "reload", "muster"]).expect("reloaded");
    eventually("the metadata are new", || Ok(listed().iter().any(|row| row["metadata"]["number"] == "two")))
        .expect("they are");
    assert_eq!(pid(&m2, "muster"), daemon);

    a_copied_machine_id_is_refused(&cluster, &m2, &m3);

    // A machine that lost its lease's file, as a power cut does, takes its place again before the lease has ended.
    m3.exec_ok(&["sh", "-c", "systemctl stop muster; rm /run/muster/lease-*; systemctl start muster"])
        .expect("back");
    eventually("it takes its place", || Ok(journal_says(&m3, "taking its place"))).expect("it does");

    a_fenced_unit_dies_with_its_lease_though_the_daemon_is_frozen(&cluster);
    a_fenced_units_container_dies_too_though_its_client_has_left_it_behind(&cluster);

    // A boot without the hub: what was launched there comes up, what must not run twice does not.
    write(&cluster, "keep.service", &format!("{SLEEP}[X-Fleet]\\nMachineMetadata=number=3\\n"));
    write(
        &cluster,
        "stop.service",
        &format!("{SLEEP}[X-Fleet]\\nMachineMetadata=number=3\\nOnPartition=stop\\n"),
    );
    cluster.sh("muster start keep.service stop.service").expect("active");
    eventually("the schedule and both files are on m3's disk", || {
        let text = m3.exec_ok(&["cat", "/var/lib/muster/schedule.json"])?;
        Ok(text.matches("ExecStart=").count() >= 2)
    })
    .expect("it is");
    m1.exec_ok(&["systemctl", "stop", "muster"]).expect("the hub is away");
    m3.kill().expect("the power is cut");
    m3.start_no_wait().expect("m3 boots");
    eventually("its unit runs without the hub", || Ok(active(&m3, "keep.service"))).expect("it does");
    assert!(!active(&m3, "stop.service"), "it may run elsewhere, for all this machine knows");
    let before = pid(&m3, "keep.service");
    m1.exec_ok(&["systemctl", "start", "muster"]).expect("the hub is back");
    eventually("the other one runs again", || Ok(active(&m3, "stop.service"))).expect("it does");
    assert_eq!(pid(&m3, "keep.service"), before, "and nothing was restarted");
    eventually("all machines are there", || Ok(listed().len() == 3)).expect("they are");

    // An orderly shutdown that takes its time: the unit runs elsewhere while the machine still stops.
    let slow = "[Service]\\nExecStart=/bin/sleep infinity\\nExecStop=/bin/sleep 25\\n[X-Fleet]\\nMachineMetadata=\"number=two\" \"number=3\"\\n";
    write(&cluster, "slow@.service", slow);
    cluster.sh("muster start slow@1.service slow@2.service").expect("active");
    let row = cluster
        .units()
        .expect("listed")
        .into_iter()
        .find(|row| row.machine == "m2" && row.unit.starts_with("slow@"));
    let unit = row.expect("spread over both").unit;
    m2.exec_ok(&["systemctl", "--no-block", "poweroff"]).expect("ordered");
    eventually("its unit runs on m3", || Ok(active(&m3, &unit))).expect("it does");
    assert!(m2.is_running(), "m2 has not gone down yet");
}

/// A second machine with the id of one that lives stays outside until it has an id of its own.
fn a_copied_machine_id_is_refused(cluster: &Lab, original: &Machine, copy: &Machine) {
    let own = copy.exec_ok(&["cat", "/etc/machine-id"]).expect("read");
    let id = original.exec_ok(&["cat", "/etc/machine-id"]).expect("read");
    let set = |id: &str| copy.exec_ok(&["sh", "-c", &format!("echo {} >/etc/machine-id", id.trim())]);
    copy.exec_ok(&["systemctl", "stop", "muster"]).expect("stopped");
    set(&id).expect("copied");
    copy.exec_ok(&["systemctl", "start", "muster"]).expect("started");
    eventually("it says why it is not in the cluster", || {
        Ok(journal_says(copy, "another machine has the machine-id"))
    })
    .expect("it does");
    let listed = cluster.list("machines").expect("listed");
    let address = original.address().to_string();
    assert!(listed.iter().any(|row| row["id"] == id.trim() && row["address"] == *address), "{listed:?}");
    set(&own).expect("its own again");
    eventually("it joins by itself", || {
        let joined = |row: &serde_json::Value| row["id"] == own.trim();
        Ok(journal_says(copy, "the machine-id has changed") && cluster.list("machines")?.iter().any(joined))
    })
    .expect("it does");
}

/// With the daemon frozen nobody renews the lease and nobody there could react but the watcher.
fn a_fenced_unit_dies_with_its_lease_though_the_daemon_is_frozen(cluster: &Lab) {
    let fenced = "[X-Fleet]\\nMachineMetadata=\"number=two\" \"number=3\"\\nOnPartition=stop\\n";
    write(cluster, "single.service", &format!("{STUBBORN}{fenced}"));
    cluster.sh("muster start single.service").expect("active");
    let first = cluster.home("single.service").expect("listed").expect("it runs");
    let other = machine(cluster, if first.name() == "m2" { "m3" } else { "m2" });
    let signal = |signal: &str| {
        first.exec_ok(&["systemctl", "kill", "--kill-who=main", &format!("--signal={signal}"), "muster"])
    };
    signal("STOP").expect("frozen");
    eventually("it runs on the other machine", || {
        let (here, there) = (alive(&first, "single.service"), alive(&other, "single.service"));
        assert!(!(here && there), "two copies");
        Ok(there)
    })
    .expect("it does");
    assert!(!active(&first, "single.service"));
    signal("CONT").expect("thawed");
    eventually("one copy, and one row", || {
        let rows = cluster.units()?.into_iter().filter(|row| row.unit == "single.service");
        let rows: Vec<_> = rows.map(|row| (row.machine, row.active)).collect();
        let healed = rows == [(other.name().to_string(), "active".to_owned())];
        Ok(healed && cluster.list("machines")?.len() == 3)
    })
    .expect("it heals");
    assert!(!active(&first, "single.service"));
    cluster.muster(&["destroy", "single.service"]).expect("destroyed");
}

/// The client ends when it is asked to and does not tell its container, which nobody's cgroup holds.
fn a_fenced_units_container_dies_too_though_its_client_has_left_it_behind(cluster: &Lab) {
    let container =
        "[Service]\\nExecStart=/usr/bin/docker run --rm --name left-behind --sig-proxy=false someapp\\n";
    let fenced = "[X-Fleet]\\nMachineMetadata=\"number=two\" \"number=3\"\\nOnPartition=stop\\n";
    write(cluster, "behind.service", &format!("{container}{fenced}"));
    cluster.sh("muster start behind.service").expect("active");
    let first = cluster.home("behind.service").expect("listed").expect("it runs");
    let other = machine(cluster, if first.name() == "m2" { "m3" } else { "m2" });
    let runs = |machine: &Machine| {
        let ask = ["docker", "ps", "--quiet", "--filter", "name=left-behind"];
        !machine.exec_ok(&ask).expect("docker answers").trim().is_empty()
    };
    eventually("the container runs", || Ok(runs(&first))).expect("it does");
    let signal = |signal: &str| {
        first.exec_ok(&["systemctl", "kill", "--kill-who=main", &format!("--signal={signal}"), "muster"])
    };
    signal("STOP").expect("frozen");
    eventually("it runs on the other machine", || {
        let there = runs(&other);
        assert!(!(there && runs(&first)), "two containers");
        Ok(there)
    })
    .expect("it does");
    signal("CONT").expect("thawed");
    eventually("the machine is back", || Ok(cluster.list("machines")?.len() == 3)).expect("it is");
    cluster.muster(&["destroy", "behind.service"]).expect("destroyed");
}
