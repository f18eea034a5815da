//! The story: four copies with their sidekicks, addresses across machines, keys, nginx, a dead machine.

use crate::{Lab, alone};
use std::collections::{BTreeMap, BTreeSet};
use story::{cluster::NETWORK, eventually};

const COPIES: [&str; 4] = ["someapp@1", "someapp@2", "someapp@3", "someapp@4"];

#[test]
fn the_story_is_true() {
    let _alone = alone();
    let cluster = Lab::up(4);
    four_machines_four_subnets(&cluster);
    start(&cluster);
    four_copies_on_four_machines_each_with_its_sidekick(&cluster);
    keys_stand_under_a_lease(&cluster);
    copies_reach_each_other_with_their_own_address(&cluster);
    the_outside_is_refused(&cluster);
    nginx_reaches_exactly(&cluster, &COPIES);
    a_stopped_copy_takes_its_sidekick_and_its_key_along(&cluster);
    a_power_cut_moves_copy_and_sidekick_and_nginx_follows(&cluster);
}

fn four_machines_four_subnets(cluster: &Lab) {
    let machines = cluster.list("machines").expect("machines are listed");
    let subnets: BTreeSet<_> =
        machines.iter().map(|machine| machine["subnet"].as_str().expect("a subnet")).collect();
    assert_eq!((machines.len(), subnets.len()), (4, 4), "{machines:?}");
    for machine in cluster.lab.machines() {
        let bridge =
            machine.exec_ok(&["ip", "-4", "-brief", "address", "show", "docker0"]).expect("docker0 is there");
        let own = subnets.iter().filter(|subnet| {
            let prefix = subnet.strip_suffix(".0/24").expect("a /24");
            bridge.contains(&format!(" {prefix}.1/24"))
        });
        assert_eq!(own.count(), 1, "Docker on {} took the machine's subnet: {bridge}", machine.name());
    }
}

fn start(cluster: &Lab) {
    cluster.sh("muster submit someapp@.service someapp-discovery@.service").expect("submitted");
    // Quoted, and expanded by muster; then by a shell.
    cluster.muster(&["start", "someapp@{1..4}"]).expect("all copies are active");
    let expand = "bash -c 'muster start someapp-discovery@{1..4}'";
    cluster.sh(expand).expect("all sidekicks are active");
}

fn homes(cluster: &Lab, prefix: &str) -> BTreeMap<String, String> {
    let running = cluster.units().expect("units are listed");
    let ours = running.into_iter().filter(|row| row.unit.starts_with(prefix) && row.active == "active");
    ours.map(|row| (row.unit.trim_start_matches(prefix).to_owned(), row.machine)).collect()
}

fn four_copies_on_four_machines_each_with_its_sidekick(cluster: &Lab) {
    let (copies, sidekicks) = (homes(cluster, "someapp@"), homes(cluster, "someapp-discovery@"));
    assert_eq!(copies.values().collect::<BTreeSet<_>>().len(), 4, "{copies:?}");
    assert_eq!(copies, sidekicks);
    for machine in cluster.lab.machines() {
        let containers = machine.exec_ok(&["docker", "ps", "--quiet"]).expect("docker answers");
        assert_eq!(containers.lines().count(), 1, "on {}", machine.name());
        let ports = machine.exec_ok(&["docker", "ps", "--format", "{{.Ports}}"]).expect("docker answers");
        assert_eq!(ports.trim(), "", "no port is published");
    }
}

fn keys_stand_under_a_lease(cluster: &Lab) {
    eventually("four keys are there", || Ok(cluster.upstreams()?.len() == 4)).expect("all register");
    // Asked by etcd's own client, for it knows nothing of Muster.
    for copy in COPIES {
        let key = format!("/services/someapp/upstream/{copy}");
        let get = format!("ETCDCTL_API=3 /usr/bin/etcdctl get {key} -w json");
        let answer: serde_json::Value =
            serde_json::from_str(&cluster.sh(&get).expect("etcdctl works")).expect("JSON");
        let lease = answer["kvs"][0]["lease"].as_i64().expect("the key is under a lease");
        let ask = format!("ETCDCTL_API=3 /usr/bin/etcdctl lease timetolive {lease:x} -w json");
        let lease: serde_json::Value =
            serde_json::from_str(&cluster.sh(&ask).expect("etcdctl works")).expect("JSON");
        let (granted, left) = (lease["granted-ttl"].as_i64(), lease["ttl"].as_i64());
        assert_eq!(granted, Some(60), "{lease}");
        assert!(left.is_some_and(|left| (1..=60).contains(&left)), "{lease}");
    }
}

fn address(cluster: &Lab, copy: &str) -> String {
    let key = format!("/services/someapp/upstream/{copy}");
    let value = cluster.muster(&["kv", "get", &key]).expect("the key is there");
    value.trim().to_owned()
}

fn copies_reach_each_other_with_their_own_address(cluster: &Lab) {
    let url = format!("http://{}/", address(cluster, "someapp@1"));
    let page = cluster.muster(&["exec", "--net", "someapp@3", "curl", "--silent", "--max-time", "5", &url]);
    assert!(page.expect("curl from inside someapp@3").contains("<h1>someapp@1</h1>"));
    let page =
        cluster.muster(&["exec", "someapp@3", "/someapp", "get", &url]).expect("the container's own program");
    assert!(page.contains("<h1>someapp@1</h1>"));
    // Who asks is seen by the one who is asked: a listener beside someapp@1 in its network prints the client's address.
    let home = cluster.home("someapp@1.service").expect("listed").expect("it runs");
    let listen = "pid=$(docker inspect -f '{{.State.Pid}}' someapp-1); \
                  nsenter -t $pid -n python3 -c 'import socket; s=socket.create_server((\"0.0.0.0\", 3999)); \
                  open(\"/run/listens\", \"w\"); print(s.accept()[1][0])' >/run/client";
    home.exec_ok(&["systemd-run", "--quiet", "--unit=listener", "sh", "-c", listen]).expect("it listens");
    eventually("the listener listens", || Ok(home.exec(&["test", "-e", "/run/listens"])?.success()))
        .expect("it does");
    let host = address(cluster, "someapp@1").replace(":3000", "");
    // Whatever curl thinks of a server that says nothing, the connection was made.
    let knock = format!("muster exec --net someapp@3 curl --silent --max-time 2 http://{host}:3999/ || true");
    cluster.sh(&knock).expect("the shell runs");
    let client = address(cluster, "someapp@3").replace(":3000", "");
    eventually("the client's own address was seen", || {
        Ok(home.exec_ok(&["cat", "/run/client"])?.trim() == client)
    })
    .expect("the source address is the container's");
}

fn the_outside_is_refused(cluster: &Lab) {
    let outside = cluster.lab.outside();
    let knock = |endpoint: &str| {
        let url = format!("http://{endpoint}/");
        outside.exec(&["curl", "--silent", "--max-time", "2", &url]).expect("curl runs").success()
    };
    for machine in cluster.lab.machines() {
        // Even with a route to all of the cluster network by way of this machine.
        let via = machine.address().to_string();
        outside.exec_ok(&["ip", "route", "replace", NETWORK, "via", &via]).expect("a route");
        for copy in COPIES {
            let endpoint = address(cluster, copy);
            assert!(!knock(&endpoint), "the outside reaches {endpoint} by way of {}", machine.name());
        }
    }
    outside.exec_ok(&["ip", "route", "del", NETWORK]).expect("the route goes");
    assert!(knock(&cluster.m1().address().to_string()), "the load balancer answers the outside");
}

/// Asks until every one of `copies` has answered, then that nobody else does.
fn nginx_reaches_exactly(cluster: &Lab, copies: &[&str]) {
    let round = || -> anyhow::Result<BTreeSet<String>> {
        let pages = (0..copies.len() * 2).map(|_| cluster.page()).collect::<anyhow::Result<Vec<_>>>()?;
        let name = |page: &String| page.split("<h1>").nth(1)?.split('<').next().map(str::to_owned);
        Ok(pages.iter().filter_map(name).collect())
    };
    let expected: BTreeSet<_> = copies.iter().map(|copy| (*copy).to_owned()).collect();
    eventually("nginx reaches exactly the copies that run", || Ok(round()? == expected)).expect("it does");
}

fn a_stopped_copy_takes_its_sidekick_and_its_key_along(cluster: &Lab) {
    cluster.muster(&["stop", "someapp@2"]).expect("stopped");
    eventually("sidekick and key are gone", || {
        let running = homes(cluster, "someapp-discovery@");
        Ok(!running.contains_key("2.service") && cluster.upstreams()?.len() == 3)
    })
    .expect("BindsTo and ExecStop work");
    nginx_reaches_exactly(cluster, &["someapp@1", "someapp@3", "someapp@4"]);
    cluster.muster(&["start", "someapp@2"]).expect("started again");
    cluster.muster(&["start", "someapp-discovery@2"]).expect("started again");
    nginx_reaches_exactly(cluster, &COPIES);
}

fn a_power_cut_moves_copy_and_sidekick_and_nginx_follows(cluster: &Lab) {
    let before = homes(cluster, "someapp@");
    let (copy, victim) = before.iter().find(|(_, machine)| *machine != "m1").expect("not all run on m1");
    let copy = format!("someapp@{}", copy.trim_end_matches(".service"));
    let old = address(cluster, &copy);
    cluster.lab.machine(victim).and_then(|machine| machine.kill()).expect("the power is cut");
    eventually("copy and sidekick run elsewhere", || {
        let (copies, sidekicks) = (homes(cluster, "someapp@"), homes(cluster, "someapp-discovery@"));
        Ok(copies.len() == 4 && copies == sidekicks && !copies.values().any(|machine| machine == victim))
    })
    .expect("they do");
    let after = homes(cluster, "someapp@");
    let moved: Vec<_> = after.iter().filter(|(unit, machine)| before[*unit] != **machine).collect();
    assert_eq!(moved.len(), 1, "only the dead machine's copy moved: {before:?} {after:?}");
    eventually("the key says the new address", || Ok(address(cluster, &copy) != old)).expect("it does");
    nginx_reaches_exactly(cluster, &COPIES);
    let conf = cluster.sh("cat /etc/nginx/conf.d/muster.conf").expect("readable");
    assert!(!conf.contains(&old), "nginx still sends to {old}:\n{conf}");
    // The machine comes back, and takes nothing that runs elsewhere.
    cluster.lab.machine(victim).and_then(|machine| machine.start()).expect("it boots");
    eventually("it is back", || Ok(cluster.list("machines")?.len() == 4)).expect("it is");
    assert_eq!(homes(cluster, "someapp@"), after);
    let machine = cluster.lab.machine(victim).expect("known");
    assert_eq!(machine.exec_ok(&["docker", "ps", "--quiet"]).expect("docker answers").trim(), "");
}
