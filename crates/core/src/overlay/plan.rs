//! From the datapath as it should be and as the kernel has it, to the operations that make the two equal.
//!
//! Not here: asking the kernel, carrying the operations out. A hand-deleted route, a peer that left while nobody
//! watched and a device that vanished are all the same thing here: a difference.
//!
//! Invariant: once a plan was carried out, the next one is empty; and only our device, permanent neighbours and
//! forwarding entries on it, the routes over it that flannel or we made, and elsewhere the routes that carry our mark
//! are ever named.

use super::{Desired, Family, Peer, Via};
use ipnet::IpNet;
use model::network::MacAddress;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
};

#[cfg(test)]
mod tests;

/// The number that marks our routes (`proto 77` in ip-route(8)): free in iproute2's table, and M in ASCII.
pub const ROUTE_PROTOCOL: u8 = 77;
/// Those of a machine's further networks, so that none takes another's routes for its own left-overs: free as well.
pub const ROUTE_PROTOCOLS: std::ops::Range<u8> = 200..216;

/// The mark of routes made by ip(8) and by flannel, which are collected when we take flannel's place.
const BOOT: u8 = 3;

/// What Linux gives an IPv6 route for which nobody asked for another metric; for IPv4 it is 0.
const METRIC6: u32 = 1024;

/// Our device, if the backend has one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tunnel {
    /// Made and remade here.
    Vxlan(Device),
    /// Made by whoever has the keys; only what hangs on it is ours to plan.
    Wireguard {
        /// `flannel-wg`.
        name: String,
        /// In bytes, of inner packets.
        mtu: u32,
        /// An address of this machine's subnet, with the full prefix length.
        address: IpAddr,
    },
}

impl Tunnel {
    /// The interface's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Vxlan(device) => &device.name,
            Self::Wireguard { name, .. } => name,
        }
    }

    fn mtu_and_address(&self) -> (u32, IpAddr) {
        match self {
            Self::Vxlan(device) => (device.mtu, device.address),
            Self::Wireguard { mtu, address, .. } => (*mtu, *address),
        }
    }
}

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
    pub local: IpAddr,
    /// The interface that outer packets leave by.
    pub underlay: String,
    /// Whether it learns peers from the packets it gets: unless asked for it does not, because anybody could teach it.
    pub learning: bool,
    /// Whether it carries marks with packets (group policy).
    pub gbp: bool,
    /// In bytes, of inner packets.
    pub mtu: u32,
    /// The only address on it, with the full prefix length.
    pub address: IpAddr,
}

/// What the kernel has under our device's name, and what hangs on it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Observed {
    /// The device, if there is one of that name.
    pub device: Option<ObservedDevice>,
    /// Unicast routes of the main table that leave by the device, and those that carry our mark wherever they lead.
    pub routes: Vec<Route>,
    /// Neighbours on the device.
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
    /// Its addresses of the family, but for link-local ones of IPv6, which the kernel keeps itself.
    pub addresses: BTreeSet<IpNet>,
}

/// What cannot be changed on a VXLAN device once it exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vxlan {
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// The source address of outer packets, where one is set.
    pub local: Option<IpAddr>,
    /// The interface that outer packets leave by, where one is set.
    pub underlay: Option<String>,
    /// Whether it learns peers from the packets it gets.
    pub learning: bool,
    /// Whether it carries marks with packets.
    pub gbp: bool,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Route {
    /// The interface that it leaves by.
    pub device: String,
    /// Where to.
    pub destination: IpNet,
    /// The next hop.
    pub via: Option<IpAddr>,
    /// Whether the next hop is taken to be on the link although no address says so.
    pub onlink: bool,
    /// Lower wins; ours is the kernel's own choice: 0 for IPv4, 1024 for IPv6.
    pub metric: u32,
    /// Who made it: ours carry [`ROUTE_PROTOCOL`].
    pub protocol: u8,
}

/// A neighbour (ARP) entry on our device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Neighbour {
    /// Whose.
    pub address: IpAddr,
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
    pub destination: IpAddr,
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
    /// It learns peers from packets, or should and does not.
    Learning,
    /// With or without marks.
    Gbp,
    /// Another backend or another VNI has taken its place.
    Superseded,
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
    AddAddress { device: String, address: IpNet },
    /// Takes an address from the device.
    RemoveAddress { device: String, address: IpNet },
    /// Sets the device up.
    SetUp { device: String },
    /// Makes or replaces a permanent neighbour.
    SetNeighbour { device: String, address: IpAddr, mac: MacAddress },
    /// Makes or replaces a permanent forwarding entry.
    SetFdb { device: String, mac: MacAddress, destination: IpAddr },
    /// Makes a route. Fails if there is another to the same destination: that one is not ours to replace.
    AddRoute { route: Route },
    /// Replaces our route to the same destination, without a gap.
    ReplaceRoute { route: Route },
    /// Removes a route.
    RemoveRoute { route: Route },
    /// Removes a forwarding entry.
    RemoveFdb { device: String, mac: MacAddress, destination: IpAddr },
    /// Removes a neighbour.
    RemoveNeighbour { device: String, address: IpAddr },
}

/// What makes `observed` equal to `desired`, in the order in which it has to be done: the device first; then for
/// each new peer its neighbour, its forwarding entry, its route, so that no packet is sent into the void; then in
/// reverse what belongs to nobody. Nothing hangs on a WireGuard device before somebody made it.
pub fn plan(desired: &Desired, observed: &Observed) -> Vec<Op> {
    let mut ops = Vec::new();
    let kept = match &desired.tunnel {
        Some(Tunnel::Vxlan(device)) => plan_vxlan(device, observed.device.as_ref(), &mut ops),
        Some(tunnel @ Tunnel::Wireguard { .. }) => {
            let Some(device) = &observed.device else { return ops };
            plan_details(tunnel, device, &mut ops);
            Kept { device: true, neighbours: true }
        }
        None => Kept { device: true, neighbours: true },
    };
    let ours = Ours::new(desired, observed, &kept);
    let mut wanted = Wanted::default();
    for (net, peer) in &desired.peers {
        ours.plan_peer(*net, peer, &mut wanted, &mut ops);
    }
    ours.plan_removals(&wanted, &mut ops);
    ops
}

/// What survives the changes to the device.
struct Kept {
    device: bool,
    neighbours: bool,
}

fn plan_vxlan(desired: &Device, observed: Option<&ObservedDevice>, ops: &mut Vec<Op>) -> Kept {
    let device = desired.name.clone();
    let why = observed.and_then(|observed| mismatch(desired, observed.vxlan.as_ref()));
    if let Some(why) = why {
        ops.push(Op::DeleteDevice { device: device.clone(), why });
    }
    let Some(observed) = observed.filter(|_| why.is_none()) else {
        let address = IpNet::from(desired.address);
        ops.push(Op::CreateDevice { device: desired.clone() });
        ops.push(Op::AddAddress { device: device.clone(), address });
        ops.push(Op::SetUp { device });
        return Kept { device: false, neighbours: false };
    };
    let neighbours = observed.mac == Some(desired.mac);
    if !neighbours {
        ops.push(Op::SetMac { device, mac: desired.mac });
    }
    plan_details(&Tunnel::Vxlan(desired.clone()), observed, ops);
    Kept { device: true, neighbours }
}

/// What can be changed on a device that exists.
fn plan_details(desired: &Tunnel, observed: &ObservedDevice, ops: &mut Vec<Op>) {
    let device = || desired.name().to_owned();
    let (mtu, address) = desired.mtu_and_address();
    let address = IpNet::from(address);
    if observed.mtu != mtu {
        ops.push(Op::SetMtu { device: device(), mtu });
    }
    // The new address comes before the old one goes: without any, the kernel would drop every route.
    if !observed.addresses.contains(&address) {
        ops.push(Op::AddAddress { device: device(), address });
    }
    let strangers = observed.addresses.iter().filter(|other| **other != address);
    ops.extend(strangers.map(|other| Op::RemoveAddress { device: device(), address: *other }));
    if !observed.up {
        ops.push(Op::SetUp { device: device() });
    }
}

fn mismatch(desired: &Device, observed: Option<&Vxlan>) -> Option<Mismatch> {
    let Some(observed) = observed else { return Some(Mismatch::Kind) };
    let differences = [
        (observed.vni != desired.vni, Mismatch::Vni),
        (observed.port != desired.port, Mismatch::Port),
        (observed.local != Some(desired.local), Mismatch::Local),
        (observed.underlay.as_ref() != Some(&desired.underlay), Mismatch::Underlay),
        (observed.learning != desired.learning, Mismatch::Learning),
        (observed.gbp != desired.gbp, Mismatch::Gbp),
    ];
    differences.into_iter().find_map(|(differs, what)| differs.then_some(what))
}

/// What some peer claims. Where two claim the same, the lower subnet wins, so that a plan comes to rest.
#[derive(Default)]
struct Wanted {
    neighbours: BTreeMap<IpAddr, MacAddress>,
    fdb: BTreeMap<MacAddress, IpAddr>,
    routes: BTreeSet<IpNet>,
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

/// Both sides of the comparison; of the second, what the changes to the device leave, to be looked up in: there may be
/// thousands of each.
struct Ours<'a> {
    desired: &'a Desired,
    routes: BTreeSet<&'a Route>,
    /// The same by where they lead and their metric.
    ways: BTreeMap<(IpNet, u32), Vec<&'a Route>>,
    neighbours: BTreeSet<&'a Neighbour>,
    fdb: BTreeSet<&'a FdbEntry>,
}

impl<'a> Ours<'a> {
    fn new(desired: &'a Desired, observed: &'a Observed, kept: &Kept) -> Self {
        let gone = desired.device().filter(|_| !kept.device);
        let routes: BTreeSet<_> =
            observed.routes.iter().filter(|route| gone != Some(route.device.as_str())).collect();
        let mut ways: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for route in &routes {
            ways.entry((route.destination, route.metric)).or_default().push(*route);
        }
        let neighbours = observed.neighbours.iter().filter(|_| kept.device && kept.neighbours).collect();
        let fdb = observed.fdb.iter().filter(|_| kept.device).collect();
        Self { desired, routes, ways, neighbours, fdb }
    }

    fn metric(&self) -> u32 {
        if self.desired.family == Family::V4 { 0 } else { METRIC6 }
    }

    fn plan_peer(&self, net: IpNet, peer: &Peer, wanted: &mut Wanted, ops: &mut Vec<Op>) {
        let base = net.network();
        let tunnel = self.desired.device().map(str::to_owned);
        let route = |device: String, via: Option<IpAddr>, onlink: bool| Route {
            device,
            destination: net,
            via,
            onlink,
            metric: self.metric(),
            protocol: self.desired.protocol,
        };
        let route = match (&peer.via, tunnel) {
            (Via::Vxlan(mac), Some(device)) => {
                self.plan_entries(&device, base, *mac, peer.public_ip, wanted, ops);
                route(device, Some(base), true)
            }
            (Via::Wireguard { .. }, Some(device)) => route(device, None, false),
            (Via::Direct, _) => route(self.desired.underlay.clone(), Some(peer.public_ip), false),
            (Via::Vxlan(_) | Via::Wireguard { .. }, None) => return,
        };
        if !wanted.routes.insert(net) || self.routes.contains(&route) {
            return;
        }
        let in_its_place = |other: &&Route| {
            self.desired.device() == Some(&other.device) || other.protocol == self.desired.protocol
        };
        let others = self.ways.get(&(net, route.metric));
        ops.push(if others.into_iter().flatten().any(in_its_place) {
            Op::ReplaceRoute { route }
        } else {
            Op::AddRoute { route }
        });
    }

    fn plan_entries(
        &self,
        device: &str,
        base: IpAddr,
        mac: MacAddress,
        public_ip: IpAddr,
        wanted: &mut Wanted,
        ops: &mut Vec<Op>,
    ) {
        let neighbour = Neighbour { address: base, mac: Some(mac), permanent: true };
        if claim(&mut wanted.neighbours, base, mac) && !self.neighbours.contains(&neighbour) {
            ops.push(Op::SetNeighbour { device: device.to_owned(), address: base, mac });
        }
        let entry = FdbEntry { mac, destination: public_ip, permanent: true };
        if claim(&mut wanted.fdb, mac, public_ip) && !self.fdb.contains(&entry) {
            ops.push(Op::SetFdb { device: device.to_owned(), mac, destination: public_ip });
        }
    }

    fn plan_removals(&self, wanted: &Wanted, ops: &mut Vec<Op>) {
        let left_over = |route: &&Route| {
            let replaced_above = route.metric == self.metric() && wanted.routes.contains(&route.destination);
            let flannels = route.protocol == BOOT && self.desired.device() == Some(&route.device);
            (route.protocol == self.desired.protocol || flannels) && !replaced_above
        };
        let left_over = self.routes.iter().copied().filter(left_over);
        ops.extend(left_over.map(|route| Op::RemoveRoute { route: route.clone() }));
        let Some(Tunnel::Vxlan(Device { name, .. })) = &self.desired.tunnel else { return };
        let fdb = self.fdb.iter().filter(|entry| entry.permanent && !wanted.fdb.contains_key(&entry.mac));
        ops.extend(fdb.map(|entry| Op::RemoveFdb {
            device: name.clone(),
            mac: entry.mac,
            destination: entry.destination,
        }));
        let gone = |neighbour: &&&Neighbour| {
            neighbour.permanent && !wanted.neighbours.contains_key(&neighbour.address)
        };
        let neighbours = self.neighbours.iter().filter(gone);
        ops.extend(
            neighbours.map(|gone| Op::RemoveNeighbour { device: name.clone(), address: gone.address }),
        );
    }
}
