//! What the rules let through, and what they do not. Each ban is first shown to be needed: without the rules the
//! same packet arrives.

use crate::lab::{Cluster, Machine, Namespace};
use net::{NetError, apply_firewall, remove_firewall, rules_mark};
use std::{net::Ipv4Addr, time::Duration};

fn fence(cluster: &Cluster, machine: &Machine) {
    let firewall = cluster.firewall(machine);
    let outcome = machine.host.block_on(async || apply_firewall(&firewall).await);
    outcome.unwrap_or_else(|error| panic!("{error}: {error:?}"));
}

fn fenced(cluster: &Cluster) {
    cluster.machines.iter().for_each(|machine| fence(cluster, machine));
}

/// A cluster of two whose datapath is there, but no rules yet.
fn open_cluster() -> Cluster {
    let cluster = Cluster::new(2);
    cluster.converge();
    cluster
}

#[test]
fn machines_of_the_cluster_are_let_in_under_their_own_address() {
    let cluster = open_cluster();
    fenced(&cluster);
    let [one, two] = cluster.machines.as_slice() else { panic!("two machines") };
    one.container.reaches(two.container_ip, one.container_ip);
    two.container.reaches(one.container_ip, two.container_ip);
    one.host.reaches(one.container_ip, one.subnet.bridge());
    one.host.reaches(two.container_ip, one.subnet.base());
    one.container.reaches(one.ip, one.container_ip);
    one.container.reaches(two.subnet.bridge(), one.container_ip);
}

#[test]
fn an_outsider_with_a_route_is_refused() {
    let cluster = open_cluster();
    let one = &cluster.machines[0];
    let outsider = cluster.outsider(200);
    let ip = Ipv4Addr::new(192, 168, 77, 200);
    outsider.run("ip route add 10.1.1.0/24 via 192.168.77.1");
    one.host.run("ip route replace default dev eth0");
    outsider.reaches(one.container_ip, ip);
    outsider.reaches(one.subnet.bridge(), ip);
    fenced(&cluster);
    outsider.cannot_reach(one.container_ip);
    outsider.cannot_reach(one.subnet.bridge());
    outsider.reaches(one.ip, ip);
    cluster.machines[1].container.reaches(one.container_ip, cluster.machines[1].container_ip);
}

#[test]
fn an_outsider_on_another_interface_is_refused_too() {
    let cluster = open_cluster();
    let one = &cluster.machines[0];
    let outsider = Namespace::new();
    one.host.run(&format!("ip link add eth1 type veth peer name eth0 netns {}", outsider.pid()));
    one.host.run("ip address add 172.20.0.1/24 dev eth1");
    one.host.run("ip link set eth1 up");
    outsider.run("ip address add 172.20.0.2/24 dev eth0");
    outsider.run("ip link set eth0 up");
    outsider.run("ip route add 10.1.0.0/16 via 172.20.0.1");
    outsider.serve();
    let ip = Ipv4Addr::new(172, 20, 0, 2);
    outsider.reaches(one.container_ip, ip);
    fenced(&cluster);
    outsider.cannot_reach(one.container_ip);
    outsider.cannot_reach(cluster.machines[1].container_ip);
    // The other way it works, under the machine's address.
    one.container.reaches(ip, Ipv4Addr::new(172, 20, 0, 1));
}

#[test]
fn containers_reach_the_world_under_their_machines_address() {
    let cluster = open_cluster();
    let outsider = cluster.outsider(200);
    fenced(&cluster);
    for machine in &cluster.machines {
        machine.container.reaches(Ipv4Addr::new(192, 168, 77, 200), machine.ip);
    }
    // The underlay of another machine is the world, too.
    let [one, two] = cluster.machines.as_slice() else { panic!("two machines") };
    one.container.reaches(two.ip, one.ip);
    drop(outsider);
}

#[test]
fn a_published_port_stays_published() {
    let cluster = open_cluster();
    let one = &cluster.machines[0];
    let outsider = cluster.outsider(200);
    fenced(&cluster);
    let to = format!("{}:3000", one.container_ip);
    let publish = "iptables -t nat -A PREROUTING ! -i docker0 -p tcp --dport 8080 -j DNAT --to-destination";
    one.host.run(&format!("{publish} {to}"));
    let answer = outsider.ask(one.ip, 8080, Duration::from_secs(10));
    // flannel's rules leave the client's address alone on the machine that runs the container.
    assert_eq!(answer.expect("published").as_str(), "192.168.77.200");
}

#[test]
fn forged_vxlan_is_not_unpacked() {
    let cluster = open_cluster();
    let one = &cluster.machines[0];
    let forger = cluster.forger(cluster.desired(one).vtep().expect("VXLAN").mac);
    let ear = one.container.hear(4000);
    let forged = || forger.is_heard(Ipv4Addr::new(10, 1, 9, 0), &ear, one.container_ip);
    assert!(forged(), "without rules the forgery works");
    fenced(&cluster);
    assert!(!forged());
}

#[test]
fn a_peer_speaks_for_the_cluster_network_only() {
    let cluster = open_cluster();
    let [one, two] = cluster.machines.as_slice() else { panic!("two machines") };
    two.host.run("ip address add 172.30.0.1/32 dev lo");
    let (container, host) = (one.container.hear(4000), one.host.hear(4001));
    let foreign = Ipv4Addr::new(172, 30, 0, 1);
    let heard = || {
        [(&container, one.container_ip), (&host, one.subnet.bridge())]
            .map(|(ear, to)| two.host.is_heard(foreign, ear, to))
    };
    assert_eq!(heard(), [true, true]);
    // Only here: the second machine's own rules would masquerade it.
    fence(&cluster, one);
    assert_eq!(heard(), [false, false]);
    fence(&cluster, two);
    assert_eq!(heard(), [true, true], "masqueraded, it is a member's packet");
}

#[test]
fn nobody_outside_speaks_for_the_cluster_network() {
    let cluster = open_cluster();
    let one = &cluster.machines[0];
    let spoofer = cluster.outsider(202);
    spoofer.run("ip address add 10.1.2.9/32 dev lo");
    spoofer.run("ip route add 10.1.1.0/24 via 192.168.77.1");
    let (container, host) = (one.container.hear(4000), one.host.hear(4001));
    let heard = || {
        [(&container, one.container_ip), (&host, one.ip)]
            .map(|(ear, to)| spoofer.is_heard(Ipv4Addr::new(10, 1, 2, 9), ear, to))
    };
    assert_eq!(heard(), [true, true]);
    fenced(&cluster);
    assert_eq!(heard(), [false, false]);
}

/// Docker's rules when it turned forwarding on itself, as far as they matter here.
fn docker(machine: &Machine) {
    for rule in [
        "-P FORWARD DROP",
        "-N DOCKER-USER",
        "-A DOCKER-USER -p tcp --dport 3333 -j DROP",
        "-A DOCKER-USER -j RETURN",
        "-N DOCKER",
        "-A DOCKER ! -i docker0 -o docker0 -j DROP",
        "-A FORWARD -j DOCKER-USER",
        "-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A FORWARD -o docker0 -j DOCKER",
    ] {
        machine.host.run(&format!("iptables {rule}"));
    }
}

#[test]
fn a_forward_policy_of_drop_is_overcome_without_opening_the_door() {
    let cluster = open_cluster();
    let [one, two] = cluster.machines.as_slice() else { panic!("two machines") };
    cluster.machines.iter().for_each(docker);
    let outsider = cluster.outsider(200);
    outsider.run("ip route add 10.1.1.0/24 via 192.168.77.1");
    one.container.cannot_reach(two.container_ip);
    let before = one.host.run("iptables -S");
    fenced(&cluster);
    one.container.reaches(two.container_ip, one.container_ip);
    one.container.reaches(Ipv4Addr::new(192, 168, 77, 200), one.ip);
    outsider.cannot_reach(one.container_ip);

    // What the operator forbade stays forbidden, and doing it again adds nothing.
    let after = one.host.run("iptables -S");
    let position =
        |rule: &str| after.lines().position(|line| line == rule).unwrap_or_else(|| panic!("{after}"));
    assert!(
        position("-A DOCKER-USER -p tcp -m tcp --dport 3333 -j DROP")
            < position("-A DOCKER-USER -j MUSTER-OVERLAY")
    );
    assert!(position("-A DOCKER-USER -j MUSTER-OVERLAY") < position("-A DOCKER-USER -j RETURN"));
    fenced(&cluster);
    assert_eq!(one.host.run("iptables -S"), after);

    let firewall = cluster.firewall(one);
    for _ in 0..2 {
        one.host.block_on(async || remove_firewall(&firewall).await).expect("removed");
    }
    assert_eq!(one.host.run("iptables -S"), before, "not a trace");
    assert!(!one.host.run("nft list tables").contains("muster"));
}

#[test]
fn a_forward_policy_of_drop_without_docker_is_overcome_too() {
    let cluster = open_cluster();
    let [one, two] = cluster.machines.as_slice() else { panic!("two machines") };
    let outsider = cluster.outsider(200);
    outsider.run("ip route add 10.1.1.0/24 via 192.168.77.1");
    cluster.machines.iter().for_each(|machine| drop(machine.host.run("iptables -P FORWARD DROP")));
    one.container.cannot_reach(two.container_ip);
    fenced(&cluster);
    one.container.reaches(two.container_ip, one.container_ip);
    one.container.reaches(Ipv4Addr::new(192, 168, 77, 200), one.ip);
    // Not even without nftables' drop does iptables let the outside in.
    one.host.run("nft delete table inet muster");
    outsider.cannot_reach(one.container_ip);
}

#[test]
fn an_operator_who_forbids_everything_else_keeps_the_overlay() {
    let cluster = open_cluster();
    let [one, two] = cluster.machines.as_slice() else { panic!("two machines") };
    let outsider = cluster.outsider(200);
    for machine in &cluster.machines {
        docker(machine);
        machine.host.run("iptables -D DOCKER-USER -j RETURN");
        machine.host.run("iptables -A DOCKER-USER -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
        machine.host.run("iptables -A DOCKER-USER -j DROP");
    }
    fenced(&cluster);
    one.container.reaches(two.container_ip, one.container_ip);
    one.container.cannot_reach(Ipv4Addr::new(192, 168, 77, 200));
    drop(outsider);
}

#[test]
fn containers_keep_their_address_although_docker_masquerades() {
    let cluster = open_cluster();
    let [one, two] = cluster.machines.as_slice() else { panic!("two machines") };
    one.host.run("iptables -t nat -A POSTROUTING -s 10.1.1.0/24 ! -o docker0 -j MASQUERADE");
    one.container.reaches(two.container_ip, one.subnet.base());
    fenced(&cluster);
    one.container.reaches(two.container_ip, one.container_ip);
    one.container.reaches(two.ip, one.ip);
}

#[test]
fn rules_that_somebody_flushed_come_back_whole() {
    let cluster = open_cluster();
    let one = &cluster.machines[0];
    fence(&cluster, one);
    let rules = one.host.run("nft list table inet muster");
    one.host.run("nft flush ruleset");
    fence(&cluster, one);
    assert_eq!(one.host.run("nft list table inet muster"), rules);
}

#[test]
fn what_nft_says_is_in_the_error() {
    let cluster = Cluster::new(1);
    let one = &cluster.machines[0];
    let mut firewall = cluster.firewall(one);
    firewall.bridges = vec!["a\"b".to_owned()];
    let error = one.host.block_on(async || apply_firewall(&firewall).await).expect_err("no such name");
    assert!(matches!(&error, NetError::Failed { .. }), "{error:?}");
    assert!(error.to_string().contains("syntax error"), "{error}");
}

#[test]
fn point_10_whatever_is_done_to_our_rules_shows_without_running_a_program() {
    let cluster = open_cluster();
    let one = &cluster.machines[0];
    let sets = cluster.firewall(one).sets();
    let mark = || one.host.block_on(async || rules_mark(&sets).await.expect("the kernel answers"));
    fence(&cluster, one);
    let before = mark();
    assert_eq!(mark(), before, "nothing changed");
    for damage in [
        "nft flush ruleset",
        "nft delete table inet muster",
        "nft flush chain inet muster forward",
        "nft flush set inet muster peers",
        "nft add element inet muster peers { 192.168.77.66 }",
        "iptables -D FORWARD -j MUSTER-FORWARD",
        "iptables -F MUSTER-OVERLAY",
        "iptables -N DOCKER-USER",
    ] {
        fence(&cluster, one);
        let whole = mark();
        one.host.kernel(async |kernel| {
            let mut changes = kernel.changes().expect("a subscription");
            one.host.run(damage);
            let signal = tokio::time::timeout(Duration::from_secs(10), changes.next()).await;
            assert_eq!(signal, Ok(Some(())), "{damage}: no signal");
        });
        assert_ne!(mark(), whole, "{damage}");
    }
    // What is others' does not count.
    let whole = mark();
    one.host.run("nft add table inet others");
    one.host.run("iptables -A FORWARD -s 10.99.0.0/16 -j DROP");
    assert_eq!(mark(), whole);
}
