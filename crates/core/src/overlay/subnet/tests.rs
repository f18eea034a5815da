//! Which subnet is chosen, and who becomes a peer.

use super::*;
use model::network::{BackendData, VxlanData};
use proptest::prelude::*;

fn subnet(key: &str) -> SubnetKey {
    key.parse().expect("a key")
}

fn config(network: &str) -> NetworkConfig {
    NetworkConfig::vxlan(network.parse().expect("a network")).expect("valid")
}

fn lease(key: &str, last: u8) -> Lease {
    let data = VxlanData { vni: Some(1), vtep_mac: MacAddress([2, 0, 0, 0, 0, last]) };
    let value = SubnetLease {
        public_ip: Ipv4Addr::new(192, 168, 77, last),
        public_ipv6: None,
        backend_type: "vxlan".to_owned(),
        backend_data: Some(BackendData::Vxlan(data)),
        backend_v6_data: None,
    };
    (subnet(key), Some(value))
}

const OWN: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 9);

/// The machine at [`OWN`], with the device that `lease` would give it there.
fn choose(
    config: &NetworkConfig,
    leases: &[Lease],
    previous: Option<SubnetKey>,
    record: Option<&NodeRecord>,
    others: &[&str],
    pick: u64,
) -> Choice {
    let own = lease("10.1.0.0-24", 9).1.expect("readable");
    let others = others.iter().map(|key| subnet(key)).collect();
    let me = Claimant { public_ip: OWN, lease: &own, record, previous, others: &others };
    choose_subnet(config, leases, &me, pick)
}

fn underlay() -> Underlay {
    Underlay {
        name: "eth0".to_owned(),
        index: 2,
        address: OWN,
        address6: None,
        links: vec!["192.168.77.0/24".parse().expect("a network")],
        mtu: 1500,
    }
}

#[test]
fn the_lease_of_our_address_is_used_again() {
    let leases = [lease("10.1.7.0-24", 9), lease("10.1.3.0-24", 9), lease("10.1.9.0-25", 9)];
    let choose = |previous| choose(&config("10.1.0.0/16"), &leases, previous, None, &[], 0);
    assert_eq!(choose(None), Choice::Reuse(subnet("10.1.3.0-24")));
    assert_eq!(choose(Some(subnet("10.1.7.0-24"))), Choice::Reuse(subnet("10.1.7.0-24")));
}

#[test]
fn the_previous_subnet_is_taken_while_it_is_free_and_fits() {
    let choose =
        |key: &str, leases: &[Lease]| choose(&config("10.1.0.0/16"), leases, Some(subnet(key)), None, &[], 0);
    assert_eq!(choose("10.1.200.0-24", &[]), Choice::Take(subnet("10.1.200.0-24")));
    let first = Choice::Take(subnet("10.1.1.0-24"));
    assert_eq!(choose("10.2.200.0-24", &[]), first, "outside the network");
    assert_eq!(choose("10.1.200.0-25", &[]), first, "another length");
    assert_eq!(choose("10.1.200.0-24", &[lease("10.1.200.0-24", 1)]), first, "somebody else's");
    assert_eq!(choose("10.1.200.0-24", &[(subnet("10.1.200.0-24"), None)]), first, "unreadable is taken");
}

#[test]
fn a_free_one_of_the_first_hundred_is_picked_until_none_is_left() {
    let config = config("10.1.0.0/16");
    let leases = [lease("10.1.1.0-24", 1), lease("10.1.2.0-23", 2), lease("10.1.5.128-25", 3)];
    let pick_one = |pick| choose(&config, &leases, None, None, &[], pick);
    assert_eq!(pick_one(0), Choice::Take(subnet("10.1.4.0-24")));
    assert_eq!(pick_one(1), Choice::Take(subnet("10.1.6.0-24")));
    assert_eq!(pick_one(99), Choice::Take(subnet("10.1.104.0-24")));
    assert_eq!(pick_one(100), pick_one(0));
    let all: Vec<Lease> = config.subnets().map(|subnet| (subnet.into(), None)).collect();
    assert_eq!(choose(&config, &all, None, None, &[], 7), Choice::Full);
}

#[test]
fn peers_are_what_can_be_reached_and_diverts_nothing() {
    let change = |mut lease: Lease, change: fn(&mut SubnetLease)| {
        lease.1.as_mut().into_iter().for_each(change);
        lease
    };
    let data = |lease: &mut SubnetLease, vni, mac| {
        lease.backend_data = Some(BackendData::Vxlan(VxlanData { vni, vtep_mac: MacAddress(mac) }));
    };
    let own = subnet("10.1.9.0-24");
    let good = lease("10.1.2.0-24", 2);
    let leases = [
        good.clone(),
        change(lease("10.1.3.0-24", 3), |lease| {
            if let Some(BackendData::Vxlan(data)) = &mut lease.backend_data {
                data.vni = None;
            }
        }),
        (own, lease("10.1.9.0-24", 9).1),
        lease("10.1.10.0-24", 9), // an old lease of ours: it would send packets in circles
        (subnet("10.1.11.0-24"), None),
        change(lease("10.1.12.0-24", 12), |lease| lease.backend_type = "host-gw".to_owned()),
        change(lease("10.1.13.0-24", 13), |lease| lease.backend_data = None),
        change(lease("10.1.14.0-24", 14), |lease| lease.public_ip = Ipv4Addr::UNSPECIFIED),
        change(lease("10.1.15.0-24", 15), |lease| lease.public_ip = Ipv4Addr::new(10, 1, 2, 3)),
        lease("0.0.0.0-0", 16),
        lease("10.1.0.0-16", 17),
        lease("10.1.8.0-23", 18),
        lease("10.2.1.0-24", 19),
    ];
    let mut leases = leases.to_vec();
    let mut wrong = |key: &str, last: u8, vni: u32, mac: [u8; 6]| {
        let mut wrong = lease(key, last);
        wrong.1.iter_mut().for_each(|lease| data(lease, Some(vni), mac));
        leases.push(wrong);
    };
    wrong("10.1.20.0-24", 20, 2, [2, 0, 0, 0, 0, 20]);
    wrong("10.1.21.0-24", 21, 1, [0; 6]);
    wrong("10.1.22.0-24", 22, 1, [1, 0, 0x5e, 0, 0, 1]);
    let peers = desired_peers(Family::V4, &leases, own, &config("10.1.0.0/16"), &underlay());
    assert_eq!(peers.keys().map(IpNet::to_string).collect::<Vec<_>>(), ["10.1.2.0/24", "10.1.3.0/24"]);
    let expected = Peer::vxlan(Ipv4Addr::new(192, 168, 77, 2), MacAddress([2, 0, 0, 0, 0, 2]));
    assert_eq!(peers.get(&good.0.v4.net().into()), Some(&expected));
}

#[test]
fn point_04_a_machine_knows_its_lease_by_its_device_and_its_record_before_its_address() {
    let config = config("10.1.0.0/16");
    let moved = |key: &str, last: u8, device: u8| {
        let mut lease = lease(key, last);
        lease
            .1
            .iter_mut()
            .for_each(|value| value.backend_data = self::lease(key, device).1.and_then(|v| v.backend_data));
        lease
    };
    // The lease says another address, and names our device.
    let leases = [moved("10.1.7.0-24", 44, 9)];
    assert_eq!(choose(&config, &leases, None, None, &[], 0), Choice::Reuse(subnet("10.1.7.0-24")));
    // Our record says the address that the lease still has.
    let record = NodeRecord::new(subnet("10.1.7.0-24"), Ipv4Addr::new(192, 168, 77, 44));
    let leases = [lease("10.1.7.0-24", 44)];
    assert_eq!(choose(&config, &leases, None, Some(&record), &[], 0), Choice::Reuse(record.subnet));
    // Another machine, by its record, had our address before us.
    let leases = [lease("10.1.3.0-24", 1), moved("10.1.7.0-24", 9, 70)];
    let other = choose(&config, &leases, None, None, &["10.1.7.0-24"], 0);
    assert_eq!(other, Choice::Take(subnet("10.1.1.0-24")));
}

#[test]
fn subnets_of_machines_that_are_away_are_left_to_them_while_there_are_others() {
    let text = r#"{"Network":"10.1.0.0/22","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#;
    let config: NetworkConfig = text.parse().expect("valid");
    let away = ["10.1.1.0-24", "10.1.2.0-24"];
    assert_eq!(choose(&config, &[], None, None, &away, 5), Choice::Take(subnet("10.1.3.0-24")));
    let leases = [lease("10.1.3.0-24", 3)];
    assert_eq!(choose(&config, &leases, None, None, &away, 0), Choice::Take(subnet("10.1.1.0-24")));
}

#[test]
fn both_families_are_leased_together() {
    let text =
        r#"{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"vxlan"}}"#;
    let config: NetworkConfig = text.parse().expect("valid");
    let taken = (subnet("10.1.1.0-24&fd00:0:0:2::-64"), None);
    let chosen = choose(&config, &[taken], None, None, &[], 0);
    assert_eq!(chosen, Choice::Take(subnet("10.1.2.0-24&fd00:0:0:1::-64")));
    let previous = Some(subnet("10.1.9.0-24"));
    assert_eq!(
        choose(&config, &[], previous, None, &[], 1),
        Choice::Take(subnet("10.1.2.0-24&fd00:0:0:2::-64"))
    );
}

#[test]
fn each_backend_reaches_its_own_kind() {
    let peers = |backend: &str, leases: &[Lease]| {
        let config = format!(r#"{{"Network":"10.1.0.0/16","Backend":{{{backend}}}}}"#);
        desired_peers(Family::V4, leases, subnet("10.1.9.0-24"), &config.parse().expect("valid"), &underlay())
    };
    let far = |mut lease: Lease| {
        lease.1.iter_mut().for_each(|value| value.public_ip = Ipv4Addr::new(172, 16, 0, 9));
        lease
    };
    let of = |mut lease: Lease, name: &str, data: Option<BackendData>| {
        lease.1.iter_mut().for_each(|value| {
            value.backend_type = name.to_owned();
            value.backend_data.clone_from(&data);
        });
        lease
    };
    let net: IpNet = "10.1.2.0/24".parse().expect("a network");
    let via = |peers: BTreeMap<IpNet, Peer>| peers.get(&net).map(|peer| peer.via.clone());
    let near = lease("10.1.2.0-24", 2);
    let direct = r#""Type":"vxlan","DirectRouting":true"#;
    assert_eq!(via(peers(direct, std::slice::from_ref(&near))), Some(Via::Direct));
    assert!(matches!(via(peers(direct, &[far(near.clone())])), Some(Via::Vxlan(_))));
    let gateway = of(near.clone(), "host-gw", None);
    assert_eq!(via(peers(r#""Type":"host-gw""#, std::slice::from_ref(&gateway))), Some(Via::Direct));
    assert_eq!(via(peers(r#""Type":"host-gw""#, &[far(gateway)])), None, "a router is between");
    let data: BackendData = serde_json::from_str(r#"{"PublicKey":"k","Port":7}"#).expect("data");
    let encrypted = of(near.clone(), "wireguard", Some(data));
    let expected = Via::Wireguard { key: "k".to_owned(), port: 7 };
    assert_eq!(via(peers(r#""Type":"wireguard""#, &[encrypted])), Some(expected));
    assert!(peers(r#""Type":"alloc""#, &[of(near, "alloc", None)]).is_empty());
}

/// Golden: these must never change.
#[test]
fn the_address_of_the_device_is_stable_for_ever() {
    let mac = |id: &str, vni| vtep_mac(&id.parse().expect("an id"), vni, Family::V4).to_string();
    assert_eq!(mac("0123456789abcdef0123456789abcdef", 1), "02:23:66:78:2f:42");
    assert_eq!(mac("0123456789abcdef0123456789abcdef", 2), "02:23:66:7d:1b:93");
    assert_eq!(mac("00000000000000000000000000000000", 1), "02:10:7e:a0:42:f1");
}

fn apart(one: Subnet, other: Subnet) -> bool {
    !one.net().contains(&other.net()) && !other.net().contains(&one.net())
}

proptest! {
    #[test]
    fn a_taken_subnet_is_free_for_nobody(
        claims in proptest::collection::vec((0_u32..1024, 22_u8..28), 0..40), pick: u64,
    ) {
        let config = config("10.1.0.0/20");
        let leases: Vec<Lease> = claims
            .iter()
            .map(|(offset, len)| Ipv4Net::new(Ipv4Addr::from(0x0a01_0000 + offset * 4), *len).expect("a length"))
            .map(|net| (Subnet::new(net).into(), None))
            .collect();
        let free: Vec<Subnet> = config
            .subnets()
            .filter(|subnet| leases.iter().all(|(lease, _)| apart(lease.v4, *subnet)))
            .collect();
        match choose(&config, &leases, None, None, &[], pick) {
            Choice::Take(subnet) => prop_assert!(free.contains(&subnet.v4)),
            Choice::Full => prop_assert!(free.is_empty()),
            Choice::Reuse(subnet) => prop_assert!(false, "{subnet} is nobody's"),
        }
    }
}
