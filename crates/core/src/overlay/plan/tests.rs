//! `plan` against a small kernel: what Linux does on each operation, as far as our device is concerned.

use super::*;
use proptest::prelude::*;
use std::net::Ipv4Addr;

/// The kernel's state around one device name, and how operations change it.
#[derive(Debug, Clone, Default)]
struct Kernel(Observed);

impl Kernel {
    fn apply(&mut self, ops: &[Op]) {
        ops.iter().for_each(|op| self.apply_one(op));
    }

    fn device(&mut self, name: &str) -> &mut ObservedDevice {
        assert_eq!(name, "flannel.1");
        self.0.device.as_mut().expect("an operation on the device needs the device")
    }

    fn assert_up(&mut self, name: &str) {
        assert!(
            name == "eth0" || self.device(name).up,
            "the kernel refuses routes over a device that is down"
        );
    }

    fn apply_one(&mut self, op: &Op) {
        match op {
            Op::DeleteDevice { .. } => {
                assert!(self.0.device.is_some());
                self.0.routes.retain(|route| route.device != "flannel.1");
                self.0 = Observed { routes: std::mem::take(&mut self.0.routes), ..Observed::default() };
            }
            Op::CreateDevice { device } => {
                assert!(self.0.device.is_none());
                self.0.device = Some(fresh(device));
            }
            Op::SetMtu { device, mtu } => self.device(device).mtu = *mtu,
            Op::SetMac { device, mac } => {
                self.device(device).mac = Some(*mac);
                self.0.neighbours.clear();
            }
            Op::AddAddress { device, address } => assert!(self.device(device).addresses.insert(*address)),
            Op::RemoveAddress { device, address } => {
                let addresses = &mut self.device(device).addresses;
                assert!(addresses.remove(address));
                if addresses.is_empty() {
                    self.0.routes.retain(|route| route.device != "flannel.1");
                    self.0.neighbours.clear();
                }
            }
            Op::SetUp { device } => self.device(device).up = true,
            Op::SetNeighbour { device, address, mac } => {
                self.device(device);
                self.0.neighbours.retain(|other| other.address != *address);
                self.0.neighbours.push(Neighbour { address: *address, mac: Some(*mac), permanent: true });
            }
            Op::SetFdb { device, mac, destination } => {
                self.device(device);
                self.0.fdb.retain(|other| other.mac != *mac);
                self.0.fdb.push(FdbEntry { mac: *mac, destination: *destination, permanent: true });
            }
            Op::AddRoute { route } => {
                self.assert_up(&route.device);
                assert!(!self.0.routes.iter().any(|other| place(other) == place(route)), "EEXIST");
                self.0.routes.push(route.clone());
            }
            Op::ReplaceRoute { route } => {
                self.assert_up(&route.device);
                self.0.routes.retain(|other| place(other) != place(route));
                self.0.routes.push(route.clone());
            }
            Op::RemoveRoute { route } => self.0.routes.retain(|other| other != route),
            Op::RemoveFdb { mac, destination, .. } => {
                self.0.fdb.retain(|other| (other.mac, other.destination) != (*mac, *destination));
            }
            Op::RemoveNeighbour { address, .. } => {
                self.0.neighbours.retain(|other| other.address != *address);
            }
        }
    }
}

fn place(route: &Route) -> (IpNet, u32) {
    (route.destination, route.metric)
}

fn fresh(device: &Device) -> ObservedDevice {
    ObservedDevice {
        index: 7,
        up: false,
        vxlan: Some(Vxlan {
            vni: device.vni,
            port: device.port,
            local: Some(device.local),
            underlay: Some(device.underlay.clone()),
            learning: false,
            gbp: false,
        }),
        mac: Some(device.mac),
        mtu: device.mtu,
        addresses: BTreeSet::new(),
    }
}

fn mac(last: u8) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, last])
}

fn subnet(third: u8) -> IpNet {
    IpNet::new_assert(Ipv4Addr::new(10, 1, third, 0).into(), 24)
}

fn base(third: u8) -> IpAddr {
    subnet(third).network()
}

fn peer(last: u8) -> Peer {
    Peer::vxlan(Ipv4Addr::new(192, 168, 77, last), mac(last))
}

fn desired() -> Desired {
    let device = Device {
        name: "flannel.1".to_owned(),
        vni: 1,
        port: 8472,
        mac: mac(1),
        local: Ipv4Addr::new(192, 168, 77, 1).into(),
        underlay: "eth0".to_owned(),
        learning: false,
        gbp: false,
        mtu: 1450,
        address: base(1),
    };
    let (family, underlay) = (Family::V4, "eth0".to_owned());
    let tunnel = Some(Tunnel::Vxlan(device));
    Desired {
        family,
        tunnel,
        underlay,
        mtu: 1450,
        protocol: ROUTE_PROTOCOL,
        peers: BTreeMap::from([(subnet(2), peer(2)), (subnet(3), peer(3))]),
    }
}

fn route(third: u8) -> Route {
    Route {
        device: device(),
        destination: subnet(third),
        via: Some(base(third)),
        onlink: true,
        metric: 0,
        protocol: ROUTE_PROTOCOL,
    }
}

fn converged(desired: &Desired) -> Kernel {
    let mut kernel = Kernel::default();
    kernel.apply(&plan(desired, &kernel.0));
    kernel
}

fn device() -> String {
    "flannel.1".to_owned()
}

#[test]
fn an_empty_kernel_gets_device_then_each_peer_in_order() {
    let mut desired = desired();
    desired.peers.remove(&subnet(3));
    let (public_ip, mac, address) = (peer(2).public_ip, mac(2), base(2));
    assert_eq!(
        plan(&desired, &Observed::default()),
        [
            Op::CreateDevice { device: desired.vtep().expect("VXLAN").clone() },
            Op::AddAddress { device: device(), address: "10.1.1.0/32".parse().expect("a network") },
            Op::SetUp { device: device() },
            Op::SetNeighbour { device: device(), address, mac },
            Op::SetFdb { device: device(), mac, destination: public_ip },
            Op::AddRoute { route: route(2) },
        ]
    );
    assert_eq!(plan(&desired, &converged(&desired).0), []);
}

#[test]
fn a_peer_that_left_is_taken_down_in_reverse() {
    let mut desired = desired();
    let kernel = converged(&desired);
    desired.peers.remove(&subnet(3));
    assert_eq!(
        plan(&desired, &kernel.0),
        [
            Op::RemoveRoute { route: route(3) },
            Op::RemoveFdb { device: device(), mac: mac(3), destination: peer(3).public_ip },
            Op::RemoveNeighbour { device: device(), address: base(3) },
        ]
    );
}

#[test]
fn a_peer_that_moved_is_replaced_without_losing_its_route() {
    let mut desired = desired();
    let kernel = converged(&desired);
    desired.peers.insert(subnet(3), peer(4));
    assert_eq!(
        plan(&desired, &kernel.0),
        [
            Op::SetNeighbour { device: device(), address: base(3), mac: mac(4) },
            Op::SetFdb { device: device(), mac: mac(4), destination: peer(4).public_ip },
            Op::RemoveFdb { device: device(), mac: mac(3), destination: peer(3).public_ip },
        ]
    );
}

#[test]
fn what_somebody_deleted_by_hand_comes_back() {
    let desired = desired();
    let mut kernel = converged(&desired);
    kernel.0.routes.retain(|other| *other != route(2));
    assert_eq!(plan(&desired, &kernel.0), [Op::AddRoute { route: route(2) }]);
}

#[test]
fn only_what_cannot_be_changed_costs_the_device() {
    let desired = desired();
    let changed = |change: fn(&mut ObservedDevice)| {
        let mut kernel = converged(&desired);
        kernel.0.device.iter_mut().for_each(change);
        plan(&desired, &kernel.0)
    };
    let address: IpNet = "10.1.9.0/32".parse().expect("a network");
    assert_eq!(changed(|device| device.mtu = 1400), [Op::SetMtu { device: device(), mtu: 1450 }]);
    assert_eq!(changed(|device| device.up = false), [Op::SetUp { device: device() }]);
    assert_eq!(
        changed(|device| device.addresses = BTreeSet::from(["10.1.9.0/32".parse().expect("a network")])),
        [
            Op::AddAddress { device: device(), address: "10.1.1.0/32".parse().expect("a network") },
            Op::RemoveAddress { device: device(), address },
        ]
    );
    let ops = changed(|device| device.mac = Some(mac(99)));
    assert_eq!(ops.first(), Some(&Op::SetMac { device: device(), mac: mac(1) }));
    assert_eq!(ops.len(), 3, "the kernel forgot both neighbours: {ops:?}");

    let recreated = |change: fn(&mut Vxlan)| {
        let mut kernel = converged(&desired);
        kernel.0.device.iter_mut().filter_map(|device| device.vxlan.as_mut()).for_each(change);
        match plan(&desired, &kernel.0).first() {
            Some(Op::DeleteDevice { why, .. }) => Some(*why),
            _ => None,
        }
    };
    assert_eq!(recreated(|vxlan| vxlan.vni = 2), Some(Mismatch::Vni));
    assert_eq!(recreated(|vxlan| vxlan.port = 4789), Some(Mismatch::Port));
    assert_eq!(recreated(|vxlan| vxlan.local = None), Some(Mismatch::Local));
    assert_eq!(recreated(|vxlan| vxlan.underlay = None), Some(Mismatch::Underlay));
    assert_eq!(recreated(|vxlan| vxlan.learning = true), Some(Mismatch::Learning));
    assert_eq!(changed(|device| device.vxlan = None).len(), 2 + 2 + 2 * 3);
}

#[test]
fn flannels_routes_are_taken_over_and_strangers_stay() {
    let desired = desired();
    let mut kernel = converged(&desired);
    let flannels = |third| Route { protocol: BOOT, ..route(third) };
    let strangers = Route { protocol: 186, ..route(50) };
    kernel.0.routes = vec![flannels(2), route(3), flannels(40), strangers];
    assert_eq!(
        plan(&desired, &kernel.0),
        [Op::ReplaceRoute { route: route(2) }, Op::RemoveRoute { route: flannels(40) },]
    );
}

#[test]
fn peers_on_the_link_are_next_hops_and_our_mark_is_collected_anywhere() {
    let mut desired = desired();
    let mut kernel = converged(&desired);
    for peer in desired.peers.values_mut() {
        peer.via = Via::Direct;
    }
    let direct = |third: u8| Route {
        device: "eth0".to_owned(),
        via: Some(Ipv4Addr::new(192, 168, 77, third).into()),
        onlink: false,
        ..route(third)
    };
    let stale = Route { destination: subnet(9), ..direct(9) };
    let foreign = Route { protocol: BOOT, ..direct(50) };
    kernel.0.routes.extend([stale.clone(), foreign.clone()]);
    let ops = plan(&desired, &kernel.0);
    assert_eq!(ops.first(), Some(&Op::ReplaceRoute { route: direct(2) }));
    assert!(ops.contains(&Op::RemoveRoute { route: stale }), "{ops:?}");
    kernel.apply(&ops);
    assert_eq!(plan(&desired, &kernel.0), []);
    assert!(kernel.0.routes.contains(&foreign) && kernel.0.fdb.is_empty());
}

#[test]
fn nothing_hangs_on_a_wireguard_device_before_it_is_there() {
    let mut desired = desired();
    desired.tunnel = Some(Tunnel::Wireguard { name: device(), mtu: 1420, address: base(1) });
    for peer in desired.peers.values_mut() {
        peer.via = Via::Wireguard { key: "key".to_owned(), port: 51820 };
    }
    assert_eq!(plan(&desired, &Observed::default()), []);
    let there =
        ObservedDevice { index: 5, up: false, vxlan: None, mac: None, mtu: 1420, addresses: BTreeSet::new() };
    let observed = Observed { device: Some(there), ..Observed::default() };
    let over = |third| Route { via: None, onlink: false, ..route(third) };
    assert_eq!(
        plan(&desired, &observed),
        [
            Op::AddAddress { device: device(), address: base(1).into() },
            Op::SetUp { device: device() },
            Op::AddRoute { route: over(2) },
            Op::AddRoute { route: over(3) },
        ]
    );
}

#[test]
fn operations_are_data_that_can_be_logged() {
    let op = Op::SetNeighbour { device: device(), address: base(2), mac: mac(2) };
    assert_eq!(
        serde_json::to_string(&op).expect("renders"),
        r#"{"op":"set-neighbour","device":"flannel.1","address":"10.1.2.0","mac":"02:00:00:00:00:02"}"#
    );
}

fn any_observed() -> impl Strategy<Value = Observed> {
    let device = proptest::option::of((
        any::<bool>(),
        proptest::option::weighted(0.9, (1_u32..3, 8471_u16..8473, 0_u8..2, 0_u8..2, any::<bool>())),
        proptest::option::weighted(0.9, 0_u8..3),
        1449_u32..1451,
        proptest::collection::btree_set(0_u8..3, 0..3),
    ));
    let hop =
        (2_u8..8, 0_u8..2, any::<bool>(), 0_u32..2, prop_oneof![Just(ROUTE_PROTOCOL), Just(BOOT), Just(4)]);
    let neighbour = (2_u8..8, proptest::option::of(1_u8..8), any::<bool>());
    let entry = (1_u8..8, 1_u8..8, any::<bool>());
    let many = 0..8;
    (
        device,
        proptest::collection::vec(hop, many.clone()),
        proptest::collection::vec(neighbour, many.clone()),
        proptest::collection::vec(entry, many),
    )
        .prop_map(|(device, routes, neighbours, fdb)| {
            let Some((up, vxlan, hardware, mtu, addresses)) = device else { return Observed::default() };
            let vxlan = vxlan.map(|(vni, port, local, underlay, learning)| Vxlan {
                vni,
                port,
                local: (local == 1).then_some(Ipv4Addr::new(192, 168, 77, 1).into()),
                underlay: (underlay == 1).then(|| "eth0".to_owned()),
                learning,
                gbp: false,
            });
            let addresses = addresses.into_iter().map(|third| IpNet::from(base(third))).collect();
            let device = ObservedDevice { index: 5, up, vxlan, mac: hardware.map(mac), mtu, addresses };
            let mut routes: Vec<Route> = routes
                .into_iter()
                .map(|(third, via, onlink, metric, protocol)| Route {
                    via: (via == 1).then(|| base(third)),
                    onlink,
                    metric,
                    protocol,
                    ..route(third)
                })
                .collect();
            // As in the kernel: one route per place, one entry per key, no routes over a device that is down.
            routes.sort_by_key(place);
            routes.dedup_by_key(|route| place(route));
            routes.retain(|_| up);
            let mut neighbours: Vec<Neighbour> = neighbours
                .into_iter()
                .map(|(third, known, permanent)| Neighbour {
                    address: base(third),
                    mac: known.map(mac),
                    permanent,
                })
                .collect();
            neighbours.sort_unstable();
            neighbours.dedup_by_key(|neighbour| neighbour.address);
            let mut fdb: Vec<FdbEntry> = fdb
                .into_iter()
                .map(|(from, to, permanent)| FdbEntry {
                    mac: mac(from),
                    destination: peer(to).public_ip,
                    permanent,
                })
                .collect();
            fdb.sort_unstable();
            fdb.dedup_by_key(|entry| entry.mac);
            Observed { device: Some(device), routes, neighbours, fdb }
        })
}

/// Peers of which some share addresses, as cloned machines do.
fn any_peers() -> impl Strategy<Value = BTreeMap<IpNet, Peer>> {
    proptest::collection::btree_map(2_u8..8, (2_u8..8, 2_u8..8), 0..6).prop_map(|peers| {
        let one = |(third, (ip, hardware))| (subnet(third), Peer::vxlan(peer(ip).public_ip, mac(hardware)));
        peers.into_iter().map(one).collect()
    })
}

proptest! {
    #[test]
    fn one_plan_is_enough(peers in any_peers(), observed in any_observed()) {
        let desired = Desired { peers, ..desired() };
        let mut kernel = Kernel(observed.clone());
        let ops = plan(&desired, &observed);
        kernel.apply(&ops);
        prop_assert_eq!(plan(&desired, &kernel.0), vec![], "after {:?}", ops);
        let recreated = ops.iter().any(|op| matches!(op, Op::DeleteDevice { .. } | Op::CreateDevice { .. }));
        let lost_addresses = ops.iter().any(|op| matches!(op, Op::RemoveAddress { .. }));
        if !recreated && !lost_addresses {
            for stranger in observed.routes.iter().filter(|route| route.protocol == 4) {
                let ours = desired.peers.keys().any(|peer| place(stranger) == (*peer, 0));
                prop_assert!(ours || kernel.0.routes.contains(stranger), "{:?} was not ours", stranger);
            }
        }
    }
}
