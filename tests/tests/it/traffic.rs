//! What users notice, asked from outside through the gateways while the cluster is in motion: nothing.
//!
//! Every request is accounted for. What moves: all copies are replaced one after another, a container crashes, a machine's
//! power is cut, the hub is away, and the gateway's own daemon is restarted.

use crate::{Lab, alone};
use anyhow::Result;
use lab::Machine;
use story::{Account, Traffic, eventually, measure};

/// Enough to hit every moment, and little enough for two cores that run four machines.
const LOAD: [&str; 4] = ["--rate", "200", "--connections", "32"];
const POSTS: [&str; 6] = ["--rate", "200", "--connections", "32", "--method", "post"];

fn registered(cluster: &Lab, copies: usize) {
    eventually("all copies are registered", || Ok(cluster.upstreams()?.len() == copies)).expect("they are");
}

/// Runs `motion` under load on the gateway of machine m2, which has no hub.
fn under_load(cluster: &Lab, options: &[&str], motion: impl FnOnce() -> Result<()>) -> Account {
    let m2 = cluster.lab.machine("m2").expect("there is an m2");
    let address = format!("{}:80", m2.address());
    let traffic = Traffic::start_at(cluster, &address, "someapp", options).expect("the load begins");
    let outcome = motion();
    let account = traffic.stop().expect("the load tells");
    outcome.expect("the motion succeeds");
    account
}

#[test]
fn nobody_notices() {
    let _alone = alone();
    let cluster = Lab::up(4);
    cluster.sh("muster submit someapp-registered@.service").expect("submitted");
    cluster.muster(&["start", "someapp-registered@{1..4}"]).expect("started");
    registered(&cluster, 4);
    containers_ask_their_machine_for_names(&cluster);
    what_is_served_is_shown(&cluster);
    all_copies_are_replaced(&cluster);
    a_container_crashes(&cluster);
    the_hub_is_away(&cluster);
    the_gateway_is_restarted(&cluster);
    a_machine_is_drained(&cluster);
    a_machine_shuts_down(&cluster);
    a_machine_dies(&cluster);
}

/// Docker names the machine as its containers' name server, and the machine knows all four copies.
fn containers_ask_their_machine_for_names(cluster: &Lab) {
    let script = r#"
server=$(ip -4 -o addr show docker0 | sed 's/.*inet \([0-9.]*\).*/\1/')
grep -q "nameserver $server" /var/lib/docker/containers/*/resolv.conf || exit 3
/usr/bin/python3 -c '
import socket, sys
name = b"".join(bytes([len(part)]) + part.encode() for part in "someapp.svc.cluster.internal".split("."))
ask = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
ask.settimeout(5)
ask.sendto(b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + name + b"\x00\x00\x01\x00\x01", (sys.argv[1], 53))
answer = ask.recv(1232)
print(answer[3] & 15, int.from_bytes(answer[6:8], "big"))
' "$server"
"#;
    eventually("the name has four addresses", || Ok(cluster.sh(script)?.trim() == "0 4")).expect("it has");
}

/// For people, and for programs.
fn what_is_served_is_shown(cluster: &Lab) {
    let shown = cluster.muster(&["route", "ls"]).expect("the gateway answers");
    assert!((1..=4).all(|copy| shown.contains(&format!("someapp-registered@{copy}"))), "{shown}");
    for verb in
        [&["route", "ls", "-o", "json"][..], &["services", "-o", "json"], &["endpoints", "-o", "json"]]
    {
        let shown = cluster.muster(verb).expect("it answers");
        assert!(serde_json::from_str::<serde_json::Value>(&shown).is_ok(), "{verb:?}: {shown}");
        assert!(shown.contains("someapp-registered@1"), "{verb:?}: {shown}");
    }
}

/// POSTs, which nobody may send twice: only a drain before the stop saves them.
fn all_copies_are_replaced(cluster: &Lab) {
    let account = under_load(cluster, &POSTS, || {
        cluster.sh("sed -i 's/^Description=.*/& (new)/' someapp-registered@.service")?;
        cluster.sh("muster update someapp-registered@.service").map(drop)
    });
    account.ensure_nothing_lost().expect("a rolling update loses nothing");
    assert_eq!(account.count("reconnects"), 0, "connections to the gateway stay: {}", account.line());
}

fn a_container_crashes(cluster: &Lab) {
    let unit = "someapp-registered@1.service";
    let home = cluster.home(unit).expect("listed").expect("it runs");
    let account = under_load(cluster, &LOAD, || {
        home.exec_ok(&["docker", "kill", "registered-1"])?;
        // systemd starts it again, and it is registered anew when its check passes.
        eventually("it answers again", || {
            let up = home.exec(&["docker", "ps", "--quiet", "--filter", "name=registered-1"])?;
            Ok(!up.stdout.trim().is_empty() && cluster.upstreams()?.len() == 4)
        })
    });
    account.ensure_nothing_lost().expect("what may be repeated is repeated elsewhere");
}

fn the_hub_is_away(cluster: &Lab) {
    let signal = |signal: &str| {
        let signal = format!("--signal={signal}");
        cluster.m1().exec_ok(&["systemctl", "kill", "--kill-who=main", &signal, "muster"])
    };
    let account = under_load(cluster, &LOAD, || {
        signal("STOP")?;
        // Longer than every lease lives.
        std::thread::sleep(std::time::Duration::from_secs(12));
        signal("CONT")?;
        eventually("all machines are there", || Ok(cluster.list("machines")?.len() == 4))?;
        eventually("all copies are registered", || Ok(cluster.upstreams()?.len() == 4))
    });
    account.ensure_nothing_lost().expect("the last known endpoints are served");
}

fn the_gateway_is_restarted(cluster: &Lab) {
    let m2 = cluster.lab.machine("m2").expect("there is an m2");
    let account = under_load(cluster, &LOAD, || {
        m2.exec_ok(&["systemctl", "restart", "muster"])?;
        eventually("its gateway serves", || {
            let address = format!("http://{}/", m2.address());
            let asked =
                cluster.lab.outside().exec(&["curl", "-s", "-m", "2", "-H", "Host: someapp", &address])?;
            Ok(asked.stdout.contains("someapp-registered@"))
        })
    });
    assert_eq!(account.count("unconnected"), 0, "no connection is refused: {}", account.0);
    account.ensure_nothing_lost().expect("what was under way is finished, what came meanwhile waits");
}

/// A machine other than the gateways' with copies on it, and their units.
fn victim(cluster: &Lab) -> (Machine, Vec<String>) {
    let running = cluster.units().expect("listed");
    let other = |name: &&str| running.iter().any(|row| row.machine == **name && row.active == "active");
    let name = ["m3", "m4"].into_iter().find(other).expect("copies run on other machines than the gateways'");
    let units = running.iter().filter(|row| row.machine == name).map(|row| row.unit.clone()).collect();
    (cluster.lab.machine(name).expect("known"), units)
}

fn a_machine_is_drained(cluster: &Lab) {
    let (machine, _) = victim(cluster);
    let name = machine.name();
    let account = under_load(cluster, &POSTS, || {
        cluster.muster(&["drain", name])?;
        eventually("nothing runs there", || Ok(cluster.units()?.iter().all(|row| row.machine != name)))?;
        registered(cluster, 4);
        cluster.muster(&["undrain", name])?;
        cluster.muster(&["rebalance", "--yes"]).map(drop)
    });
    account.ensure_nothing_lost().expect("what leaves a machine drains first");
    assert_eq!(account.count("reconnects"), 0, "connections to the gateway stay: {}", account.line());
    eventually("copies run there again", || Ok(cluster.units()?.iter().any(|row| row.machine == name)))
        .expect("they do");
    registered(cluster, 4);
}

fn a_machine_shuts_down(cluster: &Lab) {
    let (machine, units) = victim(cluster);
    let account = under_load(cluster, &LOAD, || {
        measure::orderly_stop(cluster, &machine, &units)?;
        eventually("all copies are registered", || Ok(cluster.upstreams()?.len() == 4))?;
        eventually("it is off", || Ok(!machine.is_running()))
    });
    account.ensure_nothing_lost().expect("a machine that says good-bye is left in time");
    machine.start().expect("it boots");
    eventually("it is back", || Ok(cluster.list("machines")?.len() == 4)).expect("it is");
    cluster.muster(&["rebalance", "--yes"]).expect("copies are spread again");
    eventually("copies run there again", || {
        Ok(cluster.units()?.iter().any(|row| row.machine == machine.name() && row.active == "active"))
    })
    .expect("they do");
    registered(cluster, 4);
}

fn a_machine_dies(cluster: &Lab) {
    let (victim, units) = victim(cluster);
    let account = under_load(cluster, &LOAD, || {
        measure::power_cut(cluster, &victim, &units)?;
        eventually("all copies are registered", || Ok(cluster.upstreams()?.len() == 4))
    });
    account.ensure_nothing_lost().expect("a black hole is left at once, and requests are repeated elsewhere");
}
