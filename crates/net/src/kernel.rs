//! Linux's side of the overlay over rtnetlink(7): finds the underlay, reads the datapath, carries out operations.
//!
//! Not here: which operations, and the rules. Invariant: an operation names an interface, and acts on the
//! interface that has this name when the call begins; nothing is remembered between two calls.

use crate::{Changes, NetError};
use futures_util::{Stream, TryStreamExt};
use ipnet::IpNet;
use model::network::MacAddress;
use muster_core::overlay::{
    Desired, Device, Family, HostFacts, Observed, Op, ROUTE_PROTOCOL, ROUTE_PROTOCOLS, Route, Underlay,
};
use netlink_packet_route::{
    AddressFamily,
    link::LinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage},
    route::{RouteMessage, RouteProtocol, RouteScope},
};
use rtnetlink::{AddressMessageBuilder, Handle, LinkUnspec, LinkVxlan, RouteMessageBuilder, new_connection};
use std::{
    collections::{BTreeSet, HashMap},
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};
use tokio::task::JoinSet;

mod leg;
mod read;

/// The kernel answers at once, or it is busy with something that holds its network lock.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Requests that are sent before the first of them is answered. Their answers have to fit the socket's buffer.
const UNDER_WAY: usize = 64;

/// What became of a plan.
#[derive(Debug, Default)]
pub struct Applied {
    /// How many operations succeeded.
    pub made: usize,
    /// Why the others did not.
    pub failures: Vec<NetError>,
}

/// A connection to the kernel's network of the namespace in which it was opened.
#[derive(Debug)]
pub struct Kernel {
    handle: Handle,
    /// The socket's reader; it ends with this.
    _reader: JoinSet<()>,
}

impl Kernel {
    /// Opens a netlink socket in the calling thread's network namespace. Call it inside a tokio runtime.
    pub async fn connect() -> Result<Self, NetError> {
        let (connection, handle, _) = new_connection().map_err(NetError::Socket)?;
        let mut reader = JoinSet::new();
        reader.spawn(connection);
        Ok(Self { handle, _reader: reader })
    }

    /// The interface that reaches the other machines: the one with the name or the address `interface`, else the
    /// one of the default route.
    pub async fn underlay(&self, interface: Option<&str>) -> Result<Underlay, NetError> {
        let addresses = self.addresses().await?;
        let named = interface.and_then(|wanted| wanted.parse::<IpAddr>().ok());
        let link = match (interface, named) {
            (None, _) => self.default_route_link().await?,
            (Some(wanted), Some(address)) => addresses
                .iter()
                .find(|held| held.address.addr() == address)
                .map(|held| LinkUnspec::new_with_index(held.link).build())
                .ok_or_else(|| NetError::NoInterface { name: wanted.to_owned() })?,
            (Some(wanted), None) => LinkUnspec::new_with_name(wanted).build(),
        };
        let missing = || interface.map(|name| NetError::NoInterface { name: name.to_owned() });
        let link = self.link(link).await?.ok_or_else(|| missing().unwrap_or(NetError::NoDefaultRoute))?;
        let (index, name, mtu) = (link.header.index, read::name(&link), read::mtu(&link));
        let on_it = || addresses.iter().filter(|held| held.link == index);
        let global = || on_it().filter(|held| held.global);
        let first4 = || global().find_map(|held| v4(held.address.addr()));
        let address =
            named.and_then(v4).or_else(first4).ok_or_else(|| NetError::NoAddress { name: name.clone() })?;
        let stable6 = || global().filter(|held| !held.fleeting).find_map(|held| v6(held.address.addr()));
        let address6 = named.and_then(v6).or_else(stable6);
        let links: BTreeSet<_> = on_it().map(|held| held.address.trunc()).collect();
        Ok(Underlay { name, index, address, address6, links: links.into_iter().collect(), mtu })
    }

    /// Whether there is an interface of that name.
    pub async fn exists(&self, name: &str) -> Result<bool, NetError> {
        Ok(self.find(name).await?.is_some())
    }

    /// The MTU of an interface in bytes, if there is one of that name.
    pub async fn mtu(&self, name: &str) -> Result<Option<u32>, NetError> {
        let link = self.link(LinkUnspec::new_with_name(name).build()).await?;
        Ok(link.as_ref().map(read::mtu))
    }

    /// What the host has that could be in the network's way.
    pub async fn facts(&self) -> Result<HostFacts, NetError> {
        let links = self.links().await?;
        let names: HashMap<u32, String> =
            links.iter().map(|link| (link.header.index, read::name(link))).collect();
        let name = |index: u32| names.get(&index).cloned().unwrap_or_default();
        let addresses = self.addresses().await?;
        let mut facts = HostFacts::default();
        facts
            .addresses
            .extend(addresses.iter().filter(|held| held.global).map(|held| (name(held.link), held.address)));
        for family in [Family::V4, Family::V6] {
            let routes = self.routes(family).await?;
            let foreign = routes
                .iter()
                .filter_map(read::route)
                .filter(|(_, route)| route.destination.prefix_len() != 0)
                .filter(|(_, route)| {
                    route.protocol != ROUTE_PROTOCOL && !ROUTE_PROTOCOLS.contains(&route.protocol)
                });
            facts.routes.extend(foreign.map(|(link, route)| (name(link), route.destination)));
        }
        let vxlan = |link| read::vxlan(link).map(|(vxlan, _)| (read::name(link), vxlan.vni, vxlan.port));
        facts.vxlans.extend(links.iter().filter_map(vxlan));
        Ok(facts)
    }

    /// What the kernel has of what `desired` is about: our device and what is on it, and our routes.
    #[expect(clippy::map_entry, reason = "the kernel is asked in between")]
    pub async fn observe(&self, desired: &Desired) -> Result<Observed, NetError> {
        let device = match desired.device() {
            Some(name) => self.link(LinkUnspec::new_with_name(name).build()).await?,
            None => None,
        };
        let index = device.as_ref().map(|link| link.header.index);
        let mut observed = Observed::default();
        if let Some(link) = &device {
            let vxlan = match read::vxlan(link) {
                Some((vxlan, Some(underlay))) => {
                    let underlay = self.link(LinkUnspec::new_with_index(underlay).build()).await?;
                    Some(muster_core::overlay::Vxlan { underlay: underlay.as_ref().map(read::name), ..vxlan })
                }
                other => other.map(|(vxlan, _)| vxlan),
            };
            let ours = |address: &IpNet| Family::of(address.addr()) == desired.family && !link_local(address);
            let addresses = self.addresses().await?.into_iter().filter(|held| Some(held.link) == index);
            let addresses = addresses.map(|held| held.address).filter(ours).collect();
            observed.device = Some(read::device(link, vxlan, addresses));
        }
        let routes = self.routes(desired.family).await?;
        let routes = routes.iter().filter_map(read::route);
        let mut names = HashMap::new();
        for (link, mut route) in routes {
            if Some(link) == index {
                route.device = desired.device().unwrap_or_default().to_owned();
            } else if route.protocol == desired.protocol {
                if !names.contains_key(&link) {
                    let link_there = self.link(LinkUnspec::new_with_index(link).build()).await?;
                    names.insert(link, link_there.as_ref().map(read::name).unwrap_or_default());
                }
                route.device = names[&link].clone();
            } else {
                continue;
            }
            observed.routes.push(route);
        }
        if let (Some(index), Some(_)) = (index, desired.vtep()) {
            let family =
                if desired.family == Family::V4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let entries = self.neighbours(family).await?;
            observed.neighbours.extend(entries.iter().filter_map(|entry| read::neighbour(entry, index)));
            let entries = self.neighbours(AddressFamily::Bridge).await?;
            observed.fdb.extend(entries.iter().filter_map(|entry| read::fdb_entry(entry, index)));
        }
        Ok(observed)
    }

    /// Carries out one operation. Removing what is gone succeeds.
    pub async fn apply(&self, op: &Op) -> Result<(), NetError> {
        self.carry_out(op, self.find(device(op)).await?).await
    }

    /// Carries out a plan in its order; an operation that fails does not keep the others. Many times faster than one
    /// operation after the other, because answers are not waited for singly.
    pub async fn apply_all(&self, ops: &[Op]) -> Applied {
        let mut applied = Applied::default();
        // What comes and goes is done by itself, so that in between a name means the same interface.
        let alone = |op: &Op| matches!(op, Op::CreateDevice { .. } | Op::DeleteDevice { .. });
        for stretch in ops.chunk_by(|one, next| !alone(one) && !alone(next)) {
            let indexes = match self.indexes(stretch).await {
                Ok(indexes) => indexes,
                Err(error) => {
                    applied.failures.push(error);
                    continue;
                }
            };
            for ops in stretch.chunks(UNDER_WAY) {
                let requests = ops.iter().map(|op| self.carry_out(op, indexes[device(op)]));
                for outcome in futures_util::future::join_all(requests).await {
                    match outcome {
                        Ok(()) => applied.made += 1,
                        Err(error) => applied.failures.push(error),
                    }
                }
            }
        }
        applied
    }

    /// The number of each interface that the operations are about, if it is there.
    async fn indexes<'a>(&self, ops: &'a [Op]) -> Result<HashMap<&'a str, Option<u32>>, NetError> {
        let mut indexes = HashMap::new();
        for name in ops.iter().map(device) {
            if !indexes.contains_key(name) {
                indexes.insert(name, self.find(name).await?);
            }
        }
        Ok(indexes)
    }

    /// The operation, on the interface `index`, if there is one of its name.
    async fn carry_out(&self, op: &Op, index: Option<u32>) -> Result<(), NetError> {
        let outcome = match (index, op) {
            (_, Op::CreateDevice { device }) => return self.create(device).await,
            (Some(index), Op::DeleteDevice { .. }) => answer(self.handle.link().del(index).execute()).await,
            (
                index,
                Op::DeleteDevice { .. }
                | Op::RemoveAddress { .. }
                | Op::RemoveRoute { .. }
                | Op::RemoveFdb { .. }
                | Op::RemoveNeighbour { .. },
            ) => match index {
                Some(index) => self.remove(op, index).await,
                None => return Ok(()),
            },
            (Some(index), _) => self.set(op, index).await,
            (None, _) => return Err(NetError::NoInterface { name: device(op).to_owned() }),
        };
        match (op, outcome) {
            (Op::AddRoute { route }, Err(Answer::Refused(error)))
                if error.kind() == io::ErrorKind::AlreadyExists =>
            {
                Err(NetError::RouteTaken { destination: route.destination })
            }
            (_, outcome) => outcome.map_err(|answer| answer.into_error(format!("carry out {op:?}"))),
        }
    }

    /// Subscribes to changes of links, addresses, routes, neighbours and nftables: anybody's, ours included.
    pub fn changes(&self) -> Result<Changes, NetError> {
        Changes::subscribe()
    }

    async fn create(&self, device: &Device) -> Result<(), NetError> {
        let underlay = self.find(&device.underlay).await?;
        let underlay = underlay.ok_or_else(|| NetError::NoInterface { name: device.underlay.clone() })?;
        let link = LinkVxlan::new(&device.name, device.vni)
            .dev(underlay)
            .port(device.port)
            .learning(device.learning)
            .mtu(device.mtu)
            .address(device.mac.0.to_vec());
        let link = match device.local {
            IpAddr::V4(local) => link.local(local),
            // Over IPv6 the outer checksum is not optional (RFC 6936); the kernel's default computes it.
            IpAddr::V6(local) => link.local6(local),
        };
        let link = if device.gbp { link.gbp() } else { link };
        let made = answer(self.handle.link().add(link.build()).execute()).await;
        made.map_err(|answer| answer.into_error(format!("create the VXLAN device {}", device.name)))
    }

    /// Operations that make or change something on the interface `index`.
    async fn set(&self, op: &Op, index: u32) -> Result<(), Answer> {
        let link = LinkUnspec::new_with_index(index);
        let (links, neighbours) = (self.handle.link(), self.handle.neighbours());
        match op {
            Op::SetMtu { mtu, .. } => answer(links.set(link.mtu(*mtu).build()).execute()).await,
            Op::SetMac { mac, .. } => answer(links.set(link.address(mac.0.to_vec()).build()).execute()).await,
            Op::SetUp { .. } => answer(links.set(link.up().build()).execute()).await,
            Op::AddAddress { address, .. } => {
                let add = self.handle.address().add(index, address.addr(), address.prefix_len());
                answer(add.replace().execute()).await
            }
            Op::SetNeighbour { address, mac, .. } => {
                let add = neighbours.add(index, *address).link_layer_address(&mac.0);
                answer(add.replace().execute()).await
            }
            Op::SetFdb { mac, destination, .. } => {
                let add = neighbours.add_bridge(index, &mac.0).destination(*destination);
                answer(add.flags(NeighbourFlags::Own).replace().execute()).await
            }
            Op::AddRoute { route } => {
                answer(self.handle.route().add(route_message(route, index)).execute()).await
            }
            Op::ReplaceRoute { route } => {
                answer(self.handle.route().add(route_message(route, index)).replace().execute()).await
            }
            _ => Ok(()),
        }
    }

    /// Operations that take something away from the interface `index`.
    async fn remove(&self, op: &Op, index: u32) -> Result<(), Answer> {
        let neighbours = self.handle.neighbours();
        match op {
            Op::RemoveAddress { address, .. } => {
                let address = match address {
                    IpNet::V4(net) => AddressMessageBuilder::<Ipv4Addr>::new()
                        .index(index)
                        .address(net.addr(), net.prefix_len())
                        .build(),
                    IpNet::V6(net) => AddressMessageBuilder::<Ipv6Addr>::new()
                        .index(index)
                        .address(net.addr(), net.prefix_len())
                        .build(),
                };
                answer(self.handle.address().del(address).execute()).await
            }
            Op::RemoveRoute { route } => {
                let mut message = route_message(route, index);
                // Any scope: the kernel chose it if the route was made by hand.
                message.header.scope = RouteScope::NoWhere;
                answer(self.handle.route().del(message).execute()).await
            }
            Op::RemoveFdb { mac, destination, .. } => {
                answer(neighbours.del(fdb_message(*mac, *destination, index)).execute()).await
            }
            Op::RemoveNeighbour { address, .. } => {
                let mut message = NeighbourMessage::default();
                message.header.family = family(*address);
                message.header.ifindex = index;
                let address = neighbour_address(*address);
                message.attributes.push(NeighbourAttribute::Destination(address));
                answer(neighbours.del(message).execute()).await
            }
            _ => Ok(()),
        }
        .or_else(Answer::gone_is_fine)
    }

    async fn find(&self, name: &str) -> Result<Option<u32>, NetError> {
        let link = self.link(LinkUnspec::new_with_name(name).build()).await?;
        Ok(link.map(|link| link.header.index))
    }

    /// The interface that `which` names, by index or by name.
    async fn link(&self, which: LinkMessage) -> Result<Option<LinkMessage>, NetError> {
        let mut request = self.handle.link().get();
        *request.message_mut() = which.clone();
        // Any of the two makes this a question for one interface instead of all.
        let request = match read::name(&which) {
            name if name.is_empty() => request.match_index(which.header.index),
            _ => request.match_index(0),
        };
        match answer(request.execute().try_collect::<Vec<_>>()).await.or_else(Answer::gone_is_fine) {
            Ok(links) => Ok(links.into_iter().next()),
            Err(answer) => Err(answer.into_error("read an interface".to_owned())),
        }
    }

    async fn default_route_link(&self) -> Result<LinkMessage, NetError> {
        let routes = self.routes(Family::V4).await?;
        let best = routes.iter().filter_map(read::default_route).min_by_key(|(metric, _)| *metric);
        let (_, index) = best.ok_or(NetError::NoDefaultRoute)?;
        Ok(LinkUnspec::new_with_index(index).build())
    }

    async fn links(&self) -> Result<Vec<LinkMessage>, NetError> {
        dump("read the interfaces", self.handle.link().get().execute()).await
    }

    async fn addresses(&self) -> Result<Vec<read::Held>, NetError> {
        let addresses = dump("read the addresses", self.handle.address().get().execute()).await?;
        Ok(addresses.iter().filter_map(read::address).collect())
    }

    async fn routes(&self, family: Family) -> Result<Vec<RouteMessage>, NetError> {
        let every = match family {
            Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        dump("read the routes", self.handle.route().get(every).execute()).await
    }

    async fn neighbours(&self, family: AddressFamily) -> Result<Vec<NeighbourMessage>, NetError> {
        let request = self.handle.neighbours().get().set_address_family(family);
        dump("read the neighbours", request.execute()).await
    }
}

/// The name of the interface that an operation is about.
fn device(op: &Op) -> &str {
    match op {
        Op::CreateDevice { device } => &device.name,
        Op::DeleteDevice { device, .. }
        | Op::RemoveAddress { device, .. }
        | Op::RemoveFdb { device, .. }
        | Op::RemoveNeighbour { device, .. }
        | Op::SetMtu { device, .. }
        | Op::SetMac { device, .. }
        | Op::AddAddress { device, .. }
        | Op::SetUp { device }
        | Op::SetNeighbour { device, .. }
        | Op::SetFdb { device, .. } => device,
        Op::AddRoute { route } | Op::ReplaceRoute { route } | Op::RemoveRoute { route } => &route.device,
    }
}

fn route_message(route: &Route, index: u32) -> RouteMessage {
    fn common<T>(builder: RouteMessageBuilder<T>, route: &Route, index: u32) -> RouteMessage {
        let mut builder = builder.output_interface(index).protocol(RouteProtocol::from(route.protocol));
        if route.onlink {
            builder = builder.onlink();
        }
        if route.via.is_none() {
            builder = builder.scope(RouteScope::Link);
        }
        if route.metric != 0 {
            builder = builder.priority(route.metric);
        }
        builder.build()
    }
    let (net, len) = (route.destination.network(), route.destination.prefix_len());
    match (net, route.via) {
        (IpAddr::V4(net), via) => {
            let builder = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(net, len);
            let via = via.and_then(v4);
            common(
                match via {
                    Some(via) => builder.gateway(via),
                    None => builder,
                },
                route,
                index,
            )
        }
        (IpAddr::V6(net), via) => {
            let builder = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(net, len);
            let via = via.and_then(v6);
            common(
                match via {
                    Some(via) => builder.gateway(via),
                    None => builder,
                },
                route,
                index,
            )
        }
    }
}

fn fdb_message(mac: MacAddress, destination: IpAddr, index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message.attributes.push(NeighbourAttribute::Destination(neighbour_address(destination)));
    message
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn neighbour_address(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    }
}

fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    if let IpAddr::V4(address) = address { Some(address) } else { None }
}

fn v6(address: IpAddr) -> Option<Ipv6Addr> {
    if let IpAddr::V6(address) = address { Some(address) } else { None }
}

fn link_local(net: &IpNet) -> bool {
    matches!(net.addr(), IpAddr::V6(address) if address.is_unicast_link_local())
}

/// How a request failed.
enum Answer {
    Refused(io::Error),
    Nonsense(String),
    Late,
}

impl Answer {
    /// The kernel's several ways to say that something is not there: an interface, a route, an entry, an address.
    fn gone_is_fine<T: Default>(self) -> Result<T, Self> {
        const ENOENT: i32 = 2;
        const ESRCH: i32 = 3;
        const ENODEV: i32 = 19;
        const EADDRNOTAVAIL: i32 = 99;
        match &self {
            Self::Refused(error)
                if [ENOENT, ESRCH, ENODEV, EADDRNOTAVAIL].map(Some).contains(&error.raw_os_error()) =>
            {
                Ok(T::default())
            }
            _ => Err(self),
        }
    }

    fn into_error(self, action: String) -> NetError {
        match self {
            Self::Refused(source) => NetError::Refused { action, source },
            Self::Nonsense(reason) => NetError::Netlink { action, reason },
            Self::Late => {
                NetError::Timeout { from: "the kernel".to_owned(), seconds: ANSWER_TIMEOUT.as_secs() }
            }
        }
    }
}

async fn answer<T>(request: impl Future<Output = Result<T, rtnetlink::Error>>) -> Result<T, Answer> {
    match tokio::time::timeout(ANSWER_TIMEOUT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(rtnetlink::Error::NetlinkError(error))) => Err(Answer::Refused(error.to_io())),
        Ok(Err(other)) => Err(Answer::Nonsense(other.to_string())),
        Err(_) => Err(Answer::Late),
    }
}

async fn dump<T>(
    action: &str,
    messages: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, NetError> {
    answer(messages.try_collect()).await.map_err(|answer| answer.into_error(action.to_owned()))
}
