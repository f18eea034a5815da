//! Addresses of units that are no containers: which part of the machine's subnet they have, and which of it each gets.
//!
//! Not here: namespaces and what is in them (`net`), who has which (the agent's files). Invariant: no container engine
//! that goes by our files hands out an address of this part.

use super::subnet::fnv;
use ipnet::Ipv4Net;
use model::{Subnet, UnitName};
use std::{collections::BTreeSet, net::Ipv4Addr};

/// The longest prefix of a subnet that is shared: each half of it still has two addresses to give away.
const SMALLEST: u8 = 29;

/// The halves of the subnet. A single network is all that Docker's `--fixed-cidr` takes.
fn halves(subnet: Subnet) -> Option<(Ipv4Net, Ipv4Net)> {
    let net = subnet.net();
    let mut halves = net.subnets(net.prefix_len() + 1).ok().filter(|_| net.prefix_len() <= SMALLEST)?;
    Some((halves.next()?, halves.next()?))
}

/// The lower half, with the bridge's address: container engines give its addresses to containers. None for a subnet that
/// is too small to be shared.
pub fn container_range(subnet: Subnet) -> Option<Ipv4Net> {
    Some(halves(subnet)?.0)
}

/// The upper half: units that are no containers have its addresses. None for a subnet that is too small to be shared.
pub fn unit_range(subnet: Subnet) -> Option<Ipv4Net> {
    Some(halves(subnet)?.1)
}

/// An address for `unit` that is none of `taken`; none if all are, or if the subnet is too small to be shared.
///
/// Where the search begins depends on the unit's name, so that it mostly has the same address on a machine again.
pub fn choose_address(subnet: Subnet, unit: &UnitName, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let range = unit_range(subnet)?;
    // All but the last, which is the subnet's broadcast address.
    let (first, count) = (u32::from(range.network()), (1_u32 << (32 - range.prefix_len())) - 1);
    let start = u32::try_from(fnv(unit.as_str().bytes()) % u64::from(count)).unwrap_or_default();
    let at = |step: u32| Ipv4Addr::from(first + (start + step) % count);
    (0..count).map(at).find(|address| !taken.contains(address))
}

/// What the machine's end of a unit's cable is called: within the kernel's 15 bytes.
pub fn port_name(unit: &UnitName) -> String {
    format!("mu{:012x}", fnv(unit.as_str().bytes()) & 0xffff_ffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(name: &str) -> UnitName {
        name.parse().expect("a name")
    }

    #[test]
    fn containers_and_units_never_share_an_address() {
        let subnet = |key: &str| Subnet::from_key(key).expect("a key");
        let net = |text: &str| Some(text.parse::<Ipv4Net>().expect("a network"));
        assert_eq!(container_range(subnet("10.1.5.0-24")), net("10.1.5.0/25"));
        assert_eq!(unit_range(subnet("10.1.5.0-24")), net("10.1.5.128/25"));
        assert_eq!(unit_range(subnet("10.1.5.8-29")), net("10.1.5.12/30"));
        assert_eq!((container_range(subnet("10.1.5.8-30")), unit_range(subnet("10.1.5.8-30"))), (None, None));
        assert_eq!(choose_address(subnet("10.1.5.8-30"), &unit("a.service"), &BTreeSet::new()), None);
    }

    #[test]
    fn every_address_is_given_away_once_and_the_broadcast_address_never() {
        let subnet = Subnet::from_key("10.1.5.0-28").expect("a key");
        let mut taken = BTreeSet::new();
        while let Some(address) = choose_address(subnet, &unit(&format!("a@{}.service", taken.len())), &taken)
        {
            assert!(unit_range(subnet).is_some_and(|range| range.contains(&address)), "{address}");
            assert!(taken.insert(address), "{address} twice");
        }
        assert_eq!(taken.len(), 7);
        assert!(!taken.contains(&subnet.net().broadcast()));
    }

    #[test]
    fn a_unit_has_the_same_address_and_cable_again() {
        let subnet = Subnet::from_key("10.1.5.0-24").expect("a key");
        let (one, none) = (unit("web@1.service"), BTreeSet::new());
        let address = choose_address(subnet, &one, &none).expect("there is one");
        assert_eq!(choose_address(subnet, &one, &BTreeSet::from([subnet.bridge()])), Some(address));
        assert_ne!(choose_address(subnet, &one, &BTreeSet::from([address])), Some(address));
        assert!(port_name(&one).len() < 16 && port_name(&one) != port_name(&unit("web@2.service")));
    }
}
