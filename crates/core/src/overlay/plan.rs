//! From the datapath as it should be and as the kernel has it, to the operations that make the two equal.
//!
//! Not here: asking the kernel, carrying the operations out. A hand-deleted route, a peer that left while nobody
//! watched and a device that vanished are all the same thing here: a difference.
//!
//! Invariant: once a plan was carried out, the next one is empty; and only our device, the routes over it that
//! flannel or we made, and permanent neighbours and forwarding entries on it are ever named.

use super::{Desired, Peer};
use ipnet::Ipv4Net;
use model::{Subnet, network::MacAddress};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::Ipv4Addr,
};

#[cfg(test)]
mod tests;

/// The number that marks our routes (`proto 77` in ip-route(8)): free in iproute2's table, and M in ASCII.
pub const ROUTE_PROTOCOL: u8 = 77;

/// The mark of routes made by ip(8) and by flannel, which are collected when we take flannel's place.
const BOOT: u8 = 3;

/// Our VXLAN device as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Device {
    /// `flannel.<vni>`.
    pub name: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port, here and at every peer.
    pub port: u16,
    /// Its Ethernet address, which peers send to.
    pub mac: MacAddress,
    /// The source address of outer packets.
    pub local: Ipv4Addr,
    /// The interface that outer packets leave by.
    pub underlay: String,
    /// In bytes, of inner packets.
    pub mtu: u32,
    /// The only address on it, with a prefix length of 32.
    pub address: Ipv4Addr,
}

/// What the kernel has under our device's name, and what hangs on it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Observed {
    /// The device, if there is one of that name.
    pub device: Option<ObservedDevice>,
    /// IPv4 unicast routes of the main table that leave by the device.
    pub routes: Vec<Route>,
    /// IPv4 neighbours on the device.
    pub neighbours: Vec<Neighbour>,
    /// Entries of the device's own forwarding database (`self` in bridge(8)).
    pub fdb: Vec<FdbEntry>,
}

/// A device of the name that ours should have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ObservedDevice {
    /// Its number in the kernel.
    pub index: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// What it is, if it is a VXLAN device.
    pub vxlan: Option<Vxlan>,
    /// Its Ethernet address.
    pub mac: Option<MacAddress>,
    /// In bytes.
    pub mtu: u32,
    /// Its IPv4 addresses.
    pub addresses: BTreeSet<Ipv4Net>,
}

/// What cannot be changed on a VXLAN device once it exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vxlan {
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// The source address of outer packets, where one is set.
    pub local: Option<Ipv4Addr>,
    /// The interface that outer packets leave by, where one is set.
    pub underlay: Option<String>,
    /// Whether it learns peers from the packets it gets. Ours does not: anybody could teach it.
    pub learning: bool,
}

/// A route over our device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Route {
    /// Where to.
    pub destination: Ipv4Net,
    /// The next hop.
    pub via: Option<Ipv4Addr>,
    /// Whether the next hop is taken to be on the link although no address says so.
    pub onlink: bool,
    /// Lower wins; ours is 0.
    pub metric: u32,
    /// Who made it: ours carry [`ROUTE_PROTOCOL`].
    pub protocol: u8,
}

/// A neighbour (ARP) entry on our device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Neighbour {
    /// Whose.
    pub address: Ipv4Addr,
    /// Its Ethernet address, if known.
    pub mac: Option<MacAddress>,
    /// Made by us or by hand, not by the kernel.
    pub permanent: bool,
}

/// An entry of our device's forwarding database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FdbEntry {
    /// Frames to this address …
    pub mac: MacAddress,
    /// … travel to this machine.
    pub destination: Ipv4Addr,
    /// Made by us or by hand, not learned.
    pub permanent: bool,
}

/// Why a device has to be made anew: the kernel cannot change these on one that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mismatch {
    /// It is no VXLAN device.
    Kind,
    /// Another VXLAN network identifier.
    Vni,
    /// Another UDP port.
    Port,
    /// Another source address, as after the machine's address changed.
    Local,
    /// Another interface underneath.
    Underlay,
    /// It learns peers from packets.
    Learning,
}

/// One change to the kernel. An operation says what is missing or what is left over, which is its reason; only
/// the loss of a whole device needs a reason of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the fields are those of the structs above")]
pub enum Op {
    /// Removes the device, and all that hangs on it.
    DeleteDevice { device: String, why: Mismatch },
    /// Makes the device: down, without address.
    CreateDevice { device: Device },
    /// Sets the MTU in bytes.
    SetMtu { device: String, mtu: u32 },
    /// Sets the Ethernet address. The kernel forgets the device's neighbours at this.
    SetMac { device: String, mac: MacAddress },
    /// Gives the device an address.
    AddAddress { device: String, address: Ipv4Net },
    /// Takes an address from the device.
    RemoveAddress { device: String, address: Ipv4Net },
    /// Sets the device up.
    SetUp { device: String },
    /// Makes or replaces a permanent neighbour.
    SetNeighbour { device: String, address: Ipv4Addr, mac: MacAddress },
    /// Makes or replaces a permanent forwarding entry.
    SetFdb { device: String, mac: MacAddress, destination: Ipv4Addr },
    /// Makes a route. Fails if another device has a route to the same destination: that one is not ours to replace.
    AddRoute { device: String, route: Route },
    /// Replaces the route over our device to the same destination, without a gap.
    ReplaceRoute { device: String, route: Route },
    /// Removes a route.
    RemoveRoute { device: String, route: Route },
    /// Removes a forwarding entry.
    RemoveFdb { device: String, mac: MacAddress, destination: Ipv4Addr },
    /// Removes a neighbour.
    RemoveNeighbour { device: String, address: Ipv4Addr },
}

/// What makes `observed` equal to `desired`, in the order in which it has to be done: the device first; then for
/// each new peer its neighbour, its forwarding entry, its route, so that no packet is sent into the void; then in
/// reverse what belongs to nobody.
pub fn plan(desired: &Desired, observed: &Observed) -> Vec<Op> {
    let mut ops = Vec::new();
    let kept = plan_device(&desired.device, observed.device.as_ref(), &mut ops);
    let nothing = Observed::default();
    let observed = if kept.entries { observed } else { &nothing };
    let neighbours = if kept.neighbours { observed.neighbours.as_slice() } else { &[] };
    let mut wanted = Wanted::default();
    for (subnet, peer) in &desired.peers {
        plan_peer(&desired.device.name, *subnet, *peer, observed, neighbours, &mut wanted, &mut ops);
    }
    plan_removals(&desired.device.name, observed, neighbours, &wanted, &mut ops);
    ops
}

/// What survives the changes to the device.
struct Kept {
    entries: bool,
    neighbours: bool,
}

fn plan_device(desired: &Device, observed: Option<&ObservedDevice>, ops: &mut Vec<Op>) -> Kept {
    let device = desired.name.clone();
    let address = Ipv4Net::from(desired.address);
    let why = observed.and_then(|observed| mismatch(desired, observed.vxlan.as_ref()));
    if let Some(why) = why {
        ops.push(Op::DeleteDevice { device: device.clone(), why });
    }
    let Some(observed) = observed.filter(|_| why.is_none()) else {
        ops.push(Op::CreateDevice { device: desired.clone() });
        ops.push(Op::AddAddress { device: device.clone(), address });
        ops.push(Op::SetUp { device });
        return Kept { entries: false, neighbours: false };
    };
    if observed.mtu != desired.mtu {
        ops.push(Op::SetMtu { device: device.clone(), mtu: desired.mtu });
    }
    let neighbours = observed.mac == Some(desired.mac);
    if !neighbours {
        ops.push(Op::SetMac { device: device.clone(), mac: desired.mac });
    }
    // The new address comes before the old one goes: without any, the kernel would drop every route.
    if !observed.addresses.contains(&address) {
        ops.push(Op::AddAddress { device: device.clone(), address });
    }
    let strangers = observed.addresses.iter().filter(|other| **other != address);
    ops.extend(strangers.map(|other| Op::RemoveAddress { device: device.clone(), address: *other }));
    if !observed.up {
        ops.push(Op::SetUp { device });
    }
    Kept { entries: true, neighbours }
}

fn mismatch(desired: &Device, observed: Option<&Vxlan>) -> Option<Mismatch> {
    let Some(observed) = observed else { return Some(Mismatch::Kind) };
    let differences = [
        (observed.vni != desired.vni, Mismatch::Vni),
        (observed.port != desired.port, Mismatch::Port),
        (observed.local != Some(desired.local), Mismatch::Local),
        (observed.underlay.as_ref() != Some(&desired.underlay), Mismatch::Underlay),
        (observed.learning, Mismatch::Learning),
    ];
    differences.into_iter().find_map(|(differs, what)| differs.then_some(what))
}

/// What some peer claims. Where two claim the same, the lower subnet wins, so that a plan comes to rest.
#[derive(Default)]
struct Wanted {
    neighbours: BTreeMap<Ipv4Addr, MacAddress>,
    fdb: BTreeMap<MacAddress, Ipv4Addr>,
    routes: BTreeSet<Ipv4Net>,
}

fn claim<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: V) -> bool {
    match map.entry(key) {
        Entry::Vacant(entry) => {
            entry.insert(value);
            true
        }
        Entry::Occupied(_) => false,
    }
}

fn plan_peer(
    device: &str,
    subnet: Subnet,
    peer: Peer,
    observed: &Observed,
    neighbours: &[Neighbour],
    wanted: &mut Wanted,
    ops: &mut Vec<Op>,
) {
    let Peer { public_ip, mac } = peer;
    let (base, device) = (subnet.base(), || device.to_owned());
    let neighbour = Neighbour { address: base, mac: Some(mac), permanent: true };
    if claim(&mut wanted.neighbours, base, mac) && !neighbours.contains(&neighbour) {
        ops.push(Op::SetNeighbour { device: device(), address: base, mac });
    }
    let entry = FdbEntry { mac, destination: public_ip, permanent: true };
    if claim(&mut wanted.fdb, mac, public_ip) && !observed.fdb.contains(&entry) {
        ops.push(Op::SetFdb { device: device(), mac, destination: public_ip });
    }
    let route = Route {
        destination: subnet.net(),
        via: Some(base),
        onlink: true,
        metric: 0,
        protocol: ROUTE_PROTOCOL,
    };
    if wanted.routes.insert(route.destination) && !observed.routes.contains(&route) {
        let in_its_place =
            |other: &Route| (other.destination, other.metric) == (route.destination, route.metric);
        ops.push(if observed.routes.iter().any(in_its_place) {
            Op::ReplaceRoute { device: device(), route }
        } else {
            Op::AddRoute { device: device(), route }
        });
    }
}

fn plan_removals(
    device: &str,
    observed: &Observed,
    neighbours: &[Neighbour],
    wanted: &Wanted,
    ops: &mut Vec<Op>,
) {
    let device = || device.to_owned();
    let left_over = |route: &&Route| {
        let replaced_above = route.metric == 0 && wanted.routes.contains(&route.destination);
        [ROUTE_PROTOCOL, BOOT].contains(&route.protocol) && !replaced_above
    };
    let routes = observed.routes.iter().filter(left_over);
    ops.extend(routes.map(|route| Op::RemoveRoute { device: device(), route: *route }));
    let fdb = observed.fdb.iter().filter(|entry| entry.permanent && !wanted.fdb.contains_key(&entry.mac));
    ops.extend(fdb.map(|entry| Op::RemoveFdb {
        device: device(),
        mac: entry.mac,
        destination: entry.destination,
    }));
    let gone =
        |neighbour: &&Neighbour| neighbour.permanent && !wanted.neighbours.contains_key(&neighbour.address);
    let neighbours = neighbours.iter().filter(gone);
    ops.extend(neighbours.map(|gone| Op::RemoveNeighbour { device: device(), address: gone.address }));
}
