//! From netlink's messages to the nouns of `muster_core::overlay`. Pure; what is not ours to know gives `None`.

use ipnet::IpNet;
use model::network::MacAddress;
use muster_core::overlay::{FdbEntry, Neighbour, ObservedDevice, Route, Vxlan};
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{InfoData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType},
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// An address on an interface.
pub(super) struct Held {
    pub(super) link: u32,
    pub(super) address: IpNet,
    /// Others can reach it: neither loopback's nor link-local.
    pub(super) global: bool,
    /// It comes and goes by itself: an IPv6 privacy address, or one that is not usable yet.
    pub(super) fleeting: bool,
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

pub(super) fn device(link: &LinkMessage, vxlan: Option<Vxlan>, addresses: BTreeSet<IpNet>) -> ObservedDevice {
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
    let mut vxlan = Vxlan { vni: 0, port: 0, local: None, underlay: None, learning: false, gbp: false };
    let mut underlay = None;
    for info in data {
        match info {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Local(local) => vxlan.local = Some((*local).into()),
            InfoVxlan::Local6(local) => vxlan.local = Some((*local).into()),
            InfoVxlan::Gbp => vxlan.gbp = true,
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
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let other = || {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    };
    let address = IpNet::new(local.or_else(other)?, message.header.prefix_len).ok()?;
    let global = message.header.scope == AddressScope::Universe;
    let fleeting = message.header.flags.intersects(
        AddressHeaderFlags::Secondary | AddressHeaderFlags::Tentative | AddressHeaderFlags::Deprecated,
    ) && address.addr().is_ipv6();
    Some(Held { link: message.header.index, address, global, fleeting })
}

/// Metric and interface of a default route.
pub(super) fn default_route(message: &RouteMessage) -> Option<(u32, u32)> {
    let ours = is_plain(message) && message.header.destination_prefix_length == 0;
    ours.then(|| Some((metric(message), outgoing(message)?))).flatten()
}

/// A route, and the interface that it leaves by. The name of that is still missing.
pub(super) fn route(message: &RouteMessage) -> Option<(u32, Route)> {
    if !is_plain(message) {
        return None;
    }
    let link = outgoing(message)?;
    let header = &message.header;
    let none = match header.address_family {
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    let destination = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    let via = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        _ => None,
    });
    let route = Route {
        device: String::new(),
        destination: IpNet::new(destination.unwrap_or(none), header.destination_prefix_length).ok()?,
        via,
        onlink: header.flags.contains(RouteFlags::Onlink),
        metric: metric(message),
        protocol: header.protocol.into(),
    };
    Some((link, route))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
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

/// A neighbour on the interface `link`.
pub(super) fn neighbour(message: &NeighbourMessage, link: u32) -> Option<Neighbour> {
    let address = destination(message).filter(|_| message.header.ifindex == link)?;
    let permanent = message.header.state == NeighbourState::Permanent;
    Some(Neighbour { address, mac: hardware(message), permanent })
}

/// An entry of the forwarding database that the interface `link` keeps itself.
pub(super) fn fdb_entry(message: &NeighbourMessage, link: u32) -> Option<FdbEntry> {
    let own = message.header.ifindex == link && message.header.flags.contains(NeighbourFlags::Own);
    let destination = destination(message).filter(|_| own)?;
    let permanent = is_permanent(message);
    Some(FdbEntry { mac: hardware(message)?, destination, permanent })
}

/// bridge(8) sets another bit beside it, and ip(8) and flannel do not.
fn is_permanent(message: &NeighbourMessage) -> bool {
    u16::from(message.header.state) & u16::from(NeighbourState::Permanent) != 0
}

fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some((*address).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some((*address).into()),
        // In the bridge's family the address comes as bytes: four of IPv4, sixteen of IPv6.
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            16 => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            _ => None,
        },
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
