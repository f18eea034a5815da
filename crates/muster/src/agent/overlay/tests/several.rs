//! Several networks from one process, as flannel's `--networks` once had them, and with prefixes of their own.

use super::{
    super::Network,
    Running, World, eventually,
    lab::{Machine, Namespace},
    own_lease, underlay,
};
use crate::config::overlay::{NetworkSection, OverlaySection};
use std::{collections::BTreeMap, net::Ipv4Addr};

/// `blue` where flannel had it, `red` elsewhere.
fn networks() -> Vec<Network> {
    let red = NetworkSection { prefix: Some("/red/network".to_owned()), ..NetworkSection::default() };
    let networks = BTreeMap::from([("blue".to_owned(), NetworkSection::default()), ("red".to_owned(), red)]);
    Network::all(&OverlaySection { networks, ..OverlaySection::default() })
}

/// A container on the bridge of a network with a name.
struct Container {
    inside: Namespace,
    address: Ipv4Addr,
}

impl Container {
    fn new(world: &World, index: usize, network: &str) -> Self {
        let env = world.file(index, &format!("networks/{network}.env"));
        let bridge_address = env.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET="));
        let bridge_address = bridge_address.unwrap_or_else(|| panic!("no subnet in {env:?}"));
        let gateway: Ipv4Addr =
            bridge_address.trim_end_matches("/24").parse().expect("a subnet of the default length");
        let address = Ipv4Addr::from(u32::from(gateway) + 1);
        let (host, inside, bridge) = (world.host(index), Namespace::new(), format!("muster-{network}"));
        host.run(&format!("ip link add {bridge} type bridge"));
        host.run(&format!("ip address add {bridge_address} dev {bridge}"));
        host.run(&format!("ip link set {bridge} up"));
        host.run(&format!("ip link add c-{network} type veth peer name eth0 netns {}", inside.pid()));
        host.run(&format!("ip link set c-{network} master {bridge} up"));
        inside.run(&format!("ip address add {address}/24 dev eth0"));
        inside.run("ip link set eth0 up");
        inside.run(&format!("ip route add default via {gateway}"));
        inside.serve();
        Self { inside, address }
    }

    fn meets(&self, other: &Self) {
        self.inside.reaches(other.address, self.address);
        other.inside.reaches(self.address, other.address);
    }
}

#[test]
fn point_15_several_networks_from_one_process() {
    let world = World::vxlan(3);
    world.put(
        "/coreos.com/network/blue/config",
        r#"{"Network":"10.2.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#,
    );
    world.put("/red/network/config", r#"{"Network":"10.3.0.0/16","Backend":{"Type":"host-gw"}}"#);
    let start = |index, network: Network| {
        let store = world.store.clone();
        world.start_network(index, network, async || store)
    };
    let up = |running: &Running| *running.ready.borrow();
    // Two machines are on all networks, the third on `blue` only.
    let (mut first, mut blue, mut red) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..2 {
        let [unnamed, other, another] = networks().try_into().expect("three networks");
        first.push(start(index, unnamed));
        eventually("the machine's own network is there", || up(&first[index]));
        blue.push(start(index, other));
        red.push(start(index, another));
    }
    blue.push(start(2, networks().remove(1)));
    let know = |what: &str, running: &[Running], peers: usize| {
        eventually(what, || running.iter().all(|one| up(one) && one.view.status().peers.len() == peers));
    };
    know("the first", &first, 1);
    know("blue", &blue, 2);
    know("red", &red, 1);
    let status = blue[0].view.status();
    assert_eq!(
        (status.name.as_str(), status.device.as_str(), status.network.as_str()),
        ("blue", "flannel.2", "10.2.0.0/16")
    );

    let in_blue: Vec<_> = (0..3).map(|index| Container::new(&world, index, "blue")).collect();
    let in_red: Vec<_> = (0..2).map(|index| Container::new(&world, index, "red")).collect();
    let all_meet = || {
        let [one, two, _] = world.cluster.machines.as_slice() else { panic!("three machines") };
        let meet = |from: &Machine, to: &Machine| from.container.reaches(to.container_ip, from.container_ip);
        meet(one, two);
        meet(two, one);
        in_blue[0].meets(&in_blue[1]);
        // Its packets come from no machine of the first network.
        in_blue[0].meets(&in_blue[2]);
        in_red[0].meets(&in_red[1]);
    };
    all_meet();
    // One does not lead into the other.
    in_blue[0].inside.cannot_reach(in_red[1].address);
    in_blue[0].inside.cannot_reach(world.cluster.machines[1].container_ip);
    for index in 0..2 {
        let subnets =
            ["subnet.env", "networks/blue.env", "networks/red.env"].map(|name| world.file(index, name));
        assert!(
            subnets[1].starts_with("FLANNEL_NETWORK=10.2.0.0/16\n")
                && subnets[2].contains("FLANNEL_MTU=1500")
        );
    }

    // One table of rules, which all of them keep, and none of them disturbs.
    let rules = world.host(0).run("nft list table inet muster");
    assert!(rules.contains("set peers_blue") && rules.contains("ip saddr 10.3.0.0/16"), "{rules}");
    world.host(0).run("nft flush ruleset");
    eventually("the rules of all are back", || {
        let listed = world.host(0).run("nft list ruleset");
        listed.contains("set peers_blue") && listed.contains("set peers {") && listed.contains("10.3.0.0/16")
    });
    world.host(0).run("ip route flush dev flannel.2");
    eventually("blue's routes are back", || {
        world.host(0).run("ip route").matches("dev flannel.2").count() == 2
    });
    let repaired =
        || [&first[0], &blue[0], &red[0]].iter().map(|one| one.view.status().rules_repaired).sum::<u64>();
    let before = repaired();
    assert!(before >= 1, "nobody says that the rules were repaired");
    all_meet();
    world.host(0).run("ip route add 10.99.0.0/24 via 192.168.77.9");
    all_meet();
    assert_eq!(repaired(), before, "they take each other's rules for damage");

    // A peer that comes to one of them changes that one's set, and no rule.
    // A table that is put in the place of another has another number.
    let table = || {
        let listed = world.host(0).run("nft --handle list table inet muster");
        listed.lines().next().map(str::to_owned).unwrap_or_default()
    };
    let set = |name: &str| world.host(0).run(&format!("nft list set inet muster {name}"));
    let same = table();
    assert!(same.contains("muster { # handle "), "{same}");
    let config = r#"{"Network":"10.2.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#.parse().expect("valid");
    let lease = own_lease(&format!("{:032x}", 99).parse().expect("an id"), &config, &underlay(99), None);
    // Who takes a subnet takes one of the first hundred.
    let key = "/coreos.com/network/blue/subnets/10.2.200.0-24";
    world.put(key, &serde_json::to_string(&lease).expect("renders"));
    eventually("it has a route", || world.host(0).run("ip route").contains("10.2.200.0/24 via"));
    assert!(set("peers_blue").contains("192.168.77.99") && !set("peers").contains("192.168.77.99"));
    assert_eq!(table(), same, "all rules were put in place for a peer");
    assert_eq!(repaired(), before, "a peer is no damage");

    // What cannot be together is refused, and changes nothing.
    for (config, told) in [
        (r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#, "the network `blue` has VNI 2"),
        (r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"}}"#, "the network without a name has VNI 1"),
        (r#"{"Network":"10.0.0.0/8","Backend":{"Type":"host-gw"}}"#, "the network `blue` has 10.2.0.0/16"),
    ] {
        world.put("/red/network/config", config);
        eventually(told, || red[0].view.status().problem.is_some_and(|problem| problem.contains(told)));
        all_meet();
    }
}
