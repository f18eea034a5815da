//! What is said to the kernel's WireGuard and what its answers mean (wireguard.h, `WGDEVICE_A_*` and `WGPEER_A_*`).
//!
//! Invariant: a message says only what changes, and all messages of a change together make exactly the wanted peers.

use crate::wireguard::{
    WgPeer, WgPeerState, WireguardConfig,
    key::{PresharedKey, PublicKey},
    seconds,
};
use ipnet::IpNet;
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd,
    WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use rtnetlink::packet_core::Emitable;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

/// The peers of a message are one attribute, whose length is 16 bits. Half of that leaves room for the last peer.
const LARGEST: usize = 1 << 15;

/// The device's own part.
pub(super) fn device(config: &WireguardConfig) -> WireguardMessage {
    WireguardMessage {
        cmd: WireguardCmd::SetDevice,
        attributes: vec![
            WireguardAttribute::IfName(config.name.clone()),
            WireguardAttribute::PrivateKey(config.private_key.secret().to_bytes()),
            WireguardAttribute::ListenPort(config.listen_port),
        ],
    }
}

/// Asks for everything.
pub(super) fn question(name: &str) -> WireguardMessage {
    let attributes = vec![WireguardAttribute::IfName(name.to_owned())];
    WireguardMessage { cmd: WireguardCmd::GetDevice, attributes }
}

/// Makes the peers `after` of the peers `before`: first those that go, because their addresses may be another's now.
pub(super) fn change(
    name: &str,
    before: &[WgPeer],
    after: &[WgPeer],
    psk: Option<&PresharedKey>,
) -> Vec<WireguardMessage> {
    use WireguardPeerAttribute::{
        AllowedIps, Endpoint, Flags, PersistentKeepalive, PresharedKey as Preshared, PublicKey as Public,
    };
    let find = |peers: &[WgPeer], key| peers.iter().find(|peer| peer.public_key == key).cloned();
    let gone = before.iter().filter(|peer| find(after, peer.public_key).is_none()).map(|peer| {
        let flags = WireguardPeerFlags::RemoveMe | WireguardPeerFlags::UpdateOnly;
        vec![Public(peer.public_key.bytes()), Flags(flags)]
    });
    let set = after.iter().filter_map(|peer| {
        let held = find(before, peer.public_key);
        if held.as_ref() == Some(peer) {
            return None;
        }
        let flags = match held {
            Some(_) => WireguardPeerFlags::ReplaceAllowedIps | WireguardPeerFlags::UpdateOnly,
            None => WireguardPeerFlags::ReplaceAllowedIps,
        };
        let mut attributes = vec![Public(peer.public_key.bytes()), Flags(flags)];
        if held.is_none() {
            attributes.extend(psk.map(|psk| Preshared(psk.bytes())));
        }
        if held.is_none_or(|held| held.endpoint != peer.endpoint) {
            attributes.push(Endpoint(peer.endpoint));
        }
        attributes.push(PersistentKeepalive(peer.keepalive.map_or(0, seconds)));
        attributes.push(AllowedIps(peer.allowed_ips.iter().map(allowed).collect()));
        Some(attributes)
    });
    let mut messages: Vec<Vec<WireguardPeer>> = Vec::new();
    let mut size = 0;
    for peer in gone.chain(set).map(WireguardPeer) {
        let own = peer.0.as_slice().buffer_len();
        if messages.is_empty() || size + own > LARGEST {
            messages.push(Vec::new());
            size = 0;
        }
        size += own;
        messages.last_mut().expect("one was just made").push(peer);
    }
    let message = |peers| WireguardMessage {
        cmd: WireguardCmd::SetDevice,
        attributes: vec![WireguardAttribute::IfName(name.to_owned()), WireguardAttribute::Peers(peers)],
    };
    messages.into_iter().map(message).collect()
}

fn allowed(network: &IpNet) -> WireguardAllowedIp {
    let family = match network {
        IpNet::V4(_) => WireguardAddressFamily::Ipv4,
        IpNet::V6(_) => WireguardAddressFamily::Ipv6,
    };
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(network.network()),
        WireguardAllowedIpAttr::Cidr(network.prefix_len()),
    ])
}

/// A peer as the kernel described it, in one message or in several.
#[derive(Default)]
struct Described {
    endpoint: Option<SocketAddr>,
    allowed_ips: Vec<IpNet>,
    keepalive: u16,
    handshake: Duration,
    rx_bytes: u64,
    tx_bytes: u64,
}

fn described(answers: &[WireguardMessage]) -> BTreeMap<PublicKey, Described> {
    let mut peers: BTreeMap<PublicKey, Described> = BTreeMap::new();
    let attributes = answers.iter().flat_map(|answer| &answer.attributes);
    for attributes in attributes.filter_map(|attribute| match attribute {
        WireguardAttribute::Peers(peers) => Some(peers.iter()),
        _ => None,
    }) {
        for attributes in attributes {
            let key = attributes.iter().find_map(|attribute| match attribute {
                WireguardPeerAttribute::PublicKey(key) => Some(PublicKey::from(*key)),
                _ => None,
            });
            let Some(key) = key else { continue };
            let peer = peers.entry(key).or_default();
            attributes.iter().for_each(|attribute| peer.take(attribute));
        }
    }
    peers
}

impl Described {
    fn take(&mut self, attribute: &WireguardPeerAttribute) {
        match attribute {
            WireguardPeerAttribute::Endpoint(endpoint) => self.endpoint = Some(*endpoint),
            WireguardPeerAttribute::PersistentKeepalive(seconds) => self.keepalive = *seconds,
            WireguardPeerAttribute::LastHandshake(at) => {
                let seconds = u64::try_from(at.seconds).unwrap_or(0);
                self.handshake = Duration::new(seconds, u32::try_from(at.nano_seconds).unwrap_or(0));
            }
            WireguardPeerAttribute::RxBytes(bytes) => self.rx_bytes = *bytes,
            WireguardPeerAttribute::TxBytes(bytes) => self.tx_bytes = *bytes,
            WireguardPeerAttribute::AllowedIps(networks) => {
                self.allowed_ips.extend(networks.iter().filter_map(|network| network_of(network)));
            }
            _ => {}
        }
    }
}

fn network_of(attributes: &[WireguardAllowedIpAttr]) -> Option<IpNet> {
    let address = attributes.iter().find_map(|attribute| match attribute {
        WireguardAllowedIpAttr::IpAddr(address) => Some(*address),
        _ => None,
    })?;
    let length = attributes.iter().find_map(|attribute| match attribute {
        WireguardAllowedIpAttr::Cidr(length) => Some(*length),
        _ => None,
    })?;
    IpNet::new(address, length).ok()
}

/// The peers that the kernel has, as if we had told it. Those without an endpoint get one that nobody asks for, so that
/// the wanted one is told.
pub(super) fn peers(answers: &[WireguardMessage]) -> Vec<WgPeer> {
    let peer = |(public_key, peer): (PublicKey, Described)| WgPeer {
        public_key,
        endpoint: peer.endpoint.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0))),
        allowed_ips: peer.allowed_ips,
        keepalive: (peer.keepalive > 0).then(|| Duration::from_secs(peer.keepalive.into())),
    };
    described(answers).into_iter().map(peer).collect()
}

/// How it goes with the peers at the time `now`, since the kernel says when they shook hands by the clock on the wall.
pub(super) fn states(answers: &[WireguardMessage], now: SystemTime) -> Vec<WgPeerState> {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let state = |(public_key, peer): (PublicKey, Described)| WgPeerState {
        public_key,
        endpoint: peer.endpoint,
        last_handshake: (!peer.handshake.is_zero()).then(|| now.saturating_sub(peer.handshake)),
        rx_bytes: peer.rx_bytes,
        tx_bytes: peer.tx_bytes,
    };
    described(answers).into_iter().map(state).collect()
}

#[cfg(test)]
mod tests;
