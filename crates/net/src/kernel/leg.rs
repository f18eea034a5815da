//! The pieces of a [`Leg`]: a bridge, a cable, and what is at either end of it.

use super::{Answer, Kernel, answer, read};
use crate::{NetError, namespace::Leg};
use ipnet::{IpNet, Ipv4Net};
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{AddressMessageBuilder, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::RawFd,
};

/// Says that a bridge was made by us, so that its address is ours to change.
const ALIAS: &str = "muster";
/// The unit's end of the cable.
const INSIDE: &str = "eth0";

impl Kernel {
    /// Makes the bridge if there is none, with the address that Docker would give it, so that Docker takes it over when it
    /// comes. Somebody else's must have that address already. Gives its index.
    pub(crate) async fn ensure_bridge(&self, name: &str, own: Ipv4Addr, len: u8) -> Result<u32, NetError> {
        let refused = |answer: Answer| answer.into_error(format!("set up the bridge {name}"));
        let mut found = self.link(LinkUnspec::new_with_name(name).build()).await?;
        if found.is_none() {
            let made = answer(self.handle.link().add(LinkBridge::new(name).build()).execute()).await;
            made.map_err(refused)?;
            let named = LinkUnspec::new_with_name(name).alias(ALIAS).build();
            answer(self.handle.link().set(named).execute()).await.map_err(refused)?;
            found = self.link(LinkUnspec::new_with_name(name).build()).await?;
        }
        let link = found.ok_or_else(|| NetError::NoInterface { name: name.to_owned() })?;
        let index = link.header.index;
        let held = self.addresses4(index).await?;
        let wanted = Ipv4Net::new(own, len).ok();
        if held.iter().any(|held| Some(*held) == wanted) {
            return Ok(index);
        }
        if alias(&link) != Some(ALIAS) && !held.is_empty() {
            let address = format!("{own}/{len}");
            return Err(NetError::ForeignBridge { name: name.to_owned(), address });
        }
        self.readdress(index, &held, own, len).await.map_err(refused)?;
        let up = LinkUnspec::new_with_index(index).up().build();
        answer(self.handle.link().set(up).execute()).await.map_err(refused)?;
        Ok(index)
    }

    /// What is inside: called in the namespace; `host` is the machine's own.
    pub(crate) async fn ensure_leg(&self, leg: &Leg, host: RawFd) -> Result<(), NetError> {
        let refused =
            |answer: Answer| answer.into_error(format!("set up the network in {}", leg.path.display()));
        self.set_up("lo").await?;
        let [a, b, c, d] = leg.address.addr().octets();
        // As Docker does it: whoever has the address has this, so that nobody's neighbour entries go stale.
        let mac = vec![0x02, 0x42, a, b, c, d];
        if self.find(INSIDE).await?.is_none() {
            let peer = LinkUnspec::new_with_name(&leg.port).setns_by_fd(host).mtu(leg.mtu).build();
            let cable = LinkVeth::new(INSIDE, &leg.port).set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
            answer(self.handle.link().add(cable.mtu(leg.mtu).build()).execute()).await.map_err(refused)?;
        }
        let link = self.link(LinkUnspec::new_with_name(INSIDE).build()).await?;
        let link = link.ok_or_else(|| NetError::NoInterface { name: INSIDE.to_owned() })?;
        let index = link.header.index;
        if read::mtu(&link) != leg.mtu || address(&link) != Some(&mac) {
            let changed = LinkUnspec::new_with_index(index).mtu(leg.mtu).address(mac).build();
            answer(self.handle.link().set(changed).execute()).await.map_err(refused)?;
        }
        self.set_up(INSIDE).await?;
        let (own, len) = (leg.address.addr(), leg.address.prefix_len());
        let held = self.addresses4(index).await?;
        if held != [leg.address] {
            self.readdress(index, &held, own, len).await.map_err(refused)?;
        }
        let way_out = RouteMessageBuilder::<Ipv4Addr>::new().gateway(leg.gateway).output_interface(index);
        answer(self.handle.route().add(way_out.build()).replace().execute()).await.map_err(refused)
    }

    /// The machine's end: called in the machine's namespace.
    pub(crate) async fn ensure_port(&self, name: &str, bridge: u32, mtu: u32) -> Result<(), NetError> {
        let link = self.link(LinkUnspec::new_with_name(name).build()).await?;
        let link = link.ok_or_else(|| NetError::NoInterface { name: name.to_owned() })?;
        let plugged = link.attributes.contains(&LinkAttribute::Controller(bridge));
        if plugged && up(&link) && read::mtu(&link) == mtu {
            return Ok(());
        }
        let changed = LinkUnspec::new_with_index(link.header.index).controller(bridge).mtu(mtu).up().build();
        let outcome = answer(self.handle.link().set(changed).execute()).await;
        outcome.map_err(|answer| answer.into_error(format!("plug {name} into the bridge")))
    }

    /// Removes an interface, if it is there.
    pub(crate) async fn remove_link(&self, name: &str) -> Result<(), NetError> {
        let Some(index) = self.find(name).await? else { return Ok(()) };
        let outcome = answer(self.handle.link().del(index).execute()).await.or_else(Answer::gone_is_fine);
        outcome.map_err(|answer| answer.into_error(format!("remove {name}")))
    }

    async fn set_up(&self, name: &str) -> Result<(), NetError> {
        let link = self.link(LinkUnspec::new_with_name(name).build()).await?;
        let link = link.ok_or_else(|| NetError::NoInterface { name: name.to_owned() })?;
        if up(&link) {
            return Ok(());
        }
        let changed = LinkUnspec::new_with_index(link.header.index).up().build();
        let outcome = answer(self.handle.link().set(changed).execute()).await;
        outcome.map_err(|answer| answer.into_error(format!("set {name} up")))
    }

    async fn addresses4(&self, index: u32) -> Result<Vec<Ipv4Net>, NetError> {
        let all = self.addresses().await?.into_iter().filter(|held| held.link == index);
        Ok(all.filter_map(|held| if let IpNet::V4(net) = held.address { Some(net) } else { None }).collect())
    }

    /// Takes away every address of `held` and gives `own` instead. In this order: others of one subnet go with the first.
    async fn readdress(&self, index: u32, held: &[Ipv4Net], own: Ipv4Addr, len: u8) -> Result<(), Answer> {
        for old in held {
            let message = AddressMessageBuilder::<Ipv4Addr>::new()
                .index(index)
                .address(old.addr(), old.prefix_len())
                .build();
            answer(self.handle.address().del(message).execute()).await.or_else(Answer::gone_is_fine)?;
        }
        answer(self.handle.address().add(index, IpAddr::V4(own), len).replace().execute()).await
    }
}

fn up(link: &LinkMessage) -> bool {
    link.header.flags.contains(LinkFlags::Up)
}

fn alias(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(alias) => Some(alias.as_str()),
        _ => None,
    })
}

fn address(link: &LinkMessage) -> Option<&Vec<u8>> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(address) => Some(address),
        _ => None,
    })
}
