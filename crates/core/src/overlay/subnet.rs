//! Leases on subnets: which one this machine takes, and what the others' leases say about reaching them.
//!
//! Not here: the transaction that takes a lease (a collision is an event; choose again with the new list), its
//! renewal. Invariant: a subnet that any key in the hub claims is never taken, even if the key's value cannot be
//! read; a lease that would draw traffic from outside the cluster network never becomes a peer.

use super::{Family, Peer, Underlay, Via};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use model::{
    MachineId, NetworkConfig, Subnet, SubnetKey, SubnetLease,
    network::{Backend, MacAddress, NodeRecord, Subnet6},
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

/// A lease as the hub lists it: the subnet from its key, and its value where that can be read.
pub type Lease = (SubnetKey, Option<SubnetLease>);

/// How many free subnets are considered: flannel's number. Choosing among many keeps machines that start at
/// once from all trying the same one.
const CANDIDATES: usize = 100;

/// The subnet that a machine should hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Choice {
    /// It is leased to this machine already.
    Reuse(SubnetKey),
    /// It is free: create its key, on condition that there is none.
    Take(SubnetKey),
    /// Every subnet of the configuration is taken.
    Full,
}

/// The machine that wants a subnet, and by what it knows its own lease.
#[derive(Debug, Clone)]
pub struct Claimant<'a> {
    /// Its address now.
    pub public_ip: Ipv4Addr,
    /// What it would publish: a lease with the same VXLAN device or the same key is its own, whatever its address.
    pub lease: &'a SubnetLease,
    /// Its own record.
    pub record: Option<&'a NodeRecord>,
    /// The subnet that it had by its own disk, where it has no record.
    pub previous: Option<SubnetKey>,
    /// The subnets that other machines have by their records.
    pub others: &'a BTreeSet<SubnetKey>,
}

impl Claimant<'_> {
    fn had(&self) -> Option<SubnetKey> {
        self.record.map(|record| record.subnet).or(self.previous)
    }

    /// Whether the lease is this machine's. Its address alone is the weakest sign: it may have been another machine's
    /// before.
    pub fn owns(&self, key: SubnetKey, lease: Option<&SubnetLease>) -> bool {
        let Some(lease) = lease.filter(|_| !self.others.contains(&key)) else { return false };
        let same_device = lease.backend_data.is_some()
            && lease.backend_type == self.lease.backend_type
            && lease.backend_data == self.lease.backend_data;
        let by_record =
            self.record.is_some_and(|record| record.subnet == key && record.public_ip == lease.public_ip);
        same_device || by_record || lease.public_ip == self.public_ip
    }
}

/// Chooses a subnet: the one that is leased to this machine, else the one that it had while that is free, else one of
/// the first hundred free ones. `pick` is random and makes the last choice. Subnets of machines that are away are left
/// to them as long as there are others.
pub fn choose_subnet(config: &NetworkConfig, leases: &[Lease], me: &Claimant<'_>, pick: u64) -> Choice {
    let had = me.had();
    let own = leases
        .iter()
        .filter(|(key, lease)| me.owns(*key, lease.as_ref()) && config.allows_key(*key))
        .map(|(key, _)| *key);
    // Of several leases of ours, the one that containers already run in.
    if let Some(key) = own.min_by_key(|key| (Some(*key) != had, *key)) {
        return Choice::Reuse(key);
    }
    let taken = Taken::new(leases.iter().map(|(key, _)| *key));
    if let Some(key) = had.filter(|key| config.allows_key(*key) && taken.leaves_free(*key)) {
        return Choice::Take(key);
    }
    let remembered = Taken::new(leases.iter().map(|(key, _)| *key).chain(me.others.iter().copied()));
    let chosen = choose_free(config, &remembered, pick).or_else(|| choose_free(config, &taken, pick));
    chosen.map_or(Choice::Full, Choice::Take)
}

fn choose_free(config: &NetworkConfig, taken: &Taken, pick: u64) -> Option<SubnetKey> {
    let v4 = one_of(config.subnets().filter(|subnet| taken.leaves_v4(*subnet)), pick)?;
    let v6 = match &config.v6 {
        None => None,
        Some(v6) => Some(one_of(v6.subnets().filter(|subnet| taken.leaves_v6(*subnet)), pick)?),
    };
    Some(SubnetKey { v4, v6 })
}

fn one_of<T: Copy>(free: impl Iterator<Item = T>, pick: u64) -> Option<T> {
    let free: Vec<T> = free.take(CANDIDATES).collect();
    let among = u64::try_from(free.len()).unwrap_or(u64::MAX);
    free.get(usize::try_from(pick.checked_rem(among)?).ok()?).copied()
}

/// The address ranges that leases claim, first and last address of each; sorted, without overlaps.
struct Taken {
    v4: Vec<(u128, u128)>,
    v6: Vec<(u128, u128)>,
}

impl Taken {
    fn new(keys: impl Iterator<Item = SubnetKey>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for key in keys {
            v4.push(range4(key.v4.net()));
            v6.extend(key.v6.map(|v6| range6(v6.net())));
        }
        Self { v4: merged(v4), v6: merged(v6) }
    }

    fn leaves_free(&self, key: SubnetKey) -> bool {
        self.leaves_v4(key.v4) && key.v6.is_none_or(|v6| self.leaves_v6(v6))
    }

    fn leaves_v4(&self, subnet: Subnet) -> bool {
        free(&self.v4, range4(subnet.net()))
    }

    fn leaves_v6(&self, subnet: Subnet6) -> bool {
        free(&self.v6, range6(subnet.net()))
    }
}

fn merged(mut claims: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    claims.sort_unstable();
    // Two CIDR blocks are apart or one holds the other, so only the wider one needs to stay.
    claims.dedup_by(|later, earlier| {
        let overlaps = later.0 <= earlier.1;
        earlier.1 = if overlaps { earlier.1.max(later.1) } else { earlier.1 };
        overlaps
    });
    claims
}

fn free(claims: &[(u128, u128)], (first, last): (u128, u128)) -> bool {
    let next = claims.partition_point(|claim| claim.1 < first);
    claims.get(next).is_none_or(|claim| claim.0 > last)
}

fn range4(net: Ipv4Net) -> (u128, u128) {
    (u32::from(net.network()).into(), u32::from(net.broadcast()).into())
}

fn range6(net: Ipv6Net) -> (u128, u128) {
    (net.network().into(), net.broadcast().into())
}

/// The machines that `leases` describe, as seen by the holder of `own`. Left out: leases of this machine, of other
/// backends or another VNI, with values that cannot be read, and those that would divert traffic: a subnet that is
/// not inside the cluster network or overlaps ours, an address that is no machine's.
pub fn desired_peers(
    family: Family,
    leases: &[Lease],
    own: SubnetKey,
    config: &NetworkConfig,
    underlay: &Underlay,
) -> BTreeMap<IpNet, Peer> {
    let parts = |key: SubnetKey| match family {
        Family::V4 => Some(IpNet::from(key.v4.net())),
        Family::V6 => key.v6.map(|v6| v6.net().into()),
    };
    let networks = [Some(IpNet::from(config.network)), config.v6.as_ref().map(|v6| v6.network.into())];
    let outside = |address: IpAddr| !networks.iter().flatten().any(|network| network.contains(&address));
    let (Some(own_net), Some(network)) = (parts(own), networks[usize::from(family == Family::V6)]) else {
        return BTreeMap::new();
    };
    let mut peers: BTreeMap<IpNet, Peer> = BTreeMap::new();
    for (key, lease) in leases {
        let (Some(net), Some(lease)) = (parts(*key), lease) else { continue };
        if *key == own || lease.public_ip == underlay.address || lease.backend_type != config.backend.name() {
            continue;
        }
        let sound =
            network.contains(&net) && net != network && !own_net.contains(&net) && !net.contains(&own_net);
        let Some(peer) = peer(family, lease, config, underlay).filter(|_| sound) else { continue };
        if is_machine(peer.public_ip) && outside(peer.public_ip) {
            // Where one lies inside another, the lower subnet wins, so that a plan comes to rest.
            peers.entry(net).or_insert(peer);
        }
    }
    peers
}

fn peer(family: Family, lease: &SubnetLease, config: &NetworkConfig, underlay: &Underlay) -> Option<Peer> {
    let (public_ip, data) = match family {
        Family::V4 => (IpAddr::V4(lease.public_ip), lease.backend_data.as_ref()),
        Family::V6 => (IpAddr::V6(lease.public_ipv6?), lease.backend_v6_data.as_ref()),
    };
    let on_link = underlay.links.iter().any(|link| link.contains(&public_ip));
    let via = match &config.backend {
        Backend::Vxlan(own) => {
            let data = data?.vxlan()?;
            // flannel before 0.8 wrote no VNI; there was one network only.
            let same_network = data.vni.is_none_or(|vni| vni == own.vni);
            match (same_network && is_unicast(data.vtep_mac), own.direct_routing && on_link) {
                (false, _) => return None,
                (true, true) => Via::Direct,
                (true, false) => Via::Vxlan(data.vtep_mac),
            }
        }
        // A next hop that is not on the link would be refused by the kernel.
        Backend::HostGw => Some(Via::Direct).filter(|_| on_link)?,
        Backend::Wireguard(own) => {
            let data = data.or(lease.backend_data.as_ref())?.wireguard()?;
            let over = match (super::wireguard_underlay(own), lease.public_ipv6) {
                (Family::V6, Some(address)) => IpAddr::V6(address),
                _ => lease.public_ip.into(),
            };
            let via = Via::Wireguard { key: data.public_key.clone(), port: data.port.unwrap_or(own.port) };
            return Some(Peer { public_ip: over, via });
        }
        Backend::Alloc => return None,
    };
    Some(Peer { public_ip, via })
}

fn is_machine(address: IpAddr) -> bool {
    let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    !(address.is_unspecified() || address.is_multicast() || broadcast || address.is_loopback())
}

/// A group address or the zero address in the forwarding database would copy traffic meant for others.
fn is_unicast(mac: MacAddress) -> bool {
    mac.0[0] & 1 == 0 && mac != MacAddress([0; 6])
}

/// The address of a machine's VXLAN device: the same after every reboot, so that peers need not learn anything.
/// Locally administered and unicast. Never change what this computes: a mixed cluster would be cut in two.
pub fn vtep_mac(machine: &MachineId, vni: u32, family: Family) -> MacAddress {
    let family = if family == Family::V4 { 4 } else { 6 };
    let hash = fnv(machine.as_str().bytes().chain(vni.to_be_bytes()).chain([family]));
    // Folded to 40 bits as FNV's authors advise.
    let [_, _, _, a, b, c, d, e] = ((hash >> 40) ^ (hash & 0xff_ffff_ffff)).to_be_bytes();
    MacAddress([2, a, b, c, d, e])
}

/// FNV-1a: the same on every machine and in every version.
pub(super) fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests;
