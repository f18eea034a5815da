//! From netlink's messages to the nouns of `muster_core::overlay`. Pure; what is not ours to know gives `None`.

use ipnet::Ipv4Net;
use model::network::MacAddress;
use muster_core::overlay::{FdbEntry, Neighbour, ObservedDevice, Route, Vxlan};
use netlink_packet_route::{
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::{InfoData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType},
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

/// An IPv4 address on an interface.
pub(super) struct Held {
    pub(super) link: u32,
    pub(super) address: Ipv4Net,
    /// Others can reach it: neither loopback's nor link-local.
    pub(super) global: bool,
}

pub(super) fn name(link: &LinkMessage) -> String {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    name.unwrap_or_default()
}

pub(super) fn mtu(link: &LinkMessage) -> u32 {
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    mtu.unwrap_or_default()
}

pub(super) fn device(
    link: &LinkMessage,
    vxlan: Option<Vxlan>,
    addresses: BTreeSet<Ipv4Net>,
) -> ObservedDevice {
    let mac = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => mac(bytes),
        _ => None,
    });
    let up = link.header.flags.contains(LinkFlags::Up);
    ObservedDevice { index: link.header.index, up, vxlan, mac, mtu: mtu(link), addresses }
}

/// What is fixed about a VXLAN device, without its underlay's name, and the underlay's index.
pub(super) fn vxlan(link: &LinkMessage) -> Option<(Vxlan, Option<u32>)> {
    let mut infos = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let data = infos.next()?.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
        _ => None,
    })?;
    let mut vxlan = Vxlan { vni: 0, port: 0, local: None, underlay: None, learning: false };
    let mut underlay = None;
    for info in data {
        match info {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Local(local) => vxlan.local = Some(*local),
            InfoVxlan::Learning(learning) => vxlan.learning = *learning,
            InfoVxlan::Link(index) => underlay = Some(*index),
            _ => {}
        }
    }
    Some((vxlan, underlay))
}

pub(super) fn address(message: &AddressMessage) -> Option<Held> {
    // `Local` is the interface's own; on a point-to-point link `Address` is the other end's.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    });
    let address = Ipv4Net::new(local?, message.header.prefix_len).ok()?;
    let global = message.header.scope == AddressScope::Universe;
    Some(Held { link: message.header.index, address, global })
}

/// Metric and interface of a default route.
pub(super) fn default_route(message: &RouteMessage) -> Option<(u32, u32)> {
    let ours = is_plain(message) && message.header.destination_prefix_length == 0;
    ours.then(|| Some((metric(message), outgoing(message)?))).flatten()
}

/// A route that leaves by the interface `link`.
pub(super) fn route(message: &RouteMessage, link: u32) -> Option<Route> {
    if !is_plain(message) || outgoing(message) != Some(link) {
        return None;
    }
    let v4 = |wanted: fn(&RouteAttribute) -> Option<&RouteAddress>| {
        message.attributes.iter().find_map(|attribute| match wanted(attribute) {
            Some(RouteAddress::Inet(address)) => Some(*address),
            _ => None,
        })
    };
    let destination = v4(|attribute| match attribute {
        RouteAttribute::Destination(address) => Some(address),
        _ => None,
    });
    let via = v4(|attribute| match attribute {
        RouteAttribute::Gateway(address) => Some(address),
        _ => None,
    });
    let header = &message.header;
    let destination = destination.unwrap_or(Ipv4Addr::UNSPECIFIED);
    Some(Route {
        destination: Ipv4Net::new(destination, header.destination_prefix_length).ok()?,
        via,
        onlink: header.flags.contains(RouteFlags::Onlink),
        metric: metric(message),
        protocol: header.protocol.into(),
    })
}

/// Unicast, in the main table, whatever the type of service.
fn is_plain(message: &RouteMessage) -> bool {
    let header = &message.header;
    let table = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    let table = table.unwrap_or_else(|| u32::from(header.table));
    table == u32::from(RouteHeader::RT_TABLE_MAIN) && header.kind == RouteType::Unicast && header.tos == 0
}

fn metric(message: &RouteMessage) -> u32 {
    let metric = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    metric.unwrap_or_default()
}

fn outgoing(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        RouteAttribute::MultiPath(hops) => hops.first().map(|hop| hop.interface_index),
        _ => None,
    })
}

/// An IPv4 neighbour on the interface `link`.
pub(super) fn neighbour(message: &NeighbourMessage, link: u32) -> Option<Neighbour> {
    let address = destination(message).filter(|_| message.header.ifindex == link)?;
    let permanent = message.header.state == NeighbourState::Permanent;
    Some(Neighbour { address, mac: hardware(message), permanent })
}

/// An entry of the forwarding database that the interface `link` keeps itself.
pub(super) fn fdb_entry(message: &NeighbourMessage, link: u32) -> Option<FdbEntry> {
    let own = message.header.ifindex == link && message.header.flags.contains(NeighbourFlags::Own);
    let destination = destination(message).filter(|_| own)?;
    let permanent = message.header.state == NeighbourState::Permanent;
    Some(FdbEntry { mac: hardware(message)?, destination, permanent })
}

fn destination(message: &NeighbourMessage) -> Option<Ipv4Addr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(*address),
        // In the bridge's family the address comes as bytes; four of them are IPv4.
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
            <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Ipv4Addr::from)
        }
        _ => None,
    })
}

fn hardware(message: &NeighbourMessage) -> Option<MacAddress> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => mac(bytes),
        _ => None,
    })
}

fn mac(bytes: &[u8]) -> Option<MacAddress> {
    bytes.try_into().ok().map(MacAddress)
}
