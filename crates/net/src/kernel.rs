//! Linux's side of the overlay over rtnetlink(7): finds the underlay, reads the datapath, carries out operations.
//!
//! Not here: which operations, and the rules. Invariant: an operation names an interface, and acts on the
//! interface that has this name at that moment; nothing is remembered between two calls.

use crate::{Changes, NetError};
use futures_util::{Stream, TryStreamExt};
use model::network::MacAddress;
use muster_core::overlay::{Device, Observed, Op, Route, Underlay};
use netlink_packet_route::{
    AddressFamily,
    link::LinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage},
    route::{RouteMessage, RouteProtocol, RouteScope},
};
use rtnetlink::{AddressMessageBuilder, Handle, LinkUnspec, LinkVxlan, RouteMessageBuilder, new_connection};
use std::{future::Future, io, net::Ipv4Addr, time::Duration};
use tokio::task::JoinSet;

mod read;

/// The kernel answers at once, or it is busy with something that holds its network lock.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

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
        let link = match interface {
            None => self.default_route_link().await?,
            Some(wanted) => match wanted.parse::<Ipv4Addr>() {
                Ok(address) => addresses
                    .iter()
                    .find(|held| held.address.addr() == address)
                    .map(|held| LinkUnspec::new_with_index(held.link).build())
                    .ok_or_else(|| NetError::NoInterface { name: wanted.to_owned() })?,
                Err(_) => LinkUnspec::new_with_name(wanted).build(),
            },
        };
        let missing = || interface.map(|name| NetError::NoInterface { name: name.to_owned() });
        let link = self.link(link).await?.ok_or_else(|| missing().unwrap_or(NetError::NoDefaultRoute))?;
        let (index, name, mtu) = (link.header.index, read::name(&link), read::mtu(&link));
        let named = interface.and_then(|wanted| wanted.parse::<Ipv4Addr>().ok());
        let on_it = || addresses.iter().filter(|held| held.link == index && held.global);
        let address = named
            .or_else(|| on_it().map(|held| held.address.addr()).next())
            .ok_or_else(|| NetError::NoAddress { name: name.clone() })?;
        Ok(Underlay { name, index, address, mtu })
    }

    /// Everything the kernel has under the name `device`, and on it.
    pub async fn observe(&self, device: &str) -> Result<Observed, NetError> {
        let Some(link) = self.link(LinkUnspec::new_with_name(device).build()).await? else {
            return Ok(Observed::default());
        };
        let index = link.header.index;
        let vxlan = match read::vxlan(&link) {
            Some((vxlan, Some(underlay))) => {
                let underlay = self.link(LinkUnspec::new_with_index(underlay).build()).await?;
                Some(muster_core::overlay::Vxlan { underlay: underlay.as_ref().map(read::name), ..vxlan })
            }
            other => other.map(|(vxlan, _)| vxlan),
        };
        let addresses = self.addresses().await?.into_iter().filter(|held| held.link == index);
        Ok(Observed {
            device: Some(read::device(&link, vxlan, addresses.map(|held| held.address).collect())),
            routes: self.routes().await?.iter().filter_map(|route| read::route(route, index)).collect(),
            neighbours: {
                let entries = self.neighbours(AddressFamily::Inet).await?;
                entries.iter().filter_map(|entry| read::neighbour(entry, index)).collect()
            },
            fdb: {
                let entries = self.neighbours(AddressFamily::Bridge).await?;
                entries.iter().filter_map(|entry| read::fdb_entry(entry, index)).collect()
            },
        })
    }

    /// Carries out one operation. Removing what is gone succeeds.
    pub async fn apply(&self, op: &Op) -> Result<(), NetError> {
        let action = || format!("carry out {op:?}");
        let outcome = match op {
            Op::CreateDevice { device } => return self.create(device).await,
            Op::DeleteDevice { device, .. } => match self.find(device).await? {
                Some(index) => answer(self.handle.link().del(index).execute()).await,
                None => return Ok(()),
            },
            Op::RemoveAddress { device, .. }
            | Op::RemoveRoute { device, .. }
            | Op::RemoveFdb { device, .. }
            | Op::RemoveNeighbour { device, .. } => match self.find(device).await? {
                Some(index) => self.remove(op, index).await,
                None => return Ok(()),
            },
            Op::SetMtu { device, .. }
            | Op::SetMac { device, .. }
            | Op::AddAddress { device, .. }
            | Op::SetUp { device }
            | Op::SetNeighbour { device, .. }
            | Op::SetFdb { device, .. }
            | Op::AddRoute { device, .. }
            | Op::ReplaceRoute { device, .. } => {
                let index = self.find(device).await?;
                let index = index.ok_or_else(|| NetError::NoInterface { name: device.clone() })?;
                self.set(op, index).await
            }
        };
        match (op, outcome) {
            (Op::AddRoute { route, .. }, Err(Answer::Refused(error)))
                if error.kind() == io::ErrorKind::AlreadyExists =>
            {
                Err(NetError::RouteTaken { destination: route.destination })
            }
            (_, outcome) => outcome.map_err(|answer| answer.into_error(action())),
        }
    }

    /// Subscribes to changes of links, IPv4 addresses and routes, and neighbours: anybody's, ours included.
    pub fn changes(&self) -> Result<Changes, NetError> {
        Changes::subscribe()
    }

    async fn create(&self, device: &Device) -> Result<(), NetError> {
        let underlay = self.find(&device.underlay).await?;
        let underlay = underlay.ok_or_else(|| NetError::NoInterface { name: device.underlay.clone() })?;
        let link = LinkVxlan::new(&device.name, device.vni)
            .dev(underlay)
            .local(device.local)
            .port(device.port)
            .learning(false)
            .mtu(device.mtu)
            .address(device.mac.0.to_vec())
            .build();
        let made = answer(self.handle.link().add(link).execute()).await;
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
                let add = self.handle.address().add(index, address.addr().into(), address.prefix_len());
                answer(add.replace().execute()).await
            }
            Op::SetNeighbour { address, mac, .. } => {
                let add = neighbours.add(index, (*address).into()).link_layer_address(&mac.0);
                answer(add.replace().execute()).await
            }
            Op::SetFdb { mac, destination, .. } => {
                let add = neighbours.add_bridge(index, &mac.0).destination((*destination).into());
                answer(add.flags(NeighbourFlags::Own).replace().execute()).await
            }
            Op::AddRoute { route, .. } => {
                answer(self.handle.route().add(route_message(route, index)).execute()).await
            }
            Op::ReplaceRoute { route, .. } => {
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
                let address = AddressMessageBuilder::<Ipv4Addr>::new()
                    .index(index)
                    .address(address.addr(), address.prefix_len())
                    .build();
                answer(self.handle.address().del(address).execute()).await
            }
            Op::RemoveRoute { route, .. } => {
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
                message.header.family = AddressFamily::Inet;
                message.header.ifindex = index;
                let address = NeighbourAddress::Inet(*address);
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
        let routes = self.routes().await?;
        let best = routes.iter().filter_map(read::default_route).min_by_key(|(metric, _)| *metric);
        let (_, index) = best.ok_or(NetError::NoDefaultRoute)?;
        Ok(LinkUnspec::new_with_index(index).build())
    }

    async fn addresses(&self) -> Result<Vec<read::Held>, NetError> {
        let mut request = self.handle.address().get();
        request.message_mut().header.family = AddressFamily::Inet;
        let addresses = dump("read the addresses", request.execute()).await?;
        Ok(addresses.iter().filter_map(read::address).collect())
    }

    async fn routes(&self) -> Result<Vec<RouteMessage>, NetError> {
        let every = RouteMessageBuilder::<Ipv4Addr>::new().build();
        dump("read the routes", self.handle.route().get(every).execute()).await
    }

    async fn neighbours(&self, family: AddressFamily) -> Result<Vec<NeighbourMessage>, NetError> {
        let request = self.handle.neighbours().get().set_address_family(family);
        dump("read the neighbours", request.execute()).await
    }
}

fn route_message(route: &Route, index: u32) -> RouteMessage {
    let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(route.destination.network(), route.destination.prefix_len())
        .output_interface(index)
        .protocol(RouteProtocol::from(route.protocol));
    if let Some(via) = route.via {
        builder = builder.gateway(via);
    }
    if route.onlink {
        builder = builder.onlink();
    }
    if route.metric != 0 {
        builder = builder.priority(route.metric);
    }
    builder.build()
}

fn fdb_message(mac: MacAddress, destination: Ipv4Addr, index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(destination)));
    message
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
