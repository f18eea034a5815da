//! The cluster network of one machine: which subnet it takes, how the kernel's datapath should look, which
//! rules keep the outside out, and what Docker is told. The behaviour is flannel's (same keys, same values, same
//! entries in the kernel), so that machines running flanneld can share the network.
//!
//! Not here: reading the kernel and changing it (crate `net`), watching and writing leases (the registry).
//!
//! Invariant: what is not ours is never touched. [`plan`] names only our device and what hangs on it, and routes that
//! carry our mark; the rules live in one nftables table and two iptables chains of our own.

use ipnet::IpNet;
use model::network::{Backend, BackendData, MacAddress, VxlanData, WireguardData, WireguardMode};
use model::{MachineId, NetworkConfig, SubnetKey, SubnetLease, network};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

mod addresses;
mod doctor;
mod env;
mod firewall;
mod host;
mod plan;
mod roster;
mod subnet;

pub use addresses::{choose_address, container_range, port_name, unit_range};
pub use doctor::{Culprit, Probes, diagnose};
pub use env::{cni_config, docker_env, subnet_env};
pub use firewall::{Firewall, Firewall6, IptablesRules, Jump};
pub use host::{Clash, HostFacts, clashes, clashes_between};
pub use plan::{
    Device, FdbEntry, Mismatch, Neighbour, Observed, ObservedDevice, Op, ROUTE_PROTOCOL, ROUTE_PROTOCOLS,
    Route, Tunnel, Vxlan, plan,
};
pub use roster::{HOLD, Roster};
pub use subnet::{Choice, Claimant, Lease, choose_subnet, desired_peers, vtep_mac};

/// What VXLAN over IPv4 adds to each packet, in bytes: inner Ethernet 14, VXLAN 8, UDP 8, IPv4 20.
pub const VXLAN_OVERHEAD: u32 = 50;
/// The same over IPv6, whose header has 40.
pub const VXLAN6_OVERHEAD: u32 = 70;
/// What WireGuard adds, over either family: IPv6 40, UDP 8, WireGuard 32. As flannel has it.
pub const WIREGUARD_OVERHEAD: u32 = 80;

/// The name of the WireGuard device, as flannel has it.
pub const WIREGUARD_DEVICE: &str = "flannel-wg";

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// That of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// The interface that carries the machine's own address, over which peers are reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Underlay {
    /// The interface's name.
    pub name: String,
    /// Its number in the kernel.
    pub index: u32,
    /// Its first global IPv4 address: what peers see as `PublicIP`.
    pub address: Ipv4Addr,
    /// Its first global IPv6 address, where it has one.
    pub address6: Option<Ipv6Addr>,
    /// The networks that are on this link, without a router between.
    pub links: Vec<IpNet>,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// Another machine of the cluster network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// Its address on the machines' network.
    pub public_ip: IpAddr,
    /// How packets for its containers travel.
    pub via: Via,
}

/// How packets travel to a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    /// To the VXLAN device that has this address.
    Vxlan(MacAddress),
    /// As they are: the peer is the next hop.
    Direct,
    /// Encrypted for this key, in base64, to this port.
    Wireguard {
        /// The peer's key.
        key: String,
        /// Where it listens.
        port: u16,
    },
}

impl Peer {
    /// A peer behind VXLAN.
    pub fn vxlan(public_ip: impl Into<IpAddr>, mac: MacAddress) -> Self {
        Self { public_ip: public_ip.into(), via: Via::Vxlan(mac) }
    }
}

/// One family's datapath as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Desired {
    /// Of the containers' addresses.
    pub family: Family,
    /// Our device, if the backend has one.
    pub tunnel: Option<Tunnel>,
    /// The interface that peers are reached over.
    pub underlay: String,
    /// What containers may send at once, in bytes.
    pub mtu: u32,
    /// The mark of its routes.
    pub protocol: u8,
    /// Every other machine's subnet.
    pub peers: BTreeMap<IpNet, Peer>,
}

impl Desired {
    /// The IPv4 datapath of `machine`, which holds `key` and whose packets travel over `underlay`.
    pub fn new(
        machine: &MachineId,
        config: &NetworkConfig,
        key: impl Into<SubnetKey>,
        underlay: &Underlay,
        leases: &[Lease],
    ) -> Self {
        Self::of(Family::V4, machine, config, key.into(), underlay, leases)
    }

    /// The datapath of each family that the network has. One over IPv6 needs an IPv6 address of the machine's.
    pub fn all(
        machine: &MachineId,
        config: &NetworkConfig,
        key: SubnetKey,
        underlay: &Underlay,
        leases: &[Lease],
    ) -> Vec<Self> {
        let mut all = vec![Self::of(Family::V4, machine, config, key, underlay, leases)];
        if key.v6.is_some() && underlay.address6.is_some() {
            all.push(Self::of(Family::V6, machine, config, key, underlay, leases));
        }
        all
    }

    fn of(
        family: Family,
        machine: &MachineId,
        config: &NetworkConfig,
        key: SubnetKey,
        underlay: &Underlay,
        leases: &[Lease],
    ) -> Self {
        let mtu = tunnel_mtu(family, config, underlay);
        let address = match (family, key.v6) {
            (Family::V6, Some(v6)) => IpAddr::V6(v6.base()),
            _ => key.v4.base().into(),
        };
        let tunnel = match &config.backend {
            Backend::Vxlan(vxlan) => {
                let local = match (family, underlay.address6) {
                    (Family::V6, Some(address)) => IpAddr::V6(address),
                    _ => underlay.address.into(),
                };
                Some(Tunnel::Vxlan(Device {
                    name: vxlan_device(family, vxlan.vni),
                    vni: vxlan.vni,
                    port: vxlan.port,
                    mac: vtep_mac(machine, vxlan.vni, family),
                    local,
                    underlay: underlay.name.clone(),
                    learning: vxlan.learning,
                    gbp: vxlan.gbp,
                    mtu,
                    address,
                }))
            }
            Backend::Wireguard(_) => {
                Some(Tunnel::Wireguard { name: WIREGUARD_DEVICE.to_owned(), mtu, address })
            }
            Backend::HostGw | Backend::Alloc => None,
        };
        let peers = desired_peers(family, leases, key, config, underlay);
        Self { family, tunnel, underlay: underlay.name.clone(), mtu, protocol: ROUTE_PROTOCOL, peers }
    }

    /// Our device's name, if the backend has one.
    pub fn device(&self) -> Option<&str> {
        self.tunnel.as_ref().map(Tunnel::name)
    }

    /// Our VXLAN device.
    pub fn vtep(&self) -> Option<&Device> {
        match &self.tunnel {
            Some(Tunnel::Vxlan(device)) => Some(device),
            _ => None,
        }
    }
}

/// What our devices are called under `config`.
pub fn devices(config: &NetworkConfig) -> BTreeSet<String> {
    let families = [Some(Family::V4), config.v6.as_ref().map(|_| Family::V6)];
    match &config.backend {
        Backend::Vxlan(vxlan) => {
            families.into_iter().flatten().map(|family| vxlan_device(family, vxlan.vni)).collect()
        }
        Backend::Wireguard(_) => BTreeSet::from([WIREGUARD_DEVICE.to_owned()]),
        Backend::HostGw | Backend::Alloc => BTreeSet::new(),
    }
}

fn vxlan_device(family: Family, vni: u32) -> String {
    match family {
        Family::V4 => format!("flannel.{vni}"),
        Family::V6 => format!("flannel-v6.{vni}"),
    }
}

/// What a container may send at once. WireGuard's packets may be of the other family than those in them.
fn tunnel_mtu(family: Family, config: &NetworkConfig, underlay: &Underlay) -> u32 {
    let (mtu, overhead) = match &config.backend {
        Backend::Vxlan(vxlan) => {
            (vxlan.mtu, if family == Family::V4 { VXLAN_OVERHEAD } else { VXLAN6_OVERHEAD })
        }
        Backend::Wireguard(wireguard) => (wireguard.mtu, WIREGUARD_OVERHEAD),
        Backend::HostGw | Backend::Alloc => (None, 0),
    };
    // More than the interface carries would be lost, whoever asked for it.
    mtu.map_or(underlay.mtu, |mtu| mtu.min(underlay.mtu)).saturating_sub(overhead)
}

/// The MTU that fits every family: what Docker's bridge gets, which both share.
pub fn network_mtu(all: &[Desired]) -> u32 {
    all.iter().map(|desired| desired.mtu).min().unwrap_or_default()
}

/// What a machine publishes under its subnet's key, so that the others can reach it. `wireguard` is its public key in
/// base64.
pub fn own_lease(
    machine: &MachineId,
    config: &NetworkConfig,
    underlay: &Underlay,
    wireguard: Option<&str>,
) -> SubnetLease {
    let data = |family| match &config.backend {
        Backend::Vxlan(vxlan) => Some(BackendData::Vxlan(VxlanData {
            vni: Some(vxlan.vni),
            vtep_mac: vtep_mac(machine, vxlan.vni, family),
        })),
        Backend::Wireguard(wg) => wireguard.map(|key| {
            BackendData::Wireguard(WireguardData { public_key: key.to_owned(), port: Some(wg.port) })
        }),
        Backend::HostGw | Backend::Alloc => None,
    };
    let public_ipv6 = underlay.address6.filter(|_| config.v6.is_some());
    SubnetLease {
        public_ip: underlay.address,
        public_ipv6,
        backend_type: config.backend.name().to_owned(),
        backend_data: data(Family::V4),
        backend_v6_data: public_ipv6.and_then(|_| data(Family::V6)),
    }
}

/// Over which family WireGuard's packets travel. flannel's `separate` has a device for each family; ours carries both,
/// over the same family as `auto`, and is understood by flannel's as long as it listens where its lease says.
pub fn wireguard_underlay(options: &network::Wireguard) -> Family {
    match options.mode {
        WireguardMode::Ipv6 => Family::V6,
        WireguardMode::Separate | WireguardMode::Auto | WireguardMode::Ipv4 => Family::V4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Subnet;

    fn underlay() -> Underlay {
        Underlay {
            name: "eth0".to_owned(),
            index: 2,
            address: Ipv4Addr::new(192, 168, 77, 1),
            address6: Some("fd77::1".parse().expect("an address")),
            links: vec!["192.168.77.0/24".parse().expect("a network")],
            mtu: 1500,
        }
    }

    fn id() -> MachineId {
        "0123456789abcdef0123456789abcdef".parse().expect("an id")
    }

    #[test]
    fn the_desired_datapath_is_flannels() {
        let config = NetworkConfig::vxlan("10.1.0.0/16".parse().expect("a network")).expect("valid");
        let subnet = Subnet::from_key("10.1.5.0-24").expect("a key");
        let underlay = underlay();
        let desired = Desired::new(&id(), &config, subnet, &underlay, &[]);
        let device = desired.vtep().expect("VXLAN");
        assert_eq!((device.name.as_str(), device.vni, device.port, device.mtu), ("flannel.1", 1, 8472, 1450));
        assert_eq!((device.address, device.local), (subnet.base().into(), underlay.address.into()));
        let lease = own_lease(&id(), &config, &underlay, None);
        assert_eq!((lease.public_ip, lease.backend_type.as_str()), (underlay.address, "vxlan"));
        let expected = BackendData::Vxlan(VxlanData { vni: Some(1), vtep_mac: device.mac });
        assert_eq!((lease.backend_data, lease.public_ipv6), (Some(expected), None));
        assert_eq!(Desired::all(&id(), &config, subnet.into(), &underlay, &[]), [desired]);
    }

    #[test]
    fn point_12_each_backend_and_family_leaves_room_for_its_headers() {
        let mtu = |backend: &str| {
            let text = format!(
                r#"{{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{{{backend}}}}}"#
            );
            let config: NetworkConfig = text.parse().expect("valid");
            let key = "10.1.5.0-24&fd00:0:0:5::-64".parse().expect("a key");
            let all = Desired::all(&id(), &config, key, &underlay(), &[]);
            (all.iter().map(|desired| desired.mtu).collect::<Vec<_>>(), network_mtu(&all))
        };
        assert_eq!(mtu(r#""Type":"vxlan""#), (vec![1450, 1430], 1430));
        assert_eq!(mtu(r#""Type":"vxlan","MTU":1400"#), (vec![1350, 1330], 1330));
        assert_eq!(mtu(r#""Type":"vxlan","MTU":9000"#), (vec![1450, 1430], 1430));
        assert_eq!(mtu(r#""Type":"host-gw""#), (vec![1500, 1500], 1500));
        assert_eq!(mtu(r#""Type":"wireguard""#), (vec![1420, 1420], 1420));
    }
}
