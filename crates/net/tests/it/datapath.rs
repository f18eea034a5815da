//! Peers, repair, and what must not be touched.

use crate::lab::{Cluster, Machine};
use ipnet::IpNet;
use model::network::MacAddress;
use muster_core::overlay::{Desired, Device, Mismatch, Observed, Op, Peer, ROUTE_PROTOCOL, Tunnel, Underlay};
use net::NetError;
use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

fn observe(machine: &Machine, desired: &Desired) -> Observed {
    machine.host.kernel(async |kernel| kernel.observe(desired).await.expect("the kernel answers"))
}

fn device(desired: &Desired) -> &Device {
    desired.vtep().expect("VXLAN")
}

fn kinds(ops: &[Op]) -> Vec<String> {
    let kind = |op: &Op| format!("{op:?}").split(' ').next().unwrap_or_default().to_owned();
    ops.iter().map(kind).collect()
}

#[test]
fn containers_of_three_machines_reach_each_other_under_their_own_address() {
    let cluster = Cluster::new(3);
    cluster.converge();
    for from in &cluster.machines {
        for to in cluster.machines.iter().filter(|to| to.number != from.number) {
            from.container.reaches(to.container_ip, from.container_ip);
            from.host.reaches(to.container_ip, from.subnet.base());
        }
        assert_eq!(from.plan(&cluster.desired(from)), [], "what was made is what was wanted");
    }
    let device = cluster.machines[0].host.run("ip -d link show flannel.1");
    for expected in ["vxlan id 1 local 192.168.77.1 dev eth0", "dstport 8472 nolearning", "mtu 1450"] {
        assert!(device.contains(expected), "{device}");
    }
    let routes = cluster.machines[0].host.run("ip route show dev flannel.1");
    assert!(routes.contains(&format!("10.1.2.0/24 via 10.1.2.0 proto {ROUTE_PROTOCOL} onlink")), "{routes}");
}

#[test]
fn what_is_deleted_by_hand_is_announced_and_comes_back() {
    let cluster = Cluster::new(2);
    cluster.converge();
    let [one, two] = cluster.machines.as_slice() else { panic!("two machines") };
    let desired = cluster.desired(one);
    let mac = device(&cluster.desired(two)).mac;
    let repaired = |damage: &str, expected: &[&str]| {
        one.host.kernel(async |kernel| {
            let mut changes = kernel.changes().expect("a subscription");
            one.host.run(damage);
            let signal = tokio::time::timeout(Duration::from_secs(10), changes.next()).await;
            assert_eq!(signal, Ok(Some(())), "{damage}: no signal");
        });
        assert_eq!(kinds(&one.converge(&desired)), expected, "{damage}");
        assert_eq!(one.plan(&desired), [], "{damage}");
        one.container.reaches(two.container_ip, one.container_ip);
    };
    repaired("ip route del 10.1.2.0/24", &["AddRoute"]);
    repaired("ip neighbour del 10.1.2.0 dev flannel.1", &["SetNeighbour"]);
    repaired(&format!("bridge fdb del {mac} dev flannel.1"), &["SetFdb"]);
    repaired("ip route replace 10.1.2.0/24 via 10.1.2.9 dev flannel.1 onlink", &["ReplaceRoute"]);
    repaired("ip link set flannel.1 mtu 1300", &["SetMtu"]);
    repaired("ip address del 10.1.1.0/32 dev flannel.1", &["AddAddress", "SetNeighbour", "AddRoute"]);
    repaired("ip link set flannel.1 down", &["SetUp", "SetNeighbour", "AddRoute"]);
    repaired("ip link set flannel.1 address 02:00:00:00:00:77", &["SetMac", "SetNeighbour"]);
    repaired(
        "ip link del flannel.1",
        &["CreateDevice", "AddAddress", "SetUp", "SetNeighbour", "SetFdb", "AddRoute"],
    );
    assert_eq!(
        observe(one, &desired).device.and_then(|device| device.mac),
        Some(device(&desired).mac),
        "peers know it"
    );
    two.container.reaches(one.container_ip, two.container_ip);
}

#[test]
fn a_peer_that_left_or_changed_is_followed() {
    let cluster = Cluster::new(3);
    cluster.converge();
    let [one, two, three] = cluster.machines.as_slice() else { panic!("three machines") };
    let mut desired = cluster.desired(one);
    desired.peers.remove(&IpNet::from(three.subnet.net()));
    assert_eq!(kinds(&one.converge(&desired)), ["RemoveRoute", "RemoveFdb", "RemoveNeighbour"]);
    let observed = observe(one, &desired);
    assert_eq!((observed.routes.len(), observed.fdb.len()), (1, 1), "{observed:?}");

    // The second machine's subnet moves to the third: its address and its device are others.
    let mac = device(&cluster.desired(three)).mac;
    desired.peers.insert(two.subnet.net().into(), Peer::vxlan(three.ip, mac));
    assert_eq!(kinds(&one.converge(&desired)), ["SetNeighbour", "SetFdb", "RemoveFdb"]);
    // Only its address changes: the entry for the same device is replaced.
    desired.peers.insert(two.subnet.net().into(), Peer::vxlan(two.ip, mac));
    assert_eq!(kinds(&one.converge(&desired)), ["SetFdb"]);
    assert_eq!(one.plan(&desired), []);
}

#[test]
fn a_device_that_cannot_be_changed_is_made_anew() {
    let cluster = Cluster::new(2);
    cluster.converge();
    let [one, two] = cluster.machines.as_slice() else { panic!("two machines") };
    one.host.run("ip address add 192.168.77.101/24 dev eth0");
    let mut desired = cluster.desired(one);
    if let Some(Tunnel::Vxlan(device)) = &mut desired.tunnel {
        device.local = Ipv4Addr::new(192, 168, 77, 101).into();
    }
    let ops = one.converge(&desired);
    assert!(matches!(ops.first(), Some(Op::DeleteDevice { why: Mismatch::Local, .. })), "{ops:?}");
    assert_eq!(one.plan(&desired), []);

    // A stranger under our name.
    one.host.run("ip link del flannel.1");
    one.host.run("ip link add flannel.1 type bridge");
    let ops = one.converge(&cluster.desired(one));
    assert!(matches!(ops.first(), Some(Op::DeleteDevice { why: Mismatch::Kind, .. })), "{ops:?}");
    one.container.reaches(two.container_ip, one.container_ip);
}

#[test]
fn operations_may_be_repeated_and_removing_nothing_succeeds() {
    let cluster = Cluster::new(2);
    cluster.converge();
    let one = &cluster.machines[0];
    let mut desired = cluster.desired(one);
    desired.peers.clear();
    let removals = one.converge(&desired);
    let device = "flannel.1".to_owned();
    let address = "10.1.77.0/32".parse().expect("a network");
    let gone = [Op::RemoveAddress { device: device.clone(), address }];
    let delete = [Op::DeleteDevice { device, why: Mismatch::Kind }];
    one.host.kernel(async |kernel| {
        let again = removals.iter().chain(&gone).chain(&delete).chain(&removals).chain(&gone).chain(&delete);
        for op in again {
            kernel.apply(op).await.unwrap_or_else(|error| panic!("{op:?}: {error:?}"));
        }
    });
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let cluster = Cluster::new(2);
    let one = &cluster.machines[0];
    let desired = cluster.desired(one);
    // Somebody sends the second machine's subnet elsewhere: that is told, not overruled.
    one.host.run("ip route add 10.1.2.0/24 via 192.168.77.250");
    let ops = one.plan(&desired);
    let (last, first) = ops.split_last().expect("operations");
    one.host.kernel(async |kernel| {
        for op in first {
            kernel.apply(op).await.unwrap_or_else(|error| panic!("{op:?}: {error:?}"));
        }
        let error = kernel.apply(last).await.expect_err("the route is there");
        assert!(matches!(error, NetError::RouteTaken { .. }), "{error:?}");
    });
    assert!(one.host.run("ip route").contains("10.1.2.0/24 via 192.168.77.250 dev eth0"));
    one.host.run("ip route del 10.1.2.0/24");
    one.converge(&desired);

    // A routing daemon's route over our device, an entry for another interface; then two routes as ip(8) and flannel make them.
    one.host.run("ip route add 10.1.50.0/24 via 10.1.50.0 dev flannel.1 onlink proto bird");
    one.host.run("ip neighbour add 10.1.1.77 lladdr 02:00:00:00:00:07 dev docker0");
    one.host.run("ip route add 10.1.60.0/24 via 10.1.60.0 dev flannel.1 onlink");
    one.host.run("ip route add 10.1.61.0/24 dev flannel.1 scope link metric 5");
    assert_eq!(kinds(&one.converge(&desired)), ["RemoveRoute", "RemoveRoute"]);
    assert_eq!(one.plan(&desired), []);
    assert!(one.host.run("ip route").contains("10.1.50.0/24"));
    assert!(one.host.run("ip neighbour").contains("10.1.1.77"));
}

#[test]
fn the_underlay_is_found_by_name_by_address_and_by_the_default_route() {
    let cluster = Cluster::new(1);
    let one = &cluster.machines[0];
    one.host.kernel(async |kernel| {
        let found = kernel.underlay(None).await.expect("the default route's");
        let expected = Underlay {
            name: "eth0".to_owned(),
            index: found.index,
            address: one.ip,
            address6: None,
            links: found.links.clone(),
            mtu: 1500,
        };
        assert_eq!(found, expected);
        assert!(found.links.iter().any(|link| link.to_string() == "192.168.77.0/24"), "{found:?}");
        assert_eq!(kernel.underlay(Some("eth0")).await.expect("by name"), found);
        assert_eq!(kernel.underlay(Some("192.168.77.1")).await.expect("by address"), found);
        assert_eq!(kernel.underlay(Some("docker0")).await.expect("another").address, one.subnet.bridge());
        let error =
            |interface| async move { kernel.underlay(interface).await.expect_err("not there").to_string() };
        assert_eq!(error(Some("eth7")).await, "no interface `eth7`");
        assert_eq!(error(Some("192.168.77.9")).await, "no interface `192.168.77.9`");
        assert_eq!(error(Some("lo")).await, "interface `lo` has no global IPv4 address");
        one.host.run("ip route del default");
        assert!(error(None).await.starts_with("no default route"));
    });
}

#[test]
fn a_plan_for_a_large_cluster_comes_to_rest() {
    let cluster = Cluster::new(1);
    let one = &cluster.machines[0];
    let own = cluster.desired(one);
    let peer = |number: u32| {
        let base = Ipv4Addr::from(0x0a01_0000 + (number << 8));
        let [_, _, high, low] = number.to_be_bytes();
        let mac = MacAddress([2, 1, 0, 0, high, low]);
        let subnet = IpNet::new(base.into(), 24).expect("a length");
        (subnet, Peer::vxlan(Ipv4Addr::new(192, 168, high + 100, low), mac))
    };
    let desired = Desired { peers: (2..252).map(peer).collect(), ..own };
    let start = Instant::now();
    assert_eq!(one.converge(&desired).len(), 3 + 3 * 250);
    println!("250 peers in {:?}", start.elapsed());
    let start = Instant::now();
    assert_eq!(one.plan(&desired), []);
    println!("compared in {:?}", start.elapsed());
}
