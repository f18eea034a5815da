//! Leases on subnets: which one this machine takes, and what the others' leases say about reaching them.
//!
//! Not here: the transaction that takes a lease (a collision is an event; choose again with the new list), its
//! renewal. Invariant: a subnet that any key in the hub claims is never taken, even if the key's value cannot be
//! read; a lease that would draw traffic from outside the cluster network never becomes a peer.

use super::Peer;
use ipnet::Ipv4Net;
use model::{
    MachineId, NetworkConfig, Subnet, SubnetLease,
    network::{Backend, MacAddress},
};
use serde::Serialize;
use std::{collections::BTreeMap, net::Ipv4Addr};

/// A lease as the hub lists it: the subnet from its key, and its value where that can be read.
pub type Lease = (Subnet, Option<SubnetLease>);

/// How many free subnets are considered: flannel's number. Choosing among many keeps machines that start at
/// once from all trying the same one.
const CANDIDATES: usize = 100;

/// The subnet that a machine should hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Choice {
    /// It is leased to this machine's address already.
    Reuse(Subnet),
    /// It is free: create its key, on condition that there is none.
    Take(Subnet),
    /// Every subnet of the configuration is taken.
    Full,
}

/// Chooses a subnet as flannel does: the one leased to `own_ip`, else the `previous` one while it is free, else
/// one of the first hundred free ones. `pick` is random and makes the last choice.
pub fn choose_subnet(
    config: &NetworkConfig,
    leases: &[Lease],
    own_ip: Ipv4Addr,
    previous: Option<Subnet>,
    pick: u64,
) -> Choice {
    let fits = |subnet: &Subnet| config.allows(*subnet);
    let own = leases
        .iter()
        .filter(|(_, lease)| lease.as_ref().is_some_and(|lease| lease.public_ip == own_ip))
        .map(|(subnet, _)| *subnet)
        .filter(fits);
    // Of several leases of ours, the one that containers already run in.
    if let Some(subnet) = own.min_by_key(|subnet| (Some(*subnet) != previous, *subnet)) {
        return Choice::Reuse(subnet);
    }
    let taken = Taken::new(leases);
    if let Some(subnet) = previous.filter(fits).filter(|subnet| taken.leaves_free(*subnet)) {
        return Choice::Take(subnet);
    }
    let free: Vec<Subnet> =
        config.subnets().filter(|subnet| taken.leaves_free(*subnet)).take(CANDIDATES).collect();
    let among = u64::try_from(free.len()).unwrap_or(u64::MAX);
    let chosen = pick.checked_rem(among).and_then(|index| free.get(usize::try_from(index).ok()?));
    chosen.map_or(Choice::Full, |subnet| Choice::Take(*subnet))
}

/// The address ranges that leases claim, first and last address of each; sorted, without overlaps.
struct Taken(Vec<(u32, u32)>);

impl Taken {
    fn new(leases: &[Lease]) -> Self {
        let mut claims: Vec<(u32, u32)> = leases.iter().map(|(subnet, _)| range(subnet.net())).collect();
        claims.sort_unstable();
        // Two CIDR blocks are apart or one holds the other, so only the wider one needs to stay.
        claims.dedup_by(|later, earlier| {
            let overlaps = later.0 <= earlier.1;
            earlier.1 = if overlaps { earlier.1.max(later.1) } else { earlier.1 };
            overlaps
        });
        Self(claims)
    }

    fn leaves_free(&self, subnet: Subnet) -> bool {
        let (first, last) = range(subnet.net());
        let next = self.0.partition_point(|claim| claim.1 < first);
        self.0.get(next).is_none_or(|claim| claim.0 > last)
    }
}

fn range(net: Ipv4Net) -> (u32, u32) {
    (u32::from(net.network()), u32::from(net.broadcast()))
}

/// The machines that `leases` describe, as seen by the holder of `own`. Left out: leases of this machine, of other
/// backends or another VNI, with values that cannot be read, and those that would divert traffic: a subnet that is
/// not inside the cluster network or overlaps ours, an address that is no machine's.
pub fn desired_peers(leases: &[Lease], own: Subnet, config: &NetworkConfig) -> BTreeMap<Subnet, Peer> {
    let Backend::Vxlan { vni: own_vni, .. } = config.backend;
    let own_ip = leases
        .iter()
        .find(|(subnet, _)| *subnet == own)
        .and_then(|(_, lease)| lease.as_ref())
        .map(|lease| lease.public_ip);
    let peer = |(subnet, lease): &Lease| {
        let lease = lease.as_ref()?;
        let data = lease.backend_data.as_ref().filter(|_| lease.backend_type == "vxlan")?;
        let ours = Some(lease.public_ip) == own_ip;
        // flannel before 0.8 wrote no VNI; there was one network only.
        let same_network = data.vni.is_none_or(|vni| vni == own_vni);
        let sound = inside(config.network, *subnet)
            && apart(own, *subnet)
            && is_machine(lease.public_ip)
            && !config.network.contains(&lease.public_ip)
            && is_unicast(data.vtep_mac);
        (!ours && same_network && sound)
            .then_some((*subnet, Peer { public_ip: lease.public_ip, mac: data.vtep_mac }))
    };
    leases.iter().filter_map(peer).collect()
}

fn inside(network: Ipv4Net, subnet: Subnet) -> bool {
    network.contains(&subnet.net()) && subnet.net() != network
}

fn apart(one: Subnet, other: Subnet) -> bool {
    !one.net().contains(&other.net()) && !other.net().contains(&one.net())
}

fn is_machine(address: Ipv4Addr) -> bool {
    !(address.is_unspecified() || address.is_multicast() || address.is_broadcast() || address.is_loopback())
}

/// A group address or the zero address in the forwarding database would copy traffic meant for others.
fn is_unicast(mac: MacAddress) -> bool {
    mac.0[0] & 1 == 0 && mac != MacAddress([0; 6])
}

/// The address of a machine's VXLAN device: the same after every reboot, so that peers need not learn anything.
/// Locally administered and unicast. Never change what this computes: a mixed cluster would be cut in two.
pub fn vtep_mac(machine: &MachineId, vni: u32) -> MacAddress {
    // FNV-1a, folded to 40 bits as its authors advise. The 4 stands for IPv4.
    let bytes = machine.as_str().bytes().chain(vni.to_be_bytes()).chain([4]);
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let [_, _, _, a, b, c, d, e] = ((hash >> 40) ^ (hash & 0xff_ffff_ffff)).to_be_bytes();
    MacAddress([2, a, b, c, d, e])
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::network::VxlanData;
    use proptest::prelude::*;

    fn subnet(key: &str) -> Subnet {
        Subnet::from_key(key).expect("a key")
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
            backend_data: Some(data),
        };
        (subnet(key), Some(value))
    }

    const OWN: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 9);

    #[test]
    fn the_lease_of_our_address_is_used_again() {
        let leases = [lease("10.1.7.0-24", 9), lease("10.1.3.0-24", 9), lease("10.1.9.0-25", 9)];
        let choose = |previous| choose_subnet(&config("10.1.0.0/16"), &leases, OWN, previous, 0);
        assert_eq!(choose(None), Choice::Reuse(subnet("10.1.3.0-24")));
        assert_eq!(choose(Some(subnet("10.1.7.0-24"))), Choice::Reuse(subnet("10.1.7.0-24")));
    }

    #[test]
    fn the_previous_subnet_is_taken_while_it_is_free_and_fits() {
        let choose = |key: &str, leases: &[Lease]| {
            choose_subnet(&config("10.1.0.0/16"), leases, OWN, Some(subnet(key)), 0)
        };
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
        let choose = |pick| choose_subnet(&config, &leases, OWN, None, pick);
        assert_eq!(choose(0), Choice::Take(subnet("10.1.4.0-24")));
        assert_eq!(choose(1), Choice::Take(subnet("10.1.6.0-24")));
        assert_eq!(choose(99), Choice::Take(subnet("10.1.104.0-24")));
        assert_eq!(choose(100), choose(0));
        let all: Vec<Lease> = config.subnets().map(|subnet| (subnet, None)).collect();
        assert_eq!(choose_subnet(&config, &all, OWN, None, 7), Choice::Full);
    }

    #[test]
    fn peers_are_what_can_be_reached_and_diverts_nothing() {
        let change = |mut lease: Lease, change: fn(&mut SubnetLease)| {
            lease.1.as_mut().into_iter().for_each(change);
            lease
        };
        let data = |lease: &mut SubnetLease, vni, mac| {
            lease.backend_data = Some(VxlanData { vni, vtep_mac: MacAddress(mac) });
        };
        let own = subnet("10.1.9.0-24");
        let good = lease("10.1.2.0-24", 2);
        let leases = [
            good.clone(),
            change(lease("10.1.3.0-24", 3), |lease| {
                lease.backend_data.iter_mut().for_each(|data| data.vni = None);
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
        let peers = desired_peers(&leases, own, &config("10.1.0.0/16"));
        assert_eq!(
            peers.keys().map(|subnet| subnet.key()).collect::<Vec<_>>(),
            ["10.1.2.0-24", "10.1.3.0-24"]
        );
        let expected =
            Peer { public_ip: Ipv4Addr::new(192, 168, 77, 2), mac: MacAddress([2, 0, 0, 0, 0, 2]) };
        assert_eq!(peers.get(&good.0), Some(&expected));
    }

    /// Golden: these must never change.
    #[test]
    fn the_address_of_the_device_is_stable_for_ever() {
        let mac = |id: &str, vni| vtep_mac(&id.parse().expect("an id"), vni).to_string();
        assert_eq!(mac("0123456789abcdef0123456789abcdef", 1), "02:23:66:78:2f:42");
        assert_eq!(mac("0123456789abcdef0123456789abcdef", 2), "02:23:66:7d:1b:93");
        assert_eq!(mac("00000000000000000000000000000000", 1), "02:10:7e:a0:42:f1");
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
                .map(|net| (Subnet::new(net), None))
                .collect();
            let free: Vec<Subnet> = config
                .subnets()
                .filter(|subnet| leases.iter().all(|(lease, _)| apart(*lease, *subnet)))
                .collect();
            match choose_subnet(&config, &leases, OWN, None, pick) {
                Choice::Take(subnet) => prop_assert!(free.contains(&subnet)),
                Choice::Full => prop_assert!(free.is_empty()),
                Choice::Reuse(subnet) => prop_assert!(false, "{subnet} is nobody's"),
            }
        }
    }
}
