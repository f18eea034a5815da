//! Whether this host can carry the network: what is already there and would be cut off, or would cut us off.
//!
//! Invariant: a configuration that clashes changes nothing; the datapath of before stays.

use ipnet::IpNet;
use model::{NetworkConfig, SubnetKey, network::Backend};
use serde::Serialize;
use std::{collections::BTreeMap, fmt};

/// What the host has that could be in the way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct HostFacts {
    /// Addresses with their networks, by interface.
    pub addresses: Vec<(String, IpNet)>,
    /// Routes of the main table that are not ours, by interface. Without default routes.
    pub routes: Vec<(String, IpNet)>,
    /// VXLAN devices: name, VNI, port.
    pub vxlans: Vec<(String, u32, u16)>,
}

/// Something of the host's that is in the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Clash {
    /// An address lies inside the network.
    Address {
        /// The interface.
        interface: String,
        /// The address.
        address: IpNet,
        /// The network.
        network: IpNet,
    },
    /// A route leads into the network.
    Route {
        /// The interface.
        interface: String,
        /// Where to.
        destination: IpNet,
        /// The network.
        network: IpNet,
    },
    /// Another device has the same VNI on the same port.
    Vni {
        /// The device.
        device: String,
        /// The VNI.
        vni: u32,
        /// The port.
        port: u16,
    },
    /// Another of the machine's networks has the same addresses.
    Network {
        /// That network.
        other: String,
        /// Its addresses.
        theirs: IpNet,
    },
    /// Another of the machine's networks has the same VNI, and so a device of the same name.
    NetworkVni {
        /// That network.
        other: String,
        /// The VNI.
        vni: u32,
    },
    /// Another of the machine's networks has the one WireGuard device.
    NetworkWireguard {
        /// That network.
        other: String,
    },
}

impl fmt::Display for Clash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { interface, address, network } => write!(
                f,
                "{interface} of this machine has the address {address}, which overlaps {network}: choose another \
                 `Network`"
            ),
            Self::Route { interface, destination, network } => write!(
                f,
                "this machine reaches {destination} over {interface}, which overlaps {network}: choose another \
                 `Network`, or remove the route"
            ),
            Self::Vni { device, vni, port } => write!(
                f,
                "the device {device} of this machine has VNI {vni} on port {port} already: choose another `VNI` or \
                 `Port`"
            ),
            Self::Network { other, theirs } => {
                write!(f, "the network {} has {theirs}: choose another `Network`", named(other))
            }
            Self::NetworkVni { other, vni } => write!(
                f,
                "the network {} has VNI {vni}, and with it the device flannel.{vni}: give each network a `VNI` of its own",
                named(other)
            ),
            Self::NetworkWireguard { other } => write!(
                f,
                "the network {} has the WireGuard device: choose another backend for one of the two",
                named(other)
            ),
        }
    }
}

/// A network's name for people.
fn named(network: &str) -> String {
    if network.is_empty() { "without a name".to_owned() } else { format!("`{network}`") }
}

/// Which of the machine's other networks, by their names, are in the way of one with `config`.
pub fn clashes_between(config: &NetworkConfig, others: &BTreeMap<String, NetworkConfig>) -> Vec<Clash> {
    let nets = |config: &NetworkConfig| {
        let v6 = config.v6.as_ref().map(|v6| IpNet::from(v6.network));
        std::iter::once(IpNet::from(config.network)).chain(v6).collect::<Vec<_>>()
    };
    let mut clashes = Vec::new();
    for (name, theirs) in others {
        let other = name.clone();
        let overlaps = |net: &IpNet| nets(config).iter().any(|own| own.contains(net) || net.contains(own));
        clashes.extend(
            nets(theirs)
                .into_iter()
                .filter(|net| overlaps(net))
                .map(|theirs| Clash::Network { other: other.clone(), theirs }),
        );
        match (&config.backend, &theirs.backend) {
            (Backend::Vxlan(own), Backend::Vxlan(their)) if own.vni == their.vni => {
                clashes.push(Clash::NetworkVni { other, vni: own.vni });
            }
            (Backend::Wireguard(_), Backend::Wireguard(_)) => {
                clashes.push(Clash::NetworkWireguard { other });
            }
            _ => {}
        }
    }
    clashes
}

/// What is in the way of `config` on a host with `facts`, for a machine that will hold `key` (none: not known yet).
/// Interfaces that containers hang on are ours to use: the bridge, and whatever lies within our own subnet.
pub fn clashes(
    config: &NetworkConfig,
    key: Option<SubnetKey>,
    bridges: &[String],
    facts: &HostFacts,
) -> Vec<Clash> {
    let networks: Vec<IpNet> =
        [Some(IpNet::from(config.network)), config.v6.as_ref().map(|v6| v6.network.into())]
            .into_iter()
            .flatten()
            .collect();
    let own: Vec<IpNet> = key
        .into_iter()
        .flat_map(|key| [Some(IpNet::from(key.v4.net())), key.v6.map(|v6| v6.net().into())])
        .flatten()
        .collect();
    let ours = |interface: &String, net: &IpNet| {
        interface.starts_with("flannel")
            || interface.starts_with("cni")
            || bridges.contains(interface)
            || own.iter().any(|own| own.contains(net))
    };
    let overlapped =
        |net: &IpNet| networks.iter().copied().find(|own| own.contains(net) || net.contains(own));
    let mut clashes = Vec::new();
    for (interface, address) in facts.addresses.iter().filter(|(interface, net)| !ours(interface, net)) {
        if let Some(network) = overlapped(&address.trunc()) {
            clashes.push(Clash::Address { interface: interface.clone(), address: *address, network });
        }
    }
    for (interface, destination) in facts.routes.iter().filter(|(interface, net)| !ours(interface, net)) {
        let told = clashes
            .iter()
            .any(|clash| matches!(clash, Clash::Address { interface: told, .. } if told == interface));
        // A wider route is none of our business: the routes to peers are more exact.
        let inside = networks.iter().copied().find(|network| network.contains(destination));
        if let Some(network) = inside.filter(|_| !told) {
            clashes.push(Clash::Route { interface: interface.clone(), destination: *destination, network });
        }
    }
    if let Backend::Vxlan(vxlan) = &config.backend {
        let own = [super::Family::V4, super::Family::V6].map(|family| super::vxlan_device(family, vxlan.vni));
        let same = facts
            .vxlans
            .iter()
            .filter(|(name, vni, port)| (*vni, *port) == (vxlan.vni, vxlan.port) && !own.contains(name));
        clashes.extend(same.map(|(name, vni, port)| Clash::Vni {
            device: name.clone(),
            vni: *vni,
            port: *port,
        }));
    }
    clashes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn point_15_networks_of_one_machine_may_not_share_addresses_vni_or_wireguard() {
        let config = |network: &str, backend: &str| -> NetworkConfig {
            format!(r#"{{"Network":"{network}","Backend":{{{backend}}}}}"#).parse().expect("valid")
        };
        let vxlan = |network: &str, vni: u32| config(network, &format!(r#""Type":"vxlan","VNI":{vni}"#));
        let told = |own: &NetworkConfig, other: &NetworkConfig| {
            let others = BTreeMap::from([("blue".to_owned(), other.clone())]);
            clashes_between(own, &others).iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        let own = vxlan("10.1.0.0/16", 1);
        assert_eq!(told(&own, &vxlan("10.2.0.0/16", 2)), "");
        assert!(
            told(&own, &vxlan("10.2.0.0/16", 1)).starts_with("the network `blue` has VNI 1, and with it")
        );
        assert!(told(&own, &vxlan("10.0.0.0/8", 2)).starts_with("the network `blue` has 10.0.0.0/8: choose"));
        let wireguard = |network: &str| config(network, r#""Type":"wireguard""#);
        let both = told(&wireguard("10.1.0.0/16"), &wireguard("10.2.0.0/16"));
        assert!(both.contains("WireGuard device"), "{both}");
    }

    fn facts(addresses: &[(&str, &str)], routes: &[(&str, &str)], vxlans: &[(&str, u32, u16)]) -> HostFacts {
        let nets = |list: &[(&str, &str)]| {
            list.iter().map(|(name, net)| ((*name).to_owned(), net.parse().expect("a network"))).collect()
        };
        HostFacts {
            addresses: nets(addresses),
            routes: nets(routes),
            vxlans: vxlans.iter().map(|(name, vni, port)| ((*name).to_owned(), *vni, *port)).collect(),
        }
    }

    fn told(facts: &HostFacts) -> Vec<String> {
        let config = NetworkConfig::vxlan("10.1.0.0/16".parse().expect("a network")).expect("valid");
        let key = "10.1.5.0-24".parse().expect("a key");
        clashes(&config, Some(key), &["docker0".to_owned()], facts).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_ours_is_in_nobodys_way() {
        let quiet = facts(
            &[
                ("eth0", "192.168.77.1/24"),
                ("docker0", "10.1.9.1/24"),
                ("br-1", "10.1.5.1/24"),
                ("flannel.1", "10.1.5.0/32"),
            ],
            &[("eth0", "192.168.77.0/24"), ("flannel.1", "10.1.2.0/24"), ("veth1", "10.1.5.7/32")],
            &[("flannel.1", 1, 8472), ("flannel-v6.1", 1, 8472), ("other", 1, 4789), ("vx2", 2, 8472)],
        );
        assert_eq!(told(&quiet), Vec::<String>::new());
    }

    #[test]
    fn what_the_host_has_already_is_named_with_a_way_out() {
        let address = told(&facts(&[("eth1", "10.1.200.7/24")], &[("eth1", "10.1.200.0/24")], &[]));
        assert_eq!(address.len(), 1, "once for an interface: {address:?}");
        assert!(address[0].contains("eth1 of this machine has the address 10.1.200.7/24"), "{address:?}");
        let route = told(&facts(&[], &[("tun0", "10.1.128.0/17"), ("tun1", "10.0.0.0/8")], &[]));
        assert_eq!(route.len(), 1, "a wider route is not in the way: {route:?}");
        assert!(
            route[0].contains("reaches 10.1.128.0/17 over tun0, which overlaps 10.1.0.0/16"),
            "{route:?}"
        );
        let vni = told(&facts(&[], &[], &[("vx", 1, 8472)]));
        assert!(vni[0].contains("the device vx of this machine has VNI 1 on port 8472"), "{vni:?}");
    }
}
