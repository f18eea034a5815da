//! Networks of two families: each travels over its own, as flannel has it, and each has rules of its own.

use crate::{
    capture::Capture,
    lab::{Cluster, Machine, Namespace, plug},
};
use ipnet::IpNet;
use model::SubnetKey;
use muster_core::overlay::{
    Desired, Firewall, Lease, Observed, Op, ROUTE_PROTOCOL, network_mtu, own_lease, plan,
};
use net::{apply_firewall, change_peers, rules_mark};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// Two machines of both families.
struct Dual(Cluster);

impl Dual {
    fn new(backend: &str) -> Self {
        let mut cluster = Cluster::new(2);
        let text = format!(
            r#"{{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{{{backend}}}}}"#
        );
        cluster.config = text.parse().expect("valid");
        cluster.machines.iter().for_each(Machine::second_family);
        Self(cluster)
    }

    fn pair(&self) -> [&Machine; 2] {
        let [one, two] = self.0.machines.as_slice() else { panic!("two machines") };
        [one, two]
    }

    fn desired(&self, machine: &Machine) -> Vec<Desired> {
        let lease = |machine: &Machine| -> Lease {
            (machine.both(), Some(own_lease(&machine.id, &self.0.config, &machine.underlay(), None)))
        };
        let leases: Vec<Lease> = self.0.machines.iter().map(lease).collect();
        Desired::all(&machine.id, &self.0.config, machine.both(), &machine.underlay(), &leases)
    }

    fn firewall(&self, machine: &Machine) -> Firewall {
        Firewall::new(&self.0.config, machine.both(), &self.desired(machine), &["docker0".to_owned()])
    }

    fn converge(&self) {
        for machine in &self.0.machines {
            let all = self.desired(machine);
            assert_eq!(all.len(), 2, "one for each family");
            all.iter().for_each(|desired| drop(machine.converge(desired)));
            all.iter().for_each(|desired| assert_eq!(machine.plan(desired), [], "it comes to rest"));
        }
    }

    fn fence(&self) {
        for machine in &self.0.machines {
            let firewall = self.firewall(machine);
            machine.host.block_on(async || apply_firewall(&firewall).await).expect("rules");
        }
    }

    #[track_caller]
    fn containers_meet(&self) {
        let [one, two] = self.pair();
        for (from, to) in [(one, two), (two, one)] {
            from.container.reaches(to.container_ip, from.container_ip);
            from.container.reaches(to.container_ip6(), from.container_ip6());
        }
    }

    /// A host that is no machine, with an address of each family and ways to the first machine's containers.
    fn outsider(&self) -> Namespace {
        let outsider = Namespace::new();
        plug(&self.0.fabric, &outsider, Ipv4Addr::new(192, 168, 77, 200));
        outsider.run("ip address add fd77::c8/64 dev eth0 nodad");
        outsider.run("ip route add 10.1.1.0/24 via 192.168.77.1");
        outsider.run("ip route add fd00:0:0:1::/64 via fd77::1");
        outsider.serve();
        outsider
    }
}

#[test]
fn vxlan_carries_both_families_each_over_its_own() {
    let dual = Dual::new(r#""Type":"vxlan""#);
    dual.converge();
    dual.containers_meet();
    let [one, two] = dual.pair();
    one.host.reaches(two.container_ip6(), Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 0));
    let device = one.host.run("ip -d link show flannel-v6.1");
    for expected in ["vxlan id 1 local fd77::1 dev eth0", "dstport 8472 nolearning", "mtu 1430"] {
        assert!(device.contains(expected), "{device}");
    }
    assert!(one.host.run("ip -d link show flannel.1").contains("local 192.168.77.1"));
    let routes = one.host.run("ip -6 route show dev flannel-v6.1");
    assert!(routes.contains("fd00:0:0:2::/64 via fd00:0:0:2:: proto 77"), "{routes}");
    dual.fence();
    dual.containers_meet();
}

#[test]
fn point_12_the_largest_packet_of_each_family_fills_the_underlay_and_is_not_cut() {
    let dual = Dual::new(r#""Type":"vxlan""#);
    dual.converge();
    dual.fence();
    let [one, two] = dual.pair();
    assert_eq!(network_mtu(&dual.desired(one)), 1430);
    // Ethernet header and 1500 bytes, of which the headers of UDP and IP inside are 28 and 48.
    for (ear, to, payload) in [
        ((IpAddr::from(Ipv4Addr::UNSPECIFIED), 4000), IpAddr::from(two.subnet.bridge()), 1450 - 28),
        (
            (IpAddr::from(Ipv6Addr::UNSPECIFIED), 4001),
            Ipv6Addr::new(0xfd00, 0, 0, 2, 0, 0, 0, 1).into(),
            1430 - 48,
        ),
    ] {
        let ear = two.host.enter(|| UdpSocket::bind(ear).expect("the port is free"));
        ear.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("a time");
        let port = ear.local_addr().expect("bound").port();
        let capture = Capture::start(&dual.0.fabric);
        let mine: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        one.host.enter(|| {
            let mouth = UdpSocket::bind((mine, 0)).expect("a port");
            mouth.send_to(&vec![0x6d; payload], (to, port)).expect("a route");
        });
        let mut buffer = [0; 2048];
        assert_eq!(ear.recv_from(&mut buffer).expect("it arrives").0, payload);
        let frames = capture.stop();
        let carries = |frame: &&Vec<u8>| frame.windows(64).any(|window| window == [0x6d; 64]);
        let lengths: Vec<_> = frames.iter().filter(carries).map(Vec::len).collect();
        assert!(!lengths.is_empty() && lengths.iter().all(|length| *length == 1514), "{to}: {lengths:?}");
    }
}

#[test]
fn host_gw_routes_both_families_and_lets_no_stranger_in() {
    let dual = Dual::new(r#""Type":"host-gw""#);
    dual.converge();
    dual.containers_meet();
    let [one, _] = dual.pair();
    let routes = one.host.run("ip -6 route");
    assert!(routes.contains("fd00:0:0:2::/64 via fd77::2 dev eth0 proto 77"), "{routes}");
    let outsider = dual.outsider();
    outsider.reaches(one.container_ip6(), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 200));
    dual.fence();
    outsider.cannot_reach(one.container_ip6());
    outsider.cannot_reach(one.container_ip);
    dual.containers_meet();
}

#[test]
fn point_09_nobody_outside_gets_in_by_the_second_family() {
    let dual = Dual::new(r#""Type":"vxlan""#);
    dual.converge();
    let [one, two] = dual.pair();
    one.host.run("ip route replace default dev eth0");
    let outsider = dual.outsider();
    outsider.reaches(one.container_ip6(), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 200));
    // A forger, who knows the address of the VXLAN device.
    outsider.run("ip route del fd00:0:0:1::/64");
    let mac = dual.desired(one)[1].vtep().expect("VXLAN").mac;
    outsider.run("ip link add vx type vxlan id 1 local fd77::c8 dev eth0 dstport 8472 nolearning");
    outsider.run("ip address add fd00:0:0:9::/128 dev vx nodad");
    outsider.run("ip link set vx up");
    outsider.run(&format!("ip neighbour add fd00:0:0:1:: lladdr {mac} dev vx nud permanent"));
    outsider.run(&format!("bridge fdb add {mac} dev vx dst fd77::1"));
    outsider.run("ip route add fd00:0:0:1::2/128 via fd00:0:0:1:: dev vx onlink");
    let ear =
        one.container.enter(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 4000)).expect("the port is free"));
    ear.set_read_timeout(Some(std::time::Duration::from_millis(600))).expect("a time");
    let forged = || {
        outsider.enter(|| {
            let mouth =
                UdpSocket::bind((Ipv6Addr::new(0xfd00, 0, 0, 9, 0, 0, 0, 0), 0)).expect("its address");
            mouth.send_to(b"psst", (one.container_ip6(), 4000)).expect("a route");
        });
        ear.recv_from(&mut [0; 16]).is_ok()
    };
    assert!(forged(), "without rules the forgery works");
    dual.fence();
    assert!(!forged());
    outsider.run("ip route del fd00:0:0:1::2/128");
    outsider.run("ip route add fd00:0:0:1::/64 via fd77::1");
    outsider.cannot_reach(one.container_ip6());
    dual.containers_meet();
    // The world sees the machine's address, and a peer's container keeps its own.
    one.container
        .reaches(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 200), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1));
    two.container.reaches(one.container_ip6(), two.container_ip6());
}

fn observe(machine: &Machine, desired: &Desired) -> Observed {
    machine.host.kernel(async |kernel| kernel.observe(desired).await.expect("the kernel answers"))
}

#[test]
fn point_01_what_is_deleted_of_the_second_family_comes_back() {
    let dual = Dual::new(r#""Type":"vxlan""#);
    dual.converge();
    let [one, two] = dual.pair();
    let desired = &dual.desired(one)[1];
    let mac = dual.desired(two)[1].vtep().expect("VXLAN").mac;
    let kinds = |ops: &[Op]| -> Vec<String> {
        ops.iter().map(|op| format!("{op:?}").split(' ').next().unwrap_or_default().to_owned()).collect()
    };
    for (damage, expected) in [
        ("ip -6 route del fd00:0:0:2::/64".to_owned(), "AddRoute"),
        ("ip -6 neighbour del fd00:0:0:2:: dev flannel-v6.1".to_owned(), "SetNeighbour"),
        (format!("bridge fdb del {mac} dev flannel-v6.1"), "SetFdb"),
        ("ip -6 address del fd00:0:0:1::/128 dev flannel-v6.1".to_owned(), "AddAddress"),
    ] {
        one.host.run(&damage);
        let ops = plan(desired, &observe(one, desired));
        assert!(kinds(&ops).contains(&expected.to_owned()), "{damage}: {ops:?}");
        one.converge(desired);
        assert_eq!(one.plan(desired), [], "{damage}");
        dual.containers_meet();
    }
    // A peer that goes takes its entries of both families along.
    for mut desired in dual.desired(one) {
        desired.peers.clear();
        one.converge(&desired);
        assert_eq!(one.plan(&desired), []);
        let observed = observe(one, &desired);
        assert!(observed.fdb.iter().all(|entry| !entry.permanent), "{observed:?}");
        assert!(observed.routes.iter().all(|route| route.protocol != ROUTE_PROTOCOL), "{observed:?}");
    }
    assert!(!one.host.run("ip -6 route").contains("fd00:0:0:2::/64"));
    assert!(!one.host.run("ip route").contains("10.1.2.0/24"));
}

#[test]
fn point_10_peers_come_and_go_in_both_sets_without_a_program() {
    let dual = Dual::new(r#""Type":"vxlan""#);
    dual.converge();
    let [one, _] = dual.pair();
    let full = dual.firewall(one);
    let mut empty = full.clone();
    empty.peers.clear();
    empty.v6.as_mut().expect("two families").peers.clear();
    let sets = full.sets();
    assert_eq!(sets, ["peers", "peers6"]);
    let mark = async || rules_mark(&sets).await.expect("the kernel answers");
    let elements = || {
        ["peers", "peers6"]
            .map(|set| one.host.run(&format!("nft list set inet muster {set}")).contains("elements"))
    };
    let handles = || one.host.run("nft --handle list chain inet muster forward");
    one.host.block_on(async || apply_firewall(&empty).await).expect("rules");
    let (before, rules) = (one.host.block_on(mark), handles());
    one.host.block_on(async || change_peers(&empty, &full).await).expect("changed");
    assert_eq!(elements(), [true, true]);
    assert_eq!(handles(), rules, "no rule was touched");
    assert_ne!(one.host.block_on(mark), before, "peers count");
    dual.containers_meet();
    one.host.block_on(async || change_peers(&full, &empty).await).expect("changed");
    assert_eq!((elements(), one.host.block_on(mark)), ([false, false], before));

    // A crowd, whose order in the kernel changes as the table grows.
    let mut crowd = full.clone();
    crowd.peers.extend((0..2500_u32).map(|number| Ipv4Addr::from(0xac10_0000 + number)));
    one.host.block_on(async || change_peers(&empty, &crowd).await).expect("changed");
    let whole = one.host.block_on(mark);
    let listed = one.host.run("nft list set inet muster peers").matches("172.16.").count();
    assert_eq!(listed, 2500);
    for _ in 0..20 {
        assert_eq!(one.host.block_on(mark), whole, "nothing changed");
    }
    // All or nothing: a peer that was taken away by somebody else cannot be taken away.
    one.host.run("nft delete element inet muster peers { 172.16.0.7 }");
    let error = one.host.block_on(async || change_peers(&crowd, &full).await).expect_err("one is missing");
    assert!(error.to_string().contains("change the peers"), "{error}");
    assert_eq!(one.host.run("nft list set inet muster peers").matches("172.16.").count(), 2499);
    one.host.run("nft delete table inet muster");
    one.host.block_on(async || change_peers(&empty, &full).await).expect_err("no table");
}

#[test]
fn a_peer_of_one_family_is_one_of_that_family_only() {
    let dual = Dual::new(r#""Type":"vxlan""#);
    let [one, two] = dual.pair();
    let mut lease = own_lease(&two.id, &dual.0.config, &two.underlay(), None);
    lease.public_ipv6 = None;
    lease.backend_v6_data = None;
    let leases: Vec<Lease> = vec![(SubnetKey::from(two.subnet), Some(lease))];
    let all = Desired::all(&one.id, &dual.0.config, one.both(), &one.underlay(), &leases);
    assert_eq!(all.iter().map(|desired| desired.peers.len()).collect::<Vec<_>>(), [1, 0]);
    all.iter().for_each(|desired| drop(one.converge(desired)));
    assert!(one.host.run("ip route").contains(&IpNet::from(two.subnet.net()).to_string()));
}
